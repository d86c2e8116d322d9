"""Passes of a query run: query gradients, preconditioned, against every training example."""

import time
from collections.abc import Sequence
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any

import psutil
import torch
from math_utils.capture import frozen
from math_utils.curvature import (
    CurvatureFactors,
    Damping,
    Queries,
    collect_queries,
    score_batch,
    self_influence,
)
from tqdm import tqdm

from if_query.batching import make_batches
from if_query.datasets import TokenDataset
from if_query.models import LanguageModelLoss, Tracked
from if_query.pairs import Pair
from if_query.passes import curvature_errors, load_batches, loss_scale_of
from if_query.score_arrays import ScoreArrays

if TYPE_CHECKING:
    from if_query.run_query import RunQueryConfig

SHARE_OF_FREE_MEMORY = 0.4
"""What query gradients may take where --query-memory-gb does not say; a few more copies of some
of them are alive while they are preconditioned."""


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
    """One run under way."""

    config: "RunQueryConfig"
    model: Any
    tracked: Tracked
    factors: CurvatureFactors
    train: Examples
    queries: Examples
    metadata: dict[str, Any]

    @property
    def loss_scale(self) -> float:
        """Of this run's precision."""
        return loss_scale_of(self.config.dtype)

    @property
    def damping(self) -> Damping:
        """The damping that was asked for."""
        return Damping(self.config.damping, self.config.damping_kind)


def score_all(run: Run) -> tuple[ScoreArrays, list[float]]:
    """Score every training example against every query, block of queries by block.

    Returns:
        (scores, the loss of every query in nats).
    """
    config = run.config
    arrays = ScoreArrays(
        config.output_dir,
        num_queries=len(run.queries.pairs),
        lengths=run.train.dataset.lengths.tolist(),
        module_names=list(run.tracked.maps),
        per_module=config.per_module_scores,
        per_token=config.per_token_scores,
        self_influence=config.self_influence,
    )
    earlier = arrays.progress()
    queries_at_once = earlier.get("queries_at_once") or count_queries_at_once(run)
    budget = token_budget(config.train_batch_size or config.score_batch_size, run.train)
    # Steps of another plan say nothing about this one.
    done = earlier["steps"] if earlier.get("token_budget") == budget else 0
    num_queries = len(run.queries.pairs)
    blocks: list[slice | None] = [
        slice(first, min(first + queries_at_once, num_queries))
        for first in range(0, num_queries, queries_at_once)
    ]
    plan = make_batches(run.train.dataset.lengths, max_tokens=budget)
    losses = [0.0] * num_queries
    step = 0

    def save() -> None:
        arrays.save({"steps": step, "queries_at_once": queries_at_once, "token_budget": budget})

    saved_at = time.monotonic()
    passes = blocks + ([None] if config.self_influence else [])
    total = len(passes) * len(run.train.pairs)
    with frozen(run.model), tqdm(total=total, desc="scores", unit="seq") as bar:
        for block in passes:
            queries = None
            if block is not None:
                with curvature_errors(run.queries.dataset, run.queries.describe):
                    queries, losses[block] = gather_queries(run, block)
            with curvature_errors(run.train.dataset, run.train.describe):
                for rows in plan:
                    step += 1
                    if step > done:
                        _score_rows(run, arrays, block, queries, rows)
                        if time.monotonic() - saved_at >= config.save_interval:
                            save()
                            saved_at = time.monotonic()
                    bar.update(len(rows))
    save()
    return arrays, losses


def _score_rows(
    run: Run,
    arrays: ScoreArrays,
    block: slice | None,
    queries: Queries | None,
    rows: Sequence[int],
) -> None:
    """Score one batch of training examples against a block, or (None) against themselves."""
    (batch,) = load_batches(run.model, run.train.dataset, [rows])
    arguments = (run.model, run.tracked.maps, batch, LanguageModelLoss())
    if block is None or queries is None:
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


def count_queries_at_once(run: Run) -> int:
    """How many queries' preconditioned gradients fit in memory together.

    (Factors on disk and other partitions for what does not fit belong here.)
    """
    config, num_queries = run.config, len(run.queries.pairs)
    maps = run.tracked.maps.values()
    if config.query_rank is None:
        per_query = 4 * sum(one.num_parameters for one in maps)
    else:
        per_query = 4 * sum(
            min(config.query_rank, one.d_in, one.d_out) * (one.d_in + one.d_out) for one in maps
        )
    if config.query_memory_gb is not None:
        memory = config.query_memory_gb * 1e9
    else:
        devices = set(run.tracked.devices().values())
        free = [
            torch.cuda.mem_get_info(device)[0]
            if device.type == "cuda"
            else psutil.virtual_memory().available
            for device in devices
        ]
        memory = SHARE_OF_FREE_MEMORY * sum(free)
    at_once = max(1, min(num_queries, int(memory // per_query)))
    if at_once < num_queries:
        print(
            f"query gradients take {per_query / 1e9:.3g} GB each, so {at_once} of {num_queries} "
            "queries are held at a time"
        )
    return at_once


def gather_queries(run: Run, block: slice) -> tuple[Queries, list[float]]:
    """Preconditioned gradients and losses of a block of queries, in its order."""
    config, dataset = run.config, run.queries.dataset
    rows_of_block = range(len(run.queries.pairs))[block]
    batch_size = config.query_batch_size or config.score_batch_size
    # Not more queries at once than asked for, however short: each has a whole gradient for a while.
    plan = make_batches(
        dataset.lengths[block],
        max_tokens=token_budget(batch_size, run.queries),
        max_sequences=batch_size,
    )
    rows = [[rows_of_block[place] for place in places] for places in plan]
    queries, losses = collect_queries(
        run.model,
        run.tracked.maps,
        list(load_batches(run.model, dataset, rows)),
        LanguageModelLoss(),
        run.factors,
        run.damping,
        rank=config.query_rank,
        order=[place for places in plan for place in places],
        loss_scale=run.loss_scale,
    )
    return queries, losses.tolist()


def token_budget(batch_size: int, examples: Examples) -> int:
    """Tokens per batch, padding counted: so many of the longest example."""
    return batch_size * int(examples.dataset.lengths.max())
