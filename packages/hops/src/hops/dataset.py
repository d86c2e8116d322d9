"""Putting documents into the order in which a model meets them."""

import random
from collections import defaultdict
from collections.abc import Sequence

from hops.documents import Document
from hops.errors import HopsError


def interleave(documents: Sequence[Document], pattern: Sequence[str]) -> list[Document]:
    """Order documents in cycles of a pattern of functions; append what is left.

    As many whole cycles as possible: each takes, for every function in the pattern, that
    function's next document.  The rest follows in its original order.

    Args:
        documents: The documents; each appears once in the result.
        pattern: Function names; a name may occur more than once.

    Returns:
        The documents, reordered.

    Raises:
        HopsError: A function of the pattern has no document at all.
    """
    waiting: dict[str | None, list[int]] = defaultdict(list)
    for index, document in enumerate(documents):
        waiting[document.func].append(index)
    missing = sorted({name for name in pattern if not waiting[name]})
    if missing or not pattern:
        raise HopsError(
            f"No documents about {', '.join(missing) or 'any function of the pattern'}."
        )
    num_cycles = min(len(waiting[name]) // list(pattern).count(name) for name in set(pattern))
    queues = {name: iter(waiting[name]) for name in set(pattern)}
    order = [next(queues[name]) for _ in range(num_cycles) for name in pattern]
    used = set(order)
    order += [index for index in range(len(documents)) if index not in used]
    return [documents[index] for index in order]


def combine(
    sources: Sequence[Sequence[Document]],
    *,
    weights: Sequence[float] | None = None,
    seed: int = 0,
    shuffle: bool = True,
) -> list[Document]:
    """Mix several data sets.

    A source of weight 1 enters once, of weight 0.5 with a random half of its rows, of weight 2.25
    twice and with a random quarter.  A row that enters again has ``uid`` ``...#2`` and so on.

    Args:
        sources: The data sets.
        weights: One non-negative weight for each; all 1 by default.
        seed: The seed of the draws and of the order.
        shuffle: Whether to shuffle the mixture; otherwise the sources follow one another.

    Returns:
        The mixture.

    Raises:
        HopsError: The number of weights differs from that of the sources, a weight is
            negative, nothing is left, or two sources use one ``uid`` for different rows.
    """
    weights = [1.0] * len(sources) if weights is None else list(weights)
    if len(weights) != len(sources):
        raise HopsError(f"Expected {len(sources)} weights, one for each file, got {len(weights)}.")
    if any(not 0.0 <= weight < float("inf") for weight in weights):
        raise HopsError(f"Weights must be finite and not negative, got {weights}.")
    rng = random.Random(f"hops combine {seed}")
    mixture: list[Document] = []
    for documents, weight in zip(sources, weights, strict=True):
        whole, part = int(weight), weight - int(weight)
        for repeat in range(whole):
            mixture += [_repeated(document, repeat) for document in documents]
        chosen = sorted(rng.sample(range(len(documents)), round(part * len(documents))))
        mixture += [_repeated(documents[index], whole) for index in chosen]
    if not mixture:
        raise HopsError("The mixture is empty; raise a weight.")
    if shuffle:
        rng.shuffle(mixture)
    return mixture


def _repeated(document: Document, repeat: int) -> Document:
    if repeat == 0:
        return document
    return document.model_copy(update={"uid": f"{document.uid}#{repeat + 1}"})
