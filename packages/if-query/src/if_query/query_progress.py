"""How far a query run is: which queries are done, and which training examples of the next ones."""

from collections.abc import Mapping
from dataclasses import asdict, dataclass
from typing import Any

from if_query.schedule import Part


@dataclass
class QueryProgress:
    """What a killed run needs to go on, as done.json holds it.

    Attributes:
        token_budget: tokens per batch of training examples that were asked for.
        queries_at_once: queries of a block.
        num_queries: of the run.
        first_query: the first one that is not done; all are when self-influence is under way.
        parts: how far the pass under way is, as :class:`~if_query.schedule.BatchSchedule` has it.
        budgets: tokens per batch that were used, in turn: fewer where memory ran out.
        query_batch_sizes: queries per batch that were used, in turn.
        losses: of every query that is done, in nats.
    """

    token_budget: int
    queries_at_once: int
    num_queries: int
    first_query: int
    parts: list[Part]
    budgets: list[int]
    query_batch_sizes: list[int]
    losses: list[float]

    @classmethod
    def take_up(
        cls,
        saved: Mapping[str, Any],
        *,
        token_budget: int,
        query_batch_size: int,
        queries_at_once: int,
        num_queries: int,
    ) -> "QueryProgress":
        """Go on from what was saved, or from the beginning where the batches are others."""
        if saved.get("token_budget") == token_budget:
            parts = [(budget, num_done) for budget, num_done in saved["parts"]]
            kept = {key: value for key, value in saved.items() if key != "steps"}
            return cls(**{**kept, "parts": parts})
        return cls(
            token_budget=token_budget,
            queries_at_once=queries_at_once,
            num_queries=num_queries,
            first_query=0,
            parts=[(token_budget, 0)],
            budgets=[token_budget],
            query_batch_sizes=[query_batch_size],
            losses=[0.0] * num_queries,
        )

    def to_json(self) -> dict[str, Any]:
        """What :meth:`take_up` reads, and for people the batches done of the pass under way."""
        return {"steps": sum(num_done for _, num_done in self.parts), **asdict(self)}

    @property
    def block(self) -> slice:
        """The queries that go next."""
        stop = min(self.first_query + self.queries_at_once, self.num_queries)
        return slice(self.first_query, stop)

    def end_block(self) -> None:
        """The block is done; the next pass begins with the budget that was last used."""
        self.first_query = self.block.stop
        self.parts = [(self.budgets[-1], 0)]

    def shrink_block(self) -> None:
        """Take half as many queries at a time, each against all training examples."""
        block = self.block
        self.queries_at_once = (block.stop - block.start) // 2
        self.parts = [(self.budgets[-1], 0)]
