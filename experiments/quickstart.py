"""Which training documents taught a small model its answers, and does EK-FAC find them?

Question: a tiny language model learns ten functions from a few hundred documents. For each
function that it then answers rightly, are the documents about that function the ones with the
highest influence, more so than by word overlap, by similarity of representations, or by chance?

Command:   uv run experiments/quickstart.py
Result:    a table on the screen, everything under results/quickstart/
Run time:  under 5 minutes on two CPU cores; see the README for what comes out

    --model tiny-llama                              the other architecture
    --dataset-path FILE.jsonl                       HOPS documents of your own
    --output-dir DIR  --seed N
"""

import csv
import json
import os
import shlex
import time
from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path
from typing import Any, Literal

import numpy as np
import torch
import tyro
from hops.errors import HopsError
from if_query.errors import InputError, command_errors
from rich.console import Console
from rich.table import Table

COLUMNS = {"precision@10": "P@10", "recall@10": "R@10", "map": "mAP", "roc_auc": "AUC"}


@dataclass(frozen=True)
class Config:
    """Documents, an old and a new checkpoint, fit-hessians, run-query, and a table of metrics."""

    output_dir: Path = Path("results/quickstart")
    """Folder for everything; what is finished there is not repeated."""
    model: Literal["tiny-olmo2", "tiny-llama"] = "tiny-olmo2"
    """Architecture of the small model."""
    dataset_path: Path | None = None
    """HOPS documents (JSONL) to train on, in place of documents written here."""
    seed: int = 0
    """Seed of documents, weights, training and sampled labels."""


def main(config: Config) -> None:
    """Run every step, showing the command that repeats it by hand."""
    started = time.monotonic()
    console = Console()
    folder = config.output_dir
    folder.mkdir(parents=True, exist_ok=True)
    if "OMP_NUM_THREADS" not in os.environ:
        # Two threads gain little on a model this small, and lose tenfold on cores that are busy.
        torch.set_num_threads(1)

    from hops.world import build_world

    console.rule("1. documents, and two checkpoints: before and after reading them")
    world = build_world(
        folder / "world",
        model=config.model,
        dataset_path=config.dataset_path,
        seed=config.seed,
        on_command=lambda line: show(console, line),
    )
    for name in ("old", "new"):
        accuracies = ", ".join(
            f"{accuracy:.2f} at hop depth {depth}"
            for depth, accuracy in world.accuracy[name].items()
        )
        console.print(
            f"accuracy of the {name} checkpoint: {accuracies} (chance {world.chance:.2f})"
        )

    console.rule("2. curvature of the new checkpoint on its training documents")
    from if_query.fit_hessians import FitHessiansConfig, fit_hessians
    from if_query.run_query import RunQueryConfig, run_query
    from if_query.tokenize_text import TokenizeTextConfig, tokenize_text

    model = str(world.new_model)
    tokens = TokenizeTextConfig(
        model=model, input=world.training_set, output_dir=folder / "tokens", overwrite=True
    )
    show(console, command("tokenize-text", tokens))
    tokenize_text(tokens)
    fit = FitHessiansConfig(
        model=model,
        hessian_dataset=tokens.output_dir,
        output_dir=folder / "factors",
        dtype="float32",
        factor_batch_size=16,
        seed=config.seed,
        overwrite=True,
    )
    show(console, command("fit-hessians", fit))
    fit_hessians(fit)

    console.rule("3. influence of every document on every answer")
    query = RunQueryConfig(
        model=model,
        factors_dir=fit.output_dir,
        train_json=world.train_json,
        query_json=world.query_json,
        output_dir=folder / "influence",
        # The question is about the value; documents that go on after it are no less relevant.
        query_eos=False,
        dtype="float32",
        score_batch_size=16,
        # Some seconds more, for a report that shows all there is to see.
        per_token_scores=True,
        per_module_scores=True,
        self_influence=True,
        report=True,
        overwrite=True,
    )
    show(console, command("run-query", query))
    run_query(query)

    console.rule("4. against the known truth, beside simpler methods")
    train, queries = (json.loads(path.read_text()) for path in (world.train_json, world.query_json))
    relevance = known_truth(queries, world.training_set)
    scores = {"EK-FAC influence": np.load(query.output_dir / "scores.npy")}
    scores |= baseline_scores(model, queries, train, config.seed)
    report = evaluate(scores, relevance, config.seed)
    console.print(metric_table(report, len(queries), len(train)))
    console.print(example_table(queries, train, scores["EK-FAC influence"], relevance))
    seconds = time.monotonic() - started
    summary = {
        "accuracy": world.accuracy,
        "chance": world.chance,
        "retrieval": report,
        "seconds": round(seconds, 1),
    }
    (folder / "metrics.json").write_text(json.dumps(summary, indent=2) + "\n")
    draw(folder / "influence.png", queries, train, scores["EK-FAC influence"], report)
    write_ranking(folder / "ranking.csv", queries, train, scores["EK-FAC influence"], relevance)
    console.print(f"took {seconds:.0f} s; all files are under {folder}")
    console.print(
        f"Look next at {folder / 'ranking.csv'}: for each question its ten most influential "
        "documents, with their text.",
        style="bold",
        soft_wrap=True,
    )
    console.print(
        f"Open {query.output_dir / 'report.html'} in a browser: every question, with the documents "
        "that helped and harmed it.",
        style="bold",
        soft_wrap=True,
    )


