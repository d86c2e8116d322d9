"""Preconditioned query gradients: U_q = (F + λI)⁻¹ G_q, whole or in low rank.

U_q = Q_S R_q Q_Aᵀ, with R_q in the eigenbasis. Either side may stay in the eigenbasis: what U_q is
multiplied with is then rotated instead, which costs less where its rows are few
(:func:`bases_to_keep`).
"""

from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field

import torch
from torch import nn

from math_utils._typing import Float, Int, Tensor
from math_utils.capture import CapturedPair
from math_utils.curvature.config import Damping
from math_utils.curvature.eigenbasis import rotate_back, rotate_pair
from math_utils.curvature.factors import CurvatureFactors, MapFactors
from math_utils.curvature.gradients import Objective, backward_pass, gradient_chunks
from math_utils.curvature.precondition import damping_terms
from math_utils.language_modeling import TokenBatch
from math_utils.linalg import low_rank_factors
from math_utils.linear_maps import LinearMap

_CHUNK_ELEMENTS = {"cpu": 1 << 22, "cuda": 1 << 28}
"""Gradient entries preconditioned at once."""


Bases = tuple[Float[Tensor, "d_in d_in"] | None, Float[Tensor, "d_out d_out"] | None]
"""(Q_A, Q_S) of one map; None for a side that is in the weights' own basis."""


@dataclass(frozen=True, eq=False)
class Queries:
    """Preconditioned query gradients U_q of every map, whole or in low rank.

    Attributes:
        whole: {map: [query, d_out, d_in]}; empty if low-rank.
        low_rank: {map: (L [query, d_out, rank], R [query, d_in, rank])}; empty if whole.
        num_queries: how many.
        bases: {map: the eigenbases that its sides are in}; a map that is not among them is in
            the weights' own basis on both sides.
    """

    whole: Mapping[str, Tensor]
    low_rank: Mapping[str, tuple[Tensor, Tensor]]
    num_queries: int
    bases: Mapping[str, Bases] = field(default_factory=dict)

    def bases_of(self, name: str) -> Bases:
        """What rows of this map are rotated by before they are multiplied with the queries."""
        return self.bases.get(name, (None, None))

    @classmethod
    def stack(
        cls, preconditioned: Mapping[str, Float[Tensor, "query d_out d_in"]], rank: int | None
    ) -> "Queries":
        """Queries from :func:`math_utils.curvature.precondition.precondition_all`.

        Args:
            preconditioned: U_q of every map.
            rank: keep the best approximation of this rank; None keeps all.
        """
        num_queries = len(next(iter(preconditioned.values())))
        if rank is None:
            return cls(dict(preconditioned), {}, num_queries)
        factors = {n: low_rank_factors(matrix, rank) for n, matrix in preconditioned.items()}
        return cls({}, factors, num_queries)

    @classmethod
    def zeros(
        cls,
        maps: Mapping[str, LinearMap],
        num_queries: int,
        rank: int | None,
        dtype: torch.dtype = torch.float32,
        bases: Mapping[str, Bases] | None = None,
    ) -> "Queries":
        """Room for queries, on the device of each map's weight; filled by :meth:`put`."""
        whole: dict[str, Tensor] = {}
        low_rank: dict[str, tuple[Tensor, Tensor]] = {}
        for name, one in maps.items():
            like = one.modules[0].get_parameter("weight")
            if rank is None:
                whole[name] = like.new_zeros((num_queries, one.d_out, one.d_in), dtype=dtype)
            else:
                kept = min(rank, one.d_out, one.d_in)
                low_rank[name] = (
                    like.new_zeros((num_queries, one.d_out, kept), dtype=dtype),
                    like.new_zeros((num_queries, one.d_in, kept), dtype=dtype),
                )
        return cls(whole, low_rank, num_queries, bases or {})

    def put(
        self,
        name: str,
        places: Int[Tensor, " some"],
        rotated: Float[Tensor, "some d_out d_in"],
        factors: MapFactors,
    ) -> None:
        """Write U_q = Q_S R_q Q_Aᵀ of one map for the queries at ``places``, from R_q.

        Compressed where these are. Sides that stay in their eigenbasis are not rotated back. Whole
        ones on a CPU are products that go straight to their place: without a copy, and faster
        than one product over a batch.
        """
        kept_inputs, kept_outputs = self.bases_of(name)
        input_basis = factors.input_basis if kept_inputs is None else None
        output_basis = factors.output_basis if kept_outputs is None else None
        if name not in self.whole:
            # The best approximation of a rotated matrix is that of the matrix, rotated.
            left, right = self.low_rank[name]
            places = places.to(left.device)
            own_left, own_right = low_rank_factors(rotated, left.shape[2])
            left[places] = rotate_back(own_left, None, output_basis)
            right[places] = rotate_back(own_right, None, input_basis)
        elif output_basis is not None and rotated.device.type == "cpu":
            half = rotate_back(rotated, input_basis, None)
            for place, one in zip(places.tolist(), half, strict=True):
                torch.mm(output_basis, one, out=self.whole[name][place])
        else:
            solved = rotate_back(rotated, input_basis, output_basis)
            self.whole[name][places.to(solved.device)] = solved


