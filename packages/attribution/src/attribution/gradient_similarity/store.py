"""Gradients of originals on disk, each computed once for all queries, settings and processes."""

import contextlib
import glob
import json
import os
import tempfile
import time
from collections.abc import Iterator, Mapping
from contextlib import contextmanager
from pathlib import Path
from typing import Any

import numpy as np
from jaxtyping import Float
from torch import Tensor

from attribution.errors import AttributionError
from attribution.gradient_similarity.layout import FlatLayout

MANIFEST = "manifest.json"
ABANDONED_AFTER = 3600.0
"""Seconds without a write after which a temporary file is that of a killed process."""


class GradientStore:
    """A folder with one ``.npy`` file per original and a manifest of what they are gradients of.

    A file has its name only once it is whole, so a killed run leaves whole gradients, which the
    next run takes, and several processes may fill one folder. What a killed run had begun to write
    is removed when the folder is next opened, an hour later or more.

    Args:
        folder: made if it is missing.
        layout: of the vectors.
        arguments: JSON values that must be the same for a gradient to be reused: fingerprints of
            model and data, projection, seed.

    Attributes:
        num_read: vectors read.
        num_written: vectors written.

    Raises:
        AttributionError: if the folder holds gradients with other arguments or another layout, or
            files that are no store.
        OSError: if it cannot be written to.
    """

    def __init__(self, folder: Path, layout: FlatLayout, arguments: Mapping[str, Any]) -> None:
        self.folder, self.layout = folder, layout
        self.num_read = self.num_written = 0
        expected = json.loads(json.dumps({**arguments, "layout": layout.describe()}))
        manifest = folder / MANIFEST
        if manifest.is_file():
            _compare(folder, _read_manifest(manifest), expected)
            _remove_abandoned(folder, ".original_*.npy.*.tmp")
            return
        if folder.is_dir() and any(not p.name.startswith(".") for p in folder.iterdir()):
            raise AttributionError(
                f"{folder}: not empty and no {MANIFEST} in it; choose another cache folder"
            )
        folder.mkdir(parents=True, exist_ok=True)
        with replacing(manifest) as temporary:
            temporary.write_text(json.dumps(expected, indent=1) + "\n", encoding="utf-8")

    def __contains__(self, key: int) -> bool:
        """Whether the gradient of the original with this numeric id is there."""
        return self._path(key).is_file()

    def read(self, key: int) -> Float[Tensor, " width"]:
        """The vector of an original, on the CPU.

        Raises:
            AttributionError: if the file is not what was written.
        """
        path = self._path(key)
        try:
            mapped = np.load(path, mmap_mode="r", allow_pickle=False)
        except (ValueError, EOFError) as error:
            raise AttributionError(f"{path}: not a whole array; remove it ({error})") from error
        vector = self.layout.new_vector()
        if mapped.shape != tuple(vector.shape) or mapped.dtype != vector.numpy().dtype:
            raise AttributionError(
                f"{path}: expected {self.layout.size} values, got {mapped.dtype} "
                f"{list(mapped.shape)}; remove it"
            )
        # Copied into memory that torch aligned: inner products of unaligned memory may round
        # differently, and what was on disk must give the same bits as what never was.
        np.copyto(vector.numpy(), mapped)
        self.num_read += 1
        return vector

    def write(self, key: int, vector: Float[Tensor, " width"]) -> None:
        """Store the vector of an original."""
        with replacing(self._path(key)) as temporary, temporary.open("wb") as file:
            np.save(file, vector.detach().cpu().numpy(), allow_pickle=False)
        self.num_written += 1

    def _path(self, key: int) -> Path:
        return self.folder / f"original_{key}.npy"


@contextmanager
def replacing(path: Path) -> Iterator[Path]:
    """A temporary file beside ``path``, of this process alone; renamed if all went well.

    Older ones, which killed processes left of the same path, are removed.
    """
    _remove_abandoned(path.parent, f".{glob.escape(path.name)}.*.tmp")
    handle, name = tempfile.mkstemp(dir=path.parent, prefix=f".{path.name}.", suffix=".tmp")
    os.close(handle)
    temporary = Path(name)
    try:
        yield temporary
        temporary.chmod(0o644)
        os.replace(temporary, path)
    except BaseException as error:  # an interrupt too leaves no partial file behind; it goes on
        with contextlib.suppress(FileNotFoundError):
            temporary.unlink()
        if isinstance(error, OSError) and error.filename is None and error.errno is not None:
            raise OSError(error.errno, os.strerror(error.errno), os.fspath(path)) from error
        raise


def _remove_abandoned(folder: Path, pattern: str) -> None:
    """Remove temporary files that nobody writes to; another process may be removing them too."""
    for temporary in folder.glob(pattern):
        with contextlib.suppress(FileNotFoundError):
            if time.time() - temporary.stat().st_mtime > ABANDONED_AFTER:
                temporary.unlink()


def _read_manifest(path: Path) -> dict[str, Any]:
    try:
        content = json.loads(path.read_text(encoding="utf-8"))
    except ValueError as error:
        raise AttributionError(f"{path}: not readable as JSON: {error}") from error
    if not isinstance(content, dict):
        raise AttributionError(f"{path}: expected a JSON object, got {type(content).__name__}")
    return content


def _compare(folder: Path, found: Mapping[str, Any], expected: Mapping[str, Any]) -> None:
    others = [name for name in expected if found.get(name) != expected[name]]
    if others:
        raise AttributionError(
            f"{folder}: holds gradients of another {', '.join(others).replace('_', ' ')}; "
            "choose another cache folder, or remove this one"
        )
