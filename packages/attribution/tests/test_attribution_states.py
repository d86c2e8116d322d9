"""Changes, gradients and integrated gradients of hidden states against one example at a time."""

from collections.abc import Callable
from typing import Any

import pytest
import torch
from attribution.activations import pooled_hidden_states, state_changes, states_by_layer
from attribution.checkpoints import Checkpoints, resolve_layers
from attribution.decoder import Objective, objective_per_example, run_decoder
from attribution.errors import AttributionError
from attribution.examples import Example, collate
from attribution.gradients import state_gradients
from attribution.integrated_gradients import (
    integrate,
    integrated_state_gradients,
    loss_given_states,
)
from attribution.pooling import SpanPooling, pooled_positions
from attribution.vectors import VectorOptions
from torch import Tensor
from transformers import PreTrainedModel

ARCHITECTURES = ["olmo2", "llama", "qwen3", "gpt_neox", "gpt2"]
CLOSE = {"rtol": 1e-9, "atol": 1e-11}
LAST = 3  # of the tiny models


def positions_of(example: Example, pooling: SpanPooling) -> list[int]:
    start, stop = example.span
    return {
        "last": [stop - 2],
        "span": list(range(start - 1, stop - 1)),
        "text": list(range(len(example.token_ids) - 1)),
    }[pooling]


def naive_states(model: PreTrainedModel, example: Example, layer: int) -> Tensor:
    with torch.no_grad():
        ids = torch.tensor([example.token_ids])
        return model(ids, output_hidden_states=True).hidden_states[layer][0]


def naive_objective(logits: Tensor, example: Example, objective: Objective) -> Tensor:
    total = torch.zeros((), dtype=logits.dtype)
    for place in range(*example.span):
        row, target = logits[place - 1], example.token_ids[place]
        if objective == "loss":
            total = total - row.log_softmax(-1)[target]
        else:
            others = torch.cat([row[:target], row[target + 1 :]])
            total = total - (row[target] - others.max())
    return total


def naive_gradient(
    model: PreTrainedModel, example: Example, layer: int, objective: Objective
) -> Tensor:
    """Autograd through the whole unpadded model, from a tensor added to the states of a layer."""
    decoder: Any = model.base_model
    blocks = decoder.h if hasattr(decoder, "h") else decoder.layers
    shift = torch.zeros(
        1, len(example.token_ids), model.config.hidden_size, dtype=model.dtype, requires_grad=True
    )
    norm = next(
        getattr(decoder, name)
        for name in ("norm", "ln_f", "final_layer_norm")
        if hasattr(decoder, name)
    )
    if layer == 0:
        handle = blocks[0].register_forward_pre_hook(lambda _, args: (args[0] + shift, *args[1:]))
    else:
        module = norm if layer == LAST else blocks[layer - 1]
        handle = module.register_forward_hook(lambda _m, _i, output: output + shift)
    try:
        logits = model(torch.tensor([example.token_ids])).logits[0]
    finally:
        handle.remove()
    (gradient,) = torch.autograd.grad(naive_objective(logits, example, objective), shift)
    return gradient[0]


@pytest.mark.parametrize(
    ("architecture", "pooling"),
    [*((name, "span") for name in ARCHITECTURES), ("olmo2", "last"), ("gpt2", "text")],
)
def test_changes_are_the_differences_of_each_text_alone(
    make_checkpoints: Callable[..., Checkpoints],
    examples: list[Example],
    architecture: str,
    pooling: SpanPooling,
) -> None:
    pair = make_checkpoints(architecture)
    layers = (2, 0, 3, 1)
    expected = torch.stack(
        [
            torch.stack(
                [
                    (naive_states(pair.new, one, layer) - naive_states(pair.old, one, layer))[
                        positions_of(one, pooling)
                    ].mean(dim=0)
                    for one in examples
                ]
            )
            for layer in layers
        ]
    )
    for batch_size, side in ((1, "right"), (4, "right"), (4, "left"), (50, "left")):
        options = VectorOptions(layers, pooling, batch_size, side)
        found = state_changes(pair, examples, options)
        assert found.layers == layers
        torch.testing.assert_close(found.values, expected, **CLOSE)


@pytest.mark.parametrize("architecture", ARCHITECTURES)
@pytest.mark.parametrize("objective", ["loss", "margin"])
def test_gradients_of_any_layers_equal_autograd_one_example_at_a_time(
    make_checkpoints: Callable[..., Checkpoints],
    examples: list[Example],
    architecture: str,
    objective: Objective,
) -> None:
    model = make_checkpoints(architecture).new
    naive = {
        layer: [naive_gradient(model, one, layer, objective) for one in examples]
        for layer in range(LAST + 1)
    }
    assert all(gradient.abs().max() > 1e-3 for each in naive.values() for gradient in each)
    for layers, pooling, batch_size, side in (
        ((0, 1, 2, 3), "span", 4, "right"),
        ((3, 1), "last", 50, "left"),
        ((2,), "text", 2, "left"),
        ((-1,), "text", 50, "right"),
    ):
        found = state_gradients(
            model, examples, VectorOptions(layers, pooling, batch_size, side), objective=objective
        )
        for values, layer in zip(found.values, found.layers, strict=True):
            expected = torch.stack(
                [
                    naive[layer][row][positions_of(one, pooling)].mean(dim=0)
                    for row, one in enumerate(examples)
                ]
            )
            torch.testing.assert_close(values, expected, **CLOSE)


