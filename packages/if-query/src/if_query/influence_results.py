"""The results of a query run, for notebooks and for the report.

    results = InfluenceResults.load("results")
    results.top("france", 5)        # the five most helpful training examples, as a table
    results.matrix                  # all scores, [query, train]
    results.to_pandas()             # the same with the ids as labels

Positive is helpful: a little more training on the example lowers the query's loss.
"""

import difflib
import html
from dataclasses import dataclass
from functools import cached_property
from pathlib import Path
from typing import TYPE_CHECKING, Any

import numpy as np
from jaxtyping import Float32, Float64

from if_query.errors import InputError
from if_query.tables import read_rows
from if_query.whole_files import read_metadata

if TYPE_CHECKING:
    import pandas as pd

_ROWS_IN_NOTEBOOK = 10


@dataclass(frozen=True)
class ResultExample:
    """A query or a training example as it stands in its table."""

    example_id: str
    prompt: str
    completion: str
    extras: dict[str, str]


@dataclass(frozen=True, eq=False)
class InfluenceResults:
    """What run-query wrote.

    Attributes:
        folder: where it lies.
        metadata: sign, unit, damping, model, versions, arguments.
        queries: in the order of the rows of ``matrix``.
        train: in the order of its columns.
        losses: of the queries, in nats.
        matrix: scores, in nats per unit weight of one training example; read-only.
        self_influence: of the training examples; None where it was not computed.
    """

    folder: Path
    metadata: dict[str, Any]
    queries: list[ResultExample]
    train: list[ResultExample]
    losses: Float64[np.ndarray, " query"]
    matrix: Float32[np.ndarray, "query train"]
    self_influence: Float64[np.ndarray, " train"] | None

    @classmethod
    def load(cls, folder: str | Path) -> "InfluenceResults":
        """Read a results folder; nothing is written there.

        Raises:
            InputError: if it is missing, not one of run-query, or of an incomplete run.
        """
        folder = Path(folder)
        metadata = _read_results_metadata(folder)
        suffix = metadata["result_arguments"]["format"]
        queries, numbers = _read_examples(folder / f"query.{suffix}", "loss")
        train, own = _read_examples(folder / f"train.{suffix}", "self_influence")
        if numbers is None:
            raise InputError(f"{folder}: query.{suffix} has no column loss; run run-query again")
        matrix = _read_matrix(folder / "scores.npy", (len(queries), len(train)))
        return cls(folder, metadata, queries, train, numbers, matrix, own)

    def table(self, name: str) -> Path:
        """The file of a table, in the format of the run."""
        return self.folder / f"{name}.{self.metadata['result_arguments']['format']}"

    @cached_property
    def query_rows(self) -> dict[str, int]:
        """The row of each query's id in ``matrix``."""
        return {one.example_id: row for row, one in enumerate(self.queries)}

    @cached_property
    def train_rows(self) -> dict[str, int]:
        """The column of each training example's id in ``matrix``."""
        return {one.example_id: row for row, one in enumerate(self.train)}

    def query_row(self, query_id: str) -> int:
        """The row of a query in ``matrix``.

        Raises:
            InputError: if there is no such query; the message names those with like ids.
        """
        if query_id in self.query_rows:
            return self.query_rows[query_id]
        alike = difflib.get_close_matches(str(query_id), self.query_rows, n=3, cutoff=0)
        raise InputError(f"no query {query_id!r}; there are {', '.join(map(repr, alike))}, …")

    def top(self, query_id: str, k: int = 10, *, harmful: bool = False) -> "pd.DataFrame":
        """The training examples with the highest scores for a query, best first.

        Args:
            query_id: as in query.csv.
            k: how many.
            harmful: those with the lowest scores instead, the lowest first.

        Returns:
            Columns rank (1 is the most helpful), train_id, influence_score, percentile, prompt,
            completion.
        """
        import pandas as pd

        scores = self.matrix[self.query_row(query_id)]
        order = np.argsort(-scores, kind="stable")
        ranks = np.arange(1, len(order) + 1)
        places = slice(None, -k - 1, -1) if harmful else slice(k)
        rows = order[places]
        examples = [self.train[row] for row in rows]
        return pd.DataFrame(
            {
                "rank": ranks[places],
                "train_id": [one.example_id for one in examples],
                "influence_score": scores[rows],
                "percentile": percentiles(scores, rows),
                "prompt": [one.prompt for one in examples],
                "completion": [one.completion for one in examples],
            }
        )

    def to_pandas(self) -> "pd.DataFrame":
        """The matrix with the ids of queries as index and those of training examples as columns."""
        import pandas as pd

        return pd.DataFrame(
            np.asarray(self.matrix),
            index=pd.Index([one.example_id for one in self.queries], name="query_id"),
            columns=pd.Index([one.example_id for one in self.train], name="train_id"),
        )

    def _repr_html_(self) -> str:
        rows = []
        for row, asked in enumerate(self.queries[:_ROWS_IN_NOTEBOOK]):
            order = np.argsort(-self.matrix[row], kind="stable")
            cells = [asked.example_id[:60], asked.prompt[:200], asked.completion[:200]]
            cells += [f"{self.losses[row]:.4g}", self._few(row, order[:3])]
            cells += [self._few(row, order[::-1][:3])]
            rows.append("".join(f"<td>{html.escape(cell)}</td>" for cell in cells))
        titles = ["query", "prompt", "completion", "loss (nats)", "most helpful", "most harmful"]
        head = "".join(f'<th scope="col">{title}</th>' for title in titles)
        body = "".join(f"<tr>{row}</tr>" for row in rows)
        caption = (
            f"{len(self.queries)} queries × {len(self.train)} training examples"
            f"{f', the first {_ROWS_IN_NOTEBOOK} shown' * (len(self.queries) > len(rows))}; "
            "positive is helpful: training more on the example lowers the query's loss"
        )
        return (
            f"<table><caption>{caption}</caption><thead><tr>{head}</tr></thead>"
            f"<tbody>{body}</tbody></table>"
        )

    def _few(self, query: int, rows: np.ndarray) -> str:
        return ", ".join(
            f"{self.train[row].example_id[:60]} ({self.matrix[query, row]:+.3g})" for row in rows
        )


