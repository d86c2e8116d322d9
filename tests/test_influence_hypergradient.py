"""Hypergradients of unrolled steps on a tiny transformer, against taking the steps again."""

import pytest
import torch
from influence_cases import make_loader, use_float64_norms
from math_utils.influence.hypergradient import HyperGradientCalculator, language_model_losses

WEIGHTS = {"a": 0.6, "b": 0.4}


@pytest.mark.parametrize("architecture", ["olmo2", "llama"])
def test_two_steps_on_a_transformer(make_model, sequences, architecture):
    model = make_model(architecture, std=0.2)
    use_float64_norms(model)
    model.set_attn_implementation("sdpa")
    sources = {"a": make_loader(sequences, [[0, 1], [2]]), "b": make_loader(sequences, [[4, 5]])}
    probe = make_loader(sequences, [[3], [6]])
    groups = {"embedding": ["model.embed_tokens.weight"], "rest": []}
    groups["rest"] = [n for n, _ in model.named_parameters() if n not in groups["embedding"]]
    rates, decay = {"embedding": 0.004, "rest": 0.002}, 0.5
    calculator = HyperGradientCalculator(model, groups=groups, weight_decay=decay)
    found = calculator.of_steps(sources, WEIGHTS, probe, rates, num_steps=2)
    original = {n: p.detach().clone() for n, p in model.named_parameters()}

    def mean_loss(batches):
        losses = torch.cat([language_model_losses(model, batch) for batch in batches])
        return losses.mean()

    def after(weights=WEIGHTS, rates=rates, decay=decay):
        for _ in range(2):
            model.zero_grad()
            sum(weights[name] * mean_loss(one) for name, one in sources.items()).backward()
            with torch.no_grad():
                for group, names in groups.items():
                    for name in names:
                        p = model.get_parameter(name)
                        p -= rates[group] * (p.grad + decay * p)
        with torch.no_grad():
            loss = float(mean_loss(probe))
            for name, value in original.items():
                model.get_parameter(name).copy_(value)
        model.zero_grad(set_to_none=True)
        return loss

    def difference(change, step):
        return (after(**change(step)) - after(**change(-step))) / (2 * step)

    # The derivative is taken through eager attention, whose softmax is in float32.
    close = {"rel": 1e-4, "abs": 1e-6}
    assert found.probe_loss == pytest.approx(after(), rel=1e-6)
    for name in sources:
        expected = difference(
            lambda by, name=name: {"weights": {**WEIGHTS, name: WEIGHTS[name] + by}}, 1e-4
        )
        assert found.mixture[name] == pytest.approx(expected, **close)
    for group in groups:
        expected = difference(
            lambda by, group=group: {"rates": {**rates, group: rates[group] + by}}, 1e-6
        )
        assert found.learning_rate[group] == pytest.approx(expected, **close)
    expected = difference(lambda by: {"decay": decay + by}, 1e-4)
    assert sum(found.weight_decay.values()) == pytest.approx(expected, **close)
    assert model.config._attn_implementation == "sdpa"
