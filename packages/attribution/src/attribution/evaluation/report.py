"""All retrieval metrics of one method, as means over queries or groups of them, with intervals."""

from collections.abc import Callable, Hashable, Sequence
from dataclasses import dataclass

import numpy as np

from attribution.evaluation.bootstrap import bootstrap_interval
from attribution.evaluation.metrics import PerQuery, Relevance, Scores, rank_queries
from attribution.evaluation.ranking import TiedRanking


@dataclass(frozen=True)
class MetricEstimate:
    """A metric's mean over queries, or over groups of queries.

    Attributes:
        mean: over queries; with groups, over groups of the mean within each.
        low: lower bound of the 95 % bootstrap interval.
        high: upper bound.
        per_query: the values that the mean is of.
    """

    mean: float
    low: float
    high: float
    per_query: PerQuery


@dataclass(frozen=True)
class RetrievalReport:
    """The metrics of one method.

    Attributes:
        metrics: by name: precision@k and recall@k for every k, map, mrr, ndcg, roc_auc.
        tied_pair_share: mean over queries of the share of (relevant, other) pairs that tie. At 0
            no metric depends on ties; near 1 the method hardly ranks at all.
        num_queries: number of queries.
        num_groups: number of groups of queries, or None without groups.
        num_train: number of training examples that were ranked.
    """

    metrics: dict[str, MetricEstimate]
    tied_pair_share: float
    num_queries: int
    num_train: int
    num_groups: int | None = None

    def to_dict(self) -> dict[str, object]:
        """Numbers only, for JSON; without the values per query."""
        return {
            "num_queries": self.num_queries,
            "num_groups": self.num_groups,
            "num_train": self.num_train,
            "tied_pair_share": self.tied_pair_share,
            "metrics": {
                name: {"mean": metric.mean, "low": metric.low, "high": metric.high}
                for name, metric in self.metrics.items()
            },
        }


def evaluate_retrieval(
    scores: Scores,
    relevance: Relevance,
    *,
    cutoffs: Sequence[int] = (1, 5, 10),
    groups: Sequence[Hashable] | None = None,
    seed: int = 0,
    num_resamples: int = 10_000,
) -> RetrievalReport:
    """Rank the training examples of every query once and take every metric.

    All metrics, and all methods evaluated with one seed on the same queries, share the resamples
    of their bootstrap intervals.

    Args:
        scores: higher is more related [query, train].
        relevance: True where the example is known to have taught the query's answer.
        cutoffs: the k of precision@k and recall@k, each at least 1.
        groups: what each query is about, for example its function. Every group then counts the
            same, and the bootstrap draws groups: queries about one function succeed and fail
            together, and an interval over single queries would be too narrow. None: every query
            counts the same and is drawn alone.
        seed: of the bootstrap.
        num_resamples: of the bootstrap.

    Returns:
        The report.

    Raises:
        ValueError: on no queries, shapes that differ, NaN, a cutoff below 1, groups that are not
            one per query, or a query to which no example, or every example, is relevant.
    """
    if any(k < 1 for k in cutoffs):
        raise ValueError(f"expected cutoffs of at least 1, got {list(cutoffs)}")
    rankings = rank_queries(scores, relevance, needs_others=True)
    if groups is not None and len(groups) != len(rankings):
        raise ValueError(f"expected one group per query, got {len(groups)} for {len(rankings)}")

    def estimate(metric: Callable[[TiedRanking], float]) -> MetricEstimate:
        per_query = np.array([metric(ranking) for ranking in rankings], dtype=np.float64)
        return estimate_mean(per_query, groups=groups, seed=seed, num_resamples=num_resamples)

    metrics: dict[str, MetricEstimate] = {}
    for k in cutoffs:
        metrics[f"precision@{k}"] = estimate(lambda ranking, k=k: ranking.precision(k))  # type: ignore[misc]
    for k in cutoffs:
        metrics[f"recall@{k}"] = estimate(lambda ranking, k=k: ranking.recall(k))  # type: ignore[misc]
    metrics["map"] = estimate(TiedRanking.average_precision)
    metrics["mrr"] = estimate(TiedRanking.reciprocal_rank)
    metrics["ndcg"] = estimate(TiedRanking.ndcg)
    metrics["roc_auc"] = estimate(TiedRanking.roc_auc)
    return RetrievalReport(
        metrics=metrics,
        tied_pair_share=float(np.mean([ranking.tied_pair_share() for ranking in rankings])),
        num_queries=len(rankings),
        num_train=scores.shape[1],
        num_groups=None if groups is None else len(set(groups)),
    )


def estimate_mean(
    per_query: PerQuery,
    *,
    groups: Sequence[Hashable] | None = None,
    seed: int = 0,
    num_resamples: int = 10_000,
) -> MetricEstimate:
    """The mean of a metric and its bootstrap interval, over queries or over groups of them.

    Args:
        per_query: the metric of every query.
        groups: what each query is about; None: every query counts the same and is drawn alone.
        seed: of the bootstrap.
        num_resamples: of the bootstrap.
    """
    members = _members(range(len(per_query)) if groups is None else groups)
    drawn = np.array([per_query[rows].mean() for rows in members], dtype=np.float64)
    low, high = bootstrap_interval(
        drawn, generator=np.random.default_rng(seed), num_resamples=num_resamples
    )
    return MetricEstimate(float(drawn.mean()), low, high, per_query)


def _members(groups: Sequence[Hashable]) -> list[list[int]]:
    """The queries of each group, in the order in which groups first occur."""
    members: dict[Hashable, list[int]] = {}
    for query, group in enumerate(groups):
        members.setdefault(group, []).append(query)
    return list(members.values())
