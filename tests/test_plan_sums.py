"""What a plan adds up, stage by stage: exact sizes beside trials that are given here.

The peaks of whole runs hide any stage but the greatest; here every one is compared, with the bytes
of the tensors and files themselves.
"""

from dataclasses import replace
from types import SimpleNamespace

import numpy as np
import pytest
import torch
from if_query import query_memory, run_query
from if_query.device_memory import Memory
from if_query.errors import InputError
from if_query.factors import FactorStore
from if_query.fit_hessians import FitHessiansConfig
from if_query.fit_hessians import prepare as prepare_fit
from if_query.fit_stages import run_stages
from if_query.plan import fit_plan, fit_trials, query_plan, replay, room
from if_query.plan.eigen_costs import EigenCosts
from if_query.plan.fit_trials import StageTrial, choose_capacities
from if_query.plan.query_trials import QueryTrials
from if_query.plan.replay import Replay
from if_query.plan.report import Plan, StagePlan
from if_query.plan.sizes import FILE_HEADER_BYTES
from if_query.plan.trials import Trial
from if_query_commands import query
from math_utils.curvature import CurvatureConfig, collect_queries
from math_utils.linear_maps import find_linear_maps

LOADED, HELD = Memory(30_000), Memory(20_000)
RATE = 1e6


def trial(peak: int, *seconds: float) -> Trial:
    return Trial(Memory(peak), np.array(seconds))


# run-query

PASSES = {
    "queries": trial(700_000, 1.0, 2.0, 3.0),
    "scores": trial(600_000, 10.0, 20.0),
    "self-influence": trial(500_000, 100.0, 200.0),
}


class GivenTrials(QueryTrials):
    """In place of what a few batches took."""

    queries, self_influence = PASSES["queries"], PASSES["self-influence"]
    peak = Memory(700_000)

    def __init__(self, run, strategy):
        self.asked_for: list[int] = []

    def scores(self, num_queries):
        self.asked_for.append(num_queries)
        return PASSES["scores"]


@pytest.fixture
def planned_query(make_model_folder, fitted, pair_files, tmp_path, monkeypatch):
    """({stage: plan}, the run, its store) of run-query with further flags."""
    for name, value in {
        "QueryTrials": GivenTrials,
        "peak_memory": lambda: LOADED,
        "held_memory": lambda: HELD,
        "storage_rate": lambda: RATE,
    }.items():
        monkeypatch.setattr(query_plan, name, value)

    def plan(**more):
        config = run_query.RunQueryConfig(
            model=str(make_model_folder()), factors_dir=fitted, train_json=pair_files[0],
            query_json=pair_files[1], output_dir=tmp_path / "o", dtype="float32", device="cpu",
            **more,
        )  # fmt: skip
        run, store = run_query.prepare(config)
        found = query_plan.plan_query(run, store, loading_seconds=0.5)
        return {one.name: one for one in found.stages}, found, run, store

    return plan


def bytes_of(tensors) -> int:
    return sum(one.nbytes for one in tensors if one is not None)


def factor_sizes(store: FactorStore) -> dict[str, int]:
    return {
        name: bytes_of([one.input_basis, one.output_basis, one.eigenvalues])
        for name, one in store.read_factors().maps.items()
    }


def query_gradients(run, store, rank=None) -> int:
    """Bytes of one query, as it is gathered."""
    from if_query.models import LanguageModelLoss
    from if_query.passes import load_batches

    (batch,) = load_batches(run.model, run.queries.dataset, [[0]])
    found, _ = collect_queries(
        run.model, run.tracked.maps, [batch], LanguageModelLoss(), store.read_factors(),
        run.damping, rank=rank,
    )  # fmt: skip
    return bytes_of(found.whole.values()) + bytes_of(
        part for pair in found.low_rank.values() for part in pair
    )


@pytest.mark.parametrize("rank", [None, 3, 99])
def test_every_stage_of_a_query_run_counts_what_it_keeps(planned_query, rank):
    stages, _, run, store = planned_query(
        self_influence=True, per_module_scores=True, per_token_scores=True, query_rank=rank
    )
    factors = sum(factor_sizes(store).values())
    kept = factors + query_gradients(run, store, rank) * len(run.queries.pairs)
    arrays = run.open_arrays()
    mapped = bytes_of(
        [arrays.scores, arrays.module_scores, arrays.token_scores, arrays.self_influence]
    )
    assert {name: one.host for name, one in stages.items()} == {
        "loading": LOADED.host,
        "queries": PASSES["queries"].peak.host + kept + mapped,
        "scores": PASSES["scores"].peak.host + kept + mapped,
        "self-influence": PASSES["self-influence"].peak.host + factors + mapped,
        "tables": HELD.host + factors + mapped,
    }
    assert [one.device for one in stages.values()] == [0] * 5
    assert [one.disk for one in stages.values()][:4] == [0, mapped, mapped, mapped]
    seconds = [one.seconds for one in stages.values()]
    assert seconds[:4] == pytest.approx([0.5, 6.0 + factors / RATE, 30.0, 300.0])


