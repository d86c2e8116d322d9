"""What bench_ekfac.py measures: EK-FAC by math_utils and by kronfluence, on one model and data.

Both have the stages :data:`STAGES`, in memory and without disk. kronfluence is imported only
where it is used.
"""

import warnings
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any, Literal, Protocol

import torch
from if_query.batching import make_batches
from if_query.models import LanguageModelLoss, select_maps
from math_utils.capture import frozen
from math_utils.curvature import (
    Covariances,
    CovarianceSums,
    CurvatureFactors,
    Damping,
    Eigenbasis,
    EigenvalueSums,
    assemble,
    backward_pass,
    collect_queries,
    decompose,
    score_batch,
)
from math_utils.language_modeling import TokenBatch, sample_labels
from torch import Tensor
from transformers import AutoModelForCausalLM, Olmo2Config

STAGES = ("covariances", "eigendecompositions", "corrected eigenvalues", "scores")
PRESETS = {"small": (4, 256), "large": (8, 512)}
"""Layers and width."""
VOCABULARY = 2048
NUM_HEADS = 4


@dataclass(frozen=True)
class Config:
    """Time and peak memory of every stage of EK-FAC influence."""

    preset: Literal["small", "large"] = "small"
    """4 layers of width 256, or 8 of width 512; MLPs 4 times as wide."""
    num_layers: int | None = None
    """Layers, in place of the preset's."""
    width: int | None = None
    """Width of the model, in place of the preset's; that of its MLPs is 4 times as much."""
    num_examples: int = 256
    """Training examples, which are also what curvature is fitted on."""
    num_queries: int = 24
    """Queries."""
    min_length: int = 16
    """Lengths are uniformly random from here."""
    max_length: int = 128
    """Lengths are uniformly random up to here."""
    max_tokens: int = 1024
    """Our token budget per batch, padding counted."""
    peer: bool = True
    """Compare with kronfluence where it is installed."""
    peer_batch_sizes: tuple[int, ...] = (8, 16, 32)
    """Batch sizes that kronfluence's trial goes through."""
    repeats: int = 3
    """Rounds; medians over them are reported."""
    threads: int = 2
    """CPU threads of torch."""
    device: Literal["cpu", "cuda"] | None = None
    """CUDA where there is one, otherwise the CPU."""
    seed: int = 0
    """Of weights, lengths, tokens and sampled labels."""
    output: Path = Path("results/bench_ekfac.json")
    """Where to write the rows."""


class System(Protocol):
    """One implementation; each stage uses the results of those before it."""

    def run(self, stage: str) -> Any:
        """Do one stage and keep its result; scores [query, train] are returned."""


# Model and data


def build_model(config: Config) -> Any:
    """The same weights at every call."""
    layers, width = sizes_of(config)
    with torch.random.fork_rng():
        torch.manual_seed(config.seed)
        model = AutoModelForCausalLM.from_config(
            Olmo2Config(
                vocab_size=VOCABULARY,
                hidden_size=width,
                intermediate_size=4 * width,
                num_hidden_layers=layers,
                num_attention_heads=NUM_HEADS,
                max_position_embeddings=config.max_length,
                eos_token_id=1,
            ),
            dtype=torch.float32,
        )
    return model.to(config.device).eval()


def make_sequences(config: Config, *, queries: bool = False) -> list[list[int]]:
    """Random tokens of uniformly random lengths."""
    generator = torch.Generator().manual_seed(config.seed + queries)
    count = config.num_queries if queries else config.num_examples
    bounds = (config.min_length, config.max_length + 1)
    lengths = torch.randint(*bounds, (count,), generator=generator).tolist()
    return [torch.randint(3, VOCABULARY, (n,), generator=generator).tolist() for n in lengths]


def collate_rows(sequences: Sequence[Sequence[int]], rows: Sequence[int]) -> TokenBatch:
    """Some of the sequences, every token of them a label."""
    chosen = [sequences[row] for row in rows]
    return TokenBatch.collate(chosen, chosen, rows)


def collate_in_order(config: Config, batch_size: int) -> list[TokenBatch]:
    """The training examples in their own, random order."""
    sequences, rows = make_sequences(config), range(config.num_examples)
    return [
        collate_rows(sequences, rows[first : first + batch_size]).to(device_of(config))
        for first in range(0, len(rows), batch_size)
    ]


