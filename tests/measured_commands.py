"""Runs the real commands in processes of their own and says what each took; not a test itself.

    python measured_commands.py < jobs.json > found.json

A job is {"command": "fit_hessians" or "run_query", "arguments": […], "folder": …}. The packages are
imported once and each job is a fork, so that it costs its own work and not ten seconds of imports.
Of each job: its exit status, what it printed, its peak memory as the kernel saw it, that of tensors
on CUDA, and the most that was ever in its output folder: looked at just before anything is removed
or renamed, for in between it only grows. The first job of all does nothing: its peak is that of the
bare process.
"""

import io
import json
import os
import sys
import traceback
from contextlib import redirect_stdout
from importlib import import_module
from pathlib import Path
from typing import Any

from if_query.device_memory import peak_memory

SHRINKING = {"os.remove", "os.rename", "os.rmdir", "shutil.rmtree"}

MODULES = [
    "if_query.fit_hessians",
    "if_query.plan.fit_plan",
    "if_query.plan.query_plan",
    "if_query.results",
    "if_query.run_query",
    "transformers.models.olmo2.modeling_olmo2",
]
"""What either command imports in the end."""


def warm_up() -> None:
    """First calls of matrix libraries take memory of their own, which is no plan's business."""
    import torch

    matrix = torch.eye(64, requires_grad=True)
    (matrix @ matrix).sum().backward()
    torch.linalg.eigh(matrix.detach().double())


def size_of(folder: Path) -> int:
    size = 0
    for path in folder.rglob("*"):
        try:
            size += path.stat().st_size if path.is_file() else 0
        except FileNotFoundError:
            continue
    return size


def run(job: dict[str, Any]) -> dict[str, Any]:
    """Run a job in this process."""
    folder, printed, most, looking = Path(job["folder"]), io.StringIO(), [0], [False]

    def look(event: str, arguments: tuple[Any, ...]) -> None:
        if event in SHRINKING and not looking[0]:
            looking[0] = True
            most[0] = max(most[0], size_of(folder))
            looking[0] = False

    sys.addaudithook(look)
    module = sys.modules[f"if_query.{job['command']}"]
    with redirect_stdout(printed):
        module.main(job["arguments"])
    return {
        "printed": printed.getvalue(),
        "disk": max(most[0], size_of(folder)),
        "device peak": peak_memory().device,
    }


def in_a_fork(job: dict[str, Any]) -> dict[str, Any]:
    """Run a job in a child; with its peak memory in bytes."""
    reading, writing = os.pipe()
    child = os.fork()
    if not child:
        status = 1
        try:
            found = run(job) if job else {}
            os.write(writing, json.dumps(found).encode())
            status = 0
        except BaseException:  # a fork must end here, whatever it was
            traceback.print_exc()
        finally:
            os._exit(status)
    os.close(writing)
    with os.fdopen(reading, "rb") as pipe:
        content = pipe.read()
    _, status, usage = os.wait4(child, 0)
    return {
        **(json.loads(content) if content else {}),
        "status": os.waitstatus_to_exitcode(status),
        "peak": usage.ru_maxrss * 1024,
    }


def main() -> None:
    jobs = json.load(sys.stdin)
    for name in MODULES:
        import_module(name)
    warm_up()
    found = [in_a_fork(job) for job in [{}, *jobs]]
    json.dump(found, sys.stdout)


if __name__ == "__main__":
    main()
