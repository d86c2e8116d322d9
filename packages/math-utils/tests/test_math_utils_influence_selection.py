"""Weights within bounds against a generic optimiser; kernel ridge against its formula."""

import numpy as np
import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from math_utils.errors import InfluenceError
from math_utils.influence.config import KernelRidgeConfig
from math_utils.influence.kernel_ridge import KernelRidge, median_distance
from math_utils.influence.selection import (
    project_to_capped_simplex,
    regularized_weights,
    select_round_robin,
    select_top,
)
from scipy.optimize import minimize

DOUBLE = torch.float64


def by_optimiser(p, eta, total, low, high):
    """min −wᵀp + (η/2)‖w‖² by sequential quadratic programming."""
    start = np.full(len(p), total / len(p))
    found = minimize(
        lambda w: -w @ p + eta / 2 * w @ w,
        start,
        jac=lambda w: -p + eta * w,
        bounds=[(low, high)] * len(p),
        constraints={"type": "eq", "fun": lambda w: w.sum() - total, "jac": np.ones_like},
        method="SLSQP",
        options={"ftol": 1e-14, "maxiter": 500},
    )
    assert found.success
    return torch.tensor(found.x)


@pytest.mark.parametrize("seed", range(6))
@pytest.mark.parametrize(
    ("total", "low", "high"), [(1.0, 0.0, float("inf")), (1.0, 0.02, 0.4), (5.0, 0.0, 1.0)]
)
def test_the_weights_are_those_of_a_generic_optimiser(seed, total, low, high):
    generator = torch.Generator().manual_seed(seed)
    p = torch.randn(9, generator=generator, dtype=DOUBLE)
    for eta in (0.3, 3.0):
        found = regularized_weights(p, eta, total=total, low=low, high=high)
        upper = None if high == float("inf") else high
        expected = by_optimiser(p.numpy(), eta, total, low, upper)
        torch.testing.assert_close(found, expected, rtol=1e-5, atol=1e-5)


@settings(max_examples=200, deadline=None)
@given(
    values=st.lists(st.floats(-1e3, 1e3), min_size=1, max_size=8),
    low=st.floats(0, 1),
    room=st.floats(0, 1),
    place=st.floats(0, 1),
    capped=st.booleans(),
)
def test_a_projection_meets_its_bounds_and_its_conditions(values, low, room, place, capped):
    """Defect: renormalising after clipping breaks the bounds."""
    v = torch.tensor(values, dtype=DOUBLE)
    high = low + room if capped else float("inf")
    total = len(values) * (low + place * room)
    w = project_to_capped_simplex(v, total=total, low=low, high=high)
    assert float(w.sum()) == pytest.approx(total, abs=1e-9)
    assert (w >= low).all()
    assert (w <= high).all()
    inside = (w > low) & (w < high)
    thresholds = (v - w)[inside]
    if len(thresholds):  # one threshold τ for all that no bound holds
        tau = float(thresholds[0])
        torch.testing.assert_close(
            thresholds, thresholds[:1].expand_as(thresholds), atol=1e-8, rtol=0
        )
        assert (v[w == low] - low <= tau + 1e-8).all()
        assert (v[w == high] - high >= tau - 1e-8).all()


def test_a_projection_leaves_what_is_allowed_where_it_is():
    w = torch.tensor([0.2, 0.5, 0.3], dtype=DOUBLE)
    torch.testing.assert_close(project_to_capped_simplex(w, low=0.01, high=0.9), w)


def test_the_worst_of_nearly_equal_sources_keeps_nearly_its_share():
    """Defect: a shift by the minimum gives the worst source min_weight, however little it lacks."""
    p = torch.tensor([1.0, 1.0, 0.999])
    found = regularized_weights(p, 1.0, low=0.01, high=0.9)
    torch.testing.assert_close(found, torch.full((3,), 1 / 3, dtype=DOUBLE), rtol=0, atol=1e-3)
    equal = regularized_weights(torch.ones(3), None, low=0.01, high=0.9)
    torch.testing.assert_close(equal, torch.full((3,), 1 / 3, dtype=DOUBLE))


