"""Token data sets: examples of any length in two flat arrays, with an identity for each."""

import hashlib
from collections.abc import Iterable, Sequence
from dataclasses import dataclass
from functools import cached_property
from itertools import pairwise
from pathlib import Path
from typing import overload

import numpy as np
from jaxtyping import Bool, Int, Int32, Int64

from if_query.encoding import IGNORED_LABEL, EncodedExample
from if_query.errors import InputError
from if_query.token_columns import Chunk, Column, read_chunks


@dataclass(frozen=True, eq=False)
class RaggedRows(Sequence[list[int]]):
    """A read-only sequence of lists, kept as one flat array."""

    flat: Int32[np.ndarray, " token"]
    offsets: Int64[np.ndarray, " bound"]

    def __len__(self) -> int:
        return len(self.offsets) - 1

    @overload
    def __getitem__(self, index: int) -> list[int]: ...
    @overload
    def __getitem__(self, index: slice) -> list[list[int]]: ...
    def __getitem__(self, index: int | slice) -> list[int] | list[list[int]]:
        if isinstance(index, slice):
            return [self[row] for row in range(*index.indices(len(self)))]
        row = range(len(self))[index]
        values: list[int] = self.flat[self.offsets[row] : self.offsets[row + 1]].tolist()
        return values


@dataclass(frozen=True, eq=False)
class TokenDataset(Sequence[EncodedExample]):
    """Unpadded examples in row order; 8 bytes per token and 8 per example.

    The label at an example's first position is kept as stored but never scored: nothing precedes
    it. The keys are made when they are first asked for.

    Attributes:
        input_ids: token ids, per example a list.
        labels: the labels, per example a list as long as its ids; -100 where none counts.
    """

    input_ids: RaggedRows
    labels: RaggedRows

    @classmethod
    def from_examples(cls, examples: Iterable[EncodedExample]) -> "TokenDataset":
        """The same examples as a data set.

        Raises:
            ValueError: an example has no tokens.
        """
        kept = list(examples)
        lengths = np.array([len(example.input_ids) for example in kept], dtype=np.int64)
        if len(lengths) and lengths.min() < 1:
            raise ValueError(f"example {int(lengths.argmin())} has no tokens")
        offsets = _offsets(lengths)
        ids = [np.array(example.input_ids, np.int32) for example in kept]
        labels = [np.array(example.labels, np.int32) for example in kept]
        none = [np.zeros(0, np.int32)]
        return cls(
            RaggedRows(np.concatenate(ids or none), offsets),
            RaggedRows(np.concatenate(labels or none), offsets),
        )

    def __len__(self) -> int:
        return len(self.input_ids)

    @overload
    def __getitem__(self, index: int) -> EncodedExample: ...
    @overload
    def __getitem__(self, index: slice) -> list[EncodedExample]: ...
    def __getitem__(self, index: int | slice) -> EncodedExample | list[EncodedExample]:
        if isinstance(index, slice):
            return [self[row] for row in range(*index.indices(len(self)))]
        return EncodedExample(self.input_ids[index], self.labels[index])

    @property
    def lengths(self) -> Int64[np.ndarray, " example"]:
        """Number of tokens of each example, at least 1."""
        return np.diff(self.input_ids.offsets)

    @property
    def num_tokens(self) -> int:
        """Number of tokens of all examples, prompts included."""
        return len(self.input_ids.flat)

    @cached_property
    def num_scored(self) -> Int64[np.ndarray, " example"]:
        """Number of labels of each example that enter its loss."""
        starts = self.input_ids.offsets[:-1]
        scored = self.labels.flat != IGNORED_LABEL
        scored[starts] = False
        return np.add.reduceat(scored, starts, dtype=np.int64) if len(starts) else starts

    @property
    def unlabelled(self) -> list[int]:
        """The examples in which no label is scored: their loss, gradient and influence are 0."""
        rows: list[int] = np.flatnonzero(self.num_scored == 0).tolist()
        return rows

    @cached_property
    def keys(self) -> Int64[np.ndarray, " example"]:
        """One integer in [0, 2⁶³) per example, from its content alone.

        Examples with equal ids and labels are told apart by a count of those before them, so a
        permutation of the rows permutes the keys (among equal examples, in any way).
        """
        keys = np.empty(len(self), dtype=np.int64)
        seen: dict[bytes, int] = {}
        bounds = self.input_ids.offsets.tolist()
        ids, labels = (_little_endian(rows.flat) for rows in (self.input_ids, self.labels))
        for row, (start, stop) in enumerate(pairwise(bounds)):
            content = hashlib.blake2b(ids[start:stop].data, digest_size=16)
            content.update(labels[start:stop].data)
            digest = content.digest()
            occurrence = seen.get(digest, 0)
            seen[digest] = occurrence + 1
            mixed = hashlib.blake2b(digest + occurrence.to_bytes(8, "little"), digest_size=8)
            keys[row] = int.from_bytes(mixed.digest(), "little") >> 1
        return keys

    def share(self, share: float) -> Int64[np.ndarray, " some"]:
        """A share of the examples, ascending rows: at least one, and all for 1.

        Those with the smallest keys, which is a choice at random by content: the order of the
        rows does not matter, and a smaller share is a part of a larger one.
        """
        count = max(1, round(share * len(self)))
        return np.sort(np.argsort(self.keys, kind="stable")[:count])

    @cached_property
    def fingerprint(self) -> str:
        """SHA-256 of lengths, ids and labels in row order, as hexadecimal digits."""
        digest = hashlib.sha256(self.input_ids.offsets.astype("<i8").data)
        for rows in (self.input_ids, self.labels):
            digest.update(_little_endian(rows.flat).data)
        return digest.hexdigest()


