"""Hypergradients against finite differences of real retraining, on a convex problem."""

import pytest
import torch
from math_utils.errors import CurvatureError, InfluenceError
from math_utils.influence.hypergradient import HyperGradientCalculator
from math_utils.linalg import conjugate_gradients
from torch import nn

DOUBLE = torch.float64
WEIGHTS = {"a": 0.7, "b": 0.5}
DECAY = 0.3
RATES = {"weights": 0.4, "biases": 0.15}
GROUPS = {"weights": ["weight"], "biases": ["bias"]}


def losses(model, batch):
    inputs, targets = batch
    return nn.functional.cross_entropy(model(inputs), targets, reduction="none")


def examples(num, seed):
    generator = torch.Generator().manual_seed(seed)
    inputs = torch.randn(num, 4, generator=generator, dtype=DOUBLE)
    return inputs, torch.randint(0, 3, (num,), generator=generator)


SOURCES = {"a": [examples(5, 1), examples(2, 2)], "b": [examples(9, 3)]}
PROBE = [examples(3, 4), examples(4, 5)]


def joined(batches):
    return torch.cat([x for x, _ in batches]), torch.cat([y for _, y in batches])


def objective(model, weights, decay, force=None):
    total = sum(weights[s] * losses(model, joined(b)).mean() for s, b in SOURCES.items())
    total = total + decay / 2 * sum(p.square().sum() for p in model.parameters())
    if force is not None:
        total = total + sum((force[n] * p).sum() for n, p in model.named_parameters())
    return total


def start():
    with torch.random.fork_rng():
        torch.manual_seed(0)
        return nn.Linear(4, 3, dtype=DOUBLE)


def retrain(weights=WEIGHTS, decay=DECAY, force=None):
    """Newton's method to the minimum."""
    model = start()
    for _ in range(12):
        gradients = torch.autograd.grad(
            objective(model, weights, decay, force), list(model.parameters()), create_graph=True
        )
        flat = torch.cat([g.flatten() for g in gradients])
        hessian = torch.stack(
            [
                torch.cat(
                    [
                        h.flatten()
                        for h in torch.autograd.grad(
                            one, list(model.parameters()), retain_graph=True
                        )
                    ]
                )
                for one in flat
            ]
        )
        step = torch.linalg.solve(hessian, flat.detach())
        with torch.no_grad():
            vector = nn.utils.parameters_to_vector(model.parameters()) - step
            nn.utils.vector_to_parameters(vector, model.parameters())
    assert flat.norm() < 1e-12
    return model


def descend(weights=WEIGHTS, decay=DECAY, rates=RATES, force=None, num_steps=3):
    model = start()
    for _ in range(num_steps):
        gradients = torch.autograd.grad(
            objective(model, weights, decay, force), list(model.parameters())
        )
        with torch.no_grad():
            model.weight -= rates["weights"] * gradients[0]
            model.bias -= rates["biases"] * gradients[1]
    return model


def probe_loss(model):
    with torch.no_grad():
        return float(losses(model, joined(PROBE)).mean())


def difference(train, step=1e-5):
    return (probe_loss(train(step)) - probe_loss(train(-step))) / (2 * step)


def shifted(mapping, key, by):
    return {**mapping, key: mapping[key] + by}


def forces(train):
    """dP/df for every entry of every parameter."""
    shapes = {name: p.shape for name, p in start().named_parameters()}
    out = {}
    for name, shape in shapes.items():
        entries = []
        for place in range(shape.numel()):

            def one(by, name=name, place=place):
                force = {n: torch.zeros(s, dtype=DOUBLE) for n, s in shapes.items()}
                force[name].view(-1)[place] = by
                return train(force)

            entries.append(difference(one))
        out[name] = torch.tensor(entries, dtype=DOUBLE).view(shape)
    return out


def test_at_a_minimum_they_are_those_of_retraining():
    model = retrain()
    calculator = HyperGradientCalculator(model, losses, weight_decay=DECAY)
    found = calculator.at_minimum(SOURCES, WEIGHTS, PROBE, tolerance=1e-12)
    assert found.probe_loss == pytest.approx(probe_loss(model))
    for name in SOURCES:
        expected = difference(lambda by, name=name: retrain(shifted(WEIGHTS, name, by)))
        assert found.mixture[name] == pytest.approx(expected, rel=1e-6)
    expected = difference(lambda by: retrain(decay=DECAY + by))
    assert found.weight_decay["all"] == pytest.approx(expected, rel=1e-6)
    assert found.learning_rate == {}
    for name, own in forces(lambda force: retrain(force=force)).items():
        torch.testing.assert_close(found.sensitivity[name], own, rtol=1e-6, atol=1e-8)


