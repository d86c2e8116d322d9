"""The linear datamodeling score: do scores foretell what a model trained on other data would do?

Models are trained on random subsets of the documents.  A method that gives document t the score
τ[q, t] foretells for query q and subset S the gain Σ_{t ∈ S} τ[q, t]: a positive score is helpful,
so the loss should be lower where the sum is higher.  The score of the method at q is Spearman's
rank correlation, over subsets, of that sum with minus the loss that was measured: 1 foretells the
order of all subsets, 0 nothing.  Ties take average ranks.

Source: Park et al., "TRAK: Attributing Model Behavior at Scale", 2023, section 2.
"""

import itertools
from collections.abc import Hashable, Sequence

import numpy as np
from jaxtyping import Bool, Float
from scipy.stats import rankdata

from attribution.evaluation.metrics import PerQuery, Scores
from attribution.evaluation.report import MetricEstimate, estimate_mean

Masks = Bool[np.ndarray, "subset train"]


def linear_datamodeling_scores(
    scores: Scores, masks: Masks, losses: Float[np.ndarray, "subset query"]
) -> PerQuery:
    """Spearman's correlation of Σ_{t ∈ S} score[q, t] with −loss[S, q] over subsets S, per query.

    A method whose sums are the same for every subset foretells nothing: its score is 0.

    Args:
        scores: higher is more helpful [query, train].
        masks: which examples each model was trained on [subset, train].
        losses: what each model loses at each query, in any one unit; where several models were
            trained on one subset, their mean [subset, query].

    Returns:
        One number in [−1, 1] for each query.

    Raises:
        ValueError: on shapes that differ, fewer than three subsets, a number that is not finite,
            or a query whose loss is the same for every subset.
    """
    num_subsets, num_train = masks.shape
    if scores.shape != (losses.shape[1], num_train) or losses.shape[0] != num_subsets:
        raise ValueError(
            "expected scores [query, train], masks [subset, train] and losses [subset, query], "
            f"got {scores.shape}, {masks.shape} and {losses.shape}"
        )
    if num_subsets < 3:
        raise ValueError(f"expected at least three subsets, got {num_subsets}")
    if not (np.isfinite(scores).all() and np.isfinite(losses).all()):
        raise ValueError("expected finite scores and losses")
    constant = np.flatnonzero((losses == losses[0]).all(axis=0))
    if constant.size:
        raise ValueError(f"query {constant[0]}: its loss is the same for every subset")
    # Each subset is summed alone, in float64: equal subsets then get equal sums and tie.
    foretold = np.stack([scores[:, mask].sum(axis=1, dtype=np.float64) for mask in masks])
    return rank_correlation(foretold, -losses)


def retraining_agreement(losses: Float[np.ndarray, "subset repeat query"]) -> PerQuery:
    """How far two models trained on the same subset agree: what noise leaves to be foretold.

    Spearman's correlation over subsets of the losses of two repeats, the mean over all pairs of
    repeats. A method cannot foretell the seed of a training: no score above the square root of the
    agreement is to be expected of it where the losses are of one model each.

    Args:
        losses: of every repeat of every subset.

    Returns:
        One number in [−1, 1] for each query; 0 where a repeat's losses are all the same.

    Raises:
        ValueError: on fewer than two repeats or three subsets.
    """
    if losses.shape[0] < 3 or losses.shape[1] < 2:
        raise ValueError(f"expected at least three subsets and two repeats, got {losses.shape[:2]}")
    pairs = itertools.combinations(range(losses.shape[1]), 2)
    found: PerQuery = np.mean(
        [rank_correlation(losses[:, left], losses[:, right]) for left, right in pairs], axis=0
    )
    return found


def foretellable(agreement: PerQuery, num_repeats: int) -> PerQuery:
    """The score that a method which knew the mean of infinitely many repeats would have.

    The correlation of the mean of R repeats with the true mean is √(R a / (1 + (R − 1) a)), with a
    the agreement of two repeats (Spearman and Brown). Exact for Pearson's correlation, a guide for
    ranks.

    Args:
        agreement: of two repeats; what is negative counts as 0.
        num_repeats: how many repeats the losses are the mean of, at least 1.
    """
    agreed = np.clip(agreement, 0.0, 1.0)
    ceiling: PerQuery = np.sqrt(num_repeats * agreed / (1 + (num_repeats - 1) * agreed))
    return ceiling


def evaluate_lds(
    scores: Scores,
    masks: Masks,
    losses: Float[np.ndarray, "subset query"],
    *,
    groups: Sequence[Hashable] | None = None,
    seed: int = 0,
    num_resamples: int = 10_000,
) -> MetricEstimate:
    """The mean linear datamodeling score with its bootstrap interval over queries, or groups.

    The interval says how far the mean would move with other queries; the subsets stay the same.

    Args:
        scores: as for :func:`linear_datamodeling_scores`.
        masks: the same.
        losses: the same.
        groups: what each query is about, see :func:`attribution.evaluation.evaluate_retrieval`.
        seed: of the bootstrap.
        num_resamples: of the bootstrap.

    Raises:
        ValueError: as :func:`linear_datamodeling_scores` says.
    """
    per_query = linear_datamodeling_scores(scores, masks, losses)
    return estimate_mean(per_query, groups=groups, seed=seed, num_resamples=num_resamples)


def luck_of_subsets(
    scores: Scores,
    masks: Masks,
    losses: Float[np.ndarray, "subset query"],
    *,
    groups: Sequence[Hashable] | None = None,
    seed: int = 0,
    num_shuffles: int = 200,
) -> float:
    """How far from 0 the mean score of a method comes by the luck of few subsets.

    The losses are dealt out to the subsets anew, all queries together, so that nothing can be
    foretold; 95 % of the means so found are no farther from 0. The interval of
    :func:`evaluate_lds` does not count this: all queries are asked of the same models.

    Args:
        scores: as for :func:`linear_datamodeling_scores`.
        masks: the same.
        losses: the same.
        groups: as for :func:`evaluate_lds`.
        seed: of the shuffles.
        num_shuffles: how many.
    """
    rng = np.random.default_rng(seed)
    names = list(range(len(scores))) if groups is None else list(groups)
    members = [np.array([name == one for name in names]) for one in dict.fromkeys(names)]
    means = []
    for _ in range(num_shuffles):
        per_query = linear_datamodeling_scores(scores, masks, rng.permutation(losses, axis=0))
        means.append(np.mean([per_query[rows].mean() for rows in members]))
    return float(np.quantile(np.abs(means), 0.95))


def rank_correlation(
    left: Float[np.ndarray, "subset query"], right: Float[np.ndarray, "subset query"]
) -> PerQuery:
    """Spearman's correlation of the columns; 0 where a column is constant."""
    ranks = [rankdata(one, axis=0) for one in (left, right)]
    centred = [one - one.mean(axis=0) for one in ranks]
    product = (centred[0] * centred[1]).sum(axis=0)
    norm = np.sqrt((centred[0] ** 2).sum(axis=0) * (centred[1] ** 2).sum(axis=0))
    correlation: PerQuery = np.divide(product, norm, out=np.zeros_like(product), where=norm > 0)
    return correlation
