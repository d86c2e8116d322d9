"""The command tokenize-text: a text file becomes a data set that fit-hessians reads.

    tokenize-text --model M --input FILE.txt --output-dir D

Every document is encoded without special tokens and ends with the end-of-sequence token, as
completions do in run-query. Documents longer than ``--max-length`` are split into windows.
"""

import os
import re
import shutil
import tempfile
from collections.abc import Iterator, Sequence
from dataclasses import dataclass as stdlib_dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Literal

import numpy as np
from jaxtyping import Int32
from pydantic import ConfigDict
from pydantic.dataclasses import dataclass
from tqdm import tqdm

from if_query.command_line import parse
from if_query.encoding import Tokenizer, encode_text, end_of_sequence
from if_query.errors import InputError, command_errors, os_errors_name
from if_query.text_files import iterate_json_lines, read_text, surrogate_position

if TYPE_CHECKING:
    import pyarrow as pa

Window = Int32[np.ndarray, " _"]


@dataclass(frozen=True, config=ConfigDict(extra="forbid"))
class TokenizeTextConfig:
    """Turn a text file into a data set of token ids that fit-hessians reads."""

    model: str
    """Local folder or Hugging Face id of the tokenizer, usually that of the model."""
    input: Path
    """A text file, or a .jsonl file with one document per line."""
    output_dir: Path
    """Folder to write, by datasets.save_to_disk."""
    text_field: str = "text"
    """Field of a .jsonl line that holds the text."""
    max_length: int = 512
    """Longest example in tokens; longer documents are split into windows."""
    split: Literal["lines", "paragraphs", "whole"] = "whole"
    """What is one document: each line, each paragraph (blank lines part them), or the whole file;
    in a .jsonl file, of each line's text."""
    overwrite: bool = False
    """Replace a data set that is already there."""


@stdlib_dataclass(frozen=True)
class TokenizeTextResult:
    """What was written.

    Attributes:
        num_documents: documents that became examples.
        num_skipped: documents left out, having fewer than two tokens and so nothing to predict.
        num_examples: windows written.
        num_tokens: tokens in all windows; one shared by two windows counts twice.
    """

    num_documents: int
    num_skipped: int
    num_examples: int
    num_tokens: int


def tokenize_text(config: TokenizeTextConfig) -> TokenizeTextResult:
    """Write the data set: columns input_ids, attention_mask (all 1) and labels (the ids).

    Raises:
        InputError: the input file, the tokenizer or the output folder is not usable, or no
            document has two tokens.
        OSError: the data set could not be written; nothing of it is left.
    """
    if config.max_length < 2:
        raise InputError(f"expected --max-length of at least 2, got {config.max_length}")
    _check_output(config.output_dir, overwrite=config.overwrite)
    documents = list(read_documents(config.input, config.text_field, config.split))
    from if_query.models import load_tokenizer  # imports torch and transformers

    tokenizer = load_tokenizer(config.model)
    windows, num_documents = _encode(tokenizer, documents, config.max_length)
    if not windows:
        raise InputError(f"{config.input}: expected text, found no document of two tokens or more")
    _save(windows, config.output_dir, overwrite=config.overwrite)
    return TokenizeTextResult(
        num_documents=num_documents,
        num_skipped=len(documents) - num_documents,
        num_examples=len(windows),
        num_tokens=sum(map(len, windows)),
    )


def read_documents(
    path: Path, text_field: str, split: Literal["lines", "paragraphs", "whole"]
) -> Iterator[str]:
    """The documents of a text or JSON Lines file, in order, without blank ones.

    Raises:
        InputError: the file is unreadable, a line has no text field, or its text is not a string
            or holds lone surrogates.
    """
    texts = _json_texts(path, text_field) if path.suffix == ".jsonl" else [read_text(path)]
    pattern = {"lines": r"\n", "paragraphs": r"\n[^\S\n]*\n\s*", "whole": None}[split]
    for text in texts:
        parts = [text] if pattern is None else re.split(pattern, text)
        yield from (part for part in parts if part.strip())


