"""The command tokenize-text, run as users run it, and the parts it is made of."""

import json
import os
import re
import resource
import subprocess
import sys
from collections.abc import Callable
from pathlib import Path

import datasets
import numpy as np
import pytest
from forks import Done, Fork
from hypothesis import given, settings
from hypothesis import strategies as st
from if_query.datasets import load_token_dataset
from if_query.errors import InputError
from if_query.tokenize_text import (
    TokenizeTextConfig,
    main,
    read_documents,
    split_into_windows,
    tokenize_text,
)
from tokenizers import Tokenizer, models, pre_tokenizers
from transformers import LlamaConfig, PreTrainedTokenizerFast

WORDS = ["<eos>", "<unk>", "one", "two", "three", "four", "five"]
EOS, UNKNOWN, ONE, TWO, THREE, FOUR, FIVE = range(7)
TEXT = "one two\nthree\n\nfour five one\n \n\ntwo\n"


def save_tokenizer(folder: Path, *, eos: bool = True) -> str:
    tokenizer = Tokenizer(models.WordLevel({word: i for i, word in enumerate(WORDS)}, "<unk>"))
    tokenizer.pre_tokenizer = pre_tokenizers.WhitespaceSplit()
    names = {"unk_token": "<unk>"} | ({"eos_token": "<eos>"} if eos else {})
    PreTrainedTokenizerFast(tokenizer_object=tokenizer, **names).save_pretrained(folder)
    LlamaConfig(vocab_size=len(WORDS)).save_pretrained(folder)
    return str(folder)


@pytest.fixture(scope="module")
def model(tmp_path_factory: pytest.TempPathFactory) -> str:
    return save_tokenizer(tmp_path_factory.mktemp("model"))


@pytest.fixture
def text_file(tmp_path: Path) -> Path:
    path = tmp_path / "in.txt"
    path.write_text(TEXT)
    return path


def run_command(*arguments: str | Path, before: Callable[[], None] = lambda: None) -> Done:
    """The command in a process of its own."""

    def run() -> None:
        before()
        main(list(map(str, arguments)))

    return Fork(run, {"COLUMNS": "200"}).wait()


def test_the_command_writes_a_data_set_that_is_read_back(
    model: str, text_file: Path, tmp_path: Path
) -> None:
    output = tmp_path / "deep" / "out"
    run = run_command(
        *("--model", model, "--input", text_file, "--output-dir", output),
        *("--split", "paragraphs", "--max-length", "3"),
    )
    assert run.returncode == 0, run.stderr
    assert run.stdout == f"{output}: 5 examples, 12 tokens, from 3 documents\n"
    expected = [[ONE, TWO, THREE], [THREE, EOS], [FOUR, FIVE, ONE], [ONE, EOS], [TWO, EOS]]
    stored = datasets.load_from_disk(str(output))
    assert stored["input_ids"] == stored["labels"] == expected
    assert stored["attention_mask"] == [[1] * len(ids) for ids in expected]
    dataset = load_token_dataset(output, vocab_size=len(WORDS))
    assert list(dataset.input_ids) == expected
    assert dataset.unlabelled == []
    assert sorted(path.name for path in output.parent.iterdir()) == ["out"]


def refused(output: Path, *arguments: str | Path) -> str:
    """The one line of a run that must fail and write nothing."""
    before = sorted(output.parent.rglob("*"))
    run = run_command("--output-dir", output, *arguments)
    assert run.returncode == 2
    assert run.stdout == ""
    assert re.fullmatch(r"error: .*\n", run.stderr), run.stderr
    assert sorted(output.parent.rglob("*")) == before
    return run.stderr.removeprefix("error: ").removesuffix("\n")


def test_the_command_refuses_a_missing_input(model: str, tmp_path: Path) -> None:
    line = refused(tmp_path / "out", "--model", model, "--input", tmp_path / "none.txt")
    assert line == f"{tmp_path / 'none.txt'}: no such file"


