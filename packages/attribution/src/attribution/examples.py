"""What attribution is asked about: token ids, and the tokens of them whose loss counts."""

from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass
from typing import Any, Literal

import torch
from jaxtyping import Float
from math_utils.language_modeling import IGNORED_LABEL, TokenBatch
from torch import Tensor
from tqdm import tqdm

from attribution.errors import AttributionError

PaddingSide = Literal["right", "left"]


@dataclass(frozen=True)
class Example:
    """A document or a query: token ids, and a span of target tokens.

    The loss L(x) is that of the targets, each predicted from all tokens before it. The model never
    needs to read the last token: no target follows it, so every gradient there is zero. Hence all
    states are taken where a next token is predicted, and the state "at the answer" is that of the
    token before it.

    Attributes:
        token_ids: the whole text, at least two tokens.
        span: first and one past the last target, ``1 <= start < stop <= len(token_ids)``: the
            answer of a query, or the whole text.

    Raises:
        AttributionError: on a span that holds no token with another before it.
    """

    token_ids: tuple[int, ...]
    span: tuple[int, int]

    def __post_init__(self) -> None:
        start, stop = self.span
        if not 1 <= start < stop <= len(self.token_ids):
            raise AttributionError(
                "expected a span of targets with 1 <= start < stop <= number of tokens, "
                f"got {start}:{stop} of {len(self.token_ids)} tokens"
            )

    @classmethod
    def whole_text(cls, token_ids: Sequence[int], *, end_id: int | None = None) -> "Example":
        """Every token but the first is a target.

        Args:
            token_ids: the text.
            end_id: a token to predict after the text (end of sequence), so that the last real
                token of the text is among the states; None for none.
        """
        whole = (*token_ids, *(() if end_id is None else (end_id,)))
        return cls(whole, (1, len(whole)))

    @classmethod
    def answer(cls, prompt: Sequence[int], answer: Sequence[int]) -> "Example":
        """The answer's tokens are the targets, given the prompt."""
        return cls((*prompt, *answer), (len(prompt), len(prompt) + len(answer)))

    @property
    def labels(self) -> list[int]:
        """The token ids at the targets and −100 elsewhere."""
        start, stop = self.span
        return [
            token if start <= place < stop else IGNORED_LABEL
            for place, token in enumerate(self.token_ids)
        ]


def collate(examples: Sequence[Example], padding_side: PaddingSide = "right") -> TokenBatch:
    """Pad examples to the longest of them; keys are their places in the sequence."""
    return TokenBatch.collate(
        [example.token_ids for example in examples],
        [example.labels for example in examples],
        range(len(examples)),
        padding_side=padding_side,
    )


def over_batches(
    examples: Sequence[Example],
    vectors_of: Callable[[TokenBatch], Float[Tensor, "layer batch hidden"]],
    *,
    batch_size: int,
    padding_side: PaddingSide,
    device: torch.device | str,
    progress: str | None,
) -> Float[Tensor, "layer example hidden"]:
    """Run all examples in batches of like length and put the results back in their order.

    Args:
        examples: what to run.
        vectors_of: what to do with one batch.
        batch_size: examples per batch.
        padding_side: where shorter ones are padded.
        device: where the batches go.
        progress: what the progress bar says; None for none.

    Returns:
        The vectors on the CPU [layer, example, hidden].
    """
    order = sorted(range(len(examples)), key=lambda index: -len(examples[index].token_ids))
    found = []
    with tqdm(total=len(order), desc=progress, unit="text", disable=progress is None) as bar:
        for rows in _portions(order, batch_size):
            batch = collate([examples[index] for index in rows], padding_side).to(device)
            found.append(vectors_of(batch).cpu())
            bar.update(len(rows))
    vectors = torch.cat(found, dim=1)
    restored = torch.empty_like(vectors)
    restored[:, order] = vectors
    return restored


def _portions(order: list[int], size: int) -> Iterator[list[int]]:
    for start in range(0, len(order), size):
        yield order[start : start + size]


def encode_documents(
    texts: Sequence[str], old_tokenizer: Any, new_tokenizer: Any, *, append_end: bool = True
) -> list[Example]:
    """Encode whole texts once, for all queries, after checking that both checkpoints agree.

    Args:
        texts: the documents.
        old_tokenizer: the old checkpoint's Hugging Face tokenizer.
        new_tokenizer: the new checkpoint's.
        append_end: whether the model is to predict the end of sequence after each text, so that
            the state at its last real token exists. Needs a tokenizer with that token.

    Raises:
        AttributionError: where the tokenizers differ on a text, or a text has too few tokens.
    """
    end_id = None
    if append_end:
        end_id = new_tokenizer.eos_token_id
        if end_id is None:
            raise AttributionError(
                "the tokenizer has no end-of-sequence token; pass append_end=False"
            )
    encoded = same_tokens(texts, old_tokenizer, new_tokenizer)
    shortest = 2 - (end_id is not None)
    for index, ids in enumerate(encoded):
        if len(ids) < shortest:
            raise AttributionError(
                f"text {index}: expected at least {shortest} token(s), got {len(ids)}"
            )
    return [Example.whole_text(ids, end_id=end_id) for ids in encoded]


def encode_queries(
    prompts: Sequence[str], answers: Sequence[str], old_tokenizer: Any, new_tokenizer: Any
) -> list[Example]:
    """Encode prompts and answers apart, so that the answer's tokens are known, and join them.

    Raises:
        AttributionError: where the tokenizers differ, or a prompt or an answer has no token.
    """
    both = [same_tokens(part, old_tokenizer, new_tokenizer) for part in (prompts, answers)]
    encoded = list(zip(*both, strict=True))
    for index, (prompt, answer) in enumerate(encoded):
        if not prompt or not answer:
            raise AttributionError(f"query {index}: its prompt or its answer has no token")
    return [Example.answer(prompt, answer) for prompt, answer in encoded]


def same_tokens(texts: Sequence[str], old_tokenizer: Any, new_tokenizer: Any) -> list[list[int]]:
    """Token ids of every text, which must be the same tokens under the same ids in both.

    Without this a difference of hidden states compares the states of different words.

    Raises:
        AttributionError: naming the first text and token on which the tokenizers differ.
    """
    encoded = []
    known: set[int] = set()
    for index, text in enumerate(texts):
        old, new = (
            list(tokenizer(text, add_special_tokens=False)["input_ids"])
            for tokenizer in (old_tokenizer, new_tokenizer)
        )
        if old != new:
            place = next(
                (at for at, (a, b) in enumerate(zip(old, new, strict=False)) if a != b),
                min(len(old), len(new)),
            )
            raise AttributionError(
                f"text {index}: the checkpoints' tokenizers differ from token {place} on "
                f"(old {old[place : place + 3]}, new {new[place : place + 3]}); "
                "save both checkpoints with the tokenizer that has all function tokens"
            )
        for token in set(new) - known:
            names = [one.convert_ids_to_tokens(token) for one in (old_tokenizer, new_tokenizer)]
            if names[0] != names[1]:
                raise AttributionError(
                    f"text {index}: token id {token} is {names[0]!r} in the old checkpoint "
                    f"and {names[1]!r} in the new one"
                )
        known.update(new)
        encoded.append(new)
    return encoded
