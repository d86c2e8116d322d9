"""Passes of a query run: query gradients, preconditioned, against every training example."""

import time
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from functools import cached_property, partial
from typing import TYPE_CHECKING, Any

from math_utils.capture import frozen
from math_utils.curvature import (
    Bases,
    CurvatureFactors,
    Damping,
    Queries,
    bases_to_keep,
    collect_queries,
    score_batch,
    self_influence,
)
from tqdm import tqdm

from if_query.batching import make_batches
from if_query.datasets import TokenDataset
from if_query.errors import InputError
from if_query.factors_on_disk import FactorsOnDisk
from if_query.models import LanguageModelLoss, Tracked
from if_query.out_of_memory import runs_out_of_memory
from if_query.pairs import Pair
from if_query.passes import curvature_errors, load_batches, loss_scale_of
from if_query.query_progress import QueryProgress
from if_query.schedule import BatchSchedule, half_of
from if_query.score_arrays import ScoreArrays

if TYPE_CHECKING:
    from if_query.run_query import RunQueryConfig


@dataclass(frozen=True, eq=False)
class Examples:
    """Pairs and their tokens."""

    pairs: list[Pair]
    dataset: TokenDataset

    def describe(self, row: int) -> str:
        """A pair as the user knows it."""
        return f"pair_id {self.pairs[row].pair_id!r}"


@dataclass(frozen=True, eq=False)
class Run:
    """One run under way.

    Attributes:
        factors: in memory, or read from disk map by map; none before they are placed.
        queries_at_once: how many queries' preconditioned gradients fit in memory together.
        metadata: what is known of the run; :func:`score_all` adds the batch sizes that it used.
    """

    config: "RunQueryConfig"
    model: Any
    tracked: Tracked
    factors: CurvatureFactors
    train: Examples
    queries: Examples
    metadata: dict[str, Any]
    queries_at_once: int

    @cached_property
    def loss(self) -> LanguageModelLoss:
        """Of queries and training examples."""
        return LanguageModelLoss.for_model(self.model)

    @property
    def loss_scale(self) -> float:
        """Of this run's precision."""
        return loss_scale_of(self.config.dtype)

    @property
    def damping(self) -> Damping:
        """The damping that was asked for."""
        return Damping(self.config.damping, self.config.damping_kind)

    @property
    def train_budget(self) -> int:
        """Tokens per batch of training examples that were asked for."""
        config = self.config
        return token_budget(config.train_batch_size or config.score_batch_size, self.train)

    def open_arrays(self) -> ScoreArrays:
        """The score matrices on disk, new or as an interrupted run left them."""
        config = self.config
        return ScoreArrays(
            config.output_dir,
            num_queries=len(self.queries.pairs),
            lengths=self.train.dataset.lengths.tolist(),
            module_names=list(self.tracked.maps),
            per_module=config.per_module_scores,
            per_token=config.per_token_scores,
            self_influence=config.self_influence,
        )


