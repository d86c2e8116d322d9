"""Leave-out retraining: without the documents a method ranks highest, is the answer lost?"""

from collections.abc import Mapping, Sequence
from dataclasses import dataclass

import numpy as np
from hops.errors import HopsError
from utils.attribution_task import AttributionTask
from utils.retrained_models import Retraining, RetrainingStore

RANDOM, RELEVANT = "random documents", "random documents that taught it"


@dataclass(frozen=True)
class LeaveOutPlan:
    """What is left out.

    Attributes:
        num_functions: how many functions are asked about, spread over those whose every query is
            answered rightly, by the new checkpoint and by every model trained again on everything.
        counts: the numbers of documents left out; each larger set holds the smaller ones.
        repeats: trainings of each, which differ in their seed.
        seed: of the random sets and the trainings.
    """

    num_functions: int
    counts: tuple[int, ...]
    repeats: int
    seed: int

    def check(self, num_documents: int) -> None:
        """Say what is out of range.

        Raises:
            HopsError: A value is out of range.
        """
        if self.num_functions < 1 or self.repeats < 1 or not self.counts:
            raise HopsError("Leaving out needs at least 1 function, 1 count and 1 repeat.")
        if min(self.counts) < 1 or max(self.counts) >= num_documents:
            raise HopsError(
                f"The numbers of documents left out must be 1 to {num_documents - 1}, "
                f"got {list(self.counts)}."
            )


@dataclass(frozen=True)
class LeaveOut:
    """What leaving out did.

    Attributes:
        functions: the functions asked about.
        counts: the numbers of documents left out, 0 first.
        rise: by method, how far the loss of the function's queries rose above that of models
            trained on everything, in nats, mean over its queries and repeats [function, count].
        correct: by method, the share of the function's queries still answered rightly
            [function, count].
        relevant: by method, how many of the documents left out had taught the function's answer
            [function, count].
    """

    functions: tuple[str, ...]
    counts: tuple[int, ...]
    rise: dict[str, np.ndarray]
    correct: dict[str, np.ndarray]
    relevant: dict[str, np.ndarray]


def leave_out(
    task: AttributionTask,
    scores: Mapping[str, np.ndarray],
    answered: np.ndarray,
    store: RetrainingStore,
    plan: LeaveOutPlan,
    *,
    workers: int = 1,
) -> LeaveOut:
    """Remove the k documents that a method ranks highest for a function, train again, and ask.

    The queries of one function share a ranking, by the mean of their scores, and so a training.
    Beside the methods stand k random documents, and k random ones of those that taught the answer
    (all of them and then others, where there are fewer).

    Args:
        task: documents and queries.
        scores: by method [query, document].
        answered: whether the new checkpoint answers each query rightly [query].
        store: where retrained models are kept; its questions are the task's queries.
        plan: what is left out.
        workers: processes that train, one thread each.

    Raises:
        HopsError: A number of the plan is out of range, or no function is answered.
    """
    size = len(task.documents)
    plan.check(size)
    counts = (0, *sorted(set(plan.counts)))
    everything = frozenset(range(size))

    def jobs(removed: Sequence[int]) -> list[Retraining]:
        # The same seeds everywhere: the curves then differ by the documents alone.
        kept = everything.difference(removed)
        seeds = np.random.default_rng([plan.seed, 7]).integers(2**31, size=plan.repeats)
        return [Retraining(kept, int(seed)) for seed in seeds]

    def mean_answers(removed: Sequence[int]) -> tuple[np.ndarray, np.ndarray]:
        answers = [store.read(job) for job in jobs(removed)]
        return (
            np.mean([one.losses for one in answers], axis=0),
            np.mean([one.correct for one in answers], axis=0),
        )

    store.train(jobs([]), workers=workers, progress="retraining with all documents")
    base_losses, base_correct = mean_answers([])
    # What another seed does not answer was answered by luck, and cannot be lost.
    groups = _groups(task, answered & (base_correct == 1), plan.num_functions)
    rankings = {
        name: [_best_first(each[rows].mean(axis=0)) for rows in groups.values()]
        for name, each in scores.items()
    }
    rankings |= _random_rankings(task, groups, plan.seed)
    planned = [
        job
        for k in counts
        for of_functions in rankings.values()
        for ranking in of_functions
        for job in jobs(ranking[:k].tolist())
    ]
    store.train(planned, workers=workers, progress="retraining without documents")
    found = {}
    for name, of_functions in rankings.items():
        rows = []
        for queries, ranking in zip(groups.values(), of_functions, strict=True):
            taught = task.relevance[queries[0]][ranking]
            row = []
            for k in counts:
                losses, right = mean_answers(ranking[:k].tolist())
                rise = (losses - base_losses)[queries].mean()
                row.append((rise, right[queries].mean(), taught[:k].sum()))
            rows.append(row)
        found[name] = np.moveaxis(np.array(rows), -1, 0)
    rise, correct, relevant = (
        {name: each[part] for name, each in found.items()} for part in range(3)
    )
    return LeaveOut(tuple(groups), counts, rise, correct, relevant)


def _groups(
    task: AttributionTask, answered: np.ndarray, num_functions: int
) -> dict[str, np.ndarray]:
    """Queries by function, for some functions whose every query is answered rightly."""
    functions = np.array([query.function for query in task.queries])
    known = [one for one in dict.fromkeys(functions.tolist()) if answered[functions == one].all()]
    if not known:
        raise HopsError(
            "The new checkpoint and the models trained again on everything answer no function's "
            "queries; nothing can be lost."
        )
    number = min(num_functions, len(known))
    chosen = [known[place * len(known) // number] for place in range(number)]
    return {one: np.flatnonzero(functions == one) for one in chosen}


def _best_first(scores: np.ndarray) -> np.ndarray:
    return np.argsort(-scores, kind="stable")


def _random_rankings(
    task: AttributionTask, groups: Mapping[str, np.ndarray], seed: int
) -> dict[str, list[np.ndarray]]:
    rankings: dict[str, list[np.ndarray]] = {RANDOM: [], RELEVANT: []}
    for place, queries in enumerate(groups.values()):
        drawn = np.random.default_rng([seed, place]).random(len(task.documents))
        rankings[RANDOM].append(_best_first(drawn))
        rankings[RELEVANT].append(_best_first(drawn + task.relevance[queries[0]]))
    return rankings
