"""Which originals a query is compared with."""

import re
from collections.abc import Sequence
from dataclasses import dataclass

import numpy as np
from jaxtyping import Float64

from attribution.errors import AttributionError


@dataclass(frozen=True)
class CandidateRule:
    """How candidates are chosen.

    Attributes:
        num_best: so many by BM25 of the user's message; None for all originals.
        forced: whether the true original takes the last place where it is not among the best.
    """

    num_best: int | None
    forced: bool = True

    @classmethod
    def parse(cls, text: str, *, forced: bool = True) -> "CandidateRule":
        """Read ``all`` or ``bm25:N``.

        Raises:
            AttributionError: if it is neither.
        """
        if text == "all":
            return cls(None, forced)
        found = re.fullmatch(r"bm25:([0-9]+)", text)
        if found is None or int(found.group(1)) < 2:
            raise AttributionError(
                f"expected candidates all or bm25:N with N of at least 2, got {text}"
            )
        return cls(int(found.group(1)), forced)


def choose_candidates(
    scores: Float64[np.ndarray, "query original"], true: Sequence[int], rule: CandidateRule
) -> list[list[int]]:
    """The candidates of each query, as places among the originals.

    Args:
        scores: BM25 of each query's user message and each original's.
        true: the place of each query's true original.
        rule: how to choose.

    Returns:
        Per query distinct places; by BM25, best first (ties in the order of the originals), or
        all in their order.
    """
    num_originals = scores.shape[1]
    if rule.num_best is None or rule.num_best >= num_originals:
        return [list(range(num_originals)) for _ in true]
    chosen = []
    for row, original in zip(scores, true, strict=True):
        best = np.argsort(-row, kind="stable")[: rule.num_best].tolist()
        if rule.forced and original not in best:
            best[-1] = original
        chosen.append(best)
    return chosen