def score_all(run: Run) -> tuple[ScoreArrays, list[float]]:
    """Score every training example against every query, block of queries by block.

    Returns:
        (scores, the loss of every query in nats).

    Raises:
        InputError: if one example by itself does not fit into memory.
    """
    config, num_queries = run.config, len(run.queries.pairs)
    arrays = run.open_arrays()
    progress = QueryProgress.take_up(
        arrays.progress(),
        token_budget=run.train_budget,
        query_batch_size=config.query_batch_size or config.score_batch_size,
        queries_at_once=run.queries_at_once,
        num_queries=num_queries,
    )
    with frozen(run.model), tqdm(desc="scores", unit="seq") as bar:

        def count_passes() -> None:
            left = -(-(num_queries - progress.first_query) // progress.queries_at_once)
            bar.total = bar.n + (left + config.self_influence) * len(run.train.pairs)

        while progress.first_query < num_queries:
            count_passes()
            queries = gather_queries(run, progress)
            if queries is None:
                continue
            _score_pass(run, arrays, progress, queries, bar)
            progress.end_block()
            del queries  # before the next block is gathered
        if config.self_influence:
            _score_pass(run, arrays, progress, None, bar)
    arrays.save(progress.to_json())
    run.metadata["used_token_budgets"] = progress.budgets
    run.metadata["used_query_batch_sizes"] = progress.query_batch_sizes
    return arrays, progress.losses


def _score_pass(
    run: Run,
    arrays: ScoreArrays,
    progress: QueryProgress,
    queries: Queries | None,
    bar: "tqdm[Any]",
) -> None:
    """Every training example against a block of queries, or (None) against itself.

    Scores of a batch are stored when all of them are there, so that a batch that runs out of
    memory leaves nothing behind; what is left then goes in batches of half its size.
    """
    lengths = run.train.dataset.lengths
    schedule = BatchSchedule(lengths, progress.parts)
    progress.parts = schedule.parts
    bar.update(schedule.num_rows_done)
    while failed := _score_batches(run, arrays, progress, queries, schedule, bar):
        longest = int(lengths[failed].max())
        if len(failed) == 1:
            raise InputError(
                f"train {run.train.describe(failed[0])}, of {longest} tokens, does not fit into "
                "memory by itself; lower --max-length, or --query-memory-gb"
            )
        schedule.shrink(half_of(failed, lengths))
        progress.budgets.append(schedule.budget)
        arrays.save(progress.to_json())
        print(
            f"out of memory at {len(failed)} training examples of up to {longest} tokens; going "
            f"on with {schedule.budget} tokens per batch"
        )


def _score_batches(
    run: Run,
    arrays: ScoreArrays,
    progress: QueryProgress,
    queries: Queries | None,
    schedule: BatchSchedule,
    bar: "tqdm[Any]",
) -> list[int]:
    """Score what is left of a pass; the rows of the batch that ran out of memory, or []."""
    saved_at = time.monotonic()
    with curvature_errors(run.train.dataset, run.train.describe):
        for rows in schedule.remaining():
            if runs_out_of_memory(partial(_score_rows, run, arrays, progress.block, queries, rows)):
                return rows
            schedule.advance()
            bar.update(len(rows))
            if time.monotonic() - saved_at >= run.config.save_interval:
                arrays.save(progress.to_json())
                saved_at = time.monotonic()
    return []


def _score_rows(
    run: Run,
    arrays: ScoreArrays,
    block: slice,
    queries: Queries | None,
    rows: Sequence[int],
) -> None:
    """Score one batch of training examples against a block, or (None) against themselves."""
    (batch,) = load_batches(run.model, run.train.dataset, [rows])
    arguments = (run.model, run.tracked.maps, batch, run.loss)
    if queries is None:
        assert arrays.self_influence is not None
        arrays.self_influence[list(rows)] = self_influence(
            *arguments, run.factors, run.damping, loss_scale=run.loss_scale
        ).numpy()
        return
    scores = score_batch(
        *arguments,
        queries,
        per_module=run.config.per_module_scores,
        per_token=run.config.per_token_scores,
        loss_scale=run.loss_scale,
    )
    arrays.put(block, rows, scores)


def gather_queries(run: Run, progress: QueryProgress) -> Queries | None:
    """Preconditioned gradients of the next block of queries, and their losses into ``progress``.

    Where memory runs out, batches are halved, and where they cannot be, the block.

    Returns:
        The queries; None if fewer of them have to go at once, which ``progress`` then says.

    Raises:
        InputError: if one query by itself does not fit into memory.
    """
    block, dataset = progress.block, run.queries.dataset
    while True:
        found: list[tuple[Queries, list[float]]] = []
        batch_size = progress.query_batch_sizes[-1]

        def collect(batch_size: int = batch_size, found: list[Any] = found) -> None:
            found.append(collect_block(run, block, batch_size))

        with curvature_errors(dataset, run.queries.describe):
            if not runs_out_of_memory(collect):
                queries, progress.losses[block] = found[0]
                return queries
        largest = min(batch_size, block.stop - block.start)
        if largest > 1:
            progress.query_batch_sizes.append(largest // 2)
            print(f"out of memory at queries; going on with {largest // 2} in a batch")
        elif block.stop - block.start > 1:
            progress.shrink_block()
            print(f"out of memory at queries; going on with {progress.queries_at_once} at a time")
            return None
        else:
            raise InputError(
                f"query {run.queries.describe(block.start)}, of "
                f"{dataset.lengths[block.start]} tokens, does not fit into memory by itself; lower "
                "--max-length, or give --query-rank"
            )


def collect_block(run: Run, block: slice, batch_size: int) -> tuple[Queries, list[float]]:
    """Preconditioned gradients and losses of a block of queries, in its order."""
    plan = query_batches(run, block, batch_size)
    # Bases that are read from disk map by map are not kept.
    is_in_memory = not isinstance(run.factors.maps, FactorsOnDisk)
    bases = training_bases(run, run.factors, block.stop - block.start) if is_in_memory else None
    rows = [[block.start + place for place in places] for places in plan]
    queries, losses = collect_queries(
        run.model,
        run.tracked.maps,
        list(load_batches(run.model, run.queries.dataset, rows)),
        run.loss,
        run.factors,
        run.damping,
        rank=run.config.query_rank,
        bases=bases,
        order=[place for places in plan for place in places],
        loss_scale=run.loss_scale,
    )
    return queries, losses.tolist()


def training_bases(run: Run, factors: CurvatureFactors, num_queries: int) -> Mapping[str, Bases]:
    """What training examples are rotated by for so many queries: where that is the lesser work."""
    return bases_to_keep(
        factors,
        num_queries=num_queries,
        num_rows=run.train.dataset.num_tokens,
        rank=run.config.query_rank,
    )


def query_batches(run: Run, block: slice, batch_size: int) -> list[list[int]]:
    """Batches of a block of queries, as places in it.

    Not more queries at once than asked for, however short: each has a whole gradient for a while.
    """
    return make_batches(
        run.queries.dataset.lengths[block],
        max_tokens=token_budget(batch_size, run.queries),
        max_sequences=batch_size,
    )


def token_budget(batch_size: int, examples: Examples) -> int:
    """Tokens per batch, padding counted: so many of the longest example."""
    return batch_size * int(examples.dataset.lengths.max())
