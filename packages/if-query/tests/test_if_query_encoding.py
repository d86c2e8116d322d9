"""Prompt and completion as ids and labels, by the letter of the specification."""

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from if_query import encoding
from if_query.encoding import EncodedExample, encode_pair
from if_query.errors import InputError
from math_utils import language_modeling
from math_utils.language_modeling import TokenBatch
from tokenizers import Tokenizer, decoders, models, pre_tokenizers, processors
from transformers import PreTrainedTokenizerFast

ALPHABET = sorted(pre_tokenizers.ByteLevel.alphabet())
BOS, EOS = 256, 257


def byte_tokenizer(*, eos: bool = True) -> PreTrainedTokenizerFast:
    """One token per byte, a beginning-of-sequence token that must not be used, maybe an end."""
    vocabulary = {character: index for index, character in enumerate(ALPHABET)}
    vocabulary |= {"<s>": BOS, "</s>": EOS}
    tokenizer = Tokenizer(models.BPE(vocab=vocabulary, merges=[]))
    tokenizer.pre_tokenizer = pre_tokenizers.ByteLevel(add_prefix_space=False)
    tokenizer.decoder = decoders.ByteLevel()
    tokenizer.post_processor = processors.TemplateProcessing(
        single="<s> $A", special_tokens=[("<s>", BOS)]
    )
    names = {"bos_token": "<s>"} | ({"eos_token": "</s>"} if eos else {})
    return PreTrainedTokenizerFast(tokenizer_object=tokenizer, model_max_length=4, **names)


WITH_EOS, WITHOUT_EOS = byte_tokenizer(), byte_tokenizer(eos=False)


def ids(text: str) -> list[int]:
    marks = pre_tokenizers.ByteLevel(add_prefix_space=False).pre_tokenize_str(text)
    return [ALPHABET.index(character) for piece, _ in marks for character in piece]


def test_the_tokenizer_of_these_tests_would_add_special_tokens() -> None:
    assert WITH_EOS("ab")["input_ids"] == [BOS, *ids("ab")]
    assert WITHOUT_EOS.eos_token_id is None
    assert WITHOUT_EOS.pad_token_id is None


def test_ids_are_prompt_completion_and_end_and_the_prompt_is_not_scored() -> None:
    example = encode_pair(WITH_EOS, "ab", " cde", 100)
    assert example.input_ids == ids("ab") + ids(" cde") + [EOS]
    assert example.labels == [-100, -100, *ids(" cde"), EOS]
    assert example.num_scored == 5


def test_without_an_end_token_nothing_is_appended() -> None:
    example = encode_pair(WITHOUT_EOS, "ab", "cd", 100)
    assert example.input_ids == ids("abcd")
    assert example.labels == [-100, -100, *ids("cd")]


def test_a_fragment_has_no_end() -> None:
    assert encode_pair(WITH_EOS, "ab", "cd", 100, eos=False) == encode_pair(
        WITHOUT_EOS, "ab", "cd", 100
    )


@pytest.mark.parametrize(
    ("max_length", "expected_ids", "expected_labels", "num_scored"),
    [
        (7, [*ids("abcdef"), EOS], [-100, -100, -100, *ids("def"), EOS], 4),
        (6, [*ids("bcdef"), EOS], [-100, -100, *ids("def"), EOS], 4),
        (5, [*ids("cdef"), EOS], [-100, *ids("def"), EOS], 4),
        (4, [*ids("def"), EOS], [*ids("def"), EOS], 3),
        (2, [*ids("f"), EOS], [*ids("f"), EOS], 1),
        (1, [EOS], [EOS], 0),
    ],
)
def test_too_long_the_prompt_is_cut_from_the_left_and_then_the_completion(
    max_length: int, expected_ids: list[int], expected_labels: list[int], num_scored: int
) -> None:
    example = encode_pair(WITH_EOS, "abc", "def", max_length)
    assert example == EncodedExample(expected_ids, expected_labels)
    assert example.num_scored == num_scored


def test_with_nothing_before_it_the_first_completion_token_is_not_scored() -> None:
    assert encode_pair(WITH_EOS, "", "ab", 100).num_scored == 2
    assert encode_pair(WITHOUT_EOS, "", "ab", 100).num_scored == 1
    assert encode_pair(WITHOUT_EOS, "", "a", 100).num_scored == 0


@settings(deadline=None)
@given(
    prompt=st.text(max_size=8),
    completion=st.text(min_size=1, max_size=8),
    max_length=st.integers(1, 12),
    eos=st.booleans(),
)
def test_the_window_is_the_end_of_the_whole_and_num_scored_counts_what_a_batch_scores(
    prompt: str, completion: str, max_length: int, eos: bool
) -> None:
    tokenizer = WITH_EOS if eos else WITHOUT_EOS
    whole = encode_pair(tokenizer, prompt, completion, 10_000)
    cut = encode_pair(tokenizer, prompt, completion, max_length)
    assert whole.input_ids == ids(prompt) + ids(completion) + [EOS] * eos
    assert cut.input_ids == whole.input_ids[-max_length:]
    assert cut.labels == whole.labels[-max_length:]
    batch = TokenBatch.collate([cut.input_ids], [cut.labels], [0])
    assert cut.num_scored == int(batch.label_positions().sum())


def test_bad_lengths_are_refused() -> None:
    with pytest.raises(InputError, match="max_length of at least 1, got 0"):
        encode_pair(WITH_EOS, "a", "b", 0)
    with pytest.raises(ValueError, match="1 labels and 2 ids"):
        EncodedExample([1, 2], [1])


def test_the_ignored_label_is_that_of_the_losses() -> None:
    assert encoding.IGNORED_LABEL == language_modeling.IGNORED_LABEL
