"""BM25: how much a document shares the query's rare words."""

from collections.abc import Sequence

import bm25s
import numpy as np
from jaxtyping import Float64

from attribution.baselines.words import words


def bm25_scores(
    queries: Sequence[str], documents: Sequence[str], *, k1: float = 1.5, b: float = 0.75
) -> Float64[np.ndarray, "query train"]:
    """Score documents by Σ_w idf(w) · tf / (tf + k1 (1 - b + b · length / mean length)).

    The sum runs over the query's words with their repetitions; tf counts w in the document and
    idf(w) = ln(1 + (N - n_w + 1/2) / (n_w + 1/2)), where n_w of the N documents hold w.

    Args:
        queries: texts to search for.
        documents: texts to rank.
        k1: how slowly repetition of a word stops to count.
        b: how far a document's length is discounted, in [0, 1].

    Returns:
        The scores [query, train], at least 0; 0 where no word is shared.

    Source: Lucene's variant of BM25, as the bm25s library computes it.
    """
    documents_words = [words(document) for document in documents]
    if not any(documents_words):
        return np.zeros((len(queries), len(documents)))
    index = bm25s.BM25(k1=k1, b=b, method="lucene", dtype="float64")
    index.index(documents_words, show_progress=False)
    rows = [_score(words(query), index) for query in queries]
    return np.array(rows, dtype=np.float64).reshape(len(queries), len(documents))


def _score(query_words: list[str], index: bm25s.BM25) -> Float64[np.ndarray, " train"]:
    ids = index.get_tokens_ids(query_words)
    scores: Float64[np.ndarray, " train"] = index.get_scores_from_ids(ids)
    return scores
