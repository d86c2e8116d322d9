"""Reading token data sets of each format, their identities, and the bad inputs."""

import hashlib
import json
from collections.abc import Callable
from pathlib import Path
from typing import Any

import datasets
import numpy as np
import pyarrow as pa
import pyarrow.parquet as pq
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from if_query.datasets import TokenDataset, load_token_dataset
from if_query.encoding import EncodedExample
from if_query.errors import InputError

Columns = dict[str, list[Any]]
Writer = Callable[[Path, Columns], Path]
VOCAB = 50


def write_folder(tmp_path: Path, columns: Columns) -> Path:
    datasets.disable_progress_bars()
    datasets.Dataset.from_dict(columns).save_to_disk(str(tmp_path / "data"))
    return tmp_path / "data"


def write_parquet(tmp_path: Path, columns: Columns) -> Path:
    pq.write_table(pa.table(columns), tmp_path / "data.parquet", row_group_size=2)
    return tmp_path / "data.parquet"


def write_jsonl(tmp_path: Path, columns: Columns) -> Path:
    rows = [dict(zip(columns, row, strict=True)) for row in zip(*columns.values(), strict=True)]
    path = tmp_path / "data.jsonl"
    path.write_text("".join(json.dumps(row) + "\n" for row in rows))
    return path


every_format = pytest.mark.parametrize("write", [write_folder, write_parquet, write_jsonl])


def refusal(path: Path, **options: Any) -> str:
    with pytest.raises(InputError) as caught:
        load_token_dataset(path, **{"vocab_size": VOCAB, **options})
    message = str(caught.value)
    assert "\n" not in message
    return message.removeprefix(f"{path}: ")


@every_format
def test_stored_rows_come_back_without_their_padding(tmp_path: Path, write: Writer) -> None:
    columns: Columns = {
        "input_ids": [[1, 2, 3], [7, 7, 4, 5], [6, 999, 8, -1], [9]],
        "attention_mask": [[1, 1, 1], [0, 0, 1, 1], [1, 0, 1, 0], [1]],
        "labels": [[-100, 2, 3], [-100, 7, 4, 5], [6, 777, 8, -5], [9]],
        "note": ["a", "b", "c", "d"],
    }
    dataset = load_token_dataset(write(tmp_path, columns), vocab_size=VOCAB)
    assert list(dataset.input_ids) == [[1, 2, 3], [4, 5], [6, 8], [9]]
    assert list(dataset.labels) == [[-100, 2, 3], [4, 5], [6, 8], [9]]
    assert dataset.lengths.tolist() == [3, 2, 2, 1]
    assert dataset.num_scored.tolist() == [2, 1, 1, 0]
    assert (len(dataset), dataset.num_tokens, dataset.unlabelled) == (4, 8, [3])
    assert dataset[0] == EncodedExample([1, 2, 3], [-100, 2, 3])
    assert dataset[-1].num_scored == 0


@every_format
def test_missing_labels_are_the_ids_and_without_a_mask_nothing_is_padding(
    tmp_path: Path, write: Writer
) -> None:
    masked = {"input_ids": [[1, 2, 0], [0, 3, 4]], "attention_mask": [[1, 1, 0], [0, 1, 1]]}
    dataset = load_token_dataset(write(tmp_path, masked), vocab_size=VOCAB)
    assert list(dataset.labels) == list(dataset.input_ids) == [[1, 2], [3, 4]]
    (tmp_path / "plain").mkdir()
    plain = load_token_dataset(
        write(tmp_path / "plain", {"input_ids": [[1, 2, 0]]}), vocab_size=VOCAB
    )
    assert list(plain.labels) == list(plain.input_ids) == [[1, 2, 0]]


@every_format
def test_max_examples_reads_the_first_rows_only(tmp_path: Path, write: Writer) -> None:
    path = write(tmp_path, {"input_ids": [[1, 2], [3, 4], [5, 6], [VOCAB]]})
    for count in (1, 2, 3):
        dataset = load_token_dataset(path, vocab_size=VOCAB, max_examples=count)
        assert list(dataset.input_ids) == [[1, 2], [3, 4], [5, 6]][:count]
    assert refusal(path, max_examples=4).startswith("row 3: ")
    assert refusal(path, max_examples=0) == "expected max_examples of at least 1, got 0"


