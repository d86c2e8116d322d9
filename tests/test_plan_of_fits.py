"""What the plan of fit-hessians adds up, and how it chooses groups, beside trials given here."""

from dataclasses import replace

import numpy as np
import pytest
from if_query.device_memory import Memory
from if_query.errors import InputError
from if_query.factors import FactorStore
from if_query.fit_hessians import FitHessiansConfig, prepare
from if_query.fit_stages import run_stages
from if_query.plan import fit_plan, fit_trials, replay
from if_query.plan.eigen_costs import EigenCosts
from if_query.plan.fit_trials import StageTrial, choose_capacities
from if_query.plan.replay import Replay
from if_query.plan.sizes import FILE_HEADER_BYTES
from plan_cases import HELD, LOADED, RATE, bytes_of, trial

FIRST = {
    "covariances": trial(900_000, 1.0, 2.0, 3.0),
    "eigenvalues": trial(800_000, 10.0, 20.0, 30.0),
}
PLAIN = {"covariances": 4.0, "eigenvalues": 50.0}


@pytest.fixture
def planned_fit(make_model_folder, token_data, tmp_path, monkeypatch):
    """({stage: plan}, the plan, the fit) of fit-hessians with further flags."""

    def plan(*, num_groups=None, kept=None, **more):
        config = FitHessiansConfig(
            model=str(make_model_folder()), hessian_dataset=token_data, output_dir=tmp_path / "f",
            dtype="float32", device="cpu", **more,
        )  # fmt: skip
        fit, metadata = prepare(config)
        readers = {name: name.replace("up_proj", "gate_proj") for name in fit.tracked.maps}
        for name, value in {
            "try_stage": lambda fit, stage: StageTrial(
                FIRST[stage], PLAIN[stage], readers, fit.budgets[stage]
            ),
            "choose_replay_bytes": lambda fit, **options: kept or 0,
            "try_replay": lambda fit, budget: Replay(
                np.array([1e3, 2e3, 3e3]), np.array([4.0, 5.0, 6.0])
            ),
            "peak_memory": lambda: LOADED,
            "held_memory": lambda: HELD,
            "storage_rate": lambda: RATE,
        }.items():
            monkeypatch.setattr(fit_plan, name, value)
        monkeypatch.setattr(EigenCosts, "seconds", lambda self, readers: 7.0)
        monkeypatch.setattr(EigenCosts, "peak_bytes", lambda self, readers, itemsize: 12_345)
        found = fit_plan.plan_fit(fit, num_groups=num_groups, memory_gb=None, loading_seconds=0.5)
        return {one.name: one for one in found.stages}, found, fit, metadata

    return plan


@pytest.fixture(scope="module")
def stage_files(make_model_folder, token_data, tmp_path_factory):
    """{stage: {map: bytes of its tensors and a header}}, of covariances too, as a fit writes."""
    config = FitHessiansConfig(
        model=str(make_model_folder()), hessian_dataset=token_data, dtype="float32", device="cpu",
        output_dir=tmp_path_factory.mktemp("sizes") / "f",
    )  # fmt: skip
    fit, fit.store.metadata = prepare(config)
    sizes: dict[str, dict[str, int]] = {}
    real = FactorStore.write_map

    def noted(store, stage, name, tensors):
        sizes.setdefault(stage, {})[name] = bytes_of(tensors.values()) + FILE_HEADER_BYTES
        return real(store, stage, name, tensors)

    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(FactorStore, "write_map", noted)
        run_stages(fit)
    return sizes


def test_every_stage_of_a_fit_counts_what_it_keeps_and_writes(planned_fit, stage_files):
    stages, found, fit, _ = planned_fit()
    maps = fit.tracked.maps
    covariances = 4 * sum(one.d_in**2 + one.d_out**2 for one in maps.values())
    values = 4 * sum(one.d_in * one.d_out for one in maps.values())
    # Of two maps that read the same input the basis of inputs is kept once.
    shared = 4 * sum(one.d_in**2 for name, one in maps.items() if "up_proj" in name)
    assert 0 < shared < covariances
    assert {name: one.host for name, one in stages.items()} == {
        "loading": LOADED.host,
        "covariances": 900_000 + covariances,
        "eigenbases": HELD.host + 12_345 + 2 * max(stage_files["eigenbases"].values()),
        "eigenvalues": 800_000 + covariances - shared + values,
    }
    files = {stage: sum(sizes.values()) for stage, sizes in stage_files.items()}
    on_disk = [one.disk for one in stages.values()]
    both = files["covariances"] + files["eigenbases"]
    after = files["eigenbases"] + files["eigenvalues"]
    assert on_disk == [0, files["covariances"], both, after]
    assert found.disk_left == after
    written = [files[stage] / RATE for stage in ("covariances", "eigenvalues")]
    seconds = [0.5, 6.0 + written[0], 7.0 + both / RATE, 60.0 + written[1]]
    assert [one.seconds for one in stages.values()] == pytest.approx(seconds)


