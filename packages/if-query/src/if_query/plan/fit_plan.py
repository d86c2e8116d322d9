"""The plan of fit-hessians, and the groups of maps that fit into the memory there is."""

from collections.abc import Mapping, Sequence
from dataclasses import dataclass

import torch
from math_utils.capture import frozen
from math_utils.curvature import CovarianceSums, EigenvalueSums, backward_pass
from math_utils.linear_maps import LinearMap

from if_query.batching import make_batches
from if_query.device_memory import Memory, free_memory, held_memory, is_host, peak_memory
from if_query.errors import InputError
from if_query.factors import STAGES, Stage
from if_query.fit_stages import Fit, describe_row
from if_query.out_of_memory import runs_out_of_memory
from if_query.partitions import capacity_of, fill_groups
from if_query.passes import load_batches
from if_query.plan.eigen_costs import EigenCosts
from if_query.plan.report import ModulePlan, Plan, StagePlan, gigabytes
from if_query.plan.sizes import (
    covariance_bytes,
    eigenvalue_bytes,
    file_bytes,
    pass_bytes,
    progress_bytes,
)
from if_query.plan.stand_ins import (
    Maps,
    StandInBases,
    StandInSums,
    representatives,
    stand_in_eigenbases,
)
from if_query.plan.trials import Trial, storage_rate, try_batches
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
    budget = fit.budgets[stage]
    found: list[StageTrial] = []
    while True:
        batches = make_batches(fit.dataset.lengths, max_tokens=budget)

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


def _run(fit: Fit, maps: Maps, rows: Sequence[int], consume: object) -> None:
    (batch,) = load_batches(fit.model, fit.dataset, [rows])
    with frozen(fit.model):
        backward_pass(
            fit.model,
            maps,
            batch,
            fit.objective,
            consume,  # type: ignore[arg-type]
            dtype=fit.curvature.covariance_dtype,
            loss_scale=fit.curvature.loss_scale,
        )


