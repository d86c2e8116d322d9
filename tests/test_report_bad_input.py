"""Bad input to influence-report: status 2, one line, nothing written."""

import errno
import json
import os
import shutil
from pathlib import Path

import numpy as np
import pytest
from if_query import fit_hessians, influence_report, run_query
from if_query_commands import write


@pytest.fixture(scope="session")
def finished_results(make_model_folder, pair_files, fitted, tmp_path_factory) -> Path:
    folder = tmp_path_factory.mktemp("finished") / "results"
    run_query.main(
        f"--model {make_model_folder()} --factors-dir {fitted} --output-dir {folder} "
        f"--train-json {pair_files[0]} --query-json {pair_files[1]} "
        "--per-token-scores --per-module-scores --dtype float32 --device cpu".split()
    )
    return folder


@pytest.fixture
def results(finished_results, tmp_path) -> Path:
    return Path(shutil.copytree(finished_results, tmp_path / "results"))


@pytest.fixture
def report_fails(capsys, tmp_path):
    """Run influence-report, which must fail, write nothing, and say why in one line."""

    def run(folder, *more):
        before = sorted(tmp_path.rglob("*"))
        capsys.readouterr()
        with pytest.raises(SystemExit) as leaving:
            influence_report.main([str(folder), *map(str, more)])
        assert leaving.value.code == 2
        printed = capsys.readouterr().err.splitlines()
        assert len(printed) == 1
        assert printed[0].startswith("error: ")
        assert sorted(tmp_path.rglob("*")) == before
        return printed[0]

    return run


def test_no_results_folder(report_fails, results, fitted, tmp_path):
    assert "no such folder" in report_fails(tmp_path / "nowhere")
    assert "found a file" in report_fails(results / "query.csv")
    empty = tmp_path / "empty"
    empty.mkdir()
    assert "no results here" in report_fails(empty)
    assert "factors that fit-hessians wrote" in report_fails(fitted)


def test_results_that_are_incomplete_or_altered(report_fails, results):
    metadata = json.loads((results / "metadata.json").read_text())
    write(results / "metadata.json", {**metadata, "status": "running"})
    assert "incomplete" in report_fails(results)
    write(results / "metadata.json", "{")
    assert "not readable as JSON" in report_fails(results)


@pytest.mark.parametrize(
    "name",
    ["query.csv", "train.csv", "scores.npy", "influences.csv", "module_scores.csv",
     "train_tokens.jsonl"],
)  # fmt: skip
def test_a_file_of_the_results_missing_truncated_or_not_what_it_was(report_fails, results, name):
    content = (results / name).read_bytes()
    write(results / name, content[: len(content) // 2])
    assert name in report_fails(results)
    write(results / name, b"\xff\xfe\x00")
    assert name in report_fails(results)
    (results / name).unlink()
    assert name in report_fails(results)


def test_scores_that_are_not_finite_or_of_another_run(report_fails, results):
    scores = np.load(results / "scores.npy")
    np.save(results / "scores.npy", scores[:, 1:])
    assert "train.csv say" in report_fails(results)
    scores[0, 0] = np.nan
    np.save(results / "scores.npy", scores)
    assert "not finite" in report_fails(results)


def test_factors_that_are_not_those_of_the_results(
    report_fails, results, fitted, make_model_folder, token_data, tmp_path
):
    other = tmp_path / "other"
    fit_hessians.main(
        f"--model {make_model_folder(seed=1)} --hessian-dataset {token_data} "
        f"--output-dir {other} --dtype float32 --device cpu".split()
    )
    assert "another model" in report_fails(results, "--factors-dir", other)
    assert "no such factors" in report_fails(results, "--factors-dir", tmp_path / "nowhere")
    assert "no factors here" in report_fails(results, "--factors-dir", results)
    copy = Path(shutil.copytree(fitted, tmp_path / "copy"))
    next(copy.glob("eigenvalues/*")).unlink()
    assert "missing" in report_fails(results, "--factors-dir", copy)
    metadata = json.loads((copy / "metadata.json").read_text())
    write(copy / "metadata.json", {**metadata, "status": "eigenvalues"})
    assert "incomplete" in report_fails(results, "--factors-dir", copy)


def test_a_place_for_the_report_that_holds_something_else(report_fails, results, tmp_path):
    assert "found a folder" in report_fails(results, "--output", tmp_path)
    assert "another file" in report_fails(results, "--output", results / "train.csv")
    assert "is a file" in report_fails(results, "--output", results / "train.csv" / "report.html")
    assert "found a file" in report_fails(results, "--figures", results / "train.csv")


def test_a_disk_that_is_full_leaves_no_part_of_a_report(report_fails, results, monkeypatch):
    def full(*arguments, **named):
        raise OSError(errno.ENOSPC, "x")

    monkeypatch.setattr(os, "replace", full)
    assert "No space left" in report_fails(results)


def test_usage_of_influence_report(report_fails, results):
    assert "--nonsense" in report_fails(results, "--nonsense")
