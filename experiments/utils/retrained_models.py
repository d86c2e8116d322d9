"""Retrain the new checkpoint on other documents, ask the queries, and keep what was answered.

A store is a folder with ``arguments.json`` and, for each model, ``models/HASH.npz``: the mask of
the documents it was trained on, the seed of its training, and what it answers to every query. The
weights are not kept. Every file is written whole, and a model depends on the arguments, its
documents and its seed alone: a run that was killed goes on, and ends as an undisturbed one.
"""

import hashlib
import io
import zipfile
from collections.abc import Callable, Sequence
from concurrent.futures import ProcessPoolExecutor, as_completed
from dataclasses import dataclass, fields, replace
from multiprocessing import get_context
from pathlib import Path
from typing import Any

import numpy as np
from hops.documents import read_documents
from hops.errors import HopsError
from hops.files import read_json, sha256_of, write_bytes, write_json
from hops.training_config import TrainConfig
from pydantic import TypeAdapter
from tqdm import tqdm
from utils.training_runs import CONFIG, WEIGHTS, read_record

_NOT_LOOKED_AT = ("overwrite", "output_dir", "seed_path", "checkpoint_fraction")
_KNOWN_BY_CONTENT = ("dataset_path", "model")


@dataclass(frozen=True)
class Question:
    """What a retrained model is asked: a prompt, and a number as its answer."""

    prompt: str
    answer: str


@dataclass(frozen=True)
class Answers:
    """What a model answers.

    Attributes:
        losses: the summed cross-entropy of each answer in nats [query].
        correct: whether the answer is the likeliest of the candidate numbers [query].
    """

    losses: np.ndarray
    correct: np.ndarray


@dataclass(frozen=True)
class Retraining:
    """One model: the lines of the data set that it is trained on, and the seed of its training."""

    lines: frozenset[int]
    seed: int

    @property
    def key(self) -> str:
        """A name that no other lines and seed have."""
        text = f"{self.seed} {sorted(self.lines)}"
        return hashlib.sha256(text.encode()).hexdigest()[:24]


def read_training(new_model: Path, *, dataset: Path, old_model: Path) -> TrainConfig:
    """How a checkpoint was trained: ``training_config.json`` beside its ``final_model`` folder.

    Documents and old checkpoint are looked for where the caller says, not where they lay when the
    checkpoint was trained, so that a world can be moved; they must be the same files.

    Args:
        new_model: the checkpoint.
        dataset: the documents that it was trained on.
        old_model: the checkpoint that its training began with.

    Raises:
        HopsError: There is no such file, it holds something else, or it names other files.
    """
    path = new_model.parent / CONFIG
    if not path.is_file():
        raise HopsError(
            f"{new_model}: expected the final_model folder of `hops train`, with {path.name} "
            "beside it, to know how to train again."
        )
    training, digests = read_record(path)
    was_read = (training.dataset_path, Path(training.model) / WEIGHTS)
    for before, now in zip(was_read, (dataset, old_model / WEIGHTS), strict=True):
        if not now.is_file() or digests.get(str(before)) != sha256_of(now):
            raise HopsError(f"{now}: not what {new_model} was trained from ({path.name}).")
    return replace(training, dataset_path=dataset, model=str(old_model))


