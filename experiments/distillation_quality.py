"""How near does Influence Distillation come to exact first-order influence, and at what cost?

    uv run experiments/distillation_quality.py

A HOPS world is built first (once): documents, and a small OLMo-2 trained on them. Training examples
are its documents, probe examples are queries to its functions; the target is embedding and head.
Exact influence takes the gradient of every document. Propagated influence takes that of a share of
them, the landmarks, and embeddings of all. Two embeddings are compared: forward-mode derivatives
through the first block, and random projections of the gradients themselves to as many dimensions.
The latter cost as much as exact influence; they say how much of the error is the embedding's.

Correlations (Pearson) are those over documents that are no landmarks, averaged over probes. Lines
are means over seeds of landmarks and directions, bands their range. Costs are CPU seconds of one
whole `InfluenceDistillation.compute_influence` beside one of exact influence, in one process.

Result, of the command above on one CPU core (920 documents, 30 queries, the model before it saw
the documents; rbf kernel): a correlation of 0.22 at 1 % landmarks, 0.23 at 5 %, 0.27 at 10 % and
0.40 at 50 %; with projected gradients as embeddings 0.21, 0.48, 0.53 and 0.68. It took 2.3 to 2.8
times the CPU seconds of exact influence: in a model of two blocks of width 96, a gradient costs
less than four directions of forward-mode derivatives through one block. So on this world
distillation does not pay: neither is the propagation near, nor the gradient dear. Ask `evaluate`
on a model of your own.

The table is shown, the rows are written to `results/distillation_quality.json` and the plot to
`experiments/figures/distillation_quality.png`. About 4 minutes on one core, after the 3 minutes
that building the world takes once.
"""

import json
import time
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any, Literal

import matplotlib.pyplot as plt
import torch
import tyro
from hops.documents import read_documents
from hops.models import load_model, load_tokenizer
from hops.presets import PRESETS, Preset
from hops.training_data import encode_documents
from hops.world import World, build_world, plan_world
from math_utils.influence import (
    DiscriminativeGradientExtractor,
    EmbeddingExtractor,
    FirstOrderCalculator,
    InfluenceDistillation,
    InfluenceDistillationConfig,
    JVPEmbeddingConfig,
    JVPEmbeddingExtractor,
    KernelRidge,
    KernelRidgeConfig,
    LandmarkConfig,
    LandmarkSelector,
)
from rich.console import Console
from rich.table import Table
from torch import Tensor

KERNELS = ("linear", "rbf")
COLORS = {"forward mode": "#1f77b4", "gradients": "#d62728"}


@dataclass(frozen=True)
class Config:
    """Propagated against exact influence as landmarks grow."""

    world: Path = Path("results/influence_world")
    """Folder of the HOPS world; built where there is none."""
    shares: tuple[float, ...] = (0.01, 0.02, 0.05, 0.1, 0.2, 0.5)
    """Landmarks as shares of the documents."""
    checkpoint: Literal["old", "new"] = "old"
    """The model before it saw the documents, when data are chosen; or after it."""
    num_probe: int = 30
    """Queries, evenly spaced over all."""
    max_documents: int | None = None
    """Use only the first documents."""
    num_blocks: int = 1
    """Blocks that forward-mode embeddings go through."""
    num_tangents: int = 4
    """Directions of forward-mode embeddings."""
    strategy: str = "kmeans_pp"
    """How landmarks are chosen."""
    damping: float = 0.01
    """Relative damping of kernel ridge regression."""
    num_seeds: int = 3
    """Seeds of landmarks and directions."""
    batch_size: int = 16
    """Examples per batch."""
    threads: int = 1
    """CPU threads of torch."""
    output: Path = Path("results/distillation_quality.json")
    """Rows as JSON."""
    figure: Path = Path("experiments/figures/distillation_quality.png")
    """The plot."""


