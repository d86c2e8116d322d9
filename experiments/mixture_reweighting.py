"""Does a mixture that follows influence train a better model than an even one?

Question: a tiny OLMo-2 trains on three sources: one of the domain it is judged by (relevant), one
of another domain (irrelevant) and one of random tokens (noise). A tracker measures the influence
of each source on a small probe set of the domain while training runs, and moves the weights. Is the
loss on a separate evaluation set lower, after the same number of steps, than with even weights,
and how near does it come to an oracle that knows the relevant source from the start?

Command:   uv run experiments/mixture_reweighting.py
Result:    a table on the screen, metrics.json, weights.csv and mixture.png in results/mixture/
Expected:  the relevant source ends with most of the weight for every seed, and the evaluation loss
           lies between the even mixture's and the oracle's
Run time:  about 90 s on one CPU thread (3 seeds); the result is in packages/data-handler/README.md
"""

import csv
import json
import os
import statistics
from dataclasses import dataclass
from pathlib import Path
from typing import Any, Literal

import torch
import tyro
from data_handler.influence import InfluenceTracker, MixtureWeightCalculator, WeightedSourceDataset
from math_utils.influence import InfluenceConfig, MixtureConfig
from rich.console import Console
from rich.table import Table
from torch.utils.data import DataLoader
from tqdm import tqdm
from transformers import AutoModelForCausalLM, Olmo2Config, Trainer, TrainingArguments
from transformers.trainer_callback import PrinterCallback
from transformers.utils import logging as transformers_logging

SOURCES = ("relevant", "irrelevant", "noise")
POLICIES = ("even", "influence", "oracle")
VOCABULARY = 64
COLORS = {"relevant": "#5e3c99", "irrelevant": "#e66101", "noise": "0.5"}


@dataclass(frozen=True)
class Config:
    """Three sources, three policies, several seeds."""

    output_dir: Path = Path("results/mixture")
    """Folder for the table, the weights and the figure."""
    seeds: int = 3
    """Runs of each policy; each has its own domains, data and model."""
    steps: int = 300
    """Optimizer steps."""
    update_interval: int = 20
    """Steps between two updates of the weights."""
    method: Literal["datainf", "first_order", "distillation"] = "datainf"
    """How influence is measured."""
    num_examples: int = 400
    """Training examples of each source."""
    num_measured: int = 48
    """Examples of each source that influence is measured on."""
    num_probes: int = 32
    """Probe examples; the evaluation set has 256 others."""
    length: int = 32
    """Tokens of an example."""
    batch_size: int = 16
    """Examples of a step."""
    learning_rate: float = 3e-3
    """Of AdamW."""


def main(config: Config) -> None:
    """Train every policy with every seed, then print, write and draw."""
    transformers_logging.set_verbosity_error()
    if "OMP_NUM_THREADS" not in os.environ:
        torch.set_num_threads(1)
    runs = []
    jobs = [(seed, policy) for seed in range(config.seeds) for policy in POLICIES]
    for seed, policy in tqdm(jobs, desc="trainings"):
        runs.append(train(config, seed, policy))
    console = Console()
    console.print(result_table(config, runs))
    config.output_dir.mkdir(parents=True, exist_ok=True)
    (config.output_dir / "metrics.json").write_text(json.dumps(runs, indent=2) + "\n")
    write_weights(config.output_dir / "weights.csv", runs)
    draw(config.output_dir / "mixture.png", runs)
    console.print(f"all files are under {config.output_dir}")


def train(config: Config, seed: int, policy: str) -> dict[str, Any]:
    """One training: its evaluation losses by step, and its weights where they moved."""
    data = make_data(config, seed)
    bounds = MixtureConfig(update_interval=config.update_interval, learning_rate=0.5, smoothing=0.5)
    even = dict.fromkeys(SOURCES, 1 / len(SOURCES))
    rest = (1 - bounds.max_weight) / (len(SOURCES) - 1)
    known = {name: bounds.max_weight if name == "relevant" else rest for name in SOURCES}
    mixture = WeightedSourceDataset(
        {name: data[name] for name in SOURCES},
        num_samples=config.steps * config.batch_size,
        weights=known if policy == "oracle" else even,
        seed=seed,
    )
    model = make_model(config, seed)
    arguments = TrainingArguments(
        output_dir=str(config.output_dir / "training"),
        max_steps=config.steps,
        per_device_train_batch_size=config.batch_size,
        per_device_eval_batch_size=64,
        learning_rate=config.learning_rate,
        eval_strategy="steps",
        eval_steps=config.update_interval,
        logging_steps=config.steps,
        save_strategy="no",
        seed=seed,
        use_cpu=not torch.cuda.is_available(),
        report_to=[],
        disable_tqdm=True,
    )
    trainer = Trainer(
        model=model, args=arguments, train_dataset=mixture, eval_dataset=data["evaluation"]
    )
    # The Trainer would print its logs; they are kept in its state.
    trainer.remove_callback(PrinterCallback)
    history: list[dict[str, Any]] = []
    if policy == "influence":
        calculator = MixtureWeightCalculator(
            model,
            {"domain": loader(data["probe"])},
            bounds,
            config.method,
            influence_config=InfluenceConfig(),
        )
        measured = {name: loader(data[name][: config.num_measured]) for name in SOURCES}
        tracker = InfluenceTracker(calculator, measured, mixture)
        tracker.attach(trainer)
        trainer.train()
        history = [{"step": one.step, "weights": one.weights} for one in tracker.history]
    else:
        trainer.train()
    losses = {
        entry["step"]: entry["eval_loss"]
        for entry in trainer.state.log_history
        if "eval_loss" in entry
    }
    return {"seed": seed, "policy": policy, "evaluation_loss": losses, "weights": history}