def test_every_format_gives_the_same_data_set_over_many_chunks(tmp_path: Path) -> None:
    generator = np.random.default_rng(0)
    rows = [
        generator.integers(VOCAB, size=size).tolist() for size in generator.integers(1, 5, 9000)
    ]
    columns = {"input_ids": rows, "labels": [[-100, *row[1:]] for row in rows]}
    loaded = [
        load_token_dataset(write(tmp_path, columns), vocab_size=VOCAB)
        for write in (write_folder, write_parquet, write_jsonl)
    ]
    direct = TokenDataset.from_examples(map(EncodedExample, rows, columns["labels"]))
    assert list(loaded[0].input_ids) == rows
    for dataset in loaded:
        assert dataset.fingerprint == direct.fingerprint
        assert np.array_equal(dataset.keys, direct.keys)
    columns["input_ids"][8999] = [VOCAB] * len(rows[8999])
    for write in (write_folder, write_parquet, write_jsonl):
        assert refusal(write(tmp_path, columns)).startswith(f"row 8999: input_ids: id {VOCAB} is")


@pytest.mark.parametrize("write", [write_folder, write_parquet])
def test_a_missing_value_far_down_is_named_by_its_row(tmp_path: Path, write: Writer) -> None:
    rows: list[Any] = [[1, 2]] * 9000
    rows[8500] = [1, None]
    assert refusal(write(tmp_path, {"input_ids": rows})).startswith("row 8500: input_ids holds")
    rows[8400] = None
    (tmp_path / "other").mkdir()
    path = write(tmp_path / "other", {"input_ids": rows})
    assert refusal(path) == "row 8400: input_ids is missing"


def test_other_layouts_of_lists_and_a_stored_row_order_are_read(tmp_path: Path) -> None:
    fixed = pa.table(
        {
            "input_ids": pa.array([[1, 2], [3, 4]], pa.list_(pa.int16(), 2)),
            "attention_mask": pa.array([[True, True], [False, True]], pa.large_list(pa.bool_())),
        }
    )
    pq.write_table(fixed, tmp_path / "fixed.parquet")
    dataset = load_token_dataset(tmp_path / "fixed.parquet", vocab_size=VOCAB)
    assert list(dataset.input_ids) == [[1, 2], [4]]
    shuffled = datasets.Dataset.from_dict({"input_ids": [[1], [2], [3]]}).select([2, 0])
    shuffled.with_format("numpy").save_to_disk(str(tmp_path / "shuffled"))
    dataset = load_token_dataset(tmp_path / "shuffled", vocab_size=VOCAB)
    assert list(dataset.input_ids) == [[3], [1]]


ROWS = st.lists(st.lists(st.integers(0, 2), min_size=1, max_size=3), min_size=1, max_size=12)


def from_ids(rows: list[list[int]]) -> TokenDataset:
    return TokenDataset.from_examples(EncodedExample(row, row) for row in rows)


@settings(deadline=None)
@given(ROWS, st.randoms(use_true_random=False))
def test_keys_are_distinct_and_follow_the_examples_under_permutation(
    rows: list[list[int]], random: Any
) -> None:
    keys = from_ids(rows).keys
    assert len(set(keys.tolist())) == len(rows)
    assert keys.min() >= 0
    shuffled = list(rows)
    random.shuffle(shuffled)
    permuted = from_ids(shuffled).keys

    def by_content(contents: list[list[int]], of: Any) -> list[tuple[list[int], int]]:
        return sorted(zip(contents, of.tolist(), strict=True))

    assert by_content(rows, keys) == by_content(shuffled, permuted)