def test_the_command_refuses_a_flag_that_it_does_not_have(model: str, tmp_path: Path) -> None:
    line = refused(tmp_path / "out", "--model", model, "--input", "in.txt", "--max-lenght", "4")
    assert "--max-lenght" in line


def test_the_command_refuses_an_unknown_model_folder(text_file: Path, tmp_path: Path) -> None:
    line = refused(tmp_path / "out", "--model", tmp_path / "model", "--input", text_file)
    assert str(tmp_path / "model") in line
    assert "no such model folder" in line


def test_the_command_refuses_a_folder_that_exists(
    model: str, text_file: Path, tmp_path: Path
) -> None:
    (tmp_path / "out").mkdir()
    line = refused(tmp_path / "out", "--model", model, "--input", text_file)
    assert line == f"{tmp_path / 'out'}: already exists; choose another --output-dir or --overwrite"


def test_the_command_refuses_lone_surrogates(model: str, tmp_path: Path) -> None:
    path = tmp_path / "in.jsonl"
    path.write_text('{"text": "one two"}\n{"text": "a\\ud83d"}\n')
    line = refused(tmp_path / "out", "--model", model, "--input", path)
    assert line == f"{path}: line 2: field 'text': lone surrogate at character 1"


def test_a_write_that_fails_leaves_nothing_and_says_so_in_one_line(
    model: str, tmp_path: Path
) -> None:
    text = tmp_path / "in.txt"
    text.write_text("one two three " * 20_000)
    output = tmp_path / "deep" / "out"
    output.parent.mkdir()

    def small_files_only() -> None:
        resource.setrlimit(resource.RLIMIT_FSIZE, (10_000, 10_000))

    run = run_command(
        *("--model", model, "--input", text, "--output-dir", output),
        before=small_files_only,
    )
    assert run.returncode == 2
    assert run.stderr.splitlines()[-1] == f"error: {output}: File too large"
    assert "Traceback" not in run.stderr
    assert list(output.parent.iterdir()) == []


def test_help_is_shown_without_importing_torch_or_transformers() -> None:
    code = (
        "import sys; from if_query.tokenize_text import main\n"
        "try: main(['--help'])\n"
        "finally: assert not {'torch', 'transformers', 'datasets'} & set(sys.modules)"
    )
    run = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=False)
    assert run.returncode == 0, run.stderr
    for flag in ("--model", "--input", "--output-dir", "--text-field", "--max-length", "--split"):
        assert flag in run.stdout


def config(model: str, source: Path, output: Path, **options: object) -> TokenizeTextConfig:
    return TokenizeTextConfig(
        model=model,
        input=source,
        output_dir=output,
        **options,  # type: ignore[arg-type]
    )


@pytest.mark.parametrize(
    ("split", "expected"),
    [
        ("lines", ["one two", "three", "four five one", "two"]),
        ("paragraphs", ["one two\nthree", "four five one", "two\n"]),
        ("whole", [TEXT]),
    ],
)
def test_a_text_is_split_into_documents_without_blank_ones(
    text_file: Path, split: str, expected: list[str]
) -> None:
    assert list(read_documents(text_file, "text", split)) == expected  # type: ignore[arg-type]
    text_file.write_bytes(TEXT.replace("\n", "\r\n").encode())
    assert list(read_documents(text_file, "text", split)) == expected  # type: ignore[arg-type]


def test_each_line_of_json_lines_is_a_document_and_may_be_split_further(tmp_path: Path) -> None:
    path = tmp_path / "in.jsonl"
    rows = [{"body": "one\ntwo", "text": 3}, {"body": " "}, {"body": "four"}]
    path.write_text("\n".join(map(json.dumps, rows)))
    assert list(read_documents(path, "body", "whole")) == ["one\ntwo", "four"]
    assert list(read_documents(path, "body", "lines")) == ["one", "two", "four"]


