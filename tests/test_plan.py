"""--plan: what it foretells of memory and disk is what the commands then take."""

import json
import os
import random
import re
import subprocess
import sys
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from device_cases import needs_cuda
from if_query.plan.report import Plan, StagePlan
from if_query.plan.trials import fit_seconds
from transformers import AutoModelForCausalLM, Olmo2Config

TOLERANCE = 0.25


@pytest.fixture(scope="module")
def deep_model(tmp_path_factory) -> Path:
    """So many linear maps that their statistics are a third of what a fit adds to the process."""
    from conftest import save_tokenizer

    folder = tmp_path_factory.mktemp("deep")
    config = Olmo2Config(
        vocab_size=save_tokenizer(folder),
        hidden_size=256,
        intermediate_size=384,
        num_hidden_layers=16,
        num_attention_heads=2,
        head_dim=16,
        max_position_embeddings=128,
        eos_token_id=0,
        pad_token_id=1,
    )
    with torch.random.fork_rng():
        torch.manual_seed(0)
        AutoModelForCausalLM.from_config(config, dtype=torch.float32).save_pretrained(folder)
    return folder


@pytest.fixture(scope="module")
def inputs(tmp_path_factory) -> tuple[Path, Path, Path]:
    """(tokens, training pairs, queries) of unlike lengths."""
    folder, draw = tmp_path_factory.mktemp("inputs"), random.Random(1)
    tokens = folder / "tokens.jsonl"
    with tokens.open("w") as file:
        for _ in range(10):
            ids = [draw.randrange(2, 250) for _ in range(draw.randrange(8, 24))]
            file.write(json.dumps({"input_ids": ids}) + "\n")

    def pairs(name: str, count: int) -> Path:
        path = folder / f"{name}.json"
        words = ["Lima", "Paris", "seven", "and two", "Ulysses"]
        items = [
            {"pair_id": f"{name}-{n}", "prompt": "The capital of",
             "completion": " ".join(draw.choices(words, k=draw.randrange(1, 12)))}
            for n in range(count)
        ]  # fmt: skip
        path.write_text(json.dumps(items))
        return path

    return tokens, pairs("train", 24), pairs("query", 8)


def run_jobs(jobs: list[dict[str, Any]]) -> list[dict[str, Any]]:
    """What :mod:`measured_commands` found, the bare process first."""
    script = Path(__file__).with_name("measured_commands.py")
    done = subprocess.run(
        [sys.executable, script],
        input=json.dumps(jobs),
        capture_output=True,
        text=True,
        env={**os.environ, "OMP_NUM_THREADS": "1", "TQDM_DISABLE": "1"},
    )
    assert done.returncode == 0, done.stderr
    found: list[dict[str, Any]] = json.loads(done.stdout)
    assert [one["status"] for one in found] == [0] * len(found), done.stderr
    return found


@pytest.fixture(scope="module")
def jobs(deep_model, inputs, tmp_path_factory) -> dict[str, dict[str, Any]]:
    """Every kind of run. All queries read the factors of the first."""
    root = tmp_path_factory.mktemp("measured")
    tokens, train, query = map(str, inputs)
    common = ["--model", str(deep_model), "--dtype", "float32", "--device", "cpu"]

    def fit(name: str, *more: str) -> dict[str, Any]:
        folder = root / name
        arguments = [*common, "--hessian-dataset", tokens, "--output-dir", str(folder), *more]
        return {"command": "fit_hessians", "arguments": arguments, "folder": str(folder)}

    def score(name: str, *more: str) -> dict[str, Any]:
        folder = root / name
        arguments = [*common, "--factors-dir", str(root / "ekfac"), "--train-json", train]
        arguments += ["--query-json", query, "--output-dir", str(folder), *more]
        arguments += ["--score-batch-size", "2"]
        return {"command": "run_query", "arguments": arguments, "folder": str(folder)}

    all_outputs = ["--per-token-scores", "--per-module-scores", "--self-influence"]
    small = ["--factor-batch-size", "2", "--lambda-batch-size", "2"]
    return {
        "ekfac": fit("ekfac", *small, "--save-interval", "0"),
        "kfac": fit("kfac", *small, "--strategy", "kfac", "--eigen-dtype", "float32"),
        "diagonal": fit("diagonal", *small, "--strategy", "diagonal"),
        "scores": score("scores"),
        "all outputs": score("all", *all_outputs),
    }