def test_keys_are_pinned_so_that_sampled_labels_stay_the_same_between_versions() -> None:
    dataset = TokenDataset.from_examples(
        [EncodedExample([1, 2], [-100, 2]), EncodedExample([1, 2], [-100, 2])]
    )

    def key(occurrence: int) -> int:
        content = np.array([1, 2, -100, 2], "<i4").tobytes()
        digest = hashlib.blake2b(content, digest_size=16).digest()
        mixed = hashlib.blake2b(digest + occurrence.to_bytes(8, "little"), digest_size=8)
        return int.from_bytes(mixed.digest(), "little") // 2

    assert dataset.keys.tolist() == [key(0), key(1)]


def test_labels_count_in_keys_and_order_and_bounds_count_in_the_fingerprint() -> None:
    one = TokenDataset.from_examples([EncodedExample([1, 2], [-100, 2])])
    other = TokenDataset.from_examples([EncodedExample([1, 2], [-100, -100])])
    assert one.keys[0] != other.keys[0]
    assert one.fingerprint != other.fingerprint
    variants = [[[1, 2], [3]], [[3], [1, 2]], [[1], [2, 3]], [[1, 2, 3]]]
    assert len({from_ids(rows).fingerprint for rows in variants}) == 4
    assert from_ids(variants[0]).fingerprint == from_ids(variants[0]).fingerprint


def test_slices_and_an_example_without_tokens() -> None:
    dataset = from_ids([[1], [2], [3, 4]])
    assert [example.input_ids for example in dataset[1:]] == [[2], [3, 4]]
    assert dataset.labels[:2] == [[1], [2]]
    with pytest.raises(IndexError):
        dataset[3]
    with pytest.raises(ValueError, match="example 1 has no tokens"):
        from_ids([[1], []])


@every_format
@pytest.mark.parametrize(
    ("columns", "message"),
    [
        (
            {"text": ["a"], "labels": [[1]]},
            "expected a column input_ids, got text, labels; "
            "a text file becomes a data set by tokenize-text",
        ),
        (
            {"input_ids": [[1], [2, VOCAB]]},
            f"row 1: input_ids: id {VOCAB} is outside the vocabulary of {VOCAB} tokens; "
            "was the data set made with another tokenizer?",
        ),
        (
            {"input_ids": [[1], [2, -1]]},
            f"row 1: input_ids: id -1 is outside the vocabulary of {VOCAB} tokens; "
            "was the data set made with another tokenizer?",
        ),
        (
            {"input_ids": [[1, 2]], "labels": [[-100, -99]]},
            f"row 0: labels: label -99 is outside the vocabulary of {VOCAB} tokens; "
            "was the data set made with another tokenizer?",
        ),
        (
            {"input_ids": [[1], [2, 3]], "labels": [[1], [2]]},
            "row 1: 2 input_ids, but 1 in labels",
        ),
        (
            {"input_ids": [[1], [2, 3]], "attention_mask": [[1], [1, 1, 1]]},
            "row 1: 2 input_ids, but 3 in attention_mask",
        ),
        (
            {"input_ids": [[1], []]},
            "row 1: no tokens (or none outside the attention mask); remove such rows",
        ),
        (
            {"input_ids": [[1, 2]], "attention_mask": [[0, 0]]},
            "row 0: no tokens (or none outside the attention mask); remove such rows",
        ),
        (
            {"input_ids": [[1], [2]], "attention_mask": [[1], [2]]},
            "row 1: attention_mask: expected 0 or 1, got 2",
        ),
    ],
)
def test_wrong_rows_are_refused_by_number(
    tmp_path: Path, write: Writer, columns: Columns, message: str
) -> None:
    assert refusal(write(tmp_path, columns)) == message


@pytest.mark.parametrize("write", [write_folder, write_parquet])
@pytest.mark.parametrize(
    ("columns", "message"),
    [
        (
            {"input_ids": [[1.5]]},
            "column input_ids: expected lists of integers, got list<",
        ),
        ({"input_ids": [["a"]]}, "column input_ids: expected lists of integers, got list<"),
        ({"input_ids": [3]}, "column input_ids: expected lists of integers, got int"),
        ({"input_ids": [[True]]}, "column input_ids: expected lists of integers, got list<"),
        ({"input_ids": [[1], None]}, "row 1: input_ids is missing"),
        ({"input_ids": [[1]], "labels": [None]}, "row 0: labels is missing"),
        (
            {"input_ids": [[1], [], [2, None]]},
            "row 2: input_ids holds a missing value, expected integers",
        ),
    ],
)
def test_columns_of_something_else_than_integers_are_refused(
    tmp_path: Path, write: Writer, columns: Columns, message: str
) -> None:
    assert refusal(write(tmp_path, columns)).startswith(message)


