"""Gradients of embedding, head and other targets on real architectures, against autograd."""

import pytest
import torch
from influence_cases import (
    ARCHITECTURES,
    CLOSE,
    TIED,
    config,
    flat,
    make_batch,
    make_loader,
    naive_gradients,
)
from math_utils.errors import InfluenceError, NonFiniteError
from math_utils.influence import (
    DiscriminativeGradientExtractor,
    FirstOrderCalculator,
    InfluenceConfig,
    RandomizedHadamardTransform,
)


@pytest.mark.parametrize("architecture", ARCHITECTURES)
@pytest.mark.parametrize("target", ["embedding", "output", "both", "mlp", "all", r"attn|attention"])
def test_every_target_equals_autograd_whatever_the_padding(
    make_model, sequences, architecture, target
):
    model = make_model(architecture)
    extractor = DiscriminativeGradientExtractor(model, config(target))
    expected = flat(naive_gradients(model, extractor, sequences, prompt=3))
    rows = list(range(len(sequences)))
    for side in ("right", "left"):
        found = extractor.compute_batch_gradients(make_batch(sequences, rows, side=side, prompt=3))
        torch.testing.assert_close(found, expected, **CLOSE)
    assert found.shape[1] == extractor.embedding_dim == extractor.gradient_dim


@pytest.mark.parametrize("architecture", ARCHITECTURES)
def test_inner_products_without_forming_equal_those_of_autograd(
    make_model, sequences, architecture
):
    model = make_model(architecture)
    calculator = FirstOrderCalculator(model, config("both"))
    extractor = calculator.gradient_extractor
    expected = flat(naive_gradients(model, extractor, sequences))
    train = make_loader(sequences, [[2, 0], [5, 1, 4]])
    probe = make_loader(sequences, [[3], [6]], side="left")
    found = calculator.compute_influence(train, probe)
    torch.testing.assert_close(found, expected[[3, 6]] @ expected[[2, 0, 5, 1, 4]].T, **CLOSE)


@pytest.mark.parametrize("architecture", sorted(TIED))
@pytest.mark.parametrize("target", ["embedding", "output", "both"])
def test_a_tied_weight_counts_once_and_is_never_empty(make_model, sequences, architecture, target):
    """Defect: an output-only target of a tied model gave an empty gradient."""
    model = make_model(architecture)
    extractor = DiscriminativeGradientExtractor(model, config(target))
    assert list(extractor.layers.values()) == [tuple(model.get_input_embeddings().weight.shape)]
    gradients = extractor.compute_batch_gradients(make_batch(sequences, [0, 2]))
    assert (gradients.norm(dim=1) > 0).all()


def test_missing_labels_are_the_ids_and_padding_never_counts(make_model, sequences):
    """Defect: labels that default to input_ids let padding into the loss."""
    model = make_model("olmo2")
    extractor = DiscriminativeGradientExtractor(model, config())
    plain = extractor.compute_batch_gradients(make_batch(sequences, [2])) * 1
    for labels in (True, False):  # labels given at padding are pad ids there, not -100
        for pad in (2, 7):
            batch = make_batch(sequences, [2, 3], labels=labels, pad=pad)
            found = extractor.compute_batch_gradients(batch)[:1]
            torch.testing.assert_close(found, plain, **CLOSE)
    without_mask = {"input_ids": torch.tensor([sequences[2]])}
    torch.testing.assert_close(extractor.compute_batch_gradients(without_mask), plain, **CLOSE)


def test_large_gradients_are_the_same_on_every_path_because_nothing_is_clipped(
    make_model, sequences
):
    """Defect: clipping per tensor on one path only."""
    model = make_model("qwen3")
    with torch.no_grad():
        model.lm_head.weight *= 50
    calculator = FirstOrderCalculator(model, config())
    extractor = calculator.gradient_extractor
    loader = make_loader(sequences, [[0, 1, 2]])
    formed = extractor.compute_batch_gradients(loader[0])
    assert formed.norm(dim=1).min() > 100
    expected = flat(naive_gradients(model, extractor, sequences[:3]))
    torch.testing.assert_close(formed, expected, **CLOSE)
    (iterated,) = extractor.iterate_gradients(loader)
    assert torch.equal(iterated, formed)
    torch.testing.assert_close(
        calculator.compute_influence(loader, loader), formed @ formed.T, **CLOSE
    )
    torch.testing.assert_close(
        extractor.compute_aggregated_gradient(loader, "sum"), formed.sum(dim=0), **CLOSE
    )


def test_the_mean_gradient_weighs_examples_and_not_batches(make_model, sequences):
    """Defect: an average of batch averages, whatever the sizes of the batches."""
    extractor = DiscriminativeGradientExtractor(make_model("gpt_neox"), config())
    every = extractor.compute_embeddings(make_loader(sequences, [range(7)]))
    for groups in ([[0], range(1, 7)], [[0, 1, 2, 3, 4], [5, 6]]):
        loader = make_loader(sequences, groups)
        found = extractor.compute_aggregated_gradient(loader)
        torch.testing.assert_close(found, every.mean(dim=0), **CLOSE)
        torch.testing.assert_close(extractor.compute_embeddings(loader), every, **CLOSE)
    three = extractor.compute_embeddings(loader, max_samples=3)
    torch.testing.assert_close(three, every[:3], **CLOSE)


