"""How much does EK-FAC cost, beside one plain training pass and beside kronfluence?

    uv run --group peers experiments/bench_ekfac.py
    uv run --group peers experiments/bench_ekfac.py --preset large

A small OLMo-2, randomly initialised, in float32; the MLP maps are tracked. Every stage is timed in
memory, without disk: covariances, eigendecompositions (float64), corrected eigenvalues, and scores
of all training examples against all queries (query gradients, their preconditioning and the pass
over the training examples together). The Fisher is the true one, with sampled labels.

The unit is one plain pass over the same examples: forward and backward with weight gradients, in
random order, batches of 8 padded to their longest. All three go without an attention mask in the
model (under causal attention no real position sees padding on the right), which is the faster way
for each. Rounds of plain pass, our stages, plain pass, kronfluence's stages alternate; medians are
reported. kronfluence gets the settings that were fastest for each of its stages in a trial:
batch size, data sorted by length or not, batched or iterative Lambda; all queries are
accumulated, so that it passes over the training examples once. Peak memory is that of a process
of its own for each system, above what it was once the model was built.

Expected: each stage of ours is faster than kronfluence's, and scores of both differ by less than
1e-3 of their norm: they fit the same Fisher, down to the sampled labels. About 10 minutes on two
idle CPU cores; without kronfluence, about 4.
"""

import gc
import importlib.util
import json
import os
import platform
import resource
import statistics
import tempfile
import time
from collections.abc import Callable, Iterator, Sequence
from concurrent.futures import ProcessPoolExecutor
from contextlib import contextmanager
from dataclasses import asdict, replace
from functools import partial
from multiprocessing import get_context
from pathlib import Path
from typing import Any, Literal

import torch
import tyro
from ekfac_systems import (
    STAGES,
    Config,
    Kronfluence,
    Ours,
    PeerSetting,
    PeerSettings,
    System,
    build_model,
    collate_in_order,
    plain_pass,
    sizes_of,
)
from rich.console import Console
from rich.table import Table
from torch import Tensor
from tqdm import tqdm

PLAIN_BATCH = 8
HOW_TO_INSTALL = (
    "kronfluence is not installed; to compare: uv run --group peers experiments/bench_ekfac.py"
)


def main(config: Config) -> None:
    """Measure, print the table, write the rows."""
    console = Console()
    config = replace(config, device=config.device or _default_device())
    has_peer = config.peer and importlib.util.find_spec("kronfluence") is not None
    # Child processes first: a child's peak memory starts at what its parent holds.
    settings = _in_child(choose_peer_settings, config) if has_peer else None
    builders: dict[str, Callable[[Config], System]] = {"ours": Ours}
    if settings is not None:
        builders["kronfluence"] = partial(Kronfluence, settings=settings)
    peaks = {name: _in_child(peak_memory, config, build) for name, build in builders.items()}

    torch.set_num_threads(config.threads)
    times, scores, rates = measure(config, builders)
    rows = summarize(times, peaks)
    console.print(render(rows, config))
    console.print(
        f"one plain pass: {statistics.median(times['plain']['pass']):.2f} s; float32 matrix "
        f"products: {statistics.median(rates) / 1e9:.0f} GFLOP/s on {_machine(config)}"
    )
    if settings is not None:
        console.print(f"kronfluence's settings: {settings.describe()}")
        difference = (scores["ours"] - scores["kronfluence"]).norm() / scores["ours"].norm()
        console.print(f"relative difference of the scores: {float(difference):.1e}")
    elif config.peer:
        console.print(HOW_TO_INSTALL)
    _write(
        config.output,
        {
            "config": {**asdict(config), "output": str(config.output)},
            "machine": _machine(config),
            "matmul_gflops": statistics.median(rates) / 1e9,
            "peer_settings": None if settings is None else asdict(settings),
            "rows": rows,
        },
    )
    console.print(f"rows: {config.output}")


