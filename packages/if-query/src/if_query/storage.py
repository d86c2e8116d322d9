"""Files that are either the old one or the new one, never half of one."""

import hashlib
import json
import os
import shutil
from collections.abc import Iterator, Mapping
from contextlib import contextmanager
from pathlib import Path
from typing import Any

import safetensors.torch
from safetensors import SafetensorError
from torch import Tensor

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
    except BaseException:
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
    except BaseException:
        shutil.rmtree(temporary, ignore_errors=True)
        raise


def write_json(path: Path, content: Mapping[str, Any]) -> None:
    """Write an object as indented JSON."""
    with replacing(path) as temporary:
        temporary.write_text(
            json.dumps(content, indent=2, ensure_ascii=False) + "\n", encoding="utf-8"
        )


def write_tensors(path: Path, tensors: Mapping[str, Tensor]) -> str:
    """Write tensors as safetensors.

    Returns:
        The SHA-256 of the file.
    """
    # Serialised here rather than by safetensors' own file writer, whose error for a full disk is
    # not an OSError and so would not be recognised as one.
    content = safetensors.torch.save(
        {name: tensor.detach().cpu().contiguous() for name, tensor in tensors.items()}
    )
    with replacing(path) as temporary:
        temporary.write_bytes(content)
    return hashlib.sha256(content).hexdigest()


def checksum_of(path: Path) -> str:
    """The SHA-256 of a file."""
    with path.open("rb") as file:
        return hashlib.file_digest(file, "sha256").hexdigest()


def read_tensors(path: Path, checksum: str | None = None) -> dict[str, Tensor]:
    """Read what :func:`write_tensors` wrote.

    Args:
        path: the file.
        checksum: the SHA-256 it must have; None skips the check.

    Raises:
        InputError: if the file is missing, truncated or altered.
    """
    if not path.is_file():
        raise InputError(f"{path}: missing; fit the factors again")
    content = path.read_bytes()
    if checksum is not None and hashlib.sha256(content).hexdigest() != checksum:
        raise InputError(
            f"{path}: the file was truncated or altered (its checksum is wrong); "
            "fit the factors again"
        )
    try:
        # Cloned, so that tensors are aligned as those that were never on disk: some matrix
        # products give other bits on unaligned memory.
        return {name: tensor.clone() for name, tensor in safetensors.torch.load(content).items()}
    except SafetensorError as error:
        raise InputError(f"{path}: not a readable safetensors file: {error}") from error
