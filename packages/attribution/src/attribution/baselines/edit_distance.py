"""Edit distance: how much of the text is the same, letter by letter."""

from collections.abc import Sequence

import numpy as np
from jaxtyping import Float64
from rapidfuzz.distance import Levenshtein
from rapidfuzz.process import cdist


def edit_distance_scores(
    queries: Sequence[str], documents: Sequence[str]
) -> Float64[np.ndarray, "query train"]:
    """Score documents by 1 - d / longer length, d being the Levenshtein distance in characters.

    A document much longer than the query scores low whatever it says: the measure finds near
    copies, not mentions.

    Args:
        queries: texts to search for.
        documents: texts to rank.

    Returns:
        The scores [query, train] in [0, 1]; 1 for equal texts.
    """
    scores = cdist(
        list(queries), list(documents), scorer=Levenshtein.normalized_similarity, dtype=np.float64
    )
    return np.asarray(scores, dtype=np.float64).reshape(len(queries), len(documents))