def test_on_an_accelerator_statistics_are_there_and_scores_in_main_memory(
    planned_query, monkeypatch
):
    monkeypatch.setattr(query_plan, "is_host", lambda devices: False)
    for one in PASSES.values():
        monkeypatch.setattr(one.peak, "device", one.peak.host + 5)
    stages, _, run, store = planned_query()
    kept = sum(factor_sizes(store).values())
    kept += query_gradients(run, store) * len(run.queries.pairs)
    mapped = 4 * len(run.queries.pairs) * len(run.train.pairs)
    for name in ("queries", "scores"):
        assert stages[name].device == PASSES[name].peak.host + 5 + kept
        assert stages[name].host == PASSES[name].peak.host + mapped


def test_blocks_of_queries_are_passes_and_keep_their_own_gradients_alone(planned_query):
    _, _, run, store = planned_query()
    one_query = query_gradients(run, store)
    stages, found, _, _ = planned_query(query_memory_gb=1.5 * one_query / 1e9)
    factors = sum(factor_sizes(store).values())
    mapped = 4 * len(run.queries.pairs) * len(run.train.pairs)
    assert stages["scores"].host == PASSES["scores"].peak.host + factors + one_query + mapped
    assert stages["scores"].seconds == len(run.queries.pairs) * 30.0
    assert "2 blocks of queries, a pass over the training examples each" in found.notes


def test_factors_on_disk_are_read_for_every_batch_that_needs_them(planned_query, monkeypatch):
    monkeypatch.setattr(query_memory, "free_memory", lambda devices: 40_000)
    stages, found, run, store = planned_query(self_influence=True, query_memory_gb=1.0)
    sizes = factor_sizes(store)
    read = sum(sizes.values()) / RATE
    assert stages["queries"].seconds == pytest.approx(6.0 + 3 * read)
    assert stages["self-influence"].seconds == pytest.approx(300.0 + 2 * read)
    mapped = 4 * (len(run.queries.pairs) + 1) * len(run.train.pairs)
    # Of the largest: the file, its tensors, and their copies that are aligned.
    own = PASSES["self-influence"].peak.host + 3 * max(sizes.values()) + mapped
    assert stages["self-influence"].host == own
    assert any("read from disk map by map" in note for note in found.notes)


def test_memory_for_queries_is_what_the_trials_and_the_factors_leave(planned_query):
    _, _, run, store = planned_query()
    one_query, factors = query_gradients(run, store), sum(factor_sizes(store).values())
    trials = GivenTrials(run, store.strategy)

    def chosen(room: float, **more):
        config = replace(run.config, memory_gb=(trials.peak.host + room) / 1e9, **more)
        return query_memory.choose_memory(replace(run, config=config), store, trials)

    plenty = chosen(factors * 2 + 2 * one_query)
    assert (plenty.queries_at_once, plenty.factors_on_disk, plenty.lines) == (2, False, [])
    assert (plenty.factors, plenty.per_query) == (factors, one_query)
    largest = max(factor_sizes(store).values())
    scarce = chosen(3 * largest + 1.5 * one_query)
    assert (scarce.factors_on_disk, scarce.queries_at_once) == (True, 1)
    assert len(scarce.lines) == 2
    with pytest.raises(run_query.InputError, match="one query at a time needs"):
        chosen(3 * largest + 0.9 * one_query)
    needed = trials.peak.host + 3 * largest + one_query
    with pytest.raises(run_query.InputError, match=f"needs {needed / 1e9:.4g} GB"):
        chosen(3 * largest + 0.5 * one_query)
    # Memory for queries alone is within the whole, and one is held whatever it says.
    assert chosen(factors * 2 + 1.5 * one_query, query_memory_gb=1.0).queries_at_once == 2
    assert chosen(3 * largest + 1.5 * one_query, query_memory_gb=1.0).queries_at_once == 1
    assert chosen(factors * 2 + 2 * one_query, query_memory_gb=1e-9).queries_at_once == 1
    # A share of what is free, where nothing is stated.
    free = factors * 2 + 10 * one_query
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(query_memory, "free_memory", lambda devices: free)
        patch.setattr(query_memory, "SHARE_FOR_QUERIES", 1.01 * one_query / (free - factors))
        assert query_memory.choose_memory(run, store, trials).queries_at_once == 1
        assert query_memory.choose_memory(run, store, trials).factors_on_disk is False
        patch.setattr(query_memory, "free_memory", lambda devices: factors * 2 - 1)
        assert query_memory.choose_memory(run, store, trials).factors_on_disk is True


