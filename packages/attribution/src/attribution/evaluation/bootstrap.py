"""How far a mean over queries would move with other queries."""

import numpy as np
from jaxtyping import Float

_ENTRIES_AT_ONCE = 1 << 22


def bootstrap_interval(
    values: Float[np.ndarray, " query"],
    *,
    generator: np.random.Generator,
    confidence: float = 0.95,
    num_resamples: int = 10_000,
) -> tuple[float, float]:
    """Percentile bootstrap interval of the mean: queries are drawn again with replacement.

    Queries are taken as independent; where several ask about one fact, the interval is too narrow.

    Args:
        values: one number per query, at least one.
        generator: the source of the draws.
        confidence: the share of resampled means inside the interval, in (0, 1).
        num_resamples: number of resampled means.

    Returns:
        The lower and the upper bound; equal where there is one query.

    Raises:
        ValueError: on no values or an option out of range.
    """
    if len(values) == 0 or not 0 < confidence < 1 or num_resamples < 1:
        raise ValueError(
            "expected at least one value, a confidence in (0, 1) and at least one resample, "
            f"got {len(values)} values, {confidence} and {num_resamples}"
        )
    rows_at_once = max(1, _ENTRIES_AT_ONCE // len(values))
    means = [
        values[generator.integers(len(values), size=(rows, len(values)))].mean(axis=1)
        for rows in _portions(num_resamples, rows_at_once)
    ]
    tail = (1 - confidence) / 2
    low, high = np.quantile(np.concatenate(means), [tail, 1 - tail])
    return float(low), float(high)


def _portions(total: int, most: int) -> list[int]:
    return [min(most, total - done) for done in range(0, total, most)]
