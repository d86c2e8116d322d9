"""Tables and the figure of ``leaderboard.py``."""

from pathlib import Path
from typing import Any

from rich.table import Table

COLUMNS = {
    "precision@10": "P@10 [95 %]",
    "recall@1": "R@1",
    "recall@5": "R@5",
    "recall@10": "R@10",
    "map": "mAP",
    "roc_auc": "AUC",
}

FURTHER = {
    "states_value": "P@10, value",
    "among_values": "P@10, among values",
    "same_answer": "P@10, same answer",
    "lds": "LDS [95 %]",
}
"""Columns of a table whose queries have them."""


def tables(results: dict[str, Any]) -> list[Table]:
    """One table for each kind of query."""
    made = []
    for kind in results["kinds"]:
        table = Table(title=_title(kind, results))
        for place, head in enumerate(_heads(kind)):
            table.add_column(head, justify="left" if place == 0 else "right", no_wrap=True)
        for row in _rows(kind):
            table.add_row(*row)
        made.append(table)
    return made


def markdown(results: dict[str, Any]) -> str:
    """The same as Markdown."""
    lines: list[str] = []
    for kind in results["kinds"]:
        heads = _heads(kind)
        lines += [_title(kind, results), "", f"| {' | '.join(heads)} |", "|---" * len(heads) + "|"]
        lines += [f"| {' | '.join(row)} |" for row in _rows(kind)]
        lines.append("")
    return "\n".join(lines)


def _title(kind: dict[str, Any], results: dict[str, Any]) -> str:
    return (
        f"{kind['num_queries']} queries by {kind['name']}, {kind['num_functions']} functions, "
        f"{results['num_documents']} documents, {kind['share_relevant']:.3f} of them relevant"
    )


def _has_lds(kind: dict[str, Any]) -> bool:
    return _has(kind, "lds")


def _has(kind: dict[str, Any], what: str) -> bool:
    return any(what in method for method in kind["methods"].values())


def _heads(kind: dict[str, Any]) -> list[str]:
    further = [head for what, head in FURTHER.items() if _has(kind, what)]
    return ["method", *COLUMNS.values(), *further, "seconds", "MiB"]


def _ordered(kind: dict[str, Any]) -> list[str]:
    """Names by precision@10, the best first, and what failed last."""

    def place(name: str) -> float:
        method = kind["methods"][name]
        if "retrieval" not in method:
            return 1.0
        return -float(method["retrieval"]["metrics"]["precision@10"]["mean"])

    return sorted(kind["methods"], key=place)


def _rows(kind: dict[str, Any]) -> list[list[str]]:
    rows = []
    width = len(_heads(kind))
    for name in _ordered(kind):
        method = kind["methods"][name]
        if "retrieval" not in method:
            reason = f"failed: {method['failure']}".replace("|", "/")
            rows.append([name, reason, *[""] * (width - 2)])
            continue
        metrics = method["retrieval"]["metrics"]
        # Of many relevant documents the first few are a small share: a third digit for recall.
        cells = [
            f"{metrics[name]['mean']:.{3 if name.startswith('recall') else 2}f}" for name in COLUMNS
        ]
        cells[0] = _interval(metrics["precision@10"])
        for what in FURTHER:
            if _has(kind, what):
                cells.append(_interval(method[what]))
        cost = [f"{method['seconds']:.1f}", f"{method['peak_mebibytes']:.0f}"]
        rows.append([name, *cells, *cost])
    return rows


def _interval(one: dict[str, float]) -> str:
    return f"{one['mean']:.2f} [{one['low']:.2f}, {one['high']:.2f}]"


def draw(path: Path, results: dict[str, Any]) -> None:
    """Precision@10 with its interval: a panel for each kind of query, methods in one order."""
    import matplotlib

    matplotlib.use("agg")
    from matplotlib import pyplot as plt

    kinds = results["kinds"]
    judged = kinds[-1]["methods"]
    order = [name for name in _ordered(kinds[-1]) if "retrieval" in judged[name]]
    panels = [(kind, "precision@10") for kind in kinds]
    if any(_has_lds(kind) for kind in kinds):
        panels += [(kind, "lds") for kind in kinds]
    figure, axes = plt.subplots(
        1,
        len(panels),
        figsize=(3.2 + 2.2 * len(panels), 1.2 + 0.24 * max(1, len(order))),
        sharey=True,
        layout="constrained",
        squeeze=False,
    )
    for axis, (kind, metric) in zip(axes[0], panels, strict=True):
        found = [kind["methods"][name] for name in order]
        values = [
            one["lds"] if metric == "lds" else one["retrieval"]["metrics"][metric] for one in found
        ]
        means = [one["mean"] for one in values]
        errors = [
            [one["mean"] - one["low"] for one in values],
            [one["high"] - one["mean"] for one in values],
        ]
        color = "#e66101" if metric == "lds" else "#5e3c99"
        axis.barh(range(len(order)), means, xerr=errors, color=color, ecolor="0.4", height=0.65)
        axis.set_yticks(range(len(order)), order, fontsize=8)
        axis.tick_params(axis="x", labelsize=8)
        what = "linear datamodeling score" if metric == "lds" else "precision@10"
        axis.set_title(f"{what},\nqueries by {kind['name']}", fontsize=9)
        axis.spines[["top", "right"]].set_visible(False)
        if metric == "lds":
            axis.axvline(0, color="0.5", linewidth=0.8)
        else:
            axis.set_xlim(0, 1)
            axis.axvline(kind["share_relevant"], color="0.5", linewidth=0.8, linestyle=":")
    axes[0][0].set_ylim(len(order) - 0.4, -0.6)  # shared; the best on top, no empty rows
    path.parent.mkdir(parents=True, exist_ok=True)
    figure.savefig(path, dpi=110)
    plt.close(figure)