@pytest.mark.parametrize(
    "more",
    [
        {"per_token_scores": True, "per_module_scores": True, "self_influence": True},
        {"per_token_scores": True, "top_k": 1},
        {"format": "parquet", "per_token_scores": True, "per_module_scores": True},
    ],
)
def test_tables_take_about_what_was_foretold(
    planned_query, make_model_folder, fitted, pair_files, tmp_path, more
):
    """Apart from what Parquet writes about columns, which a few rows do not outweigh."""
    stages, found, _, _ = planned_query(**more)
    assert found.disk_left == stages["tables"].disk - stages["scores"].disk
    flags = [
        word
        for name, value in more.items()
        for word in (f"--{name.replace('_', '-')}", *([] if value is True else [str(value)]))
    ]
    folder = query(make_model_folder(), fitted, pair_files, tmp_path / "done", *flags)
    taken = sum(path.stat().st_size for path in folder.iterdir())
    if "format" in more:
        taken -= sum(path.stat().st_size for path in folder.glob("*.parquet"))
        texts = found.disk_left - taken
        assert 0 < texts < found.disk_left / 2
    else:
        assert found.disk_left == pytest.approx(taken, rel=0.25)


def test_of_all_rows_no_more_are_kept_than_there_are(planned_query):
    every, half, one = (planned_query(top_k=count)[1].disk_left for count in (None, 3, 1))
    assert every - half == pytest.approx(0, abs=20)  # the metadata say which
    assert half - one > 2 * 4 * 10  # four of six rows of both queries


# fit-hessians

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
        fit, metadata = prepare_fit(config)
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
    fit, fit.store.metadata = prepare_fit(config)
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


def test_batches_are_kept_from_the_first_on_as_long_as_they_fit_together():
    found = Replay(np.array([5.0, 3.0, 1.0]), np.zeros(3))
    assert [found.kept(room) for room in (0, 4, 5, 7, 8, 9, 99)] == [0, 0, 1, 1, 2, 3, 3]


# What there is


def test_what_is_free_is_said_and_what_is_not_enough_is_a_warning(tmp_path, monkeypatch):
    plan = Plan([StagePlan("a", 5 * 10**9, 0, 3 * 10**9, 1.0)], 0)
    monkeypatch.setattr(room, "held_memory", lambda: Memory(10**9))

    def lines(memory: float, disk: float) -> list[str]:
        monkeypatch.setattr(room, "free_host_memory", lambda: int(memory * 1e9))
        usage = SimpleNamespace(free=int(disk * 1e9))
        asked_at = []
        monkeypatch.setattr(room.shutil, "disk_usage", lambda path: asked_at.append(path) or usage)
        found = room.describe_room(plan, tmp_path / "not" / "there")
        assert asked_at == [tmp_path]
        return found

    enough = [f"free now: 5 GB of host memory, 3 GB on disk at {tmp_path}"]
    assert lines(4.0, 3.0) == enough
    first, second = lines(3.9, 2.9)[1:]
    assert first.startswith("warning: 5 GB of host memory are needed, 4.9 GB are there")
    assert second.startswith("warning: 3 GB on disk are needed, 2.9 GB are there")
    assert len(lines(3.9, 3.0)) == len(lines(4.0, 2.9)) == 2


# Eigendecompositions


def costs_of(widths, *, threads=2):
    model = torch.nn.ModuleDict(
        {name: torch.nn.Linear(*shape, bias=False, device="meta") for name, shape in widths.items()}
    )
    maps = find_linear_maps(model, lambda name: True)
    own = EigenCosts(maps, CurvatureConfig(), dict.fromkeys(maps, torch.device("cpu")))
    own._workers = threads
    own._timed = {(width, torch.device("cpu"), 1): width * 1.0 for width in (8, 16, 1024)}
    return own


def test_a_basis_that_maps_share_is_timed_once_and_widths_beyond_grow_cubically():
    costs = costs_of({"gate": (8, 16), "up": (8, 16), "down": (2048, 8)})
    assert costs.seconds({}) == (8 + 16 + 8 + 16 + 8 * 1024 + 8) / 2
    assert costs.seconds({"up": "gate"}) == (8 + 16 + 16 + 8 * 1024 + 8) / 2


def test_covariances_bases_and_decompositions_under_way_are_held_at_once():
    """One map: both covariances, their bases, and four matrices of each decomposition under way."""
    costs = costs_of({"one": (8, 16)}, threads=1)
    pair = 4 * (8**2 + 16**2)
    decomposing = 4 * 8 * 16**2  # in float64
    assert costs.peak_bytes({}, 4) == 2 * pair + max(decomposing, 2 * pair)
    assert costs_of({"one": (8, 16)}).peak_bytes({}, 4) == 2 * pair + 2 * decomposing


def test_of_an_input_that_maps_share_the_covariance_is_read_again_but_not_its_basis():
    costs = costs_of({"gate": (8, 16), "up": (8, 16)}, threads=1)
    outputs, inputs = 4 * 16**2, 4 * 8**2
    own = 2 * outputs + inputs + 2 * inputs  # two of up's outputs, its inputs, gate's remembered
    assert costs.peak_bytes({"up": "gate"}, 4) == 2 * outputs + own + 4 * 8 * 16**2
