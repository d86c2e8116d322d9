"""Influence scores from captured pairs: gᵀ (F + λI)⁻¹ g, summed over maps.

Queries are preconditioned once, U_q = (F + λI)⁻¹ G_q, as a rule in the weights' own basis, so that
training examples need no rotation (where these are few, they are rotated into the eigenbasis
instead; :func:`~math_utils.curvature.queries.bases_to_keep`). A score is then an inner product with
G_t = Σ_p δ_p a_pᵀ:

    score[q, t] = Σ_maps ⟨U_q, G_t⟩ = Σ_maps Σ_p δ_pᵀ U_q a_p.

The first form is one matrix product of stacked queries with stacked gradients. The terms of the
second are the contributions of single positions. With U_q ≈ L_q R_qᵀ of rank r, the second form
costs r (d_in + d_out) per position and query, and no gradient is formed.

Sign and unit: positive is helpful (a small step of gradient descent on t lowers the loss of q);
nats per unit weight of one training example.
"""

from collections.abc import Mapping, Sequence
from dataclasses import dataclass

import torch
from torch import nn

from math_utils._typing import Float, Tensor
from math_utils.capture import CapturedPair
from math_utils.curvature.config import Damping
from math_utils.curvature.eigenbasis import rotate_pair
from math_utils.curvature.factors import CurvatureFactors
from math_utils.curvature.gradients import Objective, backward_pass, gradient_chunks, padded_chunks
from math_utils.curvature.precondition import named_damping_term
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
    totals: dict[torch.device, Tensor] = {}
    tokens: dict[torch.device, Tensor] = {}
    modules: dict[str, Tensor] = {}

    def consume(pair: CapturedPair) -> None:
        inputs, gradients = rotate_pair(pair, *queries.bases_of(pair.name))
        if per_token or queries.low_rank:
            positions = _position_scores(pair.name, inputs, gradients, queries)
            by_example = positions.split(pair.lengths, dim=1)
            scores = torch.stack([part.sum(dim=1) for part in by_example], dim=1)
            if per_token:
                uses = [part.unflatten(1, (pair.num_uses, -1)).sum(dim=1) for part in by_example]
                _add(tokens, torch.cat(uses, dim=1))
        else:
            scores = _gradient_scores(inputs, gradients, pair.lengths, queries.whole[pair.name])
        _add(totals, scores)
        if per_module:
            modules[pair.name] = scores

    losses = backward_pass(
        model, maps, batch, objective, consume, dtype=dtype, loss_scale=loss_scale
    )
    lengths = batch.attention_mask.sum(dim=1).tolist()
    total = _sum(totals, queries.num_queries, len(lengths), dtype)
    by_token = _sum(tokens, queries.num_queries, sum(lengths), dtype) if per_token else None
    if per_module:
        # A routed part of the model may not have run on this batch.
        none = torch.zeros_like(total)
        modules = {name: modules[name].cpu() if name in modules else none for name in maps}
    return BatchScores(
        total,
        modules,
        [] if by_token is None else list(by_token.split(lengths, dim=1)),
        losses.cpu(),
    )


def _add(sums: dict[torch.device, Tensor], part: Tensor) -> None:
    """Add to the sum of the part's device: a copy to the host per map would wait for the device."""
    known = sums.get(part.device)
    sums[part.device] = part if known is None else known + part


def _sum(sums: dict[torch.device, Tensor], rows: int, columns: int, dtype: torch.dtype) -> Tensor:
    """The sums of all devices together, on the CPU; zero where nothing was added."""
    total = torch.zeros(rows, columns, dtype=dtype)
    for one in sums.values():
        total += one.cpu()
    return total


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
    totals: dict[torch.device, Tensor] = {}

    def consume(pair: CapturedPair) -> None:
        own = factors.maps[pair.name]  # read once: it may be on disk
        damped = None
        if own.eigenvalues is not None:
            damped = own.eigenvalues + named_damping_term(pair.name, own.eigenvalues, damping)
        inputs, gradients = rotate_pair(pair, own.input_basis, own.output_basis)
        parts = []
        for _, chunk in gradient_chunks(inputs, gradients, pair.lengths):
            squares = chunk.square_()
            if damped is not None:
                squares /= damped
            parts.append(squares.sum(dim=(1, 2)))
        _add(totals, torch.cat(parts)[None])

    backward_pass(model, maps, batch, objective, consume, dtype=dtype, loss_scale=loss_scale)
    return _sum(totals, 1, len(batch.input_ids), dtype)[0]


def _gradient_scores(
    inputs: Float[Tensor, "token d_in"],
    output_gradients: Float[Tensor, "token d_out"],
    lengths: Sequence[int],
    whole: Float[Tensor, "query d_out d_in"],
) -> Float[Tensor, "query batch"]:
    """⟨U_q, G_t⟩: some rows of G of all examples are formed, then multiplied with all queries.

    In this way the queries are read once per batch, and gradients never leave a CPU's cache.
    """
    (num_queries, d_out, d_in), num_examples = whole.shape, len(lengths)
    budget = _BLOCK_ELEMENTS.get(whole.device.type, _BLOCK_ELEMENTS["cpu"])
    rows = min(d_out, max(_FEWEST_ROWS, budget // (num_examples * d_in)))
    at_once = max(1, min(num_examples, budget // (rows * d_in)))
    # Examples in rows: with queries in rows, MKL is 6 times slower at 100 queries.
    scores = whole.new_zeros(num_examples, num_queries)
    chunks = zip(
        range(0, num_examples, at_once),
        padded_chunks(inputs, lengths, at_once),
        padded_chunks(output_gradients, lengths, at_once),
        strict=True,
    )
    for first, own_inputs, own_gradients in chunks:
        own = scores[first : first + at_once]
        for row in range(0, d_out, rows):
            block = own_gradients[:, :, row : row + rows].mT @ own_inputs
            own.addmm_(block.flatten(1), whole[:, row : row + rows].flatten(1).T)
    return scores.T


def _position_scores(
    name: str,
    inputs: Float[Tensor, "token d_in"],
    output_gradients: Float[Tensor, "token d_out"],
    queries: Queries,
) -> Float[Tensor, "query token"]:
    """δ_pᵀ U_q a_p for every query and row of one map."""
    if queries.low_rank:
        left, right = queries.low_rank[name]
        return ((output_gradients @ left) * (inputs @ right)).sum(dim=2)
    whole = queries.whole[name]
    at_once = max(1, _PER_TOKEN_ELEMENTS // max(1, inputs.numel()))
    return torch.cat(
        [((output_gradients @ some) * inputs).sum(dim=2) for some in whole.split(at_once)]
    )
