"""One table for the screen and for Markdown."""

import sys
from collections.abc import Sequence
from dataclasses import dataclass

from rich.console import Console
from rich.table import Table


@dataclass(frozen=True)
class ReportTable:
    """Cells as they are printed; all columns but the first are numbers."""

    title: str
    columns: Sequence[str]
    rows: Sequence[Sequence[str]]

    def screen(self) -> Table:
        """For rich."""
        table = Table(title=self.title)
        for place, column in enumerate(self.columns):
            table.add_column(column, justify="right" if place else "left")
        for row in self.rows:
            table.add_row(*row)
        return table

    def markdown(self) -> str:
        """The same as Markdown, the title as a line above."""
        lines = [
            f"{self.title}:",
            "",
            f"| {' | '.join(self.columns)} |",
            "|---" + "|---:" * (len(self.columns) - 1) + "|",
            *(f"| {' | '.join(row)} |" for row in self.rows),
        ]
        return "\n".join(lines) + "\n"


def wide_console() -> Console:
    """A console that does not fold wide tables where its output goes to a file."""
    return Console(width=None if sys.stdout.isatty() else 130)
