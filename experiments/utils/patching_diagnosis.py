"""Why causal patching finds what it finds: what its sets of dimensions know, layer by layer."""

from typing import Any

import numpy as np
import torch
from attribution.evaluation import precision_at_k, roc_auc
from attribution.methods import (
    PatchOptions,
    largest_dimensions,
    patching_scores,
    weighted_changes,
)
from attribution.vectors import VectorOptions
from utils.attribution_task import AttributionTask

PERCENTILE = 10.0


def diagnose(task: AttributionTask) -> dict[str, Any]:
    """How alike the sets of a tenth of the dimensions are, and how far they can carry an answer.

    Returns:
        - "overlap": of two sets at the last layer, the share of their dimensions that they have in
          common, for two documents (pooled over their texts, or where they state an answer) or two
          queries about the same function, and about different ones; 0.1 by chance.
        - "own share": by layer from the embeddings, the share of its change that a query's own set
          carries, mean over queries.
        - "AUC of queries": by layer, how well the sets of the *other* queries find those about the
          same function: what documents could reach if they knew as much.
        - "documents at their answer": precision@10 of the mean over layers but the embeddings, as
          it is and less each document's mean over queries.
    """
    layers = tuple(range(task.checkpoints.num_layers + 1))
    options = {
        name: VectorOptions(layers=layers, pooling=pooling, progress=False)  # type: ignore[arg-type]
        for name, pooling in (("last", "last"), ("text", "text"))
    }
    sets = {
        name: largest_dimensions(
            weighted_changes(task.checkpoints, some, options[how]).values, PERCENTILE
        )
        for name, some, how in (
            ("documents, whole text", task.document_examples, "text"),
            ("documents, at their answer", task.answer_examples, "last"),
            ("queries", task.query_examples, "last"),
        )
    }
    states = np.array(
        [new.span != old.span for new, old in
         zip(task.answer_examples, task.document_examples, strict=True)]
    )  # fmt: skip
    written = np.array([one.func or "" for one in task.documents])
    asked = np.array([query.function for query in task.queries])
    overlap = {
        "documents, whole text": _overlap(sets["documents, whole text"][-1], written),
        "documents, at their answer": _overlap(
            sets["documents, at their answer"][-1][torch.from_numpy(states)], written[states]
        ),
        "queries": _overlap(sets["queries"][-1], asked),
    }

    def run(masks: Any) -> np.ndarray:
        patch = PatchOptions(span="last", batch_size=256, progress=False)
        examples = task.query_examples
        return patching_scores(task.checkpoints, masks, examples, layers, patch).double().numpy()

    by_query = run(sets["queries"])
    found = run(sets["documents, at their answer"])[1:].mean(axis=0)
    centred = found - found.mean(axis=0)
    return {
        "overlap": overlap,
        "own share": [float(np.diagonal(one).mean()) for one in by_query],
        "AUC of queries": [_auc_among(one, asked) for one in by_query],
        "documents at their answer": {
            name: float(precision_at_k(scores, task.relevance, 10).mean())
            for name, scores in (("as it is", found), ("less means over queries", centred))
        },
    }


def _overlap(sets: Any, functions: np.ndarray) -> dict[str, float]:
    wide = sets.double()
    shared = (wide @ wide.T / wide.sum(dim=1)[0]).numpy()
    same = functions[:, None] == functions[None]
    others = same & ~np.eye(len(functions), dtype=bool)
    return {
        "same function": float(shared[others].mean()),
        "different ones": float(shared[~same].mean()),
    }


def _auc_among(scores: np.ndarray, functions: np.ndarray) -> float:
    """Mean over queries of the AUC of the sets of all other queries."""
    found = []
    for index, row in enumerate(scores):
        others = np.arange(len(row)) != index
        same = functions[others] == functions[index]
        found.append(roc_auc(row[others][None], same[None])[0])
    return float(np.mean(found))