def test_what_is_kept_for_replays_is_memory_of_all_stages_and_time_saved(planned_fit):
    without, _, _, _ = planned_fit()
    stages, found, _, _ = planned_fit(kept=3_500)  # room for two of three batches
    for name in ("covariances", "eigenbases", "eigenvalues"):
        assert stages[name].host == without[name].host + 3_000
        saved = 10.0 + 20.0 - 4.0 - 5.0 if name == "eigenvalues" else 0.0
        assert stages[name].seconds == pytest.approx(without[name].seconds - saved)
    assert any("of 2 of 3 batches" in note for note in found.notes)


def test_groups_keep_the_largest_and_pay_a_pass_each(planned_fit, monkeypatch):
    whole, _, fit, _ = planned_fit()
    stages, _, _, _ = planned_fit(num_groups=9, kept=3_500)
    largest = max(one.d_in**2 + one.d_out**2 for one in fit.tracked.maps.values())
    assert stages["covariances"].host == 900_000 + 4 * largest + 3_000
    # Half of a pass is of batches that are replayed, which saves 21 seconds of it; a ninth of what
    # is left has the maps of a group. The first group of eigenvalues replays no more than that.
    monkeypatch.setitem(PLAIN, "covariances", 60.0)
    stages, found, _, _ = planned_fit(num_groups=9, kept=3_500)
    further = {"covariances": 60.0 / 2 + (60.0 / 2 - 21.0) / 9, "eigenvalues": 50.0 / 2}
    saved = {"covariances": 0.0, "eigenvalues": 21.0}
    for name in PLAIN:
        expected = whole[name].seconds - saved[name] + 8 * further[name]
        assert stages[name].seconds == pytest.approx(expected)
        assert f"{name}: 9 groups of maps, a pass over the data each" in found.notes


@pytest.mark.parametrize(
    ("seconds", "saves"), [(1e9, 0), (70.0, 0), (40.0, 1), (1e-3, 3), (0.0, 3)]
)
def test_sums_saved_on_the_way_are_on_disk_beside_the_files_or_twice(
    planned_fit, stage_files, seconds, saves
):
    """The pass takes 60 seconds and three batches; the next save is whole before the last goes."""
    stages, _, _, _ = planned_fit(save_interval=seconds)
    never, _, _, _ = planned_fit(save_interval=float("inf"))
    bases, values = (sum(stage_files[stage].values()) for stage in ("eigenbases", "eigenvalues"))
    assert stages["eigenvalues"].disk == bases + {0: 1, 1: 2, 3: 2}[saves] * values
    taken = stages["eigenvalues"].seconds - never["eigenvalues"].seconds
    assert taken == pytest.approx(saves * values / RATE)


def test_kfac_makes_eigenvalues_map_by_map_without_a_pass(planned_fit, stage_files):
    stages, _, fit, _ = planned_fit(strategy="kfac")
    most = max(
        max(3 * bases, bases + 3 * 4 * one.d_in * one.d_out)
        for name, one in fit.tracked.maps.items()
        for bases in [stage_files["eigenbases"][name]]
    )
    assert stages["eigenvalues"].host == HELD.host + most
    both = sum(stage_files["eigenbases"].values()) + sum(stage_files["eigenvalues"].values())
    assert stages["eigenvalues"].disk == both
    assert stages["eigenvalues"].seconds == pytest.approx(both / RATE)


# What fits


def given_trials(fit) -> dict[str, StageTrial]:
    return {
        stage: StageTrial(FIRST[stage], PLAIN[stage], {}, fit.budgets[stage]) for stage in FIRST
    }


