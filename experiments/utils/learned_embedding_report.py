"""What learned_embedding.py shows: means with intervals as tables, and the figure."""

from collections.abc import Sequence
from pathlib import Path
from typing import Any

import numpy as np
from rich.table import Table
from scipy.stats import t
from utils.learned_embedding_training import RECIPES, UNLEARNED

METRICS = {"precision@10": "P@10", "map": "mAP", "roc_auc": "AUC"}


def values_of(rows: list[dict[str, Any]], feature: str, method: str, metric: str) -> np.ndarray:
    """One number per seed."""
    own = [row for row in rows if (row["feature"], row["method"]) == (feature, method)]
    return np.array([row[metric] for row in sorted(own, key=lambda row: row["seed"])])


def interval(values: np.ndarray) -> tuple[float, float, float]:
    """The mean over seeds and its 95 % t-interval."""
    mean = float(values.mean())
    half = float(t.ppf(0.975, len(values) - 1) * values.std(ddof=1) / len(values) ** 0.5)
    return mean, mean - half, mean + half


def summary(rows: list[dict[str, Any]], feature: str) -> dict[str, dict[str, Any]]:
    """Means with intervals for each method, and the difference of mAP from the first recipe's."""
    reference = values_of(rows, feature, RECIPES[0].name, "map")
    found: dict[str, dict[str, Any]] = {}
    for method in (*UNLEARNED, *(recipe.name for recipe in RECIPES)):
        found[method] = {
            metric: interval(values_of(rows, feature, method, metric)) for metric in METRICS
        }
        found[method]["map_minus_all"] = interval(
            values_of(rows, feature, method, "map") - reference
        )
    return found


def result_table(rows: list[dict[str, Any]], feature: str, num_seeds: int) -> Table:
    """One row per method."""
    table = Table(title=f"{feature}: held-out functions, mean over {num_seeds} splits ± 95 %")
    table.add_column("method", no_wrap=True)
    for title in (*METRICS.values(), "mAP − all"):
        table.add_column(title, justify="right", no_wrap=True)
    for method, result in summary(rows, feature).items():
        cells = [f"{result[metric][0]:.2f}" for metric in METRICS]
        mean, low, high = result["map"]
        cells[1] += f" ± {(high - low) / 2:.2f}"
        mean, low, high = result["map_minus_all"]
        differs = method != RECIPES[0].name
        cells.append(f"{mean:+.3f} ± {(high - low) / 2:.3f}" if differs else "")
        table.add_row(method, *cells)
    return table


def draw(path: Path, rows: list[dict[str, Any]], features: Sequence[str]) -> None:
    """MAP of every split, with means and intervals, one panel per feature on one scale."""
    import matplotlib

    matplotlib.use("agg")
    from matplotlib import pyplot as plt

    groups = {
        "unlearned": ("0.45", UNLEARNED),
        "learned": ("#5e3c99", [recipe.name for recipe in RECIPES]),
    }
    methods = [method for _, own in groups.values() for method in own]
    num = len(features)
    figure, axes = plt.subplots(
        1,
        num,
        figsize=(2.4 + 2.8 * num, 4.0),
        sharex=True,
        sharey=True,
        squeeze=False,
        layout="constrained",
    )
    for axis, feature in zip(axes[0], features, strict=True):
        reference = values_of(rows, feature, RECIPES[0].name, "map").mean()
        axis.axvline(reference, color="0.8", lw=1, zorder=0)
        for name, (color, own) in groups.items():
            places = [methods.index(method) for method in own]
            values = [values_of(rows, feature, method, "map") for method in own]
            means, lows, highs = np.array([interval(each) for each in values]).T
            axis.errorbar(
                means,
                places,
                xerr=[means - lows, highs - means],
                fmt="o",
                color=color,
                markersize=4,
                capsize=2,
                label=f"{name}: mean, 95 %",
            )
            # Below the interval, which would hide them.
            lower = np.repeat(np.array(places) + 0.3, len(values[0]))
            axis.plot(np.concatenate(values), lower, "|", color=color, alpha=0.6, markersize=5)
        axis.set_title(feature, fontsize=11)
        axis.set_xlabel("mAP, held-out functions", fontsize=10)
        axis.tick_params(labelsize=9)
        axis.spines[["top", "right"]].set_visible(False)
    axes[0, 0].set_yticks(range(len(methods)), methods)
    axes[0, 0].invert_yaxis()
    handles, labels = axes[0, 0].get_legend_handles_labels()
    split = axes[0, 0].plot([], [], "|", color="0.3", markersize=6)[0]
    line = axes[0, 0].plot([], [], color="0.8", lw=1)[0]
    figure.legend(
        [*handles, split, line],
        [*labels, "one split", f"mean of \u201c{RECIPES[0].name}\u201d"],
        loc="outside lower center",
        ncols=4 if num > 1 else 2,
        fontsize=9,
        frameon=False,
    )
    figure.savefig(path, dpi=110, format="png")
    plt.close(figure)
