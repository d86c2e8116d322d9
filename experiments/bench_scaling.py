"""How do time and memory of EK-FAC grow with examples, queries, width, layers and length?

    uv run experiments/bench_scaling.py
    uv run experiments/bench_scaling.py --quick

A small OLMo-2 as in bench_ekfac.py, and our stages alone. One factor at a time is changed around a
center (64 examples of 64 tokens, 16 queries, 2 layers of width 192), each point in a process of its
own, which measures peak memory in its first round and times the rounds after it, a plain pass
between them. An exponent is the slope of a least-squares line through the logarithms of the points
(of their medians; its range over the rounds beside it). The expected exponent is the same slope of
the arithmetic that is counted in :mod:`utils.ekfac_arithmetic`. Both passes of the fit run the
whole model: what the first can keep for the second is left out, for it may grow with the data up to
the memory that it is given.

Expected: exponents in time near to those of the arithmetic (1 in examples, length and layers; with
width between 2 and 3), a little below at these sizes, where much does not depend on them. Queries
move the scores alone. Memory does not grow with examples, but for batches that are not full.

Prints a table of points and one of exponents, written also in Markdown beside the rows in JSON, and
a figure with a panel for each factor. About 8 minutes on two idle CPU cores.
"""

from dataclasses import asdict, dataclass, replace
from functools import partial
from pathlib import Path
from typing import Literal

import tyro
from hops.files import write_json, write_text
from tqdm import tqdm
from utils.ekfac_arithmetic import stage_arithmetic
from utils.ekfac_measuring import (
    default_device,
    in_child,
    machine,
    peak_memory,
    quick_garbage_collection,
    timed,
)
from utils.ekfac_model import (
    STAGES,
    build_model,
    collate_in_order,
    plain_pass,
    shapes_of,
    workloads_of,
)
from utils.ekfac_model import Config as BenchConfig
from utils.ekfac_ours import Ours
from utils.ekfac_scaling_report import (
    Point,
    draw_scaling,
    exponents,
    exponents_table,
    points_table,
)
from utils.report_table import wide_console

PLAIN_BATCH = 8
TOKENS_PER_BATCH = 1024
FACTORS = {
    "examples": (16, 32, 64, 128),
    "queries": (4, 16, 64),
    "width": (96, 192, 288, 384),
    "layers": (1, 2, 4, 8),
    "length": (16, 32, 64, 128),
}
CENTER = {"examples": 64, "queries": 16, "width": 192, "layers": 2, "length": 64}
QUICK = {
    "examples": (4, 8),
    "queries": (2, 4),
    "width": (16, 32),
    "layers": (1, 2),
    "length": (8, 16),
}
QUICK_CENTER = {"examples": 4, "queries": 2, "width": 16, "layers": 1, "length": 8}


@dataclass(frozen=True)
class Config:
    """Growth of time and memory of every stage of EK-FAC influence."""

    factors: tuple[str, ...] = tuple(FACTORS)
    """Which factors to change."""
    quick: bool = False
    """Two tiny points per factor, in this process: to see that it runs, not to learn from."""
    repeats: int = 3
    """Rounds of every point; medians over them are reported."""
    threads: int = 2
    """CPU threads of torch."""
    device: Literal["cpu", "cuda"] | None = None
    """CUDA where there is one, otherwise the CPU."""
    seed: int = 0
    """Of weights, tokens and sampled labels."""
    output_dir: Path = Path("results/bench_scaling")
    """Where to write points.json, tables.md and scaling.png."""


def main(config: Config) -> None:
    """Measure every point, print, write and draw."""
    console = wide_console()
    config = replace(config, device=config.device or default_device())
    values, center = (QUICK, QUICK_CENTER) if config.quick else (FACTORS, CENTER)
    measured: dict[tuple[int, ...], Point] = {}
    curves: dict[str, list[Point]] = {}
    for factor, value in tqdm([(f, v) for f in config.factors for v in values[f]], desc="points"):
        sizes = {**center, factor: value}
        key = tuple(sizes.values())
        if key not in measured:  # the center belongs to every curve
            own = bench_config(config, sizes)
            measured[key] = measure_point(own) if config.quick else in_child(measure_point, own)
        curves.setdefault(factor, []).append(replace(measured[key], value=value))
    slopes = exponents(curves)
    tables = [exponents_table(slopes), points_table(curves)]
    place = f"{machine(bench_config(config, center))}; medians of {config.repeats} rounds; center: "
    place += ", ".join(f"{factor} {value}" for factor, value in center.items())
    for table in tables:
        console.print(table.screen())
    console.print(place)
    folder = config.output_dir
    text = "\n".join([*(table.markdown() for table in tables), place])
    write_text(folder / "tables.md", text + "\n")
    write_json(
        folder / "points.json",
        {
            "config": {**asdict(config), "output_dir": str(folder)},
            "center": center,
            "machine": machine(bench_config(config, center)),
            "curves": {factor: [asdict(one) for one in curve] for factor, curve in curves.items()},
            "exponents": [asdict(one) for one in slopes],
        },
    )
    draw_scaling(curves, slopes, center, folder / "scaling.png")
    console.print(f"points, tables and figure: {folder}")


def bench_config(config: Config, sizes: dict[str, int]) -> BenchConfig:
    """The point as bench_ekfac.py has it; all examples are of one length."""
    return BenchConfig(
        num_layers=sizes["layers"],
        width=sizes["width"],
        num_examples=sizes["examples"],
        num_queries=sizes["queries"],
        min_length=sizes["length"],
        max_length=sizes["length"],
        fit_tokens=TOKENS_PER_BATCH,
        score_tokens=TOKENS_PER_BATCH,
        replay_bytes=0,
        repeats=config.repeats,
        threads=config.threads,
        device=config.device,
        seed=config.seed,
    )


def measure_point(config: BenchConfig) -> Point:
    """Peak memory of a first round, then the seconds of plain passes and stages in the others."""
    peak = peak_memory(config, Ours)
    system, model = Ours(config), build_model(config)
    batches = collate_in_order(config, PLAIN_BATCH)
    plain_pass(model, batches)
    seconds: dict[str, list[float]] = {"plain pass": [], **{stage: [] for stage in STAGES}}
    with quick_garbage_collection():
        for _ in range(config.repeats):
            seconds["plain pass"].append(timed(config, lambda: plain_pass(model, batches))[0])
            for stage in STAGES:
                seconds[stage].append(timed(config, partial(system.run, stage))[0])
    return Point(0, seconds, peak, arithmetic(config))


def arithmetic(config: BenchConfig) -> dict[str, int]:
    """Floating point operations counted for every stage."""
    counted = stage_arithmetic(shapes_of(config), *workloads_of(config), replays=False)
    return {stage: sum(parts.values()) for stage, parts in counted.items()}


if __name__ == "__main__":
    main(tyro.cli(Config))
