"""The subsampled randomised Hadamard transform: projections that keep inner products.

Ailon and Chazelle 2006 (the fast Johnson-Lindenstrauss transform); Tropp 2011
(arXiv 1011.1595) for the subsampled form used here.
"""

import torch

from math_utils._typing import Float, Int, Tensor
from math_utils.errors import InfluenceError

MAX_LOG_DIM = 30
"""Inputs may have up to 2³⁰ dimensions."""

_LOG_SEGMENT = 16
"""Padded inputs are cut into segments of 2¹⁶, which are transformed on their own."""

_LOG_RADIX = {"cpu": 4, "cuda": 8}
"""Hadamard matrices that transforms are built of: larger ones have fewer passes over memory and
more arithmetic, which a GPU has to spare."""

_CHUNK_ELEMENTS = {"cpu": 1 << 20, "cuda": 1 << 26}
"""Entries transformed at once."""


class RandomizedHadamardTransform:
    """y = √(padded / output) · S H D x / √padded, a projection that preserves squared norms.

    D flips signs at random, H is the Walsh-Hadamard matrix of size padded = 2^⌈log₂ input⌉ (with
    entries ±1, so that H/√padded is orthogonal), S keeps ``output_dim`` of its rows, drawn
    without replacement. E‖y‖² = ‖x‖²; with output = padded, y is a rotation of x.

    H of size n₁ n₂ is the Kronecker product of those of sizes n₁ and n₂, so that it is applied by
    matrix products with small ones; on the last level only the rows that S keeps are computed.
    Cost per vector: O(padded · (r / log r) · log 2¹⁶) for radix r, plus output · padded / 2¹⁶.

    Args:
        input_dim: dimensions of what is projected, up to 2³⁰.
        output_dim: dimensions of the projection, at most the padded input's.
        seed: of signs and rows.

    Raises:
        InfluenceError: if a dimension is out of range.
    """

    def __init__(self, input_dim: int, output_dim: int, seed: int = 0) -> None:
        if not 1 <= input_dim <= 1 << MAX_LOG_DIM:
            raise InfluenceError(
                f"expected input_dim between 1 and 2^{MAX_LOG_DIM}, got {input_dim}"
            )
        self.input_dim, self.output_dim, self.seed = input_dim, output_dim, seed
        self.padded_dim = 1 << (input_dim - 1).bit_length()
        if not 1 <= output_dim <= self.padded_dim:
            raise InfluenceError(
                f"expected output_dim between 1 and {self.padded_dim}, the input_dim {input_dim} "
                f"padded to a power of two, got {output_dim}; choose a smaller one, or do not "
                "project"
            )
        generator = torch.Generator().manual_seed(seed)
        self._signs = torch.randint(0, 2, (input_dim,), generator=generator, dtype=torch.int8)
        self._signs.mul_(2).sub_(1)
        self._rows = _draw(self.padded_dim, output_dim, generator)
        self._scale = output_dim**-0.5

    def project(
        self, vectors: Float[Tensor, "*batch input_dim"]
    ) -> Float[Tensor, "*batch output_dim"]:
        """Project vectors; computed in float32 at least, returned in their dtype.

        Raises:
            InfluenceError: if they are not ``input_dim`` wide.
        """
        if vectors.shape[-1:] != (self.input_dim,):
            raise InfluenceError(
                f"expected vectors [..., {self.input_dim}], got {list(vectors.shape)}"
            )
        flat = vectors.reshape(-1, self.input_dim)
        dtype = torch.promote_types(flat.dtype, torch.float32)
        segment = min(self.padded_dim, 1 << _LOG_SEGMENT)
        rows = self._rows.to(flat.device)
        inner, outer = rows % segment, rows // segment
        budget = _CHUNK_ELEMENTS.get(flat.device.type, _CHUNK_ELEMENTS["cpu"])
        out: Tensor = flat.new_zeros((len(flat), self.output_dim), dtype=dtype)
        at_once = max(1, budget // segment)
        for first in range(0, len(flat), at_once):
            some = slice(first, first + at_once)
            for index, start in enumerate(range(0, self.input_dim, segment)):
                part = self._signed(flat[some, start : start + segment], start, dtype)
                if part.shape[1] < segment:
                    part = torch.nn.functional.pad(part, (0, segment - part.shape[1]))
                transformed = hadamard_transform(part).index_select(1, inner)
                out[some].addcmul_(transformed, _hadamard_entries(outer, index).to(dtype))
        scaled = (out * self._scale).to(vectors.dtype)
        shaped: Tensor = scaled.reshape(*vectors.shape[:-1], self.output_dim)
        return shaped

    def _signed(self, part: Tensor, start: int, dtype: torch.dtype) -> Tensor:
        signs = self._signs[start : start + part.shape[1]].to(part.device)
        return part.to(dtype) * signs


def hadamard_transform(
    vectors: Float[Tensor, "batch dim"], *, log_radix: int | None = None
) -> Float[Tensor, "batch dim"]:
    """H x of each row, with the Walsh-Hadamard matrix of entries ±1 in natural order.

    H of size 2^(a+b+…) is H_{2^a} ⊗ H_{2^b} ⊗ …: the row becomes an array with one axis per
    factor, and each axis is multiplied with its own small matrix.

    Args:
        vectors: ``dim`` is a power of two.
        log_radix: log₂ of the size of the factors; what is fastest on the device if None.

    Raises:
        InfluenceError: if ``dim`` is not a power of two.
    """
    num, dim = vectors.shape
    log_dim = dim.bit_length() - 1
    if dim != 1 << log_dim:
        raise InfluenceError(f"expected a power of two, got vectors of {dim} dimensions")
    radix = log_radix or _LOG_RADIX.get(vectors.device.type, _LOG_RADIX["cpu"])
    done = 0
    while done < log_dim:
        step = min(radix, log_dim - done)
        matrix = _hadamard_matrix(step, vectors)
        if done == 0:
            vectors = (vectors.reshape(-1, 1 << step) @ matrix).view(num, dim)
        else:
            shaped = vectors.view(-1, 1 << step, 1 << done)
            vectors = torch.matmul(matrix, shaped).view(num, dim)
        done += step
    return vectors


def _hadamard_matrix(log_size: int, like: Tensor) -> Float[Tensor, "size size"]:
    indices = torch.arange(1 << log_size, device=like.device)
    return _hadamard_entries(indices[:, None], indices).to(like.dtype)


def _hadamard_entries(
    rows: Int[Tensor, "*shape"], columns: int | Int[Tensor, "*others"]
) -> Int[Tensor, "..."]:
    """(−1)^(number of ones that row and column share in binary)."""
    shared = rows & columns
    for shift in (16, 8, 4, 2, 1):
        shared = shared ^ (shared >> shift)
    return 1 - 2 * (shared & 1)


def _draw(total: int, num: int, generator: torch.Generator) -> Int[Tensor, " num"]:
    """``num`` of ``total`` numbers without replacement, ascending, in memory O(num)."""
    if 4 * num >= total:
        return torch.randperm(total, generator=generator)[:num].sort().values
    drawn = torch.empty(0, dtype=torch.long)
    while len(drawn) < num:
        more = torch.randint(0, total, (2 * (num - len(drawn)) + 16,), generator=generator)
        drawn = torch.unique(torch.cat([drawn, more]))
    # unique() sorts, so keep a random choice among the distinct ones, not the smallest.
    return drawn[torch.randperm(len(drawn), generator=generator)[:num]].sort().values
