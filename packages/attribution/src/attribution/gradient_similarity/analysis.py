"""What the inner products say: accuracies by tensor and by group, beside BM25 and chance."""

from collections.abc import Mapping, Sequence
from typing import Any

import numpy as np

from attribution.gradient_similarity.accuracy import (
    AccuracyEstimate,
    estimate_accuracy,
    ranks_first,
)
from attribution.gradient_similarity.results import Similarities
from attribution.gradient_similarity.selection import greedy_selection, split_queries
from attribution.gradient_similarity.tensor_groups import tensor_groups


def ranking_accuracy(
    scores: Mapping[str, Mapping[str, float]], *, seed: int = 0
) -> AccuracyEstimate:
    """Accuracy of scores keyed query id → candidate id, the true candidate having the query's id.

    Args:
        scores: higher is closer.
        seed: of the bootstrap interval.
    """
    rows = [
        (place, other == query, score)
        for place, (query, others) in enumerate(scores.items())
        for other, score in others.items()
    ]
    hits = ranks_first(
        np.array([row[2] for row in rows], dtype=np.float64),
        np.array([row[0] for row in rows], dtype=np.int64),
        np.array([row[1] for row in rows], dtype=bool),
        len(scores),
    )
    return estimate_accuracy(hits, seed=seed)


def chance_accuracy(scores: Mapping[str, Mapping[str, Any]]) -> float:
    """The mean accuracy of a random order: 1 / number of candidates, 0 without the true one."""
    return float(
        np.mean([1 / len(others) if query in others else 0.0 for query, others in scores.items()])
    )


def analyze_tensors(
    similarities: Similarities, *, num_steps: int = 12, seed: int = 0
) -> dict[str, Any]:
    """Accuracy of the full gradient, each tensor, each component type and layer, and a selection.

    The greedy selection is chosen on a random half of the queries and reported on the other. So is
    the best single tensor: the largest of many accuracies is high by luck as well.

    Args:
        similarities: of all queries.
        num_steps: most tensors that the selection takes.
        seed: of the halves and of the bootstrap intervals.

    Returns:
        Accuracies for JSON.
    """
    s = similarities
    types, layers = tensor_groups(s.tensors)
    chosen_by = split_queries(len(s.query_ids), seed=seed)
    hits_by_tensor = np.stack([_hits(s, column) for column in s.cosines_by_tensor().T])
    best = int(hits_by_tensor[:, chosen_by].mean(axis=1).argmax())
    held_out = hits_by_tensor[best, ~chosen_by]

    def of_groups(groups: Mapping[str, Sequence[str]]) -> dict[str, Any]:
        return {
            name: estimate_accuracy(
                _hits(s, s.cosines(s.tensors_named(members))), seed=seed
            ).to_dict()
            for name, members in groups.items()
        }

    return {
        "full_gradient": estimate_accuracy(_hits(s, s.cosines()), seed=seed).to_dict(),
        "by_tensor": {
            name: estimate_accuracy(hits, seed=seed).to_dict()
            for name, hits in zip(s.tensors, hits_by_tensor, strict=True)
        },
        "by_component_type": of_groups(types),
        "by_layer": of_groups(layers),
        "best_tensor": {
            "tensor": s.tensors[best],
            "selected_on": float(hits_by_tensor[best, chosen_by].mean()),
            "held_out": float(held_out.mean()) if len(held_out) else None,
        },
        "greedy_selection": [
            vars(step) for step in greedy_selection(s, chosen_by, num_steps=num_steps)
        ]
        if len(held_out)
        else [],
    }


def _hits(similarities: Similarities, scores: np.ndarray) -> np.ndarray:
    s = similarities
    return ranks_first(scores, s.pairs[:, 0], s.is_true_pair(), len(s.query_ids))
