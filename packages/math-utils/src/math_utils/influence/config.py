"""What influence is computed of and how: frozen, validated, with the papers' defaults."""

import math
import re
from dataclasses import dataclass, field
from typing import Literal, get_args

import torch

from math_utils.errors import InfluenceError

NamedTarget = Literal["embedding", "output", "both", "mlp", "lora", "all"]
NAMED_TARGETS: tuple[str, ...] = get_args(NamedTarget)
LandmarkStrategy = Literal["random", "kmeans_pp", "farthest_point", "leverage"]
LANDMARK_STRATEGIES: tuple[str, ...] = get_args(LandmarkStrategy)
Kernel = Literal["linear", "rbf"]
KERNELS: tuple[str, ...] = get_args(Kernel)


@dataclass(frozen=True)
class InfluenceTarget:
    """The weights that gradients are taken of.

    Attributes:
        name: "embedding" (the input embedding), "output" (the head), "both", "mlp" (linear maps
            of the feed-forward blocks), "lora" (the adapters' A and B), "all" (embedding, head
            and every linear map; not norms and position embeddings), or a regular expression that
            is searched for in module names. A weight that embedding and head share is one weight
            under each of the first three.
    """

    name: str = "both"

    def __post_init__(self) -> None:
        if self.name in NAMED_TARGETS:
            return
        try:
            re.compile(self.name)
        except re.error as error:
            raise InfluenceError(
                f"expected a target among {', '.join(NAMED_TARGETS)} or a regular expression, "
                f"got {self.name!r}, which does not compile: {error}"
            ) from error
        if not self.name:
            raise InfluenceError(
                "expected a target, got an empty expression, which would select every module; "
                'say "all" for that'
            )


@dataclass(frozen=True)
class InfluenceConfig:
    """How influence is computed from gradients.

    Attributes:
        lambda_val: DataInf's relative damping: λ_l = lambda_val · mean over training examples and
            entries of g² in layer l (0.1 is the paper's default).
        gamma_val: the rate at which a running estimate takes in a new one, in (0, 1]:
            new = gamma · latest + (1 − gamma) · old.
        target: the weights; a string stands for :class:`InfluenceTarget` of that name.
        dtype: of captured tensors, gradients and their products. float32, or float64 where
            influences nearly cancel.
    """

    lambda_val: float = 0.1
    gamma_val: float = 0.1
    target: InfluenceTarget | str = "both"
    dtype: torch.dtype = torch.float32

    def __post_init__(self) -> None:
        _check_positive("lambda_val", self.lambda_val)
        _check_rate("gamma_val", self.gamma_val)
        if isinstance(self.target, str):
            object.__setattr__(self, "target", InfluenceTarget(self.target))
        if self.dtype not in (torch.float32, torch.float64):
            raise InfluenceError(
                f"expected dtype to be torch.float32 or torch.float64, got {self.dtype}"
            )

    @property
    def target_name(self) -> str:
        """The target's name or expression."""
        return self.target if isinstance(self.target, str) else self.target.name


@dataclass(frozen=True)
class JVPEmbeddingConfig:
    """Forward-mode embeddings of examples.

    Attributes:
        num_blocks: how many of the model's first blocks are run and perturbed.
        num_tangents: random directions; the embedding is their concatenation.
        projection_dim: dimensions to project the concatenation to; None keeps it.
        seed: of directions and projection.
    """

    num_blocks: int = 4
    num_tangents: int = 2
    projection_dim: int | None = None
    seed: int = 0

    def __post_init__(self) -> None:
        _check_count("num_blocks", self.num_blocks)
        _check_count("num_tangents", self.num_tangents)
        if self.projection_dim is not None:
            _check_count("projection_dim", self.projection_dim)
        _check_seed(self.seed)


