"""The command influence-report: the results of a query run as one HTML file.

    influence-report RESULTS_DIR

The file needs no server and no network, and shows for each query its most helpful and most harmful
training examples, where all others lie, and what the numbers mean. Nothing else is written.
"""

from collections.abc import Sequence
from pathlib import Path
from typing import Annotated

import tyro
from pydantic import ConfigDict
from pydantic.dataclasses import dataclass

from if_query.command_line import parse
from if_query.errors import InputError, command_errors

REPORT_NAME = "report.html"


@dataclass(frozen=True, config=ConfigDict(extra="forbid"))
class InfluenceReportConfig:
    """Show the results of run-query as one HTML file that opens in any browser, offline.

    A positive score is helpful: training more on that example lowers the query's loss.
    """

    results_dir: Annotated[Path, tyro.conf.Positional, tyro.conf.arg(metavar="RESULTS_DIR")]
    """Folder that run-query wrote."""
    output: Path | None = None
    """File to write; report.html in the results folder by default."""
    factors_dir: Path | None = None
    """Factors folder of these results, for the page on curvature; by default where it was when
    the query ran."""
    title: str | None = None
    """Title of the page; the name of the results folder by default."""
    figures: Path | None = None
    """Folder to write the main plots to as well, as SVG and PNG."""


def write_report(config: InfluenceReportConfig) -> Path:
    """Write the report; the library form of the command.

    Returns:
        The HTML file.

    Raises:
        InputError: on bad input, before anything is written.
        OSError: if a file could not be written; no partial one is left.
    """
    from if_query.influence_results import InfluenceResults
    from if_query.report.health import describe_health, find_factors
    from if_query.report.page import render_report
    from if_query.whole_files import replacing

    output = config.output or config.results_dir / REPORT_NAME
    results = InfluenceResults.load(config.results_dir)
    _check_output(output)
    if config.figures is not None and config.figures.exists() and not config.figures.is_dir():
        raise InputError(f"{config.figures}: expected a folder for figures, found a file")
    factors = find_factors(results.metadata, config.factors_dir)
    health = describe_health(results.metadata, factors)
    page = render_report(results, factors, health, config.title)
    if config.figures is not None:
        from if_query.report.figures import write_figures

        write_figures(results, health, config.figures)
    with replacing(output) as temporary:
        temporary.write_text(page, encoding="utf-8", newline="\n")
    return output


def _check_output(path: Path) -> None:
    """Refuse a place that holds anything but an older report."""
    from if_query.report.page import GENERATOR

    if path.is_dir():
        raise InputError(f"{path}: expected a file to write the report to, found a folder")
    if path.is_file():
        with path.open("rb") as file:
            if GENERATOR.encode() not in file.read(2000):
                raise InputError(
                    f"{path}: there is another file, not a report of this command; choose "
                    "another name or remove it"
                )
    for parent in path.parents:
        if parent.exists() and not parent.is_dir():
            raise InputError(f"{path}: {parent} is a file, expected a folder")


@command_errors()
def main(args: Sequence[str] | None = None) -> None:
    """The console command."""
    config = parse(InfluenceReportConfig, program="influence-report", args=args)
    output = write_report(config)
    print(f"the report is {output}: open it in a browser, it needs no network")
    if config.figures is not None:
        print(f"figures are in {config.figures}")


if __name__ == "__main__":
    main()
