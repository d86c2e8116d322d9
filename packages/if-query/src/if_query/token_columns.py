"""Columns of token ids as they are stored: a datasets folder, Parquet or JSON Lines.

Every reader yields chunks of rows as flat integer arrays with the length of each row, so that a
data set is checked and stored by whole arrays, not token by token.
"""

import sys
from collections.abc import Iterator
from dataclasses import dataclass
from itertools import islice
from pathlib import Path
from typing import Any

import numpy as np
import pyarrow as pa
import pyarrow.compute as pc
import pyarrow.parquet as pq
from jaxtyping import Int64

from if_query.errors import InputError
from if_query.text_files import iterate_json_lines

COLUMNS = ("input_ids", "attention_mask", "labels")
_ROWS_PER_CHUNK = 4096


@dataclass(frozen=True)
class Column:
    """Rows of one column, one after the other.

    Attributes:
        values: all integers of the rows.
        lengths: how many of them each row has.
    """

    values: Int64[np.ndarray, " value"]
    lengths: Int64[np.ndarray, " row"]


Chunk = dict[str, Column]


def read_chunks(path: Path, max_rows: int | None) -> Iterator[Chunk]:
    """Yield the columns input_ids and, where stored, attention_mask and labels, in row order.

    Args:
        path: a folder written by ``datasets.save_to_disk``, a ``.jsonl`` or a ``.parquet`` file.
        max_rows: how many rows to read; None for all.

    Raises:
        InputError: nothing readable of that kind at ``path``; no ``input_ids``; a row that is not
            a list of integers.
    """
    if max_rows is not None:
        max_rows = min(max_rows, sys.maxsize)  # the most that can be counted to
    if path.is_dir():
        return _folder_chunks(path, max_rows)
    if not path.exists():
        raise InputError(f"{path}: no such data set")
    if path.suffix == ".jsonl":
        return _json_chunks(path, max_rows)
    if path.suffix == ".parquet":
        return _parquet_chunks(path, max_rows)
    raise InputError(
        f"{path}: expected a folder written by datasets.save_to_disk, "
        "or a .jsonl or .parquet file; a text file becomes one by tokenize-text"
    )


def _folder_chunks(path: Path, max_rows: int | None) -> Iterator[Chunk]:
    import datasets  # takes seconds to import

    try:
        dataset = datasets.load_from_disk(str(path))
    except IndexError:  # raised for a data set that was saved without rows: it has no data files
        return
    except FileNotFoundError as error:
        raise InputError(
            f"{path}: expected a folder written by datasets.save_to_disk, "
            "but its description or data files are missing"
        ) from error
    except (
        OSError,
        ValueError,
        KeyError,
        TypeError,
    ) as error:  # Arrow's and JSON's are ValueErrors
        raise InputError(f"{path}: damaged data set: {_one_line(error)}") from error
    if isinstance(dataset, datasets.DatasetDict):
        splits = list(dataset)
        example = path / splits[0] if splits else path / "train"
        raise InputError(
            f"{path}: expected one data set, got the splits {', '.join(splits)}; "
            f"pass the folder of one of them, such as {example}"
        )
    columns = _present(path, dataset.column_names)
    if len(dataset) == 0:
        return
    rows = len(dataset) if max_rows is None else min(max_rows, len(dataset))
    tables = dataset.select(range(rows)).select_columns(columns).with_format("arrow")
    yield from _arrow_chunks(path, tables.iter(batch_size=_ROWS_PER_CHUNK))


def _parquet_chunks(path: Path, max_rows: int | None) -> Iterator[Chunk]:
    try:
        file = pq.ParquetFile(path)
    except pa.ArrowInvalid as error:
        raise InputError(f"{path}: not a Parquet file: {_one_line(error)}") from error
    with file:
        columns = _present(path, file.schema_arrow.names)
        batches = file.iter_batches(batch_size=_ROWS_PER_CHUNK, columns=columns)
        try:
            yield from _arrow_chunks(path, _first_rows(batches, max_rows))
        except (pa.ArrowException, OSError) as error:
            raise InputError(f"{path}: damaged Parquet file: {_one_line(error)}") from error


