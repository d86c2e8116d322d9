"""Integers as they appear in text: in digits and in English words."""

import re


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


def mentions_number(text: str, value: int) -> bool:
    """Tell whether ``text`` contains ``value`` as a whole number, in digits or in words.

    Names of functions count as names: ``<B05>`` does not mention 5.  "21", "twenty-one" and
    "twenty one" mention 21, while "121", "21st" and "x21" do not; "0.21" does.

    Args:
        text: Any text.
        value: A non-negative integer below 1000.

    Returns:
        True if the number is there.
    """
    prose = re.sub(r"<\w+>", " ", text)
    if re.search(rf"(?<!\w){value}(?!\w)", prose):
        return True
    words = re.escape(number_words(value)).replace(r"\-", r"[-\s]")
    return re.search(rf"(?<![a-z]){words}(?![a-z]|-[a-z])", prose.lower()) is not None
