"""The stages of a fit: covariances, their eigenbases, corrected eigenvalues, each saved as it ends.

A pass over the data goes over the tracked maps at once, or in groups where the statistics of all
do not fit into memory. What is fitted for a map is the same, bit for bit, in any group.
"""

import time
from collections.abc import Callable, Iterator, Mapping, Sequence
from contextlib import AbstractContextManager
from dataclasses import dataclass, field
from functools import cached_property, partial
from typing import Any, TypeVar

import numpy as np
from jaxtyping import Int64
from math_utils.capture import frozen
from math_utils.curvature import (
    CovarianceSums,
    CurvatureConfig,
    EigenvalueSums,
    ReplayedPasses,
    decompose,
    kfac_eigenvalues,
    share_equal_bases,
)
from math_utils.linear_maps import LinearMap
from tqdm import tqdm

from if_query.datasets import TokenDataset
from if_query.errors import InputError
from if_query.factors import STAGES, FactorStore, Stage
from if_query.models import LanguageModelLoss, Tracked
from if_query.out_of_memory import runs_out_of_memory
from if_query.partitions import fill_groups
from if_query.passes import curvature_errors, load_batches
from if_query.plan.sizes import pass_bytes
from if_query.schedule import BatchSchedule, half_of

Sums = TypeVar("Sums", CovarianceSums, EigenvalueSums)


@dataclass(frozen=True, eq=False)
class Fit:
    """One fit under way: what every stage needs.

    Attributes:
        budgets: tokens per batch that were asked for, by stage.
        covariance_rows: the examples that covariances, and so eigenbases, are made from.
        capacities: bytes of statistics that one pass of a stage may keep; a stage that is not
            named keeps those of all maps.
        replay_bytes: what passes may keep so that later ones over the same batches need not run
            the whole model.
    """

    model: Any
    dataset: TokenDataset
    tracked: Tracked
    objective: LanguageModelLoss
    curvature: CurvatureConfig
    store: FactorStore
    save_interval: float
    budgets: dict[str, int]
    covariance_rows: Int64[np.ndarray, " some"]
    capacities: dict[str, int] = field(default_factory=dict)
    replay_bytes: int = 0

    @cached_property
    def passes(self) -> ReplayedPasses:
        """The passes over the data, which share what the first of them kept."""
        return ReplayedPasses(self.model, self.tracked.maps, self.objective, self.replay_bytes)

    def rows_of(self, stage: Stage) -> Int64[np.ndarray, " some"]:
        """The rows of the data set that a stage goes over, ascending."""
        return self.covariance_rows if stage == "covariances" else np.arange(len(self.dataset))


def run_stages(fit: Fit) -> None:
    """Run the stages that are not done yet, in order."""
    stages: dict[Stage, Callable[[Fit], None]] = {
        "covariances": fit_covariances,
        "eigenbases": decompose_covariances,
        "eigenvalues": fit_eigenvalues,
    }
    with row_errors(fit):
        for stage in STAGES[fit.curvature.strategy]:
            if not fit.store.is_done(stage):
                stages[stage](fit)
    fit.passes.forget()


def row_errors(fit: Fit) -> AbstractContextManager[None]:
    """Input errors that name the row of the data set."""
    return curvature_errors(fit.dataset, describe_row)


def describe_row(row: int) -> str:
    """An example as the user knows it."""
    return f"row {row} of the data set"


def fit_covariances(fit: Fit) -> None:
    """Stage 1: A = (1/T) Σ a aᵀ and S = (1/T) Σ δ δᵀ of every map."""
    dtype = fit.curvature.covariance_dtype
    for maps in waiting_groups(fit, "covariances"):
        sums = accumulate(fit, "covariances", maps, partial(CovarianceSums, maps, dtype))
        checksums, num_positions = {}, {}
        for name, one in sums.drain():
            tensors = {"inputs": one.inputs, "output_gradients": one.output_gradients}
            checksums[name] = fit.store.write_map("covariances", name, tensors)
            num_positions[name] = one.num_positions
        fit.store.finish_maps("covariances", checksums, num_positions=num_positions)


def decompose_covariances(fit: Fit) -> None:
    """Stage 2: eigenbases, on each map's device; those of an interrupted stage are kept."""
    store, names = fit.store, list(fit.tracked.maps)
    kept = {name: store.read_finished_eigenbasis(name) for name in names}
    checksums = {name: checksum for name, checksum in kept.items() if checksum is not None}
    waiting = [name for name in names if name not in checksums]
    # Read into main memory, they would be decomposed on the CPU whatever the model is on.
    devices = fit.tracked.devices()
    covariances = ((name, store.read_covariances(name).to(devices[name])) for name in waiting)
    with tqdm(total=len(names), initial=len(checksums), desc="eigenbases", unit="map") as bar:
        for name, basis in decompose(covariances, dtype=fit.curvature.eigen_dtype):
            checksums[name] = store.write_map(
                "eigenbases",
                name,
                {
                    "input_basis": basis.input_basis,
                    "output_basis": basis.output_basis,
                    "input_values": basis.input_values,
                    "output_values": basis.output_values,
                },
            )
            bar.update()
    store.finish_maps("eigenbases", checksums)