@dataclass(frozen=True)
class LandmarkConfig:
    """Which examples get exact gradients.

    Attributes:
        num_landmarks: how many; all examples where there are no more.
        strategy: "random", "kmeans_pp" (Arthur and Vassilvitskii 2007), "farthest_point"
            (Gonzalez 1985) or "leverage" (statistical leverage scores).
        seed: of the draws.
    """

    num_landmarks: int = 4096
    strategy: str = "kmeans_pp"
    seed: int = 0

    def __post_init__(self) -> None:
        _check_count("num_landmarks", self.num_landmarks)
        _check_choice("strategy", self.strategy, LANDMARK_STRATEGIES)
        _check_seed(self.seed)


@dataclass(frozen=True)
class KernelRidgeConfig:
    """How influence is propagated from landmarks.

    Attributes:
        kernel: "linear", or "rbf": exp(−d² / 2σ²) with σ the median distance of two landmarks.
        damping: relative ridge: λ = damping · mean diagonal of the landmarks' kernel matrix.
    """

    kernel: str = "rbf"
    damping: float = 1e-2

    def __post_init__(self) -> None:
        _check_choice("kernel", self.kernel, KERNELS)
        if not 0 <= self.damping < math.inf:
            raise InfluenceError(
                f"expected a damping that is finite and not negative, got {self.damping}"
            )


@dataclass(frozen=True)
class MixtureConfig:
    """Bounds and pace of the weights of data sources.

    Attributes:
        min_weight: no source gets less.
        max_weight: no source gets more.
        update_interval: training steps between two updates.
        learning_rate: of the exponentiated-gradient step.
        smoothing: the rate at which influences take in new ones, as ``gamma_val``.
    """

    min_weight: float = 0.01
    max_weight: float = 0.90
    update_interval: int = 100
    learning_rate: float = 1.0
    smoothing: float = 0.1

    def __post_init__(self) -> None:
        if not 0 <= self.min_weight <= self.max_weight <= 1:
            raise InfluenceError(
                "expected 0 ≤ min_weight ≤ max_weight ≤ 1, "
                f"got min_weight {self.min_weight} and max_weight {self.max_weight}"
            )
        _check_count("update_interval", self.update_interval)
        _check_positive("learning_rate", self.learning_rate)
        _check_rate("smoothing", self.smoothing)


@dataclass(frozen=True)
class InfluenceDistillationConfig:
    """All of Influence Distillation.

    Attributes:
        embedding: the embeddings of all examples.
        landmarks: the examples with exact gradients.
        kernel_ridge: the way from these to the others.
        mixture: bounds of the weights of sources.
        regularization: η of w = argmin −wᵀp + (η/2)‖w‖²; None takes the spread (the standard
            deviation) of p divided by the mean weight, so that the scale of p does not matter.
    """

    embedding: JVPEmbeddingConfig = field(default_factory=JVPEmbeddingConfig)
    landmarks: LandmarkConfig = field(default_factory=LandmarkConfig)
    kernel_ridge: KernelRidgeConfig = field(default_factory=KernelRidgeConfig)
    mixture: MixtureConfig = field(default_factory=MixtureConfig)
    regularization: float | None = None

    def __post_init__(self) -> None:
        if self.regularization is not None:
            _check_positive("regularization", self.regularization)


def _check_positive(name: str, value: float) -> None:
    if not 0 < value < math.inf:
        raise InfluenceError(f"expected {name} to be positive and finite, got {value}")


def _check_rate(name: str, value: float) -> None:
    if not 0 < value <= 1:
        raise InfluenceError(f"expected {name} in (0, 1], got {value}")


def _check_count(name: str, value: int) -> None:
    if isinstance(value, bool) or not isinstance(value, int) or value < 1:
        raise InfluenceError(f"expected {name} to be a whole number of at least 1, got {value!r}")


def _check_seed(value: int) -> None:
    if isinstance(value, bool) or not isinstance(value, int) or value < 0:
        raise InfluenceError(f"expected seed to be a whole number of at least 0, got {value!r}")


def _check_choice(name: str, value: str, choices: tuple[str, ...]) -> None:
    if value not in choices:
        raise InfluenceError(f"expected {name} among {', '.join(choices)}, got {value!r}")
