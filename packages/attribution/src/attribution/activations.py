"""Hidden states of causal language models, one vector per text: of one model, or their change."""

import inspect
from collections.abc import Callable, Sequence
from typing import Any, Literal

import torch
from jaxtyping import Bool, Float, Float32
from math_utils.language_modeling import TokenBatch
from torch import Tensor
from transformers import PreTrainedModel

from attribution.checkpoints import Checkpoints, check_examples, resolve_layers
from attribution.decoder import run_decoder
from attribution.examples import Example, over_batches
from attribution.modes import evaluation_mode
from attribution.pooling import pool, pooled_positions
from attribution.progress import CountedBatches
from attribution.vectors import DEFAULT_VECTORS, LayerVectors, VectorOptions

Layer = Literal["last", "middle", "mean"]
Pooling = Literal["last", "mean"]


def pooled_hidden_states(
    model: PreTrainedModel,
    texts: Sequence[Sequence[int]],
    *,
    layer: Layer = "last",
    pooling: Pooling = "last",
    batch_size: int = 16,
    padding_side: Literal["right", "left"] = "right",
) -> Float32[Tensor, "text hidden"]:
    """Run every text through the model and pool its hidden states into one vector.

    Texts of like length go together. Padding is masked, positions count from each text's first
    token, and no padded position is pooled: so neither the batch nor the side of the padding
    matters beyond rounding.

    Args:
        model: a Hugging Face causal language model; its training mode, parameters and gradients
            are left as they were.
        texts: token ids of each text, none empty.
        layer: "last", the output of the model's final normalisation; "middle", that of block
            ⌈L/2⌉ of L; "mean", the mean over the outputs of all blocks, the last one normalised.
        pooling: "last", the state at the last token; "mean", the mean over all tokens.
        batch_size: sequences per forward pass.
        padding_side: where shorter texts of a batch are padded.

    Returns:
        The vectors in float32 on the CPU [text, hidden], in the order of ``texts``.

    Raises:
        ValueError: on no texts, an empty one, or a state that is not finite (names the text).
    """
    if not texts or any(len(text) == 0 for text in texts):
        empty = next((index for index, text in enumerate(texts) if len(text) == 0), None)
        found = "none" if empty is None else f"text {empty} empty"
        raise ValueError(f"expected at least one text and none empty, got {found}")
    order = sorted(range(len(texts)), key=lambda index: -len(texts[index]))
    pooled: list[Tensor] = []
    batches = [order[start : start + batch_size] for start in range(0, len(order), batch_size)]
    sizes = [len(rows) for rows in batches]
    with evaluation_mode(model), torch.no_grad():
        for rows in CountedBatches(batches, sizes, description="hidden states", unit="texts"):
            chosen = [list(texts[index]) for index in rows]
            batch = TokenBatch.collate(
                chosen, chosen, range(len(chosen)), padding_side=padding_side
            ).to(model.device)
            states = _select_layer(_all_hidden_states(model, batch), layer)
            pooled.append(_pool(states, batch.attention_mask, pooling).cpu())
    vectors = torch.cat(pooled)
    _check_finite(vectors, order)
    restored = torch.empty_like(vectors)
    restored[order] = vectors
    return restored


def _all_hidden_states(model: PreTrainedModel, batch: TokenBatch) -> tuple[Tensor, ...]:
    """The embeddings and the output of every block, without computing any logits."""
    decoder = model.base_model
    options: dict[str, Any] = {}
    if "position_ids" in inspect.signature(decoder.forward).parameters:
        options["position_ids"] = batch.position_ids()
    output = decoder(
        input_ids=batch.input_ids,
        attention_mask=batch.attention_mask.long(),
        output_hidden_states=True,
        use_cache=False,
        **options,
    )
    states: tuple[Tensor, ...] = output.hidden_states
    return states


def _select_layer(states: tuple[Tensor, ...], layer: Layer) -> Float32[Tensor, "batch seq hidden"]:
    num_blocks = len(states) - 1
    if layer == "last":
        return states[-1].float()
    if layer == "middle":
        return states[(num_blocks + 1) // 2].float()
    return torch.stack([state.float() for state in states[1:]]).mean(dim=0)


def _pool(
    states: Float32[Tensor, "batch seq hidden"], mask: Bool[Tensor, "batch seq"], pooling: Pooling
) -> Float32[Tensor, "batch hidden"]:
    if pooling == "last":
        positions = torch.arange(mask.shape[1], device=mask.device)
        last = torch.where(mask, positions, -1).amax(dim=1)
        return states[torch.arange(len(states), device=states.device), last]
    # Not states * mask: what stands at padded positions may be infinite or NaN.
    real = states.masked_fill(~mask[:, :, None], 0.0)
    return real.sum(dim=1) / mask.sum(dim=1, keepdim=True)


def _check_finite(vectors: Float[Tensor, "text hidden"], order: Sequence[int]) -> None:
    broken = (~torch.isfinite(vectors).all(dim=1)).nonzero().flatten().tolist()
    if broken:
        raise ValueError(
            f"text {order[broken[0]]}: its hidden state is not finite; "
            "run the model in bfloat16 or float32"
        )


def state_changes(
    checkpoints: Checkpoints,
    examples: Sequence[Example],
    options: VectorOptions = DEFAULT_VECTORS,
) -> LayerVectors:
    """How training moved the hidden states of each example: Δh̄_ℓ = pool(h_ℓ^new − h_ℓ^old).

    Both models read the same tokens. The mean of differences is the difference of means.

    Args:
        checkpoints: old and new.
        examples: documents or queries.
        options: layers, pooling and batches.

    Returns:
        The changes [layer, example, hidden]; exactly zero where the models agree.

    Raises:
        AttributionError: on no examples, unknown token ids or layers, or a state not finite.
    """
    check_examples(examples, checkpoints.new, "example")
    layers = resolve_layers(options.layers, checkpoints.num_layers)

    def changes(batch: TokenBatch) -> Float[Tensor, "layer batch hidden"]:
        old, new = (
            states_by_layer(model, batch, layers) for model in (checkpoints.old, checkpoints.new)
        )
        positions = pooled_positions(batch, options.pooling)
        return torch.stack([pool(new[layer] - old[layer], positions) for layer in layers])

    with evaluation_mode(checkpoints.old), evaluation_mode(checkpoints.new), torch.no_grad():
        values = over_batches(
            examples,
            changes,
            batch_size=options.batch_size,
            padding_side=options.padding_side,
            device=checkpoints.device,
            progress="changes of states" if options.progress else None,
        )
    return LayerVectors(values, layers, "change of hidden state").check_finite()


def states_by_layer(
    model: PreTrainedModel, batch: TokenBatch, layers: Sequence[int]
) -> dict[int, Float[Tensor, "batch seq hidden"]]:
    """The hidden states of a batch at each of the layers, in one pass."""
    found: dict[int, Tensor] = {}

    def record(layer: int) -> Callable[[Tensor], Tensor]:
        def keep(states: Tensor) -> Tensor:
            found[layer] = states
            return states

        return keep

    run_decoder(model, batch, {layer: record(layer) for layer in layers})
    return found
