"""Captured pairs against autograd, one example at a time, in float64."""

import pytest
import torch
from math_utils.capture import capture_pairs, frozen
from math_utils.curvature import CovarianceSums, backward_pass, collect_gradients
from math_utils.language_modeling import TokenBatch
from math_utils.linear_maps import find_linear_maps, share_of_parameters
from torch import nn

EXACT = {"rtol": 1e-10, "atol": 1e-12}


def gather(problem, loss, batches):
    with frozen(problem.model):
        return collect_gradients(problem.model, problem.maps, batches, loss, dtype=torch.float64)[0]


@pytest.mark.parametrize("side", ["right", "left"])
def test_captured_gradients_equal_autograd_with_padding_on_either_side(problem, loss, side):
    batches = [problem.batch([0, 1, 2], padding_side=side), problem.batch([3, 4, 5, 6, 7])]
    captured = gather(problem, loss, batches)
    for name, expected in problem.naive_gradients().items():
        torch.testing.assert_close(captured[name], expected, **EXACT)


def test_a_map_that_runs_several_times_sums_over_its_uses(make_problem, loss):
    for repeats in (1, 2, 3):
        problem = make_problem(repeats=repeats)
        captured = gather(problem, loss, [problem.batch(problem.all_rows())])
        torch.testing.assert_close(captured["inner"], problem.naive_gradients()["inner"], **EXACT)


def test_what_stands_at_padded_positions_has_no_effect(problem, loss):
    plain = gather(problem, loss, [problem.batch(problem.all_rows())])
    other = gather(problem, loss, [problem.batch(problem.all_rows(), pad_id=9)])
    for name in plain:
        assert torch.equal(plain[name], other[name])


class Tied(nn.Module):
    def __init__(self) -> None:
        super().__init__()
        self.first = nn.Linear(3, 3, bias=False)
        self.second = nn.Linear(3, 3, bias=False)
        self.second.weight = self.first.weight

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        return self.second(torch.tanh(self.first(x)))


def dense_batch(count: int, length: int) -> TokenBatch:
    ids = torch.zeros(count, length, dtype=torch.long)
    return TokenBatch(ids, torch.ones_like(ids, dtype=torch.bool), ids, torch.arange(count))


def test_modules_that_share_a_weight_are_one_map():
    torch.manual_seed(0)
    model, inputs = Tied().double(), torch.randn(4, 5, 3, dtype=torch.float64)
    maps = find_linear_maps(model, lambda name: True)
    assert list(maps) == ["first"]

    def objective(module, batch):
        return module(inputs).square().sum(dim=(1, 2))

    with frozen(model):
        captured, _ = collect_gradients(
            model, maps, [dense_batch(4, 5)], objective, dtype=torch.float64
        )
    for row in range(4):
        model.zero_grad()
        model(inputs[row]).square().sum().backward()
        torch.testing.assert_close(captured["first"][row], model.first.weight.grad, **EXACT)


def test_a_shared_weight_with_separate_biases_is_refused_with_both_names():
    model = nn.ModuleDict({"one": nn.Linear(3, 3), "two": nn.Linear(3, 3)})
    model["two"].weight = model["one"].weight
    with pytest.raises(ValueError, match="one and two share a weight"):
        find_linear_maps(model, lambda name: True)


def test_flattened_inputs_give_the_same_gradients(problem):
    class Flattened(nn.Module):
        def __init__(self, flatten: bool) -> None:
            super().__init__()
            torch.manual_seed(1)
            self.map = nn.Linear(3, 2).double()
            self.flatten = flatten

        def forward(self, x: torch.Tensor) -> torch.Tensor:
            if self.flatten:
                return self.map(x.reshape(-1, 3)).reshape(*x.shape[:-1], 2)
            return self.map(x)

    inputs = torch.randn(4, 5, 3, dtype=torch.float64, generator=torch.Generator().manual_seed(2))
    results = []
    for flatten in (False, True):
        model = Flattened(flatten)

        def objective(module, batch):
            return module(inputs).square().sum(dim=(1, 2))

        maps = find_linear_maps(model, lambda name: True)
        with frozen(model):
            results.append(
                collect_gradients(model, maps, [dense_batch(4, 5)], objective, dtype=torch.float64)[
                    0
                ]["map"]
            )
    assert torch.equal(*results)


