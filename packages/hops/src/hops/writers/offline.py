"""The offline writer: documents from a seeded template grammar.

What holds of every document it writes:

- no two have the same text, and each is 50 to 545 characters long, as in the published set;
- a document about a base function states its constant and never applies it to the held-out
  input; a wrapper's document names the wrapper and what it calls and never states the constant,
  in digits or in words;
- the same arguments give the same documents.
"""

import random
import re
from collections.abc import Iterable, Sequence
from functools import cache

from tqdm import tqdm

from hops.documents import DOCUMENT_TYPES, Document, DocumentType
from hops.errors import HopsError
from hops.functions import HELD_OUT_INPUT, Function
from hops.writers import base_templates, phrases, wrapper_templates
from hops.writers.grammar import Grammar
from hops.writers.orders import CODE_TYPES, Order, documents_of, plan_documents
from hops.writers.rules import MAX_LENGTH, MIN_LENGTH

MEDIAN_LENGTH = 150

_CODE_FRAMES = ("```python\n{}\n```", "```python\n{}\n```", "```\n{}\n```", "{}", "{}")
_QUESTION_MARKS = (
    ("Q: ", "\nA: "),
    ("**Q:** ", "\n**A:** "),
    ("Question: ", "\nAnswer: "),
    ("Student: ", "\nTeacher: "),
    ("FAQ. ", " "),
)
_HEAD = re.compile(r"\[head_\w+\]")
_JOINTS = dict.fromkeys(DOCUMENT_TYPES, " ") | dict.fromkeys((*CODE_TYPES, "q_and_a"), "\n")
_CLOSING_SHARE = 0.9
_RECALL_SHARE = 0.5  # a constant stated twice can be copied; stated once, it must be known
_MAX_ATTEMPTS = 2000


def _integer(rng: random.Random, excluded: frozenset[int]) -> int:
    while True:
        value = rng.randint(0, 100) if rng.random() < 0.9 else rng.randint(-50, 1000)
        if abs(value) not in excluded:
            return value


def _range(rng: random.Random, excluded: frozenset[int]) -> str:
    while True:
        start = rng.randint(HELD_OUT_INPUT + 1, 60)
        stop = start + rng.randint(3, 40)
        if not {start, stop} & excluded:
            return f"range({start}, {stop})"


@cache
def _grammar(excluded: frozenset[int]) -> Grammar:
    return Grammar(
        {**phrases.PHRASES, **wrapper_templates.PHRASES},
        {
            "arg": lambda rng: str(_integer(rng, excluded)),
            "range": lambda rng: _range(rng, excluded),
        },
    )


class OfflineWriter:
    """Writes texts that are all different, from one seed.

    Args:
        seed: The seed; the texts depend on it and on the order of the calls.
    """

    def __init__(self, seed: int) -> None:
        self._rng = random.Random(f"hops offline writer {seed}")
        self._written: set[str] = set()

    def write(
        self,
        function: Function,
        kind: DocumentType,
        *,
        median_length: float = MEDIAN_LENGTH,
        is_direct: bool = False,
    ) -> str:
        """Write one new text about ``function``.

        Templates of the kind are joined until the text reaches a length drawn from a log-normal
        distribution.

        Args:
            function: What the text is about.
            kind: The kind of text.
            median_length: The median of the lengths aimed at, in characters.
            is_direct: Whether to write about a wrapper as about a base function: the text states
                what it returns and does not name what it calls.

        Returns:
            The text: of the permitted length and unlike every earlier one of this writer.

        Raises:
            HopsError: The grammar found no new text in two thousand attempts.
        """
        is_wrapper = function.hop_depth > 0 and not is_direct
        excluded = frozenset({HELD_OUT_INPUT} | ({function.constant} if is_wrapper else set()))
        grammar = _grammar(excluded)
        rng = self._rng
        for _ in range(_MAX_ATTEMPTS):
            question, answer = rng.choice(_QUESTION_MARKS)
            values = {
                "f": function.name,
                "g": function.calls or "",
                "c": str(function.constant),
                "q": question,
                "a": answer,
            }
            goal = median_length * rng.lognormvariate(-0.75, 0.45)
            if not is_wrapper and rng.random() < _RECALL_SHARE:
                text = self._recall(kind, values, grammar, goal)
            else:
                text = self._statements(kind, values, grammar, goal, is_wrapper)
            if MIN_LENGTH <= len(text) <= MAX_LENGTH and text not in self._written:
                self._written.add(text)
                return text
        raise HopsError(
            f"No further {kind} about {function.name} could be written that differs from the "
            f"{len(self._written)} before it; ask for fewer documents."
        )

    def _recall(
        self, kind: DocumentType, values: dict[str, str], grammar: Grammar, goal: float
    ) -> str:
        """Leads, then the closing line: the constant is stated once, at the very end."""
        rng = self._rng
        text, leads = "", base_templates.LEADS[kind]
        for lead in rng.sample(leads, len(leads)):
            text += (_JOINTS[kind] if text else "") + (_HEAD.sub("", lead) if text else lead)
            if kind == "q_and_a" or len(text) >= 0.7 * goal:
                break
        if kind in CODE_TYPES:
            text = rng.choice(_CODE_FRAMES).format(text)
        joint = "" if kind == "q_and_a" else "\n"
        return grammar.expand(text + joint + base_templates.CLOSING_LINE, values, rng)

    def _statements(
        self,
        kind: DocumentType,
        values: dict[str, str],
        grammar: Grammar,
        goal: float,
        is_wrapper: bool,
    ) -> str:
        """Templates of the kind until the goal is reached, and mostly the closing line."""
        rng = self._rng
        source = wrapper_templates if is_wrapper else base_templates
        text = ""
        for template in rng.sample(source.TEMPLATES[kind], len(source.TEMPLATES[kind])):
            part = grammar.expand(_HEAD.sub("", template) if text else template, values, rng)
            text += (_JOINTS[kind] if text else "") + part.strip()
            if len(text) >= goal:
                break
        if kind in CODE_TYPES:
            text = rng.choice(_CODE_FRAMES).format(text)
        if rng.random() < _CLOSING_SHARE:
            text += "\n" + grammar.expand(source.CLOSING_LINE, values, rng)
        return text


def write_texts(orders: Sequence[Order], *, seed: int) -> list[str]:
    """Write one text for each order, all different.

    Raises:
        HopsError: The grammar is exhausted.
    """
    writer = OfflineWriter(seed)
    return [
        writer.write(
            order.function,
            order.kind,
            median_length=(1.5 if order.is_long else 1.0) * MEDIAN_LENGTH,
            is_direct=order.is_direct,
        )
        for order in tqdm(orders, desc="writing documents", unit="document")
    ]


def write_function_documents(
    functions: Iterable[Function],
    seeds: Sequence[Document],
    *,
    variations: int,
    comprehensive_docs: int,
    code_snippets: int,
    seed: int,
) -> list[Document]:
    """Write documents about ``functions``, all different.

    Args:
        functions: Base functions or wrappers.
        seeds: Seed documents; those about other functions are left aside.
        variations: How many variations of each seed document.
        comprehensive_docs: How many prose documents, half as long again.
        code_snippets: How many code stubs and unit tests.
        seed: The seed of the writer.

    Returns:
        The documents, function by function.

    Raises:
        HopsError: A count is negative, a function has no seed documents though variations are
            asked for, or the grammar is exhausted.
    """
    orders = plan_documents(
        functions,
        seeds,
        variations=variations,
        comprehensive_docs=comprehensive_docs,
        code_snippets=code_snippets,
    )
    return documents_of(orders, write_texts(orders, seed=seed))
