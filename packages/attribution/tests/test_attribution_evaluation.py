"""Retrieval metrics against hand-computed cases, ir-measures, scikit-learn and all tie orders."""

import math
from collections.abc import Callable
from itertools import permutations
from pathlib import Path

import ir_measures
import numpy as np
import pytest
from attribution.evaluation import (
    average_precision,
    bootstrap_interval,
    composition_at_k,
    evaluate_retrieval,
    ndcg,
    precision_at_k,
    recall_at_k,
    reciprocal_rank,
    roc_auc,
    tied_pair_share,
)
from hypothesis import given, settings
from hypothesis import strategies as st
from sklearn.metrics import roc_auc_score

Metric = Callable[[np.ndarray, np.ndarray], np.ndarray]
METRICS: dict[str, Metric] = {
    "P@1": lambda s, r: precision_at_k(s, r, 1),
    "P@3": lambda s, r: precision_at_k(s, r, 3),
    "P@50": lambda s, r: precision_at_k(s, r, 50),
    "R@1": lambda s, r: recall_at_k(s, r, 1),
    "R@4": lambda s, r: recall_at_k(s, r, 4),
    "AP": average_precision,
    "RR": reciprocal_rank,
    "nDCG": ndcg,
    "nDCG@3": lambda s, r: ndcg(s, r, 3),
}


def one(scores: list[float], relevant: list[int]) -> tuple[np.ndarray, np.ndarray]:
    return np.array([scores], dtype=np.float64), np.array([relevant], dtype=np.bool_)


def test_a_case_computed_by_hand() -> None:
    # Ranks: relevant, other, relevant, other, relevant.
    scores, relevance = one([0.1, 0.9, 0.7, 0.8, 0.5], [1, 1, 1, 0, 0])
    assert precision_at_k(scores, relevance, 3) == pytest.approx([2 / 3])
    assert recall_at_k(scores, relevance, 3) == pytest.approx([2 / 3])
    assert average_precision(scores, relevance) == pytest.approx([(1 + 2 / 3 + 3 / 5) / 3])
    assert reciprocal_rank(scores, relevance) == pytest.approx([1.0])
    gain = 1 + 1 / math.log2(4) + 1 / math.log2(6)
    ideal = 1 + 1 / math.log2(3) + 1 / math.log2(4)
    assert ndcg(scores, relevance) == pytest.approx([gain / ideal])
    assert ndcg(scores, relevance, 2) == pytest.approx([1 / (1 + 1 / math.log2(3))])
    assert roc_auc(scores, relevance) == pytest.approx([(2 + 1 + 0) / 6])
    assert tied_pair_share(scores, relevance) == pytest.approx([0.0])


def test_ties_computed_by_hand() -> None:
    # One relevant example of three that tie for ranks 2 to 4, behind an irrelevant one.
    scores, relevance = one([2.0, 2.0, 3.0, 2.0, 1.0], [0, 1, 0, 0, 0])
    assert precision_at_k(scores, relevance, 1) == pytest.approx([0.0])
    assert precision_at_k(scores, relevance, 2) == pytest.approx([1 / 6])
    assert recall_at_k(scores, relevance, 3) == pytest.approx([2 / 3])
    expected = (1 / 2 + 1 / 3 + 1 / 4) / 3
    assert reciprocal_rank(scores, relevance) == pytest.approx([expected])
    assert average_precision(scores, relevance) == pytest.approx([expected])
    assert roc_auc(scores, relevance) == pytest.approx([(1 + 1 / 2 + 1 / 2 + 0) / 4])
    assert tied_pair_share(scores, relevance) == pytest.approx([2 / 4])


@st.composite
def tied_queries(draw: st.DrawFn) -> tuple[np.ndarray, np.ndarray]:
    num_train = draw(st.integers(1, 5))
    scores = draw(st.lists(st.integers(0, 2), min_size=num_train, max_size=num_train))
    relevant = draw(st.lists(st.integers(0, 1), min_size=num_train, max_size=num_train))
    relevant[draw(st.integers(0, num_train - 1))] = 1
    return one([float(score) for score in scores], relevant)