def load_token_dataset(
    path: str | Path, *, vocab_size: int, max_examples: int | None = None
) -> TokenDataset:
    """Read and check tokenised examples.

    The columns are ``input_ids``, ``attention_mask`` (optional) and ``labels`` (optional: taken
    from the ids). Positions that the mask marks 0 are removed, wherever they are and together
    with their labels, and what stands there is not looked at; without a mask nothing is padding.

    Args:
        path: a folder written by ``datasets.save_to_disk``, a ``.jsonl`` or a ``.parquet`` file.
        vocab_size: every id and every label other than -100 must be in [0, vocab_size).
        max_examples: read only so many rows, the first ones.

    Returns:
        At least one example; none without tokens. Those without a label to score are kept and
        named by :attr:`TokenDataset.unlabelled`.

    Raises:
        InputError: nothing readable at ``path``, splits instead of one data set, no ``input_ids``,
            no rows, a row (counted from 0) without tokens, with columns of different lengths, with
            something else than integers, or with an id outside the vocabulary.
    """
    path = Path(path)
    if max_examples is not None and max_examples < 1:
        raise InputError(f"expected max_examples of at least 1, got {max_examples}")
    ids: list[Int32[np.ndarray, " token"]] = []
    labels: list[Int32[np.ndarray, " token"]] = []
    lengths: list[Int64[np.ndarray, " row"]] = []
    first_row = 0
    for chunk in read_chunks(path, max_examples):
        kept = _Rows(path, first_row, chunk, vocab_size)
        ids.append(kept.ids)
        labels.append(kept.labels)
        lengths.append(kept.lengths)
        first_row += len(kept.lengths)
    if first_row == 0:
        raise InputError(f"{path}: expected at least one example, the data set is empty")
    offsets = _offsets(np.concatenate(lengths))
    return TokenDataset(
        RaggedRows(np.concatenate(ids), offsets), RaggedRows(np.concatenate(labels), offsets)
    )


class _Rows:
    """Rows of one chunk without padding, checked.

    Attributes:
        ids: token ids of all rows, one after the other.
        labels: the labels at the same positions.
        lengths: number of tokens of each row, at least 1.
    """

    def __init__(self, path: Path, first_row: int, chunk: Chunk, vocab_size: int) -> None:
        self._path = path
        self._first_row = first_row
        self._vocab_size = vocab_size
        stored = chunk["input_ids"]
        self._check_lengths(chunk, stored.lengths)
        ids = stored.values
        labels = chunk["labels"].values if "labels" in chunk else ids
        self.lengths = stored.lengths
        if "attention_mask" in chunk:
            keep = self._to_mask(chunk["attention_mask"])
            ids, labels = ids[keep], labels[keep]
            bounds = _offsets(stored.lengths)
            kept_before = _offsets(keep.astype(np.int64))
            self.lengths = np.diff(kept_before[bounds])
        self._check_not_empty()
        self._check_vocabulary("input_ids: id", ids, (ids < 0) | (ids >= vocab_size))
        bad_labels = (labels != IGNORED_LABEL) & ((labels < 0) | (labels >= vocab_size))
        self._check_vocabulary("labels: label", labels, bad_labels)
        self.ids: Int32[np.ndarray, " token"] = ids.astype(np.int32)
        self.labels: Int32[np.ndarray, " token"] = labels.astype(np.int32)

    def _error(self, row: int, reason: str) -> InputError:
        return InputError(f"{self._path}: row {self._first_row + row}: {reason}")

    def _check_lengths(self, chunk: Chunk, expected: Int64[np.ndarray, " row"]) -> None:
        for name, column in chunk.items():
            unequal = np.flatnonzero(column.lengths != expected)
            if len(unequal):
                row = int(unequal[0])
                raise self._error(
                    row, f"{expected[row]} input_ids, but {column.lengths[row]} in {name}"
                )

    def _to_mask(self, column: Column) -> Bool[np.ndarray, " value"]:
        bad = np.flatnonzero((column.values != 0) & (column.values != 1))
        if len(bad):
            row = int(np.searchsorted(np.cumsum(column.lengths), bad[0], side="right"))
            value = column.values[bad[0]]
            raise self._error(row, f"attention_mask: expected 0 or 1, got {value}")
        return column.values.astype(np.bool_)

    def _check_not_empty(self) -> None:
        empty = np.flatnonzero(self.lengths == 0)
        if len(empty):
            raise self._error(
                int(empty[0]), "no tokens (or none outside the attention mask); remove such rows"
            )

    def _check_vocabulary(
        self, what: str, values: Int64[np.ndarray, " value"], bad: Bool[np.ndarray, " value"]
    ) -> None:
        positions = np.flatnonzero(bad)
        if len(positions):
            row = int(np.searchsorted(np.cumsum(self.lengths), positions[0], side="right"))
            raise self._error(
                row,
                f"{what} {values[positions[0]]} is outside the vocabulary of "
                f"{self._vocab_size} tokens; was the data set made with another tokenizer?",
            )


def _offsets(lengths: Int[np.ndarray, " row"]) -> Int64[np.ndarray, " bound"]:
    return np.concatenate([np.zeros(1, np.int64), np.cumsum(lengths, dtype=np.int64)])


def _little_endian(values: Int32[np.ndarray, " token"]) -> Int32[np.ndarray, " token"]:
    """The same bytes on every machine, so that hashes agree."""
    return np.ascontiguousarray(values, dtype="<i4")