def main(config: Config) -> None:
    """Compute, print the table, write rows and plot."""
    torch.set_num_threads(config.threads)
    console = Console()
    world = find_world(config)
    model = load_model(world.old_model if config.checkpoint == "old" else world.new_model).eval()
    train, probe = make_loaders(config, world)
    num_train = sum(len(batch["input_ids"]) for batch in train)
    num_probe = sum(len(batch["input_ids"]) for batch in probe)
    console.print(f"{num_train} documents, {num_probe} queries")

    exact, exact_seconds = timed(
        lambda: FirstOrderCalculator(model).compute_influence(train, probe)
    )
    rows = []
    for seed in range(config.num_seeds):
        for name, extractor in make_extractors(config, model, seed).items():
            embeddings, seconds = timed(lambda e=extractor: e.compute_embeddings(train))
            console.print(f"seed {seed}, {name}: embeddings {seconds / exact_seconds:.2f} of exact")
            for share in config.shares:
                count = max(2, round(share * num_train))
                chosen = LandmarkSelector(LandmarkConfig(count, config.strategy, seed)).select(
                    embeddings
                )
                for kernel in KERNELS:
                    ridge = KernelRidge(
                        embeddings[chosen],
                        exact[:, chosen],
                        KernelRidgeConfig(kernel, config.damping),
                    )
                    row = {"seed": seed, "embedding": name, "share": share, "kernel": kernel}
                    found = held_out_correlation(ridge.predict(embeddings), exact, chosen)
                    rows.append({**row, "correlation": found})
    costs = {share: cost(config, model, train, probe, share, num_train) for share in config.shares}

    table = Table("embedding", "kernel", *(f"{share:.0%}" for share in config.shares))
    for name in COLORS:
        for kernel in KERNELS:
            means = [mean_of(rows, name, kernel, share)[0] for share in config.shares]
            table.add_row(name, kernel, *(f"{one:.3f}" for one in means))
    relative = [f"{costs[share] / exact_seconds:.2f}" for share in config.shares]
    table.add_row("seconds / exact", "", *relative)
    console.print(table)
    console.print(f"exact: {exact_seconds:.1f} s")
    config.output.parent.mkdir(parents=True, exist_ok=True)
    content: dict[str, Any] = {
        "config": {
            key: str(value) if isinstance(value, Path) else value
            for key, value in asdict(config).items()
        },
        "num_train": num_train,
        "exact_seconds": exact_seconds,
        "seconds": {str(share): seconds for share, seconds in costs.items()},
        "rows": rows,
    }
    config.output.write_text(json.dumps(content, indent=2))
    draw(config, rows, costs, exact_seconds, num_train)
    console.print(f"rows: {config.output}; plot: {config.figure}")


def find_world(config: Config) -> World:
    """The world of the folder, built where it is not there."""
    world, _ = plan_world(
        config.world, model="tiny-olmo2", preset=preset(), dataset_path=None, seed=0
    )
    if world.new_model.is_dir() and world.query_json.is_file():
        return world
    return build_world(config.world, preset=preset())


def preset() -> Preset:
    """The sizes of the quick start's world."""
    return PRESETS["quickstart"]


