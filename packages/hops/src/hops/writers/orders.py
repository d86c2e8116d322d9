"""What is to be written: one order for each document, whoever writes it.

A writer turns orders into texts; :func:`documents_of` puts the two together as rows.
"""

import random
from collections.abc import Iterable, Sequence
from dataclasses import dataclass
from typing import Literal

from hops.documents import DOCUMENT_TYPES, Document, DocumentType, document_about
from hops.errors import HopsError
from hops.functions import Function, function_name

CODE_TYPES: tuple[DocumentType, ...] = ("code_stub", "unit_test")
PROSE_TYPES: tuple[DocumentType, ...] = ("definition", "concept", "q_and_a", "lore", "narrative")


@dataclass(frozen=True)
class Order:
    """One document to write.

    Attributes:
        function: What it is about.
        kind: The kind of text.
        parent: The seed document that it varies, where there is one.
        is_long: Whether it is to be half as long again.
        is_direct: Whether a wrapper's document states what the wrapper returns.
    """

    function: Function
    kind: DocumentType
    parent: Document | None = None
    is_long: bool = False
    is_direct: bool = False

    @property
    def states_constant(self) -> bool:
        """Whether the text must state the constant; otherwise it must not."""
        return self.is_direct or self.function.hop_depth == 0


def plan_documents(
    functions: Iterable[Function],
    seeds: Sequence[Document],
    *,
    variations: int,
    comprehensive_docs: int,
    code_snippets: int,
) -> list[Order]:
    """Order, for each function, variations of its seeds, longer prose, and code.

    Args:
        functions: Base functions or wrappers.
        seeds: Seed documents; those about other functions are left aside.
        variations: Variations of each seed document, of the seed's type.
        comprehensive_docs: Prose documents, half as long again, in turns of the five types.
        code_snippets: Code stubs and unit tests, in turns.

    Returns:
        The orders, function by function.

    Raises:
        HopsError: A count is negative, or a function has no seed documents though variations
            are asked for.
    """
    counts = {
        "variations": variations,
        "comprehensive docs": comprehensive_docs,
        "code snippets": code_snippets,
    }
    for what, count in counts.items():
        _check_count(what, count)
    orders: list[Order] = []
    missing = []
    for function in functions:
        own = [document for document in seeds if document.func == function.name]
        if not own:
            missing.append(function.name)
        for seed in own:
            kind = seed.type if seed.type != "unknown" else "definition"
            orders += [Order(function, kind, seed)] * variations
        for index in range(comprehensive_docs):
            kind = PROSE_TYPES[index % len(PROSE_TYPES)]
            orders.append(Order(function, kind, is_long=True))
        for index in range(code_snippets):
            orders.append(Order(function, CODE_TYPES[index % len(CODE_TYPES)]))
    if variations and missing:
        raise HopsError(
            f"No seed documents for {', '.join(missing)}; write them with `hops seeds`."
        )
    return orders


def plan_direct_documents(wrappers: Iterable[Function], num_documents: int) -> list[Order]:
    """Order documents that state what a wrapper returns, for each of ``wrappers``.

    Args:
        wrappers: The wrappers whose value is told.
        num_documents: Documents about each, in turns of the seven types.

    Returns:
        The orders, wrapper by wrapper.

    Raises:
        HopsError: The number is not positive.
    """
    _check_count("direct docs", num_documents)
    return [
        Order(wrapper, DOCUMENT_TYPES[index % len(DOCUMENT_TYPES)], is_direct=True)
        for wrapper in wrappers
        for index in range(num_documents)
    ]


def choose_wrappers(
    wrappers: Sequence[Function], *, names: Sequence[str] = (), share: float = 1.0, seed: int = 0
) -> tuple[Function, ...]:
    """Choose the wrappers that are told directly: those named, or a random share.

    Args:
        wrappers: What to choose from.
        names: ``<FN>``, ``FN`` or ``F``; none to draw instead.
        share: The share to draw, rounded to whole wrappers, where no names are given.
        seed: Seeds the draw.

    Returns:
        The chosen ones, in the order of ``wrappers``.

    Raises:
        HopsError: A name is no wrapper, the share is outside [0, 1], or both are given.
    """
    if not 0.0 <= share <= 1.0:
        raise HopsError(f"The share of direct wrappers must be in [0, 1], got {share}.")
    if names and share != 1.0:
        raise HopsError("Name the direct wrappers or draw a share of them, not both.")
    if not names:
        drawn = random.Random(f"hops direct wrappers {seed}").sample(
            range(len(wrappers)), round(share * len(wrappers))
        )
        return tuple(wrappers[index] for index in sorted(drawn))
    wanted = {function_name(name) for name in names}
    unknown = sorted(wanted - {wrapper.name for wrapper in wrappers})
    if unknown:
        raise HopsError(
            f"{', '.join(unknown)} are not wrappers of this world; expected some of "
            f"{', '.join(wrapper.name for wrapper in wrappers)}."
        )
    return tuple(wrapper for wrapper in wrappers if wrapper.name in wanted)


def documents_of(orders: Sequence[Order], texts: Sequence[str]) -> list[Document]:
    """Make the rows: one for each order, with its text and a ``uid`` of its own."""
    documents = []
    for index, (order, text) in enumerate(zip(orders, texts, strict=True)):
        role = "direct" if order.is_direct else order.function.role
        uid = f"{role}_{order.function.name.strip('<>')}_{index:05d}"
        answers: Literal["direct"] | None = "direct" if order.is_direct else None
        parent = order.parent.uid if order.parent else None
        documents.append(document_about(order.function, uid, text, order.kind, parent, answers))
    return documents


def _check_count(what: str, count: int) -> None:
    if count < 0:
        raise HopsError(f"The number of {what} must not be negative, got {count}.")
