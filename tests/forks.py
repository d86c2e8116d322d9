"""Runs functions in processes of their own without new imports; for the tests of all packages.

A command in a fork of the test process costs its own work; a new interpreter would first spend five
seconds on torch and transformers. What is proved is the same: another process, with its own exit
status and its own end.
"""

import os
import runpy
import signal
import sys
import tempfile
import traceback
from collections.abc import Callable
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any, NamedTuple

TOUCHING = {"open", "os.listdir", "os.mkdir", "os.remove", "os.rename", "os.scandir"}
"""What a process is about to do to files, as audit events."""


class Done(NamedTuple):
    """What a process left: its exit status, or minus the signal that ended it, and its output."""

    returncode: int
    stdout: str
    stderr: str


@dataclass
class Fork:
    """A process that runs a function and then ends, as a program would.

    Attributes:
        function: what to run; SystemExit and other exceptions give the status as in a program.
        environment: variables that this process has beyond those of the tests.
    """

    function: Callable[[], Any]
    environment: dict[str, str] = field(default_factory=dict)

    def __post_init__(self) -> None:
        self._printed = [tempfile.TemporaryFile() for _ in range(2)]  # noqa: SIM115
        sys.stdout.flush()
        sys.stderr.flush()
        self.pid = os.fork()
        if not self.pid:
            self._run()

    def _run(self) -> None:
        status = 1
        try:
            for number, file in enumerate(self._printed, start=1):
                os.dup2(file.fileno(), number)
            sys.stdout, sys.stderr = open(1, "w"), open(2, "w")  # noqa: SIM115
            os.environ.update(self.environment)
            self.function()
            status = 0
        except SystemExit as leaving:
            status = leaving.code if isinstance(leaving.code, int) else bool(leaving.code)
        except BaseException:  # a fork must end here, whatever it was
            traceback.print_exc()
        finally:
            sys.stdout.flush()
            sys.stderr.flush()
            os._exit(status)

    def wait(self) -> Done:
        """Wait for its end."""
        try:
            _, status = os.waitpid(self.pid, 0)
        except BaseException:  # the test's time is over
            os.kill(self.pid, signal.SIGKILL)
            os.waitpid(self.pid, 0)
            raise
        texts = []
        for file in self._printed:
            with file:
                file.seek(0)
                texts.append(file.read().decode())
        return Done(os.waitstatus_to_exitcode(status), *texts)


def script(path: Path, *arguments: object, folder: Path | None = None) -> Callable[[], None]:
    """What ``python path arguments`` does, as a function for a fork; in a folder or where it is."""

    def run() -> None:
        if folder is not None:
            os.chdir(folder)
        sys.argv = [str(path), *map(str, arguments)]
        sys.path.insert(0, str(path.parent))
        runpy.run_path(str(path), run_name="__main__")

    return run


def kill_when(function: Callable[[], Any], appeared: Callable[[], Any]) -> None:
    """Run a function in a fork that SIGKILL ends as soon as something has appeared on disk.

    The process itself looks, each time that it is about to touch a file, and kills itself at once:
    no moment is missed and nothing changes between the look and the kill.
    """

    def run() -> None:
        looking = False

        def look(event: str, arguments: tuple[Any, ...]) -> None:
            nonlocal looking
            if event in TOUCHING and not looking:
                looking = True
                if appeared():
                    os.kill(os.getpid(), signal.SIGKILL)
                looking = False

        sys.addaudithook(look)
        function()

    status, _, errors = Fork(run).wait()
    assert status == -signal.SIGKILL, f"ended with {status}, not killed: {errors[-2000:]}"


def together(functions: list[Callable[[], Any]]) -> None:
    """Run functions at the same time, each as one rank of a group of processes.

    They meet as torchrun would let them: the test process keeps the store that they talk through,
    so no free port has to be guessed.
    """
    from torch.distributed import TCPStore

    size = len(functions)
    store = TCPStore("127.0.0.1", 0, size, is_master=True, wait_for_workers=False)
    common = {
        "MASTER_ADDR": "127.0.0.1",
        "MASTER_PORT": str(store.port),
        "TORCHELASTIC_USE_AGENT_STORE": "True",
        "WORLD_SIZE": str(size),
        "LOCAL_WORLD_SIZE": str(size),
    }
    ranks = [
        Fork(function, {**common, "RANK": str(rank), "LOCAL_RANK": str(rank)})
        for rank, function in enumerate(functions)
    ]
    for rank in ranks:
        status, _, errors = rank.wait()
        assert status == 0, errors[-3000:]
