"""TrackStar: projected gradients, whitened by the documents' second moment, as unit vectors.

Chang, Rajagopal, Bolukbasi, Dixon and Tenney 2024 (arXiv 2410.17413), section 3:

    G(x) = R^(−1/2) P ∇L(x) / ‖R^(−1/2) P ∇L(x)‖,  score(q, z) = G(q)ᵀ G(z),
    R = (1 − m) · mean_z P∇L(z) (P∇L(z))ᵀ + m · mean_q P∇L(q) (P∇L(q))ᵀ + λI,

P and R block-diagonal. Three differences from the paper. A block is one parameter tensor and not
the matrices of one or several layers. P is a randomised Hadamard transform of the tensor's flat
gradient and not a two-sided Gaussian projection. And gradients are not divided by the root of the
optimiser's second moment first: a saved model does not carry it.
"""

from collections.abc import Sequence
from dataclasses import dataclass

import torch
from jaxtyping import Float
from math_utils.influence import RandomizedHadamardTransform
from torch import Tensor
from torch.nn.functional import normalize
from transformers import PreTrainedModel

from attribution.baselines.parameter_gradients import stack_gradients
from attribution.checkpoints import check_examples
from attribution.errors import AttributionError
from attribution.examples import Example
from attribution.gradient_similarity import ExampleGradients, FlatLayout
from attribution.gradient_similarity.projection import tensor_seed


@dataclass(frozen=True)
class TrackStarOptions:
    """How gradients become unit vectors.

    Attributes:
        projection_dim: dimensions kept of each tensor's gradient, smaller ones being left as they
            are; None for no projection. R is estimated from as many documents as there are: with
            more dimensions than documents, and little damping, whitening makes any two documents
            orthogonal and no score means anything.
        damping: λ over the mean eigenvalue of R, tensor by tensor; positive.
        query_share: m in [0, 1]. Directions that all queries share, such as their common
            template, then count less; but a score depends on the other queries.
        seed: of P.
    """

    projection_dim: int | None = 256
    damping: float = 0.1
    query_share: float = 0.0
    seed: int = 0

    def __post_init__(self) -> None:
        if self.projection_dim is not None and self.projection_dim < 1:
            raise AttributionError(
                f"expected a projection to at least 1 dimension, got {self.projection_dim}"
            )
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

    Memory: (documents + queries) · tensors · projection_dim, and one gradient. Time: one forward
    and backward pass per text, and a singular value decomposition of [documents, projection_dim]
    per tensor.

    Args:
        model: a Hugging Face causal language model, in general the new checkpoint.
        documents: what may have taught the answers; their second moment is R.
        queries: what is asked.
        options: projection, damping, mixing.

    Returns:
        The scores in [-1, 1]; 1 for a text with itself. Positive is helpful, to the extent that R
        stands for the curvature.

    Raises:
        AttributionError: on unfit examples, or a gradient that is zero or not finite.
    """
    check_examples(queries, model, "query")
    check_examples(documents, model, "document")
    gradients = ExampleGradients(model)
    project = _Projection(gradients.layout, options)
    asked, given = (
        stack_gradients(gradients, examples, what, transform=project)
        for examples, what in ((queries, "query"), (documents, "document"))
    )
    return unit_whitened_dots(asked, given, project.widths, options).cpu()


def unit_whitened_dots(
    queries: Float[Tensor, "query dim"],
    documents: Float[Tensor, "document dim"],
    widths: Sequence[int],
    options: TrackStarOptions = DEFAULT_TRACKSTAR,
) -> Float[Tensor, "query document"]:
    """The score of gradients that are already projected; computed in float64.

    Args:
        queries: P∇L of each.
        documents: P∇L of each.
        widths: of the blocks of R, which add up to ``dim``.
        options: damping and mixing.
    """
    blocks = [
        _whiten(asked.double(), given.double(), options)
        for asked, given in zip(
            queries.split(list(widths), dim=1), documents.split(list(widths), dim=1), strict=True
        )
    ]
    asked, given = (
        normalize(torch.cat(parts, dim=1), dim=1) for parts in zip(*blocks, strict=True)
    )
    return (asked @ given.T).to(queries.dtype)


def _whiten(
    queries: Float[Tensor, "query dim"],
    documents: Float[Tensor, "document dim"],
    options: TrackStarOptions,
) -> tuple[Float[Tensor, "query dim"], Float[Tensor, "document dim"]]:
    """R^(−1/2) x of all rows; a block in which every gradient is zero stays zero.

    R = AᵀA + λI with A the gradients in units of the root of their number, so that with
    A = U S Vᵀ, R^(−1/2) = I/√λ + V diag((S² + λ)^(−1/2) − λ^(−1/2)) Vᵀ: nothing of size dim² is
    formed.
    """
    share = options.query_share
    stacked = documents * ((1 - share) / len(documents)) ** 0.5
    if share:
        stacked = torch.cat([stacked, queries * (share / len(queries)) ** 0.5])
    values, vectors = torch.linalg.svd(stacked, full_matrices=False)[1:]
    damping = options.damping * values.square().sum() / stacked.shape[1]
    if damping == 0:
        return torch.zeros_like(queries), torch.zeros_like(documents)
    change = (values.square() + damping).rsqrt() - damping.rsqrt()
    asked, given = (
        rows * damping.rsqrt() + (rows @ vectors.T * change) @ vectors
        for rows in (queries, documents)
    )
    return asked, given


class _Projection:
    """P, one transform per tensor, seeded by its name."""

    def __init__(self, layout: FlatLayout, options: TrackStarOptions) -> None:
        self._layout = layout
        dim = options.projection_dim
        self._transforms: dict[str, RandomizedHadamardTransform] = {}
        for name, width in layout.widths.items():
            if dim is not None and width > dim:
                seed = tensor_seed(name, options.seed)
                self._transforms[name] = RandomizedHadamardTransform(width, dim, seed)
        self.widths = [
            self._transforms[name].output_dim if name in self._transforms else width
            for name, width in layout.widths.items()
        ]

    def __call__(self, gradient: Float[Tensor, " width"]) -> Float[Tensor, " dim"]:
        return torch.cat(
            [
                self._transforms[name].project(part) if name in self._transforms else part
                for name, part in self._layout.parts(gradient)
            ]
        )
