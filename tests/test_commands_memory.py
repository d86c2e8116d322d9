"""The commands where memory is short: maps in groups, factors on disk, batches that are halved."""

import csv
import json
from pathlib import Path
from types import SimpleNamespace

import numpy as np
import pytest
import safetensors.torch
import torch
from if_query import fit_stages, query_memory, query_pass
from if_query.datasets import load_token_dataset
from if_query.out_of_memory import is_out_of_memory, runs_out_of_memory
from if_query.partitions import capacity_of, fill_groups
from if_query.schedule import BatchSchedule
from if_query_commands import bits_of, fit, metadata_of, query
from math_utils.curvature import ReplayedPasses


def tensors_of(folder: Path, stage: str) -> dict[str, torch.Tensor]:
    return {
        f"{path.stem}.{part}": tensor
        for path in sorted((folder / stage).iterdir())
        for part, tensor in safetensors.torch.load_file(path).items()
    }


def one_error(capsys) -> str:
    printed = [line for line in capsys.readouterr().err.splitlines() if "error:" in line]
    assert len(printed) == 1
    return printed[0]


# Maps in groups


def test_groups_are_neighbours_in_order_and_as_few_and_as_small_as_can_be():
    sizes = {"a": 3, "b": 3, "c": 4, "d": 2, "e": 9}
    assert fill_groups(sizes, 9) == [["a", "b"], ["c", "d"], ["e"]]
    assert fill_groups(sizes, 5) == [["a"], ["b"], ["c"], ["d"], ["e"]]
    for num_groups, capacity in ((1, 21), (2, 11), (3, 9), (5, 9), (99, 9)):
        assert capacity_of(sizes, num_groups) == capacity
        assert len(fill_groups(sizes, capacity)) <= num_groups


@pytest.mark.parametrize(
    ("architecture", "strategy"), [("olmo2", "ekfac"), ("gpt2", "diagonal"), ("llama", "kfac")]
)
def test_statistics_do_not_depend_on_the_groups_bit_for_bit(
    make_model_folder, token_data, tmp_path, capsys, monkeypatch, architecture, strategy
):
    model = make_model_folder(architecture)
    passes: list[set[str]] = []
    real = fit_stages.accumulate

    def counted(fit, stage, maps, new_sums):
        passes.append(set(maps))
        return real(fit, stage, maps, new_sums)

    monkeypatch.setattr(fit_stages, "accumulate", counted)
    whole = fit(model, token_data, tmp_path / "whole", "--strategy", strategy)
    num_passes = len(passes)
    assert num_passes == (2 if strategy == "ekfac" else 1)
    for num_groups in (2, 99):
        passes.clear()
        parts = fit(
            model, token_data, tmp_path / str(num_groups), "--strategy", strategy,
            "--module-partitions", str(num_groups),
        )  # fmt: skip
        num_maps = len(metadata_of(parts)["tracked_modules"])
        assert len(passes) == min(num_groups, num_maps) * num_passes
        assert sum(map(len, passes)) == num_passes * num_maps
        assert bits_of(parts) == bits_of(whole)
    # Another number of groups is not another result.
    fit(model, token_data, whole, "--strategy", strategy, "--module-partitions", "3")
    assert "complete already" in capsys.readouterr().out


def test_sums_of_a_group_that_a_kill_left_behind_are_not_taken_for_the_next_one(
    make_model_folder, tmp_path, monkeypatch
):
    """Killed after metadata.json was written and before the progress folder was removed."""

    class Killed(BaseException):
        pass

    def die(folder, **options):
        if any(folder.glob("eigenvalues-*")):
            raise Killed

    model, folder = make_model_folder(), tmp_path / "killed"
    # One batch and so one save for each group: what is left has the name of the next one's.
    more = ["--strategy", "diagonal", "--save-interval", "0", "--module-partitions", "2"]
    more += ["--max-tokens-per-batch", "999"]
    data = tmp_path / "tokens.jsonl"
    data.write_text('{"input_ids": [3, 4, 5, 6]}\n{"input_ids": [7, 8, 9, 3]}\n')
    whole = fit(model, data, tmp_path / "whole", *more)
    with monkeypatch.context() as patch:
        patch.setattr("if_query.factors.shutil", SimpleNamespace(rmtree=die))
        with pytest.raises(Killed):
            fit(model, data, folder, *more)
    assert len(metadata_of(folder)["checksums"]["eigenvalues"]) in range(1, 9)
    (left,) = folder.glob("progress/eigenvalues-*[0-9]")
    assert len(json.loads((left / "schedule.json").read_text())["parts"]) == 1
    fit(model, data, folder, *more)
    assert bits_of(folder) == bits_of(whole)