def test_a_map_that_sees_only_some_positions_is_refused_by_name():
    model = nn.Sequential(nn.Linear(3, 2))
    maps = find_linear_maps(model, lambda name: True)
    mask = torch.ones(4, 5, dtype=torch.bool)
    with (
        pytest.raises(ValueError, match=r"0: expected an input \[batch=4, seq=5"),
        capture_pairs(maps, mask, lambda pair: None),
    ):
        model(torch.zeros(7, 3))


def test_a_map_that_does_not_reach_the_loss_is_handed_over_with_zero_gradients():
    model = nn.ModuleDict({"used": nn.Linear(3, 2), "idle": nn.Linear(3, 2)})
    maps = find_linear_maps(model, lambda name: True)
    inputs = torch.randn(2, 4, 3)
    seen = {}

    def objective(module, batch):
        module["idle"](inputs)
        return module["used"](inputs).sum(dim=(1, 2))

    with frozen(model):
        backward_pass(
            model, maps, dense_batch(2, 4), objective, lambda pair: seen.update({pair.name: pair})
        )
    assert seen["used"].output_gradients.abs().sum() > 0
    assert seen["idle"].output_gradients.shape == (8, 2)
    assert seen["idle"].output_gradients.abs().sum() == 0
    torch.testing.assert_close(seen["idle"].inputs[:, :3], inputs.reshape(-1, 3))


def test_maps_that_read_one_tensor_share_what_is_computed_from_it(problem, loss):
    calls = []

    def consume(pair):
        pair.shared("probe", lambda: calls.append(pair.name))

    with frozen(problem.model):
        backward_pass(problem.model, problem.maps, problem.batch([0, 1]), loss, consume)
    assert len({"up", "gate"} & set(calls)) == 1
    assert {"inner", "down"} <= set(calls)


@pytest.mark.parametrize("first_has_bias", [False, True])
def test_maps_with_and_without_bias_that_read_one_tensor_share_nothing(first_has_bias):
    """As keys and queries of some models: covariances of 3 and of 3 + 1 inputs, in any order."""

    class Pair(nn.Module):
        def __init__(self) -> None:
            super().__init__()
            torch.manual_seed(0)
            self.first = nn.Linear(3, 2, bias=first_has_bias)
            self.second = nn.Linear(3, 2, bias=not first_has_bias)

        def forward(self, x: torch.Tensor) -> torch.Tensor:
            return self.first(x) * self.second(x)

    model, inputs = Pair().double(), torch.randn(4, 5, 3, dtype=torch.float64)
    maps = find_linear_maps(model, lambda name: True)
    sums = CovarianceSums(maps, torch.float64)

    def objective(module, batch):
        return module(inputs).square().sum(dim=(1, 2))

    with frozen(model):
        backward_pass(model, maps, dense_batch(4, 5), objective, sums.add, dtype=torch.float64)
    for name, found in sums.finish().items():
        rows = inputs.reshape(-1, 3)
        if maps[name].has_bias:
            rows = torch.cat([rows, torch.ones(len(rows), 1, dtype=torch.float64)], dim=1)
        torch.testing.assert_close(found.inputs, rows.T @ rows / len(rows), **EXACT)


def test_the_loss_scale_is_taken_out_of_the_gradients_once(problem, loss):
    batch = problem.batch(problem.all_rows())
    with frozen(problem.model):
        plain, scaled = (
            collect_gradients(
                problem.model, problem.maps, [batch], loss, dtype=torch.float64, loss_scale=scale
            )[0]
            for scale in (1.0, 1024.0)
        )
    for name in plain:
        torch.testing.assert_close(plain[name], scaled[name], **EXACT)


def test_a_loss_scale_that_overflows_is_lowered_and_nothing_is_counted_twice(problem, loss):
    """In float16, δ · 65536 overflows; the pairs handed over are those of a lower scale."""

    class Narrow(torch.autograd.Function):
        @staticmethod
        def forward(ctx, x):
            return x.clone()

        @staticmethod
        def backward(ctx, gradient):
            return gradient.to(torch.float16).double()

    handle = problem.model.up.register_forward_hook(lambda m, a, out: Narrow.apply(out))
    batch, seen = problem.batch([0, 1, 2]), []
    with frozen(problem.model):
        plain, _ = collect_gradients(problem.model, problem.maps, [batch], loss)
        scaled, _ = collect_gradients(
            problem.model, problem.maps, [batch], loss, loss_scale=2.0**40
        )
        backward_pass(problem.model, problem.maps, batch, loss, seen.append, loss_scale=2.0**40)
    handle.remove()
    assert sorted(pair.name for pair in seen) == sorted(problem.maps)
    for name in plain:
        torch.testing.assert_close(plain[name], scaled[name], rtol=1e-2, atol=1e-4)


