"""Running the part of a model around its tracked maps again, without the rest of the model.

A segment is the smallest module that holds the tracked maps of one part of a layer: the MLP of a
block, its attention. What the maps see in a batch, inputs a_t and output gradients δ_t, follows
from the arguments of the segment's call and from the gradient of its output: neither the layers
below and above nor the head are needed. Whoever passes over the same data again, with the same
loss, can keep these (two vectors of the model's width per position for an MLP) and run the
segments alone. They compute what they computed before from the same numbers, in the same shapes,
so the pairs are the same bits.
"""

from collections.abc import Callable, Iterator, Mapping, Sequence
from contextlib import contextmanager
from dataclasses import dataclass
from typing import Any

import torch
from torch import nn

from math_utils._typing import Tensor, TokenMask
from math_utils.capture import CapturedPair, capture_pairs
from math_utils.linear_maps import LinearMap


@dataclass(frozen=True, eq=False)
class Segment:
    """A module that holds tracked maps, and nothing that these need from outside but its inputs.

    Attributes:
        name: of the module.
        module: it.
        maps: names of the tracked maps in it.
    """

    name: str
    module: nn.Module
    maps: tuple[str, ...]


@dataclass(frozen=True, eq=False)
class SegmentCall:
    """One call of a segment.

    Attributes:
        positional: its positional arguments, tensors detached.
        named: its keyword arguments, likewise.
        gradients: of every tensor that it returned; None where none arrived.
    """

    positional: tuple[Any, ...]
    named: dict[str, Any]
    gradients: list[Tensor | None]


@dataclass(frozen=True, eq=False)
class KeptBatch:
    """The calls of all segments in one batch.

    Attributes:
        calls: {segment: its call}.
        loss_scale: what the loss was multiplied by.
        num_bytes: of the tensors, one that is held twice counted once.
    """

    calls: Mapping[str, SegmentCall]
    loss_scale: float
    num_bytes: int


def find_segments(model: nn.Module, maps: Mapping[str, LinearMap]) -> list[Segment]:
    """The segments of a model, in its order; every map is in one.

    Maps belong together whose names agree up to the part behind the layer's number, as in
    ``layers.3.mlp``; their segment is the module at their longest common name.
    """
    groups: dict[tuple[str, ...], list[tuple[str, ...]]] = {}
    for name in maps:
        path = tuple(name.split("."))
        layer = next((place for place, part in enumerate(path) if part.isdigit()), len(path))
        groups.setdefault(path[: layer + 2], []).append(path)
    segments = []
    for paths in groups.values():
        shared = 0
        while all(
            len(path) > shared and path[: shared + 1] == paths[0][: shared + 1] for path in paths
        ):
            shared += 1
        name = ".".join(paths[0][:shared])
        names = tuple(".".join(path) for path in paths)
        segments.append(Segment(name, model.get_submodule(name), names))
    return segments


@contextmanager
def record_segments(
    segments: Sequence[Segment],
    maps: Mapping[str, LinearMap],
    keep: Callable[[KeptBatch], None],
    *,
    loss_scale: float = 1.0,
) -> Iterator[None]:
    """Keep the calls of all segments in the forward and backward pass inside the context.

    Enter it inside :func:`~math_utils.capture.capture_pairs`, which makes outputs carry gradients.
    ``keep`` is called at the end, unless what was seen could not be replayed: a segment that was
    not called exactly once, or a map in it; an argument that is no tensor or plain value, or
    that was changed in place afterwards; an exception.
    """
    uses = {id(module): 0 for one in maps.values() for module in one.modules}
    recorders = [_Recorder(segment) for segment in segments]
    handles = []

    def count(module: nn.Module, arguments: tuple[Any, ...]) -> None:
        uses[id(module)] += 1

    try:
        for one in maps.values():
            handles += [module.register_forward_pre_hook(count) for module in one.modules]
        for recorder in recorders:
            handles += recorder.watch()
        yield
    finally:
        for handle in handles:
            handle.remove()
    one_module_each = all(len(one.modules) == 1 for one in maps.values())
    if not one_module_each or any(count != 1 for count in uses.values()):
        return
    calls = {recorder.segment.name: recorder.call() for recorder in recorders}
    complete = {name: call for name, call in calls.items() if call is not None}
    if len(complete) == len(segments):
        keep(KeptBatch(complete, loss_scale, _num_bytes(complete.values())))


