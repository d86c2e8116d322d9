"""Linear datamodeling scores: a hand-computed case, the sign, ties, noise, and what is refused."""

import numpy as np
import pytest
from attribution.evaluation import (
    evaluate_lds,
    foretellable,
    linear_datamodeling_scores,
    luck_of_subsets,
    retraining_agreement,
)
from jaxtyping import TypeCheckError
from scipy.stats import spearmanr

MASKS = np.array([[1, 1, 0], [1, 0, 1], [0, 1, 1], [1, 0, 0]], dtype=bool)


def random_case(seed, *, queries=5, subsets=12, documents=9):
    rng = np.random.default_rng(seed)
    scores = rng.normal(size=(queries, documents))
    masks = rng.random((subsets, documents)) < 0.5
    return scores, masks, rng.normal(size=(subsets, queries))


def test_a_case_worked_by_hand():
    # Sums over the subsets: 3 + 1, 3 − 2, 1 − 2, 3 = 4, 1, −1, 3, of ranks 4, 2, 1, 3.
    scores = np.array([[3.0, 1.0, -2.0]])
    # Minus the losses: −1, −2, −3, −0.5, of ranks 3, 2, 1, 4. ρ = 1 − 6 (1 + 1) / (4 · 15) = 0.8.
    losses = np.array([[1.0], [2.0], [3.0], [0.5]])
    np.testing.assert_allclose(linear_datamodeling_scores(scores, MASKS, losses), [0.8])


def test_tied_sums_take_average_ranks():
    # Sums 1, 1, 0, 1: ranks 3, 3, 1, 3. Minus the losses 4, 3, 2, 1 has the ranks 4, 3, 2, 1.
    # Centred: (.5, .5, −1.5, .5) · (1.5, .5, −.5, −1.5) = 1; norms √3 and √5.
    scores, losses = np.array([[1.0, 0.0, 0.0]]), -np.array([[4.0], [3.0], [2.0], [1.0]])
    found = linear_datamodeling_scores(scores, MASKS, losses)
    np.testing.assert_allclose(found, [1 / np.sqrt(15)])


def test_each_query_equals_scipys_spearman():
    scores, masks, losses = random_case(0)
    masks[1], losses[2] = masks[0], losses[3]  # ties on both sides
    expected = [
        spearmanr([scores[q][mask].sum() for mask in masks], -losses[:, q]).statistic
        for q in range(len(scores))
    ]
    np.testing.assert_allclose(linear_datamodeling_scores(scores, masks, losses), expected)


def test_scores_that_lower_the_loss_count_as_right_and_the_opposite_as_wrong():
    scores, masks, _ = random_case(1)
    losses = 7.0 - masks @ scores.T
    np.testing.assert_allclose(linear_datamodeling_scores(scores, masks, losses), 1.0)
    np.testing.assert_allclose(linear_datamodeling_scores(-scores, masks, losses), -1.0)


def test_permuting_documents_or_subsets_or_scaling_changes_nothing():
    scores, masks, losses = random_case(2)
    expected = linear_datamodeling_scores(scores, masks, losses)
    rng = np.random.default_rng(0)
    documents, subsets = rng.permutation(9), rng.permutation(12)
    permuted = linear_datamodeling_scores(
        3 * scores[:, documents], masks[subsets][:, documents], losses[subsets] - 4
    )
    np.testing.assert_allclose(permuted, expected)


def test_a_method_that_scores_all_documents_alike_foretells_nothing():
    masks = np.array([[1, 1, 0], [1, 0, 1], [0, 1, 1]], dtype=bool)
    losses = np.array([[1.0], [2.0], [3.0]])
    assert linear_datamodeling_scores(np.full((1, 3), 0.1), masks, losses) == [0.0]