def test_the_default_regularization_does_not_depend_on_the_scale_of_influence():
    p = torch.tensor([0.1, -0.4, 0.9, 0.3])
    expected = regularized_weights(p, None, total=4.0)
    torch.testing.assert_close(regularized_weights(1e3 * p + 5, None, total=4.0), expected)
    assert expected[2] == expected.max()


def test_bounds_that_nothing_satisfies_are_said():
    for low, high in ((0.4, 0.9), (0.0, 0.3)):
        with pytest.raises(InfluenceError, match="lower min or raise max"):
            regularized_weights(torch.zeros(3), 1.0, low=low, high=high)
    with pytest.raises(InfluenceError, match="0 weights"):
        project_to_capped_simplex(torch.zeros(0))
    with pytest.raises(InfluenceError, match="finite influences, got nan at 1"):
        regularized_weights(torch.tensor([0.0, float("nan")]), 1.0)
    with pytest.raises(InfluenceError, match="regularization"):
        regularized_weights(torch.zeros(2), -1.0)


def test_selection_takes_the_best_and_turns_are_fair():
    influence = torch.tensor([[5.0, 4.0, 3.0, 0.0, 3.0], [5.0, 0.0, 1.0, 4.0, 0.5]])
    assert select_top(influence[0], 4).tolist() == [0, 1, 2, 4]
    assert select_round_robin(influence, 4).tolist() == [0, 3, 1, 2]
    assert sorted(select_round_robin(influence, 5).tolist()) == [0, 1, 2, 3, 4]
    for budget in (0, 6):
        with pytest.raises(InfluenceError, match="budget between 1 and the number of examples, 5"):
            select_top(influence[0], budget)


def points(num, dim=4, seed=0):
    return torch.randn(num, dim, generator=torch.Generator().manual_seed(seed), dtype=DOUBLE)


@pytest.mark.parametrize("kernel", ["linear", "rbf"])
def test_kernel_ridge_is_its_formula_in_chunks_too(kernel):
    landmarks, others, values = points(7), points(20, seed=1), points(3, 7, seed=2)
    ridge = KernelRidge(landmarks, values, KernelRidgeConfig(kernel, 0.2))

    def kernel_matrix(a, b):
        if kernel == "linear":
            return a @ b.T
        sigma = torch.cdist(landmarks, landmarks)[*torch.triu_indices(7, 7, 1)].median()
        return torch.exp(-(torch.cdist(a, b) ** 2) / (2 * sigma**2))

    own = kernel_matrix(landmarks, landmarks)
    damped = own + 0.2 * own.diagonal().mean() * torch.eye(7, dtype=DOUBLE)
    expected = values @ torch.linalg.inv(damped) @ kernel_matrix(landmarks, others)
    for chunk_size in (None, 3):
        found = ridge.predict(others, chunk_size=chunk_size)
        torch.testing.assert_close(found, expected, rtol=1e-9, atol=1e-9)


def test_kernel_ridge_interpolates_as_damping_vanishes_and_finds_linear_laws():
    landmarks, others, slope = points(9), points(30, seed=1), points(1, seed=3)
    linear = KernelRidge(landmarks, slope @ landmarks.T, KernelRidgeConfig("linear", 1e-9))
    torch.testing.assert_close(linear.predict(others), slope @ others.T, rtol=1e-5, atol=1e-6)
    values = points(1, 9, seed=4)
    rbf = KernelRidge(landmarks, values, KernelRidgeConfig("rbf", 0.0))
    torch.testing.assert_close(rbf.predict(landmarks), values, rtol=1e-8, atol=1e-8)


def test_a_failing_cholesky_says_what_to_do():
    landmarks = points(9)  # nine of them in four dimensions: the linear kernel has rank 4
    with pytest.raises(InfluenceError, match=r"Cholesky .* raise KernelRidgeConfig.damping"):
        KernelRidge(landmarks, points(1, 9), KernelRidgeConfig("linear", 0.0))
    with pytest.raises(InfluenceError, match="most landmarks have the same embedding"):
        KernelRidge(torch.ones(5, 3), torch.ones(1, 5), KernelRidgeConfig("rbf"))
    assert median_distance(points(1)) == 1.0
