"""Integers as they appear in text: in digits and in English words."""

import re
from dataclasses import dataclass


def _words(text: str, separator: str = " ") -> tuple[str, ...]:
    return tuple(text.split(separator))


_ONES = _words(
    "zero one two three four five six seven eight nine ten eleven twelve thirteen fourteen "
    "fifteen sixteen seventeen eighteen nineteen"
)
_TENS = _words("twenty thirty forty fifty sixty seventy eighty ninety")


def number_words(value: int) -> str:
    """Spell ``value`` in English, as in ``"twenty-one"`` (0 to 999).

    Raises:
        ValueError: ``value`` is outside 0..999.
    """
    if not 0 <= value <= 999:
        raise ValueError(f"Only 0 to 999 can be spelled, not {value}.")
    if value < 20:
        return _ONES[value]
    if value < 100:
        tens, ones = divmod(value, 10)
        return _TENS[tens - 2] + (f"-{_ONES[ones]}" if ones else "")
    hundreds, rest = divmod(value, 100)
    head = f"{_ONES[hundreds]} hundred"
    return f"{head} and {number_words(rest)}" if rest else head


@dataclass(frozen=True)
class Numeral:
    """An integer as it stands in a text.

    Attributes:
        value: What it says.
        start: Its first character.
        end: The character after its last one.
        is_plural: Whether it is a plural, as in "five 19s".
    """

    value: int
    start: int
    end: int
    is_plural: bool


def _any(words: tuple[str, ...]) -> str:
    return "|".join(words)


# A name such as <B05> is no number, and "-19" is one only where the hyphen joins two words.
_DIGITS = re.compile(
    r"(?<!\w)(?<!(?<!\.)\.)"
    r"(?P<number>0[xX][0-9a-fA-F]+|0[oO][0-7]+|0[bB][01]+|\d+(?:\.\d+)?)(?P<plural>s)?(?!\w)"
)
_SIGN = re.compile(r"(?:^|[^\w)\]>])[-−]$")
_BELOW_HUNDRED = (
    rf"(?:(?:{_any(_TENS)})(?:[-\s](?:{_any(_ONES[1:10])}))?|{_any(_ONES[10:])}|{_any(_ONES[:10])})"
)
_WORDS = re.compile(
    rf"(?<!\w)(?<!\w-)(?:(?P<hundreds>{_any(_ONES[1:10])})\s+hundred"
    rf"(?:(?:\s+and)?\s+(?P<rest>{_BELOW_HUNDRED}))?|(?P<below>{_BELOW_HUNDRED}))"
    r"(?P<plural>(?:e?s)?)(?!\w|-\w)",
    re.IGNORECASE,
)


def numerals_in(text: str) -> list[Numeral]:
    """Find the integers in a text.

    In digits (19, 19.0), in hexadecimal, octal and binary (0x13) and in English words up to 999
    (nineteen, twenty-one, one hundred and five), each also in the plural (19s, nineteens).
    Names of functions (``<B05>``), parts of identifiers (x19), fractions (19.5), ordinals (19th,
    nineteenth) and compounds (nineteen-fold) are none.  A minus sign is part of the number.

    Args:
        text: Any text.

    Returns:
        The integers in digits, then those in words, each in the order of the text.
    """
    prose = re.sub(r"<\w+>", lambda match: " " * len(match[0]), text)
    found = []
    for match in _DIGITS.finditer(prose):
        word = match["number"]
        number = float(word) if "." in word else int(word, 0 if word[1:2].isalpha() else 10)
        if number == int(number):
            sign = -1 if _SIGN.search(prose[max(0, match.start() - 2) : match.start()]) else 1
            found.append(
                Numeral(sign * int(number), match.start(), match.end(), bool(match["plural"]))
            )
    for match in _WORDS.finditer(prose):
        hundreds = _ONES.index(match["hundreds"].lower()) if match["hundreds"] else 0
        value = 100 * hundreds + _value(match["rest"] or match["below"] or "zero")
        found.append(Numeral(value, match.start(), match.end(), bool(match["plural"])))
    return found


def _value(words: str) -> int:
    parts = re.split(r"[-\s]+", words.lower())
    return sum(
        _ONES.index(part) if part in _ONES else 20 + 10 * _TENS.index(part) for part in parts
    )


def mentions_number(text: str, value: int) -> bool:
    """Tell whether ``text`` contains ``value`` as a whole number, in digits or in words.

    What counts is said in :func:`numerals_in`; plurals do not count here.
    """
    return any(one.value == value and not one.is_plural for one in numerals_in(text))