@pytest.mark.parametrize("side", ["right", "left"])
def test_padding_and_the_token_after_the_last_target_carry_no_gradient(
    make_checkpoints: Callable[..., Checkpoints], examples: list[Example], side: Any
) -> None:
    batch = collate(examples, side)
    pair = make_checkpoints()
    with torch.no_grad():
        states = states_by_layer(pair.new, batch, (1,))[1]
    gradients = integrate(pair.new, batch, 1, torch.zeros_like(states), states, 1, objective="loss")
    for row, one in enumerate(examples):
        real = batch.attention_mask[row].nonzero().flatten()
        assert (gradients[row, ~batch.attention_mask[row]] == 0).all()
        assert (gradients[row, real[one.span[1] - 1 :]] == 0).all()
        assert (gradients[row, real[: one.span[1] - 1]] != 0).any(dim=-1).all()
    assert pooled_positions(batch, "text").sum(dim=1).tolist() == [
        len(one.token_ids) - 1 for one in examples
    ]


@pytest.mark.parametrize(
    ("architecture", "objective"),
    [*((name, "loss") for name in ARCHITECTURES), ("gpt2", "margin")],
)
def test_integrated_gradients_sum_to_the_change_of_the_loss_as_the_steps_shrink(
    make_checkpoints: Callable[..., Checkpoints],
    examples: list[Example],
    architecture: str,
    objective: Objective,
) -> None:
    pair = make_checkpoints(architecture)
    # Close checkpoints, so that the margin's best other token changes rarely on the way.
    with torch.no_grad():
        for old, new in zip(pair.old.parameters(), pair.new.parameters(), strict=True):
            new.copy_(torch.lerp(old, new, 0.1 if objective == "loss" else 0.005))
    batch = collate(examples)
    for layer in (0, 2, 3):
        with torch.no_grad():
            start, end = (
                states_by_layer(model, batch, (layer,))[layer] for model in (pair.old, pair.new)
            )
            before, after = (
                loss_given_states(pair.new, batch, layer, states, objective=objective)
                for states in (start, end)
            )
            plain = objective_per_example(pair.new, run_decoder(pair.new, batch), batch, objective)
        torch.testing.assert_close(after, plain, **CLOSE)  # L(h_new) is the new model's own loss
        assert (after - before).abs().min() > 1e-4
        coarse, fine = (
            integrate(pair.new, batch, layer, start, end, num_steps, objective=objective)
            .sum(dim=(1, 2))
            .sub(after - before)
            for num_steps in (8, 16)
        )
        scale = float((after - before).abs().max())
        if objective == "loss":
            # Smooth, so that the midpoint rule is of second order: half the step, a quarter of the
            # error. What is left when that is taken out is of fourth order.
            assert fine.abs().max() < coarse.abs().max() / 3.5
            assert (4 * fine - coarse).abs().max() / 3 < 1e-4 * scale
        else:  # not smooth where the best other token changes, which costs part of one step
            assert fine.abs().max() < 0.05 * scale


def test_pooled_integrated_gradients_are_those_of_each_text_and_do_not_depend_on_batches(
    make_checkpoints: Callable[..., Checkpoints], examples: list[Example]
) -> None:
    pair = make_checkpoints("gpt2")
    layers = (3, 1)
    expected = torch.empty(2, len(examples), 12, dtype=torch.float64)
    for row, one in enumerate(examples):
        batch = collate([one])
        for index, layer in enumerate(layers):
            start, end = (
                states_by_layer(model, batch, (layer,))[layer].detach()
                for model in (pair.old, pair.new)
            )
            total = torch.zeros_like(start)
            for step in range(3):
                states = (start + (step + 0.5) / 3 * (end - start)).requires_grad_()
                loss = loss_given_states(pair.new, batch, layer, states, objective="loss")
                total += torch.autograd.grad(loss.sum(), states)[0] / 3
            attribution = ((end - start) * total)[0, positions_of(one, "span")]
            expected[index, row] = attribution.mean(dim=0)
    for batch_size, side in ((1, "right"), (4, "left"), (50, "right")):
        options = VectorOptions(layers, "span", batch_size, side)
        found = integrated_state_gradients(pair, examples, options, num_steps=3)
        torch.testing.assert_close(found.values, expected, **CLOSE)


def test_the_last_layer_is_the_one_that_pooled_hidden_states_calls_last(
    make_checkpoints: Callable[..., Checkpoints],
) -> None:
    pair = make_checkpoints("llama", torch.float32)
    ids = [3, 4, 5, 6]
    example = Example.whole_text(ids, end_id=1)
    change = state_changes(pair, [example], VectorOptions([-1])).values[0]
    old, new = (pooled_hidden_states(model, [ids]) for model in (pair.old, pair.new))
    torch.testing.assert_close(change, new - old)


