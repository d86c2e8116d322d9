"""Fitted curvature: a frozen result that goes to and from a flat dict of tensors."""

from collections.abc import Mapping
from dataclasses import dataclass

import torch

from math_utils._typing import Float, Tensor
from math_utils.curvature.config import STRATEGIES, Strategy

PARTS = ("input_basis", "output_basis", "eigenvalues")
"""The tensors of one map, as they are named in files."""

_NEEDED: dict[Strategy, tuple[str, ...]] = {
    "identity": (),
    "diagonal": ("eigenvalues",),
    "kfac": PARTS,
    "ekfac": PARTS,
}


@dataclass(frozen=True, eq=False)
class MapFactors:
    """The Fisher information of one linear map, averaged per example, F ≈ Q diag(Λ) Qᵀ.

    Q = Q_A ⊗ Q_S turns a weight matrix G into Q_Sᵀ G Q_A, where F acts entry by entry.

    Attributes:
        input_basis: Q_A, eigenvectors of the covariance of inputs, as columns; None for the
            weights' own basis (diagonal) and without curvature (identity).
        output_basis: Q_S, likewise for output gradients.
        eigenvalues: Λ in nats² per unit weight² of one example; None without curvature.
    """

    input_basis: Float[Tensor, "d_in d_in"] | None = None
    output_basis: Float[Tensor, "d_out d_out"] | None = None
    eigenvalues: Float[Tensor, "d_out d_in"] | None = None

    def to(self, device: torch.device, dtype: torch.dtype | None = None) -> "MapFactors":
        """The same factors on another device, and in another dtype if one is given."""
        moved = {
            part: None if getattr(self, part) is None else getattr(self, part).to(device, dtype)
            for part in PARTS
        }
        return MapFactors(**moved)


@dataclass(frozen=True, eq=False)
class CurvatureFactors:
    """The factors of every tracked map under one strategy."""

    strategy: Strategy
    maps: Mapping[str, MapFactors]

    def to_tensors(self) -> dict[str, Tensor]:
        """A flat dict ``<map name>.<part>`` → tensor, for a file."""
        return {
            f"{name}.{part}": tensor
            for name, factors in self.maps.items()
            for part in _NEEDED[self.strategy]
            if (tensor := getattr(factors, part)) is not None
        }

    @classmethod
    def from_tensors(
        cls, strategy: Strategy, names: list[str], tensors: Mapping[str, Tensor]
    ) -> "CurvatureFactors":
        """Factors from what :meth:`to_tensors` gave.

        Args:
            strategy: the strategy they were fitted with.
            names: the tracked maps, in the model's order.
            tensors: the flat dict.

        Raises:
            ValueError: on an unknown strategy, or if tensors are missing, left over, or of
                shapes that do not fit together; the message names them.
        """
        if strategy not in STRATEGIES:
            raise ValueError(f"expected a strategy among {', '.join(STRATEGIES)}, got {strategy!r}")
        expected = {f"{name}.{part}" for name in names for part in _NEEDED[strategy]}
        if missing := sorted(expected - set(tensors)):
            raise ValueError(f"factors lack {', '.join(missing[:3])} ({len(missing)} in all)")
        if surplus := sorted(set(tensors) - expected):
            raise ValueError(f"factors hold {', '.join(surplus[:3])}, which no map has")
        maps = {}
        for name in names:
            parts = {part: tensors[f"{name}.{part}"] for part in _NEEDED[strategy]}
            _check_shapes(name, parts)
            maps[name] = MapFactors(**parts)
        return cls(strategy, maps)


def _check_shapes(name: str, parts: Mapping[str, Tensor]) -> None:
    if "input_basis" not in parts:
        return
    d_out, d_in = parts["eigenvalues"].shape
    found = (list(parts["output_basis"].shape), list(parts["input_basis"].shape))
    if found != ([d_out, d_out], [d_in, d_in]):
        raise ValueError(
            f"{name}: expected bases [{d_out}, {d_out}] and [{d_in}, {d_in}] for eigenvalues "
            f"[{d_out}, {d_in}], got {found[0]} and {found[1]}"
        )
