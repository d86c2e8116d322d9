"""Tables and the figure of ``lds.py``."""

from pathlib import Path
from typing import Any

import numpy as np
from attribution.evaluation.report import estimate_mean
from rich.table import Table
from utils.leave_out import RANDOM, RELEVANT, LeaveOut

_COLORS = ("#5e3c99", "#e66101", "#1b7837", "#2166ac", "#b2182b", "#8c6d31")


def lds_table(results: dict[str, Any]) -> Table:
    """Methods by depth, best first by the first depth."""
    table = Table(title=_title(results))
    table.add_column("method", no_wrap=True)
    for depth in results["depths"].values():
        table.add_column(f"queries by {depth['name']}", justify="right", no_wrap=True)
    for row in _rows(results):
        table.add_row(*row)
    return table


def markdown(results: dict[str, Any]) -> str:
    """The same as Markdown, and what leaving out did."""
    heads = ["method", *(f"by {depth['name']}" for depth in results["depths"].values())]
    lines = [_title(results), "", f"| {' | '.join(heads)} |", "|---" * len(heads) + "|"]
    lines += [f"| {' | '.join(row)} |" for row in _rows(results)]
    if "leave_out" in results:
        removed = results["leave_out"]
        counts = removed["counts"][1:]
        heads = ["left out", *(f"{count} documents" for count in counts)]
        lines += [
            "",
            "Rise of the loss in nats [95 %]; share of answers still right; relevant documents "
            "among those left out:",
            "",
        ]
        lines += [f"| {' | '.join(heads)} |", "|---" * len(heads) + "|"]
        for name, rise in removed["rise"].items():
            right, relevant = (
                np.mean(removed[what][name], axis=0)[1:] for what in ("correct", "relevant")
            )
            cells = [
                f"{interval(one)}; {share:.2f}; {number:.0f}"
                for one, share, number in zip(
                    over_functions(rise)[1:], right, relevant, strict=True
                )
            ]
            lines.append(f"| {' | '.join([name, *cells])} |")
    return "\n".join(lines) + "\n"


def _title(results: dict[str, Any]) -> str:
    return (
        f"Linear datamodeling score [95 %], {results['num_subsets']} subsets of "
        f"{results['documents_in_a_subset']} documents, {results['repeats']} model(s) on each"
    )


def _rows(results: dict[str, Any]) -> list[list[str]]:
    depths = list(results["depths"].values())
    names = list(depths[0]["methods"])
    names.sort(key=lambda name: -depths[0]["methods"][name].get("mean", -2.0))
    rows = []
    for label, key in (("foretellable at most", "ceiling"), ("two repeats agree", "agreement")):
        if key in depths[0]:
            rows.append([label, *(interval(depth[key]) for depth in depths)])
    # The interval counts queries, not subsets: what fewer subsets give by luck stands beside it.
    lucky = [
        max((one["luck"] for one in depth["methods"].values() if "luck" in one), default=0.0)
        for depth in depths
    ]
    rows.append(["by luck at most (95 %)", *(f"±{one:.2f}" for one in lucky)])
    for name in names:
        entries = [depth["methods"][name] for depth in depths]
        rows.append([name, *(interval(one) for one in entries)])
    return rows


def interval(entry: dict[str, Any]) -> str:
    """A mean with its interval, or the reason why there is none."""
    if "mean" not in entry:
        return f"failed: {entry['failure']}"
    return f"{entry['mean']:.2f} [{entry['low']:.2f}, {entry['high']:.2f}]"


def over_functions(values: Any) -> list[dict[str, float]]:
    """The mean over functions with its bootstrap interval, for each number left out.

    Args:
        values: what leaving out did [function, count].
    """
    found = [estimate_mean(column) for column in np.asarray(values, dtype=np.float64).T]
    return [{"mean": one.mean, "low": one.low, "high": one.high} for one in found]


def draw_brittleness(path: Path, removed: LeaveOut) -> None:
    """How loss and answers change with the number of documents left out; bars are intervals."""
    import matplotlib

    matplotlib.use("agg")
    from matplotlib import pyplot as plt

    figure, axes = plt.subplots(1, 2, figsize=(8.5, 3.3), layout="constrained")
    step = 0.012 * max(removed.counts)
    shifts = iter(step * (np.arange(len(removed.rise)) - (len(removed.rise) - 1) / 2))
    colors = iter(_COLORS * (1 + len(removed.rise) // len(_COLORS)))
    for name in removed.rise:
        is_random = name in (RANDOM, RELEVANT)
        style: dict[str, Any] = {
            "color": {RANDOM: "0.6", RELEVANT: "0.25"}[name] if is_random else next(colors),
            "linestyle": "--" if is_random else "-",
        }
        # Beside one another, so that no interval hides another.
        places = np.array(removed.counts) + next(shifts) * (np.array(removed.counts) > 0)
        for axis, values in zip(axes, (removed.rise[name], removed.correct[name]), strict=True):
            found = over_functions(values)
            means = [one["mean"] for one in found]
            ends = [[one["mean"] - one["low"] for one in found]]
            ends += [[one["high"] - one["mean"] for one in found]]
            axis.errorbar(
                places, means, yerr=ends, marker="o", ms=3.5, elinewidth=1, label=name, **style
            )
    for axis, label in zip(
        axes, ("rise of the loss, nats", "share of answers still right"), strict=True
    ):
        axis.set_xlabel("documents left out")
        axis.set_ylabel(label)
        axis.spines[["top", "right"]].set_visible(False)
    axes[0].axhline(0, color="0.85", linewidth=1, zorder=0)
    axes[1].set_ylim(-0.03, 1.03)
    figure.legend(*axes[0].get_legend_handles_labels(), loc="outside right center", fontsize=8)
    path.parent.mkdir(parents=True, exist_ok=True)
    figure.savefig(path, dpi=110)
    plt.close(figure)
