"""The batches of one pass over a data set, in an order that can be stopped and taken up again.

When a batch does not fit into memory, what is left of the pass is planned again under a smaller
token budget. So a pass is a list of parts, (token budget, batches done under it): it says which
rows are done and which come next, whenever the process was killed.
"""

from collections.abc import Sequence

import numpy as np
from jaxtyping import Int64

from if_query.batching import make_batches

Part = tuple[int, int]
"""(tokens per batch with padding counted, batches done under that budget)."""


class BatchSchedule:
    """Which rows are done and which batches come next.

    Attributes:
        parts: the budgets of the pass so far, in turn; the last one is in force.
    """

    def __init__(
        self,
        lengths: Int64[np.ndarray, " row"],
        parts: Sequence[Part],
        rows: Int64[np.ndarray, " some"] | None = None,
    ) -> None:
        """Take up a pass over rows of these lengths.

        Args:
            lengths: number of tokens of every row.
            parts: at least one; [(budget, 0)] for a new pass.
            rows: those that the pass goes over; None for all.
        """
        self._lengths = lengths
        self._rows = np.arange(len(lengths)) if rows is None else rows
        self.parts = [(int(budget), int(num_done)) for budget, num_done in parts]

    @property
    def budget(self) -> int:
        """The token budget in force."""
        return self.parts[-1][0]

    @property
    def num_batches_done(self) -> int:
        """Batches done, under whichever budget."""
        return sum(num_done for _, num_done in self.parts)

    def remaining(self) -> list[list[int]]:
        """The batches that are not done, as rows; longest sequences first."""
        batches: list[list[int]] = []
        rows = self._rows
        for budget, num_done in self.parts:
            planned = make_batches(self._lengths[rows], max_tokens=budget)
            batches = [rows[batch].tolist() for batch in planned[num_done:]]
            rows = np.array([row for batch in batches for row in batch], dtype=np.int64)
        return batches

    @property
    def num_rows_done(self) -> int:
        """Rows in the batches that are done."""
        return len(self._rows) - sum(map(len, self.remaining()))

    def advance(self) -> None:
        """Count one more batch as done."""
        budget, num_done = self.parts[-1]
        self.parts[-1] = (budget, num_done + 1)

    def shrink(self, budget: int) -> None:
        """Plan what is left under a smaller budget; an equal one changes nothing."""
        if budget < self.budget:
            self.parts.append((budget, 0))


def half_of(batch: Sequence[int], lengths: Int64[np.ndarray, " row"]) -> int:
    """The token budget under which half of a batch goes through at once.

    Args:
        batch: rows, at least two.
        lengths: number of tokens of every row of the data set.
    """
    return int(lengths[list(batch)].max()) * (len(batch) // 2)