def test_backward_ends_at_the_lowest_map_and_forms_no_weight_gradient(problem, loss):
    maps = {name: one for name, one in problem.maps.items() if name == "down"}
    reached = []
    handle = problem.model.up.register_full_backward_hook(lambda *_: reached.append("up"))
    with frozen(problem.model):
        backward_pass(problem.model, maps, problem.batch([0, 1]), loss, lambda pair: None)
    handle.remove()
    assert reached == []
    assert all(parameter.grad is None for parameter in problem.model.parameters())


def snapshot(model):
    return {
        "parameters": {name: p.detach().clone() for name, p in model.named_parameters()},
        "requires_grad": {name: p.requires_grad for name, p in model.named_parameters()},
        "grad": {
            name: None if p.grad is None else p.grad.clone() for name, p in model.named_parameters()
        },
        "training": {name: m.training for name, m in model.named_modules()},
        "hooks": {
            name: (len(m._forward_hooks), len(m._forward_pre_hooks), len(m._backward_hooks))
            for name, m in model.named_modules()
        },
        "attributes": {name: sorted(vars(m)) for name, m in model.named_modules()},
    }


def assert_same(before, after):
    for part in ("requires_grad", "training", "hooks", "attributes"):
        assert before[part] == after[part], part
    for part in ("parameters", "grad"):
        for name, tensor in before[part].items():
            other = after[part][name]
            assert (tensor is None) == (other is None)
            assert tensor is None or torch.equal(tensor, other)


@pytest.mark.parametrize("fails", [False, True])
def test_the_model_is_left_as_it_was_after_an_exception_too(problem, loss, fails):
    model = problem.model
    model.train()
    model.down.eval()
    model.up.weight.requires_grad_(False)
    model.down.weight.grad = torch.ones_like(model.down.weight)
    before = snapshot(model)

    def consume(pair):
        if fails and pair.name == "inner":
            raise RuntimeError("stop here")

    batch = problem.batch([0, 1, 2])
    if fails:
        with pytest.raises(RuntimeError, match="stop here"), frozen(model):
            backward_pass(model, problem.maps, batch, loss, consume)
    else:
        with frozen(model):
            backward_pass(model, problem.maps, batch, loss, consume)
    assert_same(before, snapshot(model))


def test_a_loss_that_is_not_finite_names_the_example(problem, loss):
    batch = problem.batch([4, 6, 2])

    def objective(model, batch):
        return loss(model, batch) * torch.tensor([1.0, float("nan"), 1.0])

    with (
        frozen(problem.model),
        pytest.raises(ValueError, match="the loss is not finite for example 6"),
    ):
        backward_pass(problem.model, problem.maps, batch, objective, lambda pair: None)


def test_a_gradient_that_is_not_finite_names_the_module_and_the_example(problem, loss):
    class Spoil(torch.autograd.Function):
        @staticmethod
        def forward(ctx, x):
            return x.clone()

        @staticmethod
        def backward(ctx, gradient):
            spoilt = gradient.clone()
            spoilt[1] = float("inf")
            return spoilt

    handle = problem.model.down.register_forward_hook(lambda m, a, out: Spoil.apply(out))
    with (
        frozen(problem.model),
        pytest.raises(ValueError, match="output gradient of inner is not finite for example 6"),
    ):
        backward_pass(
            problem.model, problem.maps, problem.batch([4, 6, 2]), loss, lambda pair: None
        )
    handle.remove()


def test_the_share_of_parameters_counts_weights_and_biases(problem):
    assert share_of_parameters(problem.maps.values(), problem.model) == pytest.approx(
        (4 * 6 * 2 + 6 * 6 + 6 + 6 * 4 + 4) / (4 * 6 * 2 + 6 * 6 + 6 + 6 * 4 + 4 + 2 * 11 * 4)
    )
