"""Text, JSON and JSON Lines files, read with errors that say where the file is wrong."""

import codecs
import json
from collections.abc import Iterator
from pathlib import Path
from typing import Any

from if_query.errors import InputError


def read_text(path: Path) -> str:
    """The text of a UTF-8 file (a byte order mark is dropped, line ends become newlines).

    Raises:
        InputError: the file is missing, unreadable or not UTF-8.
    """
    text = _decode(_read_bytes(path), f"{path}")
    return text.replace("\r\n", "\n").replace("\r", "\n")


def read_json(path: Path) -> Any:
    """The value that a JSON file holds.

    Raises:
        InputError: the file is missing, unreadable, not UTF-8 or not JSON (line and column).
    """
    text = _decode(_read_bytes(path), f"{path}")
    if not text.strip():
        raise InputError(f"{path}: not JSON: the file is empty")
    return _parse(text, path, first_line=1)


def iterate_json_lines(path: Path) -> Iterator[tuple[int, Any]]:
    """Yield (line number from 1, value) for each line of a JSON Lines file, skipping blank ones.

    Raises:
        InputError: the file is missing, unreadable, not UTF-8 or not JSON (line and column).
    """
    try:
        with path.open("rb") as file:
            for number, raw in enumerate(file, start=1):
                text = _decode(raw, f"{path}: line {number}")
                if text.strip():
                    yield number, _parse(text, path, first_line=number)
    except OSError as error:
        raise _unreadable(path, error) from error


def surrogate_position(text: str) -> int | None:
    """Index of the first lone surrogate, which no UTF-8 file can hold; None where there is none."""
    try:
        text.encode("utf-8")
    except UnicodeEncodeError as error:
        return error.start
    return None


def _parse(text: str, path: Path, *, first_line: int) -> Any:
    try:
        return json.loads(text)
    except json.JSONDecodeError as error:
        line = first_line + error.lineno - 1
        hint = ""
        if error.msg == "Extra data" and path.suffix != ".jsonl":
            hint = " (one value per line? name the file .jsonl)"
        raise InputError(
            f"{path}: not JSON at line {line}, column {error.colno}: {error.msg}{hint}"
        ) from error
    except (RecursionError, ValueError) as error:  # nested too deep; an integer too long to read
        raise InputError(
            f"{path}: not readable as JSON, from line {first_line}: {error}"
        ) from error


def _read_bytes(path: Path) -> bytes:
    try:
        return path.read_bytes()
    except OSError as error:
        raise _unreadable(path, error) from error


def _unreadable(path: Path, error: OSError) -> InputError:
    if isinstance(error, FileNotFoundError):
        return InputError(f"{path}: no such file")
    if isinstance(error, IsADirectoryError):
        return InputError(f"{path}: expected a file, got a folder")
    return InputError(f"{path}: cannot be read: {error.strerror or error}")


def _decode(raw: bytes, where: str) -> str:
    try:
        return raw.removeprefix(codecs.BOM_UTF8).decode("utf-8")
    except UnicodeDecodeError as error:
        raise InputError(
            f"{where}: not UTF-8: byte 0x{error.object[error.start]:02x} at offset {error.start}; "
            "save the file as UTF-8"
        ) from error
