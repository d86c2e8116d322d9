"""Losses that shape an embedding: related examples near, others far, smooth along a graph."""

import math
from typing import Literal, get_args

import torch
from torch import nn

from math_utils._typing import Bool, Float, Int, Tensor
from math_utils.contrastive.checks import (
    check_choice,
    check_finite,
    check_positive,
    check_rows,
    check_same_shape,
    in_wide_precision,
    unit_vectors,
)
from math_utils.errors import ContrastiveError

Reduction = Literal["mean", "sum", "none"]
REDUCTIONS: tuple[str, ...] = get_args(Reduction)


class InfoNCELoss(nn.Module):
    """The positive against negatives, by a softmax over cosine similarities.

    With s(x, y) = ⟨x, y⟩ / (max(‖x‖, 1e-8) max(‖y‖, 1e-8)), for anchor a, positive p and
    negatives n_1 … n_k:

        loss = log(e^{s(a, p)/τ} + Σ_j e^{s(a, n_j)/τ}) − s(a, p)/τ    (nats)

    Without negatives it is 0. Lengths of vectors and the order of negatives do not matter.

    Source: van den Oord, Li and Vinyals 2018, arXiv 1807.03748, eq. 4.

    Args:
        temperature: τ; may be set anew at any time, for example by a schedule.
        reduction: over anchors.

    Raises:
        ContrastiveError: on a temperature that is not positive and finite, or another reduction.
    """

    def __init__(self, temperature: float = 0.1, *, reduction: str = "mean") -> None:
        super().__init__()
        self.temperature = temperature
        self.reduction = check_choice("reduction", reduction, REDUCTIONS)

    @property
    def temperature(self) -> float:
        """What similarities are divided by."""
        return self._temperature

    @temperature.setter
    def temperature(self, value: float) -> None:
        self._temperature = check_positive("temperature", value)

    def forward(
        self,
        anchors: Float[Tensor, "*batch dim"],
        positives: Float[Tensor, "*batch dim"],
        negatives: Float[Tensor, "..."] | None = None,
    ) -> Float[Tensor, "..."]:
        """The loss of one anchor, or of a batch.

        Args:
            anchors: one anchor [dim], or a batch of them [batch, dim].
            positives: the positive of each.
            negatives: each anchor's own [*batch, num_negatives, dim]; or [num_negatives, dim] that
                all share. None is the in-batch form: the negatives of an anchor are the positives
                of the others, so that one anchor has none.

        Returns:
            A scalar; with the reduction "none" one loss for each anchor [*batch].

        Raises:
            ContrastiveError: on shapes that do not fit, no anchor, or entries that are not finite.
        """
        check_rows("anchors", anchors)
        check_same_shape("anchors", anchors, "positives", positives)
        anchor, positive = unit_vectors("anchors", anchors), unit_vectors("positives", positives)
        own = (anchor * positive).sum(dim=-1, keepdim=True)
        if negatives is None:
            # The diagonal is left out here and put in front, as in the other form.
            count = 1 if anchor.ndim == 1 else len(anchor)
            rows, columns = anchor.reshape(count, -1), positive.reshape(count, -1)
            others = ~torch.eye(count, dtype=torch.bool, device=anchor.device)
            similarities = (rows @ columns.T)[others].reshape(*own.shape[:-1], count - 1)
        else:
            _check_negatives(anchors, negatives)
            negative = unit_vectors("negatives", negatives)
            if anchor.ndim == 2 and negative.ndim == 2:
                similarities = anchor @ negative.T
            else:
                similarities = (negative @ anchor.unsqueeze(-1)).squeeze(-1)
        logits = torch.cat([own, similarities], dim=-1) / self.temperature
        return _reduce(logits.logsumexp(dim=-1) - logits[..., 0], self.reduction)


class LocalContrastiveLoss(nn.Module):
    """Similar pairs near each other, dissimilar ones at least a margin apart.

    With the Euclidean distance d: d² where the pair is similar, max(0, margin − d)² where not. At
    d = 0 a dissimilar pair costs margin² and has the gradient 0, a subgradient: no direction is
    better than another.

    Source: Hadsell, Chopra and LeCun 2006, Dimensionality reduction by learning an invariant
    mapping, eq. 4, without its factors ½.

    Args:
        margin: in units of the embedding.
        reduction: over pairs.

    Raises:
        ContrastiveError: on a margin that is not positive and finite, or another reduction.
    """

    def __init__(self, margin: float = 1.0, *, reduction: str = "mean") -> None:
        super().__init__()
        self.margin = check_positive("margin", margin)
        self.reduction = check_choice("reduction", reduction, REDUCTIONS)

    def forward(
        self,
        first: Float[Tensor, "*batch dim"],
        second: Float[Tensor, "*batch dim"],
        similar: Bool[Tensor, "*batch"],
    ) -> Float[Tensor, "..."]:
        """The loss of one pair, or of a batch.

        Args:
            first: one side of the pair [dim], or of each pair [batch, dim].
            second: the other side.
            similar: whether the pair is similar [*batch].

        Returns:
            A scalar; with the reduction "none" one loss for each pair [*batch].

        Raises:
            ContrastiveError: on shapes that do not fit, labels that are not boolean, no pair, or
                entries that are not finite.
        """
        check_rows("first", first)
        check_same_shape("first", first, "second", second)
        if similar.dtype != torch.bool or similar.shape != first.shape[:-1]:
            raise ContrastiveError(
                f"expected similar to be boolean of the shape {list(first.shape[:-1])}, "
                f"got {similar.dtype} of {list(similar.shape)}"
            )
        check_finite("first", first)
        check_finite("second", second)
        difference = in_wide_precision(first) - in_wide_precision(second)
        # Not the square root of the sum of squares: its derivative at 0 is NaN, this one's is 0.
        distance = torch.linalg.vector_norm(difference, dim=-1)
        too_near = (self.margin - distance).clamp_min(0)
        losses = torch.where(similar, difference.square().sum(dim=-1), too_near.square())
        return _reduce(losses, self.reduction)


