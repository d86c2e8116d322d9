"""What later passes of a fit save by what the first one keeps, and the memory there is for it."""

import sys
from collections.abc import Mapping, Sequence
from dataclasses import dataclass

import numpy as np
from jaxtyping import Float64
from math_utils.capture import frozen
from math_utils.curvature import EigenvalueSums, ReplayedPasses

from if_query.batching import make_batches
from if_query.device_memory import free_memory, held_memory
from if_query.factors import Stage
from if_query.fit_stages import Fit
from if_query.passes import load_batches
from if_query.plan.fit_trials import USABLE_SHARE, StageTrial
from if_query.plan.sizes import pass_bytes
from if_query.plan.stand_ins import (
    StandInBases,
    StandInSums,
    representatives,
    stand_in_eigenbases,
)
from if_query.plan.trials import try_batches

REPLAY_SHARE = 0.25
"""Of free memory, where nothing else is stated."""


@dataclass(frozen=True)
class Replay:
    """What is kept of the batches of a fit, and saved by it.

    Attributes:
        sizes: bytes kept of every batch, in the order of the pass.
        seconds: of corrected eigenvalues of every batch, replayed.
    """

    sizes: Float64[np.ndarray, " batch"]
    seconds: Float64[np.ndarray, " batch"]

    def kept(self, max_bytes: int) -> int:
        """How many batches there is room for, from the first on."""
        return int((self.sizes.cumsum() <= max_bytes).sum())


def choose_replay_bytes(
    fit: Fit,
    *,
    asked_gb: float | None,
    memory_gb: float | None,
    capacities: Mapping[str, int],
    trials: Mapping[Stage, StageTrial],
) -> int:
    """Bytes that the covariance pass may keep for the pass after it.

    Args:
        fit: the fit.
        asked_gb: what was asked for, in 10⁹ bytes; at most what ``memory_gb`` leaves.
        memory_gb: memory that may be used in all, likewise; None for what is free.
        capacities: bytes of statistics, by stage.
        trials: of the passes, where memory is scarce or stated; then what they leave is the room.
    """
    if not _reads_again(fit):
        return 0
    if asked_gb is not None and memory_gb is None:
        return int(asked_gb * 1e9)
    if memory_gb is not None and not trials:
        return 0
    devices = list(fit.tracked.devices().values())
    itemsize, free = fit.curvature.covariance_dtype.itemsize, free_memory(devices)
    allowed = held_memory().on(devices) + USABLE_SHARE * free
    if memory_gb is not None:
        allowed = memory_gb * 1e9
    rooms = [REPLAY_SHARE * free if asked_gb is None else asked_gb * 1e9]
    for stage, trial in trials.items():
        sizes = pass_bytes(stage, fit.curvature.strategy, fit.tracked.maps, itemsize)
        statistics = min(sum(sizes.values()), capacities.get(stage, sys.maxsize))
        rooms.append(allowed - trial.trial.peak.on(devices) - statistics)
    return max(0, int(min(rooms)))


def _reads_again(fit: Fit) -> bool:
    """Whether corrected eigenvalues go over the batches that covariances went over."""
    return (
        fit.curvature.strategy == "ekfac"
        and fit.budgets["covariances"] == fit.budgets["eigenvalues"]
        and len(fit.covariance_rows) == len(fit.dataset)
    )


def try_replay(fit: Fit, budget: int) -> Replay | None:
    """Keep and replay a few batches of corrected eigenvalues.

    Args:
        fit: the fit.
        budget: tokens per batch.

    Returns:
        What was found; None where corrected eigenvalues read other batches than covariances, or
        the model's parts cannot be replayed.
    """
    if not _reads_again(fit):
        return None
    maps, dtype, lengths = fit.tracked.maps, fit.curvature.covariance_dtype, fit.dataset.lengths
    batches = make_batches(lengths, max_tokens=budget)
    unlike = {name: maps[name] for name in dict.fromkeys(representatives(maps).values())}
    bases = StandInBases(dtype)
    sums = EigenvalueSums(unlike, stand_in_eigenbases(unlike, bases), dtype)
    stand_in = StandInSums(maps, sums)
    passes = ReplayedPasses(fit.model, maps, fit.objective, sys.maxsize)
    tried: dict[int, int] = {}

    def run(rows: Sequence[int]) -> None:
        (batch,) = load_batches(fit.model, fit.dataset, [rows])
        scale = fit.curvature.loss_scale
        with frozen(fit.model):
            if rows[0] not in tried:
                passes.run(
                    tuple(rows), maps, batch, lambda pair: None, dtype=dtype, loss_scale=scale
                )
                tried[rows[0]] = batch.input_ids.numel()
            passes.run(tuple(rows), maps, batch, stand_in.add, dtype=dtype, loss_scale=scale)

    trial = try_batches(fit.dataset, batches, run)
    if passes.num_batches < len(tried):
        return None
    per_token = passes.num_bytes / sum(tried.values())
    padded = np.array([len(rows) * lengths[list(rows)].max() for rows in batches])
    return Replay(padded * per_token, trial.seconds)
