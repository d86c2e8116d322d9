"""The command line: ``hops COMMAND``.  One-line errors on stderr with exit status 2."""

import contextlib
import io
import re
import sys
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import tyro
from pydantic import ValidationError

from hops.commands import COMMANDS, Train
from hops.errors import HopsError
from hops.files import read_json

_TOUR = """HOPS: a benchmark for training-data attribution whose true answers are known.

Base functions return a constant, wrappers call them, and documents teach a small model both. In
order:
  a world      seeds (its functions), base and wrapper (documents about them), resolutions (where
               their calls end), properties (what a function and its wrappers share),
               distractors (ordinary text), alternating and combine (put files together),
               audit (checks them)
  its models   train (an old model, from distractors), add-tokens and check-tokens (function
               names as single tokens), train (the new model, from the documents)
  questions    logit-eval (what a model answers), plot (draws it), queries (what run-query reads)
  two names    second-names (functions with a second name, and documents that teach it)
  all of it    world (the commands above from a preset: quickstart, two-hop or second-name)

Each command writes whole files, says what it wrote, and is a function of the package as well.
"""


def main(arguments: Sequence[str] | None = None) -> None:
    """Run one command.

    Args:
        arguments: The words after ``hops``; those of the process by default.

    Raises:
        SystemExit: With status 2 after a user's mistake, 1 when a check failed.
    """
    words = list(sys.argv[1:] if arguments is None else arguments)
    try:
        command = parse(words)
        command.run()
    except HopsError as error:
        _fail(str(error))
    except OSError as error:
        _fail(f"{error.filename or 'file'}: {error.strerror or error}.")
    except KeyboardInterrupt:
        sys.exit(130)


def parse(words: Sequence[str]) -> Any:
    """Turn the words after ``hops`` into a command object.

    ``hops train --config FILE.json`` takes the arguments of the file as defaults; it may name
    all of them.

    Raises:
        HopsError: The words are not a command line.
        SystemExit: Help was asked for (status 0).
    """
    words, defaults = _take_config(list(words))
    messages = io.StringIO()
    try:
        with contextlib.redirect_stderr(messages):
            return tyro.extras.subcommand_cli_from_dict(
                {command.name: command for command in COMMANDS},
                prog="hops",
                description=_TOUR,
                args=[*words[:1], *defaults, *words[1:]],
            )
    except SystemExit as stop:
        if stop.code in (0, None):
            raise
        raise HopsError(_one_line(messages.getvalue())) from stop
    except ValidationError as error:
        first = error.errors()[0]
        field = ".".join(str(part) for part in first["loc"])
        raise HopsError(f"{field}: {first['msg']}.") from error


def _take_config(words: list[str]) -> tuple[list[str], list[str]]:
    """Replace ``--config FILE`` of ``train`` by the arguments that the file holds."""
    if "--config" not in words or words[0] != Train.name:
        return words, []
    place = words.index("--config")
    if place + 1 == len(words):
        raise HopsError("--config needs a JSON file.")
    path = Path(words[place + 1])
    rest = words[:place] + words[place + 2 :]
    value = read_json(path)
    if not isinstance(value, dict):
        raise HopsError(f"{path}: expected a JSON object of arguments, got {type(value).__name__}.")
    value = value.get("arguments", value)
    given = {word.split("=")[0].replace("_", "-") for word in rest if word.startswith("--")}
    known = set(Train.__dataclass_fields__)
    defaults: list[str] = []
    for name, argument in value.items():
        if name.replace("-", "_") not in known:
            raise HopsError(f"{path}: {name} is no argument of `hops train`.")
        flag = "--" + name.replace("_", "-")
        if {flag, "--no-" + flag[2:]} & given or argument in (None, []):
            continue
        if isinstance(argument, bool):
            defaults.append(flag if argument else "--no-" + flag[2:])
        else:
            values = argument if isinstance(argument, list) else [argument]
            defaults += [flag, *map(str, values)]
    return rest, defaults


def _one_line(box: str) -> str:
    """Join the text of a framed message, without the frame and the hint to ask for help."""
    lines = [re.sub(r"[│╭╮╰╯]", " ", line).strip() for line in box.splitlines()]
    lines = [re.sub(r"^─+\s*|\s*─+$", "", line) for line in lines]
    text = " ".join(line for line in lines if line)
    return re.split(r"\s*For full helptext", text)[0] + " (see `hops --help`)"


def _fail(message: str) -> None:
    print(f"hops: {' '.join(message.split())}", file=sys.stderr)
    sys.exit(2)


if __name__ == "__main__":
    main()
