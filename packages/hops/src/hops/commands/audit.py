"""The command that checks documents."""

import json
from collections import Counter
from pathlib import Path
from typing import Annotated, ClassVar

import tyro
from pydantic import ConfigDict
from pydantic.dataclasses import dataclass

from hops.audit import CHECKS, AuditReport, audit
from hops.documents import read_documents, registry_of


@dataclass(frozen=True, config=ConfigDict(extra="forbid"))
class Audit:
    """Check documents: leaks, false labels, duplicates; exit status 1 on critical findings."""

    name: ClassVar[str] = "audit"
    file: Annotated[Path, tyro.conf.Positional]
    """The JSONL file to check."""
    strict: bool = False
    """Exit with status 1 on warnings as well (duplicates, constants that are missing, ...)."""
    seed_path: Path | None = None
    """Documents that name the functions; needed where FILE holds wrappers only."""
    diversity_docs: int = 50
    """Documents drawn about each function to measure diversity."""
    json: bool = False
    """Print the whole report, with every finding, as JSON instead of a table."""

    def run(self) -> AuditReport:
        """Print the report."""
        documents = read_documents(self.file)
        world = registry_of(read_documents(self.seed_path)) if self.seed_path else None
        report = audit(documents, world=world, diversity_docs=self.diversity_docs)
        print(_json(report) if self.json else _table(self.file, report))
        if not report.passes(strict=self.strict):
            raise SystemExit(1)
        return report


def _json(report: AuditReport) -> str:
    return json.dumps(report.to_json(), indent=2, ensure_ascii=False)


def _table(file: Path, report: AuditReport) -> str:
    shortest, median, longest = report.lengths
    roles = ", ".join(f"{count} {role}" for role, count in report.roles.items())
    lines = [
        f"{file}: {report.num_rows} rows, {report.num_distinct_uids} distinct uids; {roles}; "
        f"{report.num_direct} direct",
        f"lengths in characters: {shortest} to {longest}, median {median}",
        "",
        f"{'check':<20}{'severity':<10}{'rows':>6}  what it means; the first such line",
    ]
    counts = Counter(finding.check for finding in report.findings)
    for check, (severity, meaning) in CHECKS.items():
        lines.append(f"{check:<20}{severity:<10}{counts[check]:>6}  {meaning}")
        first = next((one for one in report.findings if one.check == check), None)
        if first is not None:
            lines.append(f"{'':<38}line {first.line}: {first.detail}")
    lines.append("")
    for role, one in report.diversity.items():
        lines.append(
            f"diversity of {role}, {one.num_documents} documents of each of {one.num_functions} "
            f"functions: distinct 3-grams {one.distinct_3:.3f}, "
            f"compression ratio {one.compression_ratio:.2f}"
        )
    lines.append(f"{report.count('critical')} critical, {report.count('warning')} warnings")
    return "\n".join(lines)
