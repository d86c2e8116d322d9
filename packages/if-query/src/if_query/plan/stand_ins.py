"""Statistics that stand for those of every map while a few batches are tried: one for each shape.

They cost what the real ones cost to fill and to read, but take the memory of one map per shape, so
that a plan can be made where the real ones do not fit.
"""

from collections.abc import Mapping
from dataclasses import replace

import torch
from math_utils.capture import CapturedPair
from math_utils.curvature import (
    Bases,
    CovarianceSums,
    CurvatureFactors,
    Eigenbasis,
    EigenvalueSums,
    MapFactors,
    Queries,
    Strategy,
)
from math_utils.linear_maps import LinearMap
from torch import Tensor

Maps = Mapping[str, LinearMap]


def representatives(maps: Maps) -> dict[str, str]:
    """{map: the first map of its shape on its device}."""
    first: dict[tuple[int, int, torch.device], str] = {}
    return {
        name: first.setdefault((one.d_in, one.d_out, _device_of(one)), name)
        for name, one in maps.items()
    }


def _device_of(one: LinearMap) -> torch.device:
    return next(one.modules[0].parameters()).device


class StandInSums:
    """Running sums of a pass, all maps of a shape in one.

    Attributes:
        first_reader: {map: the first map that reads the same input}, of the maps seen.
    """

    def __init__(self, maps: Maps, sums: CovarianceSums | EigenvalueSums) -> None:
        """Add to ``sums``, which know the representatives."""
        self._names = representatives(maps)
        self._sums = sums
        self.first_reader: dict[str, str] = {}

    def add(self, pair: CapturedPair) -> None:
        """Take in one captured pair."""
        self.first_reader[pair.name] = pair.shared("first reader", lambda: pair.name)
        self._sums.add(replace(pair, name=self._names[pair.name]))


class StandInBases:
    """Matrices for bases, one for each width, so that inputs that are shared are rotated once."""

    def __init__(self, dtype: torch.dtype) -> None:
        self._dtype = dtype
        self._bases: dict[tuple[int, torch.device], Tensor] = {}

    def of(self, width: int, device: torch.device) -> Tensor:
        """A matrix with entries like those of an orthogonal one."""
        if (width, device) not in self._bases:
            generator = torch.Generator().manual_seed(width)
            entries = torch.randn(width, width, generator=generator).div_(width**0.5)
            self._bases[width, device] = entries.to(device, self._dtype)
        return self._bases[width, device]

    @property
    def num_bytes(self) -> int:
        """What they take."""
        return sum(one.nbytes for one in self._bases.values())


def stand_in_eigenbases(maps: Maps, bases: StandInBases) -> dict[str, Eigenbasis]:
    """Eigenbases of these maps."""
    return {
        name: Eigenbasis(
            bases.of(one.d_in, _device_of(one)),
            bases.of(one.d_out, _device_of(one)),
            torch.ones(one.d_in),
            torch.ones(one.d_out),
            1,
        )
        for name, one in maps.items()
    }


def stand_in_factors(
    maps: Maps, strategy: Strategy, bases: StandInBases
) -> tuple[CurvatureFactors, int]:
    """(factors of every map, the bytes that they take together)."""
    names = representatives(maps)
    own: dict[str, MapFactors] = {}
    for name in dict.fromkeys(names.values()):
        one, device = maps[name], _device_of(maps[name])
        parts: dict[str, Tensor] = {}
        if strategy in ("kfac", "ekfac"):
            parts["input_basis"] = bases.of(one.d_in, device)
            parts["output_basis"] = bases.of(one.d_out, device)
        if strategy != "identity":
            parts["eigenvalues"] = torch.ones(one.d_out, one.d_in, device=device)
        own[name] = MapFactors(**parts)
    eigenvalues = (one.eigenvalues for one in own.values())
    size = bases.num_bytes + sum(values.nbytes for values in eigenvalues if values is not None)
    factors = CurvatureFactors(strategy, {name: own[names[name]] for name in maps})
    return factors, size


def stand_in_queries(
    maps: Maps, num_queries: int, rank: int | None, bases: Mapping[str, Bases]
) -> tuple[Queries, int]:
    """(preconditioned queries of every map in these bases, the bytes that they take together)."""
    names = representatives(maps)
    unlike = {name: maps[name] for name in dict.fromkeys(names.values())}
    own = Queries.zeros(unlike, num_queries, rank)
    for one in own.whole.values():
        one.fill_(1.0)
    for left, right in own.low_rank.values():
        left.fill_(1.0)
        right.fill_(1.0)
    size = sum(one.nbytes for one in own.whole.values()) + sum(
        left.nbytes + right.nbytes for left, right in own.low_rank.values()
    )
    whole = {name: own.whole[names[name]] for name in maps if own.whole}
    low_rank = {name: own.low_rank[names[name]] for name in maps if own.low_rank}
    return Queries(whole, low_rank, num_queries, bases), size
