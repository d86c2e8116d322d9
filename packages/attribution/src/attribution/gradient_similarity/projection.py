"""Random projections of gradients, tensor by tensor, the same in every process."""

import hashlib

import torch
from jaxtyping import Float
from math_utils.influence import RandomizedHadamardTransform
from torch import Tensor

from attribution.errors import AttributionError
from attribution.gradient_similarity.layout import FlatLayout

_BLOCK = 1 << 16
"""Longest run of entries that is transformed at once."""


class TensorProjection:
    """P x for one parameter tensor, with E⟨P x, P y⟩ = ⟨x, y⟩ over seeds.

    The n entries become m = ⌈n / 2¹⁶⌉ columns (entry i goes to column i mod m, so that rows of an
    embedding spread over all of them). Every entry gets a random sign, and every column is
    projected by the same subsampled Hadamard transform. The signs of columns are independent of
    one another, so their errors are uncorrelated; for n ≤ 2¹⁶ it is that transform alone.

    Args:
        name: of the tensor; signs and rows are drawn from a hash of it and the seed.
        width: entries of the tensor.
        fraction: dimensions kept of those, in (0, 1]; at least one per column.
        seed: of the whole projection.

    Raises:
        AttributionError: if the fraction is out of range.
    """

    def __init__(self, name: str, width: int, fraction: float, seed: int) -> None:
        check_fraction(fraction)
        self.width = width
        self.num_columns = -(-width // _BLOCK)
        self.num_rows = -(-width // self.num_columns)
        kept = max(1, round(fraction * self.num_rows))
        stable = tensor_seed(f"{name}\n{fraction!r}", seed)
        self.transform = RandomizedHadamardTransform(self.num_rows, kept, stable)
        generator = torch.Generator().manual_seed(stable + 1)
        self._signs = torch.randint(0, 2, (width,), generator=generator, dtype=torch.int8)
        self._signs.mul_(2).sub_(1)

    @property
    def projected_width(self) -> int:
        """Dimensions of the projection."""
        return self.num_columns * self.transform.output_dim

    def __call__(self, values: Float[Tensor, " width"]) -> Float[Tensor, " projected"]:
        """Project a tensor's flat values."""
        if self._signs.device != values.device:
            self._signs = self._signs.to(values.device)
        padded = values.new_zeros(self.num_rows * self.num_columns)
        torch.mul(values, self._signs, out=padded[: self.width])
        columns = padded.view(self.num_rows, self.num_columns).T.contiguous()
        return self.transform.project(columns).reshape(-1)


class GradientProjection:
    """A :class:`TensorProjection` of each tensor of a flat gradient.

    The signs take one byte per parameter.

    Args:
        layout: of the gradients.
        fraction: of every tensor's entries that is kept, in (0, 1].
        seed: of all projections.

    Attributes:
        source: the layout given.
        layout: of the projected gradients.
        count: how many gradients were projected.
    """

    def __init__(self, layout: FlatLayout, fraction: float, seed: int) -> None:
        self.source, self.fraction, self.seed = layout, fraction, seed
        self._tensors = {
            name: TensorProjection(name, width, fraction, seed)
            for name, width in layout.widths.items()
        }
        widths = {name: one.projected_width for name, one in self._tensors.items()}
        self.layout = FlatLayout(widths, layout.dtype)
        self.count = 0

    def __call__(self, gradient: Float[Tensor, " width"]) -> Float[Tensor, " projected"]:
        """Project a flat gradient."""
        out = self.layout.new_vector(gradient.device)
        parts = zip(self.layout.parts(out), self.source.parts(gradient), strict=True)
        for (name, projected), (_, values) in parts:
            projected.copy_(self._tensors[name](values))
        self.count += 1
        return out


def check_fraction(fraction: float) -> None:
    """Refuse a fraction that is not one.

    Raises:
        AttributionError: if it is outside (0, 1].
    """
    if not 0 < fraction <= 1:
        raise AttributionError(f"expected a projection fraction in (0, 1], got {fraction}")


def tensor_seed(name: str, seed: int) -> int:
    """A seed from a name and a seed, the same in every process (as Python's hash() is not).

    31 bits: torch's CPU generator reads no more than 32.
    """
    digest = hashlib.sha256(f"{seed}\n{name}".encode()).digest()
    return int.from_bytes(digest[:4], "little") >> 1
