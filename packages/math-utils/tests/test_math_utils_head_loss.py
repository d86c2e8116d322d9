"""The loss some positions at a time, against the loss of all logits."""

import pytest
import torch
from math_utils import head_loss
from math_utils.head_loss import head_gives_logits, head_left_out, head_losses
from math_utils.language_modeling import (
    TokenBatch,
    draw_uniform,
    sample_labels,
    summed_cross_entropy,
)
from torch import nn

VOCABULARY, WIDTH = 700, 12
COUNTS = (90, 0, 41, 3)


@pytest.fixture(autouse=True)
def small_chunks(monkeypatch):
    """Chunks of 64, 50, 50 ... positions, which cut through examples."""
    monkeypatch.setattr(head_loss, "_CHUNK_ELEMENTS", {"cpu": 50 * VOCABULARY})
    monkeypatch.setattr(head_loss, "_FEWEST_POSITIONS", 37)


def case(dtype, *, bias=True):
    """(head, hidden, rows, keys): positions of four examples, one of them without any."""
    generator = torch.Generator().manual_seed(0)
    head = nn.Linear(WIDTH, VOCABULARY, bias=bias)
    for parameter in head.parameters():
        parameter.data = torch.randn(parameter.shape, generator=generator)
    rows = torch.repeat_interleave(torch.arange(len(COUNTS)), torch.tensor(COUNTS))
    hidden = torch.randn(len(rows), WIDTH, generator=generator)
    head.requires_grad_(False)
    return head.to(dtype), hidden.to(dtype).requires_grad_(), rows, torch.tensor([5, 9, 2, 77])


def gradient_of(losses, hidden, weights):
    (found,) = torch.autograd.grad((losses * weights.to(losses)).sum(), hidden)
    return found


@pytest.mark.parametrize("bias", [True, False])
def test_losses_and_gradients_are_those_of_all_logits(bias):
    head, hidden, rows, _ = case(torch.float64, bias=bias)
    targets = torch.randint(0, VOCABULARY, (len(rows),), generator=torch.Generator().manual_seed(1))
    weights = torch.tensor([1.0, 1.0, -2.0, 0.5])
    expected = summed_cross_entropy(head(hidden), targets, rows, len(COUNTS))
    found = head_losses(head, hidden, rows, len(COUNTS), targets=targets)
    assert found.dtype == torch.float64
    assert found[1] == 0
    torch.testing.assert_close(found, expected, rtol=1e-13, atol=1e-12)
    torch.testing.assert_close(
        gradient_of(found, hidden, weights),
        gradient_of(expected, hidden, weights),
        rtol=1e-12,
        atol=1e-13,
    )


def test_labels_are_drawn_as_they_are_from_all_logits():
    head, hidden, rows, keys = case(torch.float64)
    drawn = sample_labels(head(hidden), rows, keys, seed=3)
    uniform = draw_uniform(rows, keys, seed=3)
    found = head_losses(head, hidden, rows, len(COUNTS), uniform=uniform)
    expected = head_losses(head, hidden, rows, len(COUNTS), targets=drawn)
    torch.testing.assert_close(found, expected, rtol=0, atol=0)
    ones = torch.ones(len(COUNTS))
    torch.testing.assert_close(
        gradient_of(found, hidden, ones), gradient_of(expected, hidden, ones), rtol=0, atol=0
    )


@pytest.mark.parametrize(
    ("dtype", "scale", "tolerance"), [(torch.bfloat16, 1.0, 2e-2), (torch.float16, 1024.0, 2e-3)]
)
def test_a_head_in_half_precision_gives_float32_losses_and_scaled_gradients(
    dtype, scale, tolerance
):
    head, hidden, rows, _ = case(dtype)
    targets = torch.arange(len(rows))
    losses = head_losses(head, hidden, rows, len(COUNTS), targets=targets)
    assert losses.dtype == torch.float32
    found = gradient_of(losses, hidden, scale * torch.ones(len(COUNTS)))
    assert found.dtype == dtype
    wide = hidden.detach().double().requires_grad_()
    expected = summed_cross_entropy(head.double()(wide), targets, rows, len(COUNTS))
    torch.testing.assert_close(losses.double(), expected, rtol=tolerance, atol=0)
    exact = gradient_of(expected, wide, torch.ones(len(COUNTS)))
    assert float((found.double() / scale - exact).norm() / exact.norm()) < tolerance


