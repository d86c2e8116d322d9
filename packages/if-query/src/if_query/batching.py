"""Which examples go through the model together."""

from collections.abc import Sequence

import numpy as np
from jaxtyping import Int
from math_utils.language_modeling import TokenBatch

from if_query.encoding import EncodedExample


def make_batches(
    lengths: Sequence[int] | Int[np.ndarray, " example"],
    *,
    max_tokens: int,
    max_sequences: int | None = None,
) -> list[list[int]]:
    """Group examples of like length so that longest × count ≤ max_tokens in every batch.

    Examples are taken by falling length (equal ones by index) and a batch is closed when the next
    one would break the budget or ``max_sequences``, or is less than half as long as the longest:
    so less than half of any batch is padding, at the price of at most one more batch per halving
    of the length. The longest batch comes first, so that running out of memory shows at once.

    Args:
        lengths: number of tokens of each example, at least 1.
        max_tokens: budget for one batch, padding counted. A single sequence that exceeds it gets
            a batch of its own.
        max_sequences: the greatest number of sequences in a batch; None for no such limit.

    Returns:
        Indices into ``lengths``, every one in exactly one batch.

    Raises:
        ValueError: a length, ``max_tokens`` or ``max_sequences`` is below 1.
    """
    if max_tokens < 1 or (max_sequences is not None and max_sequences < 1):
        raise ValueError(
            "expected max_tokens and max_sequences of at least 1, "
            f"got {max_tokens} and {max_sequences}"
        )
    sizes = np.asarray(lengths, dtype=np.int64)
    if len(sizes) and sizes.min() < 1:
        index = int(sizes.argmin())
        raise ValueError(f"expected lengths of at least 1, example {index} has {sizes[index]}")
    order = np.argsort(-sizes, kind="stable")
    batches: list[list[int]] = []
    longest = limit = 0
    for index, length in zip(order.tolist(), sizes[order].tolist(), strict=True):
        if not batches or len(batches[-1]) >= limit or 2 * length < longest:
            batches.append([])
            longest = length
            limit = max(1, max_tokens // longest)
            if max_sequences is not None:
                limit = min(limit, max_sequences)
        batches[-1].append(index)
    return batches


def collate(
    examples: Sequence[EncodedExample],
    indices: Sequence[int],
    keys: Sequence[int] | Int[np.ndarray, " example"],
    pad_id: int = 0,
) -> TokenBatch:
    """Pad some of the examples on the right to the longest among them.

    Args:
        examples: a :class:`~if_query.datasets.TokenDataset` or a list of examples.
        indices: which of the examples, in order.
        keys: one key for each of ``examples`` (not for each of ``indices``).
        pad_id: the id written at padded positions, where it has no effect.

    Returns:
        The batch [len(indices), longest], on the CPU.

    Raises:
        ValueError: on no indices, an example without tokens, or not one key per example.
    """
    if len(keys) != len(examples):
        raise ValueError(f"expected one key per example, got {len(keys)} for {len(examples)}")
    chosen = [examples[index] for index in indices]
    return TokenBatch.collate(
        [example.input_ids for example in chosen],
        [example.labels for example in chosen],
        [int(keys[index]) for index in indices],
        pad_id=pad_id,
    )
