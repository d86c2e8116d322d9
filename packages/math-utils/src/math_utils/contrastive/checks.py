"""What losses, schedules and miners check of their arguments, and unit vectors."""

import math

import torch

from math_utils._typing import Float, Tensor
from math_utils.errors import ContrastiveError

NORM_FLOOR = 1e-8
"""Norms below this count as this: a zero vector has cosine 0 with all, and finite gradients."""


def check_positive(name: str, value: float) -> float:
    """The value itself, where it is positive and finite."""
    if not 0 < value < math.inf:
        raise ContrastiveError(f"expected {name} to be positive and finite, got {value}")
    return value


def check_count(name: str, value: int) -> int:
    """The value itself, where it is a whole number of at least 1."""
    if isinstance(value, bool) or not isinstance(value, int) or value < 1:
        raise ContrastiveError(f"expected {name} to be a whole number of at least 1, got {value!r}")
    return value


def check_choice(name: str, value: str, choices: tuple[str, ...]) -> str:
    """The value itself, where it is among the choices."""
    if value not in choices:
        raise ContrastiveError(f"expected {name} among {', '.join(choices)}, got {value!r}")
    return value


def check_rows(name: str, vectors: Tensor) -> None:
    """Refuse what is neither one vector [dim] nor a batch of at least one [batch, dim]."""
    if vectors.ndim not in (1, 2) or 0 in vectors.shape:
        raise ContrastiveError(
            f"expected {name} to be a vector [dim] or at least one row [batch, dim], "
            f"got the shape {list(vectors.shape)}"
        )


def check_same_shape(first_name: str, first: Tensor, second_name: str, second: Tensor) -> None:
    """Refuse vectors that do not correspond one by one."""
    if first.shape != second.shape:
        raise ContrastiveError(
            f"expected {first_name} and {second_name} of one shape, "
            f"got {list(first.shape)} and {list(second.shape)}"
        )


def check_finite(name: str, vectors: Tensor) -> None:
    """Refuse NaN and infinity, naming the first vector that has them."""
    broken = ~vectors.isfinite()
    if broken.any():
        place = broken.nonzero()[0].tolist()[:-1]
        where = f"{name}{place}" if place else name
        raise ContrastiveError(f"{where}: expected finite entries, got NaN or infinity")


def in_wide_precision(vectors: Tensor) -> Tensor:
    """Half precision as float32, in which the floor of norms is not zero; wider as it is."""
    return vectors.float() if vectors.dtype in (torch.float16, torch.bfloat16) else vectors


def unit_vectors(name: str, vectors: Float[Tensor, "*rows dim"]) -> Float[Tensor, "*rows dim"]:
    """X / max(‖x‖, 1e-8) along the last axis, in float32 or wider.

    Args:
        name: what the error calls them.
        vectors: of any length.

    Raises:
        ContrastiveError: on entries that are not finite, or too large for their norm to be.
    """
    check_finite(name, vectors)
    wide = in_wide_precision(vectors)
    norms: Tensor = torch.linalg.vector_norm(wide, dim=-1, keepdim=True)
    check_finite(f"the norms of {name}", norms)
    return wide.div(norms.clamp_min(NORM_FLOOR))