# Factors on disk


def test_factors_read_map_by_map_give_the_same_scores_bit_for_bit(
    make_model_folder, token_data, pair_files, tmp_path, monkeypatch, capsys
):
    model = make_model_folder()
    factors = fit(model, token_data, tmp_path / "factors")
    more = ["--self-influence", "--per-module-scores"]
    whole = query(model, factors, pair_files, tmp_path / "whole", *more)
    assert "map by map" not in capsys.readouterr().out
    monkeypatch.setattr(query_memory, "free_memory", lambda devices: 40_000)
    monkeypatch.setattr("if_query.factors.FactorStore.read_factors", None)
    parts = query(model, factors, pair_files, tmp_path / "parts", *more, "--query-memory-gb", "1")
    assert "read from disk map by map" in capsys.readouterr().out
    assert bits_of(parts) == bits_of(whole)


def test_damaged_factors_are_found_before_anything_is_written_where_they_stay_on_disk(
    make_model_folder, token_data, pair_files, tmp_path, monkeypatch, capsys
):
    model = make_model_folder()
    factors = fit(model, token_data, tmp_path / "factors")
    path = sorted((factors / "eigenvalues").iterdir())[-1]
    path.write_bytes(path.read_bytes()[:-1])
    monkeypatch.setattr(query_memory, "free_memory", lambda devices: 40_000)
    with pytest.raises(SystemExit) as leaving:
        query(model, factors, pair_files, tmp_path / "results")
    assert leaving.value.code == 2
    assert "truncated or altered" in one_error(capsys)
    assert not (tmp_path / "results").exists()


# Running out of memory


def test_a_failed_allocation_is_told_from_other_errors():
    with pytest.raises(RuntimeError) as failed:
        torch.empty(1 << 60, dtype=torch.uint8)
    assert is_out_of_memory(failed.value)
    assert is_out_of_memory(torch.OutOfMemoryError("CUDA out of memory"))
    assert is_out_of_memory(MemoryError())
    assert not is_out_of_memory(RuntimeError("mat1 and mat2 shapes cannot be multiplied"))
    with pytest.raises(RuntimeError, match="shapes"):
        runs_out_of_memory(lambda: torch.ones(2, 3) @ torch.ones(2, 3))
    assert runs_out_of_memory(lambda: torch.empty(1 << 60, dtype=torch.uint8))
    assert not runs_out_of_memory(lambda: torch.empty(1))


def test_a_pass_that_is_planned_again_takes_every_row_once():
    lengths = np.array([3, 9, 4, 4, 8, 2, 9, 1, 5, 6])
    schedule = BatchSchedule(lengths, [(18, 0)])
    seen: list[int] = []
    for budget in (18, 9, 9, 4):
        schedule.shrink(budget)
        rows = schedule.remaining()[0]
        assert len(rows) == 1 or len(rows) * lengths[rows].max() <= budget
        seen += rows
        schedule.advance()
        saved = json.dumps(schedule.parts)  # another process sees the same
        again = BatchSchedule(lengths, [tuple(part) for part in json.loads(saved)])
        assert again.remaining() == schedule.remaining()
        assert again.num_rows_done == len(seen)
    seen += [row for rows in schedule.remaining() for row in rows]
    assert sorted(seen) == list(range(10))
    assert schedule.parts == [(18, 1), (9, 2), (4, 1)]


def short_of_memory(monkeypatch, fails) -> list[int]:
    """Let the passes of a fit fail, after half of the maps were added.

    Args:
        fails: says for the number of a batch in its stage and its padded tokens whether it does.

    Returns:
        A list that fills with the padded tokens of every batch.
    """
    real, tokens, stages = ReplayedPasses.run, [], []

    def run(passes, key, maps, batch, consume, **options):
        tokens.append(batch.input_ids.numel())
        stages.append(type(consume.__self__))
        number, added = stages.count(stages[-1]), 0

        def half(pair):
            nonlocal added
            if fails(number, tokens[-1]) and 2 * added >= len(maps):
                raise torch.OutOfMemoryError("CUDA out of memory. Tried to allocate 2.00 GiB")
            consume(pair)
            added += 1

        return real(passes, key, maps, batch, half, **options)

    monkeypatch.setattr(ReplayedPasses, "run", run)
    return tokens


