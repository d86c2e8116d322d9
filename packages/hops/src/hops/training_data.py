"""Documents as token ids, in the order of a whole training run."""

import math
import random
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import torch
from torch import Tensor
from transformers import PreTrainedTokenizerFast

from hops.documents import Document, read_documents
from hops.errors import HopsError

_WINDOW = 8  # batches whose documents are sorted by length together


def select_documents(
    path: Path, hop_depth: Sequence[int], *, skip_direct: bool = False
) -> list[tuple[int, Document]]:
    """Read the documents to train on, with their line numbers (from 0).

    Args:
        path: The JSONL file.
        hop_depth: The depths to keep, besides the distractors; all when empty.
        skip_direct: Whether documents that tell a wrapper's value are left out.

    Raises:
        HopsError: The file is unreadable or nothing is left.
    """
    chosen = [
        (line, document)
        for line, document in enumerate(read_documents(path))
        if (not hop_depth or document.hop_depth is None or document.hop_depth in hop_depth)
        and not (skip_direct and document.answers == "direct")
    ]
    if not chosen:
        raise HopsError(f"{path}: no documents of hop depth {', '.join(map(str, hop_depth))}.")
    return chosen


def encode_documents(
    documents: Sequence[Document], tokenizer: PreTrainedTokenizerFast, max_length: int
) -> list[list[int]]:
    """Encode each text without special tokens, followed by EOS, at most ``max_length`` ids."""
    encoded = tokenizer([doc.text for doc in documents], add_special_tokens=False)["input_ids"]
    end = [] if tokenizer.eos_token_id is None else [tokenizer.eos_token_id]
    return [ids[: max_length - len(end)] + end for ids in encoded]


def num_trained(num_documents: int, epochs: float) -> int:
    """The number of documents a run meets, counted as often as it meets them; at least one."""
    return max(1, round(epochs * num_documents))


def training_order(
    lengths: Sequence[int], *, epochs: float, batch_size: int, shuffle: bool, seed: int
) -> list[int]:
    """Lay down the order in which a run of several epochs meets its documents.

    Each epoch is a permutation.  When shuffled, windows of eight batches are sorted by length,
    so that a batch holds documents of like length, and their batches are shuffled again.

    Args:
        lengths: The length of each document in tokens.
        epochs: Passes over the documents; a fraction takes part of the last permutation.
        batch_size: Documents in a batch.
        shuffle: Whether to shuffle; otherwise each epoch is in file order.
        seed: The seed of the order.

    Returns:
        Indices of documents; consecutive runs of ``batch_size`` are the batches.
    """
    total = num_trained(len(lengths), epochs)
    rng = random.Random(f"hops training order {seed}")
    order: list[int] = []
    for _ in range(math.ceil(epochs)):
        epoch = list(range(len(lengths)))
        if shuffle:
            rng.shuffle(epoch)
        order += epoch
    order = order[:total]
    if not shuffle:
        return order
    grouped: list[int] = []
    for start in range(0, total, _WINDOW * batch_size):
        window = sorted(order[start : start + _WINDOW * batch_size], key=lambda i: lengths[i])
        whole = len(window) - len(window) % batch_size
        batches = [window[i : i + batch_size] for i in range(0, whole, batch_size)]
        rng.shuffle(batches)
        grouped += [index for batch in batches for index in batch] + window[whole:]
    return grouped


def collate(examples: Sequence[dict[str, Any]], pad_token_id: int) -> dict[str, Tensor]:
    """Pad examples on the right to the longest; padding has no attention and no label."""
    width = max(len(example["input_ids"]) for example in examples)
    input_ids = torch.full((len(examples), width), pad_token_id)
    attention_mask = torch.zeros_like(input_ids)
    labels = torch.full_like(input_ids, -100)
    for row, example in enumerate(examples):
        ids = torch.tensor(example["input_ids"])
        input_ids[row, : len(ids)] = ids
        attention_mask[row, : len(ids)] = 1
        labels[row, : len(ids)] = ids
    return {"input_ids": input_ids, "attention_mask": attention_mask, "labels": labels}