def test_models_are_left_as_they_were_after_an_error_too(
    make_checkpoints: Callable[..., Checkpoints], examples: list[Example]
) -> None:
    pair = make_checkpoints()
    for model in (pair.old, pair.new):
        model.train()
        next(model.base_model.children()).eval()
        next(model.parameters()).requires_grad_(False)

    def facts() -> list[Any]:
        return [
            (
                [(module.training, len(module._forward_hooks)) for module in model.modules()],
                [len(module._forward_pre_hooks) for module in model.modules()],
                [(one.requires_grad, one.grad) for one in model.parameters()],
            )
            for model in (pair.old, pair.new)
        ]

    before = facts()
    options = VectorOptions((0, 1, 3))
    for run in (
        lambda: state_changes(pair, examples, options),
        lambda: state_gradients(pair.new, examples, options),
        lambda: integrated_state_gradients(pair, examples, options, num_steps=1),
    ):
        run()
        assert facts() == before
    handle = pair.new.base_model.layers[2].register_forward_pre_hook(lambda *_: 1 / 0)
    for run in (
        lambda: state_changes(pair, examples, options),
        lambda: state_gradients(pair.new, examples, options),
        lambda: integrated_state_gradients(pair, examples, options, num_steps=1),
    ):
        with pytest.raises(ZeroDivisionError):
            run()
    handle.remove()
    assert facts() == before


def test_what_cannot_be_compared_is_refused(
    make_checkpoints: Callable[..., Checkpoints], examples: list[Example]
) -> None:
    olmo, gpt = make_checkpoints("olmo2", torch.float32), make_checkpoints("gpt2", torch.float32)
    with pytest.raises(AttributionError, match="architecture differs: old Olmo2ForCausalLM"):
        Checkpoints(olmo.old, gpt.new)
    with pytest.raises(AttributionError, match="precision differs"):
        Checkpoints(olmo.old, make_checkpoints("olmo2").new)
    for half in (torch.bfloat16, torch.float16):
        reduced = make_checkpoints("gpt2", torch.float32).new.to(half)
        with pytest.raises(AttributionError, match=r"load them with dtype=torch\.float32"):
            Checkpoints(reduced, reduced)
    longer = make_checkpoints("olmo2", torch.float32).new
    longer.resize_token_embeddings(40)
    with pytest.raises(AttributionError, match="vocabulary size differs: old 31, new 40"):
        Checkpoints(olmo.old, longer)
    for bad in (float("nan"), float("-inf")):
        broken = make_checkpoints("olmo2", torch.float32).new
        with torch.no_grad():
            broken.base_model.layers[1].mlp.up_proj.weight[1, 2] = bad
        with pytest.raises(
            AttributionError, match=r"layers\.1\.mlp\.up_proj\.weight of the new checkpoint is not"
        ):
            Checkpoints(olmo.old, broken)
    for layers in ([4], [-5], [1, 1], [1, -3], []):
        with pytest.raises(AttributionError, match="expected layers between 0"):
            state_changes(olmo, examples, VectorOptions(layers))
    assert resolve_layers(None, 3) == (1, 2, 3)
    assert resolve_layers((-1, -4), 3) == (3, 0)
    with pytest.raises(AttributionError, match="example 1: expected token ids from 0 to 30"):
        state_gradients(olmo.new, [examples[0], Example((1, 31), (1, 2))])
    with pytest.raises(AttributionError, match="at least one example, got none"):
        state_changes(olmo, [])
    with pytest.raises(AttributionError, match="at least one step"):
        integrated_state_gradients(olmo, examples, num_steps=0)
    for span in ((0, 1), (2, 2), (1, 4)):
        with pytest.raises(AttributionError, match="1 <= start < stop"):
            Example((5, 6, 7), span)


def test_states_that_overflow_are_refused_by_the_number_of_the_example(
    make_checkpoints: Callable[..., Checkpoints], examples: list[Example]
) -> None:
    pair = make_checkpoints("gpt2", torch.float32)
    with torch.no_grad():
        pair.new.base_model.wpe.weight[11] = float("inf")
    broken = Example.whole_text(range(3, 16))
    assert state_changes(pair, examples).values.isfinite().all()
    with pytest.raises(AttributionError, match="example 6, layer 1: its change of hidden state"):
        state_changes(pair, [*examples, broken])
    with pytest.raises(AttributionError, match="example 6, layer 1: its gradient is not finite"):
        state_gradients(pair.new, [*examples, broken])


def test_logits_that_are_not_the_heads_are_refused(
    make_checkpoints: Callable[..., Checkpoints], examples: list[Example]
) -> None:
    model = make_checkpoints("llama").new

    class Scaled(type(model)):  # type: ignore[misc]
        def forward(self, *args: Any, **kwargs: Any) -> Any:
            output = super().forward(*args, **kwargs)
            output.logits = output.logits / 2
            return output

    model.__class__ = Scaled
    with pytest.raises(AttributionError, match="Scaled changes its logits after the head"):
        state_gradients(model, examples)
