"""The scripts over retrained models and scored methods, and what the first foretells at best."""

import json
from pathlib import Path

import numpy as np
import pytest
from hops.errors import HopsError
from lds_cases import LDS, LEADERBOARD, run


def test_no_agreement_of_retrained_models_leaves_little_to_foretell(lds_scripts):
    """Losses of pure noise: a root taken query by query would say 0.30."""
    rng = np.random.default_rng(0)
    groups = [f"<{place // 3}>" for place in range(90)]
    found = lds_scripts["lds"].noise(rng.normal(size=(8, 2, 90)), groups, 0)
    assert found["ceiling"]["mean"] < 0.15
    signal = rng.normal(size=(8, 1, 90))
    both = lds_scripts["lds"].noise(np.repeat(signal, 2, axis=1), groups, 0)
    assert both["ceiling"]["low"] == pytest.approx(1.0)
    halves = lds_scripts["lds"].noise(signal + rng.normal(size=(8, 2, 90)), groups, 0)
    assert 0.35 < halves["agreement"]["mean"] < 0.6  # half of the variance is shared
    assert halves["ceiling"]["mean"] == pytest.approx(
        (2 * halves["agreement"]["mean"] / (1 + halves["agreement"]["mean"])) ** 0.5
    )


@pytest.mark.slow
@pytest.mark.timeout(1800)
def test_the_scripts_from_a_world_to_tables_and_figures(tiny_world, tmp_path):
    lds = ["--world", tiny_world, "--output-dir", tmp_path / "lds", "--num-models", 4]
    lds += ["--repeats", 2, "--methods", "bm25", "random", "--leave-out-methods"]
    done = run(LDS, *lds)
    assert done.returncode == 0, done.stderr[-2000:]
    results = json.loads((tmp_path / "lds" / "metrics.json").read_text())
    assert set(results["depths"]) == {"0", "1"}
    assert -1 <= results["depths"]["0"]["methods"]["bm25"]["mean"] <= 1
    assert "ceiling" in results["depths"]["0"]
    board = ["--world", tiny_world, "--output-dir", tmp_path / "board", "--bank", tmp_path / "lds"]
    # Two functions are too few to train probes on some and judge them by others.
    board += ["--methods", "random", "bm25", "dlp_probes"]
    done = run(LEADERBOARD, *board)
    assert done.returncode == 0, done.stderr[-2000:]
    found = json.loads((tmp_path / "board" / "leaderboard.json").read_text())
    kinds = {kind["name"]: kind["methods"] for kind in found["kinds"]}
    assert set(kinds) == {"base function", "wrapper"}
    assert kinds["base function"]["bm25"]["lds"] == {
        key: results["depths"]["0"]["methods"]["bm25"][key] for key in ("mean", "low", "high")
    }
    assert "functions" in kinds["wrapper"]["dlp_probes"]["failure"]
    assert kinds["wrapper"]["bm25"]["peak_mebibytes"] > 20
    lines = (tmp_path / "board" / "leaderboard.md").read_text().splitlines()
    assert sum(line.startswith("| bm25 |") for line in lines) == 2
    assert (tmp_path / "board" / "leaderboard.png").stat().st_size > 5000
    scored = tmp_path / "board" / "scores" / "bm25.json"
    before = scored.stat().st_mtime_ns
    assert run(LEADERBOARD, *board).returncode == 0
    assert scored.stat().st_mtime_ns == before  # not scored again


@pytest.mark.parametrize(
    ("script", "arguments", "message"),
    [
        ("lds", {"world": "nowhere"}, "No world nowhere"),
        ("lds", {"world": "nowhere", "share": 1.0}, "share"),
        ("lds", {"world": "nowhere", "num_models": 2}, "at least 3 subsets"),
        ("lds", {"world": "nowhere", "workers": 0}, "--workers"),
        ("lds", {"methods": ("magic",)}, "No method magic"),
        ("leaderboard", {}, "--world, or --dataset"),
        ("leaderboard", {"dataset": Path("d")}, "needs --old and --new"),
        ("leaderboard", {"world": "w", "old": "o"}, "brings its own"),
    ],
)
def test_bad_arguments_are_refused_before_anything_is_written(
    lds_scripts, script, arguments, message, tmp_path, monkeypatch
):
    monkeypatch.chdir(tmp_path)
    module = lds_scripts[script]
    with pytest.raises(HopsError, match=message):
        module.main(module.Config(**arguments))
    assert not list(tmp_path.iterdir())


def test_a_share_that_is_no_document_is_refused_before_anything_is_written(
    lds_scripts, tiny_world, tmp_path
):
    module = lds_scripts["lds"]
    config = module.Config(
        world=str(tiny_world), output_dir=tmp_path / "o", share=1e-4, methods=("bm25",)
    )
    with pytest.raises(HopsError, match="documents is 0"):
        module.main(config)
    assert not list(tmp_path.iterdir())


def test_bad_input_to_the_program_is_one_line_and_status_two(tmp_path, tiny_world):
    done = run(LDS, "--world", tiny_world, "--output-dir", tmp_path / "o", "--methods", "magic")
    assert done.returncode == 2
    assert done.stderr.startswith("error: No method magic")
    assert done.stderr.count("\n") == 1
    unknown = run(LEADERBOARD, "--world", tiny_world, "--method", "bm25")
    assert (unknown.returncode, unknown.stderr.count("\n")) == (2, 1)
    assert "--method" in unknown.stderr
    assert not list(tmp_path.iterdir())
