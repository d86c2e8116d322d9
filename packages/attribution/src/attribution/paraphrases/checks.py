"""What can be wrong with a paraphrase, judged by its text alone."""

import unicodedata
from collections import Counter

from attribution.baselines.words import words
from attribution.paraphrases.samples import Turn

_FUNCTION_WORDS = {
    "English": "the a an of and to in is are it that with for you your this not be as on can how",
    "French": "le la les un une des et est que qui dans pour avec sur pas vous votre ce du au",
    "German": "der die das ein eine und ist nicht mit für auf den dem zu sie von wie wird im es",
    "Spanish": "el la los las un una y es que en de con por para no su se del como lo",
    "Italian": "il lo la gli un una e è che in di con per non si del della come sono",
    "Portuguese": "o a os as um uma e é que em de com por para não se do da como seu",
    "Dutch": "de het een en is dat van in met voor niet op te zijn je aan hoe wordt er",
}
_WORDS_OF = {name: frozenset(text.split()) for name, text in _FUNCTION_WORDS.items()}
_SCRIPTS = ("LATIN", "CYRILLIC", "GREEK", "CJK", "HIRAGANA", "KATAKANA", "HANGUL", "ARABIC",
            "HEBREW", "DEVANAGARI", "THAI")  # fmt: skip
_FEWEST_WORDS = 3


def paraphrase_problems(original: Turn, paraphrase: Turn) -> list[str]:
    """Say which side of a paraphrase is empty, identical or translated.

    Identical means equal but for case, punctuation and white space. Translated means written in
    another script, or with the function words of another language; short texts, which may hold
    none of those, get the benefit of the doubt.

    Returns:
        Lines such as ``user: identical``; none if nothing is wrong.
    """
    problems = []
    for side in ("user", "assistant"):
        before, after = getattr(original, side), getattr(paraphrase, side)
        if not after.strip():
            problems.append(f"{side}: empty")
        elif words(before) == words(after) and (words(after) or before.strip() == after.strip()):
            problems.append(f"{side}: identical")
        elif is_translated(before, after):
            problems.append(f"{side}: translated")
    return problems


def is_translated(before: str, after: str) -> bool:
    """Whether two texts seem to be in two languages."""
    scripts = _script(before), _script(after)
    if None not in scripts and scripts[0] != scripts[1]:
        return True
    languages = _language(before), _language(after)
    return None not in languages and languages[0] != languages[1]


def _script(text: str) -> str | None:
    """The script of most letters."""
    counts: Counter[str] = Counter()
    for letter in filter(str.isalpha, text):
        name = unicodedata.name(letter, "")
        counts.update(script for script in _SCRIPTS if name.startswith(script))
    return counts.most_common(1)[0][0] if counts else None


def _language(text: str) -> str | None:
    """The language with clearly the most function words; None where that is doubtful."""
    found = words(text)
    counts = sorted(
        ((sum(word in own for word in found), name) for name, own in _WORDS_OF.items()),
        reverse=True,
    )
    (first, name), (second, _) = counts[:2]
    return name if first >= _FEWEST_WORDS and first >= 1.5 * second else None
