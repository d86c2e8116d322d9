"""What a report shows of a query's scores: which rows, their places, and how all are spread."""

from dataclasses import dataclass
from typing import Any

import numpy as np
from jaxtyping import Float32

from if_query.influence_results import InfluenceResults, percentiles

NUM_BINS = 60
QUANTILES = (0.0, 0.01, 0.1, 0.25, 0.5, 0.75, 0.9, 0.99, 1.0)


@dataclass(frozen=True, eq=False)
class ShownRows:
    """The training examples shown for one query.

    Attributes:
        helpful: rows with the highest scores, best first.
        harmful: rows with the lowest, worst first; none of them in ``helpful``.
        ranks: of both together, 1 for the most helpful of all.
        percentiles: of both together, of all scores of the query.
    """

    helpful: list[int]
    harmful: list[int]
    ranks: list[int]
    percentiles: list[float]

    @property
    def rows(self) -> list[int]:
        """Both sides, the helpful first."""
        return self.helpful + self.harmful

    def narrowed(self, num_rows: int) -> "ShownRows":
        """At most ``num_rows`` of each side."""
        first, second = self.helpful[:num_rows], self.harmful[:num_rows]
        kept = [*range(len(first)), *range(len(self.helpful), len(self.helpful) + len(second))]
        return ShownRows(
            first,
            second,
            [self.ranks[place] for place in kept],
            [self.percentiles[place] for place in kept],
        )


def select_rows(scores: Float32[np.ndarray, " train"], num_rows: int) -> ShownRows:
    """The extremes of a query's scores; of equal scores the one earlier in the file comes first."""
    order = np.argsort(-scores, kind="stable")
    num_train = len(order)
    num_helpful = min(num_rows, (num_train + 1) // 2)
    num_harmful = min(num_rows, num_train // 2)
    helpful, harmful = order[:num_helpful], order[num_train - num_harmful :][::-1]
    ranks = [*range(1, num_helpful + 1), *range(num_train, num_train - num_harmful, -1)]
    places = percentiles(scores, np.concatenate([helpful, harmful]))
    return ShownRows(helpful.tolist(), harmful.tolist(), ranks, places.tolist())


def summarise(scores: Float32[np.ndarray, " train"]) -> dict[str, Any]:
    """The distribution of a query's scores: spread, quantiles, histogram."""
    wide = scores.astype(np.float64)
    low, high = float(wide.min()), float(wide.max())
    if low == high:  # no training example differs from another, as for a query without labels
        counts = np.array([len(wide)])
    else:
        counts, _ = np.histogram(wide, bins=NUM_BINS, range=(low, high))
    return {
        "spread": significant(float(wide.std())),
        "low": significant(low),
        "high": significant(high),
        "counts": counts.tolist(),
        "quantiles": [significant(float(value)) for value in np.quantile(wide, QUANTILES)],
        "num_positive": int((wide > 0).sum()),
    }


def select_all(results: InfluenceResults, num_queries: int, num_rows: int) -> list[ShownRows]:
    """The rows shown for each of the first ``num_queries`` queries."""
    return [select_rows(np.asarray(one), num_rows) for one in results.matrix[:num_queries]]


def significant(value: float, digits: int = 9) -> float:
    """A number as short as it may be in JSON; nine digits bring back any float32."""
    return float(f"{value:.{digits}g}")