@pytest.mark.parametrize("name", METRICS)
@settings(deadline=None)
@given(query=tied_queries())
def test_with_ties_a_metric_is_its_mean_over_all_orders_of_the_tied(
    name: str, query: tuple[np.ndarray, np.ndarray]
) -> None:
    scores, relevance = query
    metric = METRICS[name]
    orders = np.array(list(permutations(range(scores.size))))
    untied = metric(scores + 0.1 * orders / scores.size, np.repeat(relevance, len(orders), axis=0))
    assert metric(scores, relevance)[0] == pytest.approx(untied.mean(), abs=1e-12)


@pytest.mark.parametrize("seed", range(3))
def test_without_ties_the_metrics_agree_with_ir_measures(seed: int) -> None:
    generator = np.random.default_rng(seed)
    scores = generator.permutation(12 * 40).reshape(12, 40).astype(np.float64)
    relevance = generator.random((12, 40)) < 0.2
    relevance[:, 0] = True
    qrels = [
        ir_measures.Qrel(str(q), str(t), int(relevance[q, t])) for q in range(12) for t in range(40)
    ]
    run = [
        ir_measures.ScoredDoc(str(q), str(t), scores[q, t]) for q in range(12) for t in range(40)
    ]
    measures = {ir_measures.parse_measure(name): metric for name, metric in METRICS.items()}
    num_compared = 0
    for result in ir_measures.iter_calc(list(measures), qrels, run):
        ours = measures[result.measure](scores, relevance)[int(result.query_id)]
        assert ours == pytest.approx(result.value, abs=1e-9), result
        num_compared += 1
    assert num_compared == 12 * len(METRICS)


@settings(deadline=None)
@given(query=tied_queries())
def test_roc_auc_agrees_with_scikit_learn_ties_included(
    query: tuple[np.ndarray, np.ndarray],
) -> None:
    scores, relevance = query
    if relevance.all():
        with pytest.raises(ValueError, match="query 0: all training examples are relevant"):
            roc_auc(scores, relevance)
    else:
        assert roc_auc(scores, relevance) == pytest.approx(
            [roc_auc_score(relevance[0], scores[0])], abs=1e-12
        )


@pytest.mark.parametrize("name", [*METRICS, "AUC", "ties"])
def test_the_order_in_which_examples_are_stored_does_not_matter(name: str) -> None:
    metric = {**METRICS, "AUC": roc_auc, "ties": tied_pair_share}[name]
    generator = np.random.default_rng(0)
    scores = generator.integers(4, size=(5, 30)).astype(np.float32)
    relevance = generator.random((5, 30)) < 0.3
    order = generator.permutation(30)
    expected = metric(scores, relevance)
    assert metric(scores[:, order], relevance[:, order]) == pytest.approx(expected, abs=1e-12)
    assert len(set(expected.tolist())) > 1


def test_a_constant_score_is_worth_what_chance_is_worth() -> None:
    scores = np.zeros((1, 20))
    relevance = np.arange(20)[None, :] < 5
    assert precision_at_k(scores, relevance, 10) == pytest.approx([0.25])
    assert recall_at_k(scores, relevance, 10) == pytest.approx([0.5])
    assert roc_auc(scores, relevance) == pytest.approx([0.5])
    assert tied_pair_share(scores, relevance) == pytest.approx([1.0])


@pytest.mark.parametrize(
    ("scores", "relevance", "message"),
    [
        (np.zeros((1, 3)), np.zeros((1, 3), np.bool_), "query 0: no training example is relevant"),
        (np.array([[0.0, np.nan]]), np.array([[True, False]]), "training example 1 is NaN"),
    ],
)
def test_what_has_no_metric_is_refused(
    scores: np.ndarray, relevance: np.ndarray, message: str
) -> None:
    for metric in (*METRICS.values(), roc_auc, evaluate_retrieval):
        with pytest.raises(ValueError, match=message):
            metric(scores, relevance)