def percentiles(
    scores: Float32[np.ndarray, " train"], rows: np.ndarray
) -> Float64[np.ndarray, " row"]:
    """The percentage of scores below those of ``rows``, half of those equal to them included."""
    ordered = np.sort(scores)
    below = np.searchsorted(ordered, scores[rows], side="left")
    not_above = np.searchsorted(ordered, scores[rows], side="right")
    shares: np.ndarray = (below + not_above) * (50.0 / len(scores))
    return shares


def _read_results_metadata(folder: Path) -> dict[str, Any]:
    if not folder.exists():
        raise InputError(f"{folder}: no such folder; run-query writes one")
    if not folder.is_dir():
        raise InputError(f"{folder}: expected a folder that run-query wrote, found a file")
    metadata = read_metadata(folder)
    if metadata is None:
        raise InputError(f"{folder}: no results here (no metadata.json); run run-query")
    if "result_arguments" not in metadata:
        kind = "factors that fit-hessians wrote" if "checksums" in metadata else "something else"
        raise InputError(f"{folder}: expected results of run-query, found {kind}")
    if metadata.get("status") != "complete":
        raise InputError(
            f"{folder}: the run is incomplete; run the same run-query command again to finish it"
        )
    return metadata


def _read_examples(
    path: Path, number: str
) -> tuple[list[ResultExample], Float64[np.ndarray, " example"] | None]:
    rows = read_rows(path)
    columns = next(rows)
    own = [f"{path.stem}_id", "prompt", "completion"]
    if columns[:3] != own:
        raise InputError(f"{path}: expected the columns {', '.join(own)}, got {columns[:3]}")
    first = 4 if columns[3:4] == [number] else 3
    examples, numbers = [], []
    for row in rows:
        extras = dict(zip(columns[first:], row[first:], strict=True))
        examples.append(ResultExample(row[0], row[1], row[2], extras))
        if first == 4:
            try:
                numbers.append(float(row[3]))
            except ValueError as error:
                raise InputError(f"{path}: {row[0]!r}: {number} is not a number") from error
    return examples, np.array(numbers) if first == 4 else None


def _read_matrix(path: Path, shape: tuple[int, int]) -> Float32[np.ndarray, "query train"]:
    if not path.is_file():
        raise InputError(f"{path}: no such file; the results are not whole, run run-query again")
    try:
        matrix = np.load(path, mmap_mode="r", allow_pickle=False)
    except ValueError as error:
        raise InputError(f"{path}: not a readable matrix: {error}") from error
    if matrix.shape != shape or matrix.dtype != np.float32:
        raise InputError(
            f"{path}: expected float32 [{shape[0]}, {shape[1]}] as query.csv and train.csv say, "
            f"got {matrix.dtype} {list(matrix.shape)}; run run-query again"
        )
    if 0 in shape:
        raise InputError(f"{path}: no scores; run run-query again")
    if not all(np.isfinite(row).all() for row in matrix):
        raise InputError(f"{path}: holds scores that are not finite; run run-query again")
    scores: np.ndarray = matrix
    return scores
