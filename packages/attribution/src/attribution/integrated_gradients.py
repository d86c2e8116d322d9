"""Integrated gradients along the way from the old checkpoint's states to the new one's."""

from collections.abc import Sequence

import torch
from jaxtyping import Float
from math_utils.capture import frozen
from math_utils.language_modeling import TokenBatch
from torch import Tensor
from transformers import PreTrainedModel

from attribution.activations import states_by_layer
from attribution.checkpoints import Checkpoints, check_examples, resolve_layers
from attribution.decoder import Objective, check_read_out, objective_per_example, run_decoder
from attribution.errors import AttributionError
from attribution.examples import Example, over_batches
from attribution.pooling import pool, pooled_positions
from attribution.vectors import DEFAULT_VECTORS, LayerVectors, VectorOptions

States = Float[Tensor, "batch seq hidden"]


def integrated_state_gradients(
    checkpoints: Checkpoints,
    examples: Sequence[Example],
    options: VectorOptions = DEFAULT_VECTORS,
    *,
    num_steps: int = 8,
    objective: Objective = "loss",
) -> LayerVectors:
    """The share of each hidden dimension in what the change of a layer's states does to the loss.

    a_ℓ = pool(Δh_ℓ ⊙ 1/K Σ_k ∂L/∂h_ℓ at h_ℓ^old + (k − ½)/K · Δh_ℓ), k = 1 … K,

    where L(h) is the loss of the *new* model whose layer-ℓ states, at all positions together, are
    h and whose upper layers run as they are. Summed over positions and dimensions (before
    pooling) it approaches L(h_ℓ^new) − L(h_ℓ^old) as K grows; the first is the new model's loss,
    the second that of the old model's states read by the new model's upper layers.

    Args:
        checkpoints: old and new.
        examples: documents or queries.
        options: layers, pooling (a mean over positions) and batches.
        num_steps: K, midpoints of the way; K passes forward and backward per layer.
        objective: what L is, see :func:`attribution.decoder.objective_per_example`.

    Returns:
        The attributions [layer, example, hidden], in nats (or logits); negative lowers the loss.

    Raises:
        AttributionError: on no examples, unknown token ids or layers, K < 1, or a value not finite.

    Source: Sundararajan, Taly and Yan 2017 (arXiv 1703.01365), equation 1 and proposition 1, with
    hidden states in place of inputs.
    """
    if num_steps < 1:
        raise AttributionError(f"expected at least one step of integration, got {num_steps}")
    new = checkpoints.new
    check_examples(examples, new, "example")
    layers = resolve_layers(options.layers, checkpoints.num_layers)

    def attributions(batch: TokenBatch) -> Float[Tensor, "layer batch hidden"]:
        with torch.no_grad():
            before, after = (
                states_by_layer(model, batch, layers) for model in (checkpoints.old, new)
            )
        positions = pooled_positions(batch, options.pooling)
        found = [
            integrate(
                new, batch, layer, before[layer], after[layer], num_steps, objective=objective
            )
            for layer in layers
        ]
        return torch.stack([pool(each, positions) for each in found])

    with frozen(checkpoints.old), frozen(new):
        check_read_out(new)
        values = over_batches(
            examples,
            attributions,
            batch_size=options.batch_size,
            padding_side=options.padding_side,
            device=checkpoints.device,
            progress="integrated gradients" if options.progress else None,
        )
    return LayerVectors(values, layers, "integrated gradient").check_finite()


def integrate(
    model: PreTrainedModel,
    batch: TokenBatch,
    layer: int,
    start: States,
    end: States,
    num_steps: int,
    *,
    objective: Objective,
) -> States:
    """(end − start) ⊙ the mean gradient at the midpoints of K equal steps, at every position.

    Where an example is padded its states carry no loss, and so nothing here.
    """
    total = torch.zeros_like(start)
    for step in range(num_steps):
        states = torch.lerp(start, end, (step + 0.5) / num_steps).requires_grad_()
        with torch.enable_grad():
            loss = loss_given_states(model, batch, layer, states, objective=objective).sum()
            total += torch.autograd.grad(loss, states)[0]
    return (end - start) * total / num_steps


def loss_given_states(
    model: PreTrainedModel, batch: TokenBatch, layer: int, states: States, *, objective: Objective
) -> Float[Tensor, " batch"]:
    """L of each example where the model's states of one layer are replaced by the given ones."""
    output = run_decoder(model, batch, {layer: lambda _: states})
    return objective_per_example(model, output, batch, objective)
