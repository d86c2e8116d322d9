"""The floor: scores that know nothing."""

import numpy as np
from jaxtyping import Float64


def random_scores(
    num_queries: int, num_train: int, *, seed: int
) -> Float64[np.ndarray, "query train"]:
    """Independent uniform scores in [0, 1), the same for the same seed.

    Args:
        num_queries: rows.
        num_train: columns.
        seed: of the generator.

    Returns:
        The scores [query, train].
    """
    return np.random.default_rng(seed).random((num_queries, num_train))
