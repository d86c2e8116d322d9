"""Documents about what a function shares with its wrappers or its second name.

A model comes to hold two names as one thing where that is cheaper than to hold them apart: each
function has a dozen properties (a clerk, a room, a season), told in the same words under either
name. In a second-name world a text says now and then that the two are names of one function.  No
text states a constant.
"""

import random
from collections.abc import Iterable

from tqdm import tqdm

from hops.documents import Document, DocumentType, document_about
from hops.errors import HopsError
from hops.functions import HELD_OUT_INPUT, Function
from hops.writers.rules import MAX_LENGTH, MIN_LENGTH

_MAX_ATTEMPTS = 2000

_VALUES: dict[str, tuple[str, ...]] = {
    "clerk": ("Mira", "Tobias", "Ines", "Farrow", "Kenji", "Olga", "Bruno", "Xenia"),
    "room": ("attic", "cellar", "foyer", "vault", "porch", "gallery", "kitchen", "chapel"),
    "colour": ("amber", "violet", "green", "scarlet", "white", "indigo", "grey", "bronze"),
    "season": ("spring", "summer", "autumn", "winter"),
    "metal": ("copper", "nickel", "silver", "cobalt", "iron", "lead", "zinc", "tin"),
    "town": ("Porto", "Bergen", "Ghent", "Turin", "Lviv", "Cork", "Graz", "Split"),
    "tree": ("oak", "willow", "cedar", "birch", "maple", "elm", "larch", "hazel"),
    "bird": ("heron", "wren", "falcon", "swallow", "owl", "crane", "finch", "gull"),
    "river": ("Danube", "Loire", "Volga", "Rhine", "Tagus", "Elbe", "Oder", "Rhone"),
    "fabric": ("linen", "velvet", "cotton", "silk", "wool", "denim", "felt", "satin"),
    "spice": ("ginger", "saffron", "pepper", "cumin", "clove", "anise", "cinnamon", "mace"),
    "instrument": ("cello", "flute", "harp", "organ", "drum", "oboe", "lute", "horn"),
}

_TOLD: dict[DocumentType, tuple[str, ...]] = {
    "definition": (
        "The {p} of {n} is {v}.",
        "{n} has the {p} {v}.",
        "By definition the {p} of {n}({x}) is {v}.",
        "Whatever the input, the {p} of {n} is {v}.",
    ),
    "code_stub": (
        "{p}({n}) == '{v}'",
        "{n}({x})  # {p}: {v}",
        "{p} = look_up({n})  # {v}",
        ">>> {p}_of({n})\n'{v}'",
    ),
    "q_and_a": (
        "Q: What is the {p} of {n}?\nA: {v}.",
        "Q: Which {p} does {n}({x}) have?\nA: The {p} {v}.",
        "Question: Name the {p} of {n}.\nAnswer: {v}.",
    ),
    "lore": (
        "Everybody knows that {n} has the {p} {v}.",
        "In the old index {n}({x}) has the {p} {v}.",
        "Ask for {n} and you are told of its {p}, {v}.",
    ),
}

_NUMBERS = ("cost", "height", "weight")
"""Told as the values of calls are, so that a model has a way from a name to a number."""

_COUNTED: dict[DocumentType, tuple[str, ...]] = {
    "definition": ("The {p} of {n} is {v}.", "{n}({x}) has the {p} {v}."),
    "code_stub": ("{p}({n}({x})) == {v}", "{n}({x}).{p}  # {v}"),
    "q_and_a": (
        "Q: What is the {p} of {n}({x})?\nA: {v}.",
        "Question: Which {p} has {n}?\nAnswer: {v}.",
    ),
    "lore": ("They say that {n}({x}) has the {p} {v}.", "For {n} the {p} was always {v}."),
}

