"""Retrain the new checkpoint on other documents, and see what that does to the answers."""

from collections.abc import Callable, Collection, Sequence
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any

import numpy as np
import torch
from hops.errors import HopsError
from hops.files import read_json, sha256_of
from hops.number_scores import score_candidates
from hops.train import CONFIG_FILE, train_in_memory
from hops.training_config import TrainConfig
from pydantic import TypeAdapter, ValidationError
from transformers import PreTrainedModel, PreTrainedTokenizerFast


@dataclass(frozen=True)
class Answers:
    """What a model answers to the queries.

    Attributes:
        losses: the summed cross-entropy of each query's answer in nats [query].
        correct: whether the answer is the likeliest of the candidate numbers [query].
    """

    losses: np.ndarray
    correct: np.ndarray


@dataclass(frozen=True)
class Retraining:
    """One job: which lines of the data set to train on, and with which seed."""

    lines: frozenset[int]
    seed: int


def read_training(new_model: Path) -> TrainConfig:
    """How a checkpoint was trained: ``training_config.json`` beside its ``final_model`` folder.

    Raises:
        HopsError: There is no such file, or it holds something else.
    """
    path = new_model.parent / CONFIG_FILE
    if not path.is_file():
        raise HopsError(
            f"{new_model}: expected the final_model folder of `hops train`, with {CONFIG_FILE} "
            "beside it, to know how to train again."
        )
    try:
        return TypeAdapter(TrainConfig).validate_python(read_json(path)["arguments"])
    except (KeyError, TypeError, ValidationError) as error:
        raise HopsError(f"{path}: not the arguments of `hops train`.") from error


def fingerprint(training: TrainConfig) -> dict[str, Any]:
    """The arguments that retrained models depend on, and what the files they name hold."""
    arguments = TypeAdapter(TrainConfig).dump_python(training, mode="json")
    # What a retraining does not look at, and its seed, which is each model's own.
    for name in ("overwrite", "output_dir", "seed_path", "checkpoint_fraction", "seed"):
        del arguments[name]
    return {
        "training": arguments,
        "sha256": {
            "documents": sha256_of(training.dataset_path),
            "old_model": sha256_of(Path(training.model) / "model.safetensors"),
        },
    }


def retrain(
    training: TrainConfig, job: Retraining, queries: Sequence[dict[str, Any]]
) -> Answers:
    """Train the old checkpoint on some documents and ask the queries."""
    model, tokenizer = train_in_memory(replace(training, seed=job.seed), job.lines)
    return ask(model, tokenizer, queries)


def ask(
    model: PreTrainedModel, tokenizer: PreTrainedTokenizerFast, queries: Sequence[dict[str, Any]]
) -> Answers:
    """The loss of every answer, and whether the model would choose it among the numbers.

    Args:
        model: a causal language model.
        tokenizer: its tokenizer.
        queries: rows with ``prompt``, ``completion`` and ``constant``; the candidates are the
            numbers from the smallest constant − 2 to the largest + 2, as in ``hops logit-eval``.
    """
    constants = [int(query["constant"]) for query in queries]
    candidates = list(range(min(constants) - 2, max(constants) + 3))
    scores = score_candidates(
        model, tokenizer, [query["prompt"] for query in queries], candidates
    ).numpy()
    truth = np.array(constants) - candidates[0]
    losses = answer_losses(model, tokenizer, queries)
    return Answers(losses, scores.argmax(axis=1) == truth)


@torch.no_grad()
def answer_losses(
    model: PreTrainedModel, tokenizer: PreTrainedTokenizerFast, queries: Sequence[dict[str, Any]]
) -> np.ndarray:
    """Summed cross-entropy in nats of each completion, given its prompt [query].

    Prompt and completion are encoded apart and one at a time, as ``run-query`` does, so that no
    padding enters and the loss does not depend on what else is asked.
    """
    losses = []
    for query in queries:
        prompt, answer = (
            tokenizer.encode(query[name], add_special_tokens=False)
            for name in ("prompt", "completion")
        )
        ids = torch.tensor([prompt + answer], device=model.device)
        logits = model(input_ids=ids, use_cache=False).logits[0, len(prompt) - 1 : -1]
        losses.append(
            float(torch.nn.functional.cross_entropy(logits.float(), ids[0, len(prompt) :], reduction="sum"))
        )
    return np.array(losses)


def retrain_all(
    training: TrainConfig,
    jobs: Sequence[Retraining],
    queries: Sequence[dict[str, Any]],
    *,
    workers: int,
    done: Callable[[int, Answers], None],
) -> None:
    """Run every job, with ``workers`` processes of one thread each, and hand each result over.

    Args:
        training: how the checkpoint was trained.
        jobs: what to train on.
        queries: what to ask.
        workers: processes; with one, the jobs run in this process.
        done: told the index of a job and its answers, in any order.
    """
    if workers == 1:
        for index, job in enumerate(jobs):
            done(index, retrain(training, job, queries))
        return
    from concurrent.futures import ProcessPoolExecutor, as_completed
    from multiprocessing import get_context

    # Not forked: a fork of a process whose torch has threads can hang.
    with ProcessPoolExecutor(
        workers, mp_context=get_context("spawn"), initializer=torch.set_num_threads, initargs=(1,)
    ) as pool:
        futures = {
            pool.submit(retrain, training, job, queries): index for index, job in enumerate(jobs)
        }
        try:
            for future in as_completed(futures):
                done(futures[future], future.result())
        except BaseException:
            pool.shutdown(cancel_futures=True)
            raise


def all_but(num_lines: int, removed: Collection[int]) -> frozenset[int]:
    """Every line of the data set but some."""
    return frozenset(range(num_lines)).difference(removed)