def measure(
    config: Config, builders: dict[str, Callable[[Config], System]]
) -> tuple[dict[str, dict[str, list[float]]], dict[str, Tensor], list[float]]:
    """Interleaved rounds.

    Returns:
        ({system: {stage: seconds per round}}, the scores of each system, matrix product rates in
        FLOP/s). The plain pass is the system "plain" with one stage, run before each other system.
    """
    plain_model, systems = build_model(config), {n: build(config) for n, build in builders.items()}
    plain_batches = collate_in_order(config, PLAIN_BATCH)
    times: dict[str, dict[str, list[float]]] = {"plain": {"pass": []}}
    times |= {name: {stage: [] for stage in STAGES} for name in systems}
    scores: dict[str, Tensor] = {}
    rates = []
    with quick_garbage_collection():
        # One round more than asked for, not recorded: first calls allocate and compile.
        for round_number in tqdm(range(config.repeats + 1), desc="rounds"):
            order = list(systems) if round_number % 2 else list(systems)[::-1]
            found: dict[str, dict[str, float]] = {}
            plain = []
            rate = matmul_rate(config)
            for name in order:
                plain.append(_timed(config, lambda: plain_pass(plain_model, plain_batches))[0])
                found[name] = {}
                for stage in STAGES:
                    run = partial(systems[name].run, stage)
                    found[name][stage], result = _timed(config, run)
                scores[name] = result
            if round_number:
                rates.append(rate)
                times["plain"]["pass"].append(statistics.mean(plain))
                for name, stages in found.items():
                    for stage, seconds in stages.items():
                        times[name][stage].append(seconds)
    return times, scores, rates


def summarize(
    times: dict[str, dict[str, list[float]]], peaks: dict[str, float]
) -> list[dict[str, Any]]:
    """One row per stage (and their total) with median seconds and multiples of each system."""
    plain = times["plain"]["pass"]
    rows: list[dict[str, Any]] = []
    for stage in (*STAGES, "total"):
        row: dict[str, Any] = {"stage": stage}
        for name in peaks:
            each = times[name]
            seconds = (
                each[stage]
                if stage != "total"
                else [sum(one) for one in zip(*each.values(), strict=True)]
            )
            multiples = [s / p for s, p in zip(seconds, plain, strict=True)]
            row[f"{name}_seconds"] = statistics.median(seconds)
            row[f"{name}_multiple"] = statistics.median(multiples)
            row[f"{name}_multiple_range"] = [min(multiples), max(multiples)]
        rows.append(row)
    rows.append({"stage": "peak memory"} | {f"{n}_mib": peak for n, peak in peaks.items()})
    if "kronfluence" in peaks:
        for row in rows:
            unit = "mib" if row["stage"] == "peak memory" else "seconds"
            row["ratio"] = row[f"kronfluence_{unit}"] / row[f"ours_{unit}"]
    return rows


def render(rows: Sequence[dict[str, Any]], config: Config) -> Table:
    """The rows as a table for the screen."""
    layers, width = sizes_of(config)
    table = Table(
        title=f"EK-FAC, OLMo-2 {layers}×{width}, {config.num_examples} examples of "
        f"{config.min_length} to {config.max_length} tokens, {config.num_queries} queries"
    )
    systems = ("ours", "kronfluence") if "ratio" in rows[0] else ("ours",)
    table.add_column("stage")
    for name in systems:
        table.add_column(f"{name}: s", justify="right")
        table.add_column("× plain", justify="right")
    if len(systems) > 1:
        table.add_column("ratio", justify="right")
    for row in rows:
        cells = [row["stage"]]
        for name in systems:
            if row["stage"] == "peak memory":
                cells += [f"{row[f'{name}_mib']:,.0f} MiB", ""]
            else:
                cells += [f"{row[f'{name}_seconds']:.2f}", f"{row[f'{name}_multiple']:.2f}"]
        table.add_row(*cells, *([f"{row['ratio']:.2f}"] if len(systems) > 1 else []))
    return table