def test_the_readme_prints_what_it_says(capsys: pytest.CaptureFixture[str]) -> None:
    readme = (Path(__file__).parents[1] / "README.md").read_text()
    code = readme.split("```python\n")[1].split("```")[0]
    exec(compile(code, "README.md", "exec"), {})
    assert capsys.readouterr().out.strip() == code.strip().rpartition("# ")[2]


def test_cutoffs_below_one_are_refused() -> None:
    scores, relevance = one([1.0, 0.0], [1, 0])
    for call in (
        lambda: precision_at_k(scores, relevance, 0),
        lambda: recall_at_k(scores, relevance, 0),
        lambda: ndcg(scores, relevance, 0),
        lambda: evaluate_retrieval(scores, relevance, cutoffs=[1, 0]),
    ):
        with pytest.raises(ValueError, match="at least 1"):
            call()


def test_the_report_holds_means_and_intervals_of_the_same_numbers() -> None:
    generator = np.random.default_rng(1)
    scores = generator.normal(size=(30, 25))
    relevance = generator.random((30, 25)) < 0.3
    relevance[:, 0], relevance[:, 1] = True, False
    report = evaluate_retrieval(scores, relevance, cutoffs=(1, 10), seed=3)
    assert list(report.metrics) == [
        *("precision@1", "precision@10", "recall@1", "recall@10"),
        *("map", "mrr", "ndcg", "roc_auc"),
    ]
    expected = {
        "precision@10": precision_at_k(scores, relevance, 10),
        "recall@1": recall_at_k(scores, relevance, 1),
        "recall@10": recall_at_k(scores, relevance, 10),
        "map": average_precision(scores, relevance),
        "ndcg": ndcg(scores, relevance),
    }
    for name, values in expected.items():
        metric = report.metrics[name]
        assert np.array_equal(metric.per_query, values)
        assert metric.mean == values.mean()
        interval = bootstrap_interval(values, generator=np.random.default_rng(3))
        assert (metric.low, metric.high) == interval
        assert metric.low < metric.mean < metric.high
    assert (report.num_queries, report.num_train, report.tied_pair_share) == (30, 25, 0.0)
    again = evaluate_retrieval(scores, relevance, cutoffs=(1, 10), seed=3)
    assert again.to_dict() == report.to_dict()
    other = evaluate_retrieval(scores, relevance, cutoffs=(1, 10), seed=4)
    assert other.metrics["map"].low != report.metrics["map"].low


def test_the_bootstrap_interval_covers_the_true_mean_about_as_often_as_it_says() -> None:
    generator = np.random.default_rng(0)
    samples = generator.normal(loc=0.5, size=(400, 60))
    covered = 0
    for values in samples:
        low, high = bootstrap_interval(values, generator=generator, num_resamples=400)
        covered += low < 0.5 < high
    # 0.95 less what 60 samples cost the percentile method, about 0.01; ± 3 standard errors.
    assert 0.94 - 0.035 < covered / 400 < 0.94 + 0.035