def test_groups_count_the_same_and_are_drawn_whole():
    scores, masks, losses = random_case(3, queries=4)
    per_query = linear_datamodeling_scores(scores, masks, losses)
    report = evaluate_lds(scores, masks, losses, groups=["a", "a", "a", "b"])
    assert report.mean == pytest.approx((per_query[:3].mean() + per_query[3]) / 2)
    assert report.low >= min(per_query[:3].mean(), per_query[3]) - 1e-12
    alone = evaluate_lds(scores, masks, losses)
    assert alone.mean == pytest.approx(per_query.mean())
    assert alone.low < alone.mean < alone.high


def test_the_agreement_of_repeats_is_one_without_noise_and_none_where_all_is_noise():
    rng = np.random.default_rng(4)
    signal = rng.normal(size=(400, 1, 3))
    alike = np.repeat(signal, 3, axis=1)
    np.testing.assert_allclose(retraining_agreement(alike), 1.0)
    noise = rng.normal(size=(400, 3, 3))
    assert np.abs(retraining_agreement(noise)).max() < 0.12
    half = retraining_agreement(alike + noise)
    np.testing.assert_allclose(half, 0.5, atol=0.12)
    # The mean of three is worth √(3 · 0.5 / 2) = 0.87 of the truth.
    truth = [spearmanr((alike + noise).mean(1)[:, q], signal[:, 0, q])[0] for q in range(3)]
    np.testing.assert_allclose(foretellable(half, 3), truth, atol=0.06)
    np.testing.assert_allclose(foretellable(np.array([0.25, -0.3, 1.0]), 1), [0.5, 0.0, 1.0])


@pytest.mark.parametrize(
    ("change", "message"),
    [
        ({"masks": MASKS[:2], "losses": np.array([[1.0], [2.0]])}, "three subsets"),
        ({"scores": np.array([[1.0, np.nan, 0.0]])}, "finite"),
        ({"losses": np.array([[1.0], [2.0], [np.inf], [0.5]])}, "finite"),
        ({"losses": np.ones((4, 1))}, "query 0: its loss is the same"),
    ],
)
def test_what_cannot_be_judged_is_refused(change, message):
    case = {
        "scores": np.array([[3.0, 1.0, -2.0]]),
        "masks": MASKS,
        "losses": np.array([[1.0], [2.0], [3.0], [0.5]]),
    }
    with pytest.raises(ValueError, match=message):
        linear_datamodeling_scores(**{**case, **change})


@pytest.mark.parametrize(("masks", "losses"), [(MASKS[:, :2], 4), (MASKS, 3)])
def test_shapes_that_differ_are_refused(masks, losses):
    with pytest.raises((ValueError, TypeCheckError), match=r"expected scores|Type-check"):
        linear_datamodeling_scores(np.ones((1, 3)), masks, np.arange(float(losses))[:, None])


def test_luck_falls_with_subsets_and_does_not_depend_on_what_is_foretold():
    """One query: √n ρ is about normal, so 95 % of |ρ| are below 1.96/√(n − 1)."""
    for subsets in (17, 65):
        scores, masks, _ = random_case(5, queries=1, subsets=subsets, documents=30)
        foretold = 7.0 - masks @ scores.T
        luck = luck_of_subsets(scores, masks, foretold, num_shuffles=2000)
        assert luck == pytest.approx(1.96 / np.sqrt(subsets - 1), rel=0.1)
    # Queries with the same losses and scores share their luck: many are no better than one.
    many = [np.repeat(one, 8, axis=axis) for one, axis in ((scores, 0), (foretold, 1))]
    assert luck_of_subsets(many[0], masks, many[1], num_shuffles=2000) == pytest.approx(luck)


def test_luck_counts_every_group_the_same():
    scores, masks, losses = random_case(5, queries=2, subsets=12, documents=20)
    rows = [0, 1, 1, 1]
    grouped = luck_of_subsets(scores[rows], masks, losses[:, rows], groups=["a", "b", "b", "b"])
    assert grouped == pytest.approx(luck_of_subsets(scores, masks, losses))
    assert grouped != pytest.approx(luck_of_subsets(scores[rows], masks, losses[:, rows]))


def test_agreement_needs_two_repeats():
    with pytest.raises(ValueError, match="two repeats"):
        retraining_agreement(np.zeros((5, 1, 2)))