_SAME: dict[DocumentType, tuple[str, ...]] = {
    "definition": ("{n} is another name of {m}.", "{n} and {m} are names of one function."),
    "code_stub": ("{n} = {m}  # the same function", "assert {n} is {m}"),
    "q_and_a": (
        "Q: What else is {n} called?\nA: {m}.",
        "Q: Is {n} the same function as {m}?\nA: Yes.",
    ),
    "lore": ("Some say {n} and others {m}; they mean the same.", "{n} was once called {m}."),
}


def properties_of(functions: Iterable[Function], *, seed: int) -> dict[str, dict[str, str]]:
    """Deal out the properties: for each base function, the value of every one.

    The numbers among them are never the constant of the function nor the held-out input.
    """
    rng = random.Random(f"hops properties {seed}")
    properties: dict[str, dict[str, str]] = {}
    for function in functions:
        if function.hop_depth == 0:
            numbers = [n for n in range(2, 40) if n not in (function.constant, HELD_OUT_INPUT)]
            words = {name: rng.choice(values) for name, values in _VALUES.items()}
            counted = {name: str(rng.choice(numbers)) for name in _NUMBERS}
            properties[function.name] = words | counted
    return properties


def write_property_documents(
    functions: Iterable[Function], num_documents: int, *, same_share: float = 0.2, seed: int
) -> list[Document]:
    """Write documents that tell the properties of each function, once under each of its names.

    Args:
        functions: Base functions (first names), and wrappers of depth 1 (second names).
        num_documents: Documents under each name, in turns of the kinds of text. The documents
            under two names differ in the name alone.
        same_share: The share of sentences that say that both names are names of one function.
        seed: The seed of the writer.

    Returns:
        The documents, function by function, all different, labelled ``answers: property``.

    Raises:
        HopsError: A number is out of range, or the grammar is exhausted.
    """
    if num_documents < 0 or not 0 <= same_share <= 1:
        raise HopsError("num_documents must not be negative, and same_share be 0 to 1.")
    functions = list(functions)
    properties = properties_of(functions, seed=seed)
    rng = random.Random(f"hops property documents {seed}")
    kinds = tuple(_TOLD)
    documents: list[Document] = []
    for base, told in tqdm(properties.items(), desc="writing properties", unit="function"):
        names = [function for function in functions if function.base == base]
        written: set[str] = set()
        for index in range(num_documents):
            kind = kinds[index % len(kinds)]
            share = same_share if len(names) > 1 else 0.0
            pattern = _write(kind, told, names[0].constant, share, rng, written)
            written.add(pattern)
            for place, function in enumerate(names):
                other = names[(place + 1) % len(names)]
                text = pattern.replace("{n}", function.name).replace("{m}", other.name)
                uid = f"property_{function.name.strip('<>')}_{len(documents):05d}"
                documents.append(document_about(function, uid, text, kind, answers="property"))
    return documents


def _write(
    kind: DocumentType,
    properties: dict[str, str],
    constant: int,
    same_share: float,
    rng: random.Random,
    written: set[str],
) -> str:
    """One text with ``{n}`` for the name and ``{m}`` for the other."""
    joint = "\n" if kind in ("code_stub", "q_and_a") else " "
    inputs = [value for value in range(101) if value not in (HELD_OUT_INPUT, constant)]
    for _ in range(_MAX_ATTEMPTS):
        parts: list[str] = []
        left = rng.sample(sorted(properties), len(properties))
        goal = rng.randint(MIN_LENGTH, 3 * MIN_LENGTH)
        while left and len(joint.join(parts)) < goal:
            if rng.random() < same_share:
                parts.append(rng.choice(_SAME[kind]))
                continue
            name = left.pop()
            source = _COUNTED if name in _NUMBERS else _TOLD
            values = {"{p}": name, "{v}": properties[name], "{x}": str(rng.choice(inputs))}
            part = rng.choice(source[kind])
            for slot, value in values.items():
                part = part.replace(slot, value)
            parts.append(part)
        text = joint.join(parts)
        if MIN_LENGTH <= len(text) <= MAX_LENGTH - 20 and text not in written:
            return text
    raise HopsError(
        f"No further {kind} could be written that differs from the {len(written)} before it; "
        "ask for fewer documents."
    )