def _first_rows(batches: Iterator[Any], max_rows: int | None) -> Iterator[Any]:
    left = max_rows
    for batch in batches:
        yield batch if left is None else batch.slice(0, left)
        if left is not None:
            left -= min(left, batch.num_rows)
            if left == 0:
                return


def _arrow_chunks(path: Path, tables: Iterator[Any]) -> Iterator[Chunk]:
    first_row = 0
    for table in tables:
        yield {
            name: _arrow_column(path, name, table.column(name), first_row)
            for name in table.schema.names
        }
        first_row += table.num_rows


def _arrow_column(path: Path, name: str, column: Any, first_row: int) -> Column:
    array = column.combine_chunks() if isinstance(column, pa.ChunkedArray) else column
    if array.null_count:
        row = first_row + pc.index(pc.is_null(array), True).as_py()
        raise InputError(f"{path}: row {row}: {name} is missing")
    kind = array.type
    if not (pa.types.is_list(kind) or pa.types.is_large_list(kind) or _is_fixed_size(kind)):
        raise InputError(f"{path}: column {name}: expected lists of integers, got {kind}")
    values = array.flatten()
    lengths = pc.list_value_length(array).to_numpy(zero_copy_only=False).astype(np.int64)
    if values.null_count:
        position = pc.index(pc.is_null(values), True).as_py()
        row = first_row + int(np.searchsorted(np.cumsum(lengths), position, side="right"))
        raise InputError(f"{path}: row {row}: {name} holds a missing value, expected integers")
    if len(values) and not _holds_integers(name, values.type):
        raise InputError(f"{path}: column {name}: expected lists of integers, got {kind}")
    flat = values.cast(pa.int64()).to_numpy(zero_copy_only=False)
    return Column(flat, lengths)


def _is_fixed_size(kind: Any) -> bool:
    return bool(pa.types.is_fixed_size_list(kind))


def _holds_integers(name: str, kind: Any) -> bool:
    return bool(
        pa.types.is_integer(kind) or (name == "attention_mask" and pa.types.is_boolean(kind))
    )


def _json_chunks(path: Path, max_rows: int | None) -> Iterator[Chunk]:
    rows = enumerate(islice(iterate_json_lines(path), max_rows))
    columns: list[str] = []
    while chunk := list(islice(rows, _ROWS_PER_CHUNK)):
        arrays: dict[str, list[Any]] = {}
        for row, (line, item) in chunk:
            where = f"{path}: row {row} (line {line})"
            if not isinstance(item, dict):
                raise InputError(f"{where}: expected an object, got {type(item).__name__}")
            columns = columns or _present(path, list(item))
            for name in COLUMNS:
                if (name in item) != (name in columns):
                    state = "missing" if name in columns else "present, unlike in earlier rows"
                    raise InputError(f"{where}: {name} is {state}")
                if name in item:
                    arrays.setdefault(name, []).append(_integers(name, item[name], where))
        yield {
            name: Column(np.concatenate(parts), np.array([len(part) for part in parts], np.int64))
            for name, parts in arrays.items()
        }


def _integers(name: str, value: Any, where: str) -> Int64[np.ndarray, " value"]:
    allowed = (int, bool) if name == "attention_mask" else (int,)
    if not isinstance(value, list):
        raise InputError(f"{where}: {name}: expected a list of integers, got {value!r:.40}")
    if not set(map(type, value)) <= set(allowed):
        bad = next(entry for entry in value if type(entry) not in allowed)
        raise InputError(f"{where}: {name}: expected a list of integers, it holds {bad!r:.40}")
    try:
        return np.array(value, dtype=np.int64)
    except OverflowError as error:
        raise InputError(f"{where}: {name}: an integer does not fit in 64 bits") from error


def _one_line(error: Exception) -> str:
    return " ".join(str(error).split())


def _present(path: Path, names: list[str]) -> list[str]:
    if "input_ids" not in names:
        raise InputError(
            f"{path}: expected a column input_ids, got {', '.join(names) or 'no columns'}; "
            "a text file becomes a data set by tokenize-text"
        )
    return [name for name in COLUMNS if name in names]