def planned_and_done(jobs: dict[str, dict[str, Any]]) -> dict[str, dict[str, Any]]:
    """What runs were foretold to take, and then took, by their names."""
    both = []
    for job in jobs.values():
        both += [{**job, "arguments": [*job["arguments"], "--plan"]}, job]
    bare, *found = run_jobs(both)
    return {
        name: {"bare": bare["peak"], "planned": plan, "done": done}
        for name, plan, done in zip(jobs, found[::2], found[1::2], strict=True)
    }


KINDS = ["ekfac", "kfac", "all outputs"]
SIMPLER = ["diagonal", "scores"]
"""Runs that do less than those, of the same parts; each a plan and a run more."""


@pytest.fixture(scope="module")
def measured(jobs) -> dict[str, dict[str, Any]]:
    return planned_and_done({kind: jobs[kind] for kind in KINDS})


@pytest.fixture(scope="module")
def measured_simpler(jobs, measured) -> dict[str, dict[str, Any]]:
    return planned_and_done({kind: jobs[kind] for kind in SIMPLER})


def foretold(printed: str) -> tuple[float, float]:
    """(peak memory, disk) in bytes of the line "in all"."""
    (line,) = [line for line in printed.splitlines() if line.startswith("in all")]
    memory, disk = (float(one) * 1e9 for one in re.findall(r"([\d.e-]+) GB", line))
    return memory, disk


def check_memory(one: dict[str, Any]) -> None:
    """Of the whole process, and of what it takes beyond a process that only imports."""
    memory, _ = foretold(one["planned"]["printed"])
    bare, peak = one["bare"], one["done"]["peak"]
    assert memory == pytest.approx(peak, rel=TOLERANCE)
    assert memory - bare == pytest.approx(peak - bare, rel=TOLERANCE)


def check_disk(one: dict[str, Any]) -> None:
    _, disk = foretold(one["planned"]["printed"])
    assert disk == pytest.approx(one["done"]["disk"], rel=TOLERANCE)


def check_nothing_written(one: dict[str, Any]) -> None:
    planned = one["planned"]
    assert planned["disk"] == 0
    assert "factors are in" not in planned["printed"]
    assert "results are in" not in planned["printed"]


@pytest.mark.parametrize("kind", KINDS)
def test_peak_memory_is_within_a_quarter_of_what_the_run_takes(measured, kind):
    check_memory(measured[kind])


@pytest.mark.parametrize("kind", KINDS)
def test_disk_is_within_a_quarter_of_the_most_that_is_ever_there(measured, kind):
    check_disk(measured[kind])


@pytest.mark.parametrize("kind", KINDS)
def test_a_plan_writes_nothing(measured, kind):
    check_nothing_written(measured[kind])


@pytest.mark.parametrize("kind", KINDS)
def test_a_plan_says_what_is_free_and_how_long_loading_took(measured, kind):
    printed = measured[kind]["planned"]["printed"]
    assert re.search(r"^free now: .* GB of host memory, .* GB on disk at /", printed, re.M)
    (loading,) = re.findall(r"^loading .* ([\d.]+) s$", printed, re.M)
    assert float(loading) > 0


@pytest.mark.slow
@pytest.mark.parametrize("kind", SIMPLER)
@pytest.mark.parametrize("check", [check_memory, check_disk, check_nothing_written])
def test_plans_of_simpler_runs_are_as_good(measured_simpler, kind, check):
    check(measured_simpler[kind])


