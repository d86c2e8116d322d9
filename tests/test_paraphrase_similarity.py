"""`paraphrase_similarity.py` by its command line, on a tiny model with random weights."""

import json
import subprocess
import sys
from pathlib import Path

import pytest
from attribution.baselines import bm25_scores
from attribution.paraphrases import read_samples
from paraphrase_cases import IDS, TOPICS, read, refused, samples, turn, write

EXPERIMENTS = Path(__file__).parents[1] / "experiments"


@pytest.mark.parametrize("flags", ["--computation-type dot-product --candidates bm25:3", ""])
def test_partitions_equal_the_whole_run_bit_for_bit(
    paraphrase_scripts, start_similarity, flags, capsys
):
    projected = flags or "--use-random-projection --projection-fraction 0.05 0.3 --candidates all"
    whole = start_similarity(projected, "whole")
    shown = capsys.readouterr().out
    assert "8 gradients of queries, 8 of originals" in shown
    parts = None
    for number, (first, end) in enumerate([(10, 40), (0, 3), (3, 10)]):
        parts = start_similarity(
            f"{projected} --partition-start {first} --partition-end {end}", "parts"
        )
        if number == 2 and not flags:
            assert ", 0 of originals" in capsys.readouterr().out
    paraphrase_scripts.similarity(["combine", "--output-dir", str(parts)])
    names = sorted(path.name for path in (whole / "paraphrased").iterdir())
    assert len(names) == (1 if flags else 2)
    for name in names:
        ours, theirs = (folder / "paraphrased" / name for folder in (whole, parts))
        assert ours.read_bytes() == theirs.read_bytes()
        assert list(read(ours)["values"]) == [str(key) for key in IDS]
    if not flags:
        fewer = parts / "paraphrased" / f"{Path(names[0]).stem}_part_3_10.json"
        fewer.unlink()
        refused(
            capsys,
            lambda: paraphrase_scripts.similarity(["combine", "--output-dir", str(parts)]),
            f"{fewer.name} is missing",
        )


def test_the_values_are_those_of_the_library(start_similarity, make_model_folder, paraphrase_data):
    from attribution.gradient_similarity import ExampleGradients, gradient_similarities
    from attribution.paraphrases import encode_turn
    from if_query.models import load_model, load_tokenizer

    folder = start_similarity("--computation-type dot-product --candidates all") / "paraphrased"
    content = read(folder / "dot-product_all.json")
    cosines = start_similarity("--candidates all") / "paraphrased" / "gradient-similarity_all.json"
    name = str(make_model_folder())
    tokenizer, model = load_tokenizer(name), load_model(name, dtype="float32", device="cpu")
    rows = read_samples(str(paraphrase_data))
    queries, originals = (
        [encode_turn(tokenizer, row.turns[column], row.id, max_length=2048) for row in rows]
        for column in ("paraphrased_messages", "messages")
    )
    (found,) = gradient_similarities(
        ExampleGradients(model), queries, originals, [list(range(8))] * 8
    )
    expected = found.cosines().reshape(8, 8)
    for row, query in enumerate(IDS):
        for column, original in enumerate(IDS):
            dots = content["values"][str(query)][str(original)]
            assert list(dots.values()) == found.dots[8 * row + column].tolist()
            assert read(cosines)["values"][str(query)][str(original)] == expected[row, column]
    arguments = content["arguments"]
    assert arguments["setting"] == "paraphrased"
    assert arguments["sample_ids"] == list(IDS)
    texts = [f"What are {topic}?" for topic in TOPICS]
    scores = bm25_scores([f"Explain {topic}." for topic in TOPICS], texts)
    assert content["bm25"]["5"]["8"] == scores[4, 5]


