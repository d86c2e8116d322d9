"""Every field is checked, and running estimates are what they say."""

from dataclasses import FrozenInstanceError

import pytest
import torch
from math_utils.errors import InfluenceError
from math_utils.influence import InfluenceConfig, InfluenceTarget, aggregate, smooth
from math_utils.influence.config import (
    InfluenceDistillationConfig,
    JVPEmbeddingConfig,
    KernelRidgeConfig,
    LandmarkConfig,
    MixtureConfig,
)

NAN, INFINITY = float("nan"), float("inf")
BAD = [
    (InfluenceConfig, "lambda_val", [0.0, -1.0, NAN, INFINITY]),
    (InfluenceConfig, "gamma_val", [0.0, 1.5, -0.1, NAN]),
    (InfluenceConfig, "dtype", [torch.float16, torch.int64]),
    (JVPEmbeddingConfig, "num_blocks", [0, -1]),
    (JVPEmbeddingConfig, "num_tangents", [0]),
    (JVPEmbeddingConfig, "projection_dim", [0]),
    (JVPEmbeddingConfig, "seed", [-1]),
    (LandmarkConfig, "num_landmarks", [0, -1]),
    (LandmarkConfig, "strategy", ["best"]),
    (LandmarkConfig, "seed", [-1]),
    (KernelRidgeConfig, "kernel", ["cubic"]),
    (KernelRidgeConfig, "damping", [-1.0, NAN, INFINITY]),
    (MixtureConfig, "min_weight", [-0.1, 0.95, NAN]),
    (MixtureConfig, "max_weight", [1.1, 0.001, NAN]),
    (MixtureConfig, "update_interval", [0]),
    (MixtureConfig, "learning_rate", [0.0, -1.0, NAN, INFINITY]),
    (MixtureConfig, "smoothing", [0.0, 2.0, NAN]),
    (InfluenceDistillationConfig, "regularization", [0.0, -1.0, NAN]),
]


@pytest.mark.parametrize(
    ("config", "field", "value"),
    [(config, field, value) for config, field, values in BAD for value in values],
)
def test_a_bad_value_is_named_with_what_was_expected(config, field, value):
    with pytest.raises(InfluenceError, match=f"expected .*{field}"):
        config(**{field: value})


def test_defaults_are_the_papers_and_cannot_be_changed():
    config = InfluenceConfig()
    assert (config.lambda_val, config.gamma_val) == (0.1, 0.1)
    assert config.target == InfluenceTarget("both")
    assert JVPEmbeddingConfig().num_blocks == 4
    assert JVPEmbeddingConfig().num_tangents == 2
    assert LandmarkConfig() == LandmarkConfig(4096, "kmeans_pp", 0)
    assert (MixtureConfig().min_weight, MixtureConfig().max_weight) == (0.01, 0.90)
    with pytest.raises(FrozenInstanceError):
        config.lambda_val = 1


def test_a_target_is_a_name_or_an_expression():
    assert InfluenceConfig(target=r"layers\.0\.").target_name == r"layers\.0\."
    with pytest.raises(InfluenceError, match="does not compile"):
        InfluenceTarget("(")
    with pytest.raises(InfluenceError, match='say "all"'):
        InfluenceTarget("")


def test_a_running_estimate_takes_in_new_ones_at_its_rate():
    latest = torch.tensor([1.0, 2.0])
    assert torch.equal(smooth(None, latest, 0.25), latest)
    assert smooth(torch.tensor([5.0, -2.0]), latest, 0.25).tolist() == [4.0, -1.0]
    assert torch.equal(smooth(torch.zeros(2), latest, 1.0), latest)
    for gamma in (0.0, 1.1):
        with pytest.raises(InfluenceError, match="gamma"):
            smooth(None, latest, gamma)


def test_aggregation_says_what_it_can_do():
    with pytest.raises(InfluenceError, match="mean, sum, max, min, got 'median'"):
        aggregate(torch.ones(1, 1), "median")
