"""Choosing the negatives that an anchor learns most from."""

from typing import Literal, get_args

import torch

from math_utils._typing import Bool, Float, Int, Tensor
from math_utils.contrastive.checks import (
    check_choice,
    check_count,
    check_positive,
    check_rows,
    check_same_shape,
    unit_vectors,
)
from math_utils.errors import ContrastiveError

MiningStrategy = Literal["hardest", "semi_hard", "distance_weighted", "random"]
MINING_STRATEGIES: tuple[str, ...] = get_args(MiningStrategy)
_SAMPLED = ("distance_weighted", "random")


class HardNegativeMiner:
    """Picks k negatives for each anchor among candidates, by their similarity to it.

    The similarity s is the cosine with norms floored at 1e-8, as in
    :class:`~math_utils.contrastive.InfoNCELoss`, and the distance is d = 1 − s.

    - ``hardest``: the most similar ones, most similar first.
    - ``semi_hard``: those with d_p < d < d_p + margin, where d_p is the positive's distance,
      most similar first; where they are fewer than k, the hardest of the others follow.
      (Schroff et al. 2015, arXiv 1503.03832, sec. 3.2, with a bound on both sides.)
    - ``distance_weighted``: one after the other without replacement, each with probability
      softmax(s / temperature) over those that are left, in the order drawn. Drawn as the largest
      of s / temperature plus Gumbel noise (Yellott 1977; Kool et al. 2019, arXiv 1903.06059).
    - ``random``: evenly, without replacement.

    Of equally similar candidates, the first is the harder one.

    Args:
        strategy: one of the four.
        margin: of ``semi_hard``, a distance.
        temperature: of ``distance_weighted``; may be set anew at any time.
        generator: the source of draws, which ``distance_weighted`` and ``random`` need. The draws
            are made on its device: with one on the CPU they are the same on every device.

    Raises:
        ContrastiveError: on another strategy, a margin or temperature that is not positive and
            finite, or a strategy that draws without a generator.
    """

    def __init__(
        self,
        strategy: str = "hardest",
        *,
        margin: float = 0.2,
        temperature: float = 0.1,
        generator: torch.Generator | None = None,
    ) -> None:
        self.strategy = check_choice("strategy", strategy, MINING_STRATEGIES)
        self.margin = check_positive("margin", margin)
        self.temperature = temperature
        self.generator = generator
        if strategy in _SAMPLED and generator is None:
            raise ContrastiveError(
                f"expected a generator for the strategy {strategy}, which draws, got none; "
                "pass torch.Generator().manual_seed(…)"
            )

    @property
    def temperature(self) -> float:
        """What similarities are divided by in ``distance_weighted``."""
        return self._temperature

    @temperature.setter
    def temperature(self, value: float) -> None:
        self._temperature = check_positive("temperature", value)

    @torch.no_grad()
    def mine(
        self,
        anchor: Float[Tensor, "*batch dim"],
        candidates: Float[Tensor, "..."],
        k: int,
        positive: Float[Tensor, "*batch dim"] | None = None,
        *,
        allowed: Bool[Tensor, "..."] | None = None,
    ) -> Int[Tensor, "*batch k"]:
        """The numbers of k different candidates for each anchor.

        Args:
            anchor: one anchor [dim], or a batch of them [batch, dim].
            candidates: [candidate, dim], the same for all anchors, or each one's own
                [*batch, candidate, dim].
            k: how many.
            positive: of each anchor; ``semi_hard`` needs it.
            allowed: which candidates may be picked, [candidate] or [*batch, candidate]; all if
                None. Exclude what is related to the anchor here.

        Returns:
            Indices into the candidates, as ordered by the strategy.

        Raises:
            ContrastiveError: on shapes that do not fit, entries that are not finite, fewer
                (allowed) candidates than k, or ``semi_hard`` without a positive.
        """
        check_count("k", k)
        check_rows("anchor", anchor)
        similarity = _similarities(anchor, candidates)
        if allowed is None:
            permitted = torch.ones_like(similarity, dtype=torch.bool)
        elif allowed.dtype == torch.bool and allowed.shape in (
            similarity.shape,
            similarity.shape[-1:],
        ):
            permitted = allowed.expand_as(similarity)
        else:
            raise ContrastiveError(
                f"expected allowed to be boolean of the shape {list(similarity.shape)}, "
                f"got {allowed.dtype} of {list(allowed.shape)}"
            )
        fewest = int(permitted.sum(dim=-1).min())
        if k > fewest:
            raise ContrastiveError(
                f"expected k to be at most the number of (allowed) candidates, {fewest}, got {k}"
            )
        keys = self._keys(similarity).masked_fill(~permitted, -torch.inf)
        if self.strategy in _SAMPLED:
            return keys.topk(k, dim=-1).indices
        # Not topk, which does not keep equal keys in their order.
        order = keys.argsort(dim=-1, descending=True, stable=True)
        if self.strategy == "semi_hard":
            front = (self._semi_hard(anchor, positive, similarity) & permitted).gather(-1, order)
            order = order.gather(-1, front.byte().argsort(dim=-1, descending=True, stable=True))
        return order[..., :k]

    def _keys(self, similarity: Tensor) -> Tensor:
        """What candidates are sorted by, largest first."""
        if self.strategy not in _SAMPLED or self.generator is None:
            return similarity
        device = self.generator.device
        waiting = torch.empty(similarity.shape, dtype=torch.float64, device=device)
        gumbel = -waiting.exponential_(generator=self.generator).log().to(similarity.device)
        if self.strategy == "random":
            return gumbel
        return similarity.double() / self.temperature + gumbel

    def _semi_hard(self, anchor: Tensor, positive: Tensor | None, similarity: Tensor) -> Tensor:
        if positive is None:
            raise ContrastiveError(
                "expected the positive for the strategy semi_hard, which looks for negatives a "
                "little farther than it, got none"
            )
        check_same_shape("anchor", anchor, "positive", positive)
        own = (unit_vectors("anchor", anchor) * unit_vectors("positive", positive)).sum(dim=-1)
        distance, own_distance = 1 - similarity, (1 - own)[..., None]
        return (own_distance < distance) & (distance < own_distance + self.margin)


def _similarities(anchor: Tensor, candidates: Tensor) -> Tensor:
    shared = candidates.ndim == 2
    own = candidates.ndim == anchor.ndim + 1 and candidates.shape[:-2] == anchor.shape[:-1]
    if not (shared or own) or candidates.shape[-1] != anchor.shape[-1]:
        dim = anchor.shape[-1]
        wanted = ", ".join(map(str, [*anchor.shape[:-1], "candidate", dim]))
        raise ContrastiveError(
            f"expected candidates of the shape [candidate, {dim}] or [{wanted}], "
            f"got {list(candidates.shape)}"
        )
    unit, others = unit_vectors("anchor", anchor), unit_vectors("candidates", candidates)
    return (others @ unit.unsqueeze(-1)).squeeze(-1) if candidates.ndim > 2 else unit @ others.T
