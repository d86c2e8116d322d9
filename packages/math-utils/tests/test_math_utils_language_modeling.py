"""Collation, the loss of an example, and labels sampled from the model."""

import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from math_utils.language_modeling import TokenBatch, sample_labels, summed_cross_entropy
from scipy.stats import chisquare


def test_padding_goes_to_the_side_asked_for_and_labels_go_along():
    ids, labels = [[1, 2, 3], [4, 5]], [[-100, 2, 3], [4, 5]]
    right = TokenBatch.collate(ids, labels, [7, 8], pad_id=9)
    left = TokenBatch.collate(ids, labels, [7, 8], pad_id=9, padding_side="left")
    assert right.input_ids.tolist() == [[1, 2, 3], [4, 5, 9]]
    assert left.input_ids.tolist() == [[1, 2, 3], [9, 4, 5]]
    assert right.labels.tolist() == [[-100, 2, 3], [4, 5, -100]]
    assert right.label_positions().tolist() == [[True, True, False], [True, False, False]]
    assert left.label_positions().tolist() == [[True, True, False], [False, True, False]]
    assert right.position_ids().tolist()[1] == [0, 1, 1]
    assert left.position_ids().tolist()[1] == [0, 0, 1]
    assert right.num_tokens == left.num_tokens == 5


def test_collating_nothing_or_uneven_labels_is_refused():
    with pytest.raises(ValueError, match="at least one sequence"):
        TokenBatch.collate([], [], [])
    with pytest.raises(ValueError, match=r"sequence 1: .* 2 ids and 1 labels"):
        TokenBatch.collate([[1], [1, 2]], [[1], [1]], [0, 1])
    with pytest.raises(ValueError, match="padding_side"):
        TokenBatch.collate([[1]], [[1]], [0], padding_side="middle")


def test_the_loss_is_a_sum_over_labels_and_zero_without_any():
    logits = torch.randn(4, 6, dtype=torch.float64, generator=torch.Generator().manual_seed(0))
    targets = torch.tensor([0, 5, 2, 2])
    rows = torch.tensor([0, 0, 2, 2])
    found = summed_cross_entropy(logits, targets, rows, 3)
    logp = logits.log_softmax(-1)
    expected = [-(logp[0, 0] + logp[1, 5]), torch.tensor(0.0), -(logp[2, 2] + logp[3, 2])]
    torch.testing.assert_close(found, torch.stack([e.double() for e in expected]))


def test_half_precision_logits_are_summed_in_float32():
    logits = torch.zeros(300, 8, dtype=torch.bfloat16)
    loss = summed_cross_entropy(
        logits, torch.zeros(300, dtype=torch.long), torch.zeros(300, dtype=torch.long), 1
    )
    assert loss.dtype == torch.float32
    assert float(loss) == pytest.approx(300 * torch.log(torch.tensor(8.0)).item(), rel=1e-5)


@pytest.mark.parametrize("vocab", [5, 300, 777])
def test_sampled_labels_follow_the_models_probabilities(vocab):
    generator = torch.Generator().manual_seed(1)
    logits = torch.randn(vocab, generator=generator) * 2
    count = 20_000
    rows = torch.zeros(count, dtype=torch.long)
    drawn = sample_labels(logits.expand(count, vocab), rows, torch.tensor([3]), seed=0)
    expected = torch.softmax(logits.double(), -1) * count
    frequent = expected > 20
    observed = torch.bincount(drawn, minlength=vocab).double()
    groups = torch.cat([observed[frequent], observed[~frequent].sum()[None]])
    reference = torch.cat([expected[frequent], expected[~frequent].sum()[None]])
    kept = reference > 5
    result = chisquare(
        groups[kept].numpy(), (reference[kept] * groups[kept].sum() / reference[kept].sum()).numpy()
    )
    assert result.pvalue > 1e-3


def test_impossible_tokens_are_never_drawn():
    logits = torch.full((4000, 600), -torch.inf)
    logits[:, [3, 299, 300, 511]] = 0.0
    drawn = sample_labels(logits, torch.zeros(4000, dtype=torch.long), torch.tensor([0]), seed=5)
    assert set(drawn.tolist()) == {3, 299, 300, 511}


@settings(deadline=None, max_examples=25)
@given(
    order=st.permutations(range(6)),
    cut=st.integers(1, 5),
)
def test_an_examples_labels_are_the_same_whatever_batch_it_is_in(order, cut):
    lengths = [3, 1, 4, 0, 2, 5]
    generator = torch.Generator().manual_seed(2)
    logits = [torch.randn(n, 40, generator=generator, dtype=torch.float64) for n in lengths]

    def draw(rows):
        of_label = torch.cat([torch.full((lengths[r],), i) for i, r in enumerate(rows)])
        flat = torch.cat([logits[r] for r in rows])
        keys = torch.tensor([100 + r for r in rows])
        drawn = sample_labels(flat, of_label.long(), keys, seed=9)
        return dict(zip(rows, drawn.split([lengths[r] for r in rows]), strict=True))

    whole = draw(list(range(6)))
    parts = {**draw(list(order[:cut])), **draw(list(order[cut:]))}
    assert all(torch.equal(whole[r], parts[r]) for r in range(6))


def test_seed_and_key_both_change_what_is_drawn():
    logits = torch.zeros(50, 1000)
    rows = torch.zeros(50, dtype=torch.long)
    draws = {
        tuple(sample_labels(logits, rows, torch.tensor([key]), seed=seed).tolist())
        for key in (0, 1)
        for seed in (0, 1)
    }
    assert len(draws) == 4


def test_sampling_leaves_the_global_generator_alone():
    before = torch.random.get_rng_state()
    sample_labels(torch.zeros(3, 4), torch.zeros(3, dtype=torch.long), torch.tensor([0]), seed=0)
    assert torch.equal(before, torch.random.get_rng_state())
