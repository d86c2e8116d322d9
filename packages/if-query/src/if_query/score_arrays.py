"""The score matrices of a query run, on disk from the start so that a killed run can go on.

.partial/scores.npy           float32 [query, train]
.partial/module_scores.npy    float32 [module, query, train]
.partial/token_scores.npy     float32 [query, token], tokens of all training examples in a row
.partial/self_influence.npy   float32 [train]
.partial/done.json            which block of queries, and how many of its batches are done
"""

import json
import shutil
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

import numpy as np
from jaxtyping import Float32
from math_utils.curvature import BatchScores

from if_query.errors import os_errors_name
from if_query.whole_files import write_json

PARTIAL = ".partial"


class ScoreArrays:
    """Memory-mapped scores, filled batch by batch.

    Attributes:
        scores: [query, train], nats per unit weight of one training example.
        module_scores: [module, query, train], or None.
        token_scores: [query, token], or None.
        self_influence: [train], or None.
    """

    def __init__(
        self,
        folder: Path,
        *,
        num_queries: int,
        lengths: Sequence[int],
        module_names: Sequence[str],
        per_module: bool,
        per_token: bool,
        self_influence: bool,
    ) -> None:
        """Open what an interrupted run left in ``folder``, or create it."""
        self._folder = folder / PARTIAL
        self._offsets = np.concatenate([[0], np.cumsum(lengths, dtype=np.int64)])
        self._module_names = list(module_names)
        num_train = len(lengths)
        self.scores = self._array("scores", (num_queries, num_train))
        shape = (len(module_names), num_queries, num_train)
        self.module_scores = self._array("module_scores", shape) if per_module else None
        shape_tokens = (num_queries, int(self._offsets[-1]))
        self.token_scores = self._array("token_scores", shape_tokens) if per_token else None
        self.self_influence = (
            self._array("self_influence", (num_train,)) if self_influence else None
        )

    def _array(self, name: str, shape: tuple[int, ...]) -> np.memmap[Any, np.dtype[np.float32]]:
        path = self._folder / f"{name}.npy"
        if path.is_file():
            return np.lib.format.open_memmap(path, mode="r+")
        with os_errors_name(path):
            self._folder.mkdir(parents=True, exist_ok=True)
            array = np.lib.format.open_memmap(path, mode="w+", dtype=np.float32, shape=shape)
            # Written out, since a full disk would otherwise be a crash in the middle of a run.
            array[...] = 0
            array.flush()
        return array

    def put(self, queries: slice, rows: Sequence[int], batch: BatchScores) -> None:
        """Store the scores of one batch of training examples."""
        self.scores[queries, rows] = batch.total.numpy()
        if self.module_scores is not None:
            for place, name in enumerate(self._module_names):
                self.module_scores[place][queries, rows] = batch.per_module[name].numpy()
        if self.token_scores is not None:
            for row, contributions in zip(rows, batch.per_token, strict=True):
                self.token_scores[queries, self.tokens_of(row)] = contributions.numpy()

    def tokens_of(self, row: int) -> slice:
        """Where the tokens of a training example stand in ``token_scores``."""
        return slice(int(self._offsets[row]), int(self._offsets[row + 1]))

    def save(self, progress: Mapping[str, int]) -> None:
        """Make everything durable that was put so far, and with it how far that is."""
        for array in (self.scores, self.module_scores, self.token_scores, self.self_influence):
            if array is not None:
                array.flush()
        write_json(self._folder / "done.json", progress)

    def progress(self) -> dict[str, int]:
        """What an interrupted run had saved; {} for none."""
        path = self._folder / "done.json"
        progress: dict[str, int] = json.loads(path.read_text()) if path.is_file() else {}
        return progress

    def remove(self) -> None:
        """Remove the arrays from disk."""
        shutil.rmtree(self._folder)


def best_and_worst(scores: Float32[np.ndarray, " train"], top_k: int) -> list[int]:
    """Rows of the ``top_k`` highest and the ``top_k`` lowest scores, best first, none twice."""
    order = np.argsort(-scores, kind="stable")
    if 2 * top_k < len(order):
        order = np.concatenate([order[:top_k], order[-top_k:]])
    rows: list[int] = order.tolist()
    return rows
