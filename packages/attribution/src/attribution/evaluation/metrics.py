"""Retrieval metrics per query: one number in [0, 1] for each row of scores.

A higher score ranks first. Ties count by expectation over all orders of the tied examples (see
:mod:`attribution.evaluation.ranking`). Every function raises ValueError where scores and
relevance differ in shape, a score is NaN, or a query has no relevant example.
"""

from collections.abc import Callable

import numpy as np
from jaxtyping import Bool, Float, Float64

from attribution.evaluation.ranking import TiedRanking

Scores = Float[np.ndarray, "query train"]
Relevance = Bool[np.ndarray, "query train"]
PerQuery = Float64[np.ndarray, " query"]


def precision_at_k(scores: Scores, relevance: Relevance, k: int) -> PerQuery:
    """Share of relevant examples among the first k; the divisor stays k where there are fewer."""
    check_cutoff(k)
    return _per_query(scores, relevance, lambda ranking: ranking.precision(k))


def recall_at_k(scores: Scores, relevance: Relevance, k: int) -> PerQuery:
    """Share of the relevant examples that are among the first k."""
    check_cutoff(k)
    return _per_query(scores, relevance, lambda ranking: ranking.recall(k))


def average_precision(scores: Scores, relevance: Relevance) -> PerQuery:
    """Mean over the relevant examples of the precision at their ranks; its mean is mAP."""
    return _per_query(scores, relevance, TiedRanking.average_precision)


def reciprocal_rank(scores: Scores, relevance: Relevance) -> PerQuery:
    """One over the rank of the first relevant example; its mean is MRR."""
    return _per_query(scores, relevance, TiedRanking.reciprocal_rank)


def ndcg(scores: Scores, relevance: Relevance, k: int | None = None) -> PerQuery:
    """Discounted cumulative gain of the first k (None: all) relative to the best ranking's."""
    if k is not None:
        check_cutoff(k)
    return _per_query(scores, relevance, lambda ranking: ranking.ndcg(k))


def roc_auc(scores: Scores, relevance: Relevance) -> PerQuery:
    """Share of (relevant, other) pairs in which the relevant one scores higher; ties count half.

    Raises:
        ValueError: also where all examples are relevant to a query.
    """
    return _per_query(scores, relevance, TiedRanking.roc_auc, needs_others=True)


def tied_pair_share(scores: Scores, relevance: Relevance) -> PerQuery:
    """Share of (relevant, other) pairs with equal scores; at 0 ties have no effect on any metric.

    Raises:
        ValueError: also where all examples are relevant to a query.
    """
    return _per_query(scores, relevance, TiedRanking.tied_pair_share, needs_others=True)


def rank_queries(
    scores: Scores, relevance: Relevance, *, needs_others: bool = False
) -> list[TiedRanking]:
    """The ranking of every query, from which all metrics follow.

    Raises:
        ValueError: as the module says; with ``needs_others`` also where all examples are relevant.
    """
    if scores.shape != relevance.shape or scores.ndim != 2:
        raise ValueError(
            "expected scores and relevance of one shape [query, train], "
            f"got {scores.shape} and {relevance.shape}"
        )
    if relevance.dtype != np.bool_:
        raise ValueError(f"expected boolean relevance, got {relevance.dtype}")
    for query, (row, relevant) in enumerate(zip(scores, relevance, strict=True)):
        if np.isnan(row).any():
            example = int(np.flatnonzero(np.isnan(row))[0])
            raise ValueError(f"query {query}: the score of training example {example} is NaN")
        if not relevant.any():
            raise ValueError(f"query {query}: no training example is relevant; leave it out")
        if needs_others and relevant.all():
            raise ValueError(f"query {query}: all training examples are relevant; leave it out")
    return [
        TiedRanking.from_scores(row, relevant)
        for row, relevant in zip(scores, relevance, strict=True)
    ]


def _per_query(
    scores: Scores,
    relevance: Relevance,
    metric: Callable[[TiedRanking], float],
    *,
    needs_others: bool = False,
) -> PerQuery:
    rankings = rank_queries(scores, relevance, needs_others=needs_others)
    return np.array([metric(ranking) for ranking in rankings], dtype=np.float64)


def check_cutoff(k: int) -> None:
    """Refuse a k below 1.

    Raises:
        ValueError: on one.
    """
    if k < 1:
        raise ValueError(f"expected a cutoff k of at least 1, got {k}")
