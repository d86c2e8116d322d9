"""DataInf against its formula, the dense inverse and its limits, on real architectures."""

import pytest
import torch
from influence_cases import ARCHITECTURES, config, make_batch, make_loader, naive_gradients
from math_utils.errors import InfluenceError
from math_utils.influence import (
    DataInfCalculator,
    DiscriminativeGradientExtractor,
    InfluenceConfig,
    aggregate,
)
from math_utils.influence.datainf import layer_influence
from math_utils.influence.layer_gradients import DenseBlock, row_blocks
from math_utils.influence.vocabulary_gradients import HeadWeight
from peft import LoraConfig, get_peft_model

TIGHT = {"rtol": 1e-10, "atol": 1e-10}


def naive_datainf(train, probe, lambda_val):
    """Equation 5 as it is printed, layer by layer, with our sign."""
    total = 0
    for name in train:
        g, v = train[name].flatten(1), probe[name].flatten(1)
        damping = lambda_val * g.square().mean()
        if damping == 0:
            continue
        rows = []
        for one in v:
            h = torch.zeros_like(one)
            for each in g:
                h += one - (one @ each) / (damping + each @ each) * each
            rows.append(g @ (h / (len(g) * damping)))
        total = total + torch.stack(rows)
    return total


def dense_inverse(train, probe, lambda_val):
    """vᵀ (F + λI)⁻¹ g by a solve with the full matrix, layer by layer."""
    total = 0
    for name in train:
        g, v = train[name].flatten(1), probe[name].flatten(1)
        damping = lambda_val * g.square().mean()
        matrix = g.T @ g / len(g) + damping * torch.eye(g.shape[1], dtype=g.dtype)
        total = total + v @ torch.linalg.solve(matrix, g.T)
    return total


def split(gradients, rows):
    return {name: each[rows] for name, each in gradients.items()}


@pytest.mark.parametrize("architecture", ARCHITECTURES)
@pytest.mark.parametrize("target", ["both", "mlp", "all"])
def test_it_equals_the_formula_layer_by_layer(make_model, sequences, architecture, target):
    model = make_model(architecture)
    calculator = DataInfCalculator(model, config(target))
    extractor = calculator.gradient_extractor
    gradients = naive_gradients(model, extractor, sequences, prompt=2)
    train, probe = [4, 0, 2, 3, 1], [5, 6]
    expected = naive_datainf(split(gradients, train), split(gradients, probe), 0.1)
    for groups, side in (([train], "right"), ([[4], [0, 2, 3], [1]], "left")):
        found = calculator.compute_influence(
            make_loader(sequences, groups, side=side, prompt=2),
            make_loader(sequences, [[5], [6]], prompt=2),
        )
        torch.testing.assert_close(found, expected, **TIGHT)


@pytest.mark.parametrize("architecture", ["olmo2", "llama", "gpt2"])
def test_blocks_of_rows_of_any_size_give_the_same(make_model, sequences, architecture):
    extractor = DiscriminativeGradientExtractor(make_model(architecture), config("all"))
    train = extractor.gather(make_loader(sequences, [[0, 1], [2, 3, 4]]), "train loader")
    probe = extractor.gather(make_loader(sequences, [[5, 6]]), "probe loader")
    for name in train:
        whole = layer_influence(train[name], probe[name], lambda_val=0.3)
        for size in (1, 700, 2000):
            cut = layer_influence(train[name], probe[name], lambda_val=0.3, max_elements=size)
            torch.testing.assert_close(cut, whole, **TIGHT)


@pytest.mark.parametrize("architecture", ["olmo2", "llama"])
def test_it_is_exact_for_one_training_example(make_model, sequences, architecture):
    """The theorem of Sherman and Morrison."""
    model = make_model(architecture)
    calculator = DataInfCalculator(model, config("both"))
    gradients = naive_gradients(model, calculator.gradient_extractor, sequences)
    found = calculator.compute_influence(
        make_loader(sequences, [[3]]), make_loader(sequences, [[0, 1, 2]])
    )
    expected = dense_inverse(split(gradients, [3]), split(gradients, [0, 1, 2]), 0.1)
    torch.testing.assert_close(found, expected, rtol=1e-9, atol=1e-9)