def choose_peer_settings(config: Config) -> PeerSettings:
    """The fastest setting of each stage of kronfluence, on a quarter of the examples."""
    torch.set_num_threads(config.threads)
    quarter = replace(config, num_examples=max(1, config.num_examples // 4))
    first = PeerSetting(config.peer_batch_sizes[0], by_length=True)
    system = Kronfluence(quarter, PeerSettings(first, first, first))
    candidates = [
        PeerSetting(size, by_length)
        for size in config.peer_batch_sizes
        for by_length in (False, True)
    ]
    fields = {"covariances": "covariances", "corrected eigenvalues": "lambdas", "scores": "scores"}
    with quick_garbage_collection():
        for stage in STAGES:
            system.run(stage)
        for stage, field in tqdm(fields.items(), desc="settings of kronfluence"):

            def seconds_of(trial: PeerSetting, stage: str = stage, field: str = field) -> float:
                system.settings = replace(system.settings, **{field: trial})
                return _timed(quarter, partial(system.run, stage))[0]

            best = min(candidates, key=seconds_of)
            if field == "lambdas":
                best = min((best, replace(best, iterative=True)), key=seconds_of)
            system.settings = replace(system.settings, **{field: best})
    return system.settings


# Measuring


def peak_memory(config: Config, build: Callable[[Config], System]) -> float:
    """Peak memory of all stages in MiB, above what is there once the model is built."""
    torch.set_num_threads(config.threads)
    system = build(config)
    before = _peak_bytes(config)
    for stage in STAGES:
        system.run(stage)
    return (_peak_bytes(config) - before) / 2**20


def _peak_bytes(config: Config) -> float:
    if config.device == "cuda":
        return float(torch.cuda.max_memory_allocated())
    # Kibibytes on Linux, bytes on macOS.
    unit = 1 if platform.system() == "Darwin" else 1024
    return float(resource.getrusage(resource.RUSAGE_SELF).ru_maxrss) * unit


@contextmanager
def quick_garbage_collection() -> Iterator[None]:
    """Leave what exists out of garbage collection, which kronfluence asks for many times.

    Otherwise its time would depend on how many modules happen to be imported here.
    """
    gc.collect()
    gc.freeze()
    try:
        yield
    finally:
        gc.unfreeze()


def matmul_rate(config: Config, size: int = 1024) -> float:
    """Float32 operations per second of square matrix products."""
    left, right = (torch.randn(size, size, device=config.device) for _ in range(2))
    repeats = 200 if config.device == "cuda" else 10

    def products() -> None:
        for _ in range(repeats):
            torch.mm(left, right)

    products()
    return 2 * size**3 * repeats / _timed(config, products)[0]


def _timed(config: Config, run: Callable[[], Any]) -> tuple[float, Any]:
    _wait(config)
    start = time.perf_counter()
    result = run()
    _wait(config)
    return time.perf_counter() - start, result


def _wait(config: Config) -> None:
    if config.device == "cuda":
        torch.cuda.synchronize()


def _in_child(function: Callable[..., Any], *arguments: Any) -> Any:
    with ProcessPoolExecutor(max_workers=1, mp_context=get_context("spawn")) as pool:
        return pool.submit(function, *arguments).result()


def _default_device() -> Literal["cpu", "cuda"]:
    return "cuda" if torch.cuda.is_available() else "cpu"


def _machine(config: Config) -> str:
    if config.device == "cuda":
        return str(torch.cuda.get_device_name())
    return f"{config.threads} CPU threads, torch {torch.__version__}"


def _write(path: Path, content: dict[str, Any]) -> None:
    path.parent.mkdir(parents=True, exist_ok=True)
    with tempfile.NamedTemporaryFile("w", dir=path.parent, delete=False) as file:
        json.dump(content, file, indent=2)
    os.replace(file.name, path)


if __name__ == "__main__":
    main(tyro.cli(Config))
