"""EK-FAC by bergson, for bench_ekfac.py: the collectors and functions that its pipeline runs.

    covariances             CovarianceCollector, batches by allocate_batches
    eigendecompositions     eigendecompose_owned, from the covariances in memory (float64)
    corrected eigenvalues   LambdaCollector, from the eigenvectors in memory
    scores                  query gradients by InMemoryCollector, FactoredPreconditioner, then a
                            pass over the training examples with a Scorer

All in this process, one after another, as its own pipeline composes them, with two differences,
both in its favour: the loss is ours (its own draws labels by torch.multinomial, slower and by the
global generator), and queries stay in memory between gradient, preconditioning and scores, where
its pipeline has files. Covariances, eigenvectors and corrected eigenvalues are written by the
collectors whatever one does; they go to a folder in /dev/shm, so to memory that is not counted as
the process's, and only the last are read back.

The fitted Fisher is ours but for one thing: its covariances leave out the last token of every
sequence. The eigenbases are therefore slightly different ones, and so are the scores.

The library is imported only where it is used.
"""

import io
import logging
import tempfile
from collections.abc import Iterator
from contextlib import contextmanager, redirect_stderr
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import torch
from if_query.models import select_maps
from torch import Tensor
from utils.ekfac_measuring import fastest, quick_garbage_collection
from utils.ekfac_model import (
    STAGES,
    Config,
    build_model,
    label_losses,
    make_sequences,
    quarter_of,
)


@dataclass(frozen=True)
class BergsonSettings:
    """Tokens per batch, padding counted, of each stage that passes over data."""

    covariances: int
    lambdas: int
    scores: int

    def describe(self) -> str:
        """For a person."""
        return (
            f"covariances: {self.covariances} tokens per batch; lambdas: {self.lambdas}; "
            f"scores: {self.scores}"
        )


