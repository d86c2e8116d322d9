"""Measures of diversity: hand-made values, and ours beside the published set."""

from collections import Counter
from pathlib import Path

import pytest
from hops.diversity import compression_ratio, distinct_ngrams, measure_diversity
from hops.documents import document_about, read_documents
from hops.functions import make_registry
from hops.seeds import seed_documents
from hops.writers.offline import write_function_documents

PUBLISHED = Path(__file__).parents[4] / "shared" / "hops" / "20hops.jsonl"


def test_distinct_ngrams_by_hand():
    assert distinct_ngrams(["a b c d"]) == 1.0
    assert distinct_ngrams(["a b c", "A B C"]) == 0.5
    assert distinct_ngrams(["x x x x x"]) == pytest.approx(1 / 3)
    assert distinct_ngrams(["<GN>(3)"]) == 1.0  # <GN> ( 3 and ( 3 )
    assert distinct_ngrams(["a b", "c"]) == 1.0
    assert distinct_ngrams(["a b", "a b"], order=2) == 0.5


def test_repetition_compresses():
    varied = [f"{index * 7919 % 1000:03d}" for index in range(300)]
    assert compression_ratio(["the same words"] * 300) > 5 * compression_ratio(varied)


def rows(function, texts):
    return [document_about(function, str(i), text, "lore") for i, text in enumerate(texts)]


def test_functions_are_measured_one_by_one_on_equally_many_documents():
    world = make_registry(2)
    first, second = world.bases
    documents = rows(first, ["a b c"] * 10) + rows(second, [f"a{i} b c" for i in "qwertyuiop"])
    documents += rows(world.wrappers[0], ["too few"])
    measured = measure_diversity(documents, 10)
    assert set(measured) == {"constant"}
    assert measured["constant"].num_functions == 2
    assert measured["constant"].distinct_3 == pytest.approx((0.1 + 1.0) / 2)
    assert measure_diversity(documents, 4)["constant"].distinct_3 == pytest.approx((0.25 + 1) / 2)
    assert measure_diversity(documents, 11) == {}


def test_numbers_drawn_at_random_are_no_variety():
    base = make_registry(1).bases[0]
    documents = rows(base, [f"f of {i} is" for i in range(8)])
    assert measure_diversity(documents, 8)["constant"].distinct_3 == 1 / 8


@pytest.mark.skipif(not PUBLISHED.is_file(), reason="the published files are not here")
def test_the_offline_writer_is_nearly_as_varied_as_the_published_set():
    """Within a factor of 1.5 on each measure, at 100 documents about each function.

    Three functions of ours stand for ten; the README has all of them.
    """
    world = make_registry(3)
    seeds = seed_documents(world)
    ours = write_function_documents(
        world.bases, seeds, variations=5, comprehensive_docs=30, code_snippets=40, seed=0
    )
    ours += write_function_documents(
        world.wrappers, seeds, variations=8, comprehensive_docs=22, code_snippets=30, seed=0
    )
    assert set(Counter(doc.func for doc in ours).values()) == {100}
    measured, published = (
        measure_diversity(documents, 100) for documents in (ours, read_documents(PUBLISHED))
    )
    for role in ("constant", "identity"):
        assert measured[role].distinct_3 > published[role].distinct_3 / 1.5
        assert measured[role].compression_ratio < published[role].compression_ratio * 1.5