def test_it_agrees_with_the_dense_inverse_as_damping_grows(make_model, sequences):
    """Both are (1/λ)(v·g − …/λ): their difference vanishes by another power of λ."""
    model = make_model("olmo2")
    gradients = naive_gradients(
        model, DiscriminativeGradientExtractor(model, config("both")), sequences
    )
    train, probe = split(gradients, [0, 1, 2, 3]), split(gradients, [5, 6])
    errors = []
    for lambda_val in (1e4, 1e6):
        found = DataInfCalculator(model, config("both", lambda_val=lambda_val)).compute_influence(
            make_loader(sequences, [[0, 1], [2, 3]]), make_loader(sequences, [[5, 6]])
        )
        expected = dense_inverse(train, probe, lambda_val)
        errors.append(float((found - expected).norm() / expected.norm()))
    assert errors[0] < 0.1
    assert errors[1] < errors[0] / 1e3


def test_positive_is_helpful_and_an_example_helps_itself(make_model, sequences):
    model = make_model("qwen3")
    loader = make_loader(sequences, [range(7)])
    found = DataInfCalculator(model, config()).compute_influence(loader, loader)
    assert (found.diagonal() > 0).all()
    assert torch.equal(found.argmax(dim=1), torch.arange(7))


@pytest.mark.parametrize("fresh", [True, False])
def test_lora_adapters_of_a_peft_model(make_model, sequences, fresh):
    """In a fresh adapter B is zero, so that A has no gradient; it then adds nothing."""
    with torch.random.fork_rng():
        torch.manual_seed(0)
        model = get_peft_model(
            make_model("llama"),
            LoraConfig(r=3, lora_alpha=6, target_modules=["q_proj", "up_proj"], lora_dropout=0.5),
        ).double()
        if not fresh:
            for name, parameter in model.named_parameters():
                if "lora_B" in name:
                    torch.nn.init.normal_(parameter, std=0.3)
    calculator = DataInfCalculator(model, config("lora"))
    extractor = calculator.gradient_extractor
    assert len(extractor.layers) == 3 * 2 * 2
    trainable = sum(p.numel() for p in model.parameters() if p.requires_grad)
    assert extractor.gradient_dim == trainable
    gradients = naive_gradients(model.eval(), extractor, sequences)
    expected = naive_datainf(split(gradients, [0, 1, 2, 3]), split(gradients, [5, 6]), 0.1)
    model.train()
    found = calculator.compute_influence(
        make_loader(sequences, [[0, 1, 2], [3]]), make_loader(sequences, [[5, 6]])
    )
    torch.testing.assert_close(found, expected, rtol=1e-8, atol=1e-8)
    assert all(p.requires_grad == ("lora" in n) for n, p in model.named_parameters())


def test_domains_have_caches_of_their_own(make_model, sequences):
    """Defect: one probe cache shared by all domains, so that every domain used the last one."""
    calculator = DataInfCalculator(make_model("olmo2"), config())
    domains = {"first": make_loader(sequences, [[0]]), "second": make_loader(sequences, [[1, 2]])}
    for name, loader in domains.items():
        calculator.cache_probe(loader, name)
    batch = make_batch(sequences, [3, 4, 5])
    calculator.compute_influence([batch], make_loader(sequences, [[6]]))  # must not be remembered
    for name, loader in domains.items():
        found = calculator.compute_batch_influence(batch, name)
        assert torch.equal(found, calculator.compute_influence([batch], loader))
    calculator.clear_cache("first")
    assert calculator.cached_domains == ("second",)
    with pytest.raises(InfluenceError, match="no probe examples are cached for the domain 'first'"):
        calculator.compute_batch_influence(batch, "first")
    calculator.clear_cache()
    with pytest.raises(InfluenceError, match="call cache_probe first"):
        calculator.compute_influence([batch])


@pytest.mark.parametrize("architecture", ["olmo2", "gpt2"])
def test_a_cache_from_before_a_training_step_is_refused(make_model, sequences, architecture):
    model = make_model(architecture)
    calculator = DataInfCalculator(model, config())
    calculator.cache_probe(make_loader(sequences, [[0]]))
    optimizer = torch.optim.SGD(model.parameters(), lr=0.1)
    for parameter in model.parameters():
        parameter.grad = torch.ones_like(parameter)
    optimizer.step()
    with pytest.raises(InfluenceError, match="call cache_probe again"):
        calculator.compute_batch_influence(make_batch(sequences, [1, 2]))


