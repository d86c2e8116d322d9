"""Per-example gradients of linear maps from captured pairs: G_n = Σ_t δ_t a_tᵀ."""

from collections.abc import Callable, Iterable, Iterator, Mapping, Sequence
from contextlib import AbstractContextManager, nullcontext

import torch
from torch import nn

from math_utils._typing import Float, Tensor
from math_utils.capture import CapturedPair, capture_pairs
from math_utils.curvature.finite_check import check_finite
from math_utils.errors import NonFiniteError
from math_utils.language_modeling import TokenBatch
from math_utils.linear_maps import LinearMap

Objective = Callable[[nn.Module, TokenBatch], Float[Tensor, " batch"]]
"""The loss of every example of a batch, in nats. Examples must not affect each other."""

Recording = Callable[[float], AbstractContextManager[None]]
"""Given the factor on the loss, a context around a forward and a backward pass."""

CACHE_SIZED: Mapping[str, int] = {"cpu": 1 << 18, "cuda": 1 << 28}
"""Gradient entries formed at once: what fits a CPU's cache, and what keeps a GPU busy."""


def backward_pass(
    model: nn.Module,
    maps: Mapping[str, LinearMap],
    batch: TokenBatch,
    objective: Objective,
    consume: Callable[[CapturedPair], None],
    *,
    dtype: torch.dtype = torch.float32,
    loss_scale: float = 1.0,
    recording: Recording | None = None,
) -> Float[Tensor, " batch"]:
    """One forward and backward pass over a batch; every map's pair goes to ``consume``.

    Args:
        model: in the state that :func:`math_utils.capture.frozen` gives.
        maps: the maps to watch.
        batch: on the device of the model's input embedding.
        objective: the loss of every example.
        consume: called once per map.
        dtype: what captured tensors are cast to.
        loss_scale: factor on the loss, taken out of the gradients again. Where it makes a
            gradient overflow, the batch is done again with a smaller one; until the pass is
            over, pairs are then held back.
        recording: given the factor on the loss, a context to run both passes in.

    Returns:
        The loss of every example, in nats.

    Raises:
        NonFiniteError: if a loss or a gradient is not finite, with the example and the module.
    """
    while loss_scale > 1:
        held: list[CapturedPair] = []
        try:
            losses = _backward_once(
                model, maps, batch, objective, held.append, dtype, loss_scale, recording
            )
        except NonFiniteError:
            loss_scale = max(1.0, loss_scale / 16)
            continue
        for pair in held:
            consume(pair)
        return losses
    return _backward_once(model, maps, batch, objective, consume, dtype, loss_scale, recording)


def _backward_once(
    model: nn.Module,
    maps: Mapping[str, LinearMap],
    batch: TokenBatch,
    objective: Objective,
    consume: Callable[[CapturedPair], None],
    dtype: torch.dtype,
    loss_scale: float,
    recording: Recording | None,
) -> Tensor:
    with (
        check_finite(batch, consume) as checked,
        capture_pairs(maps, batch.attention_mask, checked, dtype=dtype, loss_scale=loss_scale),
        recording(loss_scale) if recording else nullcontext(),
    ):
        losses = objective(model, batch)
        finite = torch.isfinite(losses)
        if not finite.all():
            example = int(batch.example_keys[int((~finite).nonzero()[0])])
            raise NonFiniteError("the loss", example)
        if losses.requires_grad:
            (losses.sum() * loss_scale).backward()
        # Before a recording ends: a batch that is not finite is not kept.
        checked.flush()
    return losses.detach()


