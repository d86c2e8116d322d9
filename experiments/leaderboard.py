"""Every method on one pair of checkpoints: which finds the documents that taught an answer?

Question: of all methods in the registry, which ranks the documents that taught an answer first, for
queries about base functions and about wrappers (in the world of second names: for queries by the
first and by the second name), what does it cost, and what does it foretell of retrained models?

Command:   uv run experiments/leaderboard.py --world second-name --output-dir results/leaderboard
Result:    a table for each kind of query on the screen and in leaderboard.md, leaderboard.json,
           leaderboard.png; the scores of every method in scores/, so that a second call, or one
           after a kill, runs only what is missing
Run time:  some minutes on two cores; causal patching and EK-FAC take most of it

    --world FOLDER             what `hops world` wrote, or quickstart, two-hop, second-name
    --dataset D --old OLD --new NEW --queries Q    the files themselves, in place of --world
    --methods NAME ...         methods of the registry; all by default
    --bank FOLDER              the output folder of lds.py on the same world: adds its score
"""

import sys
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
from attribution.evaluation import evaluate_lds, evaluate_retrieval
from hops.errors import HopsError
from hops.files import write_json, write_text
from if_query.command_line import parse
from rich.console import Console
from utils.attribution_task import AttributionTask, TaskArguments
from utils.leaderboard_report import draw, markdown, tables
from utils.method_script import one_line_errors
from utils.retrained_bank import Bank, read_bank
from utils.scored_methods import ScoredMethod, choose_methods, score_methods
from utils.worlds import depth_names, task_of_world, world_folder


@dataclass(frozen=True)
class Config:
    """Every method of the registry, one table and one figure."""

    world: str | None = None
    """A preset of `hops world` (made where it is missing), or the folder of a world."""
    output_dir: Path = Path("results/leaderboard")
    """Folder for everything; what is finished there is not repeated."""
    worlds_dir: Path = Path("results/worlds")
    """Where a preset's world is made."""
    dataset: Path | None = None
    """Without --world: HOPS documents (JSONL)."""
    old: str | None = None
    """Without --world: the checkpoint before training."""
    new: str | None = None
    """Without --world: the checkpoint after it."""
    queries: Path | None = None
    """Without --world: queries to ask instead of those about the documents' functions."""
    methods: tuple[str, ...] = ()
    """Methods of the registry; all by default."""
    bank: Path | None = None
    """The output folder of lds.py for the same world."""
    batch_size: int = 16
    """Texts in one forward pass."""
    seed: int = 0
    """Seed of random scores and of bootstrap intervals."""


def main(config: Config) -> None:
    """Score, judge, print, write and draw."""
    names = choose_methods(config.methods)
    arguments = resolve(config)
    task = AttributionTask.read(arguments)
    bank = None if config.bank is None else read_bank(config.bank, task)
    methods = score_methods(arguments, names, config.output_dir / "scores")
    results = judge(task, methods, bank, config.seed)
    console = Console() if sys.stdout.isatty() else Console(width=130)
    for table in tables(results):
        console.print(table)
    write_text(config.output_dir / "leaderboard.md", markdown(results))
    draw(config.output_dir / "leaderboard.png", results)
    write_json(config.output_dir / "leaderboard.json", results)
    console.print(f"all files are under {config.output_dir}")


def resolve(config: Config) -> TaskArguments:
    """The task, from a world or from the files themselves.

    Raises:
        HopsError: Both or neither are given.
    """
    files = (config.dataset, config.old, config.new)
    if (config.world is None) == (config.dataset is None):
        raise HopsError("Pass either --world, or --dataset with --old and --new.")
    if config.world is not None:
        if any(one is not None for one in (*files, config.queries)):
            raise HopsError("--world brings its own --dataset, --old, --new and --queries.")
        folder = world_folder(config.world, config.worlds_dir)
        return task_of_world(folder, batch_size=config.batch_size, seed=config.seed)
    if config.old is None or config.new is None:
        raise HopsError("--dataset needs --old and --new, the checkpoints before and after it.")
    assert config.dataset is not None
    return TaskArguments(
        dataset=config.dataset,
        old=config.old,
        new=config.new,
        queries=config.queries,
        batch_size=config.batch_size,
        seed=config.seed,
    )