def test_maps_go_in_groups_where_the_trials_leave_no_room_for_all(planned_fit, monkeypatch):
    _, _, fit, _ = planned_fit()
    maps, trials = fit.tracked.maps.values(), given_trials(fit)
    peaks = {stage: trial.peak.host for stage, trial in FIRST.items()}
    sizes = [4 * (one.d_in**2 + one.d_out**2) for one in maps]
    values = [4 * one.d_in * one.d_out for one in maps]
    total = {"covariances": sum(sizes), "eigenvalues": sum(sizes) + sum(values)}
    largest = {"covariances": max(sizes)}
    largest["eigenvalues"] = max(map(sum, zip(sizes, values, strict=True)))

    def chosen(memory, num_groups=None):
        return choose_capacities(fit, num_groups=num_groups, memory_gb=memory, trials=trials)

    plenty, lines = chosen(1.0)
    assert plenty == pytest.approx({stage: 10**9 - peaks[stage] for stage in peaks}, abs=2)
    assert lines == []
    needs_most = max(peaks, key=lambda stage: peaks[stage] + total[stage])
    capacities, lines = chosen((peaks[needs_most] + total[needs_most] - 9) / 1e9)
    assert capacities[needs_most] == pytest.approx(total[needs_most] - 9, abs=2)
    (line,) = lines
    assert line.startswith(f"statistics of {needs_most} take")
    assert "so the maps go in 2 groups" in line
    least = max(peaks, key=lambda stage: peaks[stage] + largest[stage])
    chosen((peaks[least] + largest[least] + 9) / 1e9)
    with pytest.raises(InputError, match=f"{least} need .* one linear map at a time"):
        chosen((peaks[least] + largest[least] - 9) / 1e9)
    # Groups that were asked for have to fit too.
    asked, lines = chosen(None, 3)
    assert lines == []
    assert chosen(1.0, 3)[0] == asked
    needs_most = max(peaks, key=lambda stage: peaks[stage] + asked[stage])
    chosen((peaks[needs_most] + asked[needs_most] + 9) / 1e9, 3)
    with pytest.raises(InputError, match=f"{needs_most} in 3 groups need .*--module-partitions"):
        chosen((peaks[needs_most] + asked[needs_most] - 9) / 1e9, 3)
    # Where nothing is stated: what is free beside what is held, and no trial where there is plenty.
    monkeypatch.setattr(fit_trials, "held_memory", lambda: Memory(700_000))
    monkeypatch.setattr(fit_trials, "USABLE_SHARE", 0.5)
    for free, expected in ((4 * total["eigenvalues"] + 9, {}), (300_000, None)):
        monkeypatch.setattr(fit_trials, "free_memory", lambda devices, free=free: free)
        if expected is None:
            monkeypatch.setattr(fit_trials, "SAFE_SHARE", 0.0)
            expected = {
                stage: max(700_000 + 150_000 - peaks[stage], largest[stage]) for stage in peaks
            }
        assert chosen(None)[0] == expected


def test_room_for_replays_is_what_was_asked_for_within_a_stated_memory(planned_fit, monkeypatch):
    _, _, fit, _ = planned_fit()
    trials = given_trials(fit)
    capacities = {"covariances": 10_000, "eigenvalues": 10**9}
    every = sum(
        4 * (one.d_in**2 + one.d_out**2 + one.d_in * one.d_out) for one in fit.tracked.maps.values()
    )
    monkeypatch.setattr(replay, "free_memory", lambda devices: 8_000_000)
    monkeypatch.setattr(replay, "held_memory", lambda: Memory(1_000_000))

    def room(asked=None, memory=None, trials=trials, fit=fit):
        return replay.choose_replay_bytes(
            fit, asked_gb=asked, memory_gb=memory, capacities=capacities, trials=trials
        )

    left = 10**6 - max(900_000 + 10_000, 800_000 + every)
    assert left == 90_000
    assert room(memory=0.001) == left
    assert room(asked=0.5, memory=0.001) == left
    assert room(asked=1e-6, memory=0.001) == 1000
    assert room(asked=0.5) == 5 * 10**8
    assert room() == 2 * 10**6
    assert room(memory=0.0005) == 0
    assert room(memory=0.001, trials={}) == 0
    monkeypatch.setattr(replay, "REPLAY_SHARE", 1.0)
    assert room() == 1_000_000 + 7_200_000 - max(900_000 + 10_000, 800_000 + every)
    assert room(trials={}) == 8_000_000
    for budgets in ({"covariances": 8, "eigenvalues": 9},):
        assert room(asked=0.5, fit=replace(fit, budgets=budgets)) == 0
    assert room(asked=0.5, fit=replace(fit, covariance_rows=fit.covariance_rows[1:])) == 0
