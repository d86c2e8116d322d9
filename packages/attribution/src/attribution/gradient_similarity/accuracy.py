"""How often a query's true original ranks strictly first among its candidates."""

from dataclasses import dataclass

import numpy as np
from jaxtyping import Bool, Float64, Int64

from attribution.evaluation.bootstrap import bootstrap_interval


@dataclass(frozen=True)
class AccuracyEstimate:
    """A share of queries, with its 95 % bootstrap interval over queries.

    Attributes:
        mean: the share.
        low: lower bound.
        high: upper bound.
    """

    mean: float
    low: float
    high: float

    def to_dict(self) -> dict[str, float]:
        """For JSON."""
        return {"mean": self.mean, "low": self.low, "high": self.high}


def ranks_first(
    scores: Float64[np.ndarray, " pair"],
    query_of_pair: Int64[np.ndarray, " pair"],
    is_true: Bool[np.ndarray, " pair"],
    num_queries: int,
) -> Bool[np.ndarray, " query"]:
    """Where the true candidate's score is above that of every other; a tie does not count.

    A query whose true original is not among its candidates counts as missed.

    Args:
        scores: of each pair.
        query_of_pair: the place of each pair's query.
        is_true: whether the pair's candidate is the true one.
        num_queries: number of queries.
    """
    return score_margins(scores, query_of_pair, is_true, num_queries) > 0


def score_margins(
    scores: Float64[np.ndarray, " pair"],
    query_of_pair: Int64[np.ndarray, " pair"],
    is_true: Bool[np.ndarray, " pair"],
    num_queries: int,
) -> Float64[np.ndarray, " query"]:
    """By how much each query's true candidate exceeds the best other one.

    -∞ where the true one is not a candidate, +∞ where it is the only one.
    """
    true = np.full(num_queries, -np.inf)
    true[query_of_pair[is_true]] = scores[is_true]
    others = np.full(num_queries, -np.inf)
    np.maximum.at(others, query_of_pair[~is_true], scores[~is_true])
    margins = np.full(num_queries, -np.inf)
    np.subtract(true, others, out=margins, where=np.isfinite(true))
    return margins


def estimate_accuracy(hits: Bool[np.ndarray, " query"], *, seed: int = 0) -> AccuracyEstimate:
    """The share of hits with a percentile bootstrap interval over queries."""
    values = hits.astype(np.float64)
    low, high = bootstrap_interval(
        values, generator=np.random.default_rng(seed), num_resamples=2_000
    )
    return AccuracyEstimate(float(values.mean()), low, high)
