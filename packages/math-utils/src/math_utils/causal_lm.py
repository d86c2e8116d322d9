"""Causal language models by what they do: finding embedding, head and blocks, taking the loss.

A model is anything that, called with ``input_ids`` and ``attention_mask``, returns an object
with ``logits`` [batch, seq, vocab]; nothing here knows a library of models.
"""

import inspect
from collections.abc import Iterator, Mapping
from contextlib import contextmanager
from dataclasses import dataclass, field
from typing import Any

import torch
from torch import nn

from math_utils._typing import Float, Tensor, TokenMask
from math_utils.errors import InfluenceError
from math_utils.language_modeling import IGNORED_LABEL, TokenBatch, summed_cross_entropy
from math_utils.linear_maps import is_linear_map


def find_embedding(model: nn.Module) -> tuple[str, nn.Embedding]:
    """Find the input embedding and its name.

    It is what ``get_input_embeddings()`` returns, or else the only embedding with as many rows as
    a linear map has outputs.

    Raises:
        InfluenceError: if there is none, or more than one that could be it.
    """
    getter = getattr(model, "get_input_embeddings", None)
    found = getter() if callable(getter) else None
    if found is None:
        widths = {_num_outputs(m) for m in model.modules() if is_linear_map(m)}
        every = {n: m for n, m in model.named_modules() if isinstance(m, nn.Embedding)}
        fitting = {n: m for n, m in every.items() if m.num_embeddings in widths} or every
        if len(fitting) != 1:
            raise InfluenceError(
                f"{type(model).__name__}: expected an input embedding; looked for "
                "get_input_embeddings() and for one torch.nn.Embedding with as many rows as a "
                f"linear map has outputs, found {', '.join(fitting) or 'none'}; give the model a "
                "get_input_embeddings(), or choose a target without the embedding"
            )
        return next(iter(fitting.items()))
    if not isinstance(found, nn.Embedding):
        raise InfluenceError(
            f"{type(model).__name__}: expected its input embedding to be a torch.nn.Embedding, "
            f"got a {type(found).__name__}; choose a target without the embedding"
        )
    return _name_of(model, found), found


def find_head(model: nn.Module) -> tuple[str, nn.Module]:
    """Find the output head and its name.

    It is what ``get_output_embeddings()`` returns, or else the last linear map with as many
    outputs as the embedding has rows.

    Raises:
        InfluenceError: if there is none, or it is no linear map.
    """
    getter = getattr(model, "get_output_embeddings", None)
    found = getter() if callable(getter) else None
    if found is None:
        _, embedding = find_embedding(model)
        fitting = [
            (name, module)
            for name, module in model.named_modules()
            if is_linear_map(module) and _num_outputs(module) == embedding.num_embeddings
        ]
        if not fitting:
            raise InfluenceError(
                f"{type(model).__name__}: expected an output head; looked for "
                "get_output_embeddings() and for a linear map with "
                f"{embedding.num_embeddings} outputs, one per row of the embedding, found none; "
                "choose a target without the head"
            )
        return fitting[-1]
    if not is_linear_map(found):
        raise InfluenceError(
            f"{type(model).__name__}: expected its output head to be a linear map, got a "
            f"{type(found).__name__}; choose a target without the head"
        )
    return _name_of(model, found), found


def find_blocks(model: nn.Module) -> tuple[str, nn.ModuleList]:
    """The stack of transformer blocks: the ``ModuleList`` with most parameters.

    Raises:
        InfluenceError: if the model has no ``ModuleList`` of blocks.
    """
    stacks = [
        (name, module)
        for name, module in model.named_modules()
        if isinstance(module, nn.ModuleList) and len(module)
    ]
    if not stacks:
        raise InfluenceError(
            f"{type(model).__name__}: expected a stack of blocks; looked for a non-empty "
            "torch.nn.ModuleList, found none"
        )
    return max(stacks, key=lambda one: sum(p.numel() for p in one[1].parameters()))


def right_padded(batch: TokenBatch) -> TokenBatch:
    """The same examples with all padding behind their real tokens, and no column of padding only.

    Positions then count from the first real token in any model, and under causal attention no
    real position sees padding.
    """
    mask = batch.attention_mask
    longest = int(mask.sum(dim=1).max())
    if bool((mask[:, 1:] <= mask[:, :-1]).all()):
        order = torch.arange(longest, device=mask.device).expand(len(mask), longest)
    else:
        order = torch.argsort((~mask).int(), dim=1, stable=True)[:, :longest]
    return TokenBatch(
        batch.input_ids.gather(1, order),
        mask.gather(1, order),
        batch.labels.gather(1, order),
        batch.example_keys,
    )


def call_model(model: nn.Module, batch: TokenBatch) -> Any:
    """Call a model on a batch, without a mask where nothing is padded, and without a cache."""
    arguments: dict[str, Any] = {}
    if not bool(batch.attention_mask.all()):
        arguments["attention_mask"] = batch.attention_mask.long()
    if "use_cache" in inspect.signature(model.forward).parameters:
        arguments["use_cache"] = False
    return model(input_ids=batch.input_ids, **arguments)


@dataclass(eq=False)
class HeadUse:
    """What a head got and gave at the positions that predict a label.

    Attributes:
        inputs: [label, d_in], without a bias entry.
        outputs: [label, vocab], before whatever the model does with them afterwards.
        are_logits: whether the model does nothing with them afterwards.
    """

    inputs: list[Float[Tensor, "_ d_in"]] = field(default_factory=list)
    outputs: list[Float[Tensor, "_ vocab"]] = field(default_factory=list)
    are_logits: bool = False


