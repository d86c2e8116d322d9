"""A causal language model's hidden states by layer: read, replaced, and read out.

Layers count as Hugging Face counts ``hidden_states``: 0 is the input of the first block (the
embeddings), ℓ the output of block ℓ, and L, the last, the output of the final normalisation, which
the head reads. So every model has exactly L + 1 layers whatever its norms are called.
"""

import inspect
from collections.abc import Callable, Mapping
from typing import Any, Literal

import torch
from jaxtyping import Float, Int
from math_utils.language_modeling import TokenBatch, summed_cross_entropy
from torch import Tensor, nn
from torch.utils.hooks import RemovableHandle
from transformers import PreTrainedModel

from attribution.errors import AttributionError

Objective = Literal["loss", "margin"]
States = Float[Tensor, "batch seq hidden"]
Edit = Callable[[Tensor], Tensor]


def blocks_of(model: PreTrainedModel) -> nn.ModuleList:
    """The decoder's blocks, in order.

    Raises:
        AttributionError: where the decoder has no single list of as many blocks as layers.
    """
    expected = model.config.get_text_config().num_hidden_layers
    lists = [
        child
        for child in model.base_model.children()
        if isinstance(child, nn.ModuleList) and len(child) == expected
    ]
    if len(lists) != 1:
        raise AttributionError(
            f"expected a decoder with one list of {expected} blocks, found {len(lists)} in "
            f"{type(model.base_model).__name__}"
        )
    return lists[0]


def num_layers_of(model: PreTrainedModel) -> int:
    """L, the number of blocks."""
    return len(blocks_of(model))


def vocabulary_size_of(model: PreTrainedModel) -> int:
    """Number of token ids that the model can read."""
    embedding: Any = model.get_input_embeddings()
    return len(embedding.weight)


def num_positions(model: PreTrainedModel) -> int | None:
    """How many positions a Hugging Face model has learned; None for rotary ones, without end."""
    if getattr(model.config, "rope_parameters", None):
        return None
    limit = getattr(model.config, "max_position_embeddings", None)
    return limit if isinstance(limit, int) and limit > 0 else None


def run_decoder(
    model: PreTrainedModel, batch: TokenBatch, edits: Mapping[int, Edit] | None = None
) -> States:
    """Run a batch up to the last layer and let ``edits`` see and replace states on the way.

    Args:
        model: a Hugging Face causal language model, in evaluation mode.
        batch: padded token ids; positions count from each text's first real token.
        edits: by layer, a function from its states to those that the layers above read.

    Returns:
        The states of layer L [batch, seq, hidden], after its edit.
    """
    decoder = model.base_model
    options: dict[str, Any] = {}
    if "position_ids" in inspect.signature(decoder.forward).parameters:
        options["position_ids"] = batch.position_ids()
    edits = edits or {}
    blocks = blocks_of(model)
    handles: list[RemovableHandle] = []
    try:
        for layer, edit in edits.items():
            if layer == 0:
                handles.append(
                    blocks[0].register_forward_pre_hook(_on_input(edit), with_kwargs=True)
                )
            elif layer < len(blocks):
                handles.append(blocks[layer - 1].register_forward_hook(_on_output(edit)))
        output = decoder(
            input_ids=batch.input_ids,
            attention_mask=batch.attention_mask.long(),
            use_cache=False,
            **options,
        )
    finally:
        for handle in handles:
            handle.remove()
    states: Tensor = output.last_hidden_state
    return edits[len(blocks)](states) if len(blocks) in edits else states


def _on_input(edit: Edit) -> Callable[..., Any]:
    def hook(module: nn.Module, args: tuple[Any, ...], kwargs: dict[str, Any]) -> Any:
        if args:
            return (edit(args[0]), *args[1:]), kwargs
        return args, {**kwargs, "hidden_states": edit(kwargs["hidden_states"])}

    return hook


def _on_output(edit: Edit) -> Callable[..., Tensor]:
    def hook(module: nn.Module, args: tuple[Any, ...], output: Tensor) -> Tensor:
        return edit(output)

    return hook


def label_logits(
    model: PreTrainedModel, states: States, batch: TokenBatch
) -> tuple[Float[Tensor, "label vocab"], Int[Tensor, " label"], Int[Tensor, " label"]]:
    """Logits where a target is predicted, the targets, and the row of the batch of each.

    Only these positions go through the head, which is most of the memory of a large vocabulary.
    """
    rows, places = batch.label_positions().nonzero(as_tuple=True)
    targets = batch.labels[rows, places + 1]
    logits: Tensor = model.get_output_embeddings()(states[rows, places])
    return logits, targets, rows


def objective_per_example(
    model: PreTrainedModel, states: States, batch: TokenBatch, objective: Objective
) -> Float[Tensor, " batch"]:
    """L(x), to be lowered: the summed cross-entropy of the targets, or minus their margin.

    "loss": Σ −log p(target) in nats. "margin": −Σ (z_target − max of the other logits), in logits;
    it does not fade where the model is sure.

    Returns:
        One number per example of the batch.
    """
    logits, targets, rows = label_logits(model, states, batch)
    if objective == "loss":
        return summed_cross_entropy(logits, targets, rows, len(batch.input_ids))
    margins = logit_margins(logits, targets)
    total = torch.zeros(len(batch.input_ids), dtype=margins.dtype, device=margins.device)
    return total.index_add(0, rows, -margins)


def logit_margins(
    logits: Float[Tensor, "label vocab"], targets: Int[Tensor, " label"]
) -> Float[Tensor, " label"]:
    """z_target − max of the other logits."""
    correct = logits.gather(1, targets[:, None]).squeeze(1)
    others = logits.scatter(1, targets[:, None], -torch.inf)
    return correct - others.amax(dim=1)


def check_read_out(model: PreTrainedModel) -> None:
    """Refuse a model whose logits are not its head applied to its last layer.

    Scaled or capped logits would otherwise give the gradients of another model.

    Raises:
        AttributionError: on such a model.
    """
    batch = TokenBatch.collate([[0, 1]], [[0, 1]], [0]).to(model.device)
    with torch.no_grad():
        head = model.get_output_embeddings()(run_decoder(model, batch))
        logits = model(input_ids=batch.input_ids, use_cache=False).logits
    # Rounding: both are one matrix product of the same numbers.
    if not torch.allclose(head, logits, rtol=1e-4, atol=1e-5):
        raise AttributionError(
            f"{type(model).__name__} changes its logits after the head (scaling, soft-capping); "
            "it is not supported"
        )