@pytest.mark.slow
def test_a_stated_memory_is_kept_by_groups_of_maps_and_blocks_of_queries(
    deep_model, inputs, measured, measured_simpler, tmp_path
):
    """Halfway between what the run takes at once and what the process takes without statistics."""
    tokens, train, query = map(str, inputs)
    common = ["--model", str(deep_model), "--dtype", "float32", "--device", "cpu"]
    fit = ["--hessian-dataset", tokens, "--factor-batch-size", "2", "--lambda-batch-size", "2"]
    factors = tmp_path / "factors"
    score = ["--factors-dir", str(factors), "--train-json", train, "--query-json", query]
    score += ["--score-batch-size", "2"]
    statistics = {"ekfac": 0.042e9, "scores": 0.06e9}
    taken = {"ekfac": measured["ekfac"]["done"], "scores": measured_simpler["scores"]["done"]}
    limits = {kind: (done["peak"] - statistics[kind] / 2) / 1e9 for kind, done in taken.items()}
    jobs = [
        {
            "command": "fit_hessians",
            "arguments": [*common, *fit, "--output-dir", str(factors),
                          "--memory-gb", str(limits["ekfac"])],
            "folder": str(factors),
        },
        {
            "command": "run_query",
            "arguments": [*common, *score, "--output-dir", str(tmp_path / "results"),
                          "--memory-gb", str(limits["scores"])],
            "folder": str(tmp_path / "results"),
        },
    ]  # fmt: skip
    _, fitted, scored = run_jobs(jobs)
    assert "so the maps go in" in fitted["printed"]
    assert "queries are held at a time" in scored["printed"]
    for kind, done in (("ekfac", fitted), ("scores", scored)):
        print(kind, done["printed"], limits[kind], done["peak"] / 1e9)
        assert done["peak"] < 1.05 * limits[kind] * 1e9


@pytest.mark.gpu
@needs_cuda
def test_peak_memory_of_cuda_is_within_a_quarter_of_what_the_run_takes(jobs):
    """Of tensors, which is all that a plan speaks of there."""
    on_cuda = {
        kind: {
            **jobs[kind],
            "arguments": ["cuda" if one == "cpu" else one for one in jobs[kind]["arguments"]],
        }
        for kind in [*KINDS, *SIMPLER]
    }
    for kind, one in planned_and_done(on_cuda).items():
        (line,) = [
            line for line in one["planned"]["printed"].splitlines() if line.startswith("in all")
        ]
        _, device, _ = (float(size) * 1e9 for size in re.findall(r"([\d.e-]+) GB", line))
        assert device == pytest.approx(one["done"]["device peak"], rel=TOLERANCE), kind


def test_a_memory_that_nothing_fits_into_is_one_line_and_writes_nothing(
    make_model_folder, token_data, pair_files, tmp_path, capsys
):
    from if_query import fit_hessians, run_query

    common = ["--model", str(make_model_folder()), "--dtype", "float32", "--device", "cpu"]
    data, factors = ["--hessian-dataset", str(token_data)], tmp_path / "factors"
    fit_hessians.main([*common, *data, "--output-dir", str(factors), "--strategy", "diagonal"])
    query = ["--factors-dir", str(factors), "--train-json", str(pair_files[0])]
    query += ["--query-json", str(pair_files[1])]
    fit = [*data, "--strategy", "diagonal"]
    groups = [*fit, "--module-partitions", "2"]
    mains = (fit_hessians.main, fit_hessians.main, run_query.main)
    for main, more in zip(mains, (fit, groups, query), strict=True):
        capsys.readouterr()
        output = ["--output-dir", str(tmp_path / "none"), "--memory-gb", "0.001"]
        with pytest.raises(SystemExit) as leaving:
            main([*common, *more, *output])
        assert leaving.value.code == 2
        (line,) = [one for one in capsys.readouterr().err.splitlines() if "error:" in one]
        assert "--memory-gb 0.001" in line
        assert not (tmp_path / "none").exists()


def test_seconds_follow_tokens_and_length_and_are_exact_where_they_do():
    sizes = [(8, 100), (8, 90), (12, 60), (16, 40), (32, 20), (64, 10), (7, 10)]
    true = [0.01 + 2e-4 * count * longest + 1e-6 * count * longest**2 for count, longest in sizes]
    measured = [0, 2, 4, 6]
    found = fit_seconds(sizes, measured, [true[batch] for batch in measured])
    np.testing.assert_allclose(found, true, rtol=1e-6)
    assert fit_seconds(sizes, [0], [1.0])[0] == pytest.approx(1.0)


def test_in_all_is_the_greatest_memory_and_disk_and_the_time_of_every_stage():
    plan = Plan([StagePlan("a", 5, 0, 9, 1.0), StagePlan("b", 7, 3, 2, 200.0)], 2, ["a note"])
    assert plan.total == StagePlan("in all", 7, 3, 9, 201.0)
    assert any("device memory" in line for line in plan.describe()[:1])
    assert "3.4 min" in plan.describe()[3]
    assert "- a note" in plan.describe()
