"""TrackStar: projected gradients, whitened by the documents' second moment, as unit vectors.

Chang, Rajagopal, Bolukbasi, Dixon and Tenney 2024 (arXiv 2410.17413), section 3:

    G(x) = R^(−1/2) P ∇L(x) / ‖R^(−1/2) P ∇L(x)‖,  score(q, z) = G(q)ᵀ G(z),
    R = (1 − m) · mean_z P∇L(z) (P∇L(z))ᵀ + m · mean_q P∇L(q) (P∇L(q))ᵀ + λI.

Two differences from the paper. P is one randomised Hadamard transform of the whole flat gradient,
not a two-sided Gaussian projection of every layer, so that R holds correlations between layers
too. And gradients are not divided by the root of the optimiser's second moment first: a saved
model does not carry it.
"""

from collections.abc import Sequence
from dataclasses import dataclass

import torch
from jaxtyping import Float
from math_utils.influence import RandomizedHadamardTransform
from torch import Tensor
from transformers import PreTrainedModel

from attribution.baselines.parameter_gradients import Transform, stack_gradients
from attribution.checkpoints import check_examples
from attribution.errors import AttributionError
from attribution.examples import Example
from attribution.gradient_similarity import ExampleGradients, FlatLayout


@dataclass(frozen=True)
class TrackStarOptions:
    """How gradients become unit vectors.

    Attributes:
        projection_dim: dimensions of P∇L; None for no projection.
        damping: λ over the mean eigenvalue of R, positive.
        query_share: m in [0, 1]. Directions that all queries share, such as their common
            template, then count less; but a score depends on the other queries.
        seed: of P.
    """

    projection_dim: int | None = 2048
    damping: float = 0.1
    query_share: float = 0.0
    seed: int = 0

    def __post_init__(self) -> None:
        if not self.damping > 0:
            raise AttributionError(f"expected a positive damping, got {self.damping}")
        if not 0 <= self.query_share <= 1:
            raise AttributionError(f"expected query_share in [0, 1], got {self.query_share}")


DEFAULT_TRACKSTAR = TrackStarOptions()


def trackstar_scores(
    model: PreTrainedModel,
    documents: Sequence[Example],
    queries: Sequence[Example],
    *,
    options: TrackStarOptions = DEFAULT_TRACKSTAR,
) -> Float[Tensor, "query document"]:
    """The cosine of whitened, projected gradients of all parameters.

    Memory: (documents + queries) · projection_dim, and one gradient. Time: one forward and backward
    pass per text, and a singular value decomposition of [documents, projection_dim].

    Args:
        model: a Hugging Face causal language model, in general the new checkpoint.
        documents: what may have taught the answers; their second moment is R.
        queries: what is asked.
        options: projection, damping, mixing.

    Returns:
        The scores in [-1, 1]; 1 for a text with itself. Positive is helpful, to the extent that R
        stands for the curvature.

    Raises:
        AttributionError: on unfit examples, a gradient that is zero or not finite, or a projection
            to more dimensions than there are.
    """
    check_examples(queries, model, "query")
    check_examples(documents, model, "document")
    gradients = ExampleGradients(model)
    project = _projection(gradients.layout, options)
    asked, given = (
        stack_gradients(gradients, examples, what, transform=project)
        for examples, what in ((queries, "query"), (documents, "document"))
    )
    return unit_whitened_dots(asked, given, options).cpu()


def unit_whitened_dots(
    queries: Float[Tensor, "query dim"],
    documents: Float[Tensor, "document dim"],
    options: TrackStarOptions = DEFAULT_TRACKSTAR,
) -> Float[Tensor, "query document"]:
    """The score of gradients that are already projected; computed in float64.

    R = AᵀA with A the stacked gradients in units of the root of their number, so that with
    A = U S Vᵀ, (R + λI)^(−1/2) = I/√λ + V diag((S² + λ)^(−1/2) − λ^(−1/2)) Vᵀ: nothing of size
    dim² is formed.
    """
    asked, given = queries.double(), documents.double()
    share = options.query_share
    parts = [given * ((1 - share) / len(given)) ** 0.5]
    if share:
        parts.append(asked * (share / len(asked)) ** 0.5)
    stacked = torch.cat(parts)
    values, vectors = torch.linalg.svd(stacked, full_matrices=False)[1:]
    damping = options.damping * values.square().sum() / stacked.shape[1]
    change = (values.square() + damping).rsqrt() - damping.rsqrt()

    def whitened(rows: Tensor) -> Tensor:
        own = rows * damping.rsqrt() + (rows @ vectors.T * change) @ vectors
        return own / own.norm(dim=1, keepdim=True)

    return (whitened(asked) @ whitened(given).T).to(queries.dtype)


def _projection(layout: FlatLayout, options: TrackStarOptions) -> Transform:
    if options.projection_dim is None:
        return lambda flat: torch.cat([part for _, part in layout.parts(flat)])
    if not 1 <= options.projection_dim <= layout.size:
        raise AttributionError(
            f"expected a projection to between 1 and {layout.size} dimensions, the width of a "
            f"gradient, got {options.projection_dim}"
        )
    return RandomizedHadamardTransform(layout.size, options.projection_dim, options.seed).project
