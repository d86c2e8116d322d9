"""Gradient similarity in activation space, at the new checkpoint."""

from collections.abc import Sequence

from jaxtyping import Float
from torch import Tensor

from attribution.checkpoints import Checkpoints
from attribution.decoder import Objective
from attribution.examples import Example
from attribution.gradients import state_gradients
from attribution.scoring import DEFAULT_SCORING, ScoreOptions, score_vectors
from attribution.vectors import DEFAULT_VECTORS, VectorOptions


def grad_similarity(
    checkpoints: Checkpoints,
    documents: Sequence[Example],
    queries: Sequence[Example],
    *,
    vectors: VectorOptions = DEFAULT_VECTORS,
    scoring: ScoreOptions = DEFAULT_SCORING,
    objective: Objective = "loss",
) -> Float[Tensor, "query document"]:
    """The score cos(ḡ_ℓ(z), ḡ_ℓ(z_test)), aggregated over layers, g = ∂L/∂h^new.

    Args:
        checkpoints: only the new one is used.
        documents: what may have taught the answers.
        queries: what is asked.
        vectors: layers, pooling, batches.
        scoring: similarity, normalisation, aggregation.
        objective: L, "loss" or "margin".

    Returns:
        The scores. Positive is helpful: moving the pooled states of both in one direction lowers
        both losses.

    Raises:
        AttributionError: on unfit examples or layers, or a gradient that is zero under a cosine.
    """
    new = checkpoints.new
    return score_vectors(
        state_gradients(new, queries, vectors, objective=objective),
        state_gradients(new, documents, vectors, objective=objective),
        scoring,
    )
