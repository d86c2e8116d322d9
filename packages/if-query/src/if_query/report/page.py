"""The page: template, styles, scripts and data put into one HTML file."""

import base64
import hashlib
import html
import re
from importlib.resources import files
from typing import Any

from if_query.errors import InputError
from if_query.influence_results import InfluenceResults
from if_query.report.details import Details, read_details
from if_query.report.encoding import to_script_json
from if_query.report.health import Factors
from if_query.report.limits import LADDER, MAX_BYTES
from if_query.report.payload import make_payload
from if_query.report.reading import describe_reading
from if_query.report.shown import select_all

GENERATOR = "if-query influence-report"
"""Names the program in the page, by which an older report is told from other files."""
SCRIPTS = (
    "dom.js", "data.js", "text.js", "download.js", "charts.js", "lists.js", "queries.js",
    "query.js", "pair.js", "map.js", "map_canvas.js", "health.js", "reading.js", "main.js",
)  # fmt: skip
_PLACEHOLDER = re.compile(r"\{\{(\w+)\}\}")


def render_report(
    results: InfluenceResults,
    factors: Factors | None,
    health: dict[str, Any],
    title: str | None,
) -> str:
    """The report of a run, within the widest limits that keep it under 5 MB.

    Args:
        results: the run.
        factors: what it was computed with; None where that is not at hand.
        health: of the curvature, by :func:`~if_query.report.health.describe_health`.
        title: the page's; by default it names the folder.

    Raises:
        InputError: if a file of the run or of the factors is not readable.
    """
    first = LADDER[0]
    shown = select_all(results, first.num_queries, first.rows)
    details: Details = read_details(results, shown)
    fixed = {
        "title": title or f"Influence report: {results.folder.resolve().name}",
        "folder": str(results.folder),
        "format": results.metadata["result_arguments"]["format"],
        "reading": describe_reading(results.metadata, factors),
        "health": health,
    }
    for limits in LADDER:
        page = render_page({**fixed, **make_payload(results, shown, details, limits)})
        if len(page.encode()) <= MAX_BYTES:
            return page
    raise InputError(
        f"{results.folder}: the report would be larger than {MAX_BYTES / 1e6:.1f} MB even with the "
        "fewest rows; ids or the names of modules must be very long"
    )


def render_page(payload: dict[str, Any]) -> str:
    """One self-contained HTML file that shows ``payload``."""
    assets = files("if_query.report") / "assets"
    style = (assets / "report.css").read_text(encoding="utf-8")
    scripts = [(assets / name).read_text(encoding="utf-8") for name in SCRIPTS]
    script = '(() => {\n"use strict";\n' + "\n".join(scripts) + "})();\n"
    content = {
        "generator": GENERATOR,
        "title": html.escape(_one_line(payload["title"])),
        # Nothing but these two blocks may run or style the page, and nothing may be fetched.
        "policy": f"default-src 'none'; style-src '{_source_hash(style)}'; "
        f"script-src '{_source_hash(script)}'; img-src data:; base-uri 'none'; form-action 'none'",
        "style": style,
        "script": script,
        "data": to_script_json(payload),
    }
    template = (assets / "template.html").read_text(encoding="utf-8")
    return _PLACEHOLDER.sub(lambda match: content[match[1]], template)


def _source_hash(source: str) -> str:
    return "sha256-" + base64.b64encode(hashlib.sha256(source.encode()).digest()).decode()


def _one_line(text: str) -> str:
    """A title without control characters, which HTML forbids."""
    return " ".join("".join(c if c.isprintable() else " " for c in text).split())
