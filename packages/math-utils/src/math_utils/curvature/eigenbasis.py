"""Eigenbases of covariances, and what a gradient looks like in them."""

from collections.abc import Iterable
from dataclasses import dataclass, replace
from typing import TypeVar

import torch

from math_utils._typing import Float, Tensor
from math_utils.capture import CapturedPair
from math_utils.curvature.factors import MapFactors

T = TypeVar("T")

REMEMBERED = 4
"""Matrices that are looked through for an equal one: maps that share inputs stand close together
in a block."""


@dataclass(frozen=True, eq=False)
class Eigenbasis:
    """A = Q_A diag(λ_A) Q_Aᵀ and S = Q_S diag(λ_S) Q_Sᵀ of one map.

    Attributes:
        input_basis: Q_A, eigenvectors as columns.
        output_basis: Q_S, likewise.
        input_values: λ_A, ascending.
        output_values: λ_S, ascending.
        num_positions: T of the covariances.
    """

    input_basis: Float[Tensor, "d_in d_in"]
    output_basis: Float[Tensor, "d_out d_out"]
    input_values: Float[Tensor, " d_in"]
    output_values: Float[Tensor, " d_out"]
    num_positions: int

    def to(self, device: torch.device) -> "Eigenbasis":
        """The same eigenbasis on another device."""
        return Eigenbasis(
            self.input_basis.to(device),
            self.output_basis.to(device),
            self.input_values.to(device),
            self.output_values.to(device),
            self.num_positions,
        )


def equal_in(known: Iterable[tuple[Tensor, T]], matrix: Tensor) -> T | None:
    """What stands beside the first matrix that equals this one and is on the same device."""
    for other, found in known:
        same_kind = other.shape == matrix.shape and other.device == matrix.device
        if same_kind and other.equal(matrix):
            return found
    return None


B = TypeVar("B", Eigenbasis, MapFactors)


def share_equal_bases(maps: Iterable[tuple[str, B]]) -> dict[str, B]:
    """Let maps with equal input bases hold one tensor, so that inputs are rotated once for all.

    :func:`~math_utils.curvature.decomposition.decompose` gives such bases; after they were on
    disk each map has a copy of its own.

    Args:
        maps: (name, eigenbasis or factors) of every map.
    """
    shared: dict[str, B] = {}
    recent: list[tuple[Tensor, Tensor]] = []
    for name, one in maps:
        own = one.input_basis
        known = None if own is None else equal_in(recent, own)
        if known is not None:
            one = replace(one, input_basis=known)
        elif own is not None:
            recent = [*recent[1 - REMEMBERED :], (own, own)]
        shared[name] = one
    return shared


def kfac_eigenvalues(basis: Eigenbasis, num_examples: int) -> Float[Tensor, "d_out d_in"]:
    """Λ = (T/N) λ_S λ_Aᵀ: the Kronecker product, on the scale of the Fisher per example.

    Args:
        basis: eigenbasis of covariances that are averaged over T positions.
        num_examples: N.

    Source: Martens and Grosse 2015 (arXiv 1503.05671), section 3; with positions treated as
    independent, so that T/N positions make up an example.
    """
    per_example = basis.num_positions / num_examples
    return per_example * torch.outer(basis.output_values, basis.input_values)


def rotate(
    gradients: Float[Tensor, "... d_out d_in"],
    input_basis: Float[Tensor, "d_in d_in"] | None,
    output_basis: Float[Tensor, "d_out d_out"] | None,
) -> Float[Tensor, "... d_out d_in"]:
    """Q_Sᵀ G Q_A; a basis that is None is the identity."""
    if input_basis is not None:
        gradients = gradients @ input_basis
    return gradients if output_basis is None else output_basis.mT @ gradients


def rotate_pair(
    pair: CapturedPair,
    input_basis: Float[Tensor, "d_in d_in"] | None,
    output_basis: Float[Tensor, "d_out d_out"] | None,
) -> tuple[Float[Tensor, "token d_in"], Float[Tensor, "token d_out"]]:
    """Q_Aᵀ a_t and Q_Sᵀ δ_t at every position; a basis that is None is the identity.

    Inputs that several maps read are rotated once, where these maps share one basis tensor.
    """
    inputs, gradients = pair.inputs, pair.output_gradients
    if input_basis is not None:
        # The basis is kept with the product: its id names no other tensor as long as that lives.
        key = ("rotated", id(input_basis))
        _, inputs = pair.shared(key, lambda: (input_basis, pair.inputs @ input_basis))
    return inputs, gradients if output_basis is None else gradients @ output_basis


def rotate_back(
    gradients: Float[Tensor, "... d_out d_in"],
    input_basis: Float[Tensor, "d_in d_in"] | None,
    output_basis: Float[Tensor, "d_out d_out"] | None,
) -> Float[Tensor, "... d_out d_in"]:
    """Q_S G Q_Aᵀ, the inverse of :func:`rotate`."""
    if input_basis is not None:
        gradients = gradients @ input_basis.mT
    return gradients if output_basis is None else output_basis @ gradients