@pytest.mark.parametrize("fails", [False, True])
def test_the_model_is_left_as_it_was_after_an_exception_too(make_model, sequences, fails):
    """Defect: requires_grad was left changed."""
    model = make_model("llama").train()
    model.model.layers[0].mlp.up_proj.weight.requires_grad_(False)
    grad = torch.ones_like(model.model.norm.weight)
    model.model.norm.weight.grad = grad
    before = [(p.requires_grad, p.grad, p._version) for p in model.parameters()]
    hooks = [(len(m._forward_hooks), len(m._forward_pre_hooks)) for m in model.modules()]
    extractor = DiscriminativeGradientExtractor(model, config("all"))
    batch = make_batch(sequences, [0, 1])
    if fails:
        with torch.no_grad():
            model.model.norm.weight[0] = float("nan")
        before = [(p.requires_grad, p.grad, p._version) for p in model.parameters()]
        with pytest.raises(NonFiniteError):
            extractor.compute_batch_gradients(batch)
    else:
        extractor.compute_batch_gradients(batch)
    assert before == [(p.requires_grad, p.grad, p._version) for p in model.parameters()]
    assert model.model.norm.weight.grad is grad
    assert all(module.training for module in model.modules())
    assert hooks == [(len(m._forward_hooks), len(m._forward_pre_hooks)) for m in model.modules()]


def test_projected_gradients_are_the_projection_of_the_gradients(make_model, sequences):
    model = make_model("olmo2")
    whole = DiscriminativeGradientExtractor(model, config())
    projected = DiscriminativeGradientExtractor(model, config(), projection_dim=64, seed=3)
    batch = make_batch(sequences, [0, 1, 2])
    expected = projected.projection.project(whole.compute_batch_gradients(batch))
    torch.testing.assert_close(projected.compute_batch_gradients(batch), expected, **CLOSE)
    assert projected.embedding_dim == 64
    torch.testing.assert_close(
        projected.compute_aggregated_gradient([batch]), expected.mean(dim=0), **CLOSE
    )


@pytest.mark.parametrize("architecture", ["olmo2", "gpt2"])
def test_a_head_in_bfloat16_has_gradients_near_those_in_float64(
    make_model, sequences, architecture
):
    """Its softmax is taken in float32. (A backward pass in bfloat16 rounds much more.)"""
    batch = make_batch(sequences, [0, 1, 2, 3])
    exact = DiscriminativeGradientExtractor(make_model(architecture, std=0.1), config("output"))
    expected = exact.compute_batch_gradients(batch)
    model = make_model(architecture, std=0.1).to(torch.bfloat16)
    narrow = DiscriminativeGradientExtractor(model, InfluenceConfig(target="output"))
    found = narrow.compute_batch_gradients(batch)
    assert found.dtype == torch.float32
    assert (found.double() - expected).norm() < 0.02 * expected.norm()


def test_the_example_and_the_layer_of_a_gradient_that_is_not_finite_are_named(
    make_model, sequences
):
    model = make_model("olmo2")
    extractor = DiscriminativeGradientExtractor(model, config())
    token = sequences[3][0]
    assert token not in sequences[0] + sequences[1]
    with torch.no_grad():
        model.get_input_embeddings().weight[token] = float("inf")
    with pytest.raises(NonFiniteError, match="not finite for example 2;"):
        extractor.gather(make_loader(sequences, [[0, 1], [3]]), "train loader")

    class Broken(torch.autograd.Function):
        @staticmethod
        def forward(ctx, x):
            return x.clone()

        @staticmethod
        def backward(ctx, gradient):
            gradient = gradient.clone()
            gradient[1] = float("nan")
            return gradient

    model = make_model("olmo2")
    model.model.layers[0].register_forward_pre_hook(lambda m, args: (Broken.apply(args[0]),))
    with pytest.raises(NonFiniteError, match=r"gradient of model.embed_tokens .* example 1;"):
        DiscriminativeGradientExtractor(model, config()).gather(
            make_loader(sequences, [[0, 1]]), "train loader"
        )


def test_logits_that_are_not_the_heads_outputs_are_refused(make_model, sequences):
    model = make_model("olmo2")
    forward = model.forward

    def scaled(*args, **kwargs):
        out = forward(*args, **kwargs)
        out.logits = out.logits / 2
        return out

    model.forward = scaled
    with pytest.raises(InfluenceError, match="transforms them afterwards"):
        DiscriminativeGradientExtractor(model).compute_batch_gradients(make_batch(sequences, [0]))


@pytest.mark.parametrize("target", ["both", "all"])
def test_projections_keep_inner_products_of_real_gradients(make_model, sequences, target):
    """Johnson and Lindenstrauss: a root mean square error near 1/√256 for unit vectors."""
    whole = DiscriminativeGradientExtractor(make_model("olmo2"), config(target))
    gradients = whole.compute_embeddings(make_loader(sequences, [range(7)]))
    gradients = gradients / gradients.norm(dim=1, keepdim=True)
    errors = []
    for seed in range(20):
        transform = RandomizedHadamardTransform(gradients.shape[1], 256, seed=seed)
        projected = transform.project(gradients)
        errors.append(projected @ projected.T - gradients @ gradients.T)
    assert float(torch.stack(errors).square().mean().sqrt()) < 1.5 / 256**0.5
    # Unbiased: means over seeds are 20 times less in square, up to chance.
    assert float(torch.stack(errors).mean(dim=0).square().mean().sqrt()) < 0.6 / 256**0.5
