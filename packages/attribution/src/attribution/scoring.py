"""How alike the vectors of queries and documents are, per layer and over layers."""

from dataclasses import dataclass
from typing import Literal

import torch
from jaxtyping import Float, Float64
from torch import Tensor

from attribution.aggregation import Aggregation, aggregate_layers
from attribution.errors import AttributionError
from attribution.vectors import LayerVectors

Similarity = Literal["cosine", "dot"]
Normalisation = Literal["none", "z-score", "whiten"]


@dataclass(frozen=True)
class ScoreOptions:
    """How vectors become one score per query and document.

    Attributes:
        similarity: "cosine" or "dot".
        normalisation: per layer, with statistics of the documents alone, so that no query's score
            depends on the other queries: "none"; "z-score", each dimension less its mean and
            divided by its standard deviation; "whiten", less the mean and times (C + λI)^(−1/2)
            with C the covariance over documents and λ = ``damping`` · mean eigenvalue.
        aggregation: "mean" over layers; "top-3", the mean of the three highest of each query and
            document; or convex weights of the layers, see
            :func:`attribution.aggregation.learn_layer_weights`.
        damping: of "whiten", positive.
    """

    similarity: Similarity = "cosine"
    normalisation: Normalisation = "none"
    aggregation: Aggregation = "mean"
    damping: float = 0.1


DEFAULT_SCORING = ScoreOptions()


def score_vectors(
    queries: LayerVectors,
    documents: LayerVectors,
    options: ScoreOptions = DEFAULT_SCORING,
) -> Float[Tensor, "query document"]:
    """One score per query and document, higher is more alike.

    Raises:
        AttributionError: as :func:`score_layers`, or on unfit weights of layers.
    """
    return aggregate_layers(score_layers(queries, documents, options), options.aggregation)


def score_layers(
    queries: LayerVectors,
    documents: LayerVectors,
    options: ScoreOptions = DEFAULT_SCORING,
) -> Float[Tensor, "layer query document"]:
    """The similarity of every query with every document at each layer.

    Raises:
        AttributionError: where the layers differ, or a cosine is asked of a vector that is zero.
    """
    if queries.layers != documents.layers:
        raise AttributionError(
            f"expected queries and documents of the same layers, got {queries.layers} and "
            f"{documents.layers}"
        )
    if options.similarity == "cosine":
        # Before normalisation: less a mean, vectors that are all zero would still be zero, but a
        # single zero vector would point away from the mean and pass for a direction.
        queries.check_nonzero()
        documents.check_nonzero()
    return torch.stack(
        [
            _score_layer(query, document, options)
            for query, document in zip(queries.values, documents.values, strict=True)
        ]
    )


def _score_layer(
    queries: Float[Tensor, "query hidden"],
    documents: Float[Tensor, "document hidden"],
    options: ScoreOptions,
) -> Float[Tensor, "query document"]:
    if options.normalisation != "none":
        queries, documents = normalise(
            queries, documents, options.normalisation, damping=options.damping
        )
    if options.similarity == "cosine":
        queries, documents = (_unit_rows(rows) for rows in (queries, documents))
    return queries @ documents.T


def _unit_rows(rows: Float[Tensor, "row hidden"]) -> Float[Tensor, "row hidden"]:
    """Rows of norm one; a row at the documents' mean, now zero, stays so and scores 0.

    The largest entry is divided out first: squares of small gradients underflow in float32.
    """
    largest = rows.abs().amax(dim=1, keepdim=True)
    scaled = rows / torch.where(largest > 0, largest, 1.0)
    norms = scaled.norm(dim=1, keepdim=True)
    return scaled / torch.where(norms > 0, norms, 1.0)


def normalise(
    queries: Float[Tensor, "query hidden"],
    documents: Float[Tensor, "document hidden"],
    how: Literal["z-score", "whiten"],
    *,
    damping: float,
) -> tuple[Float[Tensor, "query hidden"], Float[Tensor, "document hidden"]]:
    """Both in units of the documents' spread; statistics in float64.

    A dimension that is the same in all documents carries no information and becomes zero under
    "z-score"; "whiten" scales it by the damping, like every direction without variance.

    Raises:
        AttributionError: on fewer than two documents, documents all alike, or damping ≤ 0.
    """
    if len(documents) < 2 or damping <= 0:
        raise AttributionError(
            "expected at least two documents and a positive damping to normalise by, "
            f"got {len(documents)} and {damping}"
        )
    wide = documents.double()
    mean = wide.mean(dim=0)
    centred = wide - mean
    spread = centred.square().mean(dim=0)
    if not (spread > 0).any():
        raise AttributionError("all documents have the same vector; there is nothing to rank by")
    if how == "z-score":
        # Rounding leaves a constant dimension a spread of about eps² · mean².
        constant = spread <= (torch.finfo(torch.float32).eps * mean).square()
        scale = torch.diag(torch.where(constant, 0.0, spread.clamp_min(1e-300).rsqrt()))
    else:
        scale = _inverse_root(centred.T @ centred / len(documents), damping)
    return tuple(  # type: ignore[return-value]
        ((rows.double() - mean) @ scale).to(rows.dtype) for rows in (queries, documents)
    )


def _inverse_root(
    covariance: Float64[Tensor, "hidden hidden"], damping: float
) -> Float64[Tensor, "hidden hidden"]:
    """(C + λI)^(−1/2), symmetric, λ = damping · mean eigenvalue."""
    values, vectors = torch.linalg.eigh(covariance)
    damped = values.clamp_min(0) + damping * values.mean()
    root: Tensor = (vectors * damped.rsqrt()) @ vectors.T
    return root
