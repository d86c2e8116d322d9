"""Do the scores of a method foretell what a model trained on other documents would answer?

Question: train the world's old checkpoint again on random halves of the documents, many times. Is
the loss of a query lower where the documents that a method scores high were among them (the linear
datamodeling score)? And are answers lost when a method's top documents are left out?

Command:   uv run experiments/lds.py --world quickstart --output-dir results/lds
Result:    a table on the screen and in lds.md, metrics.json, brittleness.png; what retrained models
           answer in models/, so that a call after a kill trains only what is missing
Run time:  5 s of one core for each retraining of the quickstart world on half of its documents

    --world FOLDER                 what `hops world` wrote, or quickstart, two-hop, second-name
    --num-models 64 --repeats 2    random halves, and trainings of each with different seeds
    --methods NAME ...             methods of the registry; all by default
    --workers 2                    trainings at a time
"""

import sys
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
from attribution.evaluation import (
    evaluate_lds,
    foretellable,
    luck_of_subsets,
    retraining_agreement,
)
from attribution.evaluation.report import estimate_mean
from hops.errors import HopsError
from hops.files import write_json, write_text
from if_query.command_line import parse
from rich.console import Console
from utils.attribution_task import AttributionTask
from utils.lds_report import draw_brittleness, lds_table, markdown
from utils.leave_out import LeaveOut, LeaveOutPlan, leave_out
from utils.method_script import one_line_errors
from utils.retrained_bank import Bank, BankPlan, make_bank, open_store
from utils.retrained_models import RetrainingStore
from utils.scored_methods import ScoredMethod, choose_methods, score_methods
from utils.worlds import depth_names, task_of_world, world_folder


@dataclass(frozen=True)
class Config:
    """A bank of retrained models, and what every method foretells of it."""

    world: str = "quickstart"
    """A preset of `hops world` (made where it is missing), or the folder of a world."""
    output_dir: Path = Path("results/lds")
    """Folder for everything; what is finished there is not repeated."""
    worlds_dir: Path = Path("results/worlds")
    """Where a preset's world is made."""
    num_models: int = 64
    """Random subsets of the documents; a model is trained on each."""
    repeats: int = 2
    """Models for each subset, which differ in the seed of their training."""
    share: float = 0.5
    """The share of the documents in a subset."""
    workers: int = 1
    """Trainings at a time, one thread each."""
    methods: tuple[str, ...] = ()
    """Methods of the registry; all by default."""
    leave_out_methods: tuple[str, ...] = ("bm25", "dh_similarity_text", "grad_similarity_text")
    """Methods whose top documents are left out; none: no leave-out retraining."""
    leave_out_functions: int = 5
    """Functions asked about there."""
    leave_out_counts: tuple[int, ...] = (10, 20, 40, 80)
    """How many documents are left out."""
    leave_out_repeats: int = 2
    """Trainings of each set that is left."""
    seed: int = 0
    """Seed of subsets, trainings and bootstrap intervals."""


def main(config: Config) -> None:
    """Train the bank, score, correlate; then leave out."""
    names = choose_methods(config.methods)
    left_out = choose_methods(config.leave_out_methods) if config.leave_out_methods else ()
    plan = BankPlan(config.num_models, config.repeats, config.share, config.seed)
    plan.check()
    if config.workers < 1:
        raise HopsError(f"--workers: expected at least 1, got {config.workers}.")
    console = Console() if sys.stdout.isatty() else Console(width=130)
    arguments = task_of_world(world_folder(config.world, config.worlds_dir), seed=config.seed)
    task = AttributionTask.read(arguments)
    plan.size(len(task.documents))
    store = open_store(task, config.output_dir)
    if left_out:
        leaving = LeaveOutPlan(
            config.leave_out_functions,
            config.leave_out_counts,
            config.leave_out_repeats,
            config.seed,
        )
        leaving.check(store.num_documents)
    bank = make_bank(store, plan, workers=config.workers)
    wanted = tuple(dict.fromkeys((*names, *left_out)))
    methods = score_methods(arguments, wanted, config.output_dir / "scores")
    results = judge(task, bank, methods, config.seed)
    console.print(lds_table(results))
    removed = None
    if left_out:
        scores = {
            one.name: one.scores
            for one in methods
            if one.name in left_out and one.scores is not None
        }
        removed = leave_out(
            task, scores, answered_by_new(task, store), store, leaving, workers=config.workers
        )
        draw_brittleness(config.output_dir / "brittleness.png", removed)
        results["leave_out"] = leave_out_numbers(removed)
    write_text(config.output_dir / "lds.md", markdown(results))
    write_json(config.output_dir / "metrics.json", results)
    console.print(f"all files are under {config.output_dir}")


