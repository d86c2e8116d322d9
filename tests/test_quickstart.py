"""The main job, as a newcomer runs it: its targets, and that its files and commands are there."""

import csv
import json
import subprocess
import sys
from pathlib import Path

import pytest

SCRIPT = Path(__file__).parents[1] / "experiments" / "quickstart.py"


@pytest.mark.slow
@pytest.mark.timeout(1500)
@pytest.mark.parametrize(("model", "target"), [("tiny-olmo2", 0.9), ("tiny-llama", 0.8)])
def test_the_quickstart_meets_its_targets(tmp_path, model, target):
    """Measured at seed 0: precision@10 of 0.93 on OLMo-2, the goal being 0.9, and 0.84 on Llama."""
    folder = tmp_path / "results"
    done = subprocess.run(
        [sys.executable, SCRIPT, "--model", model, "--output-dir", folder],
        capture_output=True,
        text=True,
        cwd=tmp_path,
    )
    assert done.returncode == 0, done.stderr[-2000:]
    summary = json.loads((folder / "metrics.json").read_text())
    assert summary["accuracy"]["new"]["0"] >= 0.95
    assert summary["accuracy"]["old"]["0"] <= 4 * summary["chance"]
    precision = {
        name: result["metrics"]["precision@10"]["mean"]
        for name, result in summary["retrieval"].items()
    }
    assert precision["EK-FAC influence"] >= target
    others = [value for name, value in precision.items() if not name.startswith(("EK-FAC", "BM25"))]
    assert precision["EK-FAC influence"] > max(others)
    with (folder / "ranking.csv").open(newline="") as file:
        rows = list(csv.DictReader(file))
    assert len(rows) % 10 == 0
    assert (folder / "influence.png").stat().st_size > 5000
    last = "".join(done.stdout.splitlines()[-4:])
    assert "Look next at" in last
    report = folder / "influence" / "report.html"
    assert f"Open {report} in a browser" in last
    assert report.stat().st_size > 50_000
    shown = [line for line in done.stdout.splitlines() if line.startswith("$ uv run ")]
    assert {line.split()[3] for line in shown} == {
        "hops", "tokenize-text", "fit-hessians", "run-query",
    }  # fmt: skip


def test_the_quickstart_refuses_a_missing_data_set_in_one_line(tmp_path):
    missing = tmp_path / "nowhere.jsonl"
    done = subprocess.run(
        [sys.executable, SCRIPT, "--dataset-path", missing, "--output-dir", tmp_path / "o"],
        capture_output=True,
        text=True,
        cwd=tmp_path,
    )
    assert done.returncode == 2
    errors = [line for line in done.stderr.splitlines() if line.startswith("error: ")]
    assert len(errors) == 1
    assert "nowhere.jsonl" in errors[0]
    assert "Traceback" not in done.stderr
