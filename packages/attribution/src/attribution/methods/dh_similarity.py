"""Δh similarity: documents and queries whose hidden states training moved the same way."""

from collections.abc import Sequence

from jaxtyping import Float
from torch import Tensor

from attribution.activations import state_changes
from attribution.checkpoints import Checkpoints
from attribution.examples import Example
from attribution.scoring import DEFAULT_SCORING, ScoreOptions, score_vectors
from attribution.vectors import DEFAULT_VECTORS, VectorOptions


def dh_similarity(
    checkpoints: Checkpoints,
    documents: Sequence[Example],
    queries: Sequence[Example],
    *,
    vectors: VectorOptions = DEFAULT_VECTORS,
    scoring: ScoreOptions = DEFAULT_SCORING,
) -> Float[Tensor, "query document"]:
    """The score cos(Δh̄_ℓ(z), Δh̄_ℓ(z_test)), aggregated over layers, Δh = h^new − h^old.

    Args:
        checkpoints: old and new.
        documents: what may have taught the answers.
        queries: what is asked.
        vectors: layers, pooling, batches.
        scoring: similarity, normalisation, aggregation.

    Returns:
        The scores. Positive: training moved both the same way, which says nothing of whether it
        helped.

    Raises:
        AttributionError: on unfit examples or layers, or a change that is zero under a cosine, as
            that of a checkpoint with itself.
    """
    return score_vectors(
        state_changes(checkpoints, queries, vectors),
        state_changes(checkpoints, documents, vectors),
        scoring,
    )
