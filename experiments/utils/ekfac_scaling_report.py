"""Exponents, tables and figure of bench_scaling.py."""

import io
import statistics
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
from hops.files import write_bytes
from utils.ekfac_model import STAGES
from utils.report_table import ReportTable

MEMORY = "peak memory"
_SMALLEST_MIB = 0.1
"""What a point that needs no memory above the model's own peak is taken for."""
_COLORS = ("#5e3c99", "#e66101", "#1b7837", "#2166ac", "#b2182b")
_MARKERS = ("o", "s", "^", "D", "v")
_COLUMNS = 3


@dataclass(frozen=True)
class Point:
    """What was measured at one size.

    Attributes:
        value: of the factor that is changed.
        seconds: {"plain pass" or a stage: seconds of every round}.
        peak_mib: peak memory above that of the built model.
        flop: {stage: floating point operations counted}.
    """

    value: int
    seconds: Mapping[str, Sequence[float]]
    peak_mib: float
    flop: Mapping[str, int]


@dataclass(frozen=True)
class Exponent:
    """b of y = a · valueᵇ, for one factor and one stage (or memory).

    Attributes:
        factor: what is changed.
        stage: what grows.
        measured: of the medians.
        low: least of the rounds.
        high: greatest of the rounds.
        expected: of the counted arithmetic; None for memory.
    """

    factor: str
    stage: str
    measured: float
    low: float
    high: float
    expected: float | None


def slope(values: Sequence[float], results: Sequence[float]) -> float:
    """The exponent b of y = a · xᵇ by least squares in the logarithms."""
    x, y = np.log(values), np.log(results)
    x, y = x - x.mean(), y - y.mean()
    return float(x @ y / (x @ x))


def exponents(curves: Mapping[str, Sequence[Point]]) -> list[Exponent]:
    """Exponents of every stage and of memory, factor by factor."""
    found = []
    for factor, curve in curves.items():
        values = [point.value for point in curve]
        for stage in STAGES:
            rounds = zip(*(point.seconds[stage] for point in curve), strict=True)
            each = [slope(values, one) for one in rounds]
            medians = [statistics.median(point.seconds[stage]) for point in curve]
            expected = slope(values, [point.flop[stage] for point in curve])
            found.append(
                Exponent(factor, stage, slope(values, medians), min(each), max(each), expected)
            )
        memory = slope(values, [max(point.peak_mib, _SMALLEST_MIB) for point in curve])
        found.append(Exponent(factor, MEMORY, memory, memory, memory, None))
    return found


def exponents_table(slopes: Sequence[Exponent]) -> ReportTable:
    """One row per factor and stage."""
    rows = []
    for one in slopes:
        is_memory = one.expected is None
        rows.append(
            [
                one.factor,
                one.stage,
                f"{one.measured:.2f}",
                "" if is_memory else f"{one.low:.2f} to {one.high:.2f}",
                "" if is_memory else f"{one.expected:.2f}",
            ]
        )
    return ReportTable(
        "Exponents by least squares, and those of the counted arithmetic",
        ("factor", "stage", "measured", "range of the rounds", "expected"),
        rows,
    )


def points_table(curves: Mapping[str, Sequence[Point]]) -> ReportTable:
    """Every point: seconds and plain passes of each stage, and memory."""
    rows = []
    for factor, curve in curves.items():
        for point in curve:
            plain = point.seconds["plain pass"]
            cells = [f"{factor} {point.value}", f"{statistics.median(plain):.3f}"]
            for stage in STAGES:
                taken = point.seconds[stage]
                multiples = [s / p for s, p in zip(taken, plain, strict=True)]
                cells.append(f"{statistics.median(taken):.3f} ({statistics.median(multiples):.2f})")
            rows.append([*cells, f"{point.peak_mib:,.0f}"])
    return ReportTable(
        "Seconds (in plain passes), and peak memory in MiB",
        ("point", "plain pass", *STAGES, MEMORY),
        rows,
    )


def draw_scaling(
    curves: Mapping[str, Sequence[Point]],
    slopes: Sequence[Exponent],
    center: Mapping[str, int],
    path: Path,
) -> None:
    """A panel for each factor: seconds of every stage, exponents in the legend; one of memory."""
    import matplotlib

    matplotlib.use("agg")
    from matplotlib import pyplot as plt

    by_place = {(one.factor, one.stage): one for one in slopes}
    num_rows = -(-(len(curves) + 1) // _COLUMNS)
    figure, grid = plt.subplots(
        num_rows, _COLUMNS, figsize=(4.4 * _COLUMNS, 4.4 * num_rows), squeeze=False
    )
    panels = list(grid.flat)
    for panel, (factor, curve) in zip(panels, curves.items(), strict=False):
        values = [point.value for point in curve]
        for stage, color, marker in zip(STAGES, _COLORS, _MARKERS, strict=False):
            one = by_place[factor, stage]
            seconds = np.array([statistics.median(point.seconds[stage]) for point in curve])
            reach = np.array([[min(p.seconds[stage]), max(p.seconds[stage])] for p in curve]).T
            panel.errorbar(
                values,
                seconds,
                yerr=np.abs(reach - seconds),
                color=color,
                marker=marker,
                markersize=5,
                linewidth=1.5,
                label=f"{stage}: {one.measured:.2f} (expected {one.expected:.2f})",
            )
        _finish_panel(panel, f"{factor}: seconds", factor)
        panel.set_xticks(values, [str(value) for value in values])
    limits = [limit for panel in panels[: len(curves)] for limit in panel.get_ylim()]
    for panel in panels[: len(curves)]:
        panel.set_ylim(min(limits), max(limits))
    memory = panels[len(curves)]
    for (factor, curve), color, marker in zip(curves.items(), _COLORS, _MARKERS, strict=False):
        memory.plot(
            [point.value / center[factor] for point in curve],
            [max(point.peak_mib, _SMALLEST_MIB) for point in curve],
            color=color,
            marker=marker,
            markersize=5,
            linewidth=1.5,
            label=f"{factor}: {by_place[factor, MEMORY].measured:.2f}",
        )
    _finish_panel(memory, "peak memory: MiB", "factor, as a multiple of the center's")
    for panel in panels[len(curves) + 1 :]:
        panel.set_axis_off()
    figure.suptitle("Growth of each stage, with its exponent", fontsize=12)
    figure.tight_layout()
    image = io.BytesIO()
    figure.savefig(image, format="png", dpi=100)
    plt.close(figure)
    write_bytes(path, image.getvalue())


def _finish_panel(panel: Any, title: str, label: str) -> None:
    from matplotlib.ticker import LogLocator, NullFormatter

    panel.set_xscale("log")
    panel.set_yscale("log")
    for axis in (panel.xaxis, panel.yaxis):
        axis.set_major_locator(LogLocator(subs=(1, 2, 5)))
        axis.set_major_formatter("{x:g}")
        axis.set_minor_formatter(NullFormatter())
    panel.xaxis.minorticks_off()
    panel.set_title(title, fontsize=11)
    panel.set_xlabel(label)
    panel.grid(visible=True, which="major", alpha=0.25)
    panel.spines[["top", "right"]].set_visible(False)
    panel.legend(fontsize=8, frameon=False, loc="upper center", bbox_to_anchor=(0.5, -0.2))