def make_loaders(config: Config, world: World) -> tuple[list[Any], list[Any]]:
    """Batches of documents, and of queries whose completion alone is labelled."""
    tokenizer = load_tokenizer(world.new_model)
    documents = read_documents(world.training_set)[: config.max_documents]
    encoded = encode_documents(documents, tokenizer, 256)
    train = [{"input_ids": ids, "labels": ids} for ids in encoded if len(ids) > 1]
    queries = json.loads(world.query_json.read_text())
    step = max(1, len(queries) // config.num_probe)
    probe = []
    for query in queries[::step][: config.num_probe]:
        prompt = tokenizer(query["prompt"], add_special_tokens=False)["input_ids"]
        answer = tokenizer(query["completion"], add_special_tokens=False)["input_ids"]
        labels = [-100] * len(prompt) + answer
        probe.append({"input_ids": prompt + answer, "labels": labels})
    pad = tokenizer.pad_token_id or 0

    def batches(examples: list[dict[str, Any]]) -> list[dict[str, Tensor]]:
        size = config.batch_size
        return [pad_batch(examples[i : i + size], pad) for i in range(0, len(examples), size)]

    return batches(train), batches(probe)


def pad_batch(examples: list[dict[str, Any]], pad: int) -> dict[str, Tensor]:
    """Pad on the right."""
    longest = max(len(one["input_ids"]) for one in examples)

    def rows(values: list[list[int]], filler: int) -> Tensor:
        return torch.tensor([own + [filler] * (longest - len(own)) for own in values])

    return {
        "input_ids": rows([one["input_ids"] for one in examples], pad),
        "attention_mask": rows([[1] * len(one["input_ids"]) for one in examples], 0),
        "labels": rows([one["labels"] for one in examples], -100),
    }


def make_extractors(config: Config, model: Any, seed: int) -> dict[str, EmbeddingExtractor]:
    """The two embeddings, equally wide."""
    settings = JVPEmbeddingConfig(config.num_blocks, config.num_tangents, seed=seed)
    forward = JVPEmbeddingExtractor(model, settings)
    return {
        "forward mode": forward,
        "gradients": DiscriminativeGradientExtractor(
            model, projection_dim=forward.embedding_dim, seed=seed
        ),
    }


def held_out_correlation(found: Tensor, exact: Tensor, chosen: Tensor) -> float:
    """Pearson's correlation over examples that are no landmarks, averaged over probes."""
    held_out = torch.ones(exact.shape[1], dtype=torch.bool)
    held_out[chosen] = False
    pairs = zip(found[:, held_out].double(), exact[:, held_out].double(), strict=True)
    each = [float(torch.corrcoef(torch.stack(pair))[0, 1]) for pair in pairs]
    return sum(each) / len(each)


def cost(
    config: Config, model: Any, train: list[Any], probe: list[Any], share: float, num_train: int
) -> float:
    """Seconds of one whole distillation."""
    settings = InfluenceDistillationConfig(
        embedding=JVPEmbeddingConfig(config.num_blocks, config.num_tangents),
        landmarks=LandmarkConfig(max(2, round(share * num_train)), config.strategy),
        kernel_ridge=KernelRidgeConfig("rbf", config.damping),
    )
    distillation = InfluenceDistillation(model, settings)
    return timed(lambda: distillation.compute_influence(train, probe))[1]


def timed(function: Any) -> tuple[Any, float]:
    """A result and the CPU seconds it took, which other processes on the machine do not change."""
    start = time.process_time()
    result = function()
    return result, time.process_time() - start


def mean_of(rows: list[Any], name: str, kernel: str, share: float) -> tuple[float, float, float]:
    """Mean, lowest and highest correlation over seeds."""
    own = [
        row["correlation"]
        for row in rows
        if (row["embedding"], row["kernel"], row["share"]) == (name, kernel, share)
    ]
    return sum(own) / len(own), min(own), max(own)


def draw(
    config: Config, rows: list[Any], costs: dict[float, float], exact_seconds: float, num_train: int
) -> None:
    """Correlation and cost over the share of landmarks."""
    figure, (left, right) = plt.subplots(1, 2, figsize=(10, 4), constrained_layout=True)
    for name, color in COLORS.items():
        for kernel, style in zip(KERNELS, ("--", "-"), strict=True):
            lines = [mean_of(rows, name, kernel, share) for share in config.shares]
            means, lows, highs = zip(*lines, strict=True)
            left.plot(config.shares, means, style, color=color, label=f"{name}, {kernel}")
            left.fill_between(config.shares, lows, highs, color=color, alpha=0.12, linewidth=0)
    left.set(
        xscale="log",
        xlabel="landmarks / documents",
        ylabel="correlation with exact influence",
        ylim=(None, 1),
        title=f"{num_train} HOPS documents that are no landmarks",
    )
    left.legend(frameon=False)
    relative = [costs[share] / exact_seconds for share in config.shares]
    right.plot(config.shares, relative, color="#1f77b4", label="distillation, forward mode")
    right.axhline(1, color="black", linewidth=0.8, label="exact")
    right.set(xscale="log", ylim=(0, None), xlabel="landmarks / documents", title="time / exact")
    right.legend(frameon=False)
    for axis in (left, right):
        axis.spines[["top", "right"]].set_visible(False)
        axis.set_xticks(config.shares, [f"{share:.0%}" for share in config.shares])
        axis.minorticks_off()
    config.figure.parent.mkdir(parents=True, exist_ok=True)
    figure.savefig(config.figure, dpi=150)
    plt.close(figure)


if __name__ == "__main__":
    main(tyro.cli(Config, description=__doc__))
