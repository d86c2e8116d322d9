"""Which choices matter in the methods between two checkpoints?

Question: how far do layers, pooling, normalisation, similarity, the steps of integrated gradients
and the patched share and positions change what a method finds?

Command:   uv run experiments/method_ablations.py --output-dir results/method_ablations
Result:    ablations.png, ablations.md (the table) and ablations.json in that folder
Expected:  packages/attribution/ablations.md has what came out
Run time:  4.4 minutes of computing (user and system) on one core, the world's making included

Vectors are computed once per pooling and shared by the ablations of layers, normalisation and
similarity. What is not varied: all layers but the embeddings, pooling over the whole text, cosine,
no normalisation; causal patching at one position, its layers from documents pooled at their answer.
"""

import json
from collections.abc import Iterator
from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np
from if_query.command_line import parse
from if_query.errors import InputError
from if_query.whole_files import replacing, write_json
from pydantic import ConfigDict
from pydantic.dataclasses import dataclass
from utils.attribution_task import AttributionTask, TaskArguments
from utils.method_script import one_line_errors

TITLES = {
    "dh_similarity": "Δh similarity",
    "grad_similarity": "gradient similarity",
    "attr_weighted_change": "attribution-weighted change",
    "attr_weighted_change_ig": "the same, integrated gradients",
    "causal_patching": "causal patching",
}


@dataclass(frozen=True, config=ConfigDict(extra="forbid"))
class Config:
    """Ablations of the methods on base queries of the quickstart world: a table and a figure."""

    output_dir: Path = Path("results/method_ablations")
    """Where figure, table and numbers go."""
    world: Path | None = None
    """A folder that `hops world` made; by default it is made under the output folder."""
    ig_steps: tuple[int, ...] = (1, 2, 4, 8)
    """Steps of integrated gradients to compare."""
    percentiles: tuple[float, ...] = (1.0, 5.0, 10.0, 25.0, 50.0)
    """Patched shares of the dimensions to compare, in percent."""
    seed: int = 0
    """Seed of the bootstrap."""


@dataclass(frozen=True, config=ConfigDict(extra="forbid"))
class Setting:
    """One bar of the figure: a method under one choice.

    Attributes:
        method: a key of ``TITLES``.
        ablation: what is varied.
        choice: its value.
    """

    method: str
    ablation: str
    choice: str


def main(config: Config) -> None:
    """Score every setting, judge it, and write table and figure."""
    import torch

    if min(config.ig_steps, default=0) < 1 or not config.percentiles:
        raise InputError("expected --ig-steps of at least 1 and at least one of --percentiles")
    torch.set_num_threads(1)
    from utils.patching_diagnosis import diagnose

    task = read_world(config)
    found = {}
    for setting, scores in scored(task, config):
        found[setting] = judge(task, scores, config.seed)
        one = found[setting]["precision@10"]
        print(
            f"{TITLES[setting.method]:32s} {setting.ablation:14s} {setting.choice:12s} "
            f"precision@10 {one['mean']:.2f} [{one['low']:.2f}, {one['high']:.2f}]",
            flush=True,
        )
    chance = float(task.relevance.mean())
    rows = [{**vars_of(setting), **metrics} for setting, metrics in found.items()]
    diagnosis = diagnose(task)
    print(json.dumps(diagnosis, indent=2, ensure_ascii=False))
    content = {"chance": chance, "patching": diagnosis, "settings": rows}
    write_json(config.output_dir / "ablations.json", content)
    with replacing(config.output_dir / "ablations.md") as temporary:
        temporary.write_text(table(found), encoding="utf-8")
    draw(config.output_dir / "ablations.png", found, chance)
    print(f"wrote ablations.png, ablations.md and ablations.json in {config.output_dir}")


def vars_of(setting: Setting) -> dict[str, str]:
    """The three names of a setting."""
    return {name: getattr(setting, name) for name in ("method", "ablation", "choice")}


def read_world(config: Config) -> AttributionTask:
    """The quickstart world, made first where it is not given, and its base queries."""
    from hops.world import World, build_world

    folder = config.world
    if folder is None:
        folder = config.output_dir / "world"
        build_world(folder, preset="quickstart", on_command=print)
    world = World.in_folder(folder)
    return AttributionTask.read(
        TaskArguments(
            dataset=world.training_set,
            old=str(world.old_model),
            new=str(world.new_model),
            hop_depths=(0,),
        )
    )