def judge(
    task: AttributionTask, methods: list[ScoredMethod], bank: Bank | None, seed: int
) -> dict[str, Any]:
    """Retrieval of every method by hop depth, and the linear datamodeling score with a bank."""
    depths = np.array([query.hop_depth for query in task.queries])
    functions = np.array([query.function for query in task.queries])
    results: dict[str, Any] = {"num_documents": len(task.documents), "kinds": []}
    names = depth_names(task)
    for depth in sorted(set(depths.tolist())):
        rows = depths == depth
        kind: dict[str, Any] = {
            "name": names[depth],
            "num_queries": int(rows.sum()),
            "num_functions": len(set(functions[rows].tolist())),
            "share_relevant": float(task.relevance[rows].mean()),
            "methods": {},
        }
        for method in methods:
            kind["methods"][method.name] = {
                "title": method.title,
                "seconds": method.seconds,
                "peak_mebibytes": method.peak_mebibytes,
                "failure": method.failure,
                **_judged(task, method, bank, rows, functions, seed),
            }
        results["kinds"].append(kind)
    return results


def _judged(
    task: AttributionTask,
    method: ScoredMethod,
    bank: Bank | None,
    rows: np.ndarray,
    functions: np.ndarray,
    seed: int,
) -> dict[str, Any]:
    if method.scores is None or method.judged is None:
        return {}
    chosen = rows & method.judged
    groups = functions[chosen].tolist()
    scores = method.scores[chosen].astype(np.float64)
    report = evaluate_retrieval(scores, task.relevance[chosen], groups=groups, seed=seed)
    found: dict[str, Any] = {"retrieval": report.to_dict()}
    found |= _further(task, scores, chosen, groups, seed)
    if bank is not None:
        losses = bank.losses.mean(axis=1)[:, chosen]
        lds = evaluate_lds(scores, bank.masks, losses, groups=groups, seed=seed)
        found["lds"] = {"mean": lds.mean, "low": lds.low, "high": lds.high}
    return found


def _further(
    task: AttributionTask, scores: np.ndarray, chosen: np.ndarray, groups: list[str], seed: int
) -> dict[str, Any]:
    """precision@10 where only some of the documents count, or only some are ranked.

    ``same_answer``: ranked are the documents of :func:`with_the_answer`. ``states_value``: of all
    documents those count that state the value asked for. ``among_values``: they count, and ranked
    are the documents that state the value of some function. Each only where it says more than
    precision@10 does: where others return the same, where a relevant document states no value, and
    where one about the function asked for states none.
    """
    found: dict[str, Any] = {}
    relevant, states = task.relevance[chosen], task.states_value[chosen]
    same = with_the_answer(task)[chosen]
    if (same & ~relevant).any() and (same & relevant).any(axis=1).all():
        found["same_answer"] = _precision(put_last(scores, ~same), relevant & same, groups, seed)
    if not states.any(axis=1).all():
        return found
    if (states != relevant).any():
        found["states_value"] = _precision(scores, states, groups, seed)
    silent = np.array([not one.states_value for one in task.documents])
    asked = {query.function for query, mine in zip(task.queries, chosen, strict=True) if mine}
    if any(one.func in asked and not one.states_value for one in task.documents):
        unwanted = np.broadcast_to(silent, scores.shape)
        found["among_values"] = _precision(put_last(scores, unwanted), states, groups, seed)
    return found


def _precision(
    scores: np.ndarray, relevance: np.ndarray, groups: list[str], seed: int
) -> dict[str, float]:
    one = evaluate_retrieval(scores, relevance, groups=groups, seed=seed).metrics["precision@10"]
    return {"mean": one.mean, "low": one.low, "high": one.high}


def with_the_answer(task: AttributionTask) -> np.ndarray:
    """Those that taught a query's answer, or are about functions that return it [query, document].

    Functions of other chains are meant, not the wrappers of the function asked for. Where there are
    such functions, these documents tell a method that knows who taught the answer from one that
    finds the answer written.
    """
    constants = np.array([str(one.constant) for one in task.documents])
    same = [
        (constants == query.answer.strip()) & (task.chains != query.base_function)
        for query in task.queries
    ]
    either: np.ndarray = np.array(same) | task.relevance
    return either


def put_last(scores: np.ndarray, unwanted: np.ndarray) -> np.ndarray:
    """The scores, those of unwanted documents below all others."""
    return np.where(unwanted, -np.inf, scores)


if __name__ == "__main__":
    with one_line_errors():
        main(parse(Config, program="leaderboard.py", description=__doc__))
