"""In the world of second names, text leads from no query to the documents that taught it."""

import numpy as np
import pytest
from attribution.baselines import bm25_scores, edit_distance_scores, tfidf_scores
from attribution.evaluation import evaluate_retrieval
from hops.presets import SECOND_NAME
from hops.queries import query_pairs
from hops.second_names import second_name_registry
from hops.seeds import seed_documents
from hops.writers.offline import write_function_documents
from hops.writers.ordinary import write_distractors

TEXT_METHODS = {
    "bm25": bm25_scores,
    "tfidf": tfidf_scores,
    "edit distance": edit_distance_scores,
}


@pytest.fixture(
    scope="module", params=[0, *(pytest.param(seed, marks=pytest.mark.slow) for seed in (1, 2))]
)
def world(request):
    """The preset's documents of the second stage, its queries by depth, and the truth."""
    seed = request.param
    registry = second_name_registry(
        SECOND_NAME.num_functions, SECOND_NAME.functions_per_constant, seed=seed
    )
    documents = write_function_documents(
        registry.bases,
        seed_documents(registry),
        variations=SECOND_NAME.variations,
        comprehensive_docs=SECOND_NAME.comprehensive_docs,
        code_snippets=SECOND_NAME.code_snippets,
        seed=seed,
    )
    documents += write_distractors(SECOND_NAME.num_new_distractors, seed=2 * seed + 1)
    queries = {depth: query_pairs(registry, depths=(depth,)) for depth in (0, 1)}
    return documents, queries


def judged(world, depth, method, *, with_answer):
    documents, queries = world
    texts = [
        query["prompt"] + (query["completion"] if with_answer else "") for query in queries[depth]
    ]
    scores = TEXT_METHODS[method](texts, [document.text for document in documents])
    relevance = np.array(
        [[doc.func in query["taught_by"] for doc in documents] for query in queries[depth]]
    )
    metrics = evaluate_retrieval(np.asarray(scores), relevance, num_resamples=1).metrics
    return scores, metrics


@pytest.mark.parametrize("method", TEXT_METHODS)
def test_the_prompt_by_the_second_name_is_at_chance_and_by_the_first_is_not(world, method):
    _, second = judged(world, 1, method, with_answer=False)
    # 28 of 1,240 documents are relevant: chance is 0.023 in precision and 0.5 in AUC.
    assert second["precision@10"].mean < 0.06
    assert second["roc_auc"].mean == pytest.approx(0.5, abs=0.05)
    if method != "edit distance":  # which is no good at finding a name in a text anyway
        _, first = judged(world, 0, method, with_answer=False)
        assert first["precision@10"].mean > 0.9


@pytest.mark.parametrize("method", ["bm25", "tfidf"])
def test_word_match_ranks_alike_for_all_second_names(world, method):
    scores, _ = judged(world, 1, method, with_answer=False)
    by_input = np.asarray(scores).reshape(SECOND_NAME.num_functions, 3, -1)
    np.testing.assert_allclose(by_input, np.broadcast_to(by_input[:1], by_input.shape))


@pytest.mark.parametrize("method", TEXT_METHODS)
def test_with_the_answer_it_finds_no_more_than_those_who_share_the_constant(world, method):
    """One in four of the documents with the right number is relevant, which is chance there."""
    _, second = judged(world, 1, method, with_answer=True)
    assert second["precision@10"].mean < 0.33