def _json_texts(path: Path, text_field: str) -> Iterator[str]:
    for line, item in iterate_json_lines(path):
        where = f"{path}: line {line}"
        if not isinstance(item, dict):
            raise InputError(f"{where}: expected an object, got {type(item).__name__}")
        if text_field not in item:
            fields = ", ".join(map(repr, item)) or "none"
            raise InputError(
                f"{where}: field {text_field!r}: missing (fields: {fields}); choose one by "
                "--text-field"
            )
        text = item[text_field]
        if not isinstance(text, str):
            raise InputError(
                f"{where}: field {text_field!r}: expected a string, got {type(text).__name__}"
            )
        position = surrogate_position(text)
        if position is not None:
            raise InputError(
                f"{where}: field {text_field!r}: lone surrogate at character {position}"
            )
        yield text


def split_into_windows(ids: Int32[np.ndarray, " token"], max_length: int) -> Iterator[Window]:
    """Windows of at most ``max_length`` ids, each beginning with the last id of the one before.

    The shared id is context only, since the label at a first position is not scored: so every id
    of the document but its first is scored exactly once, and no window is left with one id.
    """
    for start in range(0, max(1, len(ids) - 1), max_length - 1):
        yield ids[start : start + max_length]


def _encode(
    tokenizer: Tokenizer, documents: Sequence[str], max_length: int
) -> tuple[list[Window], int]:
    windows: list[Window] = []
    num_documents = 0
    ending = end_of_sequence(tokenizer)
    for document in tqdm(documents, desc="tokenizing", unit="document"):
        ids = np.array(encode_text(tokenizer, document) + ending, dtype=np.int32)
        if len(ids) >= 2:
            num_documents += 1
            windows.extend(split_into_windows(ids, max_length))
    return windows, num_documents


def _check_output(folder: Path, *, overwrite: bool) -> None:
    if not folder.exists() and not folder.is_symlink():
        return
    if not overwrite:
        raise InputError(f"{folder}: already exists; choose another --output-dir or --overwrite")
    is_dataset = folder.is_dir() and (folder / "dataset_info.json").exists()
    if not is_dataset:
        raise InputError(f"{folder}: --overwrite replaces only a data set, this is something else")


def _save(windows: Sequence[Window], folder: Path, *, overwrite: bool) -> None:
    """Write under a temporary name beside ``folder``, then rename."""
    import datasets

    datasets.disable_progress_bars()
    folder.parent.mkdir(parents=True, exist_ok=True)
    with os_errors_name(folder):
        temporary = Path(tempfile.mkdtemp(prefix=f".{folder.name}-", dir=folder.parent))
        new, old = temporary / "new", temporary / "old"
        try:
            datasets.Dataset(_to_table(windows)).save_to_disk(str(new))
            if overwrite and folder.exists():
                os.replace(folder, old)
            os.replace(new, folder)
        finally:
            if old.exists() and not folder.exists():
                os.replace(old, folder)
            shutil.rmtree(temporary)


def _to_table(windows: Sequence[Window]) -> "pa.Table":
    import pyarrow as pa

    offsets = np.cumsum([0, *map(len, windows)], dtype=np.int64)
    ids = pa.LargeListArray.from_arrays(offsets, np.concatenate(windows))
    mask = pa.LargeListArray.from_arrays(offsets, np.ones(offsets[-1], dtype=np.int8))
    return pa.table({"input_ids": ids, "attention_mask": mask, "labels": ids})


@command_errors()
def main(args: Sequence[str] | None = None) -> None:
    """The console command."""
    config = parse(TokenizeTextConfig, program="tokenize-text", args=args)
    result = tokenize_text(config)
    if result.num_skipped:
        print(f"left out {result.num_skipped} documents of fewer than two tokens")
    print(
        f"{config.output_dir}: {result.num_examples} examples, {result.num_tokens} tokens, "
        f"from {result.num_documents} documents"
    )


if __name__ == "__main__":
    main()
