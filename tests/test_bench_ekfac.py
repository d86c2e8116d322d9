"""The benchmark as a command, on next to nothing and without peers; and its parts."""

import json
import subprocess
import sys
from itertools import pairwise
from pathlib import Path

import pytest
import torch

EXPERIMENTS = Path(__file__).parents[1] / "experiments"
TINY = [
    *("--no-kronfluence", "--no-bergson", "--device", "cpu", "--threads", "1", "--repeats", "1"),
    *("--num-layers", "1", "--width", "16", "--num-examples", "6", "--num-queries", "2"),
    *("--min-length", "4", "--max-length", "8", "--option-repeats", "1", "--train-steps", "2"),
]
STAGES = ["covariances", "eigendecompositions", "corrected eigenvalues", "scores"]


@pytest.fixture(scope="module", autouse=True)
def path_of_experiments():
    with pytest.MonkeyPatch.context() as patch:
        patch.syspath_prepend(EXPERIMENTS)
        yield


@pytest.fixture(scope="module")
def run(tmp_path_factory):
    """(what was printed, what was written) by one call of the command."""
    output = tmp_path_factory.mktemp("bench") / "new" / "rows.json"
    command = [sys.executable, str(EXPERIMENTS / "bench_ekfac.py"), *TINY, "--output", str(output)]
    done = subprocess.run(command, capture_output=True, text=True, timeout=240)
    assert done.returncode == 0, done.stderr
    return done.stdout, json.loads(output.read_text()), output.with_suffix(".md").read_text()


def test_every_stage_is_measured_printed_and_written(run):
    printed, written, markdown = run
    *stages, total, memory = written["rows"]
    assert [row["stage"] for row in stages] == STAGES
    for row in (*stages, total):
        assert row["stage"] in printed
        assert f"| {row['stage']} | {row['ours_seconds']:.2f}" in markdown
        assert row["ours_seconds"] > 0
        low, high = row["ours_multiple_range"]
        assert 0 < low <= row["ours_multiple"] <= high
    # With one round, medians are that round's numbers, which add up.
    parts = sum(row["ours_seconds"] for row in stages)
    assert abs(total["ours_seconds"] - parts) < 1e-9
    assert (total["stage"], memory["stage"]) == ("total", "peak memory")
    assert memory["ours_mib"] > 0
    assert written["matmul_gflops"] > 0
    assert "kronfluence" not in printed
    assert "bergson" not in printed


def test_the_efficiency_of_a_stage_is_its_arithmetic_over_seconds_times_rate(run):
    _, written, _ = run
    rate, plain = written["matmul_gflops"] * 1e9, written["plain_seconds"]
    seconds = {row["stage"]: row.get("ours_seconds") for row in written["rows"]}
    stages = [row for row in written["efficiency"] if "part" not in row]
    assert [row["stage"] for row in stages] == ["plain pass", *STAGES, "total"]
    for row in stages:
        assert row["seconds"] == seconds.get(row["stage"], plain)
        assert row["efficiency"] == pytest.approx(row["flop"] / rate / row["seconds"])
        assert row["floor"] == pytest.approx(row["flop"] / rate / plain)
        parts = [one["flop"] for one in written["efficiency"] if one["stage"] == row["stage"]][1:]
        assert not parts or sum(parts) == row["flop"]
    assert stages[-1]["flop"] == sum(row["flop"] for row in stages[1:-1])


def test_options_are_compared_with_the_exact_path(run):
    printed, written, _ = run
    names = [row["name"] for row in written["options"]]
    assert names[0] == "exact"
    assert {"float32 eigendecompositions", "bases from 1/8 of the examples"} <= set(names)
    for row in written["options"]:
        assert row["multiple"] > 0
        assert row["name"] in printed
    exact, *others = written["options"]
    assert exact["pearson"] == pytest.approx(1) == exact["spearman"]
    assert min(row["pearson"] for row in others) < 1


def test_a_sequence_follows_one_source_of_few_successors():
    from utils.ekfac_model import PRESETS, Config
    from utils.ekfac_options import NUM_STATES, draw_sequences, make_sources

    generator = torch.Generator().manual_seed(0)
    sources = make_sources(generator)
    used = set()
    for ids in draw_sequences(Config(min_length=5, max_length=9), sources, 40, generator):
        assert 5 <= len(ids) <= 9
        states = [token - (PRESETS["small"].vocabulary - NUM_STATES) for token in ids]
        fitting = [
            number
            for number, source in enumerate(sources.tolist())
            if all(b in source[a] for a, b in pairwise(states))
        ]
        assert len(fitting) == 1
        used.add(fitting[0])
    assert used == set(range(len(sources)))


def test_training_learns_the_sources():
    from utils.ekfac_model import Config, collate_rows, summed_loss
    from utils.ekfac_options import NUM_STATES, trained_examples

    config = Config(
        num_layers=1, width=32, num_examples=16, min_length=8, max_length=12,
        train_steps=60, device="cpu",
    )  # fmt: skip
    examples = trained_examples(config)
    batch = collate_rows(examples.train, range(16))
    with torch.no_grad():
        loss = summed_loss(examples.model, batch.input_ids, batch.label_positions())
    assert loss / batch.label_positions().sum() < torch.tensor(NUM_STATES).log()


def test_every_option_does_what_it_names():
    from utils.ekfac_model import STAGES, Config
    from utils.ekfac_options import correlations
    from utils.ekfac_ours import Option, Ours

    config = Config(
        num_layers=1, width=8, num_examples=8, num_queries=2, min_length=4, max_length=6,
        device="cpu",
    )  # fmt: skip

    def scores(option):
        system = Ours(config, option=option)
        for stage in STAGES:
            found = system.run(stage)
        return found, system

    exact, _ = scores(Option())
    # 8 is the full rank of the maps' gradients here.
    assert torch.allclose(scores(Option(rank=8))[0], exact, rtol=1e-3, atol=1e-4)
    assert not torch.allclose(scores(Option(rank=1))[0], exact, rtol=1e-3, atol=1e-4)
    half, system = scores(Option(covariance_share=0.5))
    assert sum(len(batch.input_ids) for batch in system._for_bases) == 4
    assert sum(len(batch.input_ids) for batch in system._train) == 8
    assert not torch.allclose(half, exact, rtol=1e-3, atol=1e-4)
    pearson, spearman = correlations(exact, -exact)
    assert (pearson, spearman) == (pytest.approx(-1), pytest.approx(-1))


def test_a_mean_over_queries_weighs_them_alike():
    from utils.ekfac_options import correlations

    exact = torch.tensor([[1.0, 2.0, 3.0], [100.0, 200.0, 400.0]])
    found = torch.tensor([[1.0, 2.0, 3.0], [-100.0, -200.0, -400.0]])
    assert correlations(exact, found) == (pytest.approx(0), pytest.approx(0))