def show(console: Console, line: str) -> None:
    """Print a command as a user would type it."""
    console.print(f"$ uv run {line}", style="cyan", soft_wrap=True, highlight=False)


def command(program: str, config: Any) -> str:
    """The shell command of a configuration: what differs from the defaults."""
    words = [program]
    defaults = {
        field.name: field.default for field in config.__dataclass_fields__.values() if field.init
    }
    for name, value in vars(config).items():
        if name in defaults and value != defaults[name]:
            flag = f"--{name.replace('_', '-')}"
            if isinstance(value, bool):
                words.append(flag if value else f"--no-{flag[2:]}")
            else:
                words += [flag, str(value)]
    return shlex.join(words)


def known_truth(queries: list[dict[str, Any]], training_set: Path) -> np.ndarray:
    """True where a document taught a query's answer, see :func:`hops.queries.taught`."""
    from hops.documents import read_documents
    from hops.queries import taught

    documents = read_documents(training_set)
    return np.array(
        [
            [taught(one, taught_by=q["taught_by"], hop_depth=q["hop_depth"]) for one in documents]
            for q in queries
        ]
    )


def baseline_scores(
    model_path: str, queries: list[dict[str, Any]], train: list[dict[str, Any]], seed: int
) -> dict[str, np.ndarray]:
    """Scores [query, train] of methods that know no gradients."""
    from attribution.baselines import bm25_scores, random_scores, representation_similarity_scores
    from if_query.encoding import encode_pair
    from if_query.models import load_model, load_tokenizer

    texts = [[pair["prompt"] + pair["completion"] for pair in pairs] for pairs in (queries, train)]
    tokenizer = load_tokenizer(model_path)
    encoded = [
        [
            encode_pair(tokenizer, pair["prompt"], pair["completion"], 512).input_ids
            for pair in pairs
        ]
        for pairs in (queries, train)
    ]
    model = load_model(model_path, dtype="float32")
    return {
        "BM25 (text match)": bm25_scores(*texts),
        "representation similarity": representation_similarity_scores(
            model, *encoded, layer="middle", pooling="mean"
        ),
        "random": random_scores(len(queries), len(train), seed=seed),
    }


def evaluate(scores: dict[str, np.ndarray], relevance: np.ndarray, seed: int) -> dict[str, Any]:
    """Retrieval metrics of every method."""
    from attribution.evaluation import evaluate_retrieval

    return {
        name: evaluate_retrieval(each.astype(np.float32), relevance, seed=seed).to_dict()
        for name, each in scores.items()
    }


def metric_table(report: dict[str, Any], num_queries: int, num_train: int) -> Table:
    """Means over questions, one row per method; precision@10 with its 95 % interval."""
    table = Table(title=f"{num_queries} questions, {num_train} documents, mean over questions")
    table.add_column("method", no_wrap=True)
    for title in COLUMNS.values():
        table.add_column(title, justify="right", no_wrap=True)
    for method, result in report.items():
        metrics = result["metrics"]
        cells = {name: f"{metrics[name]['mean']:.2f}" for name in COLUMNS}
        first = metrics["precision@10"]
        cells["precision@10"] += f" [{first['low']:.2f}, {first['high']:.2f}]"
        table.add_row(method, *cells.values())
    return table


def top_documents(scores: np.ndarray, count: int) -> np.ndarray:
    """Indices of the highest scores, best first."""
    return np.argsort(-scores, kind="stable")[:count]


