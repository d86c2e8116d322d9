"""Gradients of a loss with respect to hidden states, for any layers in one backward pass."""

from collections.abc import Callable, Sequence

import torch
from jaxtyping import Float
from math_utils.capture import frozen
from math_utils.language_modeling import TokenBatch
from torch import Tensor
from transformers import PreTrainedModel

from attribution.checkpoints import check_examples, check_precision, resolve_layers
from attribution.decoder import (
    Objective,
    check_read_out,
    num_layers_of,
    objective_per_example,
    run_decoder,
)
from attribution.examples import Example, over_batches
from attribution.pooling import pool, pooled_positions
from attribution.vectors import DEFAULT_VECTORS, LayerVectors, VectorOptions


def state_gradients(
    model: PreTrainedModel,
    examples: Sequence[Example],
    options: VectorOptions = DEFAULT_VECTORS,
    *,
    objective: Objective = "loss",
) -> LayerVectors:
    """How each example's loss depends on its hidden states: ḡ_ℓ(x) = pool(∂L(x)/∂h_ℓ).

    The gradient at a layer counts every way from its states to the loss, later positions included.

    Args:
        model: the new checkpoint, in float32 or wider; left as it was.
        examples: documents or queries; L is over the targets of each.
        options: layers, pooling and batches.
        objective: "loss", cross-entropy in nats; "margin", minus the margin of the logits. Both
            fall where the model gets better, see :func:`attribution.decoder.objective_per_example`.

    Returns:
        The gradients [layer, example, hidden], in nats (or logits) per unit of hidden state. They
        are of each example's own loss: a batch shares a backward pass, not a mean.

    Raises:
        AttributionError: on no examples, unknown token ids or layers, a model below float32 or
            whose logits are not its head's, or a gradient not finite.
    """
    check_examples(examples, model, "example")
    check_precision(model)
    layers = resolve_layers(options.layers, num_layers_of(model))

    def gradients(batch: TokenBatch) -> Float[Tensor, "layer batch hidden"]:
        positions = pooled_positions(batch, options.pooling)
        found = gradients_by_layer(model, batch, layers, objective)
        return torch.stack([pool(found[layer], positions) for layer in layers])

    with frozen(model):
        check_read_out(model)
        values = over_batches(
            examples,
            gradients,
            batch_size=options.batch_size,
            padding_side=options.padding_side,
            device=model.device,
            progress="gradients of states" if options.progress else None,
        )
    return LayerVectors(values, layers, "gradient").check_finite()


def gradients_by_layer(
    model: PreTrainedModel, batch: TokenBatch, layers: Sequence[int], objective: Objective
) -> dict[int, Float[Tensor, "batch seq hidden"]]:
    """∂L/∂h_ℓ at every position and each of the layers, by one forward and one backward pass.

    The lowest layer becomes the leaf of the graph; below it nothing is kept for the backward pass.
    """
    lowest = min(layers)
    found: dict[int, Tensor] = {}

    def record(layer: int) -> Callable[[Tensor], Tensor]:
        def keep(states: Tensor) -> Tensor:
            found[layer] = states.detach().requires_grad_() if layer == lowest else states
            return found[layer]

        return keep

    with torch.enable_grad():
        states = run_decoder(model, batch, {layer: record(layer) for layer in layers})
        total = objective_per_example(model, states, batch, objective).sum()
        gradients = torch.autograd.grad(total, [found[layer] for layer in layers])
    return dict(zip(layers, gradients, strict=True))
