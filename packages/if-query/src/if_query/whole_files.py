"""Files that are either the old one or the new one, never half of one; without PyTorch."""

import json
import os
import shutil
from collections.abc import Iterator, Mapping
from contextlib import contextmanager
from pathlib import Path
from typing import Any

from if_query.errors import InputError, os_errors_name


@contextmanager
def replacing(path: Path) -> Iterator[Path]:
    """A temporary name beside ``path`` to write a file to; renamed if all went well.

    Raises:
        OSError: naming ``path``; the partial file is removed.
    """
    temporary = path.with_name(f".{path.name}.tmp")
    try:
        with os_errors_name(path):
            path.parent.mkdir(parents=True, exist_ok=True)
            yield temporary
            os.replace(temporary, path)
    except BaseException:  # an interrupt too leaves no partial file behind; it goes on
        temporary.unlink(missing_ok=True)
        raise


@contextmanager
def replacing_folder(path: Path) -> Iterator[Path]:
    """A temporary folder beside ``path`` to write to; renamed if all went well.

    ``path`` must not exist yet.
    """
    temporary = path.with_name(f".{path.name}.tmp")
    shutil.rmtree(temporary, ignore_errors=True)
    try:
        with os_errors_name(path):
            temporary.mkdir(parents=True)
            yield temporary
            os.replace(temporary, path)
    except BaseException:  # as above: the partial folder goes, the interrupt or error stays
        shutil.rmtree(temporary, ignore_errors=True)
        raise


def write_json(path: Path, content: Mapping[str, Any]) -> None:
    """Write an object as indented JSON."""
    with replacing(path) as temporary:
        temporary.write_text(
            json.dumps(content, indent=2, ensure_ascii=False) + "\n", encoding="utf-8"
        )


def read_metadata(folder: Path) -> dict[str, Any] | None:
    """What a folder's metadata.json says; None if there is none.

    Raises:
        InputError: if it cannot be read as a JSON object.
    """
    path = folder / "metadata.json"
    if not path.is_file():
        return None
    try:
        metadata = json.loads(path.read_text(encoding="utf-8"))
    except (ValueError, OSError) as error:
        raise InputError(f"{path}: not readable as JSON: {error}") from error
    if not isinstance(metadata, dict):
        raise InputError(f"{path}: expected a JSON object, got {type(metadata).__name__}")
    return metadata
