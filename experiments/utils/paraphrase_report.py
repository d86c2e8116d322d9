"""Accuracies of results files as JSON, as a table and as a figure."""

import json
from collections.abc import Mapping
from pathlib import Path
from typing import Any

import numpy as np
from attribution.gradient_similarity.analysis import (
    analyze_tensors,
    chance_accuracy,
    ranking_accuracy,
)
from attribution.gradient_similarity.result_files import read_results, similarities_of
from attribution.gradient_similarity.store import replacing
from attribution.gradient_similarity.tensor_groups import tensor_groups
from rich.console import Console
from rich.table import Table

FULL, TEXT = "#5e3c99", "#e66101"


def analyze_file(path: Path, *, seed: int) -> dict[str, Any]:
    """Accuracies of one file; by tensor too where it holds inner products."""
    content = read_results(path)
    arguments, values = content["arguments"], content["values"]
    result: dict[str, Any] = {
        "setting": arguments["setting"],
        "candidates": arguments["candidates"],
        "force_original": arguments["force_original"],
        "projection_fraction": arguments["projection_fraction"],
        "num_queries": len(values),
        "candidate_recall": float(np.mean([query in others for query, others in values.items()])),
        "chance": chance_accuracy(values),
        "bm25": ranking_accuracy(content["bm25"], seed=seed).to_dict(),
    }
    if arguments["computation_type"] == "dot-product":
        result |= analyze_tensors(similarities_of(content), seed=seed)
    else:
        result["full_gradient"] = ranking_accuracy(values, seed=seed).to_dict()
    return result


def write_analysis(path: Path, results: Mapping[Path, Mapping[str, Any]]) -> None:
    """All of them, by the file's name below the folder."""
    named = {f"{one.parent.name}/{one.name}": result for one, result in results.items()}
    with replacing(path) as temporary:
        temporary.write_text(json.dumps(named, indent=1) + "\n", encoding="utf-8")


def print_summary(results: Mapping[Path, Mapping[str, Any]]) -> None:
    """One row per file."""
    table = Table(title="share of queries whose true original ranks strictly first [95 %]")
    for title in ("results", "full gradient", "BM25", "chance", "best tensor, other half"):
        table.add_column(title, justify="left" if title == "results" else "right", overflow="fold")
    for path, one in results.items():
        best = one.get("best_tensor")
        table.add_row(
            f"{path.parent.name}/{path.stem}",
            _interval(one["full_gradient"]),
            _interval(one["bm25"]),
            f"{one['chance']:.2f}",
            "" if best is None or best["held_out"] is None
            else f"{best['held_out']:.2f} ({best['tensor']})",
        )  # fmt: skip
    Console(width=120).print(table)


def draw(path: Path, result: Mapping[str, Any]) -> None:
    """By component type and layer, and the greedy selection, with BM25 and chance as lines."""
    import matplotlib

    matplotlib.use("agg")
    from matplotlib import pyplot as plt

    figure, (left, middle, right) = plt.subplots(
        1, 3, figsize=(12, 4.6), width_ratios=(1.5, 0.8, 1), layout="constrained"
    )
    _draw_map(figure, left, result["by_tensor"])
    layers = result["by_layer"]
    names = list(layers)
    middle.barh(names, [layers[name]["mean"] for name in names], color=FULL, height=0.6)
    middle.invert_yaxis()
    middle.set(xlim=(0, 1), xlabel="accuracy", ylabel="layer", title="by layer")
    steps = result["greedy_selection"]
    counts = range(1, len(steps) + 1)
    right.plot(counts, [step["held_out"] for step in steps], "o-", color=FULL, label="other half")
    right.plot(
        counts, [step["selected_on"] for step in steps], "o:", color="0.5", label="half that chose"
    )
    right.set(ylim=(0, 1.03), xlabel="tensors selected", ylabel="accuracy")
    right.set_xticks(list(counts)[:: max(1, len(steps) // 6)])
    right.set_title("greedy selection")
    lines = {
        "full gradient": (result["full_gradient"]["mean"], "-", "black"),
        "BM25": (result["bm25"]["mean"], "--", TEXT),
        "chance": (result["chance"], ":", "0.4"),
    }
    for name, (value, style, colour) in lines.items():
        middle.axvline(value, ls=style, color=colour, lw=1.3)
        right.axhline(value, ls=style, color=colour, lw=1.3, label=name)
    right.legend(fontsize=8, loc="best")
    projected = result["projection_fraction"]
    of = "whole gradients" if projected is None else f"projections to {projected:.0%}"
    figure.suptitle(
        f"{result['setting']}, {result['num_queries']} queries, candidates "
        f"{result['candidates']}, {of}",
        fontsize=11,
    )
    path.parent.mkdir(parents=True, exist_ok=True)
    with replacing(path) as temporary:
        figure.savefig(temporary, dpi=110, format="png")
    plt.close(figure)


def _draw_map(figure: Any, axes: Any, by_tensor: Mapping[str, Mapping[str, float]]) -> None:
    """Accuracy of every tensor: component type by layer."""
    types, layers = tensor_groups(by_tensor)
    kinds, places = list(types), list(layers)
    grid = np.full((len(kinds), len(places)), np.nan)
    for row, kind in enumerate(kinds):
        for column, layer in enumerate(places):
            for name in set(types[kind]) & set(layers[layer]):
                grid[row, column] = by_tensor[name]["mean"]
    image = axes.imshow(grid, vmin=0, vmax=1, cmap="viridis", aspect="auto")
    small = len(places) <= 8
    for (row, column), value in np.ndenumerate(grid):
        if small and np.isfinite(value):
            colour = "black" if value > 0.6 else "white"
            axes.text(column, row, f"{value:.2f}", ha="center", va="center", color=colour, size=8)
    axes.set_yticks(range(len(kinds)), [kind.removesuffix(".weight") for kind in kinds], size=8)
    axes.set_xticks(range(len(places)), ["none" if "outside" in p else p for p in places])
    axes.set(xlabel="layer", title="by parameter tensor")
    if not small:
        figure.colorbar(image, ax=axes, shrink=0.8, label="accuracy")


def _interval(estimate: Mapping[str, float]) -> str:
    return f"{estimate['mean']:.2f} [{estimate['low']:.2f}, {estimate['high']:.2f}]"
