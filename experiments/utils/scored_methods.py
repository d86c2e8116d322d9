"""Scores of many methods on one task: each in a process of its own, kept on disk, none stops all.

For each method the folder gets ``NAME.npy``, the scores [query, document], and ``NAME.json``: what
they depend on, the seconds, the peak memory, and where it failed the reason.
"""

import hashlib
import resource
import sys
import time
import traceback
from collections.abc import Sequence
from dataclasses import dataclass
from multiprocessing import get_context
from pathlib import Path
from typing import Any

import numpy as np
from hops.errors import HopsError
from hops.files import read_json, write_bytes, write_json
from tqdm import tqdm
from utils.attribution_method import Method
from utils.attribution_methods import METHODS
from utils.attribution_task import AttributionTask, TaskArguments

_IMPORTED_ONCE = [
    "tyro",
    "rich.table",
    "transformers.models.auto",
    "attribution.baselines",
    "attribution.evaluation",
    "attribution.methods",
    "hops.documents",
    "if_query.models",
]
"""Packages that the scripts and most methods import."""


@dataclass(frozen=True)
class ScoredMethod:
    """What a method gave.

    Attributes:
        name: its name in the registry.
        title: what tables call it.
        scores: higher is more related [query, document]; None where it failed.
        judged: the queries that it may be judged by [query]; None where it failed.
        seconds: wall time from the task as read to the scores, models loaded in it.
        peak_mebibytes: the most memory that its process held, the libraries included
            (a method that knows texts alone holds little else).
        failure: why there are no scores; None where there are.
    """

    name: str
    title: str
    scores: np.ndarray | None
    judged: np.ndarray | None
    seconds: float
    peak_mebibytes: float
    failure: str | None


def choose_methods(names: Sequence[str]) -> tuple[str, ...]:
    """The methods asked for; all where none is named.

    Raises:
        HopsError: There is no such method.
    """
    unknown = [name for name in names if name not in METHODS]
    if unknown:
        raise HopsError(f"No method {', '.join(unknown)}; expected some of {', '.join(METHODS)}.")
    return tuple(dict.fromkeys(names)) or tuple(METHODS)


def score_methods(
    arguments: TaskArguments, names: Sequence[str], folder: Path
) -> list[ScoredMethod]:
    """Score with each method what has not been scored with the same arguments before.

    A method that fails is tried again by the next call.

    Args:
        arguments: the task.
        names: methods of the registry.
        folder: where scores are kept.

    Raises:
        HopsError, InputError: The task itself is unusable.
    """
    task = AttributionTask.read(arguments)
    read = _digest_of_files(arguments)
    scored = []
    for name in tqdm(names, desc="scoring", unit="method"):
        key = _key(METHODS[name], arguments, read)
        if not _is_there(folder, name, key):
            _score_apart(name, key, arguments, folder)
        scored.append(_read(name, METHODS[name], task, folder))
    return scored


def _key(method: Method, arguments: TaskArguments, read: dict[str, str]) -> dict[str, Any]:
    return {"method": repr(method), "arguments": repr(arguments), "sha256": read}


def _digest_of_files(arguments: TaskArguments) -> dict[str, str]:
    """SHA-256 of all that the task reads; of a folder, its models and tokenizers."""
    digests = {}
    for name in ("dataset", "queries", "old", "new"):
        given = getattr(arguments, name)
        path = Path(given) if given is not None else None
        if path is None or not path.exists():
            continue
        files = sorted(path.glob("*")) if path.is_dir() else [path]
        whole = hashlib.sha256()
        for file in files:
            if file.is_file():
                with file.open("rb") as content:
                    whole.update(hashlib.file_digest(content, "sha256").digest())
        digests[name] = whole.hexdigest()
    return digests


def _is_there(folder: Path, name: str, key: dict[str, Any]) -> bool:
    report = folder / f"{name}.json"
    if not report.is_file() or not (folder / f"{name}.npy").is_file():
        return False
    known = read_json(report)
    return known.get("failure") is None and known.get("key") == key


def _score_apart(name: str, key: dict[str, Any], arguments: TaskArguments, folder: Path) -> None:
    """Run one method in a process of its own; whatever ends it is its failure.

    The processes come from one server that has imported what they need and done nothing else, so
    that memory and seconds are the method's, and no import is paid for each.
    """
    context = get_context("forkserver")
    context.set_forkserver_preload(_IMPORTED_ONCE)
    process = context.Process(target=_score_and_write, args=(name, key, arguments, folder))
    (folder / f"{name}.json").unlink(missing_ok=True)
    process.start()
    process.join()
    if not (folder / f"{name}.json").is_file():
        _write_report(folder, name, key, failure=f"its process ended with {process.exitcode}")


def _score_and_write(
    name: str, key: dict[str, Any], arguments: TaskArguments, folder: Path
) -> None:
    import os

    from attribution.errors import AttributionError
    from if_query.errors import InputError

    if "OMP_NUM_THREADS" not in os.environ and METHODS[name].needs_new:
        import torch

        torch.set_num_threads(1)
    method = METHODS[name]
    started = time.monotonic()
    try:
        method.check()
        task = AttributionTask.read(arguments)
        scores = np.asarray(method.scores(task))
        if not np.isfinite(scores).all():
            raise InputError("a score is not finite")
    except (AttributionError, HopsError, InputError, ValueError, ImportError) as error:
        _write_report(folder, name, key, failure=str(error).strip().split("\n")[0])
        return
    except Exception as error:  # a bug in one method is that method's line, and told in full
        traceback.print_exc()
        _write_report(folder, name, key, failure=f"{type(error).__name__}: {error}")
        return
    seconds = time.monotonic() - started
    _write_array(folder / f"{name}.npy", scores)
    _write_report(folder, name, key, seconds=seconds)


def _write_array(path: Path, array: np.ndarray) -> None:
    import io

    content = io.BytesIO()
    np.save(content, array, allow_pickle=False)
    write_bytes(path, content.getvalue())


def _write_report(
    folder: Path,
    name: str,
    key: dict[str, Any],
    *,
    seconds: float = 0.0,
    failure: str | None = None,
) -> None:
    write_json(
        folder / f"{name}.json",
        {
            "key": key,
            "seconds": round(seconds, 3),
            "peak_mebibytes": round(_peak_mebibytes(), 1),
            "failure": failure,
        },
    )


def _peak_mebibytes() -> float:
    """The most memory this process has held.

    Linux hands ``ru_maxrss`` down from the process that started this one, so the kernel's own
    high-water mark of the address space is read where there is one.
    """
    status = Path("/proc/self/status")
    if status.is_file():
        line = next(one for one in status.read_text().splitlines() if one.startswith("VmHWM"))
        return float(line.split()[1]) / 1024
    unit = 1 if sys.platform == "darwin" else 1024
    return resource.getrusage(resource.RUSAGE_SELF).ru_maxrss * unit / 2**20


def _read(name: str, method: Method, task: AttributionTask, folder: Path) -> ScoredMethod:
    report = read_json(folder / f"{name}.json")
    found: dict[str, Any] = {"scores": None, "judged": None}
    if report["failure"] is None:
        try:
            scores = np.load(folder / f"{name}.npy", allow_pickle=False)
        except (OSError, ValueError, EOFError) as error:
            raise HopsError(f"{folder / name}.npy: not scores ({error}); delete it.") from error
        found = {"scores": scores, "judged": ~method.validation_queries(task)}
    return ScoredMethod(
        name,
        method.title,
        **found,
        seconds=report["seconds"],
        peak_mebibytes=report["peak_mebibytes"],
        failure=report["failure"],
    )
