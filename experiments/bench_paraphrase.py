"""How long does the similarity of paraphrases take, and how long would the published job take?

Question: what do a gradient, a projection, an inner product and the cache cost, as multiples of
one plain forward-backward pass over the same example; and, from these parts, what do 988 samples
and a model of a billion parameters cost?

Command:   uv run experiments/bench_paraphrase.py
Result:    tables on the screen, and JSON with --output FILE
Expected:  a gradient costs little more than the plain pass, and a projection less than it
Run time:  under two minutes on two CPU cores

The published run computed the originals' gradients once per query; the second table counts both.
"""

import json
import statistics
import tempfile
import time
from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import torch
import tyro
from attribution.gradient_similarity import (
    EncodedExample,
    ExampleGradients,
    GradientProjection,
    GradientStore,
    dots_by_tensor,
)
from rich.console import Console
from rich.table import Table
from transformers import AutoModelForCausalLM, Olmo2Config

FRACTIONS = (0.01, 0.05)
PUBLISHED_GPU_HOURS = 927
"""What the published run spent on projections."""


@dataclass(frozen=True)
class Config:
    """Size of the model that is measured, and of the job that is extrapolated to."""

    hidden_size: int = 512
    """Width of the measured model."""
    num_layers: int = 8
    """Its layers."""
    vocab: int = 16384
    """Its vocabulary."""
    num_tokens: int = 256
    """Tokens of the measured example."""
    repeats: int = 5
    """Times each part is measured; the median counts."""
    threads: int = 2
    """CPU threads."""
    device: str = "cpu"
    """Where to measure."""
    job_parameters: float = 1e9
    """Parameters of the job's model."""
    job_tokens: int = 300
    """Mean tokens of the job's samples."""
    job_samples: int = 988
    """Samples of the job."""
    job_candidates: int = 5
    """Candidates of each query, the true original among them."""
    job_query_block: int = 32
    """Queries whose whole gradients are held in memory at once (4 GB each for a billion)."""
    output: Path | None = None
    """Where to write the measurements as JSON."""


def main(config: Config) -> None:
    """Measure, and extrapolate."""
    torch.set_num_threads(config.threads)
    console = Console()
    model = build(config)
    gradients = ExampleGradients(model)
    num_parameters = sum(gradients.layout.widths.values())
    ids = torch.randint(3, config.vocab, (config.num_tokens,), generator=torch.Generator())
    example = EncodedExample(tuple(ids.tolist()), tuple(ids.tolist()))
    seconds = measure(config, model, gradients, example)
    console.print(parts_table(seconds, num_parameters, config))
    counts = job_counts(config)
    console.print(count_table(counts, config))
    for line in extrapolation(seconds, num_parameters, counts, config):
        console.print(line, soft_wrap=True, highlight=False)
    if config.output is not None:
        written = {"num_parameters": num_parameters, "seconds": seconds, "counts": counts}
        config.output.write_text(json.dumps(written, indent=2) + "\n")


