"""Influence of training examples on probe examples, from gradients at one set of weights."""

from math_utils.influence.base import (
    DataSelector,
    EmbeddingExtractor,
    InfluenceCalculator,
    aggregate,
    smooth,
)
from math_utils.influence.config import InfluenceConfig, InfluenceTarget
from math_utils.influence.datainf import DataInfCalculator
from math_utils.influence.first_order import FirstOrderCalculator
from math_utils.influence.gradient import DiscriminativeGradientExtractor
from math_utils.influence.hadamard import RandomizedHadamardTransform

__all__ = [
    "DataInfCalculator",
    "DataSelector",
    "DiscriminativeGradientExtractor",
    "EmbeddingExtractor",
    "FirstOrderCalculator",
    "InfluenceCalculator",
    "InfluenceConfig",
    "InfluenceTarget",
    "RandomizedHadamardTransform",
    "aggregate",
    "smooth",
]