def test_candidates_are_bm25s_with_or_without_the_original(
    paraphrase_scripts, start_similarity, tmp_path
):
    rows = samples()
    rows[3]["paraphrased_messages"] = turn("What are dogs, or bread, or rain?", "Something.")
    write(tmp_path / "data.jsonl", rows)
    folder = start_similarity("--candidates bm25:3") / "paraphrased"
    start_similarity("--candidates bm25:3 --no-force-original")
    forced = read(folder / "gradient-similarity_bm25-3.json")["values"]["3"]
    free = read(folder / "gradient-similarity_bm25-3-unforced.json")["values"]["3"]
    assert set(free) == {"0", "1", "2"}
    assert set(forced) == {*list(free)[:2], "3"}
    paraphrase_scripts.similarity(["analyze", "--output-dir", str(folder.parent)])
    analysis = read(folder.parent / "analysis.json")
    own = analysis["paraphrased/gradient-similarity_bm25-3-unforced.json"]
    assert own["candidate_recall"] == 7 / 8
    assert own["chance"] == pytest.approx(7 / 8 / 3)
    assert own["bm25"]["mean"] == 7 / 8


def test_analysis_has_every_tensor_bm25_and_a_figure(paraphrase_scripts, start_similarity, capsys):
    folder = start_similarity("--computation-type dot-product --candidates all --sample-size 6")
    start_similarity("--sample-size 6 --use-random-projection --projection-fraction 1")
    paraphrase_scripts.similarity(["analyze", "--output-dir", str(folder)])
    shown = capsys.readouterr().out
    assert "BM25" in shown
    analysis = read(folder / "analysis.json")
    one = analysis["paraphrased/dot-product_all.json"]
    assert one["num_queries"] == 6
    assert one["chance"] == pytest.approx(1 / 6)
    assert one["bm25"]["mean"] == 1.0
    assert set(one["by_layer"]) == {"outside layers", "0", "1", "2"}
    assert len(one["by_tensor"]) > 30
    assert len(one["greedy_selection"]) == 12
    assert "mlp.up_proj.weight" in one["by_component_type"]
    assert analysis["paraphrased/gradient-similarity_projected_1.0_bm25-5.json"]["bm25"]
    assert (folder / "paraphrased" / "dot-product_all.png").stat().st_size > 5000


def test_originals_are_cached_once_for_both_settings_and_prepared_ahead(
    paraphrase_scripts, paraphrase_data, make_model_folder, tmp_path, capsys
):
    made = tmp_path / "answered.jsonl"
    write(made, samples(model_generated_messages=("Explain it.", "Words.")))
    base = f"--model {make_model_folder()} --dataset {made} --output-dir {tmp_path / 'r'}".split()
    paraphrase_scripts.similarity(
        ["originals", *base, "--partition-start", "0", "--partition-end", "4"]
    )
    assert "4 gradients of originals computed" in capsys.readouterr().out
    paraphrase_scripts.similarity(base)
    assert "8 gradients of queries, 4 of originals" in capsys.readouterr().out
    paraphrase_scripts.similarity([*base, "--setting", "model-generated"])
    assert "8 gradients of queries, 0 of originals" in capsys.readouterr().out
    paraphrase_scripts.similarity(base)
    assert "already there" in capsys.readouterr().out
    refused(
        capsys,
        lambda: paraphrase_scripts.similarity([*base, "--seed", "1"]),
        "another seed",
        "overwrite",
    )
    paraphrase_scripts.similarity(
        [*base, "--cache-gb", "0", "--overwrite", "--query-memory-gb", "0.0000001"]
    )
    shown = capsys.readouterr().out
    assert "once per block" in shown
    assert "8 gradients of queries, 40 of originals" in shown
    paraphrase_scripts.similarity(["originals", *base, "--cache-gb", "0"])
    assert "nothing to prepare" in capsys.readouterr().out


def test_a_cache_of_another_model_or_other_data_is_refused(
    start_similarity, paraphrase_scripts, paraphrase_data, make_model_folder, tmp_path, capsys
):
    start_similarity(f"--cache-dir {tmp_path / 'cache'}")
    other = f"--dataset {paraphrase_data} --cache-dir {tmp_path / 'cache'} "
    other += f"--output-dir {tmp_path / 'o'}"
    model = make_model_folder(seed=1)
    refused(
        capsys,
        lambda: paraphrase_scripts.similarity(f"--model {model} {other}".split()),
        "another model fingerprint",
    )
    refused(
        capsys,
        lambda: start_similarity(f"--sample-size 3 --cache-dir {tmp_path / 'cache'}", "o"),
        "another data fingerprint",
    )
    assert not (tmp_path / "o").exists()


