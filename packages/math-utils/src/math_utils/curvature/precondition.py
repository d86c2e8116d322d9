"""Damped inverse curvature times a gradient: (F + λI)⁻¹ G = Q_S [(Q_Sᵀ G Q_A) ⊘ (Λ + λ)] Q_Aᵀ."""

from collections.abc import Mapping

from math_utils._typing import Float, Tensor
from math_utils.curvature.config import Damping
from math_utils.curvature.eigenbasis import rotate, rotate_back
from math_utils.curvature.factors import CurvatureFactors, MapFactors
from math_utils.errors import CurvatureError


def damping_term(eigenvalues: Float[Tensor, "d_out d_in"], damping: Damping) -> float:
    """The λ of one map: value · mean(Λ) (relative) or value (absolute).

    Raises:
        CurvatureError: if an entry of Λ + λ is not positive, so that it has no inverse.
    """
    relative = damping.kind == "relative"
    term = damping.value * (float(eigenvalues.mean()) if relative else 1.0)
    smallest = float(eigenvalues.min()) + term
    if not smallest > 0:
        raise CurvatureError(
            f"the smallest damped eigenvalue is {smallest:g}, which has no inverse; use a larger "
            f"damping than {damping.value:g} ({damping.kind})"
        )
    return term


def damping_terms(factors: CurvatureFactors, damping: Damping) -> dict[str, float]:
    """:func:`damping_term` of every map that has curvature; an error names the map."""
    return {
        name: named_damping_term(name, one.eigenvalues, damping)
        for name, one in factors.maps.items()
        if one.eigenvalues is not None
    }


def named_damping_term(
    name: str, eigenvalues: Float[Tensor, "d_out d_in"], damping: Damping
) -> float:
    """:func:`damping_term`; an error names the map."""
    try:
        return damping_term(eigenvalues, damping)
    except CurvatureError as error:
        raise CurvatureError(f"{name}: {error}") from error


def precondition(
    gradients: Float[Tensor, "... d_out d_in"], factors: MapFactors, damping: Damping
) -> Float[Tensor, "... d_out d_in"]:
    """(F + λI)⁻¹ G for one map, in the weights' own basis; G itself without curvature.

    Args:
        gradients: in nats per unit weight.
        factors: of this map.
        damping: what is added to the eigenvalues; not used without curvature.

    Returns:
        Preconditioned gradients, in unit weights per nat.

    Raises:
        CurvatureError: if the damped curvature is singular.
    """
    if factors.eigenvalues is None:
        return gradients
    rotated = rotate(gradients, factors.input_basis, factors.output_basis)
    term = damping_term(factors.eigenvalues, damping)
    scaled = rotated / (factors.eigenvalues + term)
    return rotate_back(scaled, factors.input_basis, factors.output_basis)


def precondition_all(
    gradients: Mapping[str, Float[Tensor, "..."]], factors: CurvatureFactors, damping: Damping
) -> dict[str, Float[Tensor, "..."]]:
    """:func:`precondition` for every map; the message of an error names the map."""
    result = {}
    for name, gradient in gradients.items():
        try:
            result[name] = precondition(gradient, factors.maps[name], damping)
        except CurvatureError as error:
            raise CurvatureError(f"{name}: {error}") from error
    return result
