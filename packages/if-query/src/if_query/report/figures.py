"""The main plots of a run for papers: each as SVG, whose text stays text, and as PNG.

- heat_map: the queries against the training examples with the largest scores, clustered
- distributions: how the scores of each query are spread
- extremes: the most helpful and most harmful training examples of the first queries
- spectra: eigenvalues of every linear map, where the factors are at hand
"""

from pathlib import Path
from typing import Any

import numpy as np

from if_query.influence_results import InfluenceResults
from if_query.report.heat_map import make_heat_map
from if_query.report.shown import select_rows
from if_query.whole_files import replacing

HELPFUL, HARMFUL = "#5e3c99", "#e66101"
_NUM_EXTREMES = 6
_STYLE: Any = {
    "svg.fonttype": "none",
    "svg.hashsalt": "if-query",  # the same file for the same data
    "text.parse_math": False,  # a dollar sign in a data set is a dollar sign
    "font.size": 8,
    "axes.spines.top": False,
    "axes.spines.right": False,
}


def write_figures(results: InfluenceResults, health: dict[str, Any], folder: Path) -> None:
    """Write each figure twice into ``folder``; other files there are left alone.

    Args:
        results: the run.
        health: of its curvature, as the page shows it.
        folder: made where it is missing.
    """
    import matplotlib as mpl
    from matplotlib.figure import Figure

    makers = {"heat_map": _heat_map, "distributions": _distributions, "extremes": _extremes}
    with mpl.rc_context(_STYLE):
        for name, draw in makers.items():
            figure = Figure(layout="constrained")
            draw(figure, results)
            _save(figure, folder / name)
        if health["found"] and health["modules"]:
            figure = Figure(layout="constrained")
            _spectra(figure, health)
            _save(figure, folder / "spectra")


def _save(figure: Any, path: Path) -> None:
    for suffix, metadata in (("svg", {"Date": None}), ("png", {})):
        with replacing(path.with_suffix(f".{suffix}")) as temporary:
            figure.savefig(temporary, format=suffix, dpi=200, metadata=metadata)


def _heat_map(figure: Any, results: InfluenceResults) -> None:
    part = make_heat_map(results, 40, 80)
    rows, columns = part.orders["raw"]
    largest = np.abs(part.scores).max(axis=1, keepdims=True)
    scaled = np.divide(part.scores, largest, out=np.zeros_like(part.scores), where=largest > 0)
    figure.set_size_inches(7, 1.2 + 0.12 * len(rows))
    axes = figure.add_subplot()
    # Helpful is purple, at the positive end of PuOr.
    image = axes.imshow(scaled[np.ix_(rows, columns)], cmap="PuOr", vmin=-1, vmax=1, aspect="auto")
    names = [_label(results.queries[part.queries[row]].example_id) for row in rows]
    axes.set_yticks(range(len(names)), names, fontsize=5)
    axes.set_xticks([])
    axes.set_xlabel(f"{len(columns)} training examples with the largest scores, clustered")
    figure.colorbar(image, ax=axes, label="score / largest of its query\n(positive is helpful)")


def _distributions(figure: Any, results: InfluenceResults) -> None:
    queries = range(min(40, len(results.queries)))
    figure.set_size_inches(7, 1.2 + 0.16 * len(queries))
    axes = figure.add_subplot()
    for place, query in enumerate(queries):
        scores = np.asarray(results.matrix[query], dtype=np.float64)
        low, first, middle, last, high = np.quantile(scores, (0, 0.05, 0.5, 0.95, 1))
        axes.plot([low, high], [place, place], color="0.7", linewidth=0.8)
        axes.plot([first, last], [place, place], color="0.35", linewidth=3)
        axes.plot(middle, place, "|", color="black")
        axes.plot(high, place, "^", color=HELPFUL, markersize=4)
        axes.plot(low, place, "v", color=HARMFUL, markersize=4)
    axes.axvline(0, color="0.5", linewidth=0.6)
    names = [_label(results.queries[query].example_id) for query in queries]
    axes.set_yticks(list(queries), names, fontsize=5)
    axes.invert_yaxis()
    axes.set_xlabel("score (nats per unit weight); thick: 5 % to 95 %, ▲ highest, ▼ lowest")


def _extremes(figure: Any, results: InfluenceResults) -> None:
    num_queries = min(4, len(results.queries))
    figure.set_size_inches(7, 1.7 * num_queries)
    for query in range(num_queries):
        axes = figure.add_subplot(num_queries, 1, query + 1)
        scores = np.asarray(results.matrix[query])
        shown = select_rows(scores, _NUM_EXTREMES)
        rows = shown.helpful + shown.harmful[::-1]
        values = scores[rows]
        axes.barh(
            range(len(rows)), values, color=[HELPFUL if one >= 0 else HARMFUL for one in values]
        )
        names = [_label(results.train[row].example_id) for row in rows]
        axes.set_yticks(range(len(rows)), names, fontsize=5)
        axes.invert_yaxis()
        axes.axvline(0, color="0.5", linewidth=0.6)
        axes.set_title(_label(results.queries[query].example_id), fontsize=7, loc="left")
    axes.set_xlabel("score (nats per unit weight); positive, to the right, is helpful")


def _spectra(figure: Any, health: dict[str, Any]) -> None:
    figure.set_size_inches(5, 3.2)
    axes = figure.add_subplot()
    for place, one in enumerate(health["modules"]):
        if one["largest"] > 0:
            shade = str(0.75 * place / max(1, len(health["modules"]) - 1))
            values = np.maximum(one["values"], one["largest"] * 1e-12)
            axes.loglog(one["places"], values, color=shade, linewidth=0.9)
    for axis in (axes.xaxis, axes.yaxis):  # powers of ten would need the mathematics switched off
        axis.set_major_formatter("{x:g}")
        axis.set_minor_formatter("")
    axes.set_xlabel("directions, the largest first (% of each linear map)")
    axes.set_ylabel("eigenvalue (nats² per unit weight²)")
    axes.set_title("one line per linear map, the first layers darkest", fontsize=7, loc="left")


def _label(name: str) -> str:
    """An id short enough for an axis, without what a font cannot draw."""
    text = "".join(character if character.isprintable() else "?" for character in name)
    return text if len(text) <= 28 else f"{text[:27]}…"
