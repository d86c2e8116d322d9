"""The result tables, as CSV or Parquet, written row by row."""

import csv
import json
from collections.abc import Iterable, Iterator, Sequence
from pathlib import Path
from typing import Any, Literal, TextIO

import pyarrow as pa
import pyarrow.parquet as pq

from if_query.errors import InputError
from if_query.pairs import Pair
from if_query.whole_files import replacing

Format = Literal["csv", "parquet"]
_ROWS_AT_ONCE = 10_000


def write_table(
    path: Path, columns: Sequence[str], rows: Iterable[Sequence[Any]], types: Sequence[pa.DataType]
) -> None:
    """Write rows to ``path``, whose suffix decides the format; the old file or the new one.

    Args:
        path: ends in .csv or .parquet.
        columns: names.
        rows: values in the order of the columns.
        types: of the columns, for Parquet.
    """
    with replacing(path) as temporary:
        if path.suffix == ".csv":
            with temporary.open("w", encoding="utf-8", newline="") as file:
                writer = csv.writer(_UnixLines(file))
                writer.writerow(columns)
                for row in rows:
                    writer.writerow([_csv_value(value) for value in row])
            return
        schema = pa.schema(list(zip(columns, types, strict=True)))
        with pq.ParquetWriter(temporary, schema) as writer:
            for chunk in _chunks(rows):
                arrays = [
                    pa.array(list(values), type=kind)
                    for values, kind in zip(zip(*chunk, strict=True), types, strict=True)
                ]
                writer.write_table(pa.Table.from_arrays(arrays, schema=schema))


class _UnixLines:
    """Ends rows with a newline alone.

    csv.writer quotes a carriage return inside a value only where it is part of the line end, and
    a reader takes one that is not quoted for the end of a row. So it writes "\\r\\n", cut here.
    """

    def __init__(self, file: TextIO) -> None:
        self._file = file

    def write(self, row: str) -> int:
        return self._file.write(row.removesuffix("\r\n") + "\n")


def _chunks(rows: Iterable[Sequence[Any]]) -> Iterator[list[Sequence[Any]]]:
    chunk: list[Sequence[Any]] = []
    for row in rows:
        chunk.append(row)
        if len(chunk) == _ROWS_AT_ONCE:
            yield chunk
            chunk = []
    if chunk:
        yield chunk


def _csv_value(value: Any) -> Any:
    if isinstance(value, float):
        return f"{value:.9g}"  # nine digits bring back any float32
    if isinstance(value, list):
        return "[" + ", ".join(f"{entry:.9g}" for entry in value) + "]"
    return value


def read_rows(path: Path) -> Iterator[list[Any]]:
    """The rows of a table that :func:`write_table` wrote, the names of the columns first.

    Values of CSV files come as text, those of Parquet files as they were.

    Raises:
        InputError: if the file is missing, unreadable, or a row has another number of values.
    """
    if not path.is_file():
        raise InputError(f"{path}: no such file; the results are not whole, run run-query again")
    rows = _csv_rows(path) if path.suffix == ".csv" else _parquet_rows(path)
    num_columns = None
    try:
        for number, row in enumerate(rows, start=1):
            num_columns = len(row) if num_columns is None else num_columns
            if len(row) != num_columns:
                raise InputError(
                    f"{path}: row {number} has {len(row)} values, expected {num_columns}; "
                    "the file was altered, run run-query again"
                )
            yield row
    except (csv.Error, pa.ArrowInvalid, UnicodeDecodeError) as error:
        raise InputError(f"{path}: not a readable table: {error}") from error
    if num_columns is None:
        raise InputError(f"{path}: the file is empty; run run-query again")


def _csv_rows(path: Path) -> Iterator[list[Any]]:
    # The limit, of 131,072 characters, is one for the whole process; texts may be longer.
    limit = csv.field_size_limit(2**31 - 1)
    try:
        with path.open(encoding="utf-8", newline="") as file:
            yield from csv.reader(file)
    finally:
        csv.field_size_limit(limit)


def _parquet_rows(path: Path) -> Iterator[list[Any]]:
    with pq.ParquetFile(path) as file:
        yield list(file.schema_arrow.names)
        for batch in file.iter_batches(batch_size=_ROWS_AT_ONCE):
            columns = [column.to_pylist() for column in batch.columns]
            yield from map(list, zip(*columns, strict=True))


def extra_columns(pairs: Sequence[Pair], taken: Sequence[str]) -> dict[str, str]:
    """Column names for the further fields of pairs: {field: column}, in order of appearance.

    A field that has the name of a column becomes ``extra_<name>``, again where that is taken too.
    """
    fields = list(dict.fromkeys(field for pair in pairs for field in pair.extras))
    used = set(taken) | set(fields)
    columns = {}
    for field in fields:
        column = field
        while column in taken or (column != field and column in used):
            column = f"extra_{column}"
        used.add(column)
        columns[field] = column
    return columns


def extra_values(pair: Pair, fields: Iterable[str]) -> list[str]:
    """A pair's further fields as text: strings as they are, anything else as JSON."""
    values = (pair.extras.get(field, "") for field in fields)
    return [
        value if isinstance(value, str) else json.dumps(value, ensure_ascii=False)
        for value in values
    ]
