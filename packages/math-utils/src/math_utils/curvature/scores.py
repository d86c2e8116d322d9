"""Influence scores from captured pairs: gᵀ (F + λI)⁻¹ g, summed over maps.

Queries are preconditioned once, U_q = (F + λI)⁻¹ G_q in the weights' own basis, so that training
examples need no rotation. A score is then an inner product with G_t = Σ_p δ_p a_pᵀ:

    score[q, t] = Σ_maps ⟨U_q, G_t⟩ = Σ_maps Σ_p δ_pᵀ U_q a_p.

The first form is one matrix product of stacked queries with stacked gradients. The terms of the
second are the contributions of single positions. With U_q ≈ L_q R_qᵀ of rank r, the second form
costs r (d_in + d_out) per position and query, and no gradient is formed.

Sign and unit: positive is helpful (a small step of gradient descent on t lowers the loss of q);
nats per unit weight of one training example.
"""

from collections.abc import Mapping
from dataclasses import dataclass

import torch
from torch import nn

from math_utils._typing import Float, Tensor
from math_utils.capture import CapturedPair
from math_utils.curvature.config import Damping
from math_utils.curvature.eigenbasis import rotate_pair
from math_utils.curvature.factors import CurvatureFactors
from math_utils.curvature.gradients import Objective, backward_pass, gradient_chunks, padded_chunks
from math_utils.curvature.precondition import damping_terms
from math_utils.curvature.queries import Queries
from math_utils.language_modeling import TokenBatch
from math_utils.linear_maps import LinearMap

_BLOCK_ELEMENTS = {"cpu": 1 << 21, "cuda": 1 << 28}
"""Gradient entries formed before their product with all queries."""

_FEWEST_ROWS = 32
"""Rows of a gradient formed at once: with fewer, matrix products are slow."""

_PER_TOKEN_ELEMENTS = 1 << 24
"""Entries of query × position × d_in formed at once for per-token scores."""


@dataclass(frozen=True, eq=False)
class BatchScores:
    """Scores of the training examples of one batch.

    Attributes:
        total: [query, batch].
        per_module: {map: [query, batch]}, summing to ``total``; empty unless asked for.
        per_token: per example [query, positions], summing to its column of ``total``;
            empty unless asked for.
        losses: the loss of every example, in nats.
    """

    total: Float[Tensor, "query batch"]
    per_module: dict[str, Float[Tensor, "query batch"]]
    per_token: list[Float[Tensor, "query _"]]
    losses: Float[Tensor, " batch"]


def score_batch(
    model: nn.Module,
    maps: Mapping[str, LinearMap],
    batch: TokenBatch,
    objective: Objective,
    queries: Queries,
    *,
    per_module: bool = False,
    per_token: bool = False,
    dtype: torch.dtype = torch.float32,
    loss_scale: float = 1.0,
) -> BatchScores:
    """Score the examples of one batch against all queries.

    Args:
        model: in the state that :func:`math_utils.capture.frozen` gives.
        maps: the tracked maps.
        batch: training examples.
        objective: their loss.
        queries: preconditioned queries of the same maps.
        per_module: also keep the scores of every map.
        per_token: also keep the contribution of every unpadded position, p as in the module's
            docstring: the term that the layer inputs and output gradients of p give.
        dtype: dtype of captured tensors and of the products.
        loss_scale: as for :func:`~math_utils.curvature.gradients.backward_pass`.

    Returns:
        The scores, in nats per unit weight of one training example.

    Raises:
        ValueError: if a loss or gradient is not finite.
    """
    num_examples = len(batch.input_ids)
    total = torch.zeros(queries.num_queries, num_examples, dtype=dtype)
    modules: dict[str, Tensor] = {}
    lengths = batch.attention_mask.sum(dim=1).tolist()
    tokens = (
        [torch.zeros(queries.num_queries, n, dtype=dtype) for n in lengths] if per_token else []
    )

    def consume(pair: CapturedPair) -> None:
        if per_token or queries.low_rank:
            by_position = _position_scores(pair, queries).cpu().split(pair.lengths, dim=1)
            scores = torch.stack([part.sum(dim=1) for part in by_position], dim=1)
            for example, part in enumerate(by_position if per_token else ()):
                tokens[example] += part.unflatten(1, (pair.num_uses, -1)).sum(dim=1)
        else:
            scores = _gradient_scores(pair, queries.whole[pair.name]).cpu()
        total.add_(scores)
        if per_module:
            modules[pair.name] = scores

    losses = backward_pass(
        model, maps, batch, objective, consume, dtype=dtype, loss_scale=loss_scale
    )
    if per_module:
        # A routed part of the model may not have run on this batch.
        modules = {name: modules.get(name, torch.zeros_like(total)) for name in maps}
    return BatchScores(total, modules, tokens, losses.cpu())


