"""How the commands report errors."""

import errno
import os
from pathlib import Path

import pytest
from if_query.errors import InputError, command_errors, os_errors_name


def run(error: BaseException) -> None:
    with command_errors():
        raise error


@pytest.mark.parametrize(
    ("error", "line"),
    [
        (InputError("bad thing"), "error: bad thing\n"),
        (InputError("two\n  lines\n"), "error: two lines\n"),
        (
            PermissionError(errno.EACCES, "x", "/some/file"),
            "error: /some/file: Permission denied\n",
        ),
        (OSError("message alone"), "error: message alone\n"),
        (
            OSError(errno.ENOSPC, "x", b"out/scores.npy"),
            "error: out/scores.npy: No space left on device; partial files were removed, "
            "free some space and run again\n",
        ),
    ],
)
def test_input_and_file_errors_become_one_line_and_status_2(
    error: Exception, line: str, capsys: pytest.CaptureFixture[str]
) -> None:
    with pytest.raises(SystemExit) as caught:
        run(error)
    assert caught.value.code == 2
    assert capsys.readouterr() == ("", line)


@pytest.mark.parametrize(
    "error", [ValueError("bug"), KeyError("bug"), RuntimeError("bug"), KeyboardInterrupt()]
)
def test_a_bug_keeps_its_traceback(
    error: BaseException, capsys: pytest.CaptureFixture[str]
) -> None:
    with pytest.raises(type(error)) as caught:
        run(error)
    assert caught.value is error
    assert capsys.readouterr() == ("", "")


def test_it_decorates_a_command_and_passes_its_result_on() -> None:
    @command_errors()
    def command(value: int) -> int:
        if value < 0:
            raise InputError("negative")
        return value + 1

    assert command(1) == 2
    with pytest.raises(SystemExit):
        command(-1)
    assert command(2) == 3


@pytest.mark.skipif(not Path("/dev/full").exists(), reason="the device that is always full")
def test_a_full_disk_names_the_file_that_was_being_written(
    capsys: pytest.CaptureFixture[str],
) -> None:
    with (
        pytest.raises(SystemExit),
        command_errors(),
        os_errors_name("results/influences.csv"),
        open("/dev/full", "w") as file,
    ):
        file.write("x")
    assert capsys.readouterr().err == (
        "error: results/influences.csv: No space left on device; partial files were removed, "
        "free some space and run again\n"
    )


def test_an_error_that_names_its_file_keeps_the_name() -> None:
    with pytest.raises(FileNotFoundError) as caught, os_errors_name("other"):
        os.stat("/nonexistent-file")
    assert caught.value.filename == "/nonexistent-file"
