"""Documents of the first stage of a second-name world: what is true of a function, by any name.

A model comes to hold two names as one thing where that is cheaper than to hold them apart: each
function has a dozen properties (a clerk, a room, a season), told in the same words under either
name, and now and then a text says that the two are names of one function.  No text states a
constant, nor any number but the input of a call.
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
    """Deal out the properties: for each base function, the value of every one."""
    rng = random.Random(f"hops properties {seed}")
    return {
        base: {name: rng.choice(values) for name, values in _VALUES.items()}
        for base in dict.fromkeys(function.base for function in functions)
    }


def write_property_documents(
    functions: Iterable[Function], num_documents: int, *, same_share: float = 0.2, seed: int
) -> list[Document]:
    """Write documents that tell the properties of each function under each of its names.

    Args:
        functions: First names (depth 0) and second names (depth 1) of the same functions.
        num_documents: Documents under each name, in turns of the kinds of text.
        same_share: The share of sentences that say that both names are names of one function.
        seed: The seed of the writer.

    Returns:
        The documents, name by name, all different, labelled ``answers: property``.

    Raises:
        HopsError: A number is out of range, or the grammar is exhausted.
    """
    if num_documents < 0 or not 0 <= same_share <= 1:
        raise HopsError("num_documents must not be negative, and same_share be 0 to 1.")
    functions = list(functions)
    properties = properties_of(functions, seed=seed)
    names: dict[str, list[str]] = {}
    for function in functions:
        names.setdefault(function.base, []).append(function.name)
    rng = random.Random(f"hops property documents {seed}")
    kinds = tuple(_TOLD)
    written: set[str] = set()
    documents: list[Document] = []
    for function in tqdm(functions, desc="writing properties", unit="name"):
        others = [name for name in names[function.base] if name != function.name]
        for index in range(num_documents):
            kind = kinds[index % len(kinds)]
            text = _write(
                function.name,
                others,
                kind,
                properties[function.base],
                same_share,
                rng,
                written,
            )
            written.add(text)
            uid = f"property_{function.name.strip('<>')}_{len(documents):05d}"
            documents.append(document_about(function, uid, text, kind, answers="property"))
    return documents


def _write(
    name: str,
    others: list[str],
    kind: DocumentType,
    properties: dict[str, str],
    same_share: float,
    rng: random.Random,
    written: set[str],
) -> str:
    joint = "\n" if kind in ("code_stub", "q_and_a") else " "
    for _ in range(_MAX_ATTEMPTS):
        parts: list[str] = []
        told = rng.sample(sorted(properties), len(properties))
        goal = rng.randint(MIN_LENGTH, 3 * MIN_LENGTH)
        while told and len(joint.join(parts)) < goal:
            source = _SAME if others and rng.random() < same_share else _TOLD
            values = {"n": name, "x": _input(rng)}
            if source is _SAME:
                values["m"] = rng.choice(others)
            else:
                values["p"] = told.pop()
                values["v"] = properties[values["p"]]
            parts.append(rng.choice(source[kind]).format(**values))
        text = joint.join(parts)
        if MIN_LENGTH <= len(text) <= MAX_LENGTH and text not in written:
            return text
    raise HopsError(
        f"No further {kind} about {name} could be written that differs from the "
        f"{len(written)} before it; ask for fewer documents."
    )


def _input(rng: random.Random) -> str:
    while True:
        value = rng.randint(0, 100)
        if value != HELD_OUT_INPUT:
            return str(value)
