"""The plan of fit-hessians: memory, disk and time of every stage."""

from collections.abc import Mapping
from dataclasses import dataclass

import torch
from math_utils.linear_maps import LinearMap

from if_query.device_memory import Memory, held_memory, is_host, peak_memory
from if_query.factors import STAGES, Stage
from if_query.fit_stages import Fit
from if_query.partitions import fill_groups
from if_query.plan.eigen_costs import EigenCosts
from if_query.plan.fit_trials import StageTrial, choose_capacities, passes_of, try_stage
from if_query.plan.replay import Replay, choose_replay_bytes, try_replay
from if_query.plan.report import ModulePlan, Plan, StagePlan, gigabytes
from if_query.plan.sizes import (
    covariance_bytes,
    eigenvalue_bytes,
    file_bytes,
    pass_bytes,
    progress_bytes,
)
from if_query.plan.stand_ins import Maps
from if_query.plan.trials import storage_rate


def plan_fit(
    fit: Fit,
    *,
    num_groups: int | None,
    memory_gb: float | None,
    replay_memory_gb: float | None = None,
    loading_seconds: float = 0.0,
) -> Plan:
    """Plan a fit from the beginning; nothing is written.

    Args:
        fit: the fit.
        num_groups: of maps, that were asked for.
        memory_gb: memory that may be used in all, in 10⁹ bytes; None for what is free.
        replay_memory_gb: memory to keep batches in that was asked for, likewise.
        loading_seconds: what it took to come here.

    Raises:
        InputError: as for :func:`choose_capacities`.
    """
    loaded = peak_memory()
    trials = {stage: try_stage(fit, stage) for stage in passes_of(fit)}
    capacities, notes = choose_capacities(
        fit, num_groups=num_groups, memory_gb=memory_gb, trials=trials
    )
    room = choose_replay_bytes(
        fit, asked_gb=replay_memory_gb, memory_gb=memory_gb, capacities=capacities, trials=trials
    )
    replay = try_replay(fit, trials["eigenvalues"].budget) if room else None
    costs = EigenCosts(fit.tracked.maps, fit.curvature, fit.tracked.devices())
    return _FitPlan(
        fit, trials, capacities, costs, loaded, loading_seconds, notes, replay, room
    ).plan()


@dataclass(frozen=True, eq=False)
class _FitPlan:
    fit: Fit
    trials: Mapping[Stage, StageTrial]
    capacities: Mapping[str, int]
    costs: EigenCosts
    loaded: Memory
    loading_seconds: float
    notes: list[str]
    replay: Replay | None
    replay_bytes: int

    def plan(self) -> Plan:
        loaded, seconds = self.loaded, self.loading_seconds
        stages = [StagePlan("loading", loaded.host, loaded.device, 0, seconds)]
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

    @property
    def _on_host(self) -> bool:
        return is_host(list(self.fit.tracked.devices().values()))

    def _memory(self, base: Memory, statistics: int, copies: int) -> tuple[int, int]:
        """(host, device) with statistics on the maps' devices and copies in main memory."""
        if self._on_host:
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

    @property
    def _num_kept(self) -> int:
        """Batches that corrected eigenvalues replay."""
        return self.replay.kept(self.replay_bytes) if self.replay else 0

    @property
    def _kept_bytes(self) -> int:
        """What covariances leave in memory for them."""
        return int(self.replay.sizes[: self._num_kept].sum()) if self.replay else 0

    @property
    def _saved_seconds(self) -> float:
        """What a pass takes less in replayed batches."""
        if self.replay is None:
            return 0.0
        whole = self.trials["eigenvalues"].trial.seconds
        return max(0.0, float((whole - self.replay.seconds)[: self._num_kept].sum()))

    def _further_seconds(self, stage: Stage, num_groups: int) -> float:
        """A further pass for a group: whole batches, and of those kept the parts with its maps.

        Of corrected eigenvalues even the first group replays, so that the parts of all groups make
        up the pass that is counted already.
        """
        trial = self.trials[stage]
        whole = trial.trial.seconds
        share = float(whole[: self._num_kept].sum() / whole.sum())
        seconds = trial.plain_seconds * (1 - share)
        if stage == "covariances":
            replayed = max(0.0, trial.plain_seconds * share - self._saved_seconds)
            seconds += replayed / num_groups
        return seconds

    def _copies(self, stage: Stage) -> int:
        """What writing the largest map takes beside it: its bytes twice.

        Or reading what is then on an accelerator: of a map's covariances or bases the file and
        the tensors.
        """
        maps, stages = self.fit.tracked.maps.values(), [stage]
        if not self._on_host and self.fit.curvature.strategy != "diagonal":
            stages.append("eigenbases")
        return 2 * max(file_bytes(own, one, self._itemsize) for own in stages for one in maps)

    def _mirrored(self, stage: Stage) -> int:
        """What copying one triangle of the largest covariance over the other takes beside it."""
        if stage != "covariances" or self._on_host:
            return 0
        maps = self.fit.tracked.maps.values()
        return max(self._itemsize * max(one.d_in, one.d_out) ** 2 for one in maps)

    def _pass(self, stage: Stage, on_disk: int) -> StagePlan:
        """A pass over the data: the largest group, and the sums saved on the way."""
        trial, groups = self.trials[stage], self._groups(stage)
        statistics = max(self._statistics(stage, group) for group in groups) + self._kept_bytes
        running = self._memory(trial.trial.peak, statistics, 0)
        # Written when the pass is over: the sums are there, the activations are not.
        written = self._memory(
            held_memory(), statistics + self._mirrored(stage), self._copies(stage)
        )
        saved = self._saved_seconds
        seconds = float(trial.trial.seconds.sum()) - (saved if stage == "eigenvalues" else 0.0)
        seconds += (len(groups) - 1) * self._further_seconds(stage, len(groups))
        num_saves = min(
            len(trial.trial.seconds),
            int(seconds / len(groups) // max(self.fit.save_interval, 1e-9)),
        )
        sizes = [progress_bytes(stage, group, self._itemsize) for group in groups]
        own = self._files(stage)
        # At most two saves at a time, or one beside the files of the stage.
        disk = on_disk + max(own + min(num_saves, 1) * max(sizes), min(num_saves, 2) * max(sizes))
        return StagePlan(
            stage,
            max(running[0], written[0]),
            max(running[1], written[1]),
            disk,
            seconds + (own + num_saves * sum(sizes)) / storage_rate(),
        )

    def _files(self, stage: Stage) -> int:
        maps = self.fit.tracked.maps.values()
        return sum(file_bytes(stage, one, self._itemsize) for one in maps)

    def _covariances(self) -> StagePlan:
        return self._pass("covariances", 0)

    def _eigenbases(self) -> StagePlan:
        first = self.trials["covariances"].first_reader
        memory = self.costs.peak_bytes(first, self._itemsize) + self._kept_bytes
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
        if self.replay and self._num_kept:
            notes.append(
                f"covariances keep {gigabytes(self._kept_bytes)}, so that corrected eigenvalues of "
                f"{self._num_kept} of {len(self.replay.sizes)} batches need only the parts of the "
                "model that hold the maps"
            )
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
