"""What curvature is fitted, in which precision, and how its inverse is damped."""

from dataclasses import dataclass
from typing import Literal

import torch

Strategy = Literal["identity", "diagonal", "kfac", "ekfac"]
STRATEGIES: tuple[Strategy, ...] = ("identity", "diagonal", "kfac", "ekfac")


@dataclass(frozen=True)
class CurvatureConfig:
    """How curvature is fitted.

    Attributes:
        strategy: the approximation of the Fisher information of each linear map.
        covariance_dtype: dtype of captured statistics and of their running sums. float32 or
            wider: sums over millions of positions lose their small terms in anything narrower.
        eigen_dtype: dtype of the eigendecompositions. float64, because damping divides by the
            small eigenvalues, which float32 gets wrong; float32 is 2 to 3 times faster.
        loss_scale: factor on the loss before the backward pass, taken out of every gradient
            again. For float16 models, whose small gradients would otherwise round to zero.
        replay_bytes: what the first of two passes may keep so that the second need not run the
            whole model (:mod:`math_utils.replay`): two vectors of the model's width per position
            and MLP. The fit is the same, bit for bit; 0 keeps nothing.
    """

    strategy: Strategy = "ekfac"
    covariance_dtype: torch.dtype = torch.float32
    eigen_dtype: torch.dtype = torch.float64
    loss_scale: float = 1.0
    replay_bytes: int = 1 << 30

    def __post_init__(self) -> None:
        if self.strategy not in STRATEGIES:
            raise ValueError(
                f"expected a strategy among {', '.join(STRATEGIES)}, got {self.strategy!r}"
            )
        for name in ("covariance_dtype", "eigen_dtype"):
            if getattr(self, name) not in (torch.float32, torch.float64):
                raise ValueError(
                    f"expected {name} to be torch.float32 or torch.float64, "
                    f"got {getattr(self, name)}"
                )
        if not 0 < self.loss_scale < float("inf"):
            raise ValueError(f"expected a positive, finite loss_scale, got {self.loss_scale}")
        if self.replay_bytes < 0:
            raise ValueError(f"expected replay_bytes of at least 0, got {self.replay_bytes}")


@dataclass(frozen=True)
class Damping:
    """What is added to the eigenvalues Λ of a map before they are inverted.

    Attributes:
        value: the strength, not negative.
        kind: "relative" adds value · mean(Λ) of the map, so that one number suits maps of any
            scale; "absolute" adds value itself, in nats² per unit weight².
    """

    value: float = 0.1
    kind: Literal["relative", "absolute"] = "relative"

    def __post_init__(self) -> None:
        if self.kind not in ("relative", "absolute"):
            raise ValueError(f'expected kind "relative" or "absolute", got {self.kind!r}')
        if not 0 <= self.value < float("inf"):
            raise ValueError(
                f"expected a damping that is finite and not negative, got {self.value}"
            )
