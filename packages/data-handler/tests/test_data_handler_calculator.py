"""The influence of sources, and the weights that follow."""

import math

import numpy as np
import pytest
import torch
from data_handler.influence import METHODS, MixtureWeightCalculator
from math_utils.errors import InfluenceError
from math_utils.influence import (
    DataInfCalculator,
    InfluenceConfig,
    InfluenceDistillationConfig,
    JVPEmbeddingConfig,
    MixtureConfig,
)
from torch.utils.data import DataLoader

VOCABULARY = 24


def make_batches(seed, sizes, length=7):
    """Batches of so many examples; each has its own padding on the right."""
    generator = torch.Generator().manual_seed(seed)
    batches = []
    for size in sizes:
        ids = torch.randint(3, VOCABULARY, (size, length), generator=generator)
        mask = torch.ones_like(ids)
        for row in range(size):
            mask[row, length - (row % 3) :] = 0
        batches.append({"input_ids": ids, "attention_mask": mask})
    return batches


def rebatch(batches, sizes):
    """The same examples in other batches."""
    joined = {key: torch.cat([batch[key] for batch in batches]) for key in batches[0]}
    parts = {key: value.split(list(sizes)) for key, value in joined.items()}
    return [dict(zip(parts, values, strict=True)) for values in zip(*parts.values(), strict=True)]


SOURCES = {
    "a": make_batches(1, (3, 2)),
    "b": make_batches(2, (4,)),
    "c": make_batches(3, (1, 1, 1)),
}
PROBES = {"x": make_batches(4, (2, 1)), "y": make_batches(5, (2,))}
EXACT = InfluenceConfig(dtype=torch.float64)
ONE_BLOCK = InfluenceDistillationConfig(embedding=JVPEmbeddingConfig(num_blocks=1))


def calculator(model, *, probes=PROBES, method="first_order", config=None, **more):
    return MixtureWeightCalculator(
        model,
        probes,
        config,
        method,
        influence_config=EXACT,
        distillation_config=ONE_BLOCK if method == "distillation" else None,
        **more,
    )


def gradients(model, batches):
    """Of the embedding and the head, by autograd, one example at a time: [example, dim]."""
    weights = [model.get_input_embeddings().weight, model.get_output_embeddings().weight]
    rows = []
    for batch in batches:
        for ids, mask in zip(batch["input_ids"], batch["attention_mask"], strict=True):
            ids = ids[mask.bool()]
            logits = model(input_ids=ids[None]).logits[0, :-1]
            loss = torch.nn.functional.cross_entropy(logits, ids[1:], reduction="sum")
            rows.append(torch.cat([g.flatten() for g in torch.autograd.grad(loss, weights)]))
    return torch.stack(rows)


def test_first_order_influence_is_the_mean_inner_product_with_autograds_gradients(double_model):
    found = calculator(double_model, domain_weights={"x": 3.0, "y": 1.0}).measure(SOURCES)
    for source, batches in SOURCES.items():
        products = gradients(double_model, batches)
        domain_means = {
            d: (products @ gradients(double_model, p).T).mean(dim=1) for d, p in PROBES.items()
        }
        joint = (0.75 * domain_means["x"] + 0.25 * domain_means["y"]).detach().numpy()
        assert found[source].mean == pytest.approx(joint.mean(), rel=1e-9)
        assert found[source].standard_error == pytest.approx(
            joint.std(ddof=1) / math.sqrt(len(joint)), rel=1e-9
        )
        assert found[source].num_examples == len(joint)
        for domain, values in domain_means.items():
            assert found[source].by_domain[domain] == pytest.approx(float(values.mean()), rel=1e-9)


def test_datainf_divides_all_sources_by_one_curvature(double_model):
    found = calculator(double_model, method="datainf").measure(SOURCES)
    everything = [batch for batches in SOURCES.values() for batch in batches]
    whole = DataInfCalculator(double_model, EXACT)
    by_domain = [whole.compute_influence(everything, p).mean(dim=0) for p in PROBES.values()]
    joint = torch.stack(by_domain).mean(dim=0)
    for one, values in zip(found.values(), joint.split([5, 4, 3]), strict=True):
        assert one.mean == pytest.approx(float(values.mean()), rel=1e-9)


@pytest.mark.parametrize("method", METHODS)
def test_batches_and_the_order_of_sources_change_nothing(model, method):
    one = calculator(model, method=method).measure(SOURCES)
    turned = {
        "c": rebatch(SOURCES["c"], (3,)),
        "a": rebatch(SOURCES["a"], (1, 4)),
        "b": rebatch(SOURCES["b"], (2, 2)),
    }
    other = calculator(model, method=method).measure(turned)
    for source in SOURCES:
        assert other[source].mean == pytest.approx(one[source].mean, rel=2e-3, abs=1e-6)


@pytest.mark.parametrize("method", METHODS)
def test_every_domain_uses_its_own_probes(model, method):
    both = calculator(model, method=method).measure(SOURCES)
    for domain, loader in PROBES.items():
        alone = calculator(model, probes={domain: loader}, method=method).measure(SOURCES)
        for source in SOURCES:
            assert both[source].by_domain[domain] == pytest.approx(alone[source].mean, rel=1e-4)


