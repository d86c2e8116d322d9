"""Attribution-weighted change: where training moved the states, and it mattered for the loss."""

from collections.abc import Sequence

from jaxtyping import Float
from torch import Tensor

from attribution.activations import state_changes
from attribution.checkpoints import Checkpoints
from attribution.decoder import Objective
from attribution.examples import Example
from attribution.gradients import state_gradients
from attribution.integrated_gradients import integrated_state_gradients
from attribution.scoring import DEFAULT_SCORING, ScoreOptions, score_vectors
from attribution.vectors import DEFAULT_VECTORS, LayerVectors, VectorOptions


def attr_weighted_change(
    checkpoints: Checkpoints,
    documents: Sequence[Example],
    queries: Sequence[Example],
    *,
    vectors: VectorOptions = DEFAULT_VECTORS,
    scoring: ScoreOptions = DEFAULT_SCORING,
    objective: Objective = "loss",
    num_steps: int | None = None,
) -> Float[Tensor, "query document"]:
    """The score cos(a_ℓ(z), a_ℓ(z_test)), aggregated over layers, a = Δh̄ ⊙ ḡ.

    Args:
        checkpoints: old and new.
        documents: what may have taught the answers.
        queries: what is asked.
        vectors: layers, pooling, batches.
        scoring: similarity, normalisation, aggregation.
        objective: L, "loss" or "margin".
        num_steps: None for the gradient at the new states; K for integrated gradients from the
            old ones, see :func:`attribution.integrated_gradients.integrated_state_gradients`.

    Returns:
        The scores. Positive: the same dimensions, moved by training, change both losses alike.

    Raises:
        AttributionError: on unfit examples or layers, or an attribution that is zero under a
            cosine.
    """
    options = {"objective": objective, "num_steps": num_steps}
    return score_vectors(
        weighted_changes(checkpoints, queries, vectors, **options),  # type: ignore[arg-type]
        weighted_changes(checkpoints, documents, vectors, **options),  # type: ignore[arg-type]
        scoring,
    )


def weighted_changes(
    checkpoints: Checkpoints,
    examples: Sequence[Example],
    vectors: VectorOptions = DEFAULT_VECTORS,
    *,
    objective: Objective = "loss",
    num_steps: int | None = None,
) -> LayerVectors:
    """a_ℓ(x): Δh̄_ℓ ⊙ ḡ_ℓ, pooled apart and multiplied, or integrated and then pooled.

    To first order, a dimension's entry is what moving it from the old to the new value changed in
    the loss: negative where that lowered it.

    Returns:
        The attributions [layer, example, hidden].

    Raises:
        AttributionError: as :func:`attr_weighted_change`; and on a change of zero.
    """
    if num_steps is not None:
        return integrated_state_gradients(
            checkpoints, examples, vectors, num_steps=num_steps, objective=objective
        )
    changes = state_changes(checkpoints, examples, vectors)
    gradients = state_gradients(checkpoints.new, examples, vectors, objective=objective)
    return LayerVectors(
        changes.values * gradients.values, changes.layers, "attribution-weighted change"
    ).check_finite()
