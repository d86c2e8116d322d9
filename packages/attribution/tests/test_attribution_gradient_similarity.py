"""Gradients and their inner products against autograd on the concatenated gradient, in float64."""

from collections.abc import Callable
from typing import Any

import numpy as np
import pytest
import torch
from attribution.errors import AttributionError
from attribution.gradient_similarity import (
    EncodedExample,
    ExampleGradients,
    FlatLayout,
    dots_by_tensor,
    gradient_similarities,
)
from attribution.gradient_similarity.results import cosines_of

Build = Callable[..., Any]
Encode = Callable[..., list[EncodedExample]]


@pytest.fixture(scope="module", params=["olmo2", "llama", "qwen3", "gpt_neox", "gpt2"])
def model(request: pytest.FixtureRequest, build: Build) -> Any:
    return build(request.param)


def autograd(model: Any, example: EncodedExample) -> dict[str, torch.Tensor]:
    """The gradient by .backward() of log-probabilities that are gathered one by one."""
    model.zero_grad()
    logits = model(torch.tensor([example.input_ids])).logits[0]
    loss = sum(
        -torch.log_softmax(logits[place - 1], dim=0)[label]
        for place, label in enumerate(example.labels)
        if label != -100
    )
    loss.backward()
    found = {name: p.grad.clone().flatten() for name, p in model.named_parameters()}
    model.zero_grad()
    return found


def test_the_whole_gradients_cosine_is_autograds_on_the_concatenated_gradient(
    model: Any, encode: Encode
) -> None:
    queries, originals = encode(2, 1), encode(3, 2)
    candidates = [[2, 0], [0, 1, 2]]
    (found,) = gradient_similarities(ExampleGradients(model), queries, originals, candidates)
    whole = found.cosines()
    by_tensor = found.cosines_by_tensor()
    some = np.arange(len(found.tensors)) % 3 == 1
    subset = found.cosines(some)
    tolerance = 1e-11
    pair = 0
    for place, others in enumerate(candidates):
        a = autograd(model, queries[place])
        for other in others:
            b = autograd(model, originals[other])
            expected = torch.cosine_similarity(
                torch.cat(list(a.values())), torch.cat(list(b.values())), dim=0
            )
            assert whole[pair] == pytest.approx(float(expected), abs=tolerance)
            for index, name in enumerate(found.tensors):
                assert found.dots[pair, index] == pytest.approx(
                    float(a[name] @ b[name]), rel=tolerance, abs=tolerance
                )
                own = torch.cosine_similarity(a[name], b[name], dim=0)
                assert by_tensor[pair, index] == pytest.approx(float(own), abs=tolerance)
            names = [name for name, chosen in zip(found.tensors, some, strict=True) if chosen]
            expected = torch.cosine_similarity(
                torch.cat([a[n] for n in names]), torch.cat([b[n] for n in names]), dim=0
            )
            assert subset[pair] == pytest.approx(float(expected), abs=tolerance)
            assert np.array_equal(subset, found.cosines(found.tensors_named(names)))
            pair += 1
    assert found.pairs.tolist() == [[0, 2], [0, 0], [1, 0], [1, 1], [1, 2]]


def test_tied_parameters_count_once(build: Build) -> None:
    tied = build("llama")
    layout = ExampleGradients(tied).layout
    assert sum(layout.widths.values()) == sum(p.numel() for p in tied.parameters())
    assert "lm_head.weight" not in layout.widths
    assert "model.embed_tokens.weight" in layout.widths


def test_a_gradient_is_similar_to_itself_and_squared_norms_are_its_own_dots(
    model: Any, encode: Encode
) -> None:
    same = encode(3, 4)
    (found,) = gradient_similarities(ExampleGradients(model), same, same, [[0, 1], [1], [2]])
    true = found.is_true_pair()
    assert true.tolist() == [True, False, True, True]
    np.testing.assert_allclose(found.cosines()[true], 1.0, rtol=1e-12)
    assert np.array_equal(found.dots[true], found.query_squared_norms)
    assert np.array_equal(found.query_squared_norms, found.original_squared_norms)
    assert (np.abs(found.cosines()) <= 1 + 1e-12).all()


def test_the_model_is_left_as_it_was(model: Any, encode: Encode) -> None:
    model.train()
    before = {name: p.detach().clone() for name, p in model.named_parameters()}
    ExampleGradients(model)(encode(1, 3)[0])
    with pytest.raises(AttributionError, match="example 7: expected as many labels"):
        ExampleGradients(model)(EncodedExample((1, 2), (1, -100), 7))
    assert all(module.training for module in model.modules())
    assert all(p.grad is None for p in model.parameters())
    assert all(torch.equal(before[name], p) for name, p in model.named_parameters())
    model.eval()


def test_dropout_has_no_effect(build: Build, encode: Encode) -> None:
    noisy = build("gpt2").train()
    gradients = ExampleGradients(noisy)
    example = encode(1, 0)[0]
    assert torch.equal(gradients(example), gradients(example))


def test_frozen_parameters_are_left_out_and_a_wholly_frozen_model_is_refused(build: Build) -> None:
    frozen = build("olmo2")
    frozen.model.embed_tokens.requires_grad_(False)
    assert "model.embed_tokens.weight" not in ExampleGradients(frozen).layout.widths
    frozen.requires_grad_(False)
    with pytest.raises(AttributionError, match="no parameter"):
        ExampleGradients(frozen)


def test_a_gradient_that_is_not_finite_names_the_example_and_the_tensor(build: Build) -> None:
    broken = build("olmo2")
    with torch.no_grad():
        broken.model.embed_tokens.weight[5] = float("nan")
    with pytest.raises(AttributionError, match=r"example 4: the gradient of .* is not finite"):
        ExampleGradients(broken)(EncodedExample((3, 5, 6), (3, 5, 6), 4))


def test_prompts_carry_no_loss_but_matter_and_the_first_label_is_never_predicted(
    build: Build,
) -> None:
    gradients = ExampleGradients(build("olmo2"))
    one = gradients(EncodedExample((3, 4, 5), (-100, -100, 5)))
    assert torch.equal(one, gradients(EncodedExample((3, 4, 5), (-100, -100, 5))))
    assert not torch.allclose(one, gradients(EncodedExample((6, 4, 5), (-100, -100, 5))))
    whole = gradients(EncodedExample((3, 4, 5), (3, 4, 5)))
    assert torch.equal(whole, gradients(EncodedExample((3, 4, 5), (-100, 4, 5))))


def test_dots_of_long_tensors_are_summed_over_all_their_runs() -> None:
    layout = FlatLayout({"long": (1 << 17) + 5, "short": 3}, torch.float64)
    generator = torch.Generator().manual_seed(0)
    a, b = (torch.zeros(layout.size, dtype=torch.float64) for _ in range(2))
    for vector in (a, b):
        for _, part in layout.parts(vector):
            part.copy_(torch.randn(len(part), generator=generator, dtype=torch.float64))
    expected = [
        float(x @ y) for (_, x), (_, y) in zip(layout.parts(a), layout.parts(b), strict=True)
    ]
    np.testing.assert_allclose(dots_by_tensor(a, b, layout).numpy(), expected, rtol=1e-12)
    assert layout.size > sum(layout.widths.values())


def test_a_zero_gradient_has_cosine_zero_and_scale_does_not_matter() -> None:
    dots, norms = np.array([0.0, 2.0, 2e200]), np.array([0.0, 4.0, 4e200])
    np.testing.assert_allclose(cosines_of(dots, norms, np.array([1.0, 1.0, 1e200])), [0, 1, 1])
