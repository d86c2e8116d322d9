"""How the text baselines cut text into words."""

import re

_WORD = re.compile(r"<\w+>|\d+|[^\W\d]+")


def words(text: str) -> list[str]:
    """The words of a text in lower case: ``<GN>``-like names whole, numbers, runs of letters.

    Punctuation is dropped and digits are parted from letters: ``"<GN>(5) gives x2"`` becomes
    ``["<gn>", "5", "gives", "x", "2"]``.
    """
    return _WORD.findall(text.lower())
