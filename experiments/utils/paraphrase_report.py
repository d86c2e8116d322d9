"""Accuracies of results files as JSON, as a table and as a figure."""

import json
from collections.abc import Mapping, Sequence
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
    for title in ("setting", "gradients", "candidates"):
        table.add_column(title, no_wrap=True)
    for title in ("full gradient", "BM25", "chance", "best tensor, other half"):
        table.add_column(title, justify="right", overflow="fold")
    for one in results.values():
        best, projected = one.get("best_tensor"), one["projection_fraction"]
        unforced = one["candidates"] != "all" and not one["force_original"]
        table.add_row(
            one["setting"],
            "whole" if projected is None else f"projected, {projected:.3g}",
            one["candidates"] + (", unforced" if unforced else ""),
            _interval(one["full_gradient"]),
            _interval(one["bm25"]),
            f"{one['chance']:.2f}",
            "" if best is None or best["held_out"] is None
            else f"{best['held_out']:.2f} {best['tensor'].removesuffix('.weight')}",
        )  # fmt: skip
    Console(width=150).print(table)


def draw(path: Path, result: Mapping[str, Any]) -> None:
    """By tensor, component type and layer, and the greedy selection, with BM25 and chance."""
    import matplotlib

    matplotlib.use("agg")
    from matplotlib import pyplot as plt

    figure, (tensors, types, layers, greedy) = plt.subplots(
        1, 4, figsize=(14, 4.9), width_ratios=(1.5, 0.9, 0.9, 1.1), layout="constrained"
    )
    kinds = _draw_map(figure, tensors, result["by_tensor"])
    _draw_bars(types, [result["by_component_type"][kind] for kind in kinds])
    types.sharey(tensors)
    types.tick_params(labelleft=False)
    types.set_title("by component type, 95 %")
    _draw_bars(layers, list(result["by_layer"].values()))
    layers.set_yticks(range(len(result["by_layer"])), map(_layer, result["by_layer"]))
    layers.invert_yaxis()
    layers.set(ylabel="layer", title="by layer, 95 %")
    steps = result["greedy_selection"]
    counts = range(1, len(steps) + 1)
    for key, style, colour, label in (
        ("selected_on", "o:", "0.5", "greedy: half that chose"),
        ("held_out", "o-", FULL, "greedy: other half"),
    ):
        greedy.plot(counts, [step[key] for step in steps], style, color=colour, ms=4, label=label)
    greedy.set(ylim=(0, 1), xlabel="tensors selected", ylabel="accuracy", title="greedy selection")
    greedy.set_xticks(list(counts)[:: max(1, len(steps) // 6)])
    lines = {
        "full gradient": (result["full_gradient"]["mean"], "-", "black"),
        "BM25": (result["bm25"]["mean"], "--", TEXT),
        "chance": (result["chance"], ":", "0.4"),
    }
    for name, (value, style, colour) in lines.items():
        for bars in (types, layers):
            bars.axvline(value, ls=style, color=colour, lw=1.3)
        greedy.axhline(value, ls=style, color=colour, lw=1.3, label=name)
    figure.legend(
        *greedy.get_legend_handles_labels(), loc="outside lower center", ncols=5, frameon=False
    )
    figure.suptitle(_title(result), fontsize=11)
    path.parent.mkdir(parents=True, exist_ok=True)
    with replacing(path) as temporary:
        figure.savefig(temporary, dpi=110, format="png")
    plt.close(figure)


def _title(result: Mapping[str, Any]) -> str:
    candidates, projected = result["candidates"], result["projection_fraction"]
    if candidates != "all":
        forced = "forced in" if result["force_original"] else "not forced in"
        candidates = f"{candidates} (original {forced})"
    of = "whole gradients" if projected is None else f"projections to {projected:.0%}"
    return f"{result['setting']}: {result['num_queries']} queries, candidates {candidates}, {of}"


def _draw_bars(axes: Any, estimates: Sequence[Mapping[str, float]]) -> None:
    means, lows, highs = ([one[name] for one in estimates] for name in ("mean", "low", "high"))
    places = range(len(means))
    axes.barh(places, means, color=FULL, alpha=0.6, height=0.6)
    axes.hlines(places, lows, highs, color=FULL, lw=2)
    axes.set(xlim=(0, 1), xticks=(0, 0.5, 1), xlabel="accuracy")


def _draw_map(
    figure: Any, axes: Any, by_tensor: Mapping[str, Mapping[str, float]]
) -> Sequence[str]:
    """Accuracy of every tensor: component type by layer; the types from top to bottom."""
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
    every = max(1, len(places) // 8)
    axes.set_xticks(range(0, len(places), every), [_layer(one) for one in places[::every]])
    axes.set(xlabel="layer", title="by parameter tensor")
    if not small:
        figure.colorbar(image, ax=axes, shrink=0.8, label="accuracy")
    return kinds


def _layer(name: str) -> str:
    return "none" if "outside" in name else name


def _interval(estimate: Mapping[str, float]) -> str:
    return f"{estimate['mean']:.2f} [{estimate['low']:.2f}, {estimate['high']:.2f}]"
