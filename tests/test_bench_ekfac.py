"""The benchmark as a command, on next to nothing and without kronfluence."""

import json
import subprocess
import sys
from pathlib import Path

SCRIPT = Path(__file__).parents[1] / "experiments" / "bench_ekfac.py"
TINY = [
    *("--no-peer", "--device", "cpu", "--threads", "1", "--repeats", "1"),
    *("--num-layers", "1", "--width", "16", "--num-examples", "6", "--num-queries", "2"),
    *("--min-length", "4", "--max-length", "8"),
]
STAGES = ["covariances", "eigendecompositions", "corrected eigenvalues", "scores"]


def test_every_stage_is_measured_printed_and_written(tmp_path):
    output = tmp_path / "new" / "rows.json"
    command = [sys.executable, str(SCRIPT), *TINY, "--output", str(output)]
    done = subprocess.run(command, capture_output=True, text=True, timeout=240)
    assert done.returncode == 0, done.stderr
    written = json.loads(output.read_text())
    *stages, total, memory = written["rows"]
    assert [row["stage"] for row in stages] == STAGES
    for row in (*stages, total):
        assert row["stage"] in done.stdout
        assert row["ours_seconds"] > 0
        low, high = row["ours_multiple_range"]
        assert 0 < low <= row["ours_multiple"] <= high
    # With one round, medians are that round's numbers, which add up.
    parts = sum(row["ours_seconds"] for row in stages)
    assert abs(total["ours_seconds"] - parts) < 1e-9
    assert (total["stage"], memory["stage"]) == ("total", "peak memory")
    assert memory["ours_mib"] > 0
    assert written["matmul_gflops"] > 0
    assert "kronfluence" not in done.stdout
