"""Tables as CSV: whatever text a data set holds comes back from a reader."""

import csv

import pyarrow as pa
import pytest
from if_query.tables import write_table


@pytest.mark.parametrize(
    "text", ["a\rb", "\r", "a\r\nb", "a\nb", 'a "quoted", b', "\0", "‮abc", "😀", " a "]
)
def test_text_comes_back_from_a_csv_file(tmp_path, text):
    path = tmp_path / "table.csv"
    write_table(path, ["name", "value"], [[text, 1.5], ["next", 2.0]], [pa.string(), pa.float32()])
    with path.open(newline="", encoding="utf-8") as file:
        rows = list(csv.reader(file))
    assert rows == [["name", "value"], [text, "1.5"], ["next", "2"]]
    assert path.read_bytes().startswith(b"name,value\n")
