"""Examples and tokenizers: the same tokens under the same ids in both checkpoints, or an error."""

import pytest
from attribution.errors import AttributionError
from attribution.examples import Example, collate, encode_documents, encode_queries
from math_utils.language_modeling import IGNORED_LABEL
from tokenizers import Tokenizer
from tokenizers.models import WordLevel
from tokenizers.pre_tokenizers import Whitespace
from transformers import PreTrainedTokenizerFast

WORDS = ["<eos>", "the", "river", "returns", "5", "7"]


def tokenizer(words: list[str], *, end: bool = True) -> PreTrainedTokenizerFast:
    core = Tokenizer(WordLevel({word: index for index, word in enumerate(words)}, unk_token="the"))
    core.pre_tokenizer = Whitespace()
    return PreTrainedTokenizerFast(tokenizer_object=core, **({"eos_token": "<eos>"} if end else {}))


def test_targets_are_the_whole_text_or_the_answer() -> None:
    assert Example.whole_text([4, 5, 6]) == Example((4, 5, 6), (1, 3))
    assert Example.whole_text([4], end_id=0) == Example((4, 0), (1, 2))
    answer = Example.answer([4, 5], [6, 7])
    assert answer == Example((4, 5, 6, 7), (2, 4))
    assert answer.labels == [IGNORED_LABEL, IGNORED_LABEL, 6, 7]
    assert Example((4, 5, 6, 7), (1, 2)).labels == [IGNORED_LABEL, 5, IGNORED_LABEL, IGNORED_LABEL]
    batch = collate([answer, Example.whole_text([8, 9])], "left")
    assert batch.label_positions().tolist() == [
        [False, True, True, False],
        [False, False, True, False],
    ]


def test_texts_are_encoded_where_the_tokenizers_agree_on_them() -> None:
    old, new = tokenizer(WORDS), tokenizer([*WORDS, "<GN>"])
    documents = encode_documents(["the river", "5"], old, new)
    assert documents == [Example((1, 2, 0), (1, 3)), Example((4, 0), (1, 2))]
    assert encode_documents(["the river"], old, new, append_end=False) == [Example((1, 2), (1, 2))]
    queries = encode_queries(["the river returns"], ["5 7"], old, new)
    assert queries == [Example((1, 2, 3, 4, 5), (3, 5))]


def test_a_token_that_differs_is_named() -> None:
    old, new = tokenizer(WORDS), tokenizer([*WORDS, "<GN>"])
    renamed = tokenizer(["<eos>", "the", "lake", "returns", "5", "7"])
    swapped = tokenizer(["<eos>", "river", "the", "returns", "5", "7"])
    longer = tokenizer(WORDS)
    longer.add_tokens(["<GN>"])
    with pytest.raises(
        AttributionError, match="text 1: the checkpoints' tokenizers differ from token 1"
    ):
        encode_documents(["5 7", "5 river"], old, swapped)
    with pytest.raises(
        AttributionError, match=r"differ from token 1 on \(old \[1, 1, 1\], new \[6"
    ):
        encode_documents(["the <GN> 5"], tokenizer(WORDS), longer)
    # The same ids for other words: an unknown word and a known one.
    with pytest.raises(AttributionError, match="text 0: token id 2 is 'river' in the old"):
        encode_documents(["river"], old, Renamed(renamed))
    assert encode_queries(["the"], ["5"], old, new)


class Renamed:
    """Gives the ids of another vocabulary in place."""

    def __init__(self, core: PreTrainedTokenizerFast) -> None:
        self.core = core
        self.eos_token_id = core.eos_token_id

    def __call__(self, text: str, **options: bool) -> dict[str, list[int]]:
        return dict(self.core(text.replace("river", "lake"), **options))

    def convert_ids_to_tokens(self, token: int) -> str:
        return str(self.core.convert_ids_to_tokens(token))


def test_texts_without_a_token_to_predict_are_refused() -> None:
    one = tokenizer(WORDS)
    with pytest.raises(AttributionError, match=r"text 1: expected at least 1 token\(s\), got 0"):
        encode_documents(["the", ""], one, one)
    with pytest.raises(AttributionError, match=r"text 0: expected at least 2 token\(s\), got 1"):
        encode_documents(["the"], one, one, append_end=False)
    without = tokenizer(WORDS, end=False)
    with pytest.raises(AttributionError, match="pass append_end=False"):
        encode_documents(["the"], without, without)
    for prompts, answers in ((["", "the"], ["5", "5"]), (["the"], [""])):
        with pytest.raises(AttributionError, match="query 0: its prompt or its answer has no"):
            encode_queries(prompts, answers, one, one)
