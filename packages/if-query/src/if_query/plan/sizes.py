"""Exact arithmetic: what the statistics of a linear map take in memory and on disk."""

from collections.abc import Mapping

from math_utils.curvature import Strategy
from math_utils.linear_maps import LinearMap

from if_query.factors import Stage

FILE_HEADER_BYTES = 320
"""Of a safetensors file with the statistics of one map, about."""


def covariance_bytes(one: LinearMap, itemsize: int) -> int:
    """Σ a aᵀ and Σ δ δᵀ of a map; its eigenbases take as much."""
    return itemsize * (one.d_in**2 + one.d_out**2)


def eigenvalue_bytes(one: LinearMap, itemsize: int) -> int:
    """Λ of a map."""
    return itemsize * one.d_in * one.d_out


def pass_bytes(
    stage: Stage, strategy: Strategy, maps: Mapping[str, LinearMap], itemsize: int
) -> dict[str, int]:
    """What a pass over the data keeps of each map: its sums, and the bases that it reads.

    Args:
        stage: covariances or eigenvalues.
        strategy: what is fitted.
        maps: the tracked maps.
        itemsize: bytes of an entry.
    """
    if stage == "covariances":
        return {name: covariance_bytes(one, itemsize) for name, one in maps.items()}
    return {
        name: eigenvalue_bytes(one, itemsize)
        + (covariance_bytes(one, itemsize) if strategy == "ekfac" else 0)
        for name, one in maps.items()
    }


def progress_bytes(stage: Stage, maps: Mapping[str, LinearMap], itemsize: int) -> int:
    """Files of the unfinished sums of a pass over these maps."""
    size = covariance_bytes if stage == "covariances" else eigenvalue_bytes
    return sum(size(one, itemsize) + FILE_HEADER_BYTES for one in maps.values())


def file_bytes(stage: Stage, one: LinearMap, itemsize: int) -> int:
    """The file of one map that a finished stage leaves."""
    if stage == "eigenvalues":
        return eigenvalue_bytes(one, itemsize) + FILE_HEADER_BYTES
    values = itemsize * (one.d_in + one.d_out) if stage == "eigenbases" else 0
    return covariance_bytes(one, itemsize) + values + FILE_HEADER_BYTES


def factor_bytes(strategy: Strategy, one: LinearMap, itemsize: int = 4) -> int:
    """What run-query reads of a map: its bases and Λ."""
    if strategy == "identity":
        return 0
    bases = covariance_bytes(one, itemsize) if strategy in ("kfac", "ekfac") else 0
    return bases + eigenvalue_bytes(one, itemsize)


def query_bytes(one: LinearMap, rank: int | None, itemsize: int = 4) -> int:
    """The preconditioned gradient of one query with respect to a map."""
    if rank is None:
        return itemsize * one.d_in * one.d_out
    return itemsize * min(rank, one.d_in, one.d_out) * (one.d_in + one.d_out)
