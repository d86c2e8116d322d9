"""The scripts about influence as commands, on next to nothing."""

import json
import subprocess
import sys
from pathlib import Path

import pytest

EXPERIMENTS = Path(__file__).parents[1] / "experiments"


def run(script, output, *arguments):
    command = [sys.executable, str(EXPERIMENTS / script), *arguments, "--output", str(output)]
    done = subprocess.run(command, capture_output=True, text=True, timeout=240)
    assert done.returncode == 0, done.stderr
    return json.loads(output.read_text()), done.stdout


@pytest.mark.slow  # a process of its own for each system
def test_datainf_is_measured_against_forming_gradients_with_the_same_result(tmp_path):
    small = (
        "--vocab 300 --width 16 --num-layers 1 --num-train 6 --num-probe 2 --max-length 20 "
        "--repeats 1 --threads 1 --device cpu"
    )
    written, shown = run(
        "bench_datainf.py",
        tmp_path / "rows.json",
        *small.split(),
    )
    assert [row["system"] for row in written["rows"]] == ["ours", "formed", "autograd"]
    for row in written["rows"]:
        assert row["relative_difference"] < 1e-4
        assert row["seconds"] > 0
        assert row["system"] in shown


def test_projections_are_measured(tmp_path):
    small = "--log-dims 6 13 --log-entries 13 --output-dim 32 --repeats 1 --device cpu"
    written, shown = run(
        "bench_hadamard.py",
        tmp_path / "rows.json",
        *small.split(),
    )
    assert [row["log_dim"] for row in written["rows"]] == [6, 13]
    assert "butterfly" in shown
    assert "matrix" in written["rows"][0]
    assert "matrix" not in written["rows"][1]


@pytest.mark.slow
def test_distillation_is_studied_on_a_world(tmp_path):
    small = (
        f"--world {tmp_path / 'world'} --figure {tmp_path / 'plot.png'} "
        "--max-documents 40 --num-seeds 1 --shares 0.1 0.5"
    )
    written, _ = run(
        "distillation_quality.py",
        tmp_path / "rows.json",
        *small.split(),
    )
    assert len(written["rows"]) == 2 * 2 * 2
    assert (tmp_path / "plot.png").is_file()
