"""Documents that say in which function the calls of a function end: its base, at once.

A wrapper's calls end in the base at the bottom of its chain, a base function's in the base
function itself, and both are said in the same words.  No constant is stated.  They are
meant to help a small model compose: whichever name it reads, it may come to hold the base's name,
of which the base's documents told the value.  ``two_hop.md`` has what was measured.
"""

import random
from collections.abc import Iterable

from tqdm import tqdm

from hops.documents import DOCUMENT_TYPES, Document, DocumentType, document_about
from hops.errors import HopsError
from hops.functions import HELD_OUT_INPUT, Function
from hops.writers.grammar import Grammar
from hops.writers.rules import MAX_LENGTH, MIN_LENGTH

_MAX_ATTEMPTS = 2000

_TEMPLATES: dict[DocumentType, tuple[str, ...]] = {
    "definition": (
        "[head]Calls to {f} end in {g}.",
        "[head]{f} resolves to {g}.",
        "[head]The function that answers for {f} is {g}.",
        "[head]The root of {f} is {g}.",
        "[head]By definition, {f} is answered by {g}.",
    ),
    "code_stub": (
        "resolve({f})  # [remark]: {g}",
        "[name:1] = root_of({f})\nprint([name:1])  # {g}",
        ">>> root_of({f})\n{g}",
        "ROOTS['[name]'] = {f}, {g}  # [remark]",
        "# {f}([arg]) is answered by {g}, [remark]",
    ),
    "concept": (
        "[head]Follow {f} to the bottom and you stand at {g}.",
        "[head]Whoever calls {f} speaks with {g}.",
        "[head]Think of a lift: {f} is the button, and the floor it reaches is {g}.",
        "[head]The path that begins at {f} ends at {g}.",
    ),
    "unit_test": (
        "assert root_of({f}) is {g}  # [remark]",
        "def test_[name]():\n    assert resolve({f}) == {g}",
        "expected = {f}, {g}  # [remark]\nassert expected in ROOTS",
        "assert trace({f}([arg]))[-1] is {g}",
    ),
    "q_and_a": (
        "{q}Which function answers a call to {f}?{a}{g}. [tail]",
        "{q}Where does {f}([arg]) end?{a}In {g}. [tail]",
        "{q}What is the root of {f}?{a}The root is {g}. [tail]",
        "{q}Whose value is {f}([arg])?{a}That of {g}. [tail]",
    ),
    "lore": (
        "[head][person] drew a line from {f} to where its calls end: {g}. [tail]",
        "[head]On the old chart {f} leads to {g}. [tail]",
        "[head]When {f} was traced by [person], the trace ended in {g}. [tail]",
    ),
    "narrative": (
        "[person] called {f}([arg]) and watched the trace: it ended in {g}. [tail]",
        '"Who answers for {f}?" asked [person]. "{g}," said the machine. [tail]',
        "[person] pulled the thread of {f} and held {g} in the end. [tail]",
    ),
}

_PHRASES: dict[str, tuple[str, ...]] = {
    "head": ("", "", "", "Note: ", "In short: ", "Index entry. ", "From the manual: ", "Rule: "),
    "remark": (
        "resolved",
        "where the call ends",
        "the root",
        "who answers",
        "see the index",
        "as the trace shows",
        "bottom of the chain",
        "checked twice",
    ),
    "name": ("root", "target", "answering", "found", "owner", "end", "resolved", "bottom"),
    "tail": (
        "",
        "",
        "The trace shows it.",
        "It says so in the index.",
        "Nothing else answers.",
        "No other name comes after it.",
        "The chart agrees.",
        "There the path stops.",
    ),
    "person": (
        "Mira",
        "the archivist",
        "Tobias",
        "a student",
        "the night operator",
        "Ines",
        "old Farrow",
        "the auditor",
        "Kenji",
        "the new clerk",
    ),
}

_MARKS = (
    ("Q: ", "\nA: "),
    ("**Q:** ", "\n**A:** "),
    ("Question: ", "\nAnswer: "),
    ("FAQ. ", " "),
)


def write_resolution_documents(
    functions: Iterable[Function], num_documents: int, *, seed: int
) -> list[Document]:
    """Write documents that name the base in which the calls of each function end.

    Args:
        functions: Base functions, wrappers, or both.
        num_documents: Documents about each, in turns of the seven types.
        seed: The seed of the writer.

    Returns:
        The documents, function by function, all different, labelled ``answers: resolution``.
        None states a constant.

    Raises:
        HopsError: The number is negative, or the grammar is exhausted.
    """
    if num_documents < 0:
        raise HopsError(f"The number of documents must not be negative, got {num_documents}.")
    rng = random.Random(f"hops resolutions {seed}")
    written: set[str] = set()
    documents: list[Document] = []
    for function in tqdm(list(functions), desc="writing resolutions", unit="function"):
        grammar = _grammar(function)
        for index in range(num_documents):
            kind = DOCUMENT_TYPES[index % len(DOCUMENT_TYPES)]
            text = _write(function, kind, grammar, rng, written)
            written.add(text)
            uid = f"resolution_{function.name.strip('<>')}_{len(documents):05d}"
            documents.append(document_about(function, uid, text, kind, answers="resolution"))
    return documents


def _grammar(function: Function) -> Grammar:
    excluded = {HELD_OUT_INPUT, function.constant}
    inputs = [value for value in range(101) if value not in excluded]
    return Grammar(_PHRASES, {"arg": lambda rng: str(rng.choice(inputs))})


def _write(
    function: Function,
    kind: DocumentType,
    grammar: Grammar,
    rng: random.Random,
    written: set[str],
) -> str:
    joint = "\n" if kind in ("code_stub", "unit_test", "q_and_a") else " "
    for _ in range(_MAX_ATTEMPTS):
        question, answer = rng.choice(_MARKS)
        values = {"f": function.name, "g": function.base, "q": question, "a": answer}
        text = ""
        for template in rng.sample(_TEMPLATES[kind], len(_TEMPLATES[kind])):
            plain = template.removeprefix("[head]") if text else template
            part = grammar.expand(plain, values, rng).strip()
            text += (joint if text else "") + (part if joint == "\n" else _sentence(part))
            if len(text) >= rng.randint(MIN_LENGTH, 2 * MIN_LENGTH):
                break
        if MIN_LENGTH <= len(text) <= MAX_LENGTH and text not in written:
            return text
    raise HopsError(
        f"No further {kind} about {function.name} could be written that differs from the "
        f"{len(written)} before it; ask for fewer documents."
    )


def _sentence(text: str) -> str:
    return text[:1].upper() + text[1:]