def scored(task: AttributionTask, config: Config) -> Iterator[tuple[Setting, np.ndarray]]:
    """Every setting with its scores [query, document]; vectors of one pooling are made once."""
    from attribution.activations import state_changes
    from attribution.gradients import state_gradients
    from attribution.integrated_gradients import integrated_state_gradients
    from attribution.scoring import ScoreOptions, score_vectors
    from attribution.vectors import LayerVectors, VectorOptions

    every = tuple(range(task.checkpoints.num_layers + 1))
    reference = ScoreOptions()

    def both(make: Any, pooling: str, layers: tuple[int, ...] = every) -> tuple[Any, Any]:
        at_answer = pooling == "answer"
        options = VectorOptions(layers=layers, pooling="last" if at_answer else pooling)  # type: ignore[arg-type]
        documents = task.answer_examples if at_answer else task.document_examples
        return make(task.query_examples, options), make(documents, options)

    def score(pair: tuple[Any, Any], layers: tuple[int, ...], options: Any) -> np.ndarray:
        chosen = [
            LayerVectors(
                one.values[[one.layers.index(layer) for layer in layers]], layers, one.what
            )
            for one in pair
        ]
        return score_vectors(chosen[0], chosen[1], options).numpy()

    def product(changes: Any, gradients: Any) -> Any:
        return LayerVectors(changes.values * gradients.values, every, "weighted change")

    of_documents = {}
    for pooling in ("last", "span", "text", "answer"):
        changes = both(lambda some, how: state_changes(task.checkpoints, some, how), pooling)
        gradients = both(lambda some, how: state_gradients(task.new_model, some, how), pooling)
        weighted = product(changes[0], gradients[0]), product(changes[1], gradients[1])
        of_documents[pooling] = weighted[1]
        by_method = {
            "dh_similarity": changes,
            "grad_similarity": gradients,
            "attr_weighted_change": weighted,
        }
        for name, pair in by_method.items():
            yield Setting(name, "pooling", pooling), score(pair, every[1:], reference)
            if pooling != "text":
                continue
            for layer in every:
                yield Setting(name, "layers", layer_name(layer)), score(pair, (layer,), reference)
            yield Setting(name, "layers", "mean"), score(pair, every[1:], reference)
            for how in ("none", "z-score", "whiten"):
                options = replace(reference, normalisation=how)
                yield Setting(name, "normalisation", how), score(pair, every[1:], options)
            for how in ("cosine", "dot"):
                options = replace(reference, similarity=how)  # type: ignore[arg-type]
                yield Setting(name, "similarity", how), score(pair, every[1:], options)
            if name == "attr_weighted_change":
                yield Setting(name, "IG steps", "none"), score(pair, every[1:], reference)
    for pooling in ("text", "answer"):
        for steps in config.ig_steps:
            pair = both(
                lambda some, how, steps=steps: integrated_state_gradients(
                    task.checkpoints, some, how, num_steps=steps
                ),
                pooling,
                every[1:],
            )
            setting = Setting("attr_weighted_change_ig", f"IG steps, {pooling}", f"{steps}")
            yield setting, score(pair, every[1:], reference)
    for pooling in ("text", "answer"):
        yield from patched(task, config, of_documents[pooling], pooling)


def layer_name(layer: int) -> str:
    """As the figure calls it."""
    return "embeddings" if layer == 0 else f"{layer}"


def patched(
    task: AttributionTask, config: Config, attributions: Any, pooling: str
) -> Iterator[tuple[Setting, np.ndarray]]:
    """Causal patching by percentile, over all layers and at the last; at each layer; by span."""
    from attribution.methods import PatchOptions, largest_dimensions, patching_scores

    def run(percentile: float, span: str, first: int = 1) -> np.ndarray:
        return patching_scores(
            task.checkpoints,
            largest_dimensions(attributions.values[first:], percentile),
            task.query_examples,
            attributions.layers[first:],
            PatchOptions(span=span, batch_size=256),  # type: ignore[arg-type]
        ).numpy()

    for percentile in config.percentiles:
        by_layer = run(percentile, "last")
        label = f"{percentile:g} %"
        for name, scores in (("mean", by_layer.mean(axis=0)), ("last layer", by_layer[-1])):
            yield Setting("causal_patching", f"patch, {pooling}, {name}", label), scores
    if pooling == "answer":
        by_layer = run(10.0, "last", first=0)
        for layer, one in zip(attributions.layers, by_layer, strict=True):
            yield Setting("causal_patching", "layers", layer_name(layer)), one
        yield Setting("causal_patching", "layers", "mean"), by_layer[1:].mean(axis=0)
        everywhere = run(10.0, "text").mean(axis=0)
        yield Setting("causal_patching", "patch, answer, all positions", "10 %"), everywhere


