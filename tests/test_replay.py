"""fit-hessians: corrected eigenvalues from what covariances kept are the same bits."""

from pathlib import Path

import pytest
import torch
from forks import kill_when
from if_query import fit_hessians, fit_stages
from if_query.device_memory import held_memory
from if_query_commands import bits_of, fit, fit_arguments, metadata_of
from math_utils.curvature import ReplayedPasses

NOTHING, PLENTY = ("--replay-memory-gb", "0"), ("--replay-memory-gb", "1")


@pytest.fixture
def model(make_model_folder) -> Path:
    return make_model_folder()


@pytest.fixture
def runs(monkeypatch) -> list[str]:
    """Fills with the stage of every batch that goes through the whole model."""
    real, stages = fit_stages.accumulate, []

    def accumulate(fit, stage, maps, new_sums):
        handle = fit.model.get_input_embeddings().register_forward_hook(
            lambda *call: stages.append(stage)
        )
        try:
            return real(fit, stage, maps, new_sums)
        finally:
            handle.remove()

    monkeypatch.setattr(fit_stages, "accumulate", accumulate)
    return stages


@pytest.fixture
def rooms(monkeypatch) -> list[int]:
    """Fills with the bytes that the passes of each fit may keep."""
    real, found = ReplayedPasses.__init__, []

    def create(passes, model, maps, objective, max_bytes):
        found.append(max_bytes)
        real(passes, model, maps, objective, max_bytes)

    monkeypatch.setattr(ReplayedPasses, "__init__", create)
    return found


@pytest.mark.parametrize("modules", ["mlp", "attention", "all"])
def test_factors_are_the_same_bits_and_the_model_runs_once(
    model, token_data, tmp_path, runs, modules
):
    more = ("--modules", modules, "--max-tokens-per-batch", "24")
    whole = fit(model, token_data, tmp_path / "whole", *more, *NOTHING)
    num_batches = runs.count("covariances")
    assert num_batches > 1
    assert runs == ["covariances"] * num_batches + ["eigenvalues"] * num_batches
    for name, room in (("plenty", PLENTY), ("default", ())):
        runs.clear()
        replayed = fit(model, token_data, tmp_path / name, *more, *room)
        assert runs == ["covariances"] * num_batches
        assert bits_of(replayed) == bits_of(whole)


def test_factors_are_the_same_bits_where_only_some_batches_are_kept(
    model, token_data, tmp_path, runs
):
    more = ("--max-tokens-per-batch", "24")
    whole = fit(model, token_data, tmp_path / "whole", *more, *NOTHING)
    num_batches = runs.count("covariances")
    runs.clear()
    some = fit(model, token_data, tmp_path / "some", *more, "--replay-memory-gb", "2e-5")
    assert 0 < runs.count("eigenvalues") < num_batches
    assert bits_of(some) == bits_of(whole)


def test_groups_of_maps_share_one_run_of_the_model(model, token_data, tmp_path, runs):
    more = ("--max-tokens-per-batch", "24", "--module-partitions", "3")
    whole = fit(model, token_data, tmp_path / "whole", *more, *NOTHING)
    num_batches = len(runs) // 6
    runs.clear()
    replayed = fit(model, token_data, tmp_path / "replayed", *more, *PLENTY)
    assert runs == ["covariances"] * num_batches
    assert bits_of(replayed) == bits_of(whole)


@pytest.mark.parametrize(
    "more",
    [
        ("--covariance-share", "0.5"),
        ("--lambda-batch-size", "1"),
        ("--strategy", "diagonal"),
        ("--strategy", "kfac"),
    ],
)
def test_nothing_is_kept_where_no_pass_reads_the_same_batches(
    model, token_data, tmp_path, monkeypatch, more
):
    kept = []
    real = ReplayedPasses.run

    def run(passes, *arguments, **options):
        real(passes, *arguments, **options)
        kept.append(passes.num_bytes)

    monkeypatch.setattr(ReplayedPasses, "run", run)
    fit(model, token_data, tmp_path / "fit", *more, *PLENTY)
    assert kept
    assert not any(kept)


