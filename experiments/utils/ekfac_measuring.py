"""Time, memory and the machine's rate, as the EK-FAC benchmarks measure them."""

import gc
import platform
import resource
import statistics
import time
from collections.abc import Callable, Iterator, Sequence
from concurrent.futures import ProcessPoolExecutor
from contextlib import contextmanager
from dataclasses import replace
from multiprocessing import get_context
from pathlib import Path
from typing import Any, Literal

import torch
from utils.ekfac_model import STAGES, Config, System

TRIALS = 2
"""Of every setting that is tried; one alone is little better than noise."""


def peak_memory(config: Config, build: Callable[[Config], System]) -> float:
    """Peak memory of all stages in MiB, above what is there once the model is built.

    In a process of its own: a process that held more before has a higher peak already.
    """
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


def fastest(config: Config, system: Any, stage: str, field: str, candidates: Sequence[Any]) -> Any:
    """The candidate for ``system.settings.field`` with which a stage is fastest, left set there.

    Each is timed :data:`TRIALS` times, by turns, and its best time counts.
    """

    def seconds_of(candidate: Any) -> float:
        system.settings = replace(system.settings, **{field: candidate})
        return timed(config, lambda: system.run(stage))[0]

    rounds = [[seconds_of(one) for one in candidates] for _ in range(TRIALS)]
    seconds = [min(each) for each in zip(*rounds, strict=True)]
    best = candidates[seconds.index(min(seconds))]
    system.settings = replace(system.settings, **{field: best})
    return best


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
    generator = torch.Generator().manual_seed(0)
    left, right = (torch.randn(size, size, generator=generator).to(config.device) for _ in range(2))
    repeats = 200 if config.device == "cuda" else 10

    def products() -> None:
        for _ in range(repeats):
            torch.mm(left, right)

    products()
    return 2 * size**3 * repeats / timed(config, products)[0]


def timed(config: Config, run: Callable[[], Any]) -> tuple[float, Any]:
    """(seconds, result) of a call, the device's queue emptied before and after."""
    _wait(config)
    start = time.perf_counter()
    result = run()
    _wait(config)
    return time.perf_counter() - start, result


def _wait(config: Config) -> None:
    if config.device == "cuda":
        torch.cuda.synchronize()


def in_child(function: Callable[..., Any], *arguments: Any) -> Any:
    """The result of a call in a fresh process."""
    with ProcessPoolExecutor(max_workers=1, mp_context=get_context("spawn")) as pool:
        return pool.submit(function, *arguments).result()


def default_device() -> Literal["cpu", "cuda"]:
    """CUDA where there is one."""
    return "cuda" if torch.cuda.is_available() else "cpu"


def machine(config: Config) -> str:
    """What computes, for a person."""
    if config.device == "cuda":
        return str(torch.cuda.get_device_name())
    return f"{config.threads} CPU threads, torch {torch.__version__}"


def has_bfloat16_units(config: Config) -> bool:
    """Whether matrix products in bfloat16 are faster than in float32 here.

    Without such units they are emulated, and about a hundred times slower.
    """
    if config.device == "cuda":
        return True
    cpu = Path("/proc/cpuinfo")
    flags = cpu.read_text().split() if cpu.exists() else []
    return "amx_bf16" in flags or "avx512_bf16" in flags


def median_and_range(values: Sequence[float]) -> tuple[float, list[float]]:
    """(median, [least, greatest])."""
    return statistics.median(values), [min(values), max(values)]
