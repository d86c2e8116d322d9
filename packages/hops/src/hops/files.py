"""Writing files so that a killed run leaves either the old file or the new one."""

import hashlib
import json
import os
import shutil
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any

from hops.errors import HopsError


def write_bytes(path: Path, content: bytes) -> None:
    """Write ``content`` to ``path`` by way of a temporary file in the same folder.

    Args:
        path: The file to write; missing parent folders are created.
        content: The whole content.

    Raises:
        HopsError: The folder cannot be created or written.
    """
    temporary = path.with_name(f".{path.name}.{os.getpid()}.tmp")
    try:
        path.parent.mkdir(parents=True, exist_ok=True)
        temporary.write_bytes(content)
        temporary.replace(path)
    except OSError as error:
        temporary.unlink(missing_ok=True) if temporary.parent.is_dir() else None
        raise HopsError(f"{path}: cannot be written ({error.strerror or error}).") from error


def write_text(path: Path, text: str) -> None:
    """Write ``text`` as UTF-8, in the same way as :func:`write_bytes`."""
    write_bytes(path, text.encode("utf-8"))


def write_json(path: Path, value: Any) -> None:
    """Write ``value`` as indented JSON, in the same way as :func:`write_text`."""
    write_text(path, json.dumps(value, indent=2, ensure_ascii=False, allow_nan=False) + "\n")


def read_json(path: Path) -> Any:
    """Read one JSON file.

    Raises:
        HopsError: The file is missing, unreadable or not JSON (with line and column).
    """
    try:
        return json.loads(path.read_text(encoding="utf-8"))
    except json.JSONDecodeError as error:
        raise HopsError(
            f"{path}: not JSON at line {error.lineno}, column {error.colno}: {error.msg}."
        ) from error
    except (OSError, UnicodeDecodeError) as error:
        raise HopsError(f"{path}: cannot be read ({error}).") from error


@contextmanager
def replaced_folder(path: Path) -> Iterator[Path]:
    """Give a temporary folder that becomes ``path`` when the block ends without an exception.

    An existing ``path`` is removed only then; after an exception nothing of the new one stays.

    Args:
        path: The folder to make or replace.

    Yields:
        An empty folder beside ``path``.
    """
    temporary = path.with_name(f".{path.name}.{os.getpid()}.tmp")
    shutil.rmtree(temporary, ignore_errors=True)
    try:
        temporary.mkdir(parents=True)
    except OSError as error:
        raise HopsError(f"{path}: cannot be made ({error.strerror or error}).") from error
    try:
        yield temporary
        if path.exists():
            shutil.rmtree(path)
        temporary.rename(path)
    finally:
        shutil.rmtree(temporary, ignore_errors=True)


def sha256_of(path: Path) -> str | None:
    """The SHA-256 of a file's content in hexadecimal; None where there is no such file."""
    if not path.is_file():
        return None
    with path.open("rb") as file:
        return hashlib.file_digest(file, "sha256").hexdigest()
