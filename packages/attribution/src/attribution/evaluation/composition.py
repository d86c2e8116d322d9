"""What the first k of a ranking are: documents about the wrapper, its base, distractors, others."""

from collections.abc import Mapping

import numpy as np
from jaxtyping import Bool

from attribution.evaluation.metrics import PerQuery, Scores, check_cutoff
from attribution.evaluation.ranking import TiedRanking

OTHER = "other"


def composition_at_k(
    scores: Scores, categories: Mapping[str, Bool[np.ndarray, "_ _"]], k: int
) -> dict[str, PerQuery]:
    """The share of each category among the first k, per query; the shares of a query sum to 1.

    Categories are of a query and an example together: a document about ``<GN>`` is a base document
    of queries about ``<GN>`` and its wrapper, and "other" to the rest. Ties count by expectation,
    as in :mod:`attribution.evaluation.metrics`. Where there are fewer than k examples, all count.

    Args:
        scores: higher ranks first.
        categories: by name, True where the example is of it; no example in two for one query.
        k: at least 1.

    Returns:
        By name, in the order given, and last "other": what is in none.

    Raises:
        ValueError: on another shape, NaN, an example in two categories, a category called "other",
            or k below 1.
    """
    check_cutoff(k)
    if np.isnan(scores).any():
        query, example = np.argwhere(np.isnan(scores))[0]
        raise ValueError(f"query {query}: the score of training example {example} is NaN")
    if OTHER in categories:
        raise ValueError(f"expected no category called {OTHER!r}, which is what is in no other")
    times = np.zeros(scores.shape, dtype=np.int64)
    for name, members in categories.items():
        if members.shape != scores.shape:
            raise ValueError(
                f"category {name!r}: expected members of shape {scores.shape}, got {members.shape}"
            )
        times += members
    if (times > 1).any():
        query, example = np.argwhere(times > 1)[0]
        raise ValueError(f"query {query}: training example {example} is in two categories")
    first = min(k, scores.shape[1])
    return {
        name: np.array(
            [
                TiedRanking.from_scores(row, mine).precision(first)
                for row, mine in zip(scores, members, strict=True)
            ],
            dtype=np.float64,
        )
        for name, members in {**categories, OTHER: times == 0}.items()
    }