class Bergson:
    """The stages of bergson's EK-FAC on the same model, data and sampled labels."""

    def __init__(self, config: Config, settings: BergsonSettings) -> None:
        from bergson.config.config import IndexConfig
        from bergson.gradients import GradientProcessor

        self.settings = settings
        self._seed = config.seed
        self._model = build_model(config).requires_grad_(False)
        # As its own set-up does, so that autograd reaches every map.
        self._model.get_input_embeddings().requires_grad_(True)
        prefix = f"{self._model.base_model_prefix}."
        self._targets = {name.removeprefix(prefix) for name in select_maps(self._model).maps}
        self._train, self._queries = (
            _dataset(make_sequences(config, queries=queries)) for queries in (False, True)
        )
        memory = Path("/dev/shm")
        self._folder = tempfile.TemporaryDirectory(dir=memory if memory.is_dir() else None)
        self._index = IndexConfig(run_path=self._folder.name, loss_reduction="sum")
        Path(self._index.partial_run_path).mkdir(parents=True, exist_ok=True)
        self._processor = GradientProcessor()
        self._covariances: Any = None
        self._vectors: tuple[dict[str, Tensor], dict[str, Tensor]]
        self._lambdas: dict[str, Tensor]

    def run(self, stage: str) -> Any:
        """Do one stage and keep its result; scores [query, train] are returned."""
        with _silence():
            if stage == "covariances":
                self._covariances = self._fit_covariances()
            elif stage == "eigendecompositions":
                self._vectors = (self._decompose("A"), self._decompose("S"))
            elif stage == "corrected eigenvalues":
                self._lambdas = self._fit_lambdas()
            else:
                return self._score()
        return None

    def _fit_covariances(self) -> Any:
        from bergson.hessians.kfac import CovarianceCollector

        collector = CovarianceCollector(
            **self._common(), path=self._folder.name, dtype=torch.float32
        )
        self._pass(collector, self._train, self.settings.covariances, sampled=True)
        return collector

    def _decompose(self, side: str) -> dict[str, Tensor]:
        from bergson.hessians.eigenvectors import eigendecompose_owned

        fitted = self._covariances
        vectors, _ = eigendecompose_owned(
            getattr(fitted, f"{side}_cov_dict"),
            getattr(fitted, f"{side}_shapes"),
            fitted.owners,
            sum(fitted.num_positions.values()),
            str(Path(self._folder.name) / f"eigen_{side}"),
            torch.float32,
            num_positions=fitted.num_positions,
        )
        found: dict[str, Tensor] = vectors
        return found

    def _fit_lambdas(self) -> dict[str, Tensor]:
        from bergson.hessians.eigenvectors import LambdaCollector
        from safetensors.torch import load_file

        collector = LambdaCollector(
            **self._common(),
            path=self._folder.name,
            dtype=torch.float32,
            num_documents=len(self._train),
            eigenvectors=self._vectors,
        )
        self._pass(collector, self._train, self.settings.lambdas, sampled=True)
        written = Path(self._folder.name) / collector.output_subdir / "shard_0.safetensors"
        return load_file(written, device=str(self._model.device))

    def _score(self) -> Tensor:
        from bergson.collector.in_memory_collector import InMemoryCollector
        from bergson.config import InversionConfig
        from bergson.hessians.preconditioner import FactoredPreconditioner
        from bergson.score.score_writer import InMemorySequenceScoreWriter
        from bergson.score.scorer import Scorer

        common = {**self._common(), "cfg": self._index}
        asked = InMemoryCollector(**common, data=self._queries)
        self._pass(asked, self._queries, self.settings.scores, sampled=False)
        preconditioner = FactoredPreconditioner(
            *self._vectors,
            self._lambdas,
            inversion_cfg=InversionConfig("damped_inverse", damping_factor=0.1),
            sharded=False,
        )
        queries = {
            name: preconditioner.apply({name: found})[name]
            for name, found in asked.gradients.items()
        }
        del asked
        writer = InMemorySequenceScoreWriter(len(self._train), len(self._queries))
        scorer = Scorer(queries, list(queries), writer, self._model.device, torch.float32)
        given = InMemoryCollector(**common, data=self._train, scorer=scorer)
        self._pass(given, self._train, self.settings.scores, sampled=False)
        scores: Tensor = writer.scores.T
        return scores

    def _common(self) -> dict[str, Any]:
        return {
            "model": self._model.base_model,
            "target_modules": self._targets,
            "processor": self._processor,
        }

    def _pass(self, collector: Any, data: Any, max_tokens: int, *, sampled: bool) -> None:
        from bergson.collector.collector import CollectorComputer
        from bergson.data import allocate_batches

        computer = CollectorComputer(
            model=self._model,
            data=data,
            collector=collector,
            batches=allocate_batches(data["length"][:], max_tokens),
            cfg=self._index,
        )

        def forward_backward(model: Any, ids: Tensor, labels: Tensor, batch: Any) -> Tensor:
            predicts = torch.zeros_like(ids, dtype=torch.bool)
            predicts[:, :-1] = labels[:, 1:] != -100
            keys = torch.tensor(batch["key"])
            losses = label_losses(model, ids, predicts, (keys, self._seed) if sampled else None)
            losses.sum().backward()
            model.zero_grad()
            rows = predicts.nonzero()[:, 0]
            return losses.new_zeros(len(ids)).index_add_(0, rows, losses.detach())

        computer.forward_backward = forward_backward
        computer.run_with_collector_hooks()


def choose_settings(config: Config) -> BergsonSettings:
    """The fastest batch size of each stage, on a quarter of the examples."""
    torch.set_num_threads(config.threads)
    quarter = quarter_of(config)
    budgets = [size * config.max_length for size in config.peer_batch_sizes]
    system = Bergson(quarter, BergsonSettings(*[budgets[0]] * 3))
    with quick_garbage_collection():
        for stage in STAGES:
            system.run(stage)
        fastest(quarter, system, "covariances", "covariances", budgets)
        fastest(quarter, system, "corrected eigenvalues", "lambdas", budgets)
        fastest(quarter, system, "scores", "scores", budgets)
    return system.settings


@contextmanager
def _silence() -> Iterator[None]:
    """Without its progress bars, and its lines of log, which it turns on at every call."""
    before = logging.root.manager.disable
    logging.disable(logging.INFO)
    try:
        with redirect_stderr(io.StringIO()):
            yield
    finally:
        logging.disable(before)


def _dataset(sequences: list[list[int]]) -> Any:
    from datasets import Dataset

    lengths = [len(ids) for ids in sequences]
    return Dataset.from_dict(
        {"input_ids": sequences, "length": lengths, "key": list(range(len(sequences)))}
    )
