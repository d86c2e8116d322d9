"""Greedy forward selection of parameter tensors, judged on queries that it did not see."""

from collections.abc import Iterable
from dataclasses import dataclass

import numpy as np
from jaxtyping import Bool

from attribution.gradient_similarity.accuracy import score_margins
from attribution.gradient_similarity.results import Similarities, cosines_of


@dataclass(frozen=True)
class SelectionStep:
    """One tensor more.

    Attributes:
        tensor: the one that was added.
        selected_on: accuracy of the subset so far on the queries that chose it.
        held_out: its accuracy on the other queries.
    """

    tensor: str
    selected_on: float
    held_out: float


def greedy_selection(
    similarities: Similarities, chosen_by: Bool[np.ndarray, " query"], *, num_steps: int
) -> list[SelectionStep]:
    """Add, step by step, the tensor with which the subset's cosine ranks most originals first.

    Among tensors that rank equally many first, the one with the larger mean margin between the
    true original and the best other one wins; after that the earlier one.

    Args:
        similarities: of all queries.
        chosen_by: the queries whose accuracy decides; the others report.
        num_steps: most tensors to select.

    Returns:
        The steps, in order.
    """
    s = similarities
    queries, originals = s.pairs[:, 0], s.pairs[:, 1]
    true, num_queries = s.is_true_pair(), len(s.query_ids)
    sums = [np.zeros(len(queries)), np.zeros(num_queries), np.zeros(len(s.original_ids))]
    by_tensor = [s.dots, s.query_squared_norms, s.original_squared_norms]
    left = list(range(len(s.tensors)))
    steps: list[SelectionStep] = []

    def margins_with(tensor: int) -> np.ndarray:
        dots, own, other = (a + b[:, tensor] for a, b in zip(sums, by_tensor, strict=True))
        cosines = cosines_of(dots, own[queries], other[originals])
        return score_margins(cosines, queries, true, num_queries)

    while left and len(steps) < num_steps:
        tried = {tensor: margins_with(tensor) for tensor in left}
        best = max(left, key=lambda tensor: (*_quality(tried[tensor][chosen_by]), -tensor))
        left.remove(best)
        sums = [a + b[:, best] for a, b in zip(sums, by_tensor, strict=True)]
        hits = tried[best] > 0
        steps.append(
            SelectionStep(s.tensors[best], _mean(hits[chosen_by]), _mean(hits[~chosen_by]))
        )
    return steps


def split_queries(num_queries: int, *, seed: int) -> Bool[np.ndarray, " query"]:
    """A random half of the queries, the larger one where their number is odd."""
    chosen = np.zeros(num_queries, dtype=bool)
    order = np.random.default_rng(seed).permutation(num_queries)
    chosen[order[: (num_queries + 1) // 2]] = True
    return chosen


def _quality(margins: np.ndarray) -> tuple[float, float]:
    finite = margins[np.isfinite(margins)]
    return _mean(margins > 0), _mean(finite) if len(finite) else 0.0


def _mean(values: Iterable[float] | np.ndarray) -> float:
    array = np.asarray(values, dtype=np.float64)
    return float(array.mean()) if len(array) else float("nan")
