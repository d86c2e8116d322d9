"""The pass: every query's gradient against those of its candidates, each original's only once."""

from collections.abc import Iterator, Sequence
from dataclasses import dataclass, field

import numpy as np
import torch
from torch import Tensor
from tqdm import tqdm

from attribution.gradient_similarity.gradients import EncodedExample, ExampleGradients
from attribution.gradient_similarity.layout import FlatLayout, dots_by_tensor
from attribution.gradient_similarity.projection import GradientProjection
from attribution.gradient_similarity.results import Similarities
from attribution.gradient_similarity.store import GradientStore


@dataclass(frozen=True)
class Representation:
    """What is compared: whole gradients, or one projection of them.

    Attributes:
        projection: None for whole gradients.
        store: where those of originals are kept; None to keep none.
    """

    projection: GradientProjection | None = None
    store: GradientStore | None = None

    def layout(self, gradients: ExampleGradients) -> FlatLayout:
        """The layout of the vectors that are compared."""
        return gradients.layout if self.projection is None else self.projection.layout

    def vector(self, gradient: Tensor) -> Tensor:
        """A gradient as it is compared."""
        return gradient if self.projection is None else self.projection(gradient)


@dataclass
class Work:
    """How often the costly things were done.

    Attributes:
        query_gradients: gradients of queries that were computed.
        original_gradients: gradients of originals that were computed.
        projections: gradients that were projected, once for every fraction.
        dot_products: pairs of vectors that were multiplied, squared norms included.
    """

    query_gradients: int = 0
    original_gradients: int = 0
    projections: int = 0
    dot_products: int = 0


@dataclass
class _Rows:
    """What accumulates for one representation."""

    pairs: dict[tuple[int, int], Tensor] = field(default_factory=dict)
    query_norms: dict[int, Tensor] = field(default_factory=dict)
    original_norms: dict[int, Tensor] = field(default_factory=dict)


def store_originals(
    gradients: ExampleGradients,
    originals: Sequence[EncodedExample],
    representations: Sequence[Representation],
    *,
    work: Work | None = None,
) -> None:
    """Compute the vectors of originals that are not in their stores yet."""
    work = Work() if work is None else work
    for original in tqdm(originals, desc="originals", unit="gradient"):
        if any(one.store is None or original.key not in one.store for one in representations):
            _original_vectors(gradients, original, representations, work)


def gradient_similarities(
    gradients: ExampleGradients,
    queries: Sequence[EncodedExample],
    originals: Sequence[EncodedExample],
    candidates: Sequence[Sequence[int]],
    representations: Sequence[Representation] = (Representation(),),
    *,
    queries_at_once: int = 1,
    work: Work | None = None,
) -> list[Similarities]:
    """Compare each query's gradient with those of its candidates, tensor by tensor.

    Queries are taken in blocks whose vectors stay in memory. Within a block the vector of every
    original that is a candidate of any of its queries is made once: read from its store, or
    computed and stored. So an original's gradient is computed once in all where there is a store,
    once per block where there is none, and never once per query. Neither blocks nor stores change
    a bit of the result.

    Args:
        gradients: of the model.
        queries: with distinct keys.
        originals: with distinct keys.
        candidates: per query places in ``originals``, distinct.
        representations: what to compare; all from the same gradients.
        queries_at_once: size of a block.
        work: counts what is done, if given.

    Returns:
        The result for each representation.

    Raises:
        AttributionError: if a gradient is not finite or an example has no label.
    """
    work = Work() if work is None else work
    rows = [_Rows() for _ in representations]
    bar = tqdm(total=len(queries), desc="similarities", unit="query")
    for start in range(0, len(queries), queries_at_once):
        block = range(start, min(start + queries_at_once, len(queries)))
        vectors = {}
        for place in block:
            vectors[place] = _represent(gradients(queries[place]), representations, work)
            work.query_gradients += 1
            for of, vector, layout in _each(rows, vectors[place], representations, gradients):
                of.query_norms[place] = dots_by_tensor(vector, vector, layout)
                work.dot_products += 1
        for other in sorted({one for place in block for one in candidates[place]}):
            own = _original_vectors(gradients, originals[other], representations, work)
            asking = [place for place in block if other in candidates[place]]
            for index, (of, vector, layout) in enumerate(
                _each(rows, own, representations, gradients)
            ):
                if other not in of.original_norms:
                    of.original_norms[other] = dots_by_tensor(vector, vector, layout)
                    work.dot_products += 1
                for place in asking:
                    of.pairs[place, other] = dots_by_tensor(vectors[place][index], vector, layout)
                    work.dot_products += 1
        bar.update(len(block))
    bar.close()
    return [
        _assemble(one, one_layout.names, queries, originals, candidates)
        for one, one_layout in zip(
            rows, (r.layout(gradients) for r in representations), strict=True
        )
    ]


def _represent(
    gradient: Tensor, representations: Sequence[Representation], work: Work
) -> list[Tensor]:
    work.projections += sum(one.projection is not None for one in representations)
    return [one.vector(gradient) for one in representations]


def _original_vectors(
    gradients: ExampleGradients,
    original: EncodedExample,
    representations: Sequence[Representation],
    work: Work,
) -> list[Tensor]:
    """From the stores if they all have it; otherwise computed, and stored where it is missing."""
    stores = [one.store for one in representations]
    device = next(gradients.model.parameters()).device
    if all(store is not None and original.key in store for store in stores):
        return [store.read(original.key).to(device) for store in stores if store is not None]
    work.original_gradients += 1
    vectors = _represent(gradients(original), representations, work)
    for store, vector in zip(stores, vectors, strict=True):
        if store is not None and original.key not in store:
            store.write(original.key, vector)
    return vectors


def _each(
    rows: Sequence[_Rows],
    vectors: Sequence[Tensor],
    representations: Sequence[Representation],
    gradients: ExampleGradients,
) -> Iterator[tuple[_Rows, Tensor, FlatLayout]]:
    layouts = [one.layout(gradients) for one in representations]
    return zip(rows, vectors, layouts, strict=True)


def _assemble(
    rows: _Rows,
    names: tuple[str, ...],
    queries: Sequence[EncodedExample],
    originals: Sequence[EncodedExample],
    candidates: Sequence[Sequence[int]],
) -> Similarities:
    """Order by numeric id; candidates of one query keep the order that they were given in."""
    query_order = sorted(range(len(queries)), key=lambda place: queries[place].key)
    original_order = sorted(rows.original_norms, key=lambda place: originals[place].key)
    place_of = {original: place for place, original in enumerate(original_order)}
    keys = [(query, other) for query in query_order for other in candidates[query]]
    query_place = {query: place for place, query in enumerate(query_order)}
    pairs = [(query_place[query], place_of[other]) for query, other in keys]
    return Similarities(
        tensors=names,
        query_ids=tuple(queries[place].key for place in query_order),
        original_ids=tuple(originals[place].key for place in original_order),
        pairs=np.array(pairs, dtype=np.int64).reshape(-1, 2),
        dots=_matrix([rows.pairs[key] for key in keys], len(names)),
        query_squared_norms=_matrix([rows.query_norms[q] for q in query_order], len(names)),
        original_squared_norms=_matrix(
            [rows.original_norms[o] for o in original_order], len(names)
        ),
    )


def _matrix(rows: Sequence[Tensor], width: int) -> np.ndarray:
    if not rows:
        return np.zeros((0, width))
    return torch.stack(list(rows)).numpy()
