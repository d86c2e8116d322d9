"""EK-FAC by math_utils.curvature, for the benchmarks: exact, or with what changes a number."""

from collections.abc import Sequence
from dataclasses import dataclass, replace
from functools import partial
from typing import Any

import torch
from if_query.batching import make_batches
from if_query.device_memory import free_memory
from if_query.models import LanguageModelLoss, select_maps
from if_query.plan.replay import REPLAY_SHARE
from math_utils.capture import frozen
from math_utils.curvature import (
    Covariances,
    CovarianceSums,
    CurvatureFactors,
    Damping,
    Eigenbasis,
    EigenvalueSums,
    ReplayedPasses,
    assemble,
    bases_to_keep,
    collect_queries,
    decompose,
    score_batch,
)
from math_utils.language_modeling import TokenBatch
from torch import Tensor
from utils.ekfac_measuring import TRIALS, quick_garbage_collection, timed
from utils.ekfac_model import (
    STAGES,
    Config,
    build_model,
    collate_rows,
    device_of,
    make_sequences,
    quarter_of,
)

DEFAULT_BATCH_SIZE = 8
"""Where no tokens per batch are stated, as a number of the longest examples."""


@dataclass(frozen=True)
class Option:
    """What changes a number; the defaults are the exact path.

    Attributes:
        name: for a person.
        eigen_dtype: dtype of the eigendecompositions.
        covariance_share: share of the examples, drawn at random, that the bases are fitted on;
            eigenvalues are always fitted on all.
        rank: of the preconditioned queries; None keeps all.
        model_dtype: dtype of the model; statistics stay in float32.
    """

    name: str = "exact"
    eigen_dtype: torch.dtype = torch.float64
    covariance_share: float = 1.0
    rank: int | None = None
    model_dtype: torch.dtype = torch.float32


@dataclass(frozen=True, eq=False)
class Examples:
    """A model and token ids to run it on."""

    model: Any
    train: Sequence[Sequence[int]]
    queries: Sequence[Sequence[int]]

    @classmethod
    def random(cls, config: Config) -> "Examples":
        """Untrained weights and random tokens: what the cost of the stages is measured on."""
        return cls(
            build_model(config), make_sequences(config), make_sequences(config, queries=True)
        )


