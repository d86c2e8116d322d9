"""What a text gives away: the constant of a function, or a call with the held-out input.

**A leak** is a wrapper's constant as an integer anywhere in the wrapper's text but where an
*input* stands.  :func:`hops.numerals.numerals_in` says what an integer is: digits, hexadecimal,
English words, plurals.  An input is

- anything between the brackets of a call of a function, ``<FN>(19)``, and of ``range(3, 19)``,
  ``randint(1, 19)`` and the like;
- the numbers of a flat list that a loop or a test runs over: ``for x in (3, 19)``,
  ``parametrize("x", [3, 19])``, ``inputs = [3, 19]``;
- ``x = 19``, ``input_val = 19``, and in prose "input 19", "argument of 19".

Where the constant stands as an input only, the text says nothing of what is returned.
"""

import re
from dataclasses import dataclass
from typing import Literal

from hops.numerals import numerals_in

_NO_OUTPUT = r"(?!\w*(?:out|result|expect|answer|return))"
_FLAT = r"[\[({][^\[\](){}]*[\])}]"
_CALL = re.compile(r"<\w+>`?\(|\b(?:range|arange|randint|randrange)\(")
_INPUTS = tuple(
    re.compile(pattern)
    for pattern in (
        rf"\bfor\s+{_NO_OUTPUT}\w+\s+in\s*{_FLAT}",
        rf"\bparametrize\(\s*['\"]{_NO_OUTPUT}\w+['\"]\s*,\s*{_FLAT}",
        rf"(?<![\w)>.]){_NO_OUTPUT}(?:[xn]|\w*(?:input|arg)\w*)\s*=\s*(?:-?\d+|{_FLAT})",
        r"(?i)\b(?:inputs?|arguments?)\s+(?:(?:of|is|was|like|such\s+as)\s+)?-?\w+(?:-\w+)?",
    )
)


@dataclass(frozen=True)
class Mentions:
    """How often a text contains a number, as an input and otherwise."""

    stated: int
    as_input: int


def input_spans(text: str) -> list[tuple[int, int]]:
    """The stretches ``[start, end)`` of a text in which numbers are inputs."""
    spans = [(match.start(), _closing(text, match.end())) for match in _CALL.finditer(text)]
    for pattern in _INPUTS:
        spans += [match.span() for match in pattern.finditer(text)]
    return spans


def constant_mentions(text: str, constant: int) -> Mentions:
    """Count where a text contains a constant; see the top of this file.

    Args:
        text: Any text.
        constant: The integer looked for.

    Returns:
        The mentions as an input, and all others.
    """
    spans = input_spans(text)
    places = [one.start for one in numerals_in(text) if one.value == constant]
    inside = sum(any(start <= place < end for start, end in spans) for place in places)
    return Mentions(len(places) - inside, inside)


def leaks(text: str, constant: int) -> bool:
    """Whether a text states a constant that it must not state."""
    return constant_mentions(text, constant).stated > 0


def applied_functions(text: str, value: int) -> dict[str, Literal["call", "loop"]]:
    """The functions that a text applies to an input.

    Args:
        text: Any text.
        value: The input.

    Returns:
        For each function's name, ``call`` where it is called with the number itself, and
        ``loop`` where only a loop over a range or a list that holds the number calls it.
    """
    applied: dict[str, Literal["call", "loop"]] = {}
    covering = _covering_variables(text, value)
    for match in re.finditer(r"(<\w+>)`?\(", text):
        argument = text[match.end() : _closing(text, match.end()) - 1].strip()
        argument = re.sub(r"^\w+\s*=\s*", "", argument)
        numbers = numerals_in(argument)
        is_number = len(numbers) == 1 and numbers[0].end - numbers[0].start == len(argument)
        if is_number and numbers[0].value == value:
            applied[match[1]] = "call"
        elif argument in covering:
            applied.setdefault(match[1], "loop")
    return applied


def _covering_variables(text: str, value: int) -> set[str]:
    """The loop variables that take ``value``."""
    variables = set()
    for match in re.finditer(r"\bfor\s+(\w+)\s+in\s+range\(([^()]*)\)", text):
        try:
            bounds = [int(part) for part in match[2].split(",")]
            covers = value in range(*bounds)
        except (TypeError, ValueError):
            continue  # bounds that are not numbers, or too many of them
        if covers:
            variables.add(match[1])
    lists = rf"\bfor\s+(\w+)\s+in\s*({_FLAT})|\bparametrize\(\s*['\"](\w+)['\"]\s*,\s*({_FLAT})"
    for match in re.finditer(lists, text):
        if any(one.value == value for one in numerals_in(match[2] or match[4])):
            variables.add(match[1] or match[3])
    for match in re.finditer(rf"(\w+)\s*=\s*({_FLAT})", text):
        if any(one.value == value for one in numerals_in(match[2])):
            variables.update(re.findall(rf"\bfor\s+(\w+)\s+in\s+{match[1]}\b", text))
    return variables


def _closing(text: str, start: int) -> int:
    """The place after the bracket that closes the one before ``start``; the end without one."""
    depth = 1
    for place in range(start, len(text)):
        depth += {"(": 1, ")": -1}.get(text[place], 0)
        if depth == 0:
            return place + 1
    return len(text)