def test_the_bootstrap_interval_has_the_normal_width_and_does_not_depend_on_the_portions(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    values = np.random.default_rng(5).normal(size=200)
    low, high = bootstrap_interval(values, generator=np.random.default_rng(0))
    expected_width = 2 * 1.96 * values.std() / math.sqrt(200)
    assert high - low == pytest.approx(expected_width, rel=0.03)
    assert low < values.mean() < high
    monkeypatch.setattr("attribution.evaluation.bootstrap._ENTRIES_AT_ONCE", 1000)
    assert bootstrap_interval(values, generator=np.random.default_rng(0)) == (low, high)
    narrow = bootstrap_interval(values, generator=np.random.default_rng(0), confidence=0.5)
    assert low < narrow[0] < narrow[1] < high
    single = bootstrap_interval(np.array([0.25]), generator=np.random.default_rng(0))
    assert single == (0.25, 0.25)


def test_a_bootstrap_of_nothing_is_refused() -> None:
    generator = np.random.default_rng(0)
    for values, options in (
        (np.zeros(0), {}),
        (np.zeros(3), {"confidence": 1.0}),
        (np.zeros(3), {"num_resamples": 0}),
    ):
        with pytest.raises(ValueError, match="expected at least one value"):
            bootstrap_interval(values, generator=generator, **options)


def test_with_groups_every_group_counts_the_same_and_is_drawn_whole() -> None:
    generator = np.random.default_rng(2)
    scores = generator.normal(size=(8, 12))
    relevance = generator.random((8, 12)) < 0.4
    relevance[:, 0], relevance[:, 1] = True, False
    groups = ["<FN>", "<GN>", "<FN>", "<FN>", "<GN>", "<IN>", "<FN>", "<FN>"]
    report = evaluate_retrieval(scores, relevance, groups=groups, seed=1)
    single = evaluate_retrieval(scores, relevance, seed=1)
    for name, metric in report.metrics.items():
        values = single.metrics[name].per_query
        assert np.array_equal(metric.per_query, values)
        means = np.array([values[[0, 2, 3, 6, 7]].mean(), values[[1, 4]].mean(), values[5]])
        assert metric.mean == pytest.approx(means.mean())
        interval = bootstrap_interval(means, generator=np.random.default_rng(1))
        assert (metric.low, metric.high) == pytest.approx(interval)
    assert (report.num_groups, single.num_groups) == (3, None)
    alone = evaluate_retrieval(scores, relevance, groups=list(range(8)), seed=1)
    assert alone.to_dict()["metrics"] == single.to_dict()["metrics"]
    with pytest.raises(ValueError, match="one group per query, got 7 for 8"):
        evaluate_retrieval(scores, relevance, groups=groups[:7])


def test_the_first_k_are_shared_out_among_the_categories() -> None:
    # Ranked: wrapper, then base and distractor tied, then other, then wrapper.
    scores = np.array([[5.0, 4.0, 4.0, 2.0, 1.0], [1.0, 2.0, 3.0, 4.0, 5.0]])
    wrapper = np.array([[1, 0, 0, 0, 1], [1, 0, 0, 0, 1]], dtype=np.bool_)
    base = np.array([[0, 1, 0, 0, 0], [0, 0, 0, 1, 0]], dtype=np.bool_)
    distractor = np.array([[0, 0, 1, 0, 0], [0, 0, 1, 0, 0]], dtype=np.bool_)
    categories = {"wrapper": wrapper, "base": base, "distractor": distractor}
    for k, first, second in (
        (1, [1, 0, 0, 0], [1, 0, 0, 0]),
        (2, [1 / 2, 1 / 4, 1 / 4, 0], [1 / 2, 1 / 2, 0, 0]),
        (4, [1 / 4, 1 / 4, 1 / 4, 1 / 4], [1 / 4, 1 / 4, 1 / 4, 1 / 4]),
        (9, [2 / 5, 1 / 5, 1 / 5, 1 / 5], [2 / 5, 1 / 5, 1 / 5, 1 / 5]),
    ):
        found = composition_at_k(scores, categories, k)
        assert list(found) == ["wrapper", "base", "distractor", "other"]
        assert np.stack(list(found.values()), axis=1) == pytest.approx(np.array([first, second]))


def test_unfit_categories_are_refused() -> None:
    scores = np.zeros((2, 3))
    none = np.zeros((2, 3), np.bool_)
    some = none.copy()
    some[1, 2] = True
    for categories, k, message in (
        ({"base": some, "wrapper": some}, 1, "query 1: training example 2 is in two categories"),
        ({"base": none[:, :2]}, 1, r"category 'base': expected members of shape \(2, 3\)"),
        ({"other": none}, 1, "no category called 'other'"),
        ({"base": none}, 0, "at least 1"),
    ):
        with pytest.raises(ValueError, match=message):
            composition_at_k(scores, categories, k)
    with pytest.raises(ValueError, match="query 1: the score of training example 2 is NaN"):
        composition_at_k(np.where(some, np.nan, 0.0), {"base": none}, 1)
