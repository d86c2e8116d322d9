"""A few batches of every pass of a query run, with factors and queries of one map per shape."""

from collections.abc import Callable, Sequence
from functools import cached_property

import torch
from math_utils.capture import frozen
from math_utils.curvature import (
    CurvatureFactors,
    Strategy,
    collect_queries,
    score_batch,
    self_influence,
)

from if_query.batching import make_batches
from if_query.device_memory import Memory, is_host
from if_query.passes import curvature_errors, load_batches
from if_query.plan.sizes import query_bytes
from if_query.plan.stand_ins import StandInBases, stand_in_factors, stand_in_queries
from if_query.plan.trials import Trial, try_batches
from if_query.query_pass import Run, query_batches, training_bases


class QueryTrials:
    """Trials of a run's passes, each made when it is first asked for.

    Peaks are of the process without factors and without query gradients.
    """

    def __init__(self, run: Run, strategy: Strategy) -> None:
        """Trials of ``run``, whose factors are of this strategy."""
        self._run = run
        self._strategy: Strategy = strategy
        self._on_host = is_host(list(run.tracked.devices().values()))

    @property
    def peak(self) -> Memory:
        """The greatest of the passes that are asked for."""
        trials = [self.queries, self.scores(1)]
        if self._run.config.self_influence:
            trials.append(self.self_influence)
        return Memory(max(one.peak.host for one in trials), max(one.peak.device for one in trials))

    @cached_property
    def queries(self) -> Trial:
        """Gradients of queries, preconditioned; seconds of every batch of all queries."""
        run, config = self._run, self._run.config
        batch_size = config.query_batch_size or config.score_batch_size
        plan = query_batches(run, slice(0, len(run.queries.pairs)), batch_size)
        factors, size = self._factors()
        maps = run.tracked.maps
        bases = training_bases(run, factors, len(run.queries.pairs))
        per_query = sum(query_bytes(one, config.query_rank) for one in maps.values())

        def attempt(rows: Sequence[int]) -> None:
            collect_queries(
                run.model,
                maps,
                list(load_batches(run.model, run.queries.dataset, [rows])),
                run.loss,
                factors,
                run.damping,
                rank=config.query_rank,
                bases=bases,
                loss_scale=run.loss_scale,
            )

        with frozen(run.model), curvature_errors(run.queries.dataset, run.queries.describe):
            return try_batches(
                run.queries.dataset,
                plan,
                attempt,
                stand_ins=lambda rows: size + per_query * len(rows),
                on_host=self._on_host,
            )

    def scores(self, num_queries: int) -> Trial:
        """Training examples against so many queries."""
        run, config = self._run, self._run.config
        factors, factors_size = self._factors()
        bases = training_bases(run, factors, num_queries)
        queries, size = stand_in_queries(run.tracked.maps, num_queries, config.query_rank, bases)

        def attempt(rows: Sequence[int]) -> None:
            (batch,) = load_batches(run.model, run.train.dataset, [rows])
            score_batch(
                run.model,
                run.tracked.maps,
                batch,
                run.loss,
                queries,
                per_module=config.per_module_scores,
                per_token=config.per_token_scores,
                loss_scale=run.loss_scale,
            )

        return self._try_train(attempt, size + factors_size)

    @cached_property
    def self_influence(self) -> Trial:
        """Training examples against themselves."""
        run = self._run
        factors, size = self._factors()

        def attempt(rows: Sequence[int]) -> None:
            (batch,) = load_batches(run.model, run.train.dataset, [rows])
            self_influence(
                run.model,
                run.tracked.maps,
                batch,
                run.loss,
                factors,
                run.damping,
                loss_scale=run.loss_scale,
            )

        return self._try_train(attempt, size)

    def _try_train(self, attempt: Callable[[Sequence[int]], None], size: int) -> Trial:
        run = self._run
        plan = make_batches(run.train.dataset.lengths, max_tokens=run.train_budget)
        with frozen(run.model), curvature_errors(run.train.dataset, run.train.describe):
            return try_batches(
                run.train.dataset,
                plan,
                attempt,
                stand_ins=lambda rows: size,
                on_host=self._on_host,
            )

    def _factors(self) -> tuple[CurvatureFactors, int]:
        return stand_in_factors(self._run.tracked.maps, self._strategy, StandInBases(torch.float32))