@pytest.mark.parametrize(
    ("line", "message"),
    [
        ({"input_ids": [1.5]}, "input_ids: expected a list of integers, it holds 1.5"),
        ({"input_ids": [1, True]}, "input_ids: expected a list of integers, it holds True"),
        ({"input_ids": ["a"]}, "input_ids: expected a list of integers, it holds 'a'"),
        ({"input_ids": [[1]]}, "input_ids: expected a list of integers, it holds [1]"),
        ({"input_ids": [None]}, "input_ids: expected a list of integers, it holds None"),
        ({"input_ids": None}, "input_ids: expected a list of integers, got None"),
        ({"input_ids": [2**70]}, "input_ids: an integer does not fit in 64 bits"),
        ({"labels": [1]}, "input_ids is missing"),
        ({"input_ids": [1], "labels": [1]}, "labels is present, unlike in earlier rows"),
        ([1], "expected an object, got list"),
    ],
)
def test_wrong_json_lines_are_refused_by_row_and_line(
    tmp_path: Path, line: Any, message: str
) -> None:
    path = tmp_path / "data.jsonl"
    path.write_text('{"input_ids": [1, 2]}\n\n' + json.dumps(line))
    assert refusal(path) == f"row 1 (line 3): {message}"


def test_a_broken_line_is_refused_with_its_place(tmp_path: Path) -> None:
    path = tmp_path / "data.jsonl"
    path.write_text('{"input_ids": [1, 2]}\n{"input_ids": [1, }')
    assert refusal(path) == "not JSON at line 2, column 19: Expecting value"


@every_format
def test_an_empty_data_set_is_refused(tmp_path: Path, write: Writer) -> None:
    path = write(tmp_path, {"input_ids": []})
    assert refusal(path) == "expected at least one example, the data set is empty"


def test_splits_are_refused_and_named(tmp_path: Path) -> None:
    one = datasets.Dataset.from_dict({"input_ids": [[1]]})
    datasets.DatasetDict({"train": one, "test": one}).save_to_disk(str(tmp_path / "both"))
    assert refusal(tmp_path / "both") == (
        "expected one data set, got the splits train, test; "
        f"pass the folder of one of them, such as {tmp_path / 'both' / 'train'}"
    )
    assert len(load_token_dataset(tmp_path / "both" / "train", vocab_size=VOCAB)) == 1


def test_what_is_no_data_set_is_refused(tmp_path: Path) -> None:
    assert refusal(tmp_path / "none") == "no such data set"
    assert refusal(tmp_path).startswith("expected a folder written by datasets.save_to_disk, but")
    (tmp_path / "data.txt").write_text("hello")
    assert "becomes one by tokenize-text" in refusal(tmp_path / "data.txt")
    (tmp_path / "data.parquet").write_text("hello")
    assert refusal(tmp_path / "data.parquet").startswith("not a Parquet file: ")


def test_a_damaged_data_set_is_refused(tmp_path: Path) -> None:
    path = write_folder(tmp_path, {"input_ids": [[1, 2]] * 100})
    (shard,) = path.glob("*.arrow")
    content = shard.read_bytes()
    shard.write_bytes(content[: len(content) // 3])
    assert refusal(path).startswith("damaged data set: ")
    shard.unlink()
    assert "data files are missing" in refusal(path)
    (path / "state.json").write_text("{")
    assert refusal(path).startswith("damaged data set: ")


def test_a_damaged_parquet_file_is_refused(tmp_path: Path) -> None:
    path = write_parquet(tmp_path, {"input_ids": [[index] * 40 for index in range(VOCAB)]})
    content = bytearray(path.read_bytes())
    content[4:400] = bytes(396)
    path.write_bytes(content)
    assert refusal(path).startswith("damaged Parquet file: ")