@pytest.mark.parametrize("num_steps", [1, 3])
def test_of_steps_they_are_those_of_taking_the_steps_again(num_steps):
    calculator = HyperGradientCalculator(start(), losses, groups=GROUPS, weight_decay=DECAY)
    found = calculator.of_steps(SOURCES, WEIGHTS, PROBE, RATES, num_steps=num_steps)

    def again(**changed):
        return descend(num_steps=num_steps, **changed)

    assert found.probe_loss == pytest.approx(probe_loss(again()))
    for name in SOURCES:
        expected = difference(lambda by, name=name: again(weights=shifted(WEIGHTS, name, by)))
        assert found.mixture[name] == pytest.approx(expected, rel=1e-6)
    for name in GROUPS:
        expected = difference(lambda by, name=name: again(rates=shifted(RATES, name, by)))
        assert found.learning_rate[name] == pytest.approx(expected, rel=1e-6)
    expected = difference(lambda by: again(decay=DECAY + by))
    assert sum(found.weight_decay.values()) == pytest.approx(expected, rel=1e-6)
    for name, own in forces(lambda force: again(force=force)).items():
        torch.testing.assert_close(found.sensitivity[name], own, rtol=1e-6, atol=1e-8)


def test_an_examples_influence_is_minus_the_sensitivity_along_its_gradient():
    """Leaving the unit: an example as a source of its own, of weight zero."""
    model = retrain()
    single = [tuple(part[:1] for part in SOURCES["b"][0])]
    calculator = HyperGradientCalculator(model, losses, weight_decay=DECAY)
    found = calculator.at_minimum(
        {**SOURCES, "one": single}, {**WEIGHTS, "one": 0.0}, PROBE, tolerance=1e-12
    )
    gradient = torch.autograd.grad(losses(model, single[0]).sum(), list(model.parameters()))
    parts = zip(found.sensitivity.values(), gradient, strict=True)
    influence = -sum(float((u * g).sum()) for u, g in parts)
    assert found.mixture["one"] == pytest.approx(-influence)


def test_batches_do_not_matter_and_the_model_is_left_as_it_was():
    model = start().train()
    model.bias.requires_grad_(False)
    before = [p.clone() for p in model.parameters()]
    calculator = HyperGradientCalculator(
        model, losses, parameters=["weight", "bias"], weight_decay=DECAY
    )
    found = calculator.of_steps(SOURCES, WEIGHTS, PROBE, 0.2, num_steps=2)
    other = calculator.of_steps(
        {name: [joined(batches)] for name, batches in SOURCES.items()},
        WEIGHTS,
        [joined(PROBE)],
        0.2,
        num_steps=2,
    )
    assert found.mixture == pytest.approx(other.mixture)
    assert found.learning_rate == pytest.approx(other.learning_rate)
    assert [p.requires_grad for p in model.parameters()] == [True, False]
    assert all(p.grad is None for p in model.parameters())
    assert all(torch.equal(a, b) for a, b in zip(before, model.parameters(), strict=True))
    assert model.training
    assert HyperGradientCalculator(model, losses).names == ("weight",)


def test_bad_input_is_said():
    model = start()
    calculator = HyperGradientCalculator(model, losses, groups=GROUPS)
    for call, message in (
        (lambda: calculator.at_minimum({}, {}, PROBE), "one weight for each source"),
        (lambda: calculator.at_minimum(SOURCES, {"a": 1.0}, PROBE), "got weights for a"),
        (lambda: calculator.at_minimum({"a": []}, {"a": 1.0}, PROBE), "source 'a' is empty"),
        (lambda: calculator.at_minimum(SOURCES, WEIGHTS, []), "probe loader is empty"),
        (lambda: calculator.of_steps(SOURCES, WEIGHTS, PROBE, {"weights": 1.0}), "each group"),
        (lambda: calculator.of_steps(SOURCES, WEIGHTS, PROBE, 1.0, num_steps=0), "num_steps"),
        (lambda: HyperGradientCalculator(model, losses, parameters=["no"]), "names of parameters"),
        (lambda: HyperGradientCalculator(model, losses, groups={"g": ["bias"]}), "once"),
        (lambda: HyperGradientCalculator(model, losses, weight_decay=-1.0), "weight_decay"),
    ):
        with pytest.raises(InfluenceError, match=message):
            call()
    broken = {"a": [(torch.full((1, 4), float("nan"), dtype=DOUBLE), torch.tensor([0]))]}
    with pytest.raises(InfluenceError, match="expected finite losses, got nan in row 0"):
        calculator.at_minimum(broken, {"a": 1.0}, PROBE)


def test_conjugate_gradients_solve_and_say_where_they_cannot():
    generator = torch.Generator().manual_seed(0)
    root = torch.randn(12, 9, generator=generator, dtype=DOUBLE)
    matrix, target = root.T @ root, torch.randn(9, generator=generator, dtype=DOUBLE)
    found = conjugate_gradients(lambda x: matrix @ x, target, tolerance=1e-12)
    torch.testing.assert_close(found, torch.linalg.solve(matrix, target))
    assert torch.equal(conjugate_gradients(lambda x: x, torch.zeros(3)), torch.zeros(3))
    with pytest.raises(CurvatureError, match="raise the damping"):
        conjugate_gradients(lambda x: -x, target)
    with pytest.raises(CurvatureError, match="within 2 products"):
        conjugate_gradients(lambda x: matrix @ x, target, max_iterations=2)