def loader(examples: list[dict[str, torch.Tensor]]) -> DataLoader[Any]:
    """Batches of 16; a list serves as a data set."""
    return DataLoader(examples, batch_size=16)  # type: ignore[arg-type]


def make_data(config: Config, seed: int) -> dict[str, list[dict[str, torch.Tensor]]]:
    """Examples of the sources, probe and evaluation; the two domains are random Markov chains."""
    generator = torch.Generator().manual_seed(1000 + seed)
    chains = {
        name: torch.randn(VOCABULARY, VOCABULARY, generator=generator).mul(2).softmax(dim=1)
        for name in ("relevant", "irrelevant")
    }
    chains["noise"] = torch.full((VOCABULARY, VOCABULARY), 1 / VOCABULARY)
    counts = {name: (name, config.num_examples) for name in SOURCES}
    counts |= {"probe": ("relevant", config.num_probes), "evaluation": ("relevant", 256)}
    data = {}
    for name, (chain, count) in counts.items():
        columns = [torch.randint(VOCABULARY, (count,), generator=generator)]
        for _ in range(config.length - 1):
            odds = chains[chain][columns[-1]]
            columns.append(torch.multinomial(odds, 1, generator=generator)[:, 0])
        data[name] = [{"input_ids": row, "labels": row} for row in torch.stack(columns, dim=1)]
    return data


def make_model(config: Config, seed: int) -> Any:
    """A tiny OLMo-2 with random weights."""
    with torch.random.fork_rng():
        torch.manual_seed(seed)
        return AutoModelForCausalLM.from_config(
            Olmo2Config(
                vocab_size=VOCABULARY,
                hidden_size=48,
                intermediate_size=96,
                num_hidden_layers=2,
                num_attention_heads=4,
                max_position_embeddings=config.length,
            )
        )


def final_loss(runs: list[dict[str, Any]], policy: str) -> list[float]:
    """The last evaluation loss of each seed."""
    return [
        run["evaluation_loss"][max(run["evaluation_loss"])]
        for run in runs
        if run["policy"] == policy
    ]


def result_table(config: Config, runs: list[dict[str, Any]]) -> Table:
    """Evaluation loss by policy and seed, and the relevant source's weight at the end."""
    table = Table(title=f"evaluation loss after {config.steps} steps (nats per token)")
    table.add_column("mixture")
    for seed in range(config.seeds):
        table.add_column(f"seed {seed}", justify="right")
    table.add_column("mean", justify="right")
    table.add_column("weight of the relevant source", justify="right")
    for policy in POLICIES:
        losses = final_loss(runs, policy)
        ends = [r["weights"][-1]["weights"]["relevant"] for r in runs if r["weights"]]
        weights = {"even": "0.33", "oracle": "0.90"}.get(
            policy, ", ".join(f"{weight:.2f}" for weight in ends)
        )
        cells = [f"{loss:.3f}" for loss in losses]
        table.add_row(policy, *cells, f"{statistics.mean(losses):.3f}", weights)
    return table


def write_weights(path: Path, runs: list[dict[str, Any]]) -> None:
    """One row per update."""
    with path.open("w", newline="") as file:
        writer = csv.writer(file)
        writer.writerow(["seed", "step", *SOURCES])
        for run in runs:
            for update in run["weights"]:
                values = [f"{update['weights'][name]:.6f}" for name in SOURCES]
                writer.writerow([run["seed"], update["step"], *values])


def draw(path: Path, runs: list[dict[str, Any]]) -> None:
    """Weights by step, beside the evaluation losses of the policies."""
    import matplotlib

    matplotlib.use("agg")
    from matplotlib import pyplot as plt

    figure, (left, right) = plt.subplots(1, 2, figsize=(9, 3.4), layout="constrained")
    for run in runs:
        steps = [0, *(update["step"] for update in run["weights"])]
        for name in SOURCES if run["weights"] else ():
            values = [1 / 3, *(update["weights"][name] for update in run["weights"])]
            label = name if run["seed"] == 0 else None
            left.plot(steps, values, color=COLORS[name], lw=1.5, alpha=0.8, label=label)
        line = {"even": "0.5", "influence": "#5e3c99", "oracle": "#1b7837"}[run["policy"]]
        style = {"even": ":", "influence": "-", "oracle": "--"}[run["policy"]]
        losses = run["evaluation_loss"]
        label = run["policy"] if run["seed"] == 0 else None
        right.plot(list(losses), list(losses.values()), style, color=line, lw=1.5, label=label)
    left.set(xlabel="step", ylabel="weight", ylim=(0, 1), title="weights that follow influence")
    right.set(xlabel="step", ylabel="evaluation loss (nats per token)", title="evaluation")
    for axis in (left, right):
        axis.legend(frameon=False, fontsize=8)
        axis.spines[["top", "right"]].set_visible(False)
    figure.savefig(path, dpi=110)
    plt.close(figure)


if __name__ == "__main__":
    main(tyro.cli(Config, description=__doc__))