def plain_pass(model: Any, batches: Sequence[TokenBatch]) -> None:
    """What an epoch of training costs without the optimizer."""
    for batch in batches:
        model.zero_grad(set_to_none=True)
        summed_loss(model, batch.input_ids, batch.label_positions()).backward()
    model.zero_grad(set_to_none=True)


def summed_loss(
    model: Any, input_ids: Tensor, predicts: Tensor, sampled: tuple[Tensor, int] | None = None
) -> Tensor:
    """Summed next-token cross-entropy where a position predicts a label.

    Labels are the tokens, or those that our :func:`sample_labels` draws for (keys, seed), so that
    both systems fit the same Fisher. (torch.multinomial takes 6 times as long on a CPU.)
    """
    logits = model(input_ids=input_ids, use_cache=False).logits[predicts]
    if sampled is None:
        targets = input_ids[:, 1:][predicts[:, :-1]]
    else:
        keys, seed = sampled
        targets = sample_labels(logits, predicts.nonzero()[:, 0], keys, seed=seed)
    return torch.nn.functional.cross_entropy(logits, targets, reduction="sum")


# The two systems


class Ours:
    """The stages of math_utils.curvature, on batches made by if_query."""

    def __init__(self, config: Config) -> None:
        self._model = build_model(config)
        self._maps = select_maps(self._model).maps
        self._sampled = LanguageModelLoss("sampled", seed=config.seed)
        self._train, self._rows = self._plan(config, queries=False)
        self._queries, self._query_rows = self._plan(config, queries=True)
        self._covariances: dict[str, Covariances]
        self._bases: dict[str, Eigenbasis]
        self._factors: CurvatureFactors

    def _plan(self, config: Config, *, queries: bool) -> tuple[list[TokenBatch], list[int]]:
        sequences = make_sequences(config, queries=queries)
        plan = make_batches([len(ids) for ids in sequences], max_tokens=config.max_tokens)
        batches = [collate_rows(sequences, rows).to(device_of(config)) for rows in plan]
        return batches, [row for rows in plan for row in rows]

    def run(self, stage: str) -> Any:
        """Do one stage and keep its result; scores [query, train] are returned."""
        with frozen(self._model):
            if stage == "covariances":
                self._covariances = self._pass(CovarianceSums(self._maps)).finish()
            elif stage == "eigendecompositions":
                self._bases = dict(decompose(self._covariances.items()))
            elif stage == "corrected eigenvalues":
                sums = self._pass(EigenvalueSums(self._maps, self._bases))
                self._factors = assemble("ekfac", self._bases, sums.finish(len(self._rows)))
            else:
                return self._score()
        return None

    def _pass(self, sums: Any) -> Any:
        for batch in self._train:
            backward_pass(self._model, self._maps, batch, self._sampled, sums.add)
        return sums

    def _score(self) -> Tensor:
        loss = LanguageModelLoss()
        queries, _ = collect_queries(
            self._model, self._maps, self._queries, loss, self._factors, Damping()
        )
        scores = [
            score_batch(self._model, self._maps, batch, loss, queries).total
            for batch in self._train
        ]
        together = torch.empty(len(self._query_rows), len(self._rows))
        together[torch.tensor(self._query_rows)[:, None], torch.tensor(self._rows)] = torch.cat(
            scores, dim=1
        )
        return together


@dataclass(frozen=True)
class PeerSetting:
    """How one stage of kronfluence runs."""

    batch_size: int
    by_length: bool
    iterative: bool = False


@dataclass(frozen=True)
class PeerSettings:
    """How each stage of kronfluence that passes over data runs."""

    covariances: PeerSetting
    lambdas: PeerSetting
    scores: PeerSetting

    def describe(self) -> str:
        """For a person."""
        stages = {"covariances": self.covariances, "lambdas": self.lambdas, "scores": self.scores}
        return "; ".join(
            f"{stage}: batches of {one.batch_size}"
            + (", sorted by length" if one.by_length else ", in random order")
            + (", iterative" if one.iterative else "")
            for stage, one in stages.items()
        )


