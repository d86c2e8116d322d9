"""What a method found, as rows of documents and as metrics."""

from typing import Any

import numpy as np
from attribution.evaluation import composition_at_k, evaluate_retrieval
from if_query.errors import InputError
from jaxtyping import Bool, Float
from utils.attribution_task import AttributionTask

Scores = Float[np.ndarray, "query document"]


def check_own_fields(task: AttributionTask, name: str) -> None:
    """Refuse documents with a field of the name of a score: it would be lost.

    Raises:
        InputError: naming the first line with one.
    """
    names = {f"{query.function}_{name}_score" for query in task.queries}
    names |= {f"combined_{name}_score", "original_index"}
    for index, row in enumerate(task.rows):
        if taken := names & row.keys():
            raise InputError(
                f"{task.arguments.dataset}: line {index + 1} has a field {min(taken)} already; "
                "rank the documents and not the results of a ranking"
            )


def result_rows(task: AttributionTask, name: str, scores: Scores) -> list[dict[str, Any]]:
    """The documents, best first, with their own fields and their scores.

    A document's ``<function>_NAME_score`` is the mean over the queries about that function, and
    ``combined_NAME_score`` the mean over the functions, so that each of them counts the same. The
    mean and not the largest: influence on a sum of losses is the sum of influences, and scores of
    different queries need not be of one scale, under which the largest would follow one function.
    Ties keep the order of the file; ``original_index`` counts its lines from 0.
    """
    asked = list(dict.fromkeys(query.function for query in task.queries))
    about = np.array([query.function for query in task.queries])
    by_function = np.stack([scores[about == one].mean(axis=0, dtype=np.float64) for one in asked])
    combined = by_function.mean(axis=0)
    keys = [f"{one}_{name}_score" for one in asked]
    rows = []
    for index in np.argsort(-combined, kind="stable").tolist():
        found = dict(zip(keys, by_function[:, index].tolist(), strict=True))
        found[f"combined_{name}_score"] = float(combined[index])
        rows.append({**task.rows[index], **found, "original_index": index})
    return rows


def retrieval_metrics(
    task: AttributionTask,
    scores: Scores,
    judged: Bool[np.ndarray, " query"],
    cutoffs: tuple[int, ...],
) -> dict[str, Any]:
    """Every metric of :mod:`attribution.evaluation`, for all queries, base functions, wrappers.

    Queries about one base function or a wrapper of it are one group: every group counts the same,
    and intervals are over groups. The composition is the mean share, over queries, of documents
    about the base function asked for, about its wrappers, distractors, and others.

    Args:
        task: documents, queries and the truth.
        scores: of all queries.
        judged: the queries that nothing was learned on.
        cutoffs: the k of precision, recall and composition.

    Returns:
        "all", "base" and "wrapper", without those that nothing was asked about.
    """
    depth = np.array([query.hop_depth for query in task.queries])
    chosen = {"all": judged, "base": judged & (depth == 0), "wrapper": judged & (depth > 0)}
    return {
        part: _metrics(task, scores, np.flatnonzero(mask), cutoffs)
        for part, mask in chosen.items()
        if mask.any()
    }


def _metrics(
    task: AttributionTask, scores: Scores, queries: np.ndarray, cutoffs: tuple[int, ...]
) -> dict[str, Any]:
    wide = scores[queries].astype(np.float64)
    groups = [task.queries[index].base_function for index in queries]
    seed = task.arguments.seed
    report = evaluate_retrieval(
        wide, task.relevance[queries], cutoffs=cutoffs, groups=groups, seed=seed
    )
    kinds = {name: members[queries] for name, members in document_kinds(task).items()}
    return {
        **report.to_dict(),
        "composition": {
            f"top {k}": {
                kind: float(shares.mean())
                for kind, shares in composition_at_k(wide, kinds, k).items()
            }
            for k in cutoffs
        },
    }


def document_kinds(task: AttributionTask) -> dict[str, Bool[np.ndarray, "query document"]]:
    """Whether a document is about the base function of a query, about a wrapper of it, or none."""
    distractor = np.array([one.role == "distractor" for one in task.documents])
    is_wrapper = np.array([bool(one.hop_depth) for one in task.documents])
    family = np.array([task.chains == query.taught_by[-1] for query in task.queries])
    return {
        "base": family & ~is_wrapper,
        "wrapper": family & is_wrapper,
        "distractor": np.broadcast_to(distractor, family.shape),
    }


def summary_lines(metrics: dict[str, Any], cutoffs: tuple[int, ...]) -> list[str]:
    """One line for each part of the queries, with 95 % intervals."""
    names = [f"precision@{max(cutoffs)}", f"recall@{max(cutoffs)}", "map", "roc_auc"]
    lines = []
    for part, report in metrics.items():
        cells = [
            f"{name} {one['mean']:.2f} [{one['low']:.2f}, {one['high']:.2f}]"
            for name in names
            for one in [report["metrics"][name]]
        ]
        lines.append(f"{part} ({report['num_queries']} queries): {', '.join(cells)}")
    return lines
