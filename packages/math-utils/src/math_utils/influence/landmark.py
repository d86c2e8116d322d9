"""Choosing landmarks among embedded examples: few that stand for all."""

import warnings
from collections.abc import Callable, Iterator

import torch

from math_utils._typing import Float, Int, Tensor
from math_utils.errors import InfluenceError
from math_utils.influence.config import LandmarkConfig
from math_utils.linalg import symmetric_eigendecomposition

_CHUNK_ELEMENTS = 1 << 22
_RANK_TOLERANCE = 1e-10
"""Eigenvalues of XᵀX below this part of the largest are rounding error."""


class LandmarkSelector:
    """Selects landmarks by one of four strategies; never the same example twice.

    ``random`` draws evenly. ``kmeans_pp`` (Arthur and Vassilvitskii 2007) draws each landmark with
    probability proportional to the squared distance from the nearest one so far.
    ``farthest_point`` (Gonzalez 1985) takes the example farthest from all so far, after a random
    first one. ``leverage`` draws without replacement by the leverage scores x_iᵀ (XᵀX)⁺ x_i
    (Drineas et al. 2012, arXiv 1109.3843). Where all that is left has probability zero, as copies
    of landmarks have, the rest is drawn evenly.

    Args:
        config: strategy, number and seed.
    """

    def __init__(self, config: LandmarkConfig | None = None) -> None:
        self.config = config or LandmarkConfig()

    def select(
        self, embeddings: Float[Tensor, "num_examples dim"], *, chunk_size: int | None = None
    ) -> Int[Tensor, " num_landmarks"]:
        """The numbers of the landmarks, in the order of their selection.

        Args:
            embeddings: one row per example.
            chunk_size: rows looked at at once; changes memory only.

        Returns:
            ``num_landmarks`` numbers on the CPU; all examples, with a warning, where there are
            no more.

        Raises:
            InfluenceError: on no embeddings or ones that are not finite.
        """
        num_examples, dim = embeddings.shape
        if not num_examples:
            raise InfluenceError("expected at least one embedding to select from, got none")
        finite = embeddings.isfinite().all(dim=1)
        if not finite.all():
            raise InfluenceError(
                f"the embedding of example {int((~finite).nonzero()[0])}: expected finite entries, "
                "got NaN or infinity; compute embeddings in a wider dtype"
            )
        wanted = self.config.num_landmarks
        if wanted >= num_examples:
            if wanted > num_examples:
                warnings.warn(
                    f"{wanted} landmarks were asked for and there are {num_examples} examples: "
                    "all of them are landmarks",
                    stacklevel=2,
                )
            return torch.arange(num_examples)
        rows = chunk_size or max(1, _CHUNK_ELEMENTS // max(1, dim))
        generator = torch.Generator().manual_seed(self.config.seed)
        if self.config.strategy == "random":
            return torch.randperm(num_examples, generator=generator)[:wanted]
        if self.config.strategy == "leverage":
            scores = leverage_scores(embeddings, chunk_size=rows)
            return _draw_without_replacement(scores.cpu(), wanted, generator)
        draw = _farthest if self.config.strategy == "farthest_point" else _by_squared_distance
        return _grow(embeddings, wanted, rows, generator, draw)


def leverage_scores(
    embeddings: Float[Tensor, "num_examples dim"], *, chunk_size: int
) -> Float[Tensor, " num_examples"]:
    """The diagonal of X (XᵀX)⁺ Xᵀ, in float64: between 0 and 1, summing to the rank of X.

    Args:
        embeddings: X.
        chunk_size: rows looked at at once.
    """
    dim = embeddings.shape[1]
    gram = torch.zeros(dim, dim, dtype=torch.float64, device=embeddings.device)
    for part in embeddings.split(chunk_size):
        gram += part.double().T @ part.double()
    values, vectors = symmetric_eigendecomposition(gram, name="the embeddings' Gram matrix")
    kept = values > _RANK_TOLERANCE * values[-1]
    whitening = vectors[:, kept] * values[kept].rsqrt()
    parts = [
        (part.double() @ whitening).square().sum(dim=1) for part in embeddings.split(chunk_size)
    ]
    return torch.cat(parts)


_Draw = Callable[[Float[Tensor, " num_examples"], torch.Generator], int]


def _grow(
    embeddings: Tensor, wanted: int, rows: int, generator: torch.Generator, draw: _Draw
) -> Tensor:
    """Add landmarks one by one, keeping every example's squared distance to the nearest."""
    num_examples = len(embeddings)
    chosen = [int(torch.randint(0, num_examples, (1,), generator=generator))]
    free = torch.ones(num_examples, dtype=torch.bool)
    nearest = torch.full((num_examples,), torch.inf, dtype=torch.float64)
    while len(chosen) < wanted:
        free[chosen[-1]] = False
        for where, distances in _squared_distances(embeddings, embeddings[chosen[-1]], rows):
            torch.minimum(nearest[where], distances, out=nearest[where])
        nearest[chosen[-1]] = 0
        if float(nearest.max()) > 0:
            chosen.append(draw(nearest, generator))
        else:
            left = free.nonzero()[:, 0]
            chosen.append(int(left[torch.randint(0, len(left), (1,), generator=generator)]))
    return torch.tensor(chosen)


def _squared_distances(
    embeddings: Tensor, center: Tensor, rows: int
) -> Iterator[tuple[slice, Tensor]]:
    for start in range(0, len(embeddings), rows):
        where = slice(start, min(start + rows, len(embeddings)))
        differences = embeddings[where].double() - center.double()
        yield where, differences.square_().sum(dim=1).cpu()


def _farthest(nearest: Tensor, generator: torch.Generator) -> int:
    return int(nearest.argmax())


def _by_squared_distance(nearest: Tensor, generator: torch.Generator) -> int:
    mass = nearest.cumsum(dim=0)
    point = torch.rand(1, generator=generator, dtype=torch.float64) * mass[-1]
    # right=True passes over entries without mass: landmarks and their copies.
    place = int(torch.searchsorted(mass, point, right=True))
    return min(place, int(nearest.nonzero()[-1]))


def _draw_without_replacement(scores: Tensor, num: int, generator: torch.Generator) -> Tensor:
    """Draws one after the other by score, as ranks of exponentials (Efraimidis and Spirakis)."""
    uniform = torch.rand(len(scores), generator=generator, dtype=torch.float64)
    waiting = -torch.log1p(-uniform) / scores.clamp_min(0)
    # Without a score one waits for ever; a random order among those fills what is left.
    order = torch.randperm(len(scores), generator=generator)
    return order[torch.argsort(waiting[order].nan_to_num(torch.inf), stable=True)][:num]