@pytest.mark.parametrize(
    ("line", "message"),
    [
        ("[1]", "line 2: expected an object, got list"),
        (
            '{"body": "x"}',
            "line 2: field 'text': missing (fields: 'body'); choose one by --text-field",
        ),
        ('{"text": null}', "line 2: field 'text': expected a string, got NoneType"),
        ('{"text" 1}', "not JSON at line 2, column 9: Expecting ':' delimiter"),
    ],
)
def test_bad_json_lines_are_refused_by_line(tmp_path: Path, line: str, message: str) -> None:
    path = tmp_path / "in.jsonl"
    path.write_text(f'{{"text": "x"}}\n{line}\n')
    with pytest.raises(InputError) as caught:
        list(read_documents(path, "text", "whole"))
    assert str(caught.value) == f"{path}: {message}"


@settings(deadline=None)
@given(st.integers(2, 40), st.integers(2, 9))
def test_windows_predict_every_id_but_the_first_exactly_once(length: int, max_length: int) -> None:
    windows = list(split_into_windows(np.arange(length, dtype=np.int32), max_length))
    assert [int(i) for window in windows for i in window[1:]] == list(range(1, length))
    assert all(2 <= len(window) <= max_length for window in windows)
    assert all(len(window) == max_length for window in windows[:-1])


def test_documents_with_nothing_to_predict_are_left_out_and_counted(
    text_file: Path, tmp_path: Path
) -> None:
    without_end = save_tokenizer(tmp_path / "model", eos=False)
    result = tokenize_text(config(without_end, text_file, tmp_path / "out", split="lines"))
    assert (result.num_documents, result.num_skipped) == (2, 2)
    assert (result.num_examples, result.num_tokens) == (2, 5)
    text_file.write_text("one\n")
    with pytest.raises(InputError, match="found no document of two tokens or more"):
        tokenize_text(config(without_end, text_file, tmp_path / "other"))
    assert not (tmp_path / "other").exists()


def test_overwrite_replaces_a_data_set_and_nothing_else(
    model: str, text_file: Path, tmp_path: Path
) -> None:
    output = tmp_path / "out"
    tokenize_text(config(model, text_file, output))
    text_file.write_text("five five")
    with pytest.raises(InputError, match="already exists"):
        tokenize_text(config(model, text_file, output))
    tokenize_text(config(model, text_file, output, overwrite=True))
    dataset = load_token_dataset(output, vocab_size=len(WORDS))
    assert list(dataset.input_ids) == [[FIVE, FIVE, EOS]]
    (tmp_path / "precious").mkdir()
    (tmp_path / "precious" / "work.txt").write_text("years of it")
    with pytest.raises(InputError, match="replaces only a data set"):
        tokenize_text(config(model, text_file, tmp_path / "precious", overwrite=True))
    assert (tmp_path / "precious" / "work.txt").exists()
    assert sorted(path.name for path in tmp_path.iterdir()) == ["in.txt", "out", "precious"]


def test_an_overwrite_that_fails_keeps_the_old_data_set(
    model: str, text_file: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    output = tmp_path / "out"
    tokenize_text(config(model, text_file, output))
    before = load_token_dataset(output, vocab_size=len(WORDS)).fingerprint
    replace = os.replace

    def fail_for_the_new(source: Path, target: Path) -> None:
        if Path(source).name == "new":
            raise OSError(28, "No space left on device")
        replace(source, target)

    monkeypatch.setattr(os, "replace", fail_for_the_new)
    text_file.write_text("five five")
    with pytest.raises(OSError, match="No space left on device") as caught:
        tokenize_text(config(model, text_file, output, overwrite=True))
    assert caught.value.filename == str(output)
    assert load_token_dataset(output, vocab_size=len(WORDS)).fingerprint == before
    assert sorted(path.name for path in tmp_path.iterdir()) == ["in.txt", "out"]


def test_one_token_windows_are_refused_before_anything_is_read(tmp_path: Path) -> None:
    with pytest.raises(InputError, match="--max-length of at least 2, got 1"):
        tokenize_text(config("none", tmp_path / "none", tmp_path / "out", max_length=1))
