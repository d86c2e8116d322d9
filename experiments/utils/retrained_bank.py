"""A bank: models retrained on random parts of the documents."""

from dataclasses import asdict, dataclass
from pathlib import Path

import numpy as np
from hops.errors import HopsError
from hops.files import read_json, write_json
from utils.attribution_task import AttributionTask
from utils.retrained_models import Question, Retraining, RetrainingStore, read_training

PLAN_FILE = "bank.json"
"""Beside the models: which of them are the bank, once it is whole."""


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
        if self.num_subsets < 3 or self.repeats < 1:
            raise HopsError(
                "A bank needs at least 3 subsets and 1 repeat, "
                f"not {self.num_subsets} and {self.repeats}."
            )
        if not 0 < self.share < 1:
            raise HopsError(f"The share of a subset must be between 0 and 1, not {self.share}.")

    def size(self, num_documents: int) -> int:
        """How many documents a part holds.

        Raises:
            HopsError: None, or all of them.
        """
        size = round(self.share * num_documents)
        if not 0 < size < num_documents:
            raise HopsError(f"A share of {self.share} of {num_documents} documents is {size}.")
        return size

    def mask(self, subset: int, num_documents: int) -> np.ndarray:
        """The documents of one part: exactly the share of them, drawn without replacement."""
        rng = np.random.default_rng([self.seed, subset])
        mask = np.zeros(num_documents, dtype=bool)
        mask[rng.permutation(num_documents)[: self.size(num_documents)]] = True
        return mask

    def job(self, subset: int, repeat: int, num_documents: int) -> Retraining:
        """One model. A larger bank with the same seed holds the smaller one's models."""
        lines = np.flatnonzero(self.mask(subset, num_documents)).tolist()
        rng = np.random.default_rng([self.seed, subset, repeat + 1])
        return Retraining(frozenset(lines), int(rng.integers(2**31)))


@dataclass(frozen=True)
class Bank:
    """What the models of a bank answer.

    Attributes:
        masks: the documents that each subset holds [subset, document].
        losses: the answer's loss in nats [subset, repeat, query].
        correct: whether the answer is right [subset, repeat, query].
    """

    masks: np.ndarray
    losses: np.ndarray
    correct: np.ndarray


def make_bank(store: RetrainingStore, plan: BankPlan, *, workers: int = 1) -> Bank:
    """Train what is missing of a bank and read it.

    Args:
        store: where the models are kept.
        plan: which models.
        workers: processes that train, one thread each.

    Raises:
        HopsError: A number of the plan is out of range, or a file is damaged.
    """
    plan.check()
    size = store.num_documents
    subsets, repeats = range(plan.num_subsets), range(plan.repeats)
    # Every subset once before any is repeated, so that a bank cut short is of use.
    jobs = [plan.job(subset, repeat, size) for repeat in repeats for subset in subsets]
    store.train(jobs, workers=workers, progress="retraining on subsets")
    write_json(store.folder / PLAN_FILE, asdict(plan))
    return _read(store, plan)


def open_store(task: AttributionTask, folder: Path) -> RetrainingStore:
    """Retrained models of a task's new checkpoint, asked the task's queries.

    Raises:
        HopsError: How it was trained is not known, or not from the task's documents and old
            checkpoint.
    """
    training = read_training(
        Path(str(task.arguments.new)),
        dataset=task.arguments.dataset,
        old_model=Path(str(task.arguments.old)),
    )
    questions = [Question(query.prompt, query.answer) for query in task.queries]
    return RetrainingStore.open(folder, training, questions)


def read_bank(folder: Path, task: AttributionTask) -> Bank:
    """Read a bank that is whole, after checking that it is about this task.

    Raises:
        HopsError: There is none, or it is of another world.
    """
    if not (folder / PLAN_FILE).is_file():
        raise HopsError(f"{folder}: holds no whole bank; expected the output folder of lds.py.")
    return _read(open_store(task, folder), BankPlan(**read_json(folder / PLAN_FILE)))


def _read(store: RetrainingStore, plan: BankPlan) -> Bank:
    size = store.num_documents
    subsets, repeats = range(plan.num_subsets), range(plan.repeats)
    answers = [[store.read(plan.job(one, repeat, size)) for repeat in repeats] for one in subsets]
    return Bank(
        masks=np.array([plan.mask(subset, size) for subset in subsets]),
        losses=np.array([[one.losses for one in row] for row in answers]),
        correct=np.array([[one.correct for one in row] for row in answers]),
    )