def bases_to_keep(
    factors: CurvatureFactors, *, num_queries: int, num_rows: int, rank: int | None = None
) -> dict[str, Bases]:
    """The sides of queries that are better left in their eigenbasis, for :func:`collect_queries`.

    To rotate the inputs of a map back is a product with Q_A for each of the d_out rows of every
    query (each of its ``rank`` columns, if it is compressed); not to do so, one for each row that
    the queries are multiplied with. Gradients of outputs likewise. The scores are the same.

    Args:
        factors: in memory: the bases that are kept are these.
        num_queries: as many as are collected together.
        num_rows: positions of all training examples that are scored against them.
        rank: of the queries; None if they are whole.

    Returns:
        The bases of the sides that are kept, None for the others.
    """
    kept: dict[str, Bases] = {}
    for name, one in factors.maps.items():
        if one.input_basis is None or one.output_basis is None:
            continue
        d_in, d_out = len(one.input_basis), len(one.output_basis)
        narrow = None if rank is None else min(rank, d_in, d_out)
        keeps_inputs = num_rows < num_queries * (narrow or d_out)
        keeps_outputs = num_rows < num_queries * (narrow or d_in)
        kept[name] = (
            one.input_basis if keeps_inputs else None,
            one.output_basis if keeps_outputs else None,
        )
    return kept


def collect_queries(
    model: nn.Module,
    maps: Mapping[str, LinearMap],
    batches: Sequence[TokenBatch],
    objective: Objective,
    factors: CurvatureFactors,
    damping: Damping,
    *,
    rank: int | None = None,
    bases: Mapping[str, Bases] | None = None,
    order: Sequence[int] | None = None,
    dtype: torch.dtype = torch.float32,
    loss_scale: float = 1.0,
) -> tuple[Queries, Float[Tensor, " query"]]:
    """Gradients of queries, preconditioned as they come.

    The same numbers as :func:`~math_utils.curvature.gradients.collect_gradients` followed by
    :func:`~math_utils.curvature.precondition.precondition_all` and :meth:`Queries.stack`, for
    half of the arithmetic and a third of the memory: positions are rotated into the eigenbasis
    before they are summed, and each chunk of gradients is preconditioned (and, with a rank,
    compressed) before the next is formed.

    Args:
        model: in the state that :func:`math_utils.capture.frozen` gives.
        maps: the tracked maps.
        batches: the queries.
        objective: their loss.
        factors: fitted curvature of the same maps.
        damping: what is added to the eigenvalues.
        rank: keep the best approximation of this rank; None keeps all.
        bases: sides to leave in the eigenbasis, from :func:`bases_to_keep`; None leaves none.
        order: for each query of the batches in turn, its place in the result; None keeps them.
        dtype: dtype of captured tensors and of the products, that of the factors.
        loss_scale: as for :func:`~math_utils.curvature.gradients.backward_pass`.

    Returns:
        (queries, losses in nats), in the order asked for.

    Raises:
        CurvatureError: if the damped curvature of a map, which is named, is singular.
        ValueError: if a loss or gradient is not finite.
    """
    terms = damping_terms(factors, damping)
    num_queries = sum(len(batch.input_ids) for batch in batches)
    queries = Queries.zeros(maps, num_queries, rank, dtype, bases)
    places = torch.tensor(range(num_queries) if order is None else order)
    losses = torch.zeros(num_queries, dtype=dtype)
    first = 0
    for batch in batches:
        own_places = places[first : first + len(batch.input_ids)]

        def consume(pair: CapturedPair, own_places: Tensor = own_places) -> None:
            own = factors.maps[pair.name]
            inputs, gradients = rotate_pair(pair, own.input_basis, own.output_basis)
            for rows, chunk in gradient_chunks(
                inputs, gradients, pair.lengths, max_elements=_CHUNK_ELEMENTS
            ):
                if own.eigenvalues is not None:
                    chunk /= own.eigenvalues + terms[pair.name]
                queries.put(pair.name, own_places[rows], chunk, own)

        found = backward_pass(
            model, maps, batch, objective, consume, dtype=dtype, loss_scale=loss_scale
        )
        losses[own_places] = found.to(losses)
        first += len(batch.input_ids)
    return queries, losses
