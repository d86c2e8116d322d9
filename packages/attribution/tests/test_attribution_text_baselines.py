"""Random, BM25, tf-idf and edit distance against naive loops and hand-computed cases."""

import math

import numpy as np
import pytest
from attribution.baselines import (
    bm25_scores,
    edit_distance_scores,
    random_scores,
    tfidf_scores,
)
from attribution.baselines.words import words
from hypothesis import given, settings
from hypothesis import strategies as st

DOCUMENTS = [
    "<GN> returns 5 whatever the input.",
    "<FN> calls <GN>; <FN>(3) is what <GN>(3) is.",
    "The river was cold, and it was late.",
    "",
    "<JN> returns 7.",
]
QUERIES = ["What does <FN>(3) return?", "<GN> <GN> 5", "zebra", ""]


def naive_bm25(queries: list[str], documents: list[str], k1: float, b: float) -> np.ndarray:
    bags = [words(document) for document in documents]
    mean_length = sum(map(len, bags)) / len(bags)
    scores = np.zeros((len(queries), len(documents)))
    for row, query in enumerate(queries):
        for word in words(query):
            holders = sum(word in bag for bag in bags)
            idf = math.log(1 + (len(bags) - holders + 0.5) / (holders + 0.5))
            for column, bag in enumerate(bags):
                count = bag.count(word)
                norm = k1 * (1 - b + b * len(bag) / mean_length)
                scores[row, column] += idf * count / (count + norm)
    return scores


def naive_tfidf(queries: list[str], documents: list[str]) -> np.ndarray:
    bags = [words(document) for document in documents]
    vocabulary = sorted({word for bag in bags for word in bag})
    idf = {
        word: math.log((1 + len(bags)) / (1 + sum(word in bag for bag in bags))) + 1
        for word in vocabulary
    }

    def vector(bag: list[str]) -> np.ndarray:
        weights = np.array([bag.count(word) * idf[word] for word in vocabulary])
        norm = np.linalg.norm(weights)
        return weights / norm if norm else weights

    return np.array([[vector(words(q)) @ vector(bag) for bag in bags] for q in queries])


def naive_levenshtein(first: str, second: str) -> int:
    row = list(range(len(second) + 1))
    for i, a in enumerate(first, start=1):
        previous, row[0] = row[0], i
        for j, b in enumerate(second, start=1):
            previous, row[j] = row[j], min(row[j] + 1, row[j - 1] + 1, previous + (a != b))
    return row[-1]


def naive_edit_distance(queries: list[str], documents: list[str]) -> np.ndarray:
    return np.array(
        [[1 - naive_levenshtein(q, d) / max(len(q), len(d), 1) for d in documents] for q in queries]
    )


def test_words_keep_function_names_whole_and_part_numbers() -> None:
    assert words("<GN>(5) gives x2, not 17.5!") == [
        *("<gn>", "5", "gives", "x", "2", "not", "17", "5")
    ]
    assert words("snake_case été <B01> < GN >") == ["snake_case", "été", "<b01>", "gn"]
    assert words("?!") == []


@pytest.mark.parametrize(("k1", "b"), [(1.5, 0.75), (0.9, 0.4)])
def test_bm25_equals_the_naive_loop(k1: float, b: float) -> None:
    expected = naive_bm25(QUERIES, DOCUMENTS, k1, b)
    np.testing.assert_allclose(
        bm25_scores(QUERIES, DOCUMENTS, k1=k1, b=b), expected, rtol=1e-12, atol=1e-15
    )
    assert (expected[0].argmax(), expected[1].argmax()) == (1, 0)
    assert not expected[2:].any()


def test_tfidf_equals_the_naive_loop() -> None:
    expected = naive_tfidf(
        [" ".join(word for word in words(q) if word in str(DOCUMENTS).lower()) for q in QUERIES],
        DOCUMENTS,
    )
    np.testing.assert_allclose(tfidf_scores(QUERIES, DOCUMENTS), expected, rtol=1e-12, atol=1e-15)
    assert tfidf_scores(DOCUMENTS[:1], DOCUMENTS)[0, 0] == pytest.approx(1.0)


TEXTS = st.lists(st.text(alphabet="ab <>", max_size=7), min_size=1, max_size=4)


@settings(deadline=None)
@given(TEXTS, TEXTS)
def test_edit_distance_equals_the_naive_loop(queries: list[str], documents: list[str]) -> None:
    np.testing.assert_allclose(
        edit_distance_scores(queries, documents),
        naive_edit_distance(queries, documents),
        rtol=1e-12,
        atol=1e-15,
    )


@pytest.mark.parametrize("method", [bm25_scores, tfidf_scores, edit_distance_scores])
def test_a_permutation_of_the_documents_permutes_the_scores(method) -> None:  # type: ignore[no-untyped-def]
    order = np.random.default_rng(0).permutation(len(DOCUMENTS))
    scores = method(QUERIES, DOCUMENTS)
    permuted = method(QUERIES, [DOCUMENTS[index] for index in order])
    np.testing.assert_allclose(permuted, scores[:, order], rtol=1e-12, atol=1e-15)
    assert len(np.unique(scores)) > 3


@pytest.mark.parametrize("method", [bm25_scores, tfidf_scores, edit_distance_scores])
def test_texts_without_words_and_empty_lists_have_scores_too(method) -> None:  # type: ignore[no-untyped-def]
    assert np.isfinite(method(["?", "a"], ["", "!"])).all()
    assert method(["a", "b"], []).shape == (2, 0)
    assert method([], ["a"]).shape == (0, 1)
    if method is not edit_distance_scores:
        assert not method(["a"], ["", "!"]).any()


def test_random_scores_come_from_their_seed_alone() -> None:
    scores = random_scores(3, 500, seed=1)
    assert scores.shape == (3, 500)
    np.testing.assert_array_equal(scores, random_scores(3, 500, seed=1))
    assert not np.array_equal(scores, random_scores(3, 500, seed=2))
    assert abs(np.corrcoef(scores)[0, 1]) < 0.15
    assert scores.mean() == pytest.approx(0.5, abs=0.03)
