"""Laws of batches: every example once, within the budget, like with like, longest first."""

from itertools import pairwise

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from if_query.batching import collate, make_batches
from if_query.datasets import TokenDataset
from if_query.encoding import EncodedExample

LENGTHS = st.lists(st.integers(1, 60), max_size=60)
MAX_TOKENS = st.integers(1, 200)
MAX_SEQUENCES = st.none() | st.integers(1, 9)


@settings(deadline=None)
@given(LENGTHS, MAX_TOKENS, MAX_SEQUENCES)
def test_every_index_is_in_exactly_one_batch_and_no_batch_is_empty(
    lengths: list[int], max_tokens: int, max_sequences: int | None
) -> None:
    batches = make_batches(lengths, max_tokens=max_tokens, max_sequences=max_sequences)
    assert sorted(index for batch in batches for index in batch) == list(range(len(lengths)))
    assert all(batches)


@settings(deadline=None)
@given(LENGTHS, MAX_TOKENS, MAX_SEQUENCES)
def test_a_batch_keeps_to_the_budget_unless_it_is_a_single_sequence(
    lengths: list[int], max_tokens: int, max_sequences: int | None
) -> None:
    for batch in make_batches(lengths, max_tokens=max_tokens, max_sequences=max_sequences):
        longest = max(lengths[index] for index in batch)
        assert longest * len(batch) <= max_tokens or len(batch) == 1
        assert max_sequences is None or len(batch) <= max_sequences


@settings(deadline=None)
@given(LENGTHS, MAX_TOKENS, MAX_SEQUENCES)
def test_batches_hold_like_lengths_and_come_longest_first(
    lengths: list[int], max_tokens: int, max_sequences: int | None
) -> None:
    batches = make_batches(lengths, max_tokens=max_tokens, max_sequences=max_sequences)
    in_order = [lengths[index] for batch in batches for index in batch]
    assert in_order == sorted(lengths, reverse=True)
    for batch in batches:
        assert 2 * min(lengths[i] for i in batch) >= max(lengths[i] for i in batch)


@settings(deadline=None)
@given(LENGTHS, MAX_TOKENS, MAX_SEQUENCES)
def test_no_two_neighbouring_batches_could_have_been_one(
    lengths: list[int], max_tokens: int, max_sequences: int | None
) -> None:
    batches = make_batches(lengths, max_tokens=max_tokens, max_sequences=max_sequences)
    for batch, following in pairwise(batches):
        longest, next_length = lengths[batch[0]], lengths[following[0]]
        assert (
            longest * (len(batch) + 1) > max_tokens
            or len(batch) == max_sequences
            or 2 * next_length < longest
        )


def test_batches_are_the_same_for_lists_and_arrays_and_equal_lengths_keep_their_order() -> None:
    lengths = [3, 9, 3, 4, 3]
    expected = [[1], [3, 0, 2], [4]]
    assert make_batches(lengths, max_tokens=12) == expected
    assert make_batches(np.array(lengths), max_tokens=12) == expected
    assert make_batches([50, 2], max_tokens=10) == [[0], [1]]
    assert make_batches([], max_tokens=12) == []


def test_bad_lengths_and_budgets_are_refused() -> None:
    with pytest.raises(ValueError, match="example 1 has 0"):
        make_batches([2, 0], max_tokens=12)
    with pytest.raises(ValueError, match="got 0 and None"):
        make_batches([2], max_tokens=0)
    with pytest.raises(ValueError, match="got 4 and 0"):
        make_batches([2], max_tokens=4, max_sequences=0)


EXAMPLES = [
    EncodedExample([1, 2, 3], [-100, 2, 3]),
    EncodedExample([4], [4]),
    EncodedExample([5, 6], [-100, 6]),
]


@pytest.mark.parametrize("examples", [EXAMPLES, TokenDataset.from_examples(EXAMPLES)])
def test_collate_takes_the_chosen_examples_with_their_keys_and_pads_on_the_right(
    examples: list[EncodedExample] | TokenDataset,
) -> None:
    batch = collate(examples, [2, 0], np.array([10, 11, 2**62 + 1]), pad_id=9)
    assert batch.input_ids.tolist() == [[5, 6, 9], [1, 2, 3]]
    assert batch.labels.tolist() == [[-100, 6, -100], [-100, 2, 3]]
    assert batch.attention_mask.tolist() == [[True, True, False], [True, True, True]]
    assert batch.example_keys.tolist() == [2**62 + 1, 10]


def test_collate_refuses_keys_that_are_not_one_per_example() -> None:
    with pytest.raises(ValueError, match="one key per example, got 2 for 3"):
        collate(EXAMPLES, [0, 1], [10, 11])
