"""What each token and each linear map contributes, read for the shown pairs alone.

The tables have a row for every pair; they are read once, row by row, and only rows of shown
pairs are parsed.
"""

import json
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import numpy as np

from if_query.errors import InputError
from if_query.influence_results import InfluenceResults
from if_query.report.shown import ShownRows
from if_query.tables import read_rows
from if_query.text_files import iterate_json_lines

Place = tuple[int, int]
"""(row of the query, row of the training example) in the matrix of scores."""


@dataclass(frozen=True, eq=False)
class Details:
    """Contributions to shown scores; empty where the run did not compute them.

    Attributes:
        per_token: float32 [token] for a pair.
        tokens: the strings of a training example's tokens.
        module_names: the linear maps.
        per_module: float32 [module] for a pair.
    """

    per_token: dict[Place, np.ndarray] = field(default_factory=dict)
    tokens: dict[int, list[str]] = field(default_factory=dict)
    module_names: list[str] = field(default_factory=list)
    per_module: dict[Place, np.ndarray] = field(default_factory=dict)


def read_details(results: InfluenceResults, shown: Sequence[ShownRows]) -> Details:
    """Read what the run wrote beside the scores, for the shown pairs.

    Raises:
        InputError: if a file that the run says it wrote is missing or not readable.
    """
    wanted = {(query, row) for query, one in enumerate(shown) for row in one.rows}
    arguments = results.metadata["result_arguments"]
    details = Details()
    if arguments["per_token_scores"]:
        details.tokens.update(_read_tokens(results, {row for _, row in wanted}))
        path = results.table("influences")
        columns, rows = _rows_of_pairs(results, path, wanted)
        if "per_token_scores" not in columns:
            raise InputError(f"{path}: no column per_token_scores; run run-query again")
        column = columns.index("per_token_scores")
        for place, values in rows:
            details.per_token[place] = _numbers(values[column], path, values[:2])
            found, expected = len(details.per_token[place]), len(details.tokens[place[1]])
            if found != expected:
                raise InputError(
                    f"{path}: {values[1]!r} has {found} contributions for {expected} tokens; "
                    "run run-query again"
                )
    if arguments["per_module_scores"]:
        path = results.table("module_scores")
        columns, rows = _rows_of_pairs(results, path, wanted)
        details.module_names.extend(columns[2:])
        for place, values in rows:
            details.per_module[place] = _numbers(values[2:], path, values[:2])
    return details


def _rows_of_pairs(
    results: InfluenceResults, path: Path, wanted: set[Place]
) -> tuple[list[str], Iterator[tuple[Place, list[Any]]]]:
    """The names of the columns, and the rows of the wanted pairs."""
    rows = read_rows(path)
    columns: list[str] = next(rows)

    def matching() -> Iterator[tuple[Place, list[Any]]]:
        for values in rows:
            query, row = results.query_rows.get(values[0]), results.train_rows.get(values[1])
            if query is None or row is None:
                raise InputError(
                    f"{path}: the pair {values[0]!r}, {values[1]!r} is not one of the other "
                    "tables; run run-query again"
                )
            if (query, row) in wanted:
                yield (query, row), values

    return columns, matching()


def _numbers(values: Any, path: Path, pair: Sequence[str]) -> np.ndarray:
    """Numbers from a JSON array, as CSV has them, or from a list."""
    try:
        numbers = np.array(json.loads(values) if isinstance(values, str) else values, np.float32)
    except (ValueError, TypeError) as error:
        raise InputError(f"{path}: the numbers of {pair[0]!r}, {pair[1]!r}: {error}") from error
    if numbers.ndim != 1 or not np.isfinite(numbers).all():
        raise InputError(f"{path}: expected finite numbers for {pair[0]!r}, {pair[1]!r}")
    return numbers


def _read_tokens(results: InfluenceResults, wanted: set[int]) -> Mapping[int, list[str]]:
    path = results.folder / "train_tokens.jsonl"
    tokens: dict[int, list[str]] = {}
    for line, item in iterate_json_lines(path):
        if not isinstance(item, dict) or not isinstance(item.get("tokens"), list):
            raise InputError(f"{path}: line {line}: expected an object with a list of tokens")
        row = results.train_rows.get(item.get("train_id", ""))
        if row in wanted:
            tokens[row] = [str(token) for token in item["tokens"]]
    missing = wanted - set(tokens)
    if missing:
        name = results.train[min(missing)].example_id
        raise InputError(f"{path}: no tokens of {name!r}; run run-query again")
    return tokens
