"""Reading pairs, and each row of the bad-input table that concerns a file of pairs."""

import json
from pathlib import Path

import pytest
from if_query.errors import InputError
from if_query.pairs import Pair, load_pairs

GOOD = {"pair_id": "a", "prompt": "One and one is", "completion": " two"}


def write(tmp_path: Path, content: object, name: str = "pairs.json") -> Path:
    path = tmp_path / name
    if isinstance(content, bytes):
        path.write_bytes(content)
    else:
        path.write_text(content if isinstance(content, str) else json.dumps(content), "utf-8")
    return path


def refusal(path: Path) -> str:
    with pytest.raises(InputError) as caught:
        load_pairs(path)
    message = str(caught.value)
    assert message.startswith(f"{path}: ")
    assert "\n" not in message
    return message.removeprefix(f"{path}: ")


def test_pairs_keep_their_order_and_their_further_fields_in_order(tmp_path: Path) -> None:
    items = [
        {"zeta": [1, {"x": None}], **GOOD, "alpha": 0.5, "extras": "mine"},
        {"pair_id": "b", "prompt": "", "completion": "π 😀\n"},
    ]
    pairs = load_pairs(write(tmp_path, items))
    assert pairs == [
        Pair(**GOOD, extras={"zeta": [1, {"x": None}], "alpha": 0.5, "extras": "mine"}),
        Pair(pair_id="b", prompt="", completion="π 😀\n", extras={}),
    ]
    assert list(pairs[0].extras) == ["zeta", "alpha", "extras"]


def test_json_lines_hold_the_same_pairs_and_may_have_blank_lines(tmp_path: Path) -> None:
    items = [GOOD, {**GOOD, "pair_id": "b", "completion": "a\u2028b"}]
    lines = "\n\n".join(json.dumps(item, ensure_ascii=False) for item in items) + "\r\n"
    in_lines = write(tmp_path, lines, "pairs.jsonl")
    assert load_pairs(in_lines) == load_pairs(write(tmp_path, items))


def test_a_byte_order_mark_is_accepted(tmp_path: Path) -> None:
    path = write(tmp_path, b"\xef\xbb\xbf" + json.dumps([GOOD]).encode())
    assert load_pairs(path)[0].pair_id == "a"


def test_a_missing_file_is_refused(tmp_path: Path) -> None:
    assert refusal(tmp_path / "none.json") == "no such file"
    assert refusal(tmp_path / "none.jsonl") == "no such file"


def test_an_unreadable_file_is_refused(tmp_path: Path) -> None:
    assert refusal(tmp_path) == "expected a file, got a folder"
    loop = tmp_path / "loop.json"
    loop.symlink_to(loop)
    assert refusal(loop).startswith("cannot be read: ")


@pytest.mark.parametrize(
    ("text", "message"),
    [
        ('[{"pair_id": "a",\n  "prompt" "b"}]', "not JSON at line 2, column 12: Expecting ':'"),
        ("", "not JSON: the file is empty"),
        ("[1, 2", "not JSON at line 1, column 6: Expecting ',' delimiter"),
        ("[" * 200_000, "not readable as JSON, from line 1"),
        ('{"a": 1}\n{"a": 2}', "line 2, column 1: Extra data (one value per line? name the file"),
    ],
)
def test_what_is_not_json_is_refused_with_its_place(
    tmp_path: Path, text: str, message: str
) -> None:
    assert message in refusal(write(tmp_path, text))


def test_a_bad_line_of_json_lines_is_refused_with_its_place(tmp_path: Path) -> None:
    path = write(tmp_path, json.dumps(GOOD) + '\n\n{"pair_id": }\n', "pairs.jsonl")
    assert refusal(path) == "not JSON at line 3, column 13: Expecting value"


@pytest.mark.parametrize(
    ("content", "message"),
    [
        ({"pairs": [GOOD]}, "expected a list of pairs, got dict"),
        ("null", "expected a list of pairs, got null"),
        ([], "expected at least one pair, got an empty list"),
        ([GOOD, "text"], "item 1: expected an object, got str"),
        ([{"prompt": "", "completion": "x"}], "item 0: field 'pair_id': missing"),
        ([{"pair_id": "a", "completion": "x"}], "item 0 (pair_id 'a'): field 'prompt': missing"),
        (
            [GOOD, {"pair_id": "b", "prompt": "x"}],
            "item 1 (pair_id 'b'): field 'completion': missing",
        ),
        (
            [{**GOOD, "prompt": 7}],
            "item 0 (pair_id 'a'): field 'prompt': expected a string, got int; write it in quotes",
        ),
        (
            [{**GOOD, "completion": None}],
            "item 0 (pair_id 'a'): field 'completion': expected a string, got null",
        ),
        (
            [{**GOOD, "pair_id": 3}],
            "item 0 (pair_id 3): field 'pair_id': expected a string, got int; write it in quotes",
        ),
        (
            [{**GOOD, "completion": ""}],
            "item 0 (pair_id 'a'): field 'completion': expected text, got an empty string",
        ),
        (
            [GOOD, {**GOOD, "pair_id": "b"}, GOOD],
            "item 2 (pair_id 'a'): duplicate pair_id, first used by item 0",
        ),
    ],
)
def test_a_wrong_item_is_refused_by_index_id_and_field(
    tmp_path: Path, content: object, message: str
) -> None:
    assert refusal(write(tmp_path, content)) == message


def test_an_empty_json_lines_file_is_refused(tmp_path: Path) -> None:
    path = write(tmp_path, "\n", "pairs.jsonl")
    assert refusal(path) == "expected at least one pair, got an empty list"


def test_items_of_json_lines_are_named_by_index_and_line(tmp_path: Path) -> None:
    path = write(tmp_path, "\n" + json.dumps({**GOOD, "prompt": 1.5}), "pairs.jsonl")
    assert refusal(path).startswith("item 0, line 2 (pair_id 'a'): field 'prompt': expected")


@pytest.mark.parametrize(
    ("change", "field"),
    [
        ({"prompt": "ok \ud83d"}, "'prompt': lone surrogate U+D83D at character 3"),
        ({"completion": "\ude00"}, "'completion': lone surrogate U+DE00 at character 0"),
        ({"pair_id": "a\ud800"}, "'pair_id': lone surrogate U+D800 at character 1"),
        ({"source": {"deep": ["\udfff"]}}, "'source': lone surrogate U+DFFF"),
        ({"\ud801": 1}, "'\\ud801': lone surrogate U+D801 at character 0"),
    ],
)
def test_text_with_lone_surrogates_is_refused(
    tmp_path: Path, change: dict[str, object], field: str
) -> None:
    message = refusal(write(tmp_path, [{**GOOD, **change}]))
    assert f"field {field}" in message
    message.encode("utf-8")  # the message itself can be printed


def test_a_surrogate_pair_written_as_escapes_is_one_character(tmp_path: Path) -> None:
    path = write(tmp_path, [{**GOOD, "prompt": "😀"}])
    assert "\\ud83d\\ude00" in path.read_text()
    assert load_pairs(path)[0].prompt == "😀"


def test_a_file_that_is_not_utf8_is_refused(tmp_path: Path) -> None:
    latin = json.dumps([{**GOOD, "prompt": "é"}], ensure_ascii=False).encode("latin-1")
    message = refusal(write(tmp_path, latin))
    assert message == "not UTF-8: byte 0xe9 at offset 29; save the file as UTF-8"
    in_lines = write(tmp_path, json.dumps(GOOD).encode() + b'\n"\xff"', "pairs.jsonl")
    assert refusal(in_lines).startswith("line 2: not UTF-8: byte 0xff at offset 1")
