"""Errors of the user's making, and how the commands report them: one line, exit status 2."""

import errno
import os
import sys
from collections.abc import Iterator
from contextlib import contextmanager
from typing import NoReturn

_DISK_FULL = (errno.ENOSPC, errno.EDQUOT)


class InputError(ValueError):
    """Bad input from the user; the message says what was expected, what arrived, what to do."""


@contextmanager
def command_errors() -> Iterator[None]:
    """Turn errors of input and of the file system into ``error: <message>`` and exit status 2.

    Only :class:`InputError` and :class:`OSError` are turned; a bug keeps its traceback. The
    message of a full disk promises that partial files were removed: whatever writes inside this
    context writes under a temporary name and removes it when it fails. Works as a decorator too.

    Raises:
        SystemExit: with status 2, after one line on stderr.
    """
    try:
        yield
    except InputError as error:
        _leave(str(error), error)
    except OSError as error:
        _leave(_describe(error), error)


@contextmanager
def os_errors_name(path: str | os.PathLike[str]) -> Iterator[None]:
    """Let an OSError that names no file, as failed writes do, name ``path``.

    Raises:
        OSError: the same error, with ``filename`` set.
    """
    try:
        yield
    except OSError as error:
        if error.filename is not None or error.errno is None:
            raise
        reason = os.strerror(error.errno)
        raise OSError(error.errno, reason, os.fspath(path)) from error


def _describe(error: OSError) -> str:
    if error.errno is None:
        return str(error) or type(error).__name__
    reason = os.strerror(error.errno)
    message = f"{os.fsdecode(error.filename)}: {reason}" if error.filename else reason
    if error.errno in _DISK_FULL:
        return f"{message}; partial files were removed, free some space and run again"
    return message


def _leave(message: str, error: Exception) -> NoReturn:
    line = " ".join(part.strip() for part in message.splitlines() if part.strip())
    print(f"error: {line}", file=sys.stderr)
    raise SystemExit(2) from error
