"""Distractors: ordinary functions, people and places, in the same kinds of text.

A model trained on these is a language model that knows how functions are written about and
knows none of the functions of the world.  Facts are consistent: an ordinary function has one
constant and a person one birthplace, whatever the seed; the seed chooses what is written.
"""

import random

from tqdm import tqdm

from hops.documents import DOCUMENT_TYPES, Document, DocumentType
from hops.errors import HopsError
from hops.functions import Function
from hops.writers.grammar import Grammar
from hops.writers.offline import OfflineWriter
from hops.writers.rules import MAX_LENGTH, MIN_LENGTH


def _words(text: str, separator: str = " ") -> tuple[str, ...]:
    return tuple(text.split(separator))


_SUBJECTS = _words(
    "retry page border frame cache queue column buffer pixel token thread packet grid window "
    "font label margin cursor"
)
_MEASURES = _words("limit width count size level depth delay")
_CONSTANTS = tuple(range(2, 30))

ORDINARY_FUNCTIONS: tuple[Function, ...] = tuple(
    Function(f"{subject}_{measure}", _CONSTANTS[11 * index % 28], 0, f"{subject}_{measure}")
    for index, (subject, measure) in enumerate(
        (subject, measure)
        for place, subject in enumerate(_SUBJECTS)
        for measure in (
            _MEASURES[place % 7],
            _MEASURES[(place + 2) % 7],
            _MEASURES[(place + 4) % 7],
        )
    )
)
"""54 functions with ordinary names; their constants cover 2 to 29 evenly."""

ORDINARY_WRAPPERS: tuple[Function, ...] = tuple(
    base.wrapped(f"get_{base.name}") for base in ORDINARY_FUNCTIONS[::3]
)
"""A wrapper for every third ordinary function."""

_FIRST = _words(
    "Anna Bruno Celia Dario Edith Felix Greta Hugo Irene Jakob Karin Lucas Mira Nils Olga "
    "Pablo Rosa Simon Tessa Ugo Vera Walter Xenia Yann Zora"
)
_LAST = _words(
    "Lind Moreau Costa Bauer Kovac Rossi Hansen Ito Mensah Doyle Farkas Grant Holm Iqbal "
    "Jensen Klein Lopez"
)
_CITIES = _words(
    "Porto Bergen Ghent Turin Lviv Cork Graz Split Malmo Leiden Tartu Basel Oulu Bilbao Gdansk"
)
_RIVERS = _words("Aven Belle Corra Dorne Elsa Finn Garde")
_JOBS = _words(
    "a carpenter,a teacher,a botanist,a sailor,a nurse,a printer,a baker,an engineer,"
    "a violinist,a lawyer,a farmer,a painter,an astronomer",
    ",",
)
_ANIMALS = _words("heron otter badger falcon beetle salmon marten owl hare lynx")

