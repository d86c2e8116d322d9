"""Trials of the passes of a fit, and the groups of maps that fit into the memory there is."""

from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass

from math_utils.capture import CapturedPair, frozen
from math_utils.curvature import CovarianceSums, EigenvalueSums, backward_pass

from if_query.batching import make_batches
from if_query.device_memory import free_memory, held_memory, is_host
from if_query.errors import InputError
from if_query.factors import STAGES, Stage
from if_query.fit_stages import Fit, describe_row
from if_query.out_of_memory import runs_out_of_memory
from if_query.partitions import capacity_of, fill_groups
from if_query.passes import load_batches
from if_query.plan.report import gigabytes
from if_query.plan.sizes import pass_bytes
from if_query.plan.stand_ins import (
    Maps,
    StandInBases,
    StandInSums,
    representatives,
    stand_in_eigenbases,
)
from if_query.plan.trials import Trial, try_batches
from if_query.schedule import half_of

PASSES: tuple[Stage, ...] = ("covariances", "eigenvalues")
SAFE_SHARE = 0.25
"""Statistics below this share of free memory are taken to fit without a trial."""
USABLE_SHARE = 0.9
"""Of free memory, where --memory-gb states nothing."""


@dataclass(frozen=True)
class StageTrial:
    """A trial of one pass over the data.

    Attributes:
        trial: peak of the process without any statistics, and seconds per batch.
        plain_seconds: of all batches without statistics: what a further group costs.
        first_reader: {map: the first map that reads the same input}.
        budget: tokens per batch; below what was asked for where that ran out of memory.
    """

    trial: Trial
    plain_seconds: float
    first_reader: Mapping[str, str]
    budget: int


def passes_of(fit: Fit) -> list[Stage]:
    """The stages that go over the data."""
    stages = STAGES[fit.curvature.strategy]
    skipped = ("eigenvalues",) if fit.curvature.strategy == "kfac" else ()
    return [stage for stage in PASSES if stage in stages and stage not in skipped]


def try_stage(fit: Fit, stage: Stage) -> StageTrial:
    """Run a few batches of a pass with statistics of one map per shape.

    Raises:
        InputError: if one example by itself does not fit into memory.
    """
    maps, dtype = fit.tracked.maps, fit.curvature.covariance_dtype
    budget, rows_of_stage = fit.budgets[stage], fit.rows_of(stage)
    found: list[StageTrial] = []
    while True:
        planned = make_batches(fit.dataset.lengths[rows_of_stage], max_tokens=budget)
        batches = [rows_of_stage[batch].tolist() for batch in planned]

        def attempt(batches: Sequence[list[int]] = batches, budget: int = budget) -> None:
            unlike = {name: maps[name] for name in dict.fromkeys(representatives(maps).values())}
            bases = StandInBases(dtype)
            sums: CovarianceSums | EigenvalueSums = CovarianceSums(unlike, dtype)
            if stage == "eigenvalues":
                ekfac = fit.curvature.strategy == "ekfac"
                own = stand_in_eigenbases(unlike, bases) if ekfac else None
                sums = EigenvalueSums(unlike, own, dtype)
            stand_in = StandInSums(maps, sums)
            trial = try_batches(
                fit.dataset,
                batches,
                lambda rows: _run(fit, maps, rows, stand_in.add),
                stand_ins=lambda rows: (
                    bases.num_bytes + sum(one.nbytes for one in sums.state().values())
                ),
                on_host=is_host(list(fit.tracked.devices().values())),
            )
            plain = try_batches(
                fit.dataset, batches, lambda rows: _run(fit, maps, rows, lambda pair: None)
            )
            found.append(
                StageTrial(trial, float(plain.seconds.sum()), stand_in.first_reader, budget)
            )

        if not runs_out_of_memory(attempt):
            return found[0]
        longest = batches[0]
        if len(longest) == 1:
            raise InputError(
                f"{describe_row(longest[0])}, of {fit.dataset.lengths[longest[0]]} tokens, does "
                f"not fit into memory by itself in stage {stage}; shorten it, or track fewer "
                "--modules"
            )
        budget = half_of(longest, fit.dataset.lengths)


def _run(
    fit: Fit, maps: Maps, rows: Sequence[int], consume: Callable[[CapturedPair], None]
) -> None:
    (batch,) = load_batches(fit.model, fit.dataset, [rows])
    with frozen(fit.model):
        backward_pass(
            fit.model,
            maps,
            batch,
            fit.objective,
            consume,
            dtype=fit.curvature.covariance_dtype,
            loss_scale=fit.curvature.loss_scale,
        )


def choose_capacities(
    fit: Fit, *, num_groups: int | None, memory_gb: float | None, trials: dict[Stage, StageTrial]
) -> tuple[dict[str, int], list[str]]:
    """How many bytes of statistics one pass may keep, by stage.

    Args:
        fit: the fit.
        num_groups: asked for, and only checked; None chooses the fewest that fit.
        memory_gb: memory that may be used in all, in 10⁹ bytes; None for what is free.
        trials: of the passes; those that are needed and not there are run and added.

    Returns:
        ({stage: bytes}, lines that say what was chosen).

    Raises:
        InputError: if no partition fits into a stated memory.
    """
    devices = list(fit.tracked.devices().values())
    itemsize = fit.curvature.covariance_dtype.itemsize
    capacities: dict[str, int] = {}
    lines = []
    free = free_memory(devices)
    for stage in passes_of(fit):
        sizes = pass_bytes(stage, fit.curvature.strategy, fit.tracked.maps, itemsize)
        total, largest = sum(sizes.values()), max(sizes.values())
        asked = None if num_groups is None else capacity_of(sizes, num_groups)
        if asked is not None:
            capacities[stage] = asked
        if memory_gb is not None or (asked is None and total > SAFE_SHARE * free):
            if stage not in trials:
                trials[stage] = try_stage(fit, stage)
            allowed = held_memory().on(devices) + USABLE_SHARE * free
            if memory_gb is not None:
                allowed = memory_gb * 1e9
            needed = trials[stage].trial.peak.on(devices)
            room = int(allowed - needed)
            if asked is not None:
                if room < asked:
                    raise InputError(
                        f"--memory-gb {memory_gb:g}: {stage} in {num_groups} groups need "
                        f"{gigabytes(needed + asked)}; allow more, lower the batch size, or raise "
                        "--module-partitions"
                    )
                continue
            if room < largest and memory_gb is not None:
                raise InputError(
                    f"--memory-gb {memory_gb:g}: {stage} need {gigabytes(needed + largest)} even "
                    "with one linear map at a time; allow more, lower the batch size, or track "
                    "fewer --modules"
                )
            capacities[stage] = max(room, largest)
            if room < total:
                count = len(fill_groups(sizes, capacities[stage]))
                lines.append(
                    f"statistics of {stage} take {gigabytes(total)} and {gigabytes(max(room, 0))} "
                    f"are there for them, so the maps go in {count} groups, each with a pass over "
                    "the data"
                )
    return capacities, lines