def self_influence(
    model: nn.Module,
    maps: Mapping[str, LinearMap],
    batch: TokenBatch,
    objective: Objective,
    factors: CurvatureFactors,
    damping: Damping,
    *,
    dtype: torch.dtype = torch.float32,
    loss_scale: float = 1.0,
) -> Float[Tensor, " batch"]:
    """g_tᵀ (F + λI)⁻¹ g_t of every example of a batch, without any pair of examples.

    Args:
        model: in the state that :func:`math_utils.capture.frozen` gives.
        maps: the tracked maps.
        batch: training examples.
        objective: their loss.
        factors: fitted curvature.
        damping: as for the scores of queries.
        dtype: dtype of captured tensors and of the products.
        loss_scale: as for :func:`~math_utils.curvature.gradients.backward_pass`.

    Returns:
        Self-influence, never negative, in nats per unit weight of one training example.

    Raises:
        ValueError: if a loss or gradient is not finite, or the damped curvature singular.
    """
    terms = damping_terms(factors, damping)
    total = torch.zeros(len(batch.input_ids), dtype=dtype)

    def consume(pair: CapturedPair) -> None:
        own = factors.maps[pair.name]
        inputs, gradients = rotate_pair(pair, own.input_basis, own.output_basis)
        for rows, chunk in gradient_chunks(inputs, gradients, pair.lengths):
            squares = chunk.square_()
            if own.eigenvalues is not None:
                squares /= own.eigenvalues + terms[pair.name]
            total[rows] += squares.sum(dim=(1, 2)).cpu()

    backward_pass(model, maps, batch, objective, consume, dtype=dtype, loss_scale=loss_scale)
    return total


def _gradient_scores(
    pair: CapturedPair, whole: Float[Tensor, "query d_out d_in"]
) -> Float[Tensor, "query batch"]:
    """⟨U_q, G_t⟩: some rows of G of all examples are formed, then multiplied with all queries.

    In this way the queries are read once per batch, and gradients never leave a CPU's cache.
    """
    (num_queries, d_out, d_in), num_examples = whole.shape, len(pair.lengths)
    budget = _BLOCK_ELEMENTS.get(whole.device.type, _BLOCK_ELEMENTS["cpu"])
    rows = min(d_out, max(_FEWEST_ROWS, budget // (num_examples * d_in)))
    at_once = max(1, min(num_examples, budget // (rows * d_in)))
    # Examples in rows: with queries in rows, MKL is 6 times slower at 100 queries.
    scores = whole.new_zeros(num_examples, num_queries)
    chunks = zip(
        range(0, num_examples, at_once),
        padded_chunks(pair.inputs, pair.lengths, at_once),
        padded_chunks(pair.output_gradients, pair.lengths, at_once),
        strict=True,
    )
    for first, inputs, gradients in chunks:
        own = scores[first : first + at_once]
        for row in range(0, d_out, rows):
            block = gradients[:, :, row : row + rows].mT @ inputs
            own.addmm_(block.flatten(1), whole[:, row : row + rows].flatten(1).T)
    return scores.T


def _position_scores(pair: CapturedPair, queries: Queries) -> Float[Tensor, "query token"]:
    """δ_pᵀ U_q a_p for every query and row of the pair."""
    if queries.low_rank:
        left, right = queries.low_rank[pair.name]
        return ((pair.output_gradients @ left) * (pair.inputs @ right)).sum(dim=2)
    whole = queries.whole[pair.name]
    at_once = max(1, _PER_TOKEN_ELEMENTS // max(1, pair.inputs.numel()))
    return torch.cat(
        [((pair.output_gradients @ some) * pair.inputs).sum(dim=2) for some in whole.split(at_once)]
    )