class SpectralRegularization(nn.Module):
    """Embeddings that vary little along the edges of a graph.

        λ Σ_{edges (i, j)} w_ij ‖z_i/√d_i − z_j/√d_j‖² = λ tr(Zᵀ L_sym Z)

    with degrees d_i = Σ_j w_ij and L_sym = D^{-1/2} (D − W) D^{-1/2}, in which D^{-1/2} is 0 at
    nodes of degree 0: an isolated node adds nothing. Unnormalised, without the √d: λ tr(Zᵀ L Z),
    L = D − W. A sum over edges, not a mean.

    Source: Belkin and Niyogi 2003, Laplacian eigenmaps; Chung 1997, Spectral graph theory.

    Args:
        weight: λ; 0 turns it off.
        normalized: whether L_sym is used rather than L.

    Raises:
        ContrastiveError: on a weight that is negative or not finite.
    """

    def __init__(self, weight: float = 1.0, *, normalized: bool = True) -> None:
        super().__init__()
        if not 0 <= weight < math.inf:
            raise ContrastiveError(f"expected weight to be finite and not negative, got {weight}")
        self.weight = weight
        self.normalized = normalized

    def forward(
        self,
        embeddings: Float[Tensor, "node dim"],
        edges: Int[Tensor, "two edge"],
        edge_weights: Float[Tensor, " edge"] | None = None,
    ) -> Float[Tensor, ""]:
        """The regularisation term.

        Args:
            embeddings: Z, one row per node.
            edges: the two ends of each edge [2, edge]. Edges have no direction: name each once.
                The weights of an edge named several times add up.
            edge_weights: w, none negative; 1 if None.

        Returns:
            A scalar.

        Raises:
            ContrastiveError: on shapes that do not fit, an edge to no node or from a node to
                itself, a negative weight, or entries that are not finite.
        """
        _check_graph(embeddings, edges, edge_weights)
        states = in_wide_precision(embeddings)
        source, target = edges.long()
        weights = (
            states.new_ones(edges.shape[1]) if edge_weights is None else edge_weights.to(states)
        )
        if self.normalized:
            degrees = states.new_zeros(len(states))
            degrees = degrees.index_add(0, source, weights).index_add(0, target, weights)
            connected = degrees > 0
            scale = torch.where(connected, degrees, 1.0).rsqrt() * connected
            states = states * scale[:, None]
        energy = (states[source] - states[target]).square().sum(dim=1)
        return self.weight * (weights * energy).sum()


def _reduce(losses: Tensor, reduction: str) -> Tensor:
    if reduction == "none":
        return losses
    return losses.mean() if reduction == "mean" else losses.sum()


def _check_negatives(anchors: Tensor, negatives: Tensor) -> None:
    dim = anchors.shape[-1]
    shared = negatives.ndim == 2 and negatives.shape[1] == dim
    own = (
        negatives.ndim == anchors.ndim + 1
        and negatives.shape[:-2] == anchors.shape[:-1]
        and negatives.shape[-1] == dim
    )
    if not (shared or own):
        wanted = [*anchors.shape[:-1], "num_negatives", dim]
        raise ContrastiveError(
            f"expected negatives of the shape [num_negatives, {dim}] or "
            f"[{', '.join(map(str, wanted))}], got {list(negatives.shape)}"
        )


def _check_graph(embeddings: Tensor, edges: Tensor, edge_weights: Tensor | None) -> None:
    if embeddings.ndim != 2 or edges.ndim != 2 or len(edges) != 2:
        raise ContrastiveError(
            "expected embeddings [node, dim] and edges [2, edge], "
            f"got the shapes {list(embeddings.shape)} and {list(edges.shape)}"
        )
    check_finite("embeddings", embeddings)
    outside = (edges < 0) | (edges >= len(embeddings))
    if outside.any():
        number = int(outside.any(dim=0).nonzero()[0])
        raise ContrastiveError(
            f"edge {number}: expected nodes from 0 to {len(embeddings) - 1}, "
            f"got {edges[:, number].tolist()}"
        )
    loops = edges[0] == edges[1]
    if loops.any():
        number = int(loops.nonzero()[0])
        raise ContrastiveError(
            f"edge {number} joins node {int(edges[0, number])} to itself; leave such edges out"
        )
    if edge_weights is None:
        return
    if edge_weights.shape != edges.shape[1:]:
        raise ContrastiveError(
            f"expected one weight for each of {edges.shape[1]} edges, "
            f"got the shape {list(edge_weights.shape)}"
        )
    bad = ~(edge_weights.isfinite() & (edge_weights >= 0))
    if bad.any():
        number = int(bad.nonzero()[0])
        raise ContrastiveError(
            f"edge {number}: expected a weight that is finite and not negative, "
            f"got {float(edge_weights[number])}"
        )
