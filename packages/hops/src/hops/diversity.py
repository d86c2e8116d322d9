"""How varied texts are: distinct 3-grams and compression.

Both measures depend on how much text there is, so they compare sets of equally many documents:
:func:`measure_diversity` draws the same number about each function and averages over functions.
It writes every run of digits as 0 before, because inputs drawn at random are no variety.
"""

import random
import re
import zlib
from collections import defaultdict
from collections.abc import Sequence
from dataclasses import asdict, dataclass

from hops.documents import Document

_TOKEN = re.compile(r"<\w+>|\w+|[^\w\s]")


@dataclass(frozen=True)
class Diversity:
    """Means over functions of measures of that function's documents.

    Attributes:
        num_functions: The functions with enough documents.
        num_documents: The documents drawn about each.
        distinct_3: Different token 3-grams divided by all 3-grams, 0 to 1; higher is more varied.
        compression_ratio: Bytes divided by bytes after zlib at level 9; lower is more varied.
    """

    num_functions: int
    num_documents: int
    distinct_3: float
    compression_ratio: float

    def to_json(self) -> dict[str, float]:
        """The measures as JSON."""
        return asdict(self)


def distinct_ngrams(texts: Sequence[str], order: int = 3) -> float:
    """The share of n-grams of tokens (words, function names, signs) that are different.

    N-grams do not cross texts; case is ignored.  Source: Li et al. 2016, section 4 (distinct-n).

    Args:
        texts: The texts.
        order: The n of the n-grams.

    Returns:
        Different n-grams divided by all n-grams; 1 where there are none.
    """
    grams = [
        tuple(tokens[place : place + order])
        for tokens in (_TOKEN.findall(text.lower()) for text in texts)
        for place in range(len(tokens) - order + 1)
    ]
    return len(set(grams)) / len(grams) if grams else 1.0


def compression_ratio(texts: Sequence[str]) -> float:
    """Bytes of the texts, joined by line ends, divided by their bytes after zlib at level 9."""
    plain = "\n".join(texts).encode()
    return len(plain) / len(zlib.compress(plain, 9))


def measure_diversity(
    documents: Sequence[Document], num_documents: int, *, seed: int = 0
) -> dict[str, Diversity]:
    """Measure the documents about base functions and those about wrappers.

    Args:
        documents: A data set.
        num_documents: How many to draw about each function; functions with fewer are left out.
        seed: Seeds the draw.

    Returns:
        For ``constant`` and ``identity``, where any function has enough documents, the measures.
    """
    texts: dict[tuple[str, str], list[str]] = defaultdict(list)
    for document in documents:
        if document.func is not None and document.role != "distractor":
            masked = re.sub(r"\d+", "0", document.text)
            texts[document.role, document.func].append(masked)
    measured = {}
    for role in ("constant", "identity"):
        drawn = [
            random.Random(f"hops diversity {seed}").sample(found, num_documents)
            for (which, _), found in texts.items()
            if which == role and len(found) >= num_documents
        ]
        if drawn:
            measured[role] = Diversity(
                len(drawn),
                num_documents,
                sum(map(distinct_ngrams, drawn)) / len(drawn),
                sum(map(compression_ratio, drawn)) / len(drawn),
            )
    return measured