def fit_eigenvalues(fit: Fit) -> None:
    """Stage 3: Λ in the eigenbases (ekfac), by products (kfac), or in the weights' own basis."""
    store, num_examples = fit.store, len(fit.dataset)
    if fit.curvature.strategy == "kfac":
        checksums = {}
        for name in fit.tracked.maps:
            values = kfac_eigenvalues(store.read_eigenbasis(name), len(fit.covariance_rows))
            checksums[name] = store.write_map("eigenvalues", name, {"eigenvalues": values})
        store.finish_maps("eigenvalues", checksums)
        return
    devices = fit.tracked.devices()
    groups = list(waiting_groups(fit, "eigenvalues"))
    for number, maps in enumerate(groups, start=1):
        if number == len(groups):
            fit.passes.keep_no_more()
        bases = None
        if fit.curvature.strategy == "ekfac":
            bases = share_equal_bases(
                (name, store.read_eigenbasis(name).to(devices[name])) for name in maps
            )
        dtype = fit.curvature.covariance_dtype
        sums = accumulate(fit, "eigenvalues", maps, partial(EigenvalueSums, maps, bases, dtype))
        checksums = {
            name: store.write_map("eigenvalues", name, {"eigenvalues": values})
            for name, values in sums.drain(num_examples)
        }
        store.finish_maps("eigenvalues", checksums)


def waiting_groups(fit: Fit, stage: Stage) -> Iterator[Mapping[str, LinearMap]]:
    """The maps whose statistics are not there yet, in the groups that go through together.

    A group that was interrupted comes first and as it was.
    """
    maps, store = fit.tracked.maps, fit.store
    started = [name for name in maps if name in store.maps_in_progress(stage)]
    done = store.maps_done(stage)
    waiting = {name: one for name, one in maps.items() if name not in done | set(started)}
    itemsize = fit.curvature.covariance_dtype.itemsize
    sizes = pass_bytes(stage, fit.curvature.strategy, waiting, itemsize)
    groups = fill_groups(sizes, fit.capacities.get(stage, sum(sizes.values())))
    for group in [started, *groups] if started else groups:
        yield {name: maps[name] for name in group}


def accumulate(
    fit: Fit, stage: Stage, maps: Mapping[str, LinearMap], new_sums: Callable[[], Sums]
) -> Sums:
    """One pass over the data set into running sums, saved at intervals and taken up again.

    The order of the batches is fixed by the data set and the token budget, so that an interrupted
    pass adds the same numbers in the same order. A batch that runs out of memory may have been
    added in part: then the sums go back to what was last saved (or to nothing), and what is left
    is planned again for half of that batch. (Several processes would each take a share of the
    batches here, and reduce the sums.)

    Returns:
        The sums that ``new_sums`` gave, filled.

    Raises:
        InputError: if one example by itself does not fit into memory.
    """
    lengths = fit.dataset.lengths
    while True:
        parts, state = fit.store.load_progress(stage)
        schedule = BatchSchedule(lengths, parts or [(fit.budgets[stage], 0)], fit.rows_of(stage))
        schedule.shrink(fit.store.token_budget(stage, fit.budgets[stage]))
        sums = new_sums()
        sums.load(state, fit.tracked.devices())
        del state
        failed = _add_batches(fit, stage, maps, sums, schedule)
        if not failed:
            return sums
        del sums
        if fit.passes.num_bytes:
            fit.passes.forget()
            print(
                f"out of memory in stage {stage}; going on without what was kept for later passes"
            )
            continue
        if len(failed) == 1:
            raise InputError(
                f"{describe_row(failed[0])}, of {lengths[failed[0]]} tokens, does not fit into "
                f"memory by itself in stage {stage}; shorten it, track fewer --modules, or raise "
                "--module-partitions"
            )
        budget = half_of(failed, lengths)
        fit.store.shrink_token_budget(stage, fit.budgets[stage], budget)
        print(
            f"out of memory in stage {stage} at {len(failed)} sequences of up to "
            f"{lengths[failed].max()} tokens; going on with {budget} tokens per batch"
        )


def _add_batches(
    fit: Fit, stage: Stage, maps: Mapping[str, LinearMap], sums: Sums, schedule: BatchSchedule
) -> list[int]:
    """Add what is left of a pass; the rows of the batch that ran out of memory, or []."""
    saved_at = time.monotonic()
    batches = schedule.remaining()
    total, done = len(fit.rows_of(stage)), schedule.num_rows_done
    with frozen(fit.model), tqdm(total=total, initial=done, desc=stage, unit="seq") as bar:
        for rows in batches:
            if runs_out_of_memory(partial(_add_rows, fit, maps, sums, rows)):
                return rows
            schedule.advance()
            bar.update(len(rows))
            if time.monotonic() - saved_at >= fit.save_interval:
                fit.store.save_progress(stage, schedule, sums.state())
                saved_at = time.monotonic()
    return []


def _add_rows(fit: Fit, maps: Mapping[str, LinearMap], sums: Sums, rows: Sequence[int]) -> None:
    """Add one batch."""
    (batch,) = load_batches(fit.model, fit.dataset, [rows])
    fit.passes.run(
        tuple(rows),
        maps,
        batch,
        sums.add,
        dtype=fit.curvature.covariance_dtype,
        loss_scale=fit.curvature.loss_scale,
    )
