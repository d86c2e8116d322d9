"""The files of one run of a method: finished, unfinished, or made with other arguments."""

import json
import shutil
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any

from attribution.errors import AttributionError
from hops.errors import HopsError
from if_query.errors import InputError
from if_query.whole_files import write_json
from pydantic import ConfigDict
from pydantic.dataclasses import dataclass
from utils.saved_parts import SavedParts


@dataclass(frozen=True, config=ConfigDict(extra="forbid"))
class OutputArguments:
    """Where the results go, and what is there already."""

    output: Path
    """The rows (JSONL); metrics, arguments and timing go beside it, named after it."""
    cutoffs: tuple[int, ...] = (1, 5, 10)
    """The k of precision@k, recall@k and the composition of the top k."""
    resume: bool = False
    """Go on where a run with the same arguments was killed; what is finished is not repeated."""
    overwrite: bool = False
    """Replace what is there."""

    def check(self) -> None:
        """Say what is out of range.

        Raises:
            InputError: a value is out of range.
        """
        if self.output.suffix != ".jsonl":
            raise InputError(f"--output: expected a file name in .jsonl, got {self.output}")
        if not self.cutoffs or min(self.cutoffs) < 1 or len(set(self.cutoffs)) < len(self.cutoffs):
            raise InputError(
                f"--cutoffs: expected numbers of at least 1, each once, got {list(self.cutoffs)}"
            )
        if self.resume and self.overwrite:
            raise InputError("expected --resume or --overwrite, not both")

    def beside(self, suffix: str) -> Path:
        """The file of the same stem with another suffix."""
        return self.output.with_suffix(suffix)


def is_finished(output: OutputArguments, resolved: dict[str, Any]) -> bool:
    """Whether the same run has ended; refuses to replace another one unasked.

    Raises:
        InputError: there are results, and neither ``--resume`` with the same arguments nor
            ``--overwrite``.
    """
    if output.overwrite or not output.output.exists():
        return False
    if output.resume and output.beside(".parts").exists():
        return False  # it was killed on its way to replace what is there
    if not output.resume:
        raise InputError(
            f"{output.output}: already there; pass --overwrite to replace it, or --resume to keep "
            "what is finished"
        )
    check_same(output.beside(".arguments.json"), resolved)
    return True


def check_same(path: Path, resolved: dict[str, Any]) -> None:
    """Refuse to go on with a run of other arguments.

    Raises:
        InputError: naming what differs.
    """
    try:
        before = json.loads(path.read_text(encoding="utf-8"))
    except (OSError, ValueError) as error:
        raise InputError(f"{path}: cannot be read; pass --overwrite to start anew") from error
    others = sorted(key for key in before.keys() | resolved.keys()
                    if before.get(key) != resolved.get(key))  # fmt: skip
    if others:
        raise InputError(
            f"{path}: made with another {', '.join(others)}; choose another --output or pass "
            "--overwrite"
        )


@contextmanager
def kept_parts(output: OutputArguments, resolved: dict[str, Any]) -> Iterator[SavedParts]:
    """A folder for what is finished, which stays when the run is killed and goes when it ends.

    Bad input ends a run too: nothing of it stays, and no folder that was made for it.

    Raises:
        InputError: there is an unfinished run, and neither ``--resume`` nor ``--overwrite``.
    """
    folder = output.beside(".parts")
    if folder.exists() and output.overwrite:
        shutil.rmtree(folder)
    if folder.exists():
        if not output.resume:
            raise InputError(
                f"{folder}: an unfinished run; pass --resume to go on, --overwrite to start anew"
            )
        check_same(folder / "arguments.json", resolved)
        print(f"going on: {len(list(folder.glob('*.npy')))} parts are finished")
    made = [one for one in (folder, *folder.parents) if not one.exists()]
    try:
        write_json(folder / "arguments.json", resolved)
        yield SavedParts(folder)
    except (InputError, AttributionError, HopsError, OSError) as error:
        # A full disk can be helped, and then parts are worth having; bad input stays bad.
        if folder in made and not (isinstance(error, OSError) and any(folder.glob("*.npy"))):
            shutil.rmtree(folder, ignore_errors=True)
        for one in made:
            if one.is_dir() and not any(one.iterdir()):
                one.rmdir()
        raise
    shutil.rmtree(folder)
