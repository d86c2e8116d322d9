"""Tensors on disk: safetensors files with checksums, either the old one or the new one."""

import hashlib
from collections.abc import Mapping
from pathlib import Path

import safetensors.torch
from safetensors import SafetensorError
from torch import Tensor

from if_query.errors import InputError
from if_query.whole_files import replacing


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