def choose_capacities(
    fit: Fit, *, num_groups: int | None, memory_gb: float | None, trials: dict[Stage, StageTrial]
) -> tuple[dict[str, int], list[str]]:
    """How many bytes of statistics one pass may keep, by stage.

    Args:
        fit: the fit.
        num_groups: asked for; None chooses the fewest that fit.
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
        if num_groups is not None:
            capacities[stage] = capacity_of(sizes, num_groups)
        elif memory_gb is not None or total > SAFE_SHARE * free:
            if stage not in trials:
                trials[stage] = try_stage(fit, stage)
            allowed = held_memory().on(devices) + USABLE_SHARE * free
            if memory_gb is not None:
                allowed = memory_gb * 1e9
            needed = trials[stage].trial.peak.on(devices)
            room = int(allowed - needed)
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


def plan_fit(fit: Fit, *, num_groups: int | None, memory_gb: float | None) -> Plan:
    """Plan a fit from the beginning; nothing is written.

    Raises:
        InputError: as for :func:`choose_capacities`.
    """
    loaded = peak_memory()
    trials = {stage: try_stage(fit, stage) for stage in passes_of(fit)}
    capacities, notes = choose_capacities(
        fit, num_groups=num_groups, memory_gb=memory_gb, trials=trials
    )
    costs = EigenCosts(fit.tracked.maps, fit.curvature, fit.tracked.devices())
    return _FitPlan(fit, trials, capacities, costs, loaded, notes).plan()


@dataclass(frozen=True, eq=False)
class _FitPlan:
    fit: Fit
    trials: Mapping[Stage, StageTrial]
    capacities: Mapping[str, int]
    costs: EigenCosts
    loaded: Memory
    notes: list[str]

    def plan(self) -> Plan:
        stages = [StagePlan("loading", self.loaded.host, self.loaded.device, 0, 0.0)]
        build = {
            "covariances": self._covariances,
            "eigenbases": self._eigenbases,
            "eigenvalues": self._eigenvalues,
        }
        stages += [build[stage]() for stage in STAGES[self.fit.curvature.strategy]]
        left = [s for s in STAGES[self.fit.curvature.strategy] if s != "covariances"]
        return Plan(stages, sum(map(self._files, left)), self._notes(), self._modules())

    # Memory of one stage

    @property
    def _itemsize(self) -> int:
        return self.fit.curvature.covariance_dtype.itemsize

    def _memory(self, base: Memory, statistics: int, copies: int) -> tuple[int, int]:
        """(host, device) with statistics on the maps' devices and copies in main memory."""
        if is_host(list(self.fit.tracked.devices().values())):
            return base.host + statistics + copies, 0
        return base.host + copies, base.device + statistics

    def _groups(self, stage: Stage) -> list[dict[str, LinearMap]]:
        maps = self.fit.tracked.maps
        sizes = pass_bytes(stage, self.fit.curvature.strategy, maps, self._itemsize)
        capacity = self.capacities.get(stage, sum(sizes.values()))
        return [{name: maps[name] for name in group} for group in fill_groups(sizes, capacity)]

    def _statistics(self, stage: Stage, maps: Maps) -> int:
        """What a pass keeps of a group, with bases of inputs that are shared counted once."""
        if stage == "covariances":
            return sum(covariance_bytes(one, self._itemsize) for one in maps.values())
        total = sum(eigenvalue_bytes(one, self._itemsize) for one in maps.values())
        if self.fit.curvature.strategy == "ekfac":
            first = self.trials[stage].first_reader
            inputs = {first.get(name, name): one.d_in for name, one in maps.items()}
            widths = [*inputs.values(), *(one.d_out for one in maps.values())]
            total += sum(self._itemsize * width**2 for width in widths)
        return total

    def _copies(self, stage: Stage) -> int:
        """What writing the largest map takes beside it: its bytes twice."""
        maps = self.fit.tracked.maps.values()
        return 2 * max(file_bytes(stage, one, self._itemsize) for one in maps)

    def _pass(self, stage: Stage, on_disk: int) -> StagePlan:
        """A pass over the data: the largest group, and the sums saved on the way."""
        trial, groups = self.trials[stage], self._groups(stage)
        statistics = max(self._statistics(stage, group) for group in groups)
        running = self._memory(trial.trial.peak, statistics, 0)
        # Written when the pass is over: the sums are there, the activations are not.
        written = self._memory(held_memory(), statistics, self._copies(stage))
        seconds = float(trial.trial.seconds.sum()) + (len(groups) - 1) * trial.plain_seconds
        saved = min(2, int(seconds / len(groups) // max(self.fit.save_interval, 1e-9)))
        progress = max(progress_bytes(stage, group, self._itemsize) for group in groups)
        own = self._files(stage)
        # At most two saves at a time, or one beside the files of the stage.
        disk = on_disk + max(own + min(saved, 1) * progress, saved * progress)
        return StagePlan(
            stage,
            max(running[0], written[0]),
            max(running[1], written[1]),
            disk,
            seconds + own / storage_rate(),
        )

    def _files(self, stage: Stage) -> int:
        maps = self.fit.tracked.maps.values()
        return sum(file_bytes(stage, one, self._itemsize) for one in maps)

    def _covariances(self) -> StagePlan:
        return self._pass("covariances", 0)

    def _eigenbases(self) -> StagePlan:
        first = self.trials["covariances"].first_reader
        memory = self.costs.peak_bytes(first, self._itemsize)
        host, device = self._memory(held_memory(), memory, self._copies("eigenbases"))
        size = self._files("covariances") + self._files("eigenbases")
        seconds = self.costs.seconds(first) + size / storage_rate()
        return StagePlan("eigenbases", host, device, size, seconds)

    def _eigenvalues(self) -> StagePlan:
        on_disk = 0
        if self.fit.curvature.strategy in ("kfac", "ekfac"):
            on_disk = self._files("eigenbases")
        if self.fit.curvature.strategy != "kfac":
            return self._pass("eigenvalues", on_disk)
        held = held_memory()
        peak = 0
        for one in self.fit.tracked.maps.values():
            bases = file_bytes("eigenbases", one, self._itemsize)
            values = eigenvalue_bytes(one, self._itemsize)
            peak = max(peak, 3 * bases, bases + 3 * values)
        size = self._files("eigenvalues")
        return StagePlan(
            "eigenvalues",
            held.host + peak,
            held.device,
            on_disk + size,
            (on_disk + size) / storage_rate(),
        )

    # What a person should know

    def _notes(self) -> list[str]:
        notes = list(self.notes)
        for stage in self.trials:
            asked, used = self.fit.budgets[stage], self.trials[stage].budget
            if used < asked:
                notes.append(
                    f"{asked} tokens per batch run out of memory in {stage}; planned with {used}"
                )
            if len(groups := self._groups(stage)) > 1:
                notes.append(f"{stage}: {len(groups)} groups of maps, a pass over the data each")
        notes.append("peaks are measured on the longest batch, plus exact sizes of statistics")
        notes.append("time: batches over the range of lengths, a + b·tokens + c·tokens·length")
        if "eigenbases" in STAGES[self.fit.curvature.strategy]:
            notes.append(self.costs.note)
        notes.append("files are taken to be written as fast as they are hashed")
        if torch.cuda.is_available():
            notes.append("device memory is that of tensors, without CUDA's own context")
        return notes

    def _modules(self) -> list[ModulePlan]:
        strategy, plans = self.fit.curvature.strategy, []
        left = [s for s in STAGES[strategy] if s != "covariances"]
        for name, one in self.fit.tracked.maps.items():
            memory: dict[str, int] = {
                stage: pass_bytes(stage, strategy, {name: one}, self._itemsize)[name]
                for stage in self.trials
            }
            disk = sum(file_bytes(stage, one, self._itemsize) for stage in left)
            seconds = self.costs.seconds_of(one) if "eigenbases" in left else None
            plans.append(ModulePlan(name, one.d_in, one.d_out, memory, disk, seconds))
        return plans
