"""Layer inputs and output gradients of linear maps, while a model runs forward and backward.

For a map y = W a, the gradient of one example's loss is a sum over its positions,

    G = Σ_t δ_t a_tᵀ        a_t: input [d_in],  δ_t = ∂L/∂y_t [d_out],

so the pairs (a_t, δ_t) say everything about it, and autograd never has to form a weight gradient.
A bias is part of the matrix: a_t gets a last entry 1. A map that runs k times in one forward pass
has k pairs per position; its gradient sums over all of them.
"""

from collections.abc import Callable, Iterator, Mapping
from contextlib import contextmanager
from dataclasses import dataclass, field
from typing import Any, TypeVar

import torch
from torch import nn

from math_utils._typing import Float, Int, Tensor, TokenMask
from math_utils.errors import CurvatureError
from math_utils.linear_maps import LinearMap

T = TypeVar("T")


@dataclass(frozen=True, eq=False)
class CapturedPair:
    """What one map saw in one batch: a_t and δ_t at every unpadded position.

    Positions are flattened example by example; where the map ran several times, an example's
    positions come once per use, use after use.

    Attributes:
        name: the map's name.
        inputs: a_t, with a last entry 1 where the map has a bias.
        output_gradients: δ_t, zero where the position does not reach the loss.
        lengths: per example of the batch, how many rows it has.
        num_uses: how often the map ran.
    """

    name: str
    inputs: Float[Tensor, "token d_in"]
    output_gradients: Float[Tensor, "token d_out"]
    lengths: tuple[int, ...]
    num_uses: int
    _memo: dict[Any, Any] = field(repr=False)

    def shared(self, key: Any, compute: Callable[[], T]) -> T:
        """``compute()``, once for all maps of the batch that read this same input tensor.

        Gate and up projections, or query, key and value, read one tensor; what is computed from
        it alone (its covariance, its rotation into an eigenbasis) need not be computed again.
        """
        if key not in self._memo:
            self._memo[key] = compute()
        value: T = self._memo[key]
        return value

    def examples(self) -> Iterator[tuple[Float[Tensor, "pos d_in"], Float[Tensor, "pos d_out"]]]:
        """The rows of each example in turn."""
        yield from zip(
            self.inputs.split(self.lengths), self.output_gradients.split(self.lengths), strict=True
        )


@contextmanager
def frozen(model: nn.Module) -> Iterator[None]:
    """Evaluation mode and no parameter gradients; everything as before afterwards."""
    training = [(module, module.training) for module in model.modules()]
    requires_grad = [(parameter, parameter.requires_grad) for parameter in model.parameters()]
    try:
        for module, _ in training:
            module.training = False
        for parameter, _ in requires_grad:
            parameter.requires_grad_(False)
        yield
    finally:
        for module, mode in training:
            module.training = mode
        for parameter, required in requires_grad:
            parameter.requires_grad_(required)


@contextmanager
def capture_pairs(
    maps: Mapping[str, LinearMap],
    mask: TokenMask,
    consume: Callable[[CapturedPair], None],
    *,
    dtype: torch.dtype = torch.float32,
    loss_scale: float = 1.0,
) -> Iterator[None]:
    """Hand each map's pair to ``consume`` as the backward pass inside the context reaches it.

    Run the forward pass and the backward pass of a loss that is a sum over examples inside the
    context. Each pair is handed over when the last use of its map has its gradient, and is then
    forgotten, so that memory is that of one backward pass. No weight gradient is computed, and
    the backward pass ends at the lowest map (:func:`frozen` provides for both). When the context
    ends without an error, maps that ran but did not reach the loss are handed over with δ = 0.

    Args:
        maps: the maps to watch.
        mask: the real positions of the batch; inputs of the maps are [batch, seq, d_in] or
            [batch · seq, d_in] in the same layout.
        consume: called once per map that ran; an exception in it stops the backward pass.
        dtype: what inputs and gradients are cast to.
        loss_scale: what the loss was multiplied by before the backward pass (for float16);
            the gradients handed over are divided by it.

    Raises:
        CurvatureError: where a map's input is not laid out as the mask.
    """
    recorder = _Recorder(mask, consume, dtype, loss_scale)
    handles = []
    try:
        for linear_map in maps.values():
            for module in linear_map.modules:
                handles.append(module.register_forward_hook(recorder.hook(linear_map)))
        yield
        recorder.finish()
    finally:
        for handle in handles:
            handle.remove()
        recorder.clear()


