"""The loss at an output head, some positions at a time.

Logits are the largest tensor of a language model's pass: with a vocabulary of 100,000, 4,096
positions have 1.6 GB of them in float32, and the softmax, its logarithm and the gradient as much
each. The gradient of a summed cross-entropy at the head's input needs none of this for longer than
a few positions last: with p = softmax(W h),

    ∂/∂h (-log p_y) = Wᵀ (p - e_y),

which is computed in the forward pass, once, and multiplied with what the backward pass brings.
"""

from collections.abc import Iterator
from contextlib import contextmanager
from typing import Any

import torch
from torch import nn

from math_utils._typing import Float, Int, Tensor, TokenMask
from math_utils.causal_lm import call_model, logits_of
from math_utils.errors import InfluenceError
from math_utils.language_modeling import TokenBatch, invert_cumulative

_CHUNK_ELEMENTS = {"cpu": 1 << 20, "cuda": 1 << 27}
"""Logits at once: what a CPU's cache holds, and what keeps a GPU busy."""

_FEWEST_POSITIONS = 64
"""With fewer at once, matrix products with the head's weight are slow."""

_FLOAT16_SCALE = 1024.0
"""On probabilities that pass through a float16 head, whose smallest number is 6e-8."""


def head_gives_logits(model: nn.Module, head: nn.Module) -> bool:
    """Whether a model's logits are what its head gives, and nothing is done with them afterwards.

    Some models cap, scale or mask them. Found by running the model on one token, with numbers up to
    100 in place of what the head gives; do so outside of any capture.
    """
    one = torch.zeros(1, 1, dtype=torch.long, device=next(model.parameters()).device)
    batch = TokenBatch(one, torch.ones_like(one, dtype=torch.bool), one, one[0])
    given: list[Tensor] = []

    def replace(module: nn.Module, arguments: tuple[Any, ...], output: Tensor) -> Tensor:
        numbers = torch.linspace(-100, 100, output.shape[-1], device=output.device)
        given.append(numbers.to(output.dtype).expand_as(output))
        return given[-1]

    handle = head.register_forward_hook(replace)
    try:
        with torch.no_grad():
            logits = logits_of(model, call_model(model, batch))
    finally:
        handle.remove()
    return len(given) == 1 and torch.equal(given[0].to(logits), logits)


@contextmanager
def head_left_out(head: nn.Module, positions: TokenMask) -> Iterator[list[Float[Tensor, "_ d"]]]:
    """Give the head no position at all, and keep what it would have got at these.

    Args:
        head: the output head.
        positions: True at the positions to keep [batch, seq].

    Yields:
        A list, which then holds [label, d_in] for every time that the head was called.

    Raises:
        InfluenceError: if the head's input is not laid out as ``positions``.
    """
    kept: list[Tensor] = []

    def withhold(module: nn.Module, arguments: tuple[Any, ...]) -> tuple[Any, ...]:
        hidden = arguments[0]
        if hidden.shape[:-1] != positions.shape:
            raise InfluenceError(
                f"the output head: expected an input [batch={positions.shape[0]}, "
                f"seq={positions.shape[1]}, hidden], got {list(hidden.shape)}"
            )
        kept.append(hidden[positions.to(hidden.device)])
        return (hidden[:1, :0], *arguments[1:])

    handle = head.register_forward_pre_hook(withhold)
    try:
        yield kept
    finally:
        handle.remove()


def head_losses(
    head: nn.Module,
    hidden: Float[Tensor, "label d_in"],
    example_of_label: Int[Tensor, " label"],
    num_examples: int,
    *,
    targets: Int[Tensor, " label"] | None = None,
    uniform: Float[Tensor, " label"] | None = None,
) -> Float[Tensor, " batch"]:
    """Summed cross-entropy of every example, with logits = head(hidden), some positions at a time.

    The same as :func:`~math_utils.language_modeling.summed_cross_entropy` of all logits, with
    ``targets`` or with labels drawn as :func:`~math_utils.language_modeling.sample_labels` draws
    them, up to rounding. Gradients reach ``hidden`` and not the head's parameters, once.

    Args:
        head: maps [1, some, d_in] to [1, some, vocab], position by position.
        hidden: its input at the positions that predict a label.
        example_of_label: the row of the batch that each position belongs to.
        num_examples: rows; one without a label gets loss 0.
        targets: the label of every position; or
        uniform: in their place a number in [0, 1) per position, at which the cumulative
            distribution of the position's prediction is inverted.

    Returns:
        The losses in nats, in float32 at least.

    Raises:
        ValueError: if a parameter of the head requires a gradient, which it would not get.
    """
    choice = targets if uniform is None else uniform
    if choice is None:
        raise ValueError("expected targets or uniform, got neither")
    if torch.is_grad_enabled() and any(one.requires_grad for one in head.parameters()):
        raise ValueError("expected a head whose parameters require no gradient")
    losses: Tensor = _HeadLosses.apply(
        hidden, head, choice, example_of_label, num_examples, uniform is not None
    )
    return losses


class _HeadLosses(torch.autograd.Function):
    @staticmethod
    def forward(
        ctx: Any,
        hidden: Tensor,
        head: nn.Module,
        choice: Tensor,
        example_of_label: Tensor,
        num_examples: int,
        is_uniform: bool,
    ) -> Tensor:
        wants_gradient = ctx.needs_input_grad[0]
        wide = torch.promote_types(hidden.dtype, torch.float32)
        losses = torch.empty(len(hidden), dtype=wide, device=hidden.device)
        gradients = torch.empty_like(hidden, dtype=wide) if wants_gradient else None
        choice, first, at_once = choice.to(hidden.device), 0, _FEWEST_POSITIONS
        while first < len(hidden):
            some = slice(first, first + at_once)
            with torch.set_grad_enabled(wants_gradient):
                own = hidden[some].detach().requires_grad_(wants_gradient)
                logits = head(own[None])[0]
            rows = torch.arange(len(own), device=logits.device)
            log_probabilities = torch.log_softmax(logits.detach().to(wide), dim=-1)
            labels = choice[some].to(logits.device)
            if is_uniform:
                probabilities = log_probabilities.exp()
                labels = invert_cumulative(probabilities, labels)
                losses[some] = -log_probabilities[rows, labels]
            else:
                losses[some] = -log_probabilities[rows, labels]
                probabilities = log_probabilities.exp_()
            if gradients is not None:
                scale = _FLOAT16_SCALE if logits.dtype == torch.float16 else 1.0
                probabilities[rows, labels] -= 1
                upstream = probabilities.mul_(scale).to(logits.dtype)
                (found,) = torch.autograd.grad(logits, own, upstream)
                gradients[some] = found.to(wide) / scale
            first += len(own)
            budget = _CHUNK_ELEMENTS.get(logits.device.type, _CHUNK_ELEMENTS["cpu"])
            at_once = max(_FEWEST_POSITIONS, budget // logits.shape[1])
        example_of_label = example_of_label.to(hidden.device)
        if gradients is not None:
            ctx.save_for_backward(gradients, example_of_label)
            ctx.dtype = hidden.dtype
        return losses.new_zeros(num_examples).index_add(0, example_of_label, losses)

    @staticmethod
    @torch.autograd.function.once_differentiable
    def backward(ctx: Any, *upstream: Tensor) -> tuple[Tensor | None, ...]:
        gradients, example_of_label = ctx.saved_tensors
        scaled = gradients * upstream[0][example_of_label, None]
        return scaled.to(ctx.dtype), None, None, None, None, None