@pytest.mark.parametrize("strategy", ["ekfac", "diagonal"])
def test_a_fit_that_runs_out_of_memory_is_one_with_half_the_batch_bit_for_bit(
    make_model_folder, token_data, tmp_path, monkeypatch, capsys, strategy
):
    """At the first batch, so that nothing was added under another budget."""
    model, more = make_model_folder(), ["--strategy", strategy]
    small = fit(model, token_data, tmp_path / "small", *more, "--max-tokens-per-batch", "24")
    tokens = short_of_memory(monkeypatch, lambda number, size: size > 30)
    found = fit(model, token_data, tmp_path / "found", *more, "--max-tokens-per-batch", "48")
    assert max(tokens) > 30
    assert bits_of(found) == bits_of(small)
    assert "going on with 24 tokens per batch" in capsys.readouterr().out
    stages = ["covariances", "eigenvalues"] if strategy == "ekfac" else ["eigenvalues"]
    metadata = metadata_of(found)
    assert metadata["used_token_budgets"] == {stage: [48, 24] for stage in stages}
    assert metadata["token_budgets"] == {"covariances": 48, "eigenvalues": 48}
    # The same command finds its own result; the smaller budget was not what it asked for.
    fit(model, token_data, found, *more, "--max-tokens-per-batch", "48")
    assert "complete already" in capsys.readouterr().out


@pytest.mark.parametrize("saved", [True, False])
def test_memory_that_runs_out_later_adds_no_batch_twice_and_leaves_none_out(
    make_model_folder, token_data, tmp_path, monkeypatch, saved
):
    """Once in either pass, between saves; then to rounding the result of any other batches."""
    model = make_model_folder()
    more = ["--max-tokens-per-batch", "24", "--save-interval", "0" if saved else "600"]
    more += ["--replay-memory-gb", "0"]  # or it would be given up first
    small = fit(model, token_data, tmp_path / "small", "--max-tokens-per-batch", "12")
    short_of_memory(monkeypatch, lambda number, size: number == 3)
    found = fit(model, token_data, tmp_path / "found", *more)
    budgets = metadata_of(found)["used_token_budgets"]
    assert budgets == {"covariances": [24, 9], "eigenvalues": [24, 9]}
    dataset = load_token_dataset(token_data, vocab_size=10_000)
    assert set(metadata_of(found)["num_positions"].values()) == {dataset.num_tokens}
    # Bases may turn within equal eigenvalues: their eigenvalues may not, nor what they make up.
    for name, expected in tensors_of(small, "eigenbases").items():
        if name.endswith("_values"):
            values = tensors_of(found, "eigenbases")[name]
            torch.testing.assert_close(values, expected, rtol=1e-4, atol=1e-6 * expected.max())
    for name, expected in tensors_of(small, "eigenvalues").items():
        values = tensors_of(found, "eigenvalues")[name]
        torch.testing.assert_close(values.sum(), expected.sum(), rtol=1e-5, atol=0)


def test_a_fit_killed_after_it_ran_out_of_memory_ends_at_the_same_bits(
    make_model_folder, token_data, tmp_path, monkeypatch
):
    class Killed(BaseException):
        pass

    model = make_model_folder()
    more = ["--max-tokens-per-batch", "24", "--save-interval", "0", "--strategy", "diagonal"]
    with monkeypatch.context() as patch:
        short_of_memory(patch, lambda number, size: number == 3)
        undisturbed = bits_of(fit(model, token_data, tmp_path / "undisturbed", *more))

    def kill_at_sixth(number, size):
        if number == 6:
            raise Killed
        return number == 3

    folder = tmp_path / "killed"
    with monkeypatch.context() as patch:
        short_of_memory(patch, kill_at_sixth)
        with pytest.raises(Killed):
            fit(model, token_data, folder, *more)
    assert metadata_of(folder)["used_token_budgets"] == {"eigenvalues": [24, 9]}
    tokens = short_of_memory(monkeypatch, lambda number, size: False)
    assert bits_of(fit(model, token_data, folder, *more)) == undisturbed
    assert max(tokens) <= 9


def test_one_sequence_that_does_not_fit_is_one_line(
    make_model_folder, token_data, tmp_path, monkeypatch, capsys
):
    short_of_memory(monkeypatch, lambda number, size: size > 8)
    with pytest.raises(SystemExit) as leaving:
        fit(make_model_folder(), token_data, tmp_path / "factors")
    assert leaving.value.code == 2
    line = one_error(capsys)
    assert "of 12 tokens, does not fit into memory by itself" in line
    lengths = load_token_dataset(token_data, vocab_size=10_000).lengths
    assert f"row {int(lengths.argmax())} of the data set" in line