@dataclass(frozen=True, eq=False)
class CapturedLookup:
    """What an embedding saw in one batch: token ids and output gradients at unpadded positions.

    Its gradient is Σ_t e_{id_t} ε_tᵀ, with ε_t = ∂L/∂(row t of the output).

    Attributes:
        ids: the row that each position looks up.
        output_gradients: ε_t.
        example_of_token: the row of the batch that each position belongs to.
        is_plain: whether the output was the looked-up rows and nothing else.
    """

    ids: Int[Tensor, " token"]
    output_gradients: Float[Tensor, "token dim"]
    example_of_token: Int[Tensor, " token"]
    is_plain: bool


@contextmanager
def capture_lookups(
    embedding: nn.Embedding,
    mask: TokenMask,
    consume: Callable[[CapturedLookup], None],
    *,
    dtype: torch.dtype = torch.float32,
) -> Iterator[None]:
    """Hand each use of an embedding to ``consume`` as the backward pass inside reaches it.

    The counterpart of :func:`capture_pairs`, whose inputs would be one-hot vectors here. Uses
    that do not reach the loss are not handed over: their gradient is zero.

    Args:
        embedding: looks up ids [batch, seq].
        mask: the real positions of the batch.
        consume: called once per use; an exception in it stops the backward pass.
        dtype: what gradients are cast to.

    Raises:
        CurvatureError: where ids are not laid out as the mask.
    """
    example_of_token = mask.nonzero()[:, 0]

    def watch(module: nn.Module, arguments: tuple[Any, ...], output: Tensor) -> Tensor:
        ids = arguments[0]
        if ids.shape != mask.shape:
            raise CurvatureError(
                f"the embedding: expected ids {list(mask.shape)} like the mask, "
                f"got {list(ids.shape)}"
            )
        rows = nn.functional.embedding(ids, embedding.weight.detach())
        is_plain = torch.equal(output.detach(), rows)

        def observe(gradient: Tensor) -> None:
            real = gradient.detach()[mask].to(dtype)
            consume(CapturedLookup(ids[mask], real, example_of_token.to(ids.device), is_plain))

        anchor = torch.zeros((), device=output.device, requires_grad=True)
        result: Tensor = _Probe.apply(output, anchor, observe)
        return result

    handle = embedding.register_forward_hook(watch)
    try:
        yield
    finally:
        handle.remove()


class _Probe(torch.autograd.Function):
    """The identity; tells its observer the gradient, and goes no deeper than it must."""

    @staticmethod
    def forward(
        ctx: Any, output: Tensor, anchor: Tensor, observe: Callable[[Tensor], None]
    ) -> Tensor:
        """Return the output; ``anchor`` makes it require a gradient even if nothing below does."""
        ctx.observe = observe
        return output.view_as(output)

    @staticmethod
    def backward(ctx: Any, *gradients: Tensor) -> tuple[Tensor | None, None, None]:
        """Observe the gradient and pass it on, if anything below wants it."""
        (gradient,) = gradients
        ctx.observe(gradient)
        return (gradient if ctx.needs_input_grad[0] else None), None, None