@pytest.mark.parametrize("stage", ["covariances", "eigenvalues"])
def test_a_fit_killed_between_kept_batches_ends_at_the_same_bits(
    model, token_data, tmp_path, stage
):
    more = ("--max-tokens-per-batch", "12", "--save-interval", "0")
    whole = bits_of(fit(model, token_data, tmp_path / "whole", *more, *NOTHING))
    folder = tmp_path / "killed"
    arguments = fit_arguments(model, token_data, folder, *more, *PLENTY)

    def is_midway() -> bool:
        return any(folder.glob(f"progress/{stage}-000000003"))

    kill_when(lambda: fit_hessians.main(arguments), is_midway)
    assert metadata_of(folder)["status"] == "fitting"
    fit_hessians.main(arguments)
    assert bits_of(folder) == whole


def test_what_is_kept_is_given_up_before_batches_are_halved(
    model, token_data, tmp_path, monkeypatch, capsys
):
    more = ("--max-tokens-per-batch", "24")
    whole = bits_of(fit(model, token_data, tmp_path / "whole", *more, *NOTHING))
    real, failed = ReplayedPasses.run, []

    def run(passes, key, *arguments, **options):
        if passes.num_batches == 2 and not failed:
            failed.append(key)
            raise torch.OutOfMemoryError("CUDA out of memory")
        real(passes, key, *arguments, **options)

    monkeypatch.setattr(ReplayedPasses, "run", run)
    folder = fit(model, token_data, tmp_path / "short", *more, *PLENTY)
    assert failed
    assert "going on without what was kept" in capsys.readouterr().out
    assert metadata_of(folder)["used_token_budgets"] == {}
    assert bits_of(folder) == whole


def test_the_memory_that_is_stated_bounds_what_is_kept(
    model, token_data, tmp_path, monkeypatch, rooms
):
    """--memory-gb leaves room for what is kept, or none; without it, a share of what is free."""
    with monkeypatch.context() as patch:
        patch.setattr("if_query.plan.replay.free_memory", lambda devices: 8_000)
        fit(model, token_data, tmp_path / "free")
        assert rooms[-1] == 2_000
        fit(model, token_data, tmp_path / "both", "--memory-gb", "64", "--module-partitions", "2")
        assert rooms[-1] == 2_000
    fit(model, token_data, tmp_path / "asked", "--memory-gb", "64", *PLENTY)
    assert rooms[-1] == 10**9


def test_what_is_kept_and_the_statistics_share_the_stated_memory(
    model, token_data, tmp_path, monkeypatch, rooms
):
    monkeypatch.setattr("if_query.plan.replay.free_memory", lambda devices: 10**12)
    before = held_memory().host
    for stated in (8, 9):
        fit(model, token_data, tmp_path / f"{stated}", "--memory-gb", str(stated))
    smaller, larger = rooms[-2:]
    assert smaller < 8e9 - before
    assert larger - smaller == pytest.approx(1e9, rel=0.2)


@pytest.mark.parametrize("room", ["-1", "nan", "much"])
def test_a_room_that_is_none_is_refused_in_one_line(model, token_data, tmp_path, capsys, room):
    with pytest.raises(SystemExit) as leaving:
        fit(model, token_data, tmp_path / "fit", "--replay-memory-gb", room)
    assert leaving.value.code == 2
    printed = capsys.readouterr().err
    assert "replay-memory-gb" in printed
    assert not (tmp_path / "fit").exists()


def test_the_plan_knows_what_is_kept_and_how_many_batches_that_is(
    model, token_data, tmp_path, monkeypatch, capsys
):
    more = ("--max-tokens-per-batch", "24")
    kept = []
    real = ReplayedPasses.forget

    def forget(passes):
        kept.append((passes.num_bytes, passes.num_batches))
        real(passes)

    monkeypatch.setattr(ReplayedPasses, "forget", forget)
    fit(model, token_data, tmp_path / "whole", *more, *PLENTY)
    size, num_batches = kept[-1]
    for room in (1.01 * size, size / 2):
        capsys.readouterr()
        stated = ("--replay-memory-gb", str(room / 1e9))
        fit(model, token_data, tmp_path / "plan", *more, *stated, "--plan")
        (line,) = [one for one in capsys.readouterr().out.splitlines() if "keep" in one]
        fit(model, token_data, tmp_path / f"fit-{room}", *more, *stated)
        size, count = kept[-1]
        assert f"of {count} of {num_batches} batches" in line
        assert float(line.split("keep ")[1].split(" GB")[0]) == pytest.approx(size / 1e9, rel=0.02)
    fit(model, token_data, tmp_path / "plan", *more, *NOTHING, "--plan")
    assert "keep" not in capsys.readouterr().out
