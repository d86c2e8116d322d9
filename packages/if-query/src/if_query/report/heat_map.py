"""The heat map of queries × training examples: which ones it has, and in which order.

Rows are scaled by their largest absolute score before they are compared, since scores of two
queries have no common scale. Like rows and like columns stand together: average linkage on the
cosine distance, leaves in the order that puts neighbours closest.
"""

from dataclasses import dataclass

import numpy as np
from jaxtyping import Float, Float32, Float64
from scipy.cluster.hierarchy import leaves_list, linkage

from if_query.influence_results import InfluenceResults


@dataclass(frozen=True, eq=False)
class HeatMap:
    """A part of the score matrix.

    Attributes:
        queries: rows of the whole matrix.
        train: columns of it, in the order of the file.
        scores: [query, train] of these.
        orders: by "raw" and, where there is self-influence, "normalised": the places of rows and
            of columns in clustered order.
    """

    queries: list[int]
    train: list[int]
    scores: Float64[np.ndarray, "query train"]
    orders: dict[str, tuple[list[int], list[int]]]


def make_heat_map(results: InfluenceResults, num_queries: int, num_train: int) -> HeatMap:
    """The first queries against the training examples with the largest scores among them.

    Args:
        results: all scores.
        num_queries: rows at most.
        num_train: columns at most; every query in turn gives its largest ones.
    """
    num_queries = min(num_queries, len(results.queries))
    block = results.matrix[:num_queries]
    columns = _largest_in_turn(block, min(num_train, block.shape[1]))
    scores = np.asarray(block[:, columns], dtype=np.float64)
    orders = {"raw": _clustered(scores)}
    if results.self_influence is not None:
        own = results.self_influence[columns]
        orders["normalised"] = _clustered(normalised(scores, own))
    return HeatMap(list(range(num_queries)), columns, scores, orders)


def normalised(
    scores: Float64[np.ndarray, "query train"], self_influence: Float64[np.ndarray, " train"]
) -> Float64[np.ndarray, "query train"]:
    """score[q, t] / √self_influence[t]; 0 where the self-influence is not positive."""
    scale = np.sqrt(np.maximum(self_influence, 0.0))
    divided: np.ndarray = np.divide(scores, scale, out=np.zeros_like(scores), where=scale > 0)
    return divided


def _largest_in_turn(block: Float32[np.ndarray, "query train"], count: int) -> list[int]:
    """Columns with each query's largest absolute score, then its second largest, and so on."""
    orders = []
    for row in block:  # one by one: the whole block may not fit in memory twice
        sizes = np.abs(row)
        largest = np.sort(np.argpartition(-sizes, count - 1)[:count])
        orders.append(largest[np.argsort(-sizes[largest], kind="stable")])
    chosen: dict[int, None] = {}
    for turn in np.stack(orders).T:
        for column in turn:
            if len(chosen) == count:
                return sorted(chosen)
            chosen[int(column)] = None
    return sorted(chosen)


def _clustered(scores: Float64[np.ndarray, "query train"]) -> tuple[list[int], list[int]]:
    largest = np.abs(scores).max(axis=1, keepdims=True)
    scaled = np.divide(scores, largest, out=np.zeros_like(scores), where=largest > 0)
    return _leaves(scaled), _leaves(scaled.T)


def _leaves(points: Float[np.ndarray, "point dimension"]) -> list[int]:
    """Places of the points in clustered order."""
    if len(points) < 3:
        return list(range(len(points)))
    lengths = np.linalg.norm(points, axis=1, keepdims=True)
    units = np.divide(points, lengths, out=np.zeros_like(points), where=lengths > 0)
    # scipy's own cosine distance is not a number for a zero vector; here it is 1 to all others.
    distances = np.clip(1 - units @ units.T, 0, 2)
    upper = distances[np.triu_indices(len(points), 1)]
    leaves: list[int] = leaves_list(
        linkage(upper, method="average", optimal_ordering=True)
    ).tolist()
    return leaves
