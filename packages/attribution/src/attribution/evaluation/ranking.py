"""One query's ranking with ties, and the metrics of it as expectations.

Where scores tie, a ranking is not one order but every order of each tied group, all equally
likely. Each metric here is its exact expected value over those orders, so it depends neither on
the order in which the training examples are stored nor on a draw.

Notation, for the tied group that a rank falls into: it has n members, r of them relevant, and
takes the ranks s + 1 ... s + n; before it stand b relevant examples. There are N examples and R
relevant ones in all.
"""

from dataclasses import dataclass

import numpy as np
from jaxtyping import Bool, Float, Float64, Int64


@dataclass(frozen=True)
class TiedRanking:
    """The tied groups of one query, best first.

    Source: McSherry and Najork, Computing information retrieval performance measures efficiently
    in the presence of tied scores, ECIR 2008.

    Attributes:
        start: s, the number of examples before each group.
        size: n, the number of members of each group.
        num_relevant: r, the number of relevant members of each group.
    """

    start: Int64[np.ndarray, " group"]
    size: Int64[np.ndarray, " group"]
    num_relevant: Int64[np.ndarray, " group"]

    @classmethod
    def from_scores(
        cls, scores: Float[np.ndarray, " train"], relevance: Bool[np.ndarray, " train"]
    ) -> "TiedRanking":
        """Group the examples by score; a higher score ranks first."""
        order = np.argsort(scores)[::-1]
        ordered = scores[order]
        is_first = np.ones(len(ordered), dtype=np.bool_)
        is_first[1:] = ordered[1:] != ordered[:-1]
        start = np.flatnonzero(is_first).astype(np.int64)
        size = np.diff(start, append=len(ordered))
        num_relevant = np.add.reduceat(relevance[order], start, dtype=np.int64)
        return cls(start, size, num_relevant)

    @property
    def total(self) -> int:
        """N, the number of examples."""
        return int(self.size.sum())

    @property
    def total_relevant(self) -> int:
        """R, the number of relevant examples."""
        return int(self.num_relevant.sum())

    def relevance_by_rank(self) -> Float64[np.ndarray, " train"]:
        """The probability r / n that a relevant example stands at each rank."""
        return np.repeat(self.num_relevant / self.size, self.size)

    def precision(self, k: int) -> float:
        """Relevant examples among the first k, divided by k (also where N < k)."""
        return float(self.relevance_by_rank()[:k].sum() / k)

    def recall(self, k: int) -> float:
        """Relevant examples among the first k, divided by R."""
        return float(self.relevance_by_rank()[:k].sum() / self.total_relevant)

    def average_precision(self) -> float:
        """The mean over relevant examples of the precision at their ranks.

        At rank s + i stands a relevant example with probability r / n, and then on average
        b + 1 + (i - 1)(r - 1)/(n - 1) relevant ones are at that rank or before.
        """
        before = np.cumsum(self.num_relevant) - self.num_relevant
        density = (self.num_relevant - 1) / np.maximum(self.size - 1, 1)
        rank = np.arange(1, self.total + 1)
        place_in_group = rank - np.repeat(self.start, self.size)
        found = (
            np.repeat(before, self.size) + 1 + (place_in_group - 1) * np.repeat(density, self.size)
        )
        return float((self.relevance_by_rank() * found / rank).sum() / self.total_relevant)

    def reciprocal_rank(self) -> float:
        """The inverse rank of the first relevant example.

        In the first group with a relevant member, no relevant one stands at the first i places
        with probability ∏_{j ≤ i} (1 - r / (n - j + 1)).
        """
        group = int(np.flatnonzero(self.num_relevant)[0])
        size, num_relevant = int(self.size[group]), int(self.num_relevant[group])
        place = np.arange(1, size - num_relevant + 2)
        here = num_relevant / (size - place + 1)
        none_before = np.concatenate([[1.0], np.cumprod(1 - here)[:-1]])
        return float((none_before * here / (self.start[group] + place)).sum())

    def ndcg(self, k: int | None = None) -> float:
        """Σ_i relevant_i / log2(i + 1) over the first k ranks, divided by its greatest value."""
        k = self.total if k is None else min(k, self.total)
        discount = 1 / np.log2(np.arange(2, k + 2))
        gain = (self.relevance_by_rank()[:k] * discount).sum()
        return float(gain / discount[: self.total_relevant].sum())

    def roc_auc(self) -> float:
        """The share of (relevant, other) pairs in which the relevant one ranks first; ties half."""
        others = self.size - self.num_relevant
        others_after = others.sum() - np.cumsum(others)
        won = (self.num_relevant * (others_after + others / 2)).sum()
        return float(won / (self.total_relevant * (self.total - self.total_relevant)))

    def tied_pair_share(self) -> float:
        """The share of (relevant, other) pairs that tie; at 0 no metric depends on ties."""
        tied = (self.num_relevant * (self.size - self.num_relevant)).sum()
        return float(tied / (self.total_relevant * (self.total - self.total_relevant)))
