"""A bank of models retrained on random parts of the documents: masks and losses, on disk.

The folder holds ``arguments.json`` and, for each model, ``models/<subset>-<repeat>.npz`` with the
mask of the documents it was trained on, the seed of its training, and the loss of every query.
The weights are not kept. Each file is written whole, and a model depends on the arguments, its
subset and its repeat alone: a bank that was killed continues, and ends as an undisturbed one.
"""

import io
import zipfile
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
from hops.documents import read_documents
from hops.errors import HopsError
from hops.files import read_json, write_bytes, write_json
from hops.training_config import TrainConfig
from tqdm import tqdm

from utils.retrained_models import Answers, Retraining, fingerprint, retrain_all


@dataclass(frozen=True)
class BankPlan:
    """Which models a bank holds.

    Attributes:
        num_subsets: random parts of the documents.
        repeats: models trained on each of them, which differ in the seed of their training.
        share: the share of the documents in a part.
        seed: of the parts and the trainings.
    """

    num_subsets: int = 64
    repeats: int = 1
    share: float = 0.5
    seed: int = 0

    def check(self) -> None:
        """Say what is out of range.

        Raises:
            HopsError: A value is out of range.
        """
        if self.num_subsets < 2 or self.repeats < 1:
            raise HopsError(
                f"A bank needs at least 2 subsets and 1 repeat, not {self.num_subsets} "
                f"and {self.repeats}."
            )
        if not 0 < self.share < 1:
            raise HopsError(f"The share of a subset must be between 0 and 1, not {self.share}.")

    def mask(self, subset: int, num_documents: int) -> np.ndarray:
        """The documents of one part: exactly the share of them, drawn without replacement."""
        rng = np.random.default_rng([self.seed, subset])
        mask = np.zeros(num_documents, dtype=bool)
        mask[rng.permutation(num_documents)[: round(self.share * num_documents)]] = True
        return mask

    def training_seed(self, subset: int, repeat: int) -> int:
        """The seed of one training; no two models of a bank share it."""
        return int(np.random.default_rng([self.seed, subset, repeat + 1]).integers(2**31))


@dataclass(frozen=True)
class Bank:
    """The models of a bank, one for each subset and repeat.

    Attributes:
        masks: the documents that each subset holds [subset, document].
        losses: the answer's loss in nats [subset, repeat, query].
        correct: whether the answer is right [subset, repeat, query].
    """

    masks: np.ndarray
    losses: np.ndarray
    correct: np.ndarray


def make_bank(
    folder: Path,
    plan: BankPlan,
    training: TrainConfig,
    queries: Sequence[dict[str, Any]],
    *,
    workers: int = 1,
) -> Bank:
    """Train what is missing of a bank and read it.

    Args:
        folder: where the bank is, or will be. More subsets or repeats may be asked for later.
        plan: which models.
        training: how the new checkpoint was trained.
        queries: what each model is asked.
        workers: processes that train, one thread each.

    Raises:
        HopsError: The folder holds a bank with other arguments, or an argument is unusable.
    """
    plan.check()
    num_documents = len(read_documents(training.dataset_path))
    arguments = {
        "share": plan.share,
        "seed": plan.seed,
        "num_documents": num_documents,
        "queries": [[query["prompt"], query["completion"]] for query in queries],
        **fingerprint(training),
    }
    path = folder / "arguments.json"
    if path.is_file():
        known = read_json(path)
        names = [name for name in arguments if known.get(name) != arguments[name]]
        if names:
            raise HopsError(
                f"{folder}: holds a bank with another {', '.join(names)}; choose another folder."
            )
    else:
        write_json(path, arguments)
    jobs, files = [], []
    # All subsets once before any is repeated, so that a bank cut short is of use.
    for repeat in range(plan.repeats):
        for subset in range(plan.num_subsets):
            file = _file(folder, subset, repeat)
            if not file.is_file():
                lines = np.flatnonzero(plan.mask(subset, num_documents)).tolist()
                jobs.append(Retraining(frozenset(lines), plan.training_seed(subset, repeat)))
                files.append(file)
    with tqdm(
        total=plan.num_subsets * plan.repeats,
        initial=plan.num_subsets * plan.repeats - len(jobs),
        desc="retraining on subsets",
        unit="model",
    ) as bar:

        def save(index: int, answers: Answers) -> None:
            _write(files[index], jobs[index], num_documents, answers)
            bar.update()

        retrain_all(training, jobs, queries, workers=workers, done=save)
    return read_bank(folder, plan)


def read_bank(folder: Path, plan: BankPlan) -> Bank:
    """Read the models that a plan names.

    Raises:
        HopsError: A model is missing or its file is damaged.
    """
    rows = [
        [_read(_file(folder, subset, repeat)) for repeat in range(plan.repeats)]
        for subset in range(plan.num_subsets)
    ]
    return Bank(
        masks=np.array([row[0]["mask"] for row in rows]),
        losses=np.array([[one["losses"] for one in row] for row in rows]),
        correct=np.array([[one["correct"] for one in row] for row in rows]),
    )


def _file(folder: Path, subset: int, repeat: int) -> Path:
    return folder / "models" / f"{subset:04d}-{repeat}.npz"


def _write(file: Path, job: Retraining, num_documents: int, answers: Answers) -> None:
    mask = np.zeros(num_documents, dtype=bool)
    mask[sorted(job.lines)] = True
    buffer = io.BytesIO()
    np.savez(
        buffer, mask=mask, seed=job.seed, losses=answers.losses, correct=answers.correct
    )
    write_bytes(file, buffer.getvalue())


def _read(file: Path) -> dict[str, np.ndarray]:
    try:
        with np.load(file, allow_pickle=False) as content:
            return {name: content[name] for name in ("mask", "losses", "correct")}
    except (OSError, KeyError, ValueError, zipfile.BadZipFile) as error:
        raise HopsError(f"{file}: not a model of a bank ({error}); delete it.") from error
