"""One score from the scores of several layers, with weights learned on some queries or none."""

from typing import Literal

import torch
from jaxtyping import Bool, Float, Float64
from math_utils.influence import project_to_capped_simplex
from torch import Tensor

from attribution.errors import AttributionError

Aggregation = Literal["mean", "top-3"] | tuple[float, ...]


def aggregate_layers(
    scores: Float[Tensor, "layer query document"], how: Aggregation
) -> Float[Tensor, "query document"]:
    """The mean over layers, that of the three highest, or the sum with convex weights.

    Args:
        scores: per layer.
        how: "mean"; "top-3", for each query and document its three highest layers (all where
            there are fewer); or one weight per layer, non-negative with sum 1.

    Raises:
        AttributionError: on weights that are not one per layer, or not convex.
    """
    if how == "mean":
        return scores.mean(dim=0)
    if how == "top-3":
        return scores.topk(min(3, len(scores)), dim=0).values.mean(dim=0)
    weights = torch.tensor(how, dtype=torch.float64)
    if len(weights) != len(scores) or (weights < 0).any() or abs(float(weights.sum()) - 1) > 1e-6:
        raise AttributionError(
            f"expected {len(scores)} non-negative weights of layers with sum 1, got "
            f"{[round(weight, 6) for weight in weights.tolist()]}"
        )
    combined: Tensor = torch.tensordot(weights.to(scores), scores, dims=1)
    return combined


def learn_layer_weights(
    scores: Float[Tensor, "layer query document"],
    relevance: Bool[Tensor, "query document"],
    validation: Bool[Tensor, " query"],
    *,
    temperature: float = 1.0,
    max_steps: int = 2000,
) -> tuple[float, ...]:
    """Convex weights of layers under which the relevant documents of validation queries rank first.

    minimise over the simplex  Σ_q [logsumexp_d(s_qd/τ) − mean_{d relevant}(s_qd/τ)],
    s = Σ_ℓ w_ℓ · scores_ℓ,

    the cross-entropy between the relevant documents of a query and a softmax of its scores: convex
    in w, so that the weights do not depend on a start. τ = ``temperature`` · the standard
    deviation of the scores over documents, so that their unit does not matter. By accelerated
    projected gradient descent with the step 1/Lipschitz constant; no random numbers.

    Args:
        scores: of all queries; rows where ``validation`` is False are never read.
        relevance: the truth, read for the same rows only.
        validation: the queries to learn from. Queries about one function belong on one side.
        temperature: lower looks more at the top of the ranking.
        max_steps: limit; it stops where the loss per query is within 1e-9 of its least.

    Returns:
        One weight per layer, non-negative, with sum 1.

    Raises:
        AttributionError: on no validation query, one without a relevant document, scores that are
            all equal or not finite.

    Source of the loss: Cao et al. 2007, Learning to rank: from pairwise to listwise approach.
    """
    seen = scores[:, validation].double()
    relevant = relevance[validation]
    if seen.shape[1] == 0 or not relevant.any(dim=1).all() or not torch.isfinite(seen).all():
        raise AttributionError(
            "expected at least one validation query, a relevant document for each, and finite "
            f"scores; got {seen.shape[1]} queries, "
            f"{int((~relevant.any(dim=1)).sum())} of them without a relevant document"
        )
    spread = float(seen.std(dim=2, correction=0).mean())
    if spread == 0:
        raise AttributionError("the scores of all documents are equal; no layer can be preferred")
    seen = (seen - seen.mean(dim=2, keepdim=True)) / (spread * temperature)
    target = relevant.double() / relevant.sum(dim=1, keepdim=True)
    weights = torch.full((len(seen),), 1 / len(seen), dtype=torch.float64)
    # The Hessian is Σ_q Cov_softmax(scores), at most Σ_q max_d ‖scores_qd‖² in norm.
    step = 1 / float(seen.square().sum(dim=0).amax(dim=1).sum())
    ahead, momentum = weights, 1.0
    for count in range(max_steps):
        moved = _onto_simplex(ahead - step * _gradient(seen, target, ahead))
        if float((ahead - moved) @ (moved - weights)) > 0:
            momentum = 1.0  # the momentum has led uphill: start it again
        after = (1 + (1 + 4 * momentum**2) ** 0.5) / 2
        ahead = moved + (momentum - 1) / after * (moved - weights)
        weights, momentum = moved, after
        if count % 10 == 9:
            gradient = _gradient(seen, target, weights)
            # By convexity the loss is above its least value by no more than this.
            if float(gradient @ weights - gradient.min()) < 1e-9 * seen.shape[1]:
                break
    return tuple(float(weight) for weight in weights)


def _gradient(
    scores: Float64[Tensor, "layer query document"],
    target: Float64[Tensor, "query document"],
    weights: Float64[Tensor, " layer"],
) -> Float64[Tensor, " layer"]:
    probabilities = torch.tensordot(weights, scores, dims=1).softmax(dim=1)
    gradient: Tensor = torch.tensordot(scores, probabilities - target, dims=2)
    return gradient


def _onto_simplex(point: Float64[Tensor, " layer"]) -> Float64[Tensor, " layer"]:
    """The nearest point with non-negative entries and sum 1."""
    return project_to_capped_simplex(point, total=1.0, low=0.0, high=1.0)