@pytest.fixture
def scored(make_model_folder, token_data, pair_files, tmp_path):
    model = make_model_folder()
    factors = fit(model, token_data, tmp_path / "factors")

    def run(name: str, *more: str) -> Path:
        return query(model, factors, pair_files, tmp_path / name, *more)

    return run


def limited(monkeypatch, name: str, limit: int, batch_of) -> list[int]:
    """Let a function of query_pass fail above so many padded tokens."""
    real, tokens = getattr(query_pass, name), []

    def function(*args, **options):
        tokens.append(batch_of(args).input_ids.numel())
        if tokens[-1] > limit:
            raise torch.OutOfMemoryError("CUDA out of memory")
        return real(*args, **options)

    monkeypatch.setattr(query_pass, name, function)
    return tokens


@pytest.mark.parametrize("function", ["score_batch", "self_influence"])
def test_a_query_run_that_runs_out_of_memory_gives_the_same_scores(
    scored, monkeypatch, capsys, function
):
    more = ["--self-influence", "--per-token-scores"]
    whole = scored("whole", *more)
    tokens = limited(monkeypatch, function, 60, lambda args: args[2])
    found = scored("found", *more)
    assert max(tokens) > 60
    assert "going on with" in capsys.readouterr().out
    expected = np.load(whole / "scores.npy")
    np.testing.assert_allclose(
        np.load(found / "scores.npy"), expected, rtol=1e-5, atol=1e-6 * np.abs(expected).max()
    )
    rows = [list(csv.DictReader((f / "train.csv").open())) for f in (whole, found)]
    own = [[float(row["self_influence"]) for row in each] for each in rows]
    np.testing.assert_allclose(own[1], own[0], rtol=1e-4)
    budgets = metadata_of(found)["used_token_budgets"]
    assert len(budgets) >= 2
    assert budgets == sorted(budgets, reverse=True)
    assert metadata_of(whole)["used_token_budgets"] == budgets[:1]


def test_maps_that_read_the_same_inputs_share_one_basis_after_they_were_on_disk(
    scored, monkeypatch
):
    real, seen = query_pass.collect_queries, {}

    def collect_queries(model, maps, batches, loss, factors, *args, **options):
        seen.update(factors.maps)
        return real(model, maps, batches, loss, factors, *args, **options)

    monkeypatch.setattr(query_pass, "collect_queries", collect_queries)
    scored("found")
    gates = [name for name in seen if name.endswith("gate_proj")]
    assert gates
    for gate in gates:
        up, down = (gate.replace("gate", other) for other in ("up", "down"))
        assert seen[gate].input_basis is seen[up].input_basis
        assert seen[gate].input_basis is not seen[down].input_basis
    assert len({id(seen[gate].input_basis) for gate in gates}) == len(gates)


def test_queries_that_run_out_of_memory_go_in_smaller_batches_and_then_blocks(
    scored, monkeypatch, capsys
):
    expected = np.load(scored("whole") / "scores.npy")
    losses = [row["loss"] for row in csv.DictReader((scored("whole") / "query.csv").open())]
    real, most = query_pass.collect_queries, 2

    def collect_queries(model, maps, batches, *args, **options):
        if sum(len(batch.input_ids) for batch in batches) >= most:
            raise RuntimeError("DefaultCPUAllocator: can't allocate memory: you tried to …")
        return real(model, maps, batches, *args, **options)

    monkeypatch.setattr(query_pass, "collect_queries", collect_queries)
    found = scored("found")
    printed = capsys.readouterr().out
    assert "going on with 1 in a batch" in printed
    assert "going on with 1 at a time" in printed
    np.testing.assert_allclose(
        np.load(found / "scores.npy"), expected, rtol=1e-5, atol=1e-6 * np.abs(expected).max()
    )
    now = [row["loss"] for row in csv.DictReader((found / "query.csv").open())]
    assert [float(one) for one in now] == pytest.approx([float(one) for one in losses], rel=1e-6)
    assert metadata_of(found)["used_query_batch_sizes"] == [8, 1]
    most = 1
    with pytest.raises(SystemExit) as leaving:
        scored("none")
    assert leaving.value.code == 2
    assert "query pair_id 'q0'" in one_error(capsys)


def test_a_training_example_that_does_not_fit_is_one_line(scored, monkeypatch, capsys):
    limited(monkeypatch, "score_batch", 20, lambda args: args[2])
    with pytest.raises(SystemExit) as leaving:
        scored("found")
    assert leaving.value.code == 2
    line = one_error(capsys)
    assert "train pair_id 't1'" in line
    assert "does not fit into memory by itself" in line
