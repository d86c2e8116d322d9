"""Inner products of query and candidate gradients, tensor by tensor, and cosines of any subset."""

from collections.abc import Sequence
from dataclasses import dataclass

import numpy as np
from jaxtyping import Bool, Float64, Int64


@dataclass(frozen=True, eq=False)
class Similarities:
    """What one pass over queries and originals measured.

    Attributes:
        tensors: names of the parameter tensors.
        query_ids: numeric ids of the queries, ascending; a query's true original has its id.
        original_ids: numeric ids of the originals that are a candidate of some query, ascending.
        pairs: per pair the places of its query and of its original in these [pair, 2]; by query.
        dots: ⟨g_query, g_original⟩ [pair, tensor], in squared nats per squared parameter.
        query_squared_norms: ‖g‖² [query, tensor].
        original_squared_norms: ‖g‖² [original, tensor].
    """

    tensors: tuple[str, ...]
    query_ids: tuple[int, ...]
    original_ids: tuple[int, ...]
    pairs: Int64[np.ndarray, "pair 2"]
    dots: Float64[np.ndarray, "pair tensor"]
    query_squared_norms: Float64[np.ndarray, "query tensor"]
    original_squared_norms: Float64[np.ndarray, "original tensor"]

    def cosines(
        self, subset: Bool[np.ndarray, " tensor"] | None = None
    ) -> Float64[np.ndarray, " pair"]:
        """Cosine of the concatenated gradients of a subset of tensors; of all by default.

        Σ_j d_qo,j / √(Σ_j d_qq,j · Σ_j d_oo,j); 0 where one of the gradients is zero.
        """
        chosen = slice(None) if subset is None else subset
        return cosines_of(
            self.dots[:, chosen].sum(axis=1),
            self.query_squared_norms[:, chosen].sum(axis=1)[self.pairs[:, 0]],
            self.original_squared_norms[:, chosen].sum(axis=1)[self.pairs[:, 1]],
        )

    def cosines_by_tensor(self) -> Float64[np.ndarray, "pair tensor"]:
        """Cosine of each tensor's gradient by itself; 0 where one of the two is zero."""
        return cosines_of(
            self.dots,
            self.query_squared_norms[self.pairs[:, 0]],
            self.original_squared_norms[self.pairs[:, 1]],
        )

    def is_true_pair(self) -> Bool[np.ndarray, " pair"]:
        """Where the candidate is the sample that the query was made of."""
        queries, originals = np.array(self.query_ids), np.array(self.original_ids)
        found: Bool[np.ndarray, " pair"] = queries[self.pairs[:, 0]] == originals[self.pairs[:, 1]]
        return found

    def tensors_named(self, names: Sequence[str]) -> Bool[np.ndarray, " tensor"]:
        """The subset with these names."""
        chosen: Bool[np.ndarray, " tensor"] = np.isin(np.array(self.tensors), list(names))
        return chosen


def cosines_of(
    dots: Float64[np.ndarray, "*shape"],
    squared_norms: Float64[np.ndarray, "*shape"],
    other_squared_norms: Float64[np.ndarray, "*shape"],
) -> Float64[np.ndarray, "*shape"]:
    """Inner products over the product of norms; 0 where a norm is."""
    # Roots first: the product of two squared norms may leave the range of float64.
    scale = np.sqrt(squared_norms) * np.sqrt(other_squared_norms)
    cosines: Float64[np.ndarray, "*shape"] = np.zeros_like(dots)
    np.divide(dots, scale, out=cosines, where=scale > 0)
    return cosines