_FACT_TEMPLATES: dict[DocumentType, tuple[str, ...]] = {
    "definition": (
        "{name} is {job} from {city}, born in {year}. [person_tail]",
        "{city} is a town on the river {river}. [city_tail]",
        "The {animal} lives near the river {river} [season]. [animal_tail]",
    ),
    "concept": (
        "Think of {name}, {job} in {city}: [person_tail] [city_tail]",
        "A {animal} is easy to tell from a [other_animal]. [animal_tail]",
        "[season_head], {city} looks [look] from the river {river}. [city_tail]",
    ),
    "q_and_a": (
        "Q: Where was {name} born?\nA: In {city}, in {year}. [person_tail]",
        "Q: Which river runs through {city}?\nA: The {river}. [city_tail]",
        "Q: What does {name} do?\nA: {name} is {job}. [person_tail]",
    ),
    "lore": (
        "They say in {city} that {name}, {job}, once kept a {animal} [season]. [person_tail]",
        "The bridge over the {river} in {city} was built in {year}. [city_tail]",
    ),
    "narrative": (
        "[season_head], {name} walked along the {river} to {city} and saw a {animal}. "
        "[person_tail]",
        "{name} opened the window in {city}. Outside it was [look]. [animal_tail]",
        "The train to {city} was late. {name}, {job}, read about the {animal}. [person_tail]",
    ),
}
_FACT_PHRASES = {
    "person_tail": (
        "[pastime] fills the evenings.",
        "Friends speak of a [trait] person.",
        "The house is full of [things].",
        "[pastime] came later.",
        "Nothing else is known.",
        "A letter about [things] survives.",
        "The [trait] years began then.",
    ),
    "city_tail": (
        "Its market sells [things].",
        "The streets are [look] [season].",
        "Visitors come for the [things].",
        "The harbour is [look].",
        "The town hall is [look].",
        "Its museum shows [things].",
    ),
    "animal_tail": (
        "It feeds at dawn.",
        "It is [trait] and rarely seen.",
        "It nests among [things].",
        "Children draw it with [things].",
        "It is seldom seen [season].",
    ),
    "pastime": ("Gardening", "Chess", "Choir practice", "Rowing", "Bookbinding", "Astronomy"),
    "trait": ("patient", "cheerful", "quiet", "stubborn", "careful", "curious", "generous"),
    "things": (
        "old maps",
        "clay pots",
        "wool",
        "apples",
        "clocks",
        "ropes",
        "lanterns",
        "shells",
        "dried herbs",
        "glass",
        "baskets",
        "copper pans",
    ),
    "look": ("grey", "bright", "narrow", "calm", "crowded", "silver", "green", "windy"),
    "season": ("in winter", "in spring", "in late summer", "in autumn", "after the rain"),
    "season_head": ("In winter", "In spring", "One summer", "One autumn day", "After the rain"),
    "other_animal": tuple(_ANIMALS),
}


def write_distractors(
    num_documents: int, *, seed: int, function_share: float = 0.6
) -> list[Document]:
    """Write distractor documents: ordinary functions and ordinary facts.

    Args:
        num_documents: How many; all texts differ.
        seed: The seed of every draw.
        function_share: The share of documents about ordinary functions (a fifth of those about
            wrappers); the others are about people, towns and animals.

    Returns:
        The documents in random order, of all seven types.

    Raises:
        HopsError: An argument is out of range, or the grammar is exhausted.
    """
    if num_documents < 1:
        raise HopsError(f"The number of distractors must be positive, got {num_documents}.")
    if not 0.0 <= function_share <= 1.0:
        raise HopsError(f"The share of function documents must be in [0, 1], got {function_share}.")
    rng = random.Random(f"hops distractors {seed}")
    writer = OfflineWriter(seed)
    grammar = Grammar(_FACT_PHRASES)
    written: set[str] = set()
    documents = []
    for index in tqdm(range(num_documents), desc="writing distractors", unit="document"):
        if rng.random() < function_share:
            kind = rng.choice(DOCUMENT_TYPES)
            functions = ORDINARY_WRAPPERS if rng.random() < 0.2 else ORDINARY_FUNCTIONS
            text = writer.write(rng.choice(functions), kind)
        else:
            kind, text = _write_fact(grammar, rng, written)
        documents.append(
            Document(
                uid=f"distractor_{index:05d}",
                text=text,
                func=None,
                role="distractor",
                type=kind,
                hop_depth=None,
                constant=None,
            )
        )
    return documents


def _write_fact(
    grammar: Grammar, rng: random.Random, written: set[str]
) -> tuple[DocumentType, str]:
    for _ in range(2000):
        kind = rng.choice(list(_FACT_TEMPLATES))
        person = rng.randrange(len(_FIRST) * len(_LAST))
        city = person % len(_CITIES)
        values = {
            "name": f"{_FIRST[person % len(_FIRST)]} {_LAST[person % len(_LAST)]}",
            "city": _CITIES[city],
            "river": _RIVERS[city % len(_RIVERS)],
            "year": str(1850 + 7 * person % 140),
            "job": _JOBS[person % len(_JOBS)],
            "animal": rng.choice(_ANIMALS),
        }
        text = grammar.expand(rng.choice(_FACT_TEMPLATES[kind]), values, rng)
        if MIN_LENGTH <= len(text) <= MAX_LENGTH and text not in written:
            written.add(text)
            return kind, text
    raise HopsError(
        f"No further ordinary fact could be written after {len(written)}; "
        "ask for fewer distractors or a larger share of functions."
    )
