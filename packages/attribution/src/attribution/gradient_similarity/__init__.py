"""Similarity of gradients between pairs of examples, per parameter tensor."""

from attribution.gradient_similarity.accuracy import (
    AccuracyEstimate,
    estimate_accuracy,
    ranks_first,
)
from attribution.gradient_similarity.gradients import (
    EncodedExample,
    ExampleGradients,
    data_fingerprint,
    model_fingerprint,
)
from attribution.gradient_similarity.layout import FlatLayout, dots_by_tensor, parameter_layout
from attribution.gradient_similarity.projection import (
    GradientProjection,
    TensorProjection,
    check_fraction,
    tensor_seed,
)
from attribution.gradient_similarity.results import Similarities
from attribution.gradient_similarity.selection import (
    SelectionStep,
    greedy_selection,
    split_queries,
)
from attribution.gradient_similarity.similarity import (
    Representation,
    Work,
    gradient_similarities,
    store_originals,
)
from attribution.gradient_similarity.store import GradientStore
from attribution.gradient_similarity.tensor_groups import tensor_groups

__all__ = [
    "AccuracyEstimate",
    "EncodedExample",
    "ExampleGradients",
    "FlatLayout",
    "GradientProjection",
    "GradientStore",
    "Representation",
    "SelectionStep",
    "Similarities",
    "TensorProjection",
    "Work",
    "check_fraction",
    "data_fingerprint",
    "dots_by_tensor",
    "estimate_accuracy",
    "gradient_similarities",
    "greedy_selection",
    "model_fingerprint",
    "parameter_layout",
    "ranks_first",
    "split_queries",
    "store_originals",
    "tensor_groups",
    "tensor_seed",
]