class Kronfluence:
    """The loops of kronfluence, below its layer that writes files."""

    def __init__(self, config: Config, settings: PeerSettings) -> None:
        from kronfluence.analyzer import prepare_model
        from kronfluence.utils.state import State

        warnings.filterwarnings("ignore", ".*GradScaler.*", FutureWarning)
        self.settings = settings
        self._config = config
        self._state = State(cpu=config.device == "cpu")
        model = build_model(config)
        self._task = _peer_task(list(select_maps(model).maps), config.seed)
        self._model = prepare_model(model, self._task)
        self._covariances: Any = None
        self._eigen: Any = None
        self._lambdas: Any = None

    def run(self, stage: str) -> Any:
        """Do one stage and keep its result; scores [query, train] are returned."""
        from kronfluence.arguments import FactorArguments
        from kronfluence.factor.covariance import fit_covariance_matrices_with_loader
        from kronfluence.factor.eigen import (
            fit_lambda_matrices_with_loader,
            perform_eigendecomposition,
        )

        common = {"model": self._model, "state": self._state, "disable_tqdm": True}
        arguments = FactorArguments(strategy="ekfac")
        if stage == "covariances":
            loader, _ = self._loader(self.settings.covariances)
            _, self._covariances = fit_covariance_matrices_with_loader(
                **common, task=self._task, loader=loader, factor_args=arguments
            )
        elif stage == "eigendecompositions":
            self._eigen = perform_eigendecomposition(
                self._covariances, factor_args=arguments, **common
            )
        elif stage == "corrected eigenvalues":
            setting = self.settings.lambdas
            loader, _ = self._loader(setting)
            arguments.use_iterative_lambda_aggregation = setting.iterative
            _, self._lambdas = fit_lambda_matrices_with_loader(
                **common,
                task=self._task,
                loader=loader,
                factor_args=arguments,
                eigen_factors=self._eigen,
            )
        else:
            return self._score(common, arguments)
        return None

    def _score(self, common: dict[str, Any], arguments: Any) -> Tensor:
        from kronfluence.arguments import ScoreArguments
        from kronfluence.score.pairwise import compute_pairwise_scores_with_loaders

        setting = self.settings.scores
        train, rows = self._loader(setting)
        queries, query_rows = self._loader(setting, queries=True)
        scores = compute_pairwise_scores_with_loaders(
            **common,
            loaded_factors={**self._eigen, **self._lambdas},
            task=self._task,
            query_loader=queries,
            per_device_query_batch_size=setting.batch_size,
            train_loader=train,
            score_args=ScoreArguments(
                damping_factor=None, query_gradient_accumulation_steps=len(queries)
            ),
            factor_args=arguments,
            tracked_module_names=None,
        )["all_modules"]
        together = torch.empty_like(scores)
        together[torch.tensor(query_rows)[:, None], torch.tensor(rows)] = scores
        return together

    def _loader(self, setting: PeerSetting, *, queries: bool = False) -> tuple[Any, list[int]]:
        sequences = make_sequences(self._config, queries=queries)
        rows = list(range(len(sequences)))
        if setting.by_length:
            rows.sort(key=lambda row: -len(sequences[row]))

        def collate(chosen: list[int]) -> dict[str, Tensor]:
            batch = collate_rows(sequences, chosen)
            return {
                "input_ids": batch.input_ids,
                "mask": batch.attention_mask,
                "predicts": batch.label_positions(),
                "keys": batch.example_keys,
            }

        loader = torch.utils.data.DataLoader(
            rows,  # type: ignore[arg-type]
            batch_size=setting.batch_size,
            collate_fn=collate,
        )
        return loader, rows


def _peer_task(tracked: list[str], seed: int) -> Any:
    from kronfluence.task import Task

    class SummedLoss(Task):
        """Summed cross-entropy; labels drawn from the model where kronfluence asks for it."""

        def compute_train_loss(self, batch: Any, model: Any, sample: bool = False) -> Tensor:
            sampled = (batch["keys"], seed) if sample else None
            return summed_loss(model, batch["input_ids"], batch["predicts"], sampled)

        def compute_measurement(self, batch: Any, model: Any) -> Tensor:
            return summed_loss(model, batch["input_ids"], batch["predicts"])

        def get_influence_tracked_modules(self) -> list[str]:
            return tracked

        def get_attention_mask(self, batch: Any) -> Tensor:
            mask: Tensor = batch["mask"]
            return mask

    return SummedLoss()


def device_of(config: Config) -> torch.device:
    """Where the models are."""
    return torch.device(config.device or "cpu")


def sizes_of(config: Config) -> tuple[int, int]:
    """Layers and width of the model."""
    layers, width = PRESETS[config.preset]
    return config.num_layers or layers, config.width or width