def judge(
    task: AttributionTask, bank: Bank, methods: list[ScoredMethod], seed: int
) -> dict[str, Any]:
    """The linear datamodeling score of every method, for each hop depth, beside its ceiling."""
    losses = bank.losses.mean(axis=1)
    depths = np.array([query.hop_depth for query in task.queries])
    functions = np.array([query.function for query in task.queries])
    names = depth_names(task)
    results: dict[str, Any] = {
        "num_subsets": len(bank.masks),
        "repeats": bank.losses.shape[1],
        "documents_in_a_subset": int(bank.masks[0].sum()),
        "depths": {},
    }
    for depth in sorted(set(depths.tolist())):
        chosen = depths == depth
        entry: dict[str, Any] = {
            "name": names[depth],
            "num_queries": int(chosen.sum()),
            "accuracy": float(bank.correct[:, :, chosen].mean()),
            "methods": {},
        }
        if bank.losses.shape[1] > 1:
            entry |= noise(bank.losses[:, :, chosen], functions[chosen].tolist(), seed)
        for method in methods:
            if method.scores is None or method.judged is None:
                entry["methods"][method.name] = {"title": method.title, "failure": method.failure}
                continue
            rows = chosen & method.judged
            judged = (method.scores[rows].astype(np.float64), bank.masks, losses[:, rows])
            groups = functions[rows].tolist()
            found = evaluate_lds(*judged, groups=groups, seed=seed)
            entry["methods"][method.name] = {
                "title": method.title,
                "mean": found.mean,
                "low": found.low,
                "high": found.high,
                "luck": luck_of_subsets(*judged, groups=groups, seed=seed),
            }
        results["depths"][str(depth)] = entry
    return results


def noise(losses: np.ndarray, groups: list[str], seed: int) -> dict[str, dict[str, float]]:
    """How far two trainings on one subset agree, and what can be foretold of their mean at most.

    The latter is taken of the mean agreement, not query by query: the agreement of one query over
    few subsets is mostly chance, and its root, which ends at 0, would on average be too high.

    Args:
        losses: of every repeat of every subset [subset, repeat, query].
        groups: what each query is about.
        seed: of the bootstrap.
    """
    found = estimate_mean(retraining_agreement(losses), groups=groups, seed=seed)
    agreement = {"mean": found.mean, "low": found.low, "high": found.high}
    ceiling = foretellable(np.array(list(agreement.values())), losses.shape[1]).tolist()
    return {"agreement": agreement, "ceiling": dict(zip(agreement, ceiling, strict=True))}


def answered_by_new(task: AttributionTask, store: RetrainingStore) -> np.ndarray:
    """Whether the world's own new checkpoint answers each query rightly."""
    from utils.retrained_models import ask

    return ask(task.new_model, task.tokenizers[1], store.questions).correct


def leave_out_numbers(removed: LeaveOut) -> dict[str, Any]:
    """The curves as JSON values."""
    return {
        "functions": list(removed.functions),
        "counts": list(removed.counts),
        **{
            what: {name: values.tolist() for name, values in getattr(removed, what).items()}
            for what in ("rise", "correct", "relevant")
        },
    }


if __name__ == "__main__":
    with one_line_errors():
        main(parse(Config, program="lds.py", description=__doc__))
