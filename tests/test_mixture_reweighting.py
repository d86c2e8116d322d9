"""The proof that a mixture which follows influence trains a better model."""

import csv
import json
import subprocess
import sys
from pathlib import Path

import pytest

SCRIPT = Path(__file__).parents[1] / "experiments" / "mixture_reweighting.py"


def run(folder, *flags):
    command = [sys.executable, str(SCRIPT), "--output-dir", str(folder), *flags]
    done = subprocess.run(command, capture_output=True, text=True, timeout=900)
    assert done.returncode == 0, done.stderr[-2000:]
    assert "evaluation loss after" in done.stdout
    assert (folder / "mixture.png").stat().st_size > 5000
    runs = json.loads((folder / "metrics.json").read_text())
    losses = {
        (one["policy"], one["seed"]): list(one["evaluation_loss"].values())[-1] for one in runs
    }
    with (folder / "weights.csv").open(newline="") as file:
        weights = {row["seed"]: row for row in csv.DictReader(file)}
    return losses, weights


def check(losses, weights, seeds, gain):
    for seed in range(seeds):
        assert losses["influence", seed] < losses["even", seed] - gain
        last = weights[str(seed)]
        assert float(last["relevant"]) > 0.6 > float(last["irrelevant"]) + float(last["noise"])


def test_weights_move_to_the_relevant_source_and_lower_the_evaluation_loss(tmp_path):
    check(*run(tmp_path, "--seeds", "1", "--steps", "60"), seeds=1, gain=0.02)


@pytest.mark.slow
@pytest.mark.timeout(1200)
def test_three_seeds_come_near_the_oracle(tmp_path):
    losses, weights = run(tmp_path)
    check(losses, weights, seeds=3, gain=0.2)
    for seed in range(3):
        assert losses["influence", seed] < losses["oracle", seed] + 0.1
