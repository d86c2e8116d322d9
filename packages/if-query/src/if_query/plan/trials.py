"""A few batches of a pass, run for real: what they hold at their peak, and how long they take."""

import hashlib
import statistics
import time
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from functools import cache

import numpy as np
import safetensors.torch
import torch
from jaxtyping import Float64
from scipy.optimize import nnls

from if_query.datasets import TokenDataset
from if_query.device_memory import Memory, peak_of, wait_for_devices

_NUM_BATCHES = 5
_NUM_ROUNDS = 3
_SECONDS = 4.0
"""Rounds end when this is spent, though not before the first is over."""


@dataclass(frozen=True)
class Trial:
    """What a few batches of a pass took.

    Attributes:
        peak: of the whole process while they ran.
        seconds: expected for every batch of the pass, in the order of the plan.
    """

    peak: Memory
    seconds: Float64[np.ndarray, " batch"]


def try_batches(
    dataset: TokenDataset,
    plan: Sequence[Sequence[int]],
    run: Callable[[Sequence[int]], object],
    *,
    stand_ins: Callable[[Sequence[int]], int] = lambda rows: 0,
    on_host: bool = True,
) -> Trial:
    """Run some batches of a plan.

    The peak is that of the longest sequences, which come first, of the batch with most labels,
    whose logits are largest, or of any other one that is tried. Seconds of the others follow from
    a fit over the range of lengths.

    Args:
        dataset: the examples.
        plan: batches of rows.
        run: puts one batch through, as the real pass would.
        stand_ins: bytes held while a batch ran that the real pass would not hold.
        on_host: whether those are in main memory.
    """
    labels = [int(dataset.num_scored[list(rows)].sum()) for rows in plan]
    spread = np.linspace(0, len(plan) - 1, min(_NUM_BATCHES, len(plan))).round()
    chosen = sorted({0, int(np.argmax(labels)), *map(int, spread)})
    times: dict[int, list[float]] = {batch: [] for batch in chosen}
    peak = Memory()
    for batch in chosen:
        with peak_of() as own:
            run(plan[batch])  # not timed: first calls allocate
        extra = stand_ins(plan[batch])
        peak.host = max(peak.host, own.host - (extra if on_host else 0))
        peak.device = max(peak.device, own.device - (0 if on_host else extra))
    began = time.perf_counter()
    for round_number in range(_NUM_ROUNDS):
        for batch in chosen:
            if round_number == 0 or time.perf_counter() - began < _SECONDS:
                times[batch].append(_seconds_of(run, plan[batch]))
    sizes = [(len(rows), int(dataset.lengths[list(rows)].max())) for rows in plan]
    known = [statistics.median(times[batch]) for batch in chosen]
    return Trial(peak, fit_seconds(sizes, chosen, known))


@cache
def storage_rate() -> float:
    """Bytes per second that a file of statistics is serialised and hashed at."""
    tensor = torch.ones(1 << 21)
    start = time.perf_counter()
    hashlib.sha256(safetensors.torch.save({"tensor": tensor})).hexdigest()
    return tensor.nbytes / (time.perf_counter() - start)


def _seconds_of(run: Callable[[Sequence[int]], object], rows: Sequence[int]) -> float:
    wait_for_devices()
    start = time.perf_counter()
    run(rows)
    wait_for_devices()
    return time.perf_counter() - start


def fit_seconds(
    sizes: Sequence[tuple[int, int]], measured: Sequence[int], seconds: Sequence[float]
) -> Float64[np.ndarray, " batch"]:
    """Seconds of every batch as a + b · tokens + c · tokens · length, with a, b, c ≥ 0.

    Attention grows with tokens times length, everything else with tokens (padding counted).
    Errors are relative, so that short batches count as much as long ones.

    Args:
        sizes: (sequences, tokens of the longest) of every batch.
        measured: which batches were timed.
        seconds: of these.
    """
    terms = np.array([(1.0, count * longest, count * longest**2) for count, longest in sizes])
    own, known = terms[list(measured)], np.array(seconds)
    scale = own.max(axis=0)
    weights, _ = nnls(own / scale / known[:, None], np.ones(len(known)))
    estimate: np.ndarray = terms / scale @ weights
    return estimate