class Ours:
    """The stages of math_utils.curvature, on batches made by if_query."""

    def __init__(
        self, config: Config, examples: Examples | None = None, option: Option | None = None
    ) -> None:
        """Build what the stages need.

        Args:
            config: sizes, budgets and the seed.
            examples: the model and its data; random ones if None.
            option: what to do otherwise than exactly.
        """
        examples = examples or Examples.random(config)
        self._option = option or Option()
        self._model = examples.model.to(self._option.model_dtype)
        self._maps = select_maps(self._model).maps
        self._sampled = LanguageModelLoss.for_model(self._model, "sampled", config.seed)
        self._given = LanguageModelLoss.for_model(self._model)
        self._config = config
        rows = list(range(len(examples.train)))
        default = DEFAULT_BATCH_SIZE * config.max_length
        fit_tokens, score_tokens = config.fit_tokens or default, config.score_tokens or default
        self._train, _ = self._plan(examples.train, rows, fit_tokens)
        self._scored, self._rows = self._plan(examples.train, rows, score_tokens)
        self._queries, self._query_rows = self._plan(
            examples.queries, list(range(len(examples.queries))), score_tokens
        )
        share = self._option.covariance_share
        self._for_bases = self._train
        if share < 1:
            generator = torch.Generator().manual_seed(config.seed)
            order = torch.randperm(len(rows), generator=generator)
            chosen = sorted(order[: max(1, round(share * len(rows)))].tolist())
            self._for_bases, _ = self._plan(examples.train, chosen, fit_tokens)
        quarter_of_free = int(REPLAY_SHARE * free_memory([device_of(config)]))
        asked = config.replay_bytes
        self._replay_bytes = quarter_of_free if asked is None else asked
        self._passes: ReplayedPasses
        self._covariances: dict[str, Covariances]
        self._bases: dict[str, Eigenbasis]
        self._factors: CurvatureFactors

    def _plan(
        self, sequences: Sequence[Sequence[int]], rows: list[int], max_tokens: int
    ) -> tuple[list[TokenBatch], list[int]]:
        places = make_batches([len(sequences[row]) for row in rows], max_tokens=max_tokens)
        plan = [[rows[place] for place in batch] for batch in places]
        device = device_of(self._config)
        batches = [collate_rows(sequences, batch).to(device) for batch in plan]
        return batches, [row for batch in plan for row in batch]

    def run(self, stage: str) -> Any:
        """Do one stage and keep its result; scores [query, train] are returned."""
        with frozen(self._model):
            if stage == "covariances":
                self._passes = ReplayedPasses(
                    self._model, self._maps, self._sampled, self._replay_bytes
                )
                sums = self._pass(CovarianceSums(self._maps), self._for_bases)
                self._covariances = sums.finish()
            elif stage == "eigendecompositions":
                dtype = self._option.eigen_dtype
                self._bases = dict(decompose(self._covariances.items(), dtype=dtype))
            elif stage == "corrected eigenvalues":
                self._passes.keep_no_more()
                sums = self._pass(EigenvalueSums(self._maps, self._bases), self._train)
                self._passes.forget()
                self._factors = assemble("ekfac", self._bases, sums.finish(len(self._rows)))
            else:
                return self._score()
        return None

    def share_bases(self, other: "Ours") -> None:
        """Take another's eigendecompositions in place of the stage."""
        self._bases = other._bases

    def _pass(self, sums: Any, batches: Sequence[TokenBatch]) -> Any:
        for batch in batches:
            self._passes.run(tuple(batch.example_keys.tolist()), self._maps, batch, sums.add)
        return sums

    def _score(self) -> Tensor:
        loss, rank = self._given, self._option.rank
        bases = bases_to_keep(
            self._factors,
            num_queries=len(self._query_rows),
            num_rows=sum(batch.num_tokens for batch in self._scored),
            rank=rank,
        )
        queries, _ = collect_queries(
            self._model,
            self._maps,
            self._queries,
            loss,
            self._factors,
            Damping(),
            rank=rank,
            bases=bases,
        )
        scores = [
            score_batch(self._model, self._maps, batch, loss, queries).total
            for batch in self._scored
        ]
        together = torch.empty(len(self._query_rows), len(self._rows))
        together[torch.tensor(self._query_rows)[:, None], torch.tensor(self._rows)] = torch.cat(
            scores, dim=1
        )
        return together


def choose_tokens(config: Config) -> Config:
    """With the fastest tokens per batch where none are stated, tried on a quarter of the examples.

    The two passes of the fit share their batches, and so their tokens.
    """
    if config.fit_tokens and config.score_tokens:
        return config
    torch.set_num_threads(config.threads)
    quarter = quarter_of(config)
    budgets = [size * config.max_length for size in config.batch_sizes]
    fitting: dict[int, list[float]] = {budget: [] for budget in budgets}
    scoring: dict[int, list[float]] = {budget: [] for budget in budgets}
    with quick_garbage_collection():
        first = Ours(quarter)
        for stage in STAGES:  # not timed: first calls allocate
            first.run(stage)
        for budget in budgets * TRIALS:
            system = Ours(replace(quarter, fit_tokens=budget, score_tokens=budget))
            seconds = {}
            for stage in STAGES:
                if stage == "eigendecompositions":
                    system.share_bases(first)
                else:
                    seconds[stage], _ = timed(config, partial(system.run, stage))
            fitting[budget].append(seconds["covariances"] + seconds["corrected eigenvalues"])
            scoring[budget].append(seconds["scores"])
    return replace(
        config,
        fit_tokens=config.fit_tokens or min(budgets, key=lambda one: min(fitting[one])),
        score_tokens=config.score_tokens or min(budgets, key=lambda one: min(scoring[one])),
    )