def gradient_chunks(
    inputs: Float[Tensor, "token d_in"],
    output_gradients: Float[Tensor, "token d_out"],
    lengths: Sequence[int],
    *,
    max_elements: Mapping[str, int] = CACHE_SIZED,
) -> Iterator[tuple[slice, Float[Tensor, "chunk d_out d_in"]]]:
    """G_n of the examples of a batch, some at a time.

    A chunk may be overwritten by its consumer, and is overwritten by the next one.

    Args:
        inputs: a_t, example by example.
        output_gradients: δ_t, likewise.
        lengths: rows per example.
        max_elements: entries of gradients to form at once, by kind of device (one example's at
            the least).

    Yields:
        (which examples, their gradients).
    """
    d_in, d_out = inputs.shape[1], output_gradients.shape[1]
    device = inputs.device
    budget = max_elements.get(device.type, max_elements["cpu"])
    per_chunk = max(1, min(len(lengths), budget // (d_in * d_out)))
    if device.type == "cpu":
        buffer = inputs.new_empty(per_chunk, d_out, d_in)
    starts = [0]
    for length in lengths:
        starts.append(starts[-1] + length)
    for first in range(0, len(lengths), per_chunk):
        stop = min(first + per_chunk, len(lengths))
        if device.type == "cpu":
            for row in range(first, stop):
                rows = slice(starts[row], starts[row + 1])
                torch.mm(output_gradients[rows].T, inputs[rows], out=buffer[row - first])
            yield slice(first, stop), buffer[: stop - first]
        else:
            rows = slice(starts[first], starts[stop])
            own = lengths[first:stop]
            yield (
                slice(first, stop),
                _pad_examples(output_gradients[rows], own).mT @ _pad_examples(inputs[rows], own),
            )


def padded_chunks(
    rows: Float[Tensor, "token dim"], lengths: Sequence[int], at_once: int
) -> Iterator[Float[Tensor, "chunk pos dim"]]:
    """The rows of some examples at a time, with zeros behind those of shorter ones."""
    per_chunk = [lengths[first : first + at_once] for first in range(0, len(lengths), at_once)]
    for own, part in zip(per_chunk, rows.split([sum(own) for own in per_chunk]), strict=True):
        yield _pad_examples(part, own)


def _pad_examples(
    rows: Float[Tensor, "token dim"], lengths: Sequence[int]
) -> Float[Tensor, "example pos dim"]:
    if len(set(lengths)) == 1:
        return rows.view(len(lengths), lengths[0], -1)
    return nn.utils.rnn.pad_sequence(list(rows.split(list(lengths))), batch_first=True)


def collect_gradients(
    model: nn.Module,
    maps: Mapping[str, LinearMap],
    batches: Iterable[TokenBatch],
    objective: Objective,
    *,
    dtype: torch.dtype = torch.float32,
    loss_scale: float = 1.0,
) -> tuple[dict[str, Float[Tensor, "example d_out d_in"]], Float[Tensor, " example"]]:
    """The gradient of every example with respect to every map, in the weights' own basis.

    Memory is the number of examples times the number of tracked parameters.

    Args:
        model: in the state that :func:`math_utils.capture.frozen` gives.
        maps: the maps.
        batches: the examples.
        objective: the loss of every example.
        dtype: dtype of the gradients.
        loss_scale: as for :func:`backward_pass`.

    Returns:
        ({map: gradients}, losses), examples in the order of the batches, in nats (per unit
        weight).
    """
    gathered: dict[str, list[Tensor]] = {name: [] for name in maps}
    losses = []
    for batch in batches:
        seen: set[str] = set()

        def keep(pair: CapturedPair, seen: set[str] = seen) -> None:
            seen.add(pair.name)
            chunks = gradient_chunks(pair.inputs, pair.output_gradients, pair.lengths)
            gathered[pair.name] += [chunk.clone() for _, chunk in chunks]

        losses.append(
            backward_pass(
                model, maps, batch, objective, keep, dtype=dtype, loss_scale=loss_scale
            ).cpu()
        )
        for name in set(maps) - seen:
            shape = (len(batch.input_ids), maps[name].d_out, maps[name].d_in)
            gathered[name].append(torch.zeros(shape, dtype=dtype))
    return {name: torch.cat(parts) for name, parts in gathered.items()}, torch.cat(losses)