@contextmanager
def head_restricted_to(head: nn.Module, positions: TokenMask) -> Iterator[HeadUse]:
    """Give the head [1, label, hidden] instead of [batch, seq, hidden], and watch it.

    Raises:
        InfluenceError: if the head's input is not laid out as ``positions``.
    """
    use = HeadUse()

    def restrict(module: nn.Module, arguments: tuple[Any, ...]) -> tuple[Any, ...]:
        hidden = arguments[0]
        if hidden.shape[:-1] != positions.shape:
            raise InfluenceError(
                f"the output head: expected an input [batch={positions.shape[0]}, "
                f"seq={positions.shape[1]}, hidden], got {list(hidden.shape)}"
            )
        chosen = hidden[positions.to(hidden.device)]
        use.inputs.append(chosen.detach())
        return (chosen[None], *arguments[1:])

    def watch(module: nn.Module, arguments: tuple[Any, ...], output: Tensor) -> None:
        use.outputs.append(output[0].detach())

    handles = [head.register_forward_pre_hook(restrict), head.register_forward_hook(watch)]
    try:
        yield use
    finally:
        for handle in handles:
            handle.remove()


def logits_of(model: nn.Module, output: Any) -> Float[Tensor, "batch seq vocab"]:
    """The logits of a model's output.

    Raises:
        InfluenceError: if there are none.
    """
    logits = getattr(output, "logits", None)
    if not isinstance(logits, torch.Tensor):
        raise InfluenceError(
            f"{type(model).__name__}: expected its output to have logits [batch, seq, vocab], "
            f"got a {type(output).__name__}; wrap the model so that it returns them"
        )
    return logits


def label_losses(
    model: nn.Module, batch: TokenBatch, *, head: nn.Module | None = None
) -> tuple[Float[Tensor, " batch"], HeadUse | None]:
    """Summed cross-entropy of every example [batch], in nats; 0 for an example without labels.

    Args:
        model: a causal language model.
        batch: right-padded, on the device of the model's input embedding.
        head: the output head, which then gets only the positions that predict a label; None
            computes logits everywhere.

    Returns:
        (the losses, what the head did).

    Raises:
        InfluenceError: if the model returns no logits, or the head is not laid out as the batch.
    """
    predicts = batch.label_positions()
    use: HeadUse | None = None
    if head is None:
        logits = logits_of(model, call_model(model, batch))
        logits = logits[predicts.to(logits.device)]
    else:
        with head_restricted_to(head, predicts) as use:
            logits = logits_of(model, call_model(model, batch))[0]
        if len(use.outputs) != 1 or use.outputs[0].shape != logits.shape:
            raise InfluenceError(
                f"{type(model).__name__}: expected its output head to run once and give its "
                f"logits, but it ran {len(use.outputs)} times and the logits are "
                f"{list(logits.shape)}"
            )
        use.are_logits = torch.equal(use.outputs[0].to(logits.dtype), logits.detach())
    example_of_label = predicts.nonzero()[:, 0].to(logits.device)
    targets = batch.labels[:, 1:][predicts[:, :-1]].to(logits.device)
    return summed_cross_entropy(logits, targets, example_of_label, len(predicts)), use


def token_batch(batch: Mapping[str, Any], *, first_key: int = 0) -> TokenBatch:
    """A batch of a loader as checked, right-padded tokens.

    Args:
        batch: ``input_ids`` [batch, seq]; ``attention_mask`` likewise, all ones where missing;
            ``labels`` likewise, where missing the ids at real positions. Labels at padding do
            not count, whatever they are.
        first_key: the number of the first example, for messages.

    Raises:
        InfluenceError: on missing or unlike tensors, or an example without tokens.
    """
    if not isinstance(batch, Mapping) or "input_ids" not in batch:
        got = ", ".join(map(str, batch)) if isinstance(batch, Mapping) else type(batch).__name__
        raise InfluenceError(
            "expected batches that map input_ids (and attention_mask, labels) to tensors "
            f"[batch, seq], got {got or 'an empty mapping'}; give the loader a collate function "
            "that makes them"
        )
    ids = batch["input_ids"]
    for name in ("input_ids", "attention_mask", "labels"):
        one = batch.get(name)
        if one is None and name != "input_ids":
            continue
        if not isinstance(one, torch.Tensor) or one.ndim != 2 or one.shape != ids.shape:
            raise InfluenceError(
                f"expected {name} to be a tensor [batch, seq] like input_ids, "
                f"got {list(one.shape) if isinstance(one, torch.Tensor) else type(one).__name__}"
            )
    if ids.is_floating_point() or not ids.numel():
        raise InfluenceError(
            f"expected input_ids to hold whole numbers, got {ids.dtype} of shape {list(ids.shape)}"
        )
    given = batch.get("attention_mask")
    mask = torch.ones_like(ids, dtype=torch.bool) if given is None else given.bool()
    empty = (~mask.any(dim=1)).nonzero()
    if len(empty):
        raise InfluenceError(
            f"example {first_key + int(empty[0])}: expected at least one real token, got an "
            "attention_mask of zeros; drop the example"
        )
    labels = batch.get("labels")
    labels = torch.where(mask, ids if labels is None else labels, IGNORED_LABEL).long()
    keys = torch.arange(first_key, first_key + len(ids), device=ids.device)
    return right_padded(TokenBatch(ids.long(), mask, labels, keys))


def _num_outputs(module: nn.Module) -> int:
    if isinstance(module, nn.Linear):
        return module.out_features
    return module.get_parameter("weight").shape[1]


def _name_of(model: nn.Module, wanted: nn.Module) -> str:
    names = [name for name, module in model.named_modules() if module is wanted]
    if names:
        return str(names[0])
    raise InfluenceError(
        f"{type(model).__name__}: expected its embedding and head to be modules of the model, "
        f"but {type(wanted).__name__} is not among them"
    )