class _Recorder:
    """Collects the uses of each map until all of them have their gradient."""

    def __init__(
        self,
        mask: TokenMask,
        consume: Callable[[CapturedPair], None],
        dtype: torch.dtype,
        loss_scale: float,
    ) -> None:
        self._mask = mask
        self._lengths = mask.sum(dim=1).tolist()
        self._is_full = all(length == mask.shape[1] for length in self._lengths)
        self._consume = consume
        self._dtype = dtype
        self._loss_scale = loss_scale
        self._maps: dict[str, LinearMap] = {}
        self._inputs: dict[str, list[Tensor]] = {}
        self._gradients: dict[str, list[Tensor | None]] = {}
        self._readers: dict[int, int] = {}
        self._memos: dict[tuple[int, bool], dict[Any, Any]] = {}
        self._rows: dict[tuple[int, torch.device], Tensor] = {}

    def hook(self, linear_map: LinearMap) -> Callable[[nn.Module, tuple[Any, ...], Tensor], Tensor]:
        """The forward hook that watches one use of a map."""
        name = linear_map.name

        def watch(module: nn.Module, arguments: tuple[Any, ...], output: Tensor) -> Tensor:
            inputs = arguments[0].detach()
            self._check_layout(name, inputs)
            self._maps[name] = linear_map
            self._inputs.setdefault(name, []).append(arguments[0])
            gradients = self._gradients.setdefault(name, [])
            gradients.append(None)
            use = len(gradients) - 1
            self._readers[id(arguments[0])] = self._readers.get(id(arguments[0]), 0) + 1

            def observe(gradient: Tensor) -> None:
                gradients[use] = gradient.detach()
                if all(one is not None for one in gradients):
                    self._hand_over(name)

            anchor = torch.zeros((), device=output.device, requires_grad=True)
            result: Tensor = _Probe.apply(output, anchor, observe)
            return result

        return watch

    def finish(self) -> None:
        """Hand over the maps that some use of which did not reach the loss."""
        for name in list(self._inputs):
            self._hand_over(name)

    def clear(self) -> None:
        """Forget everything that was recorded."""
        self._inputs.clear()
        self._gradients.clear()
        self._memos.clear()
        self._readers.clear()

    def _hand_over(self, name: str) -> None:
        raw_inputs, raw_gradients = self._inputs.pop(name), self._gradients.pop(name)
        d_out = self._maps[name].d_out
        with torch.no_grad():
            gradients = [
                raw.new_zeros((*raw.shape[:-1], d_out)) if one is None else one
                for raw, one in zip(raw_inputs, raw_gradients, strict=True)
            ]
            has_bias = self._maps[name].has_bias
            memo: dict[Any, Any] = {}
            if len(raw_inputs) == 1:
                # With a bias the rows are another matrix, and so is all that follows from them.
                memo = self._memos.setdefault((id(raw_inputs[0]), has_bias), {})
            if "inputs" not in memo:
                memo["inputs"] = self._prepare(raw_inputs, append_one=has_bias)
            flat_gradients = self._prepare(gradients, append_one=False)
            if self._loss_scale != 1.0:
                flat_gradients = flat_gradients / self._loss_scale
            self._consume(
                CapturedPair(
                    name=name,
                    inputs=memo["inputs"],
                    output_gradients=flat_gradients,
                    lengths=tuple(length * len(raw_inputs) for length in self._lengths),
                    num_uses=len(raw_inputs),
                    _memo=memo,
                )
            )
        for raw in raw_inputs:
            self._readers[id(raw)] -= 1
            if not self._readers[id(raw)]:
                for has_bias in (False, True):
                    self._memos.pop((id(raw), has_bias), None)

    def _prepare(self, uses: list[Tensor], *, append_one: bool) -> Tensor:
        """[token, width] in the statistics' dtype, unpadded, uses of an example in a row."""
        batch, seq = self._mask.shape
        shaped = [use.detach().reshape(batch, seq, -1) for use in uses]
        flat = (shaped[0] if len(shaped) == 1 else torch.cat(shaped, dim=1)).flatten(0, 1)
        if not self._is_full:
            flat = flat.index_select(0, self._real_rows(len(uses), flat.device))
        flat = flat.to(self._dtype)
        return nn.functional.pad(flat, (0, 1), value=1.0) if append_one else flat

    def _real_rows(self, num_uses: int, device: torch.device) -> Tensor:
        """Which rows of the flattened uses are unpadded; found once for a batch."""
        key = (num_uses, device)
        if key not in self._rows:
            self._rows[key] = self._mask.repeat(1, num_uses).flatten().nonzero()[:, 0].to(device)
        return self._rows[key]

    def _check_layout(self, name: str, inputs: Tensor) -> None:
        batch, seq = self._mask.shape
        if inputs.shape[:-1] not in ((batch, seq), (batch * seq,)):
            raise CurvatureError(
                f"{name}: expected an input [batch={batch}, seq={seq}, d_in] (or the two flattened)"
                f", got {list(inputs.shape)}; a map that sees only some positions, such as a "
                "routed expert or an output head on chosen positions, cannot be tracked"
            )
