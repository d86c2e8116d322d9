"""Projection onto bounded weights and the exponentiated-gradient step."""

import math
from itertools import pairwise

import numpy as np
import pytest
from data_handler.influence import exponentiated_step, project_onto_bounds
from hypothesis import given
from hypothesis import strategies as st
from math_utils.errors import InfluenceError
from scipy.optimize import minimize

positive = st.floats(1e-6, 1e6)


@st.composite
def weights_and_bounds(draw):
    values = draw(st.lists(positive, min_size=1, max_size=7))
    low = draw(st.floats(0, 1 / len(values)))
    high = draw(st.floats(1 / len(values), 1))
    return {f"s{n}": value for n, value in enumerate(values)}, low, high


@given(weights_and_bounds())
def test_the_projection_keeps_bounds_sum_and_order(case):
    weights, low, high = case
    found = project_onto_bounds(weights, low, high)
    assert list(found) == list(weights)
    assert math.fsum(found.values()) == pytest.approx(1, abs=1e-9)
    assert all(low <= value <= high for value in found.values())
    ranked = sorted(weights, key=weights.__getitem__)
    values = [found[name] for name in ranked]
    assert all(one <= other * (1 + 1e-12) for one, other in pairwise(values))


@given(weights_and_bounds())
def test_weights_inside_the_bounds_keep_their_ratios(case):
    weights, low, high = case
    found = project_onto_bounds(weights, low, high)
    margin = 1e-9
    free = [n for n in weights if low + margin < found[n] < high - margin]
    for one in free[1:]:
        ratio = found[one] / found[free[0]]
        assert ratio == pytest.approx(weights[one] / weights[free[0]], rel=1e-6)


def test_the_projection_is_the_nearest_point_in_kl_divergence():
    weights = np.array([0.7, 0.2, 0.06, 0.04])
    low, high = 0.1, 0.45
    best = minimize(
        lambda w: np.sum(w * np.log(w / weights)),
        np.full(4, 0.25),
        bounds=[(low, high)] * 4,
        constraints={"type": "eq", "fun": lambda w: w.sum() - 1},
        options={"ftol": 1e-14},
    ).x
    found = project_onto_bounds(dict(zip("abcd", weights, strict=True)), low, high)
    np.testing.assert_allclose(list(found.values()), best, atol=1e-5)


def test_scaling_after_clipping_would_break_the_bounds_and_the_projection_does_not():
    weights = {"a": 0.98, "b": 0.01, "c": 0.01}
    clipped = {name: min(max(w, 0.05), 0.9) for name, w in weights.items()}
    scaled = {name: w / sum(clipped.values()) for name, w in clipped.items()}
    assert min(scaled.values()) == pytest.approx(0.05)
    renormalised = {n: min(max(w, 0.2), 0.5) for n, w in weights.items()}
    assert max(renormalised.values()) / sum(renormalised.values()) > 0.5
    assert project_onto_bounds(weights, 0.2, 0.5) == pytest.approx({"a": 0.5, "b": 0.25, "c": 0.25})


@pytest.mark.parametrize(
    ("count", "low", "high"), [(3, 0.4, 0.9), (3, 0.01, 0.3), (0, 0.0, 1.0), (1, 0.0, 0.9)]
)
def test_bounds_that_nothing_satisfies_are_refused(count, low, high):
    with pytest.raises(InfluenceError, match=r"expected (bounds|at least one source)"):
        project_onto_bounds({f"s{n}": 1.0 for n in range(count)}, low, high)


@pytest.mark.parametrize("bad", [0.0, -1.0, float("nan"), float("inf")])
def test_a_weight_that_is_not_positive_is_refused_by_name(bad):
    with pytest.raises(InfluenceError, match="weight of b"):
        project_onto_bounds({"a": 1.0, "b": bad}, 0.0, 1.0)


def step(weights, influence, **more):
    settings = {"learning_rate": 1.0, "scale": 1.0, "min_weight": 0.01, "max_weight": 0.9}
    return exponentiated_step(weights, influence, **{**settings, **more})


def test_a_step_multiplies_by_the_exponential_of_influence():
    found = step({"a": 0.5, "b": 0.3, "c": 0.2}, {"a": 1.0, "b": 0.0, "c": -1.0})
    grown = np.array([0.5 * math.e, 0.3, 0.2 / math.e])
    np.testing.assert_allclose(list(found.values()), grown / grown.sum(), rtol=1e-9)


def test_a_common_shift_of_influence_changes_nothing():
    weights = {"a": 0.5, "b": 0.3, "c": 0.2}
    one = step(weights, {"a": 1.0, "b": 0.2, "c": -1.0})
    other = step(weights, {"a": 8.0, "b": 7.2, "c": 6.0})
    assert one == pytest.approx(other, rel=1e-9)


def test_the_worst_of_nearly_equal_sources_stays_where_it_is():
    found = step(dict.fromkeys("abc", 1 / 3), {"a": 5.0, "b": 5.001, "c": 5.002}, scale=5.0)
    assert found == pytest.approx(dict.fromkeys("abc", 1 / 3), abs=1e-3)


def test_a_scale_of_zero_leaves_weights_alone():
    weights = {"a": 0.75, "b": 0.25}
    assert step(weights, {"a": 0.0, "b": 0.0}, scale=0.0) == pytest.approx(weights)


def test_a_huge_difference_ends_at_the_bounds():
    found = step({"a": 0.5, "b": 0.5}, {"a": 1e9, "b": -1e9})
    assert found == pytest.approx({"a": 0.9, "b": 0.1})


def test_other_sources_and_influence_that_is_not_finite_are_refused():
    with pytest.raises(InfluenceError, match="expected influence of the sources a, b, got a, c"):
        step({"a": 0.5, "b": 0.5}, {"a": 1.0, "c": 1.0})
    with pytest.raises(InfluenceError, match="influence of the source b"):
        step({"a": 0.5, "b": 0.5}, {"a": 1.0, "b": float("nan")})
