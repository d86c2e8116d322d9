"""Command lines: flags from a configuration class, ``--config FILE.yaml``, one-line errors."""

import contextlib
import io
import re
import shlex
import sys
from collections.abc import Mapping, Sequence
from dataclasses import fields
from pathlib import Path
from typing import Annotated, Any, TypeVar

import tyro
import yaml
from pydantic import Field

from if_query.errors import InputError

T = TypeVar("T")

Gigabytes = Annotated[float, Field(gt=0, le=1e9)]
"""Memory in 10⁹ bytes: a number that is one, and no infinity."""
SaveInterval = Annotated[float, Field(ge=0)]
"""Seconds; infinity never saves."""

_INVALID = re.compile(
    r"validation errors? for \w+ (?P<field>\w+) (?P<reason>.+?) "
    r"\[type=\w+, input_value=(?P<value>.*?), input_type=\w+\]"
)
"""The first value that the configuration class refuses, as tyro passes it on."""
_UNREADABLE = re.compile(
    r"^Error parsing (?P<flag>--[\w-]+): .*?(?P<kind>INT|FLOAT|int|float)\b.*?'(?P<value>[^']*)'"
)
"""A value that is not even a number."""
_BOX = re.compile(r"^[╭│╰]\s?|\s*[│╮╯]$")


def parse(
    config_type: type[T],
    *,
    program: str,
    args: Sequence[str] | None = None,
    description: str | None = None,
) -> T:
    """Read a configuration from the command line.

    Every field is a flag, with hyphens or underscores. ``--config FILE.yaml`` gives fields first;
    flags beside it win.

    Args:
        config_type: a dataclass; pydantic's where values need checks of their own.
        program: the command's name, for its help.
        args: the arguments; those of the process by default.
        description: what its help begins with; the class's docstring by default.

    Returns:
        The configuration.

    Raises:
        InputError: on bad usage, in one line.
        SystemExit: with status 0, after ``--help``.
    """
    given = _expand_config(list(sys.argv[1:] if args is None else args))
    complaint = io.StringIO()
    try:
        with contextlib.redirect_stderr(complaint):
            return tyro.cli(config_type, prog=program, description=description, args=given)
    except SystemExit as leaving:
        if not leaving.code:
            raise
        raise InputError(_one_line(complaint.getvalue(), program)) from leaving


def _expand_config(args: list[str]) -> list[str]:
    """Replace ``--config FILE`` by the flags that the file stands for, before all others."""
    for place, flag in enumerate(args):
        if flag == "--config" or flag.startswith("--config="):
            inline = flag.partition("=")[2]
            rest = args[place + 1 :]
            if not inline and not rest:
                raise InputError("--config: expected a YAML file")
            path = inline or rest.pop(0)
            return _flags_of(Path(path)) + args[:place] + rest
    return args


def _flags_of(path: Path) -> list[str]:
    try:
        content = yaml.safe_load(path.read_text(encoding="utf-8"))
    except (OSError, UnicodeDecodeError) as error:
        raise InputError(f"{path}: cannot be read: {error}") from error
    except yaml.YAMLError as error:
        raise InputError(f"{path}: not YAML: {' '.join(str(error).split())}") from error
    if not isinstance(content, dict):
        raise InputError(f"{path}: expected a mapping of fields, got {type(content).__name__}")
    flags: list[str] = []
    for key, value in content.items():
        name = str(key).replace("_", "-")
        if isinstance(value, bool):
            flags.append(f"--{name}" if value else f"--no-{name}")
        elif isinstance(value, list):
            flags += [f"--{name}", *map(str, value)]
        else:
            flags += [f"--{name}", str(value)]
    return flags


def _one_line(complaint: str, program: str) -> str:
    """The title and the first part of a boxed message."""
    lines = [_BOX.sub("", line).strip() for line in complaint.splitlines()]
    body: list[str] = []
    for line in lines[2 if _is_rule("".join(lines[1:2])) else 1 :]:
        if not line or _is_rule(line):
            break
        body.append(line)
    title = lines[0].strip("─ ") if lines else "bad usage"
    text = " ".join(body) or title
    if invalid := _INVALID.search(text):
        flag = f"--{invalid['field'].replace('_', '-')}"
        reason = invalid["reason"][0].lower() + invalid["reason"][1:]
        return f"{flag}: {reason}, got {invalid['value']} (see {program} --help)"
    if unreadable := _UNREADABLE.search(text):
        number = {"int": "a whole number", "float": "a number"}[unreadable["kind"].lower()]
        flag, value = unreadable["flag"], unreadable["value"]
        return f"{flag}: expected {number}, got {value!r} (see {program} --help)"
    return f"{text} (see {program} --help)" if title in text else f"{title}: {text}"


def _is_rule(line: str) -> bool:
    # Hyphens where the terminal has no lines to draw; then there is one below the title too.
    return bool(line) and set(line) <= {"─", "-"}


def describe_arguments(config: Any) -> dict[str, Any]:
    """A configuration's fields as JSON values, for the metadata of results."""
    return {
        name: str(value) if isinstance(value, Path) else value
        for name, value in vars(config).items()
        if not name.startswith("__")
    }


def command_line_of(program: str, config_type: type[Any], arguments: Mapping[str, Any]) -> str:
    """The shell command that stands for recorded arguments: what differs from the defaults.

    Args:
        program: the command's name.
        config_type: its configuration class, for the defaults.
        arguments: as :func:`describe_arguments` recorded them; unknown ones are left out.
    """
    words = [program]
    for one in fields(config_type):
        value = arguments.get(one.name, one.default)
        if one.name not in arguments or value == one.default or value is None:
            continue
        flag = f"--{one.name.replace('_', '-')}"
        if isinstance(value, bool):
            words.append(flag if value else f"--no-{flag[2:]}")
        else:
            words += [flag, str(value)]
    return "uv run " + shlex.join(words)
