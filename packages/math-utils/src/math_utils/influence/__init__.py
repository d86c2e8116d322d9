"""Influence of training examples on probe examples, from gradients at one set of weights."""

from math_utils.influence.base import (
    DataSelector,
    EmbeddingExtractor,
    InfluenceCalculator,
    aggregate,
    smooth,
)
from math_utils.influence.config import (
    InfluenceConfig,
    InfluenceDistillationConfig,
    InfluenceTarget,
    JVPEmbeddingConfig,
    KernelRidgeConfig,
    LandmarkConfig,
    MixtureConfig,
)
from math_utils.influence.datainf import DataInfCalculator
from math_utils.influence.distillation import DistillationQuality, InfluenceDistillation
from math_utils.influence.first_order import FirstOrderCalculator
from math_utils.influence.gradient import DiscriminativeGradientExtractor
from math_utils.influence.hadamard import RandomizedHadamardTransform, hadamard_transform
from math_utils.influence.hypergradient import HyperGradientCalculator, Hypergradients
from math_utils.influence.jvp_embedding import JVPEmbeddingExtractor
from math_utils.influence.kernel_ridge import KernelRidge
from math_utils.influence.landmark import LandmarkSelector, leverage_scores
from math_utils.influence.selection import (
    project_to_capped_simplex,
    regularized_weights,
    select_round_robin,
    select_top,
)

__all__ = [
    "DataInfCalculator",
    "DataSelector",
    "DiscriminativeGradientExtractor",
    "DistillationQuality",
    "EmbeddingExtractor",
    "FirstOrderCalculator",
    "HyperGradientCalculator",
    "Hypergradients",
    "InfluenceCalculator",
    "InfluenceConfig",
    "InfluenceDistillation",
    "InfluenceDistillationConfig",
    "InfluenceTarget",
    "JVPEmbeddingConfig",
    "JVPEmbeddingExtractor",
    "KernelRidge",
    "KernelRidgeConfig",
    "LandmarkConfig",
    "LandmarkSelector",
    "MixtureConfig",
    "RandomizedHadamardTransform",
    "aggregate",
    "hadamard_transform",
    "leverage_scores",
    "project_to_capped_simplex",
    "regularized_weights",
    "select_round_robin",
    "select_top",
    "smooth",
]