def test_small_probabilities_survive_a_float16_head():
    """Of 20,000 tokens all but one have p = 5e-6, of which float16 by itself keeps few bits."""
    head = nn.Linear(2, 20_000, bias=False).half().requires_grad_(False)
    head.weight.zero_()
    head.weight[1:, 0] = 1.0
    hidden = torch.tensor([[-12.0, 0.0]], dtype=torch.float16, requires_grad=True)
    losses = head_losses(head, hidden, torch.tensor([0]), 1, targets=torch.tensor([0]))
    (found,) = torch.autograd.grad(losses.sum() * 1024, hidden)
    wide = hidden.detach().double().requires_grad_()
    expected = nn.functional.cross_entropy(head.double()(wide), torch.tensor([0]))
    (exact,) = torch.autograd.grad(expected, wide)
    torch.testing.assert_close(found[0, 0].double() / 1024, exact[0, 0], rtol=2e-3, atol=0)


def test_without_gradients_only_losses_are_computed():
    head, hidden, rows, _ = case(torch.float32)
    targets = torch.zeros(len(rows), dtype=torch.long)
    with torch.no_grad():
        losses = head_losses(head, hidden, rows, len(COUNTS), targets=targets)
        expected = summed_cross_entropy(head(hidden), targets, rows, len(COUNTS))
    assert not losses.requires_grad
    torch.testing.assert_close(losses, expected)


def test_no_labels_give_losses_of_zero():
    head, hidden, rows, _ = case(torch.float32)
    losses = head_losses(head, hidden[:0], rows[:0], 2, targets=torch.empty(0, dtype=torch.long))
    assert losses.tolist() == [0, 0]
    (found,) = torch.autograd.grad(losses.sum(), hidden)
    assert not found.any()


def test_a_head_that_wants_gradients_is_refused():
    head, hidden, rows, _ = case(torch.float32)
    head.weight.requires_grad_()
    targets = torch.zeros(len(rows), dtype=torch.long)
    with pytest.raises(ValueError, match="require no gradient"):
        head_losses(head, hidden, rows, len(COUNTS), targets=targets)


def test_never_more_logits_at_once_than_a_chunk():
    head, hidden, rows, _ = case(torch.float32)
    seen = []
    head.register_forward_hook(lambda module, arguments, output: seen.append(output.shape[1]))
    head_losses(head, hidden, rows, 4, targets=torch.zeros(len(rows), dtype=torch.long))
    assert seen == [37, 50, 47]


class Model(nn.Module):
    """An embedding and a head; what it does with logits is given."""

    def __init__(self, finish):
        super().__init__()
        self.embedding = nn.Embedding(VOCABULARY, WIDTH)
        self.head = nn.Linear(WIDTH, VOCABULARY)
        self.finish = finish

    def forward(self, input_ids, attention_mask=None):
        logits = self.finish(self.head(self.embedding(input_ids)))
        return type("Output", (), {"logits": logits})()


@pytest.mark.parametrize(
    ("finish", "expected"),
    [
        (lambda logits: logits, True),
        (lambda logits: logits.float(), True),
        (lambda logits: 30 * torch.tanh(logits / 30), False),
        (lambda logits: logits * 0.0625, False),
        (lambda logits: logits[..., :-1], False),
    ],
)
def test_a_model_is_asked_what_it_does_with_what_its_head_gives(finish, expected):
    model = Model(finish)
    assert head_gives_logits(model, model.head) is expected


def test_the_head_is_left_out_and_its_input_kept_with_its_graph():
    model = Model(lambda logits: logits)
    ids = [[1, 2, 3], [4, 5]]
    batch = TokenBatch.collate(ids, ids, [0, 1])
    positions = batch.label_positions()
    with head_left_out(model.head, positions) as kept:
        logits = model(batch.input_ids).logits
    assert logits.shape == (1, 0, VOCABULARY)
    (hidden,) = kept
    torch.testing.assert_close(hidden, model.embedding(torch.tensor([1, 2, 4])))
    assert hidden.requires_grad
    assert model(batch.input_ids).logits.shape == (2, 3, VOCABULARY)
