"""The result tables, as CSV or Parquet, written row by row."""

import csv
import json
from collections.abc import Iterable, Iterator, Sequence
from pathlib import Path
from typing import Any, Literal, TextIO

import pyarrow as pa
import pyarrow.parquet as pq

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