def judge(task: AttributionTask, scores: np.ndarray, seed: int) -> dict[str, Any]:
    """precision@10, mAP and AUC with intervals over functions."""
    from attribution.evaluation import evaluate_retrieval

    report: Any = evaluate_retrieval(
        scores.astype(np.float64),
        task.relevance,
        groups=[query.base_function for query in task.queries],
        seed=seed,
    ).to_dict()
    return {name: report["metrics"][name] for name in ("precision@10", "map", "roc_auc")}


def table(found: dict[Setting, dict[str, Any]]) -> str:
    """A Markdown table, one line per setting."""
    lines = [
        "| method | what | choice | precision@10 [95 %] | mAP | AUC |",
        "|---|---|---|---|---|---|",
    ]
    for setting, metrics in found.items():
        first = metrics["precision@10"]
        lines.append(
            f"| {TITLES[setting.method]} | {setting.ablation} | {setting.choice} "
            f"| {first['mean']:.2f} [{first['low']:.2f}, {first['high']:.2f}] "
            f"| {metrics['map']['mean']:.2f} | {metrics['roc_auc']['mean']:.2f} |"
        )
    return "\n".join(lines) + "\n"


def at_answer(setting: Setting) -> bool:
    """Whether documents were pooled where they state an answer, and not over their whole text."""
    patched_layer = setting.method == "causal_patching" and setting.ablation == "layers"
    return setting.choice == "answer" or ", answer" in setting.ablation or patched_layer


def draw(path: Path, found: dict[Setting, dict[str, Any]], chance: float) -> None:
    """precision@10 of every setting, one panel for each thing that is varied."""
    import matplotlib

    matplotlib.use("agg")
    from matplotlib import pyplot as plt
    from matplotlib.lines import Line2D

    panels = [
        ("pooling", "pooling"),
        ("layers", "layer"),
        ("normalisation", "normalisation"),
        ("similarity", "similarity"),
        ("IG steps", "steps of integrated gradients"),
        ("patch", "patched dimensions"),
    ]
    colours = dict(
        zip(TITLES, ("#1b6ca8", "#d1495b", "#edae49", "#b07aa1", "#3d7a5c"), strict=True)
    )
    figure, axes = plt.subplots(2, 3, figsize=(7.2, 4.2), sharey=True, layout="constrained")
    for axis, (ablation, title) in zip(axes.flat, panels, strict=True):
        own = {s: m for s, m in found.items() if s.ablation.startswith(ablation)}
        choices = list(dict.fromkeys(setting.choice for setting in own))
        series = [key for key in dict.fromkeys((s.method, s.ablation) for s in own)
                  if not key[1].endswith("all positions")]  # fmt: skip
        for setting, metrics in own.items():
            if (setting.method, setting.ablation) not in series:
                continue
            place = series.index((setting.method, setting.ablation))
            across = (place - (len(series) - 1) / 2) * 0.14
            one = metrics["precision@10"]
            axis.errorbar(
                choices.index(setting.choice) + across,
                one["mean"],
                yerr=[[one["mean"] - one["low"]], [one["high"] - one["mean"]]],
                fmt="^" if "last layer" in setting.ablation else "o",
                markersize=4,
                linewidth=1,
                color=colours[setting.method],
                markerfacecolor=colours[setting.method] if at_answer(setting) else "white",
            )
        axis.axhline(chance, color="0.5", linewidth=0.8, linestyle=":")
        axis.set_xticks(range(len(choices)), choices, fontsize=7)
        axis.set_xlim(-0.5, len(choices) - 0.5)
        axis.set_title(title, fontsize=8)
        axis.tick_params(axis="y", labelsize=7)
        axis.spines[["top", "right"]].set_visible(False)
    axes[0, 0].set_ylim(0, 1.03)
    for axis in axes[:, 0]:
        axis.set_ylabel("precision@10", fontsize=8)
    handles = [
        Line2D([], [], color=colours[name], marker="o", markersize=4, linewidth=1, label=title)
        for name, title in TITLES.items()
    ]
    marks = (
        ("o", "white", "document pooled over its text"),
        ("o", "0.3", "where it states an answer"),
        ("^", "0.3", "at the last layer only"),
    )
    handles += [
        Line2D([], [], color="0.3", marker=marker, markerfacecolor=face, markersize=4,
                   linewidth=0, label=label)
        for marker, face, label in marks
    ]  # fmt: skip
    handles.append(Line2D([], [], color="0.5", linewidth=0.8, linestyle=":", label="chance"))
    figure.legend(handles=handles, loc="outside lower center", ncols=3, fontsize=7, frameon=False)
    with replacing(path) as temporary:
        figure.savefig(temporary, dpi=160, format="png")
    plt.close(figure)


if __name__ == "__main__":
    with one_line_errors():
        main(parse(Config, program="method_ablations.py"))