@dataclass(frozen=True)
class RetrainingStore:
    """Retrained models of one world.

    Attributes:
        folder: where they are kept.
        training: how the new checkpoint was trained.
        questions: what each model is asked.
        num_documents: the lines of the data set.
    """

    folder: Path
    training: TrainConfig
    questions: tuple[Question, ...]
    num_documents: int

    @classmethod
    def open(
        cls, folder: Path, training: TrainConfig, questions: Sequence[Question]
    ) -> "RetrainingStore":
        """Open a store, or begin one.

        Raises:
            HopsError: The folder holds models of another world or another training, or a file
                that the training needs is not there.
        """
        store = cls(folder, training, tuple(questions), len(read_documents(training.dataset_path)))
        arguments, path = store._arguments(), folder / "arguments.json"
        if not path.is_file():
            write_json(path, arguments)
            return store
        known = read_json(path)
        names = [name for name in arguments if known.get(name) != arguments[name]]
        if names:
            raise HopsError(
                f"{folder}: holds models with another {', '.join(names)}; choose another folder."
            )
        return store

    def _arguments(self) -> dict[str, Any]:
        """What models depend on; defaults are left out, so that a new option changes nothing."""
        values = TypeAdapter(TrainConfig).dump_python(self.training, mode="json")
        usual = {one.name: one.default for one in fields(self.training)}
        given = {
            name: value
            for name, value in values.items()
            if name not in (*_NOT_LOOKED_AT, *_KNOWN_BY_CONTENT, "seed")
            and getattr(self.training, name) != usual[name]
        }
        return {
            "training": given,
            "documents": sha256_of(self.training.dataset_path),
            "old_model": sha256_of(Path(self.training.model) / WEIGHTS),
            "num_documents": self.num_documents,
            "questions": [[one.prompt, one.answer] for one in self.questions],
        }

    def train(self, jobs: Sequence[Retraining], *, workers: int = 1, progress: str) -> None:
        """Train what is missing; one file for each model as soon as it is there.

        Args:
            jobs: which models.
            workers: processes that train, one thread each; with one, this process does.
            progress: what the progress bar says.
        """
        missing = [job for job in dict.fromkeys(jobs) if not self._file(job).is_file()]
        wanted = len(set(jobs))
        with tqdm(total=wanted, initial=wanted - len(missing), desc=progress, unit="model") as bar:

            def keep(job: Retraining, answers: Answers) -> None:
                self._write(job, answers)
                bar.update()

            _retrain_all(self.training, missing, self.questions, workers, keep)

    def read(self, job: Retraining) -> Answers:
        """What one model answered.

        Raises:
            HopsError: The file is missing or damaged.
        """
        file = self._file(job)
        try:
            with np.load(file, allow_pickle=False) as content:
                return Answers(content["losses"], content["correct"])
        except (OSError, KeyError, ValueError, EOFError, zipfile.BadZipFile) as error:
            raise HopsError(f"{file}: not a retrained model ({error}); delete it.") from error

    def _file(self, job: Retraining) -> Path:
        return self.folder / "models" / f"{job.key}.npz"

    def _write(self, job: Retraining, answers: Answers) -> None:
        mask = np.zeros(self.num_documents, dtype=bool)
        mask[sorted(job.lines)] = True
        content = io.BytesIO()
        np.savez(content, mask=mask, seed=job.seed, losses=answers.losses, correct=answers.correct)
        write_bytes(self._file(job), content.getvalue())


def _retrain_all(
    training: TrainConfig,
    jobs: Sequence[Retraining],
    questions: Sequence[Question],
    workers: int,
    keep: Callable[[Retraining, Answers], None],
) -> None:
    if workers == 1 or len(jobs) < 2:
        _one_quiet_thread()
        for job in jobs:
            keep(job, retrain(training, job, questions))
        return
    # Not forked: a fork of a process whose torch has threads can hang.
    with ProcessPoolExecutor(
        workers, mp_context=get_context("spawn"), initializer=_one_quiet_thread
    ) as pool:
        running = {pool.submit(retrain, training, job, questions): job for job in jobs}
        try:
            for done in as_completed(running):
                keep(running[done], done.result())
        except BaseException:  # the other trainings would go on for nobody
            pool.shutdown(cancel_futures=True)
            raise


def _one_quiet_thread() -> None:
    import torch
    from transformers.utils import logging

    torch.set_num_threads(1)
    logging.set_verbosity_error()
    logging.disable_progress_bar()


def retrain(training: TrainConfig, job: Retraining, questions: Sequence[Question]) -> Answers:
    """Train the old checkpoint on some documents and ask the model."""
    from hops.train import train_in_memory

    model, tokenizer = train_in_memory(replace(training, seed=job.seed), job.lines)
    return ask(model, tokenizer, questions)


def ask(model: Any, tokenizer: Any, questions: Sequence[Question]) -> Answers:
    """The loss of every answer, and whether the model would choose it among the numbers.

    The candidates are the numbers from the smallest answer − 2 to the largest + 2, as in
    ``hops logit-eval``. Prompt and answer are encoded apart, as in an influence query, and run one
    at a time, so that no loss depends on what else is asked.

    Args:
        model: a causal language model.
        tokenizer: its tokenizer.
        questions: what to ask; each answer is a number after a space.
    """
    import torch
    from hops.number_scores import encode, score_candidates

    numbers = np.array([int(one.answer) for one in questions])
    candidates = list(range(numbers.min() - 2, numbers.max() + 3))
    prompts = [one.prompt for one in questions]
    chosen = score_candidates(model, tokenizer, prompts, candidates).argmax(dim=1).numpy()
    losses = []
    for question in questions:
        prompt, answer = encode(tokenizer, question.prompt), encode(tokenizer, question.answer)
        ids = torch.tensor([prompt + answer], device=model.device)
        with torch.no_grad():
            logits = model(input_ids=ids, use_cache=False).logits[0, len(prompt) - 1 : -1]
        log_probs = logits.float().log_softmax(-1)
        losses.append(-float(log_probs.gather(1, ids[0, len(prompt) :, None]).sum()))
    return Answers(np.array(losses), chosen + candidates[0] == numbers)
