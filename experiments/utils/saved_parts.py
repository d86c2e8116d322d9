"""Parts of a long computation that survive a kill: each is computed once and then read back."""

from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path

import numpy as np
from if_query.errors import InputError
from if_query.whole_files import replacing


class Parts:
    """Computes every part when asked; keeps nothing."""

    def get(self, name: str, compute: Callable[[], np.ndarray]) -> np.ndarray:
        """The array called ``name``, from ``compute`` unless it was computed before."""
        return compute()


@dataclass(frozen=True)
class SavedParts(Parts):
    """Keeps every part as a whole file, so that a run that is started again has the same bits.

    The caller cuts the work into the same parts whether or not some are there: what is computed
    must not depend on what was read.

    Attributes:
        folder: where the parts lie, one ``.npy`` file for each.
    """

    folder: Path

    def get(self, name: str, compute: Callable[[], np.ndarray]) -> np.ndarray:
        """The array called ``name``, read back or computed and written.

        Raises:
            InputError: where a file is there and is no array.
        """
        path = self.folder / f"{name}.npy"
        if path.is_file():
            try:
                return np.array(np.load(path, allow_pickle=False))
            except (ValueError, EOFError) as error:
                raise InputError(f"{path}: not an array of this run; delete it") from error
        found = compute()
        with replacing(path) as temporary, temporary.open("wb") as file:
            np.save(file, found, allow_pickle=False)
        return found
