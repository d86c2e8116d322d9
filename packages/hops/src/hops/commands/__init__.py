"""The commands of ``hops``: each a set of arguments with a ``run`` method.

The command line parses into these classes and :mod:`hops.world` builds them directly, so both
do the same.
"""

import dataclasses
import shlex
from typing import Any, Protocol, runtime_checkable

from hops.commands.audit import Audit
from hops.commands.documents import (
    Alternating,
    Base,
    Combine,
    Distractors,
    Properties,
    Resolutions,
    SecondNames,
    Seeds,
    Wrapper,
)
from hops.commands.models import AddTokens, CheckTokens, LogitEval, Plot, Queries, Train
from hops.commands.world import MakeWorld

__all__ = [
    "COMMANDS",
    "AddTokens",
    "Alternating",
    "Audit",
    "Base",
    "CheckTokens",
    "Combine",
    "Command",
    "Distractors",
    "LogitEval",
    "MakeWorld",
    "Plot",
    "Properties",
    "Queries",
    "Resolutions",
    "SecondNames",
    "Seeds",
    "Train",
    "Wrapper",
    "shell_line",
]


@runtime_checkable
class Command(Protocol):
    """Arguments that can be run."""

    def run(self) -> object:
        """Do what the command says; print what was written."""
        ...


COMMANDS: tuple[type[Any], ...] = (
    Seeds,
    Base,
    Wrapper,
    Resolutions,
    Properties,
    SecondNames,
    Alternating,
    Combine,
    Distractors,
    Audit,
    AddTokens,
    CheckTokens,
    Train,
    LogitEval,
    Plot,
    Queries,
    MakeWorld,
)


def shell_line(command: Any) -> str:
    """Write the shell command that does what ``command.run()`` does; defaults are left out."""
    words = ["hops", command.name]
    for item in dataclasses.fields(command):
        value = getattr(command, item.name)
        if item.default is not dataclasses.MISSING and value == item.default:
            continue
        flag = "--" + item.name.replace("_", "-")
        if isinstance(value, bool):
            words.append(flag if value else "--no-" + flag[2:])
        elif isinstance(value, tuple):
            words += [flag, *map(str, value)]
        else:
            words += [flag, str(value)]
    return shlex.join(words)