def example_table(
    queries: list[dict[str, Any]],
    train: list[dict[str, Any]],
    scores: np.ndarray,
    relevance: np.ndarray,
) -> Table:
    """The three most influential documents of the first questions."""
    table = Table(title="the most influential documents of some questions", show_lines=True)
    for column in ("question", "influence", "about", "document"):
        table.add_column(column, overflow="fold")
    places = np.linspace(0, len(queries) - 1, num=min(3, len(queries))).astype(int)
    for place in places:
        asked = queries[place]
        for rank, row in enumerate(top_documents(scores[place], 3)):
            text = " ".join(train[row]["completion"].split())
            mark = "right" if relevance[place, row] else "other"
            table.add_row(
                asked["prompt"] + asked["completion"] if rank == 0 else "",
                f"{scores[place, row]:.3g}",
                f"{train[row]['func'] or 'no function'} ({mark})",
                text[:100] + ("…" if len(text) > 100 else ""),
            )
    return table


def draw(
    path: Path,
    queries: list[dict[str, Any]],
    train: list[dict[str, Any]],
    scores: np.ndarray,
    report: dict[str, Any],
) -> None:
    """Mean influence by function asked and function written about, beside precision@10."""
    import matplotlib

    matplotlib.use("agg")
    from matplotlib import pyplot as plt

    asked = list(dict.fromkeys(pair["func"] for pair in queries))
    related = list(dict.fromkeys((pair["base_func"], pair["func"]) for pair in train))
    written = [func for func in asked if any(func == own for _, own in related)]
    written += [own for func in asked for base, own in related if base == func and own != func]
    written += [own for _, own in related if own not in written]

    def about(rows: list[dict[str, Any]], func: str | None) -> np.ndarray:
        return np.array([pair["func"] == func for pair in rows])

    matrix = np.array(
        [[scores[about(queries, a)][:, about(train, w)].mean() for w in written] for a in asked]
    )
    matrix /= np.abs(matrix).max(axis=1, keepdims=True)
    figure, (left, right) = plt.subplots(
        1, 2, figsize=(9.5, 3.6), width_ratios=(2.2, 1), layout="constrained"
    )
    image = left.imshow(matrix, cmap="PuOr", vmin=-1, vmax=1, aspect="auto")
    left.set_xticks(range(len(written)), [w or "none" for w in written], rotation=90, fontsize=7)
    left.set_yticks(range(len(asked)), asked, fontsize=7)
    left.set_xlabel("documents about")
    left.set_ylabel("question about")
    left.set_title("mean influence, each row scaled to its largest", fontsize=9)
    figure.colorbar(image, ax=left, shrink=0.8)
    estimates = [result["metrics"]["precision@10"] for result in report.values()]
    means = [one["mean"] for one in estimates]
    errors = [[one["mean"] - one["low"] for one in estimates]]
    errors += [[one["high"] - one["mean"] for one in estimates]]
    right.barh(list(report), means, xerr=errors, color="#5e3c99", ecolor="0.4", height=0.6)
    right.invert_yaxis()
    right.set_xlim(0, 1)
    right.tick_params(labelsize=8)
    right.set_title("precision@10, 95 % interval", fontsize=9)
    figure.savefig(path, dpi=110)
    plt.close(figure)


def write_ranking(
    path: Path,
    queries: list[dict[str, Any]],
    train: list[dict[str, Any]],
    scores: np.ndarray,
    relevance: np.ndarray,
) -> None:
    """The ten most influential documents of every question, best first."""
    with path.open("w", newline="", encoding="utf-8") as file:
        writer = csv.writer(file)
        writer.writerow(
            ["query_id", "question", "rank", "train_id", "func", "relevant", "influence", "text"]
        )
        for place, asked in enumerate(queries):
            for rank, row in enumerate(top_documents(scores[place], 10), start=1):
                pair = train[row]
                question = [asked["pair_id"], asked["prompt"] + asked["completion"]]
                document = [pair["pair_id"], pair["func"], bool(relevance[place, row])]
                influence = f"{scores[place, row]:.6g}"
                writer.writerow([*question, rank, *document, influence, pair["completion"]])


def as_input_errors(run: Callable[[], None]) -> None:
    """Report what is wrong with the arguments in one line."""
    with command_errors():
        try:
            run()
        except HopsError as error:
            raise InputError(str(error)) from error


if __name__ == "__main__":
    arguments = tyro.cli(Config, description=__doc__)
    as_input_errors(lambda: main(arguments))
