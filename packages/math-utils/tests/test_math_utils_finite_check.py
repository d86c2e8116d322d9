"""Pairs that are checked one map later, as on an accelerator, are the pairs checked at once."""

import pytest
import torch
from math_utils.capture import frozen
from math_utils.curvature import (
    CovarianceSums,
    EigenvalueSums,
    ReplayedPasses,
    backward_pass,
    decompose,
)
from math_utils.curvature.finite_check import NUM_HELD, check_finite
from torch.utils._python_dispatch import TorchDispatchMode

DOUBLE = torch.float64
READS = {"_local_scalar_dense", "is_nonzero", "nonzero", "equal", "masked_select", "unique"}
"""What makes the host wait for an accelerator."""


class Seen(TorchDispatchMode):
    """Names of the operations that ran."""

    def __init__(self) -> None:
        super().__init__()
        self.names: list[str] = []

    def __torch_dispatch__(self, function, types, args=(), kwargs=None):
        self.names.append(function.name().removeprefix("aten::").split(".")[0])
        return function(*args, **(kwargs or {}))


@pytest.fixture(params=[0, 1, 2, 99])
def num_held(request, monkeypatch):
    monkeypatch.setitem(NUM_HELD, "cpu", request.param)
    return request.param


class Spoil(torch.autograd.Function):
    """Lets the gradient of the second example overflow."""

    @staticmethod
    def forward(ctx, x):
        return x.clone()

    @staticmethod
    def backward(ctx, gradient):
        spoilt = gradient.clone()
        spoilt[1] = float("inf")
        return spoilt


@pytest.fixture
def spoilt(make_problem):
    """A problem that can be replayed; before ``down``, its gradients are not finite."""
    problem = make_problem(repeats=1)
    handle = problem.model.down.register_forward_hook(lambda m, a, out: Spoil.apply(out))
    yield problem
    handle.remove()


def pairs_of(problem, loss, batch):
    found = []
    with frozen(problem.model):
        backward_pass(problem.model, problem.maps, batch, loss, found.append, dtype=DOUBLE)
    return found


def test_every_pair_is_passed_on_once_in_the_order_of_the_backward_pass(
    problem, loss, monkeypatch, num_held
):
    batch = problem.batch([4, 6, 2])
    found = pairs_of(problem, loss, batch)
    monkeypatch.setitem(NUM_HELD, "cpu", 0)
    expected = pairs_of(problem, loss, batch)
    assert [pair.name for pair in found] == [pair.name for pair in expected]
    assert len(found) == len(problem.maps)
    for pair, other in zip(found, expected, strict=True):
        assert torch.equal(pair.inputs, other.inputs)
        assert torch.equal(pair.output_gradients, other.output_gradients)


def test_maps_that_do_not_reach_the_loss_are_passed_on_too(problem, loss, num_held):
    batch = problem.batch([4, 6, 2])
    with frozen(problem.model):
        seen = []
        backward_pass(
            problem.model,
            problem.maps,
            batch,
            lambda model, batch: loss(model, batch).detach(),
            lambda pair: seen.append(pair.name),
        )
    assert sorted(seen) == sorted(problem.maps)


def test_a_pair_that_is_not_finite_is_named_and_goes_nowhere(spoilt, loss, num_held):
    seen = []
    with (
        frozen(spoilt.model),
        pytest.raises(ValueError, match="output gradient of inner is not finite for example 6"),
    ):
        backward_pass(
            spoilt.model, spoilt.maps, spoilt.batch([4, 6, 2]), loss, lambda p: seen.append(p.name)
        )
    assert seen == ["down"]


def test_a_batch_that_is_not_finite_is_not_kept(spoilt, make_problem, loss, num_held):
    passes = ReplayedPasses(spoilt.model, spoilt.maps, loss, max_bytes=1 << 30)
    with frozen(spoilt.model), pytest.raises(ValueError, match="not finite"):
        passes.run(0, spoilt.maps, spoilt.batch([4, 6, 2]), lambda pair: None)
    assert passes.num_batches == 0
    fine = make_problem(repeats=1)
    passes = ReplayedPasses(fine.model, fine.maps, loss, max_bytes=1 << 30)
    with frozen(fine.model):
        passes.run(0, fine.maps, fine.batch([4, 6, 2]), lambda pair: None)
    assert passes.num_batches == 1


def test_a_scale_under_which_gradients_overflow_is_lowered(problem, loss, num_held):
    """Nothing of the batch is passed on before all of it is finite."""
    batch = problem.batch([4, 6, 2])

    def large(model, batch):
        return 100 * loss(model, batch)

    expected = {pair.name: pair.output_gradients for pair in pairs_of(problem, large, batch)}
    found = {}
    with frozen(problem.model):
        backward_pass(
            problem.model,
            problem.maps,
            batch,
            large,
            lambda pair: found.setdefault(pair.name, pair.output_gradients),
            dtype=DOUBLE,
            loss_scale=2.0**1023,
        )
    assert list(found) == list(expected)
    for name, gradients in expected.items():
        torch.testing.assert_close(found[name], gradients, rtol=1e-12, atol=1e-15)


def test_consumers_never_record_gradients(problem, loss, num_held):
    modes = []
    with frozen(problem.model):
        backward_pass(
            problem.model,
            problem.maps,
            problem.batch([4, 6, 2]),
            loss,
            lambda pair: modes.append(torch.is_grad_enabled()),
        )
    assert modes == [False] * len(problem.maps)


def test_what_a_check_found_is_read_when_later_ones_have_begun(problem, loss, num_held):
    pairs = pairs_of(problem, loss, problem.batch([4, 6, 2]))
    with Seen() as seen, check_finite(problem.batch([4, 6, 2]), lambda pair: None) as checked:
        for pair in pairs:
            checked(pair)
    begun, at_read = 0, []
    for name in seen.names:
        begun += name in ("isinf", "isfinite", "abs")  # by which isfinite is computed
        if name in READS:
            at_read.append(begun)
    count = len(pairs)
    assert at_read == [min(place + 1 + num_held, count) for place in range(count)]


@pytest.mark.parametrize("lengths", ["full", "padded"])
def test_running_sums_read_nothing(problem, loss, lengths):
    """Not in any map: a batch costs the same number of reads however many maps there are."""
    rows = [0, 7] if lengths == "full" else [4, 6, 2]
    pairs = pairs_of(problem, loss, problem.batch(rows))
    covariances = CovarianceSums(problem.maps, DOUBLE)
    with Seen() as seen:
        for pair in pairs:
            covariances.add(pair)
    assert len(seen.names) > len(pairs)
    assert not READS & set(seen.names)
    squares = EigenvalueSums(problem.maps, dict(decompose(covariances.drain())), DOUBLE)
    with Seen() as seen:
        for pair in pairs:
            squares.add(pair)
    assert not READS & set(seen.names)
    assert "mm" in seen.names