def build(config: Config) -> Any:
    """An OLMo-2 with random weights."""
    with torch.random.fork_rng():
        torch.manual_seed(0)
        made = AutoModelForCausalLM.from_config(
            Olmo2Config(
                vocab_size=config.vocab,
                hidden_size=config.hidden_size,
                intermediate_size=4 * config.hidden_size,
                num_hidden_layers=config.num_layers,
                num_attention_heads=max(1, config.hidden_size // 64),
                max_position_embeddings=max(1024, config.num_tokens),
                eos_token_id=None,
                bos_token_id=None,
                pad_token_id=None,
            ),
            dtype=torch.float32,
        )
    return made.to(config.device).eval()


def measure(
    config: Config, model: Any, gradients: ExampleGradients, example: EncodedExample
) -> dict[str, float]:
    """Median seconds of every part, for one example or one pair."""
    ids = torch.tensor([example.input_ids], device=config.device)

    def plain() -> None:
        model(input_ids=ids, labels=ids).loss.backward()
        model.zero_grad(set_to_none=True)

    gradient = gradients(example)
    other = torch.flip(gradient, dims=[0])
    parts: dict[str, Callable[[], Any]] = {
        "plain forward-backward pass": plain,
        "gradient": lambda: gradients(example),
        "inner products, whole": lambda: dots_by_tensor(gradient, other, gradients.layout),
    }
    with tempfile.TemporaryDirectory() as folder:
        for fraction in FRACTIONS:
            projection = GradientProjection(gradients.layout, fraction, 0)
            vector = projection(gradient)
            store = GradientStore(Path(folder) / str(fraction), projection.layout, {})
            parts |= {
                f"projection to {fraction:.0%}": _calling(projection, gradient),
                f"inner products, {fraction:.0%}": _calling(
                    dots_by_tensor, vector, vector.clone(), projection.layout
                ),
                f"cache write, {fraction:.0%}": _calling(store.write, 0, vector),
                f"cache read, {fraction:.0%}": _calling(store.read, 0),
            }
        timed: dict[str, list[float]] = {name: [] for name in parts}
        for call in parts.values():
            call()
        for _ in range(config.repeats):  # in turn, so that other work on the machine hits all
            for name, call in parts.items():
                timed[name].append(_seconds(call, config.device))
    return {name: statistics.median(times) for name, times in timed.items()}


def job_counts(config: Config) -> dict[str, dict[str, float]]:
    """How often each costly thing is done, per setting: by recomputing, and here.

    Whole gradients of originals are computed once per block of queries. The most that can be
    is a block's queries times their candidates; if the candidates other than the true originals
    were drawn evenly, the expected number of distinct ones would be
    B + (N - B) (1 - (1 - (c - 1)/(N - 1))^B).
    """
    num, candidates, block = config.job_samples, config.job_candidates, config.job_query_block
    pairs = num * candidates
    blocks = [min(block, num - start) for start in range(0, num, block)]
    apart = 1 - (candidates - 1) / (num - 1)
    expected = sum(size + (num - size) * (1 - apart**size) for size in blocks)
    most = sum(min(num, size * candidates) for size in blocks)
    each = len(FRACTIONS)
    return {
        "originals once per query, a run per fraction": {
            "gradients": each * (num + pairs), "projections": each * (num + pairs),
        },
        "here, projections": {"gradients": 2 * num, "projections": each * 2 * num},
        "here, projections, the second setting": {
            "gradients": num, "projections": each * num,
        },
        "here, whole gradients, expected": {"gradients": num + expected, "projections": 0},
        "here, whole gradients, at most": {"gradients": num + most, "projections": 0},
    }  # fmt: skip


def parts_table(seconds: dict[str, float], num_parameters: int, config: Config) -> Table:
    """Every part, as a multiple of the plain pass."""
    table = Table(
        title=f"{num_parameters / 1e6:.1f} M parameters, one example of {config.num_tokens} tokens"
    )
    for title in ("part", "× plain pass", "ms", "ns per parameter"):
        table.add_column(title, justify="left" if title == "part" else "right")
    unit = seconds["plain forward-backward pass"]
    for name, value in seconds.items():
        per = value / num_parameters * 1e9
        table.add_row(name, f"{value / unit:.3f}", f"{1e3 * value:.1f}", f"{per:.3f}")
    return table


def count_table(counts: dict[str, dict[str, float]], config: Config) -> Table:
    """Gradients and projections of the whole job."""
    table = Table(
        title=f"{config.job_samples} samples, {config.job_candidates} candidates, "
        f"fractions {' and '.join(f'{one:.0%}' for one in FRACTIONS)}"
    )
    for title in ("how", "gradients", "projections"):
        table.add_column(title, justify="left" if title == "how" else "right")
    for name, row in counts.items():
        table.add_row(name, *(f"{row[key]:,.0f}" for key in ("gradients", "projections")))
    return table


def extrapolation(
    seconds: dict[str, float],
    num_parameters: int,
    counts: dict[str, dict[str, float]],
    config: Config,
) -> list[str]:
    """The job's time from its parts, with the arithmetic."""
    scale = config.job_parameters / num_parameters
    lengths = config.job_tokens / config.num_tokens
    gradient = seconds["gradient"] * scale * lengths
    project = sum(seconds[f"projection to {one:.0%}"] for one in FRACTIONS) * scale / len(FRACTIONS)
    pairs = config.job_samples * (config.job_candidates + 2)
    lines = [
        f"one gradient of the job: {seconds['gradient']:.3f} s × {scale:.1f} (parameters) × "
        f"{lengths:.2f} (tokens) = {gradient:.1f} s; one projection, mean of the fractions: "
        f"{project:.1f} s; on this machine, with {config.threads} threads"
    ]
    for name, row in counts.items():
        hours = (row["gradients"] * gradient + row["projections"] * project) / 3600
        kinds = [f"{one:.0%}" for one in FRACTIONS] if row["projections"] else ["whole"]
        inner = sum(seconds[f"inner products, {kind}"] for kind in kinds) * scale * pairs / 3600
        lines.append(
            f"{name}: {row['gradients']:,.0f} × {gradient:.1f} s + {row['projections']:,.0f} × "
            f"{project:.1f} s = {hours:.1f} h; inner products {inner:.2f} h more"
        )
    before, here = list(counts.values())[:2]
    shares = here["gradients"] / before["gradients"], here["projections"] / before["projections"]
    lines.append(
        f"by count alone, {shares[0]:.3f} of the gradients and {shares[1]:.3f} of the projections: "
        f"at the published run's own speed its {PUBLISHED_GPU_HOURS} GPU hours become between "
        f"{PUBLISHED_GPU_HOURS * min(shares):.0f} and {PUBLISHED_GPU_HOURS * max(shares):.0f}"
    )
    cached = [one * config.job_parameters * 4e-12 * config.job_samples for one in (*FRACTIONS, 1)]
    lines.append(
        "disk for the originals: "
        + ", ".join(f"{tera:.2f} TB" for tera in cached)
        + f" at {', '.join(f'{one:.0%}' for one in FRACTIONS)} and whole (not cached)"
    )
    return lines


def _calling(function: Callable[..., Any], *arguments: Any) -> Callable[[], Any]:
    return lambda: function(*arguments)


def _seconds(call: Callable[[], Any], device: str) -> float:
    if device.startswith("cuda"):
        torch.cuda.synchronize()
    started = time.perf_counter()
    call()
    if device.startswith("cuda"):
        torch.cuda.synchronize()
    return time.perf_counter() - started


if __name__ == "__main__":
    main(tyro.cli(Config, description=__doc__))
