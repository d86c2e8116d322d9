"""The study of paraphrases from training to figures, and the benchmark, on next to nothing."""

import importlib
import json
import subprocess
import sys
from pathlib import Path

import pytest

EXPERIMENTS = Path(__file__).parents[1] / "experiments"


def test_the_benchmark_counts_and_measures_its_parts(tmp_path, monkeypatch, capsys):
    monkeypatch.syspath_prepend(str(EXPERIMENTS))
    bench = importlib.import_module("bench_paraphrase")
    output = tmp_path / "rows.json"
    bench.main(
        bench.Config(
            hidden_size=32, num_layers=1, vocab=100, num_tokens=8, repeats=1, threads=1,
            job_samples=100, job_candidates=5, job_query_block=100, output=output,
        )
    )  # fmt: skip
    written = json.loads(output.read_text())
    assert all(value > 0 for value in written["seconds"].values())
    counts = written["counts"]
    once_per_query = counts["originals once per query, a run per fraction"]
    assert once_per_query == {"gradients": 2 * 600, "projections": 2 * 600}
    assert counts["here, projections"] == {"gradients": 200, "projections": 400}
    # One block of all queries needs every original, and no more.
    assert counts["here, whole gradients, expected"]["gradients"] == 200
    assert counts["here, whole gradients, at most"]["gradients"] == 200
    shown = capsys.readouterr().out
    assert "100 samples, 5 candidates" in shown
    assert "0.167 of the gradients and 0.333 of the projections" in shown


@pytest.mark.slow
@pytest.mark.timeout(900)
def test_the_quickstart_runs_from_training_to_figures(tmp_path):
    small = "--epochs 2 --hidden-size 32 --num-layers 1 --max-new-tokens 5"
    done = subprocess.run(
        [sys.executable, EXPERIMENTS / "paraphrase_quickstart.py", *small.split()],
        capture_output=True,
        text=True,
        cwd=tmp_path,
    )
    assert done.returncode == 0, done.stderr[-2000:]
    results = tmp_path / "results" / "paraphrase_quickstart" / "results"
    analysis = json.loads((results / "analysis.json").read_text())
    assert len(analysis) == 10
    for one in analysis.values():
        assert 0 <= one["full_gradient"]["mean"] <= 1
        assert one["bm25"]["mean"] > one["chance"]
    assert len(list(results.glob("*/*.png"))) == 6