@pytest.mark.parametrize(
    ("flags", "part"),
    [
        ("--setting translated", "translated"),
        ("--computation-type cosine", "cosine"),
        ("--projection-fraction 0", "projection fraction in (0, 1]"),
        ("--projection-fraction 0.5 1.5", "projection fraction in (0, 1]"),
        ("--projection-fraction nan", "projection fraction in (0, 1]"),
        ("--projection-fraction 0.1 0.1", "repeats"),
        ("--partition-start 3", "both --partition-start and --partition-end"),
        ("--partition-start 5 --partition-end 5", "no query lies between"),
        ("--partition-start 13 --partition-end 20", "ids go from 0 to 12"),
        ("--partition-start x --partition-end 20", "partition-start"),
        ("--candidates bm25:one", "candidates all or bm25:N"),
        ("--sample-size 0", "between 1 and 8"),
        ("--sample-size 9", "between 1 and 8"),
        ("--sample-size 3 --seed -1", "seed of at least 0, got -1"),
        ("--setting model-generated", "paraphrase_dataset.py --dataset-type model-generated"),
        ("--max-length 3", "no token of its answer is left"),
        ("--device tpu7", "device tpu7"),
        ("--model ./missing", "no such model folder"),
        ("--dataset missing.jsonl", "missing.jsonl: no such file"),
        ("--no-such-flag", "no-such-flag"),
    ],
)
def test_bad_arguments_of_the_similarity_are_one_line(
    start_similarity, tmp_path, capsys, flags, part
):
    refused(capsys, lambda: start_similarity(flags), part)
    assert not (tmp_path / "results").exists()


@pytest.mark.parametrize(
    ("line", "part"),
    [
        ("{oops", "line 9: not JSON"),
        (json.dumps(samples()[2]), "line 9: the id 2 repeats"),
        (json.dumps({"id": 77, "messages": turn("a", "b")}), "no column paraphrased_messages"),
        (json.dumps({"messages": turn("a", "b")}), "line 9: no column id"),
    ],
)
def test_bad_lines_of_the_data_are_named(start_similarity, paraphrase_data, capsys, line, part):
    with paraphrase_data.open("a") as file:
        file.write(line + "\n")
    refused(capsys, lambda: start_similarity(""), "data.jsonl", part)


def test_nothing_to_combine_or_to_analyse_is_one_line(paraphrase_scripts, tmp_path, capsys):
    for verb, part in (("combine", "no parts"), ("analyze", "no results")):
        refused(
            capsys,
            lambda v=verb: paraphrase_scripts.similarity([v, "--output-dir", str(tmp_path)]),
            part,
        )
    refused(
        capsys, lambda: paraphrase_scripts.similarity(["combine", "--setting", "none"]), "'none'"
    )
    refused(
        capsys,
        lambda: paraphrase_scripts.similarity(["analyze", "--seed", "-1"]),
        "at least 0, got -1",
    )


def test_a_conversation_longer_than_the_models_positions_is_one_line(
    paraphrase_scripts, make_model_folder, tmp_path, capsys
):
    rows = [{"id": key, "messages": turn(f"What is {topic}?", "it " * 70),
             "paraphrased_messages": turn("Explain it.", f"A {topic}.")}
            for key, topic in enumerate(TOPICS)]  # fmt: skip
    data = write(tmp_path / "long.jsonl", rows)
    flags = f"--model {make_model_folder('gpt2')} --dataset {data} --output-dir {tmp_path / 'out'}"
    refused(
        capsys,
        lambda: paraphrase_scripts.similarity(flags.split()),
        "takes 64 tokens",
        "--max-length 64",
    )
    assert not (tmp_path / "out").exists()
    paraphrase_scripts.similarity([*flags.split(), "--max-length", "64", "--candidates", "bm25:2"])
    assert "8 gradients of queries" in capsys.readouterr().out


def test_the_real_command_refuses_in_one_line_without_a_traceback(tmp_path):
    done = subprocess.run(
        [sys.executable, EXPERIMENTS / "paraphrase_similarity.py", "--setting", "none"],
        capture_output=True,
        text=True,
        cwd=tmp_path,
    )
    assert done.returncode == 2
    assert done.stderr.count("\n") == 1
    assert done.stderr.startswith("error:")
