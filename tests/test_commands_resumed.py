"""The commands are stopped and taken up again, share a folder, and replace nothing unasked."""

import json
import shutil
from functools import partial
from pathlib import Path

import numpy as np
import pytest
from forks import Fork, kill_when
from if_query import fit_hessians, run_query
from if_query_commands import bits_of, fit, fit_arguments, metadata_of, query, query_arguments


@pytest.fixture(scope="module")
def tokens(tmp_path_factory) -> Path:
    """Ten sequences of different content, to be read one per batch."""
    path = tmp_path_factory.mktemp("tokens") / "tokens.jsonl"
    generator = np.random.default_rng(0)
    with path.open("w") as file:
        for _ in range(10):
            ids = generator.integers(2, 250, size=6).tolist()
            file.write(json.dumps({"input_ids": ids}) + "\n")
    return path


ONE_BY_ONE = ["--max-tokens-per-batch", "6", "--save-interval", "0"]


@pytest.fixture(scope="module")
def undisturbed(make_model_folder, tokens, tmp_path_factory) -> dict[str, bytes]:
    folder = tmp_path_factory.mktemp("undisturbed") / "factors"
    return bits_of(fit(make_model_folder(), tokens, folder, *ONE_BY_ONE))


@pytest.mark.parametrize(
    "appears",
    [
        "progress/covariances-000000004",
        "eigenbases/model.layers.1.*.safetensors",
        "progress/eigenvalues-000000001",
        "progress/eigenvalues-000000010",
    ],
)
def test_a_fit_killed_in_any_stage_ends_at_the_same_bits(
    make_model_folder, tokens, undisturbed, tmp_path, appears
):
    folder = tmp_path / "factors"
    arguments = fit_arguments(make_model_folder(), tokens, folder, *ONE_BY_ONE)
    kill_when(lambda: fit_hessians.main(arguments), lambda: any(folder.glob(appears)))
    assert any(folder.glob(appears))
    assert metadata_of(folder)["status"] == "fitting"
    fit_hessians.main(arguments)
    assert bits_of(folder) == undisturbed


def test_a_fit_killed_in_its_second_group_ends_at_the_same_bits(
    make_model_folder, tokens, undisturbed, tmp_path
):
    folder = tmp_path / "killed"
    arguments = fit_arguments(
        make_model_folder(), tokens, folder, *ONE_BY_ONE, "--module-partitions", "3"
    )

    def in_second_group() -> bool:
        if not (folder / "metadata.json").is_file():
            return False
        done = metadata_of(folder)["checksums"].get("eigenvalues", {})
        saved = {path.stem for path in folder.glob("progress/eigenvalues-*5/*.safetensors")}
        return len(done) == 3 and bool(saved - set(done))

    kill_when(lambda: fit_hessians.main(arguments), in_second_group)
    assert metadata_of(folder)["status"] == "fitting"
    assert len(metadata_of(folder)["checksums"]["eigenvalues"]) == 3
    fit_hessians.main(arguments)
    assert bits_of(folder) == undisturbed


def test_a_finished_fit_is_kept_and_other_arguments_are_refused(
    make_model_folder, token_data, fitted, capsys
):
    before = bits_of(fitted)
    fit(make_model_folder(), token_data, fitted)
    assert "complete already" in capsys.readouterr().out
    for more, named in (
        (["--seed", "1"], "seed was 0, now 1"),
        (["--empirical-fisher"], "fisher was 'true', now 'empirical'"),
        (["--no-resume"], "holds results already"),
    ):
        with pytest.raises(SystemExit) as leaving:
            fit(make_model_folder(), token_data, fitted, *more)
        assert leaving.value.code == 2
        assert named in capsys.readouterr().err
    assert bits_of(fitted) == before


def test_a_fit_of_another_format_is_not_gone_on_with(
    make_model_folder, token_data, tmp_path, capsys
):
    """Otherwise it would be found at the end of the fit."""
    folder = fit(make_model_folder(), token_data, tmp_path / "f", "--strategy", "diagonal")
    content = {**metadata_of(folder), "format": 0, "status": "fitting"}
    content["checksums"] = {}
    (folder / "metadata.json").write_text(json.dumps(content))
    before = bits_of(folder)
    with pytest.raises(SystemExit):
        fit(make_model_folder(), token_data, folder, "--strategy", "diagonal")
    assert "format was 0, now 1" in capsys.readouterr().err
    assert bits_of(folder) == before


def test_what_differs_is_named_without_all_of_it(make_model_folder, token_data, fitted, capsys):
    with pytest.raises(SystemExit):
        fit(make_model_folder(), token_data, fitted, "--modules", "attention")
    (line,) = [one for one in capsys.readouterr().err.splitlines() if "error:" in one]
    assert "tracked_modules was {'model.layers.0.mlp" in line
    assert "now {'model.layers.0.self_attn" in line
    assert len(line) < 250 + len(str(fitted))


def test_overwrite_replaces_factors_but_nothing_else(make_model_folder, token_data, tmp_path):
    folder = fit(make_model_folder(), token_data, tmp_path / "f", "--strategy", "diagonal")
    before = bits_of(folder)
    fit(make_model_folder(), token_data, folder, "--strategy", "diagonal", "--seed", "5",
        "--overwrite")  # fmt: skip
    assert bits_of(folder) != before
    other = tmp_path / "mine"
    other.mkdir()
    (other / "thesis.txt").write_text("do not touch")
    with pytest.raises(SystemExit):
        fit(make_model_folder(), token_data, other, "--overwrite")
    assert (other / "thesis.txt").read_text() == "do not touch"


def test_a_query_run_killed_midway_goes_on_to_the_same_scores(
    make_model_folder, fitted, pair_files, tmp_path
):
    train = tmp_path / "train.json"
    pairs = [
        {"pair_id": str(n), "prompt": "The capital", "completion": f" {n} Lima"} for n in range(10)
    ]
    train.write_text(json.dumps(pairs))
    files = (train, pair_files[1])
    slowly = ["--score-batch-size", "1", "--save-interval", "0", "--per-token-scores"]
    whole = query(make_model_folder(), fitted, files, tmp_path / "whole", *slowly)
    folder = tmp_path / "killed"
    arguments = query_arguments(make_model_folder(), fitted, files, folder, *slowly)
    progress = folder / ".partial" / "done.json"

    def steps() -> int:
        return json.loads(progress.read_text())["steps"] if progress.is_file() else 0

    kill_when(lambda: run_query.main(arguments), lambda: steps() >= 5)
    assert steps() == 5
    assert not (folder / "influences.csv").exists()
    run_query.main(arguments)
    assert bits_of(folder) == bits_of(whole)


def test_queries_run_at_the_same_time_on_one_factors_folder(
    make_model_folder, fitted, pair_files, tmp_path
):
    factors = Path(shutil.copytree(fitted, tmp_path / "factors"))
    before = {**bits_of(factors), "metadata": (factors / "metadata.json").read_bytes()}
    for path in factors.rglob("*"):
        path.chmod(0o555 if path.is_dir() else 0o444)
    model = make_model_folder()
    commands = [
        partial(run_query.main, query_arguments(model, factors, pair_files, tmp_path / str(n)))
        for n in range(3)
    ]
    for process in [Fork(command) for command in commands]:
        status, _, errors = process.wait()
        assert status == 0, errors
    results = [bits_of(tmp_path / str(n)) for n in range(3)]
    assert results[0] == results[1] == results[2]
    assert {**bits_of(factors), "metadata": (factors / "metadata.json").read_bytes()} == before