def replay_segments(
    segments: Sequence[Segment],
    kept: KeptBatch,
    maps: Mapping[str, LinearMap],
    mask: TokenMask,
    consume: Callable[[CapturedPair], None],
    *,
    dtype: torch.dtype = torch.float32,
) -> None:
    """Hand each map's pair to ``consume``, as the pass did in which the batch was kept.

    Args:
        segments: as the batch was kept with.
        kept: the calls.
        maps: the maps to watch, all of them or some; segments without any are not run.
        mask: the real positions of the batch.
        consume: called once per map.
        dtype: what inputs and gradients are cast to.
    """
    with capture_pairs(maps, mask, consume, dtype=dtype, loss_scale=kept.loss_scale):
        for segment in reversed(segments):
            if not any(name in maps for name in segment.maps):
                continue
            call = kept.calls[segment.name]
            outputs = list(_tensors(segment.module(*call.positional, **call.named)))
            reached = [
                (output, gradient)
                for output, gradient in zip(outputs, call.gradients, strict=True)
                if gradient is not None and output.requires_grad
            ]
            if reached:
                torch.autograd.backward([one for one, _ in reached], [one for _, one in reached])


class _Recorder:
    """Watches one segment."""

    def __init__(self, segment: Segment) -> None:
        self.segment = segment
        self._calls: list[SegmentCall] = []
        self._versions: list[tuple[Tensor, int]] = []
        self._is_replayable = True

    def watch(self) -> list[Any]:
        """Hooks to be removed afterwards."""
        module = self.segment.module
        return [
            module.register_forward_pre_hook(self._enter, with_kwargs=True, prepend=True),
            module.register_forward_hook(self._leave),
        ]

    def call(self) -> SegmentCall | None:
        """The one call, or None if it cannot be replayed."""
        unchanged = all(tensor._version == version for tensor, version in self._versions)
        return (
            self._calls[0] if len(self._calls) == 1 and unchanged and self._is_replayable else None
        )

    def _enter(self, module: nn.Module, positional: tuple[Any, ...], named: dict[str, Any]) -> None:
        try:
            self._calls.append(SegmentCall(self._detach(positional), self._detach(named), []))
        except TypeError:
            self._is_replayable = False

    def _leave(self, module: nn.Module, arguments: tuple[Any, ...], output: Any) -> None:
        if not self._calls:
            return
        gradients = self._calls[-1].gradients
        for place, tensor in enumerate(_tensors(output)):
            gradients.append(None)
            if tensor.requires_grad:
                tensor.register_hook(_Setter(gradients, place))

    def _detach(self, value: Any) -> Any:
        if isinstance(value, Tensor):
            self._versions.append((value, value._version))
            detached = value.detach()
            # A view would keep all of what it is a view of.
            is_part = detached.untyped_storage().nbytes() > detached.nbytes
            return detached.clone() if is_part else detached
        if value is None or isinstance(value, bool | int | float | str | torch.dtype):
            return value
        if type(value) in (tuple, list):
            return type(value)(self._detach(one) for one in value)
        if type(value) is dict:
            return {name: self._detach(one) for name, one in value.items()}
        raise TypeError(f"a {type(value).__name__} may change with every call")


@dataclass(frozen=True, eq=False)
class _Setter:
    """Puts a gradient into its place."""

    gradients: list[Tensor | None]
    place: int

    def __call__(self, gradient: Tensor) -> None:
        self.gradients[self.place] = gradient.detach()


def _tensors(value: Any) -> Iterator[Tensor]:
    """The tensors in what a module returned, in order."""
    if isinstance(value, Tensor):
        yield value
    elif isinstance(value, Mapping):
        for one in value.values():
            yield from _tensors(one)
    elif isinstance(value, tuple | list):
        for one in value:
            yield from _tensors(one)


def _num_bytes(calls: Any) -> int:
    held: dict[int, int] = {}
    for call in calls:
        for tensor in _tensors([call.positional, call.named, call.gradients]):
            storage = tensor.untyped_storage()
            held[storage.data_ptr()] = storage.nbytes()
    return sum(held.values())