def test_float32_is_near_float64(make_model, sequences):
    train, probe = make_loader(sequences, [[0, 1, 2, 3, 4]]), make_loader(sequences, [[5, 6]])
    exact = DataInfCalculator(make_model("olmo2"), config()).compute_influence(train, probe)
    model = make_model("olmo2", dtype=torch.float32)
    found = DataInfCalculator(model, InfluenceConfig()).compute_influence(train, probe)
    assert (found.double() - exact).norm() < 1e-4 * exact.norm()
    assert found.dtype == torch.float32


def test_aggregates_over_probes():
    influence = torch.tensor([[1.0, -2.0, 4.0], [3.0, 0.0, -4.0]])
    expected = {"mean": [2, -1, 0], "sum": [4, -2, 0], "max": [3, 0, 4], "min": [1, -2, -4]}
    for how, values in expected.items():
        assert aggregate(influence, how).tolist() == values


def test_bad_input_is_said_with_what_to_do(make_model, sequences):
    model = make_model("olmo2")
    calculator = DataInfCalculator(model, config())
    good = make_loader(sequences, [[0, 1]])
    unlabelled = make_batch(sequences, [0, 1])
    unlabelled["labels"][1] = -100
    for train, probe, message in (
        ([], good, "the train loader is empty"),
        (good, [], "the probe loader is empty"),
        (good, iter([]), "pass a loader that can be read again"),
        ([{"ids": torch.ones(1, 2)}], good, "expected batches that map input_ids .* got ids"),
        ([unlabelled], good, "example 1 of the train loader: expected at least one label"),
        (good, [*good, unlabelled], "example 3 of the probe loader"),
        ([{"input_ids": torch.tensor([[3]])}], good, "single token"),
    ):
        with pytest.raises(InfluenceError, match=message):
            calculator.compute_influence(train, probe)
    for wrong, message in (
        ({"input_ids": torch.ones(2, 3)}, "whole numbers"),
        ({**good[0], "labels": torch.ones(2, 2)}, r"labels to be a tensor \[batch, seq\]"),
        ({**good[0], "attention_mask": None, "labels": [1]}, "labels to be a tensor"),
        ({**good[0], "attention_mask": torch.zeros_like(good[0]["input_ids"])}, "real token"),
    ):
        with pytest.raises(InfluenceError, match=message):
            calculator.compute_influence([wrong], good)
    with pytest.raises(InfluenceError, match="mean, sum, max, min, got 'median'"):
        aggregate(torch.ones(1, 1), "median")
    other = DiscriminativeGradientExtractor(make_model("olmo2"), config())
    with pytest.raises(InfluenceError, match="of the same model"):
        DataInfCalculator(model, config(), other)
    with pytest.raises(InfluenceError, match="expected one target"):
        DataInfCalculator(model, config("mlp"), DiscriminativeGradientExtractor(model, config()))
    projected = DiscriminativeGradientExtractor(model, config(), projection_dim=8)
    with pytest.raises(InfluenceError, match="does not project"):
        DataInfCalculator(model, config(), projected)


@pytest.mark.parametrize("architecture", ["olmo2", "llama"])
def test_nothing_of_the_size_of_vocabulary_times_examples_is_kept_or_formed(
    make_model, sequences, architecture
):
    model = make_model(architecture, vocab_size=2000)
    extractor = DiscriminativeGradientExtractor(model, config("both"))
    layers = extractor.gather(make_loader(sequences, [range(7)]), "train loader")
    num_tokens, width = sum(map(len, sequences)), 12
    for layer in layers.values():
        kept = sum(tensor.numel() for tensor in tensors_of(layer))
        assert kept <= 4 * num_tokens * width
        blocks = list(row_blocks(layer, num_queries=2, max_elements=3000))
        assert [start for start, _ in blocks[1:]] == [stop for _, stop in blocks[:-1]]
        assert blocks[0][0] == 0
        assert blocks[-1][1] == 2000
        for start, stop in blocks:
            block = layer.block(start, stop)
            if isinstance(block, DenseBlock):
                assert block.tensor.numel() <= 3000


def tensors_of(thing):
    """All tensors that a layer's gradients hold, but the model's own weight."""
    for value in vars(thing).values():
        if isinstance(value, torch.Tensor):
            yield value
        elif hasattr(value, "__dict__") and not isinstance(value, HeadWeight):
            yield from tensors_of(value)
