"""EK-FAC by kronfluence, for bench_ekfac.py: its loops, below its layer that writes files.

The library is imported only where it is used.
"""

import warnings
from dataclasses import dataclass, replace
from typing import Any

import torch
from if_query.models import select_maps
from torch import Tensor
from utils.ekfac_measuring import fastest, quick_garbage_collection
from utils.ekfac_model import (
    STAGES,
    Config,
    build_model,
    collate_rows,
    make_sequences,
    quarter_of,
    summed_loss,
)


@dataclass(frozen=True)
class KronfluenceSetting:
    """How one stage of kronfluence runs."""

    batch_size: int
    by_length: bool
    iterative: bool = False


@dataclass(frozen=True)
class KronfluenceSettings:
    """How each stage of kronfluence that passes over data runs."""

    covariances: KronfluenceSetting
    lambdas: KronfluenceSetting
    scores: KronfluenceSetting

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

    def __init__(self, config: Config, settings: KronfluenceSettings) -> None:
        from kronfluence.analyzer import prepare_model
        from kronfluence.utils.state import State

        warnings.filterwarnings("ignore", ".*GradScaler.*", FutureWarning)
        self.settings = settings
        self._config = config
        self._state = State(cpu=config.device == "cpu")
        model = build_model(config)
        self._task = _task_of(list(select_maps(model).maps), config.seed)
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

    def _loader(
        self, setting: KronfluenceSetting, *, queries: bool = False
    ) -> tuple[Any, list[int]]:
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

        loader: torch.utils.data.DataLoader[int] = torch.utils.data.DataLoader(
            rows,  # type: ignore[arg-type]
            batch_size=setting.batch_size,
            collate_fn=collate,
        )
        return loader, rows


def choose_settings(config: Config) -> KronfluenceSettings:
    """The fastest setting of each stage, on a quarter of the examples."""
    torch.set_num_threads(config.threads)
    quarter = quarter_of(config)
    candidates = [
        KronfluenceSetting(size, by_length)
        for size in config.peer_batch_sizes
        for by_length in (False, True)
    ]
    first = KronfluenceSetting(config.peer_batch_sizes[0], by_length=True)
    system = Kronfluence(quarter, KronfluenceSettings(first, first, first))
    with quick_garbage_collection():
        for stage in STAGES:
            system.run(stage)
        fastest(quarter, system, "covariances", "covariances", candidates)
        best = fastest(quarter, system, "corrected eigenvalues", "lambdas", candidates)
        ways = (best, replace(best, iterative=True))
        fastest(quarter, system, "corrected eigenvalues", "lambdas", ways)
        fastest(quarter, system, "scores", "scores", candidates)
    return system.settings


def _task_of(tracked: list[str], seed: int) -> Any:
    from kronfluence.task import Task

    class SummedLoss(Task):  # type: ignore[misc]
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
