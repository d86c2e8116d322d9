"""Landmarks: each strategy by its definition, and none twice."""

import warnings

import pytest
import torch
from math_utils.errors import InfluenceError
from math_utils.influence.config import LANDMARK_STRATEGIES, LandmarkConfig
from math_utils.influence.landmark import LandmarkSelector, leverage_scores


def points(num=60, dim=5, seed=0):
    generator = torch.Generator().manual_seed(seed)
    return torch.randn(num, dim, generator=generator, dtype=torch.float64)


def select(embeddings, strategy, num=9, seed=0, **kwargs):
    config = LandmarkConfig(num_landmarks=num, strategy=strategy, seed=seed)
    return LandmarkSelector(config).select(embeddings, **kwargs)


@pytest.mark.parametrize("strategy", LANDMARK_STRATEGIES)
def test_none_is_chosen_twice_and_chunks_and_seeds_decide_nothing_else(strategy):
    embeddings = points()
    for seed in range(20):
        chosen = select(embeddings, strategy, seed=seed)
        assert len(chosen.unique()) == 9
        assert torch.equal(chosen, select(embeddings, strategy, seed=seed))
        assert torch.equal(chosen, select(embeddings, strategy, seed=seed, chunk_size=7))
    assert not torch.equal(chosen, select(embeddings, strategy, seed=99))


@pytest.mark.parametrize("strategy", LANDMARK_STRATEGIES)
def test_none_is_chosen_twice_among_copies(strategy):
    """30 examples, 3 distinct ones and 10 zeros: distances and scores run out."""
    embeddings = torch.cat([points(2).repeat(10, 1), torch.zeros(10, 5, dtype=torch.float64)])
    for seed in range(10):
        assert len(select(embeddings, strategy, num=25, seed=seed).unique()) == 25
    same = torch.ones(8, 3)
    assert len(select(same, strategy, num=7).unique()) == 7


@pytest.mark.parametrize("strategy", LANDMARK_STRATEGIES)
def test_all_are_returned_with_a_warning_where_there_are_no_more(strategy):
    with pytest.warns(UserWarning, match="9 landmarks were asked for and there are 5 examples"):
        assert select(points(5), strategy).tolist() == list(range(5))
    with warnings.catch_warnings():
        warnings.simplefilter("error")
        assert select(points(9), strategy).tolist() == list(range(9))


def test_farthest_points_are_farthest():
    embeddings = points()
    chosen = select(embeddings, "farthest_point")
    distances = torch.cdist(embeddings, embeddings)
    for place in range(1, 9):
        nearest = distances[:, chosen[:place]].amin(dim=1)
        assert nearest[chosen[place]] == nearest.max()


def test_kmeans_pp_draws_by_squared_distance():
    """After the first, at 0, 1 or 3 on a line: frequencies of the second one."""
    embeddings = torch.tensor([[0.0], [1.0], [3.0]], dtype=torch.float64)
    counts = torch.zeros(3, 3, dtype=torch.float64)
    for seed in range(6000):
        first, second = select(embeddings, "kmeans_pp", num=2, seed=seed).tolist()
        counts[first, second] += 1
    squares = torch.tensor([[0.0, 1, 9], [1, 0, 4], [9, 4, 0]], dtype=torch.float64)
    expected = squares / squares.sum(dim=1, keepdim=True)
    found = counts / counts.sum(dim=1, keepdim=True)
    # About 2000 draws per row: a standard deviation below 0.0112.
    assert (found - expected).abs().max() < 4 * 0.0112
    assert (counts.sum(dim=1) / 6000 - 1 / 3).abs().max() < 4 * 0.0061


def test_leverage_scores_are_the_hat_matrix_and_decide_the_draws():
    embeddings = points(6, 3)
    embeddings[:, 2] = embeddings[:, 0]  # rank 2
    scores = leverage_scores(embeddings, chunk_size=4)
    hat = embeddings @ torch.linalg.pinv(embeddings)
    torch.testing.assert_close(scores, hat.diagonal())
    assert float(scores.sum()) == pytest.approx(2)
    counts = torch.zeros(6, dtype=torch.float64)
    for seed in range(2000):
        counts[select(embeddings, "leverage", num=1, seed=seed)] += 1
    assert (counts / 2000 - scores / 2).abs().max() < 4 * 0.0112


def test_random_draws_are_even():
    counts = torch.zeros(10)
    for seed in range(2000):
        counts[select(points(10), "random", num=3, seed=seed)] += 1
    assert (counts / 2000 - 0.3).abs().max() < 4 * 0.0103


def test_bad_embeddings_and_numbers_are_said():
    for num in (0, -3):
        with pytest.raises(InfluenceError, match="num_landmarks to be a whole number of at least"):
            LandmarkConfig(num_landmarks=num)
    with pytest.raises(InfluenceError, match="at least one embedding"):
        select(torch.ones(0, 3), "random")
    broken = points()
    broken[13, 2] = float("inf")
    with pytest.raises(InfluenceError, match="the embedding of example 13: expected finite"):
        select(broken, "random")
