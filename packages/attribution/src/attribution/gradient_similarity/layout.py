"""One flat vector for the gradients of all parameter tensors of a model."""

import itertools
from collections.abc import Iterator, Mapping
from dataclasses import dataclass
from functools import cached_property
from typing import Any

import torch
from jaxtyping import Float, Float64
from torch import Tensor, nn

from attribution.errors import AttributionError

_ALIGNMENT = 16
"""Every tensor begins at a multiple of so many entries: 64 bytes in float32."""

_ENTRIES_AT_ONCE = 1 << 16


@dataclass(frozen=True)
class FlatLayout:
    """Where each parameter tensor's values lie in a flat vector.

    Attributes:
        widths: number of values by the tensor's name, in the model's order.
        dtype: of the values: float32, or float64 where the model is in float64.
    """

    widths: Mapping[str, int]
    dtype: torch.dtype = torch.float32

    @cached_property
    def offsets(self) -> dict[str, int]:
        """The first place of each tensor; what lies between one's end and the next is zero."""
        starts = itertools.accumulate(map(_aligned, self.widths.values()), initial=0)
        return dict(zip(self.widths, starts, strict=False))

    @cached_property
    def size(self) -> int:
        """Entries of the flat vector."""
        return sum(map(_aligned, self.widths.values()))

    @property
    def names(self) -> tuple[str, ...]:
        """The tensors' names, in order."""
        return tuple(self.widths)

    def new_vector(self, device: torch.device | str = "cpu") -> Float[Tensor, " width"]:
        """A vector of zeros."""
        return torch.zeros(self.size, dtype=self.dtype, device=device)

    def parts(self, vector: Float[Tensor, " width"]) -> Iterator[tuple[str, Tensor]]:
        """Each tensor's name, and a view of its values."""
        for name, width in self.widths.items():
            start = self.offsets[name]
            yield name, vector[start : start + width]

    def describe(self) -> dict[str, Any]:
        """The layout as JSON values."""
        return {"widths": dict(self.widths), "dtype": str(self.dtype).removeprefix("torch.")}


def parameter_layout(model: nn.Module) -> FlatLayout:
    """The layout of a model's gradients: every parameter that requires one, tied ones once.

    Raises:
        AttributionError: if no parameter requires a gradient.
    """
    trained = {name: p for name, p in model.named_parameters() if p.requires_grad}
    if not trained:
        raise AttributionError("no parameter of the model requires a gradient")
    dtype = torch.float32
    for parameter in trained.values():
        dtype = torch.promote_types(dtype, parameter.dtype)
    return FlatLayout({name: p.numel() for name, p in trained.items()}, dtype)


def dots_by_tensor(
    a: Float[Tensor, " width"], b: Float[Tensor, " width"], layout: FlatLayout
) -> Float64[Tensor, " tensor"]:
    """The inner product of two flat vectors, tensor by tensor.

    Runs of 2¹⁶ entries are multiplied in the vectors' precision and summed in float64. A pair's
    numbers depend on nothing but the pair: a matrix product over many pairs would be faster, but
    its last bits change with the number of rows, and so with how the work was partitioned.

    Returns:
        One number per tensor [tensor], on the CPU.
    """
    totals = []
    for (_, x), (_, y) in zip(layout.parts(a), layout.parts(b), strict=True):
        runs = zip(x.split(_ENTRIES_AT_ONCE), y.split(_ENTRIES_AT_ONCE), strict=True)
        totals.append(torch.stack([torch.dot(p, q) for p, q in runs]).double().sum())
    return torch.stack(totals).cpu()


def _aligned(width: int) -> int:
    return -(-width // _ALIGNMENT) * _ALIGNMENT
