"""Prompt and completion as token ids and labels."""

from dataclasses import dataclass
from typing import Any, Final, Protocol, runtime_checkable

from if_query.errors import InputError

IGNORED_LABEL: Final = -100


@runtime_checkable
class Tokenizer(Protocol):
    """What is asked of a tokenizer; those of transformers have it."""

    @property
    def eos_token_id(self) -> Any:
        """Id of the end-of-sequence token; None where there is none."""

    def encode(self, text: str, *, add_special_tokens: bool, verbose: bool) -> Any:
        """The ids of a text, as a list; ``verbose`` warns of lengths, which are cut here."""


@dataclass(frozen=True)
class EncodedExample:
    """Token ids and the label expected at each of them.

    Labels are next-token shifted when they are scored: the label at position t is predicted from
    the positions before t. So the label at position 0, which has no predecessor, is never scored,
    whatever it says.

    Attributes:
        input_ids: token ids, unpadded.
        labels: as many as ids; -100 where nothing is scored.
    """

    input_ids: list[int]
    labels: list[int]

    def __post_init__(self) -> None:
        if len(self.input_ids) != len(self.labels):
            raise ValueError(
                f"expected as many labels as ids, got {len(self.labels)} labels "
                f"and {len(self.input_ids)} ids"
            )

    @property
    def num_scored(self) -> int:
        """Number of labels that enter the loss: those other than -100 at positions 1 and later."""
        return sum(label != IGNORED_LABEL for label in self.labels[1:])


def encode_pair(
    tokenizer: Tokenizer, prompt: str, completion: str, max_length: int, *, eos: bool = True
) -> EncodedExample:
    """Encode a pair so that the completion, its end included, is what is scored.

    ids = encode(prompt) + encode(completion) + EOS, each part encoded by itself and without
    special tokens; labels are -100 on the prompt and the ids elsewhere. A tokenizer without an
    end-of-sequence token appends nothing.

    Of an example longer than ``max_length`` the last ``max_length`` ids are kept, and the labels
    with them: first the prompt is cut from the left, then the completion. Where the window begins
    with a completion token (as it does for an empty prompt), the label of that token stays as
    written but is not scored, since nothing precedes it; an example in which nothing is scored
    at all has ``num_scored`` 0.

    Args:
        tokenizer: a Hugging Face tokenizer.
        prompt: text that is conditioned on; may be empty.
        completion: text that is scored.
        max_length: the greatest number of ids, at least 1.
        eos: whether to append the end-of-sequence token; not for a completion that is a fragment.

    Returns:
        The example, at most ``max_length`` ids long; empty only where both texts encode to
        nothing and there is no end-of-sequence token.

    Raises:
        InputError: max_length is below 1.
    """
    if max_length < 1:
        raise InputError(f"expected a max_length of at least 1, got {max_length}")
    prompt_ids = encode_text(tokenizer, prompt)
    ending = end_of_sequence(tokenizer) if eos else []
    completion_ids = encode_text(tokenizer, completion) + ending
    ids = prompt_ids + completion_ids
    labels = [IGNORED_LABEL] * len(prompt_ids) + completion_ids
    return EncodedExample(ids[-max_length:], labels[-max_length:])


def encode_text(tokenizer: Tokenizer, text: str) -> list[int]:
    """The ids of a text, without special tokens; [] for the empty text."""
    if not text:
        return []
    return list(tokenizer.encode(text, add_special_tokens=False, verbose=False))


def end_of_sequence(tokenizer: Tokenizer) -> list[int]:
    """The end-of-sequence id as a list of one; [] for a tokenizer without it."""
    return [] if tokenizer.eos_token_id is None else [int(tokenizer.eos_token_id)]
