"""TF-IDF: the angle between weighted counts of words."""

from collections.abc import Sequence

import numpy as np
from jaxtyping import Float64
from sklearn.feature_extraction.text import TfidfVectorizer

from attribution.baselines.words import words


def tfidf_scores(
    queries: Sequence[str], documents: Sequence[str]
) -> Float64[np.ndarray, "query train"]:
    """Score documents by the cosine of tf · idf vectors, idf(w) = ln((1 + N) / (1 + n_w)) + 1.

    N counts the documents and n_w those that hold w; the queries have no part in idf, and their
    words that no document holds are left out.

    Args:
        queries: texts to search for.
        documents: texts to rank.

    Returns:
        The scores [query, train] in [0, 1]; 0 where no word is shared.

    Source: the smooth idf of scikit-learn's TfidfVectorizer.
    """
    if not any(words(document) for document in documents) or not queries:
        return np.zeros((len(queries), len(documents)))
    vectorizer = TfidfVectorizer(analyzer=words)
    document_vectors = vectorizer.fit_transform(documents)
    cosines = vectorizer.transform(queries) @ document_vectors.T
    return np.asarray(cosines.toarray(), dtype=np.float64)