def test_measuring_leaves_model_and_random_state_alone(model):
    model.train()
    next(model.parameters()).requires_grad_(False)
    before = {name: parameter.clone() for name, parameter in model.named_parameters()}
    required = [parameter.requires_grad for parameter in model.parameters()]
    rows = [{k: v[0] for k, v in b.items()} for b in rebatch(SOURCES["a"], (1,) * 5)]
    shuffled = {"a": DataLoader(rows, batch_size=2, shuffle=True), "b": SOURCES["b"]}
    state = torch.random.get_rng_state()
    calculator(model, method="datainf").measure(shuffled)
    assert torch.equal(state, torch.random.get_rng_state())
    assert model.training
    assert [parameter.requires_grad for parameter in model.parameters()] == required
    for name, parameter in model.named_parameters():
        assert parameter.grad is None
        assert torch.equal(parameter, before[name])


def test_the_running_influence_takes_in_new_ones_at_the_rate_given(model):
    config = MixtureConfig(smoothing=0.25, learning_rate=0.5)
    one = calculator(model, config=config)
    weights = one.update(dict.fromkeys(SOURCES, 1 / 3), SOURCES)
    first = dict(one.running_influence)
    assert first == {s: found.mean for s, found in one.last_measured.items()}
    with torch.no_grad():
        model.get_output_embeddings().weight.mul_(1.5)
    one.update(weights, SOURCES)
    for source, found in one.last_measured.items():
        expected = 0.25 * found.mean + 0.75 * first[source]
        assert one.running_influence[source] == pytest.approx(expected, rel=1e-12)


def test_a_step_is_exponentiated_influence_over_its_scale(model):
    one = calculator(model, config=MixtureConfig(min_weight=0.0, max_weight=1.0))
    weights = one.update({"a": 0.5, "b": 0.3, "c": 0.2}, SOURCES, learning_rate=0.7)
    found = one.last_measured
    scale = math.sqrt(np.mean([f.mean**2 + f.standard_error**2 for f in found.values()]))
    grown = np.array([0.5, 0.3, 0.2]) * np.exp([0.7 * found[s].mean / scale for s in "abc"])
    np.testing.assert_allclose(list(weights.values()), grown / grown.sum(), rtol=1e-9)
    assert one.compute_weights(SOURCES).keys() == SOURCES.keys()


def test_compute_weights_starts_from_even_weights_and_keeps_no_state(model):
    one = calculator(model)
    found = one.compute_weights(SOURCES)
    assert one.running_influence is None
    assert found == calculator(model).update(dict.fromkeys(SOURCES, 1 / 3), SOURCES)


def not_labelled(batches):
    return [{**b, "labels": torch.full_like(b["input_ids"], -100)} for b in batches]


@pytest.mark.parametrize(
    ("sources", "message"),
    [
        ({}, "at least one source"),
        ({**SOURCES, "b": []}, "source b is empty"),
        ({**SOURCES, "b": make_batches(0, (1,))}, "at least 2 examples of the source b"),
        (
            {**SOURCES, "b": [{"ids": torch.ones(1, 3)}]},
            "source b: expected batches with input_ids",
        ),
        ({**SOURCES, "b": [torch.ones(1, 3)]}, "source b: expected batches with input_ids"),
        ({**SOURCES, "b": not_labelled(SOURCES["b"])}, "at least one label"),
    ],
)
def test_bad_sources_are_refused(model, sources, message):
    with pytest.raises(InfluenceError, match=message):
        calculator(model).measure(sources)


def test_a_failed_update_leaves_the_running_influence_as_it_was(model):
    one = calculator(model)
    even = dict.fromkeys(SOURCES, 1 / 3)
    one.update(even, SOURCES)
    before = dict(one.running_influence)
    with pytest.raises(InfluenceError):
        one.update(even, {**SOURCES, "b": []})
    assert one.running_influence == before


def test_a_gradient_that_is_not_finite_names_example_and_layer(model):
    with torch.no_grad():
        model.get_output_embeddings().weight[5] = math.nan
    with pytest.raises(ValueError, match="example"):
        calculator(model).measure(SOURCES)


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        ({"method": "magic"}, "expected a method among datainf"),
        ({"probes": {}}, "at least one probe domain"),
        ({"domain_weights": {"x": 1.0}}, "weights of the domains x, y"),
        ({"domain_weights": {"x": 0.0, "y": 0.0}}, "positive sum"),
        ({"domain_weights": {"x": -1.0, "y": 2.0}}, "not negative"),
    ],
)
def test_bad_arguments_are_refused(model, arguments, message):
    # Literal types are checked under pytest before the function is.
    expected = (InfluenceError, TypeError) if "method" in arguments else InfluenceError
    with pytest.raises(expected, match=None if "method" in arguments else message):
        calculator(model, **arguments)


def test_bounds_that_cannot_be_satisfied_are_refused_before_anything_is_measured(model):
    one = calculator(model, config=MixtureConfig(min_weight=0.4))
    with pytest.raises(InfluenceError, match="expected bounds that 3 weights"):
        one.update(dict.fromkeys(SOURCES, 1 / 3), SOURCES)
    assert not one.last_measured


def test_an_empty_probe_set_is_refused(model):
    with pytest.raises(InfluenceError, match="probe y is empty"):
        calculator(model, probes={**PROBES, "y": []}).measure(SOURCES)
