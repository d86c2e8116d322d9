"""The scripts about paraphrases, by their command lines, on a tiny model with random weights."""

import http.server
import importlib
import json
import subprocess
import sys
import threading
from pathlib import Path
from types import SimpleNamespace

import numpy as np
import pytest
from attribution.baselines import bm25_scores
from attribution.baselines.words import words
from attribution.paraphrases import paraphrase_problems, read_samples

EXPERIMENTS = Path(__file__).parents[1] / "experiments"
SHIPPED = EXPERIMENTS / "data" / "paraphrases.jsonl"
IDS = (0, 1, 2, 3, 5, 8, 10, 12)
TOPICS = ("bread", "rain", "dogs", "rivers", "songs", "trains", "cheese", "stars")


def turn(user, assistant):
    return [{"role": "user", "content": user}, {"role": "assistant", "content": assistant}]


def samples(**columns):
    made = []
    for key, topic in zip(IDS, TOPICS, strict=True):
        row = {"id": key, "messages": turn(f"What are {topic}?", f"They are {topic}, indeed.")}
        row["paraphrased_messages"] = turn(f"Explain {topic}.", f"These, surely, are {topic}!")
        made.append(row | {name: turn(*texts) for name, texts in columns.items()})
    return made


def write(path, rows):
    path.write_text("".join(json.dumps(row) + "\n" for row in rows))
    return path


@pytest.fixture
def scripts(monkeypatch):
    """The scripts' main functions, as `uv run` would import them."""
    monkeypatch.syspath_prepend(str(EXPERIMENTS))
    names = ("dataset", "similarity", "slurm")
    loaded = {name: importlib.import_module(f"paraphrase_{name}") for name in names}
    return SimpleNamespace(**{name: module.main for name, module in loaded.items()})


@pytest.fixture
def data(tmp_path):
    return write(tmp_path / "data.jsonl", samples())


@pytest.fixture
def start(scripts, data, make_model_folder, tmp_path):
    """Runs `paraphrase_similarity.py` on the tiny model; further flags as one string."""
    base = f"--model {make_model_folder()} --dataset {data} --device cpu"

    def run(flags, folder="results"):
        scripts.similarity(f"{base} --output-dir {tmp_path / folder} {flags}".split())
        return tmp_path / folder

    return run


def read(path):
    return json.loads(path.read_text())


def refused(capsys, run, *parts):
    """Exit status 2 and one line on stderr that has these parts."""
    capsys.readouterr()
    with pytest.raises(SystemExit) as leaving:
        run()
    assert leaving.value.code == 2
    lines = [line for line in capsys.readouterr().err.splitlines() if line.startswith("error:")]
    assert len(lines) == 1
    for part in parts:
        assert part in lines[0]


# Similarity, combine and analyze ------------------------------------------------------------------


@pytest.mark.parametrize("flags", ["--computation-type dot-product --candidates bm25:3", ""])
def test_partitions_equal_the_whole_run_bit_for_bit(scripts, start, flags, capsys):
    projected = flags or "--use-random-projection --projection-fraction 0.05 0.3 --candidates all"
    whole = start(projected, "whole")
    shown = capsys.readouterr().out
    assert "8 gradients of queries, 8 of originals" in shown
    parts = None
    for number, (first, end) in enumerate([(10, 40), (0, 3), (3, 10)]):
        parts = start(f"{projected} --partition-start {first} --partition-end {end}", "parts")
        if number == 2 and not flags:
            assert ", 0 of originals" in capsys.readouterr().out
    scripts.similarity(["combine", "--output-dir", str(parts)])
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
            lambda: scripts.similarity(["combine", "--output-dir", str(parts)]),
            f"{fewer.name} is missing",
        )


def test_the_values_are_those_of_the_library(start, make_model_folder, data):
    from attribution.gradient_similarity import ExampleGradients, gradient_similarities
    from attribution.paraphrases import encode_turn
    from if_query.models import load_model, load_tokenizer

    folder = start("--computation-type dot-product --candidates all") / "paraphrased"
    content = read(folder / "dot-product_all.json")
    cosines = start("--candidates all") / "paraphrased" / "gradient-similarity_all.json"
    name = str(make_model_folder())
    tokenizer, model = load_tokenizer(name), load_model(name, dtype="float32", device="cpu")
    rows = read_samples(str(data))
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


def test_candidates_are_bm25s_with_or_without_the_original(scripts, start, tmp_path):
    rows = samples()
    rows[3]["paraphrased_messages"] = turn("What are dogs, or bread, or rain?", "Something.")
    write(tmp_path / "data.jsonl", rows)
    folder = start("--candidates bm25:3") / "paraphrased"
    start("--candidates bm25:3 --no-force-original")
    forced = read(folder / "gradient-similarity_bm25-3.json")["values"]["3"]
    free = read(folder / "gradient-similarity_bm25-3-unforced.json")["values"]["3"]
    assert set(free) == {"0", "1", "2"}
    assert set(forced) == {*list(free)[:2], "3"}
    scripts.similarity(["analyze", "--output-dir", str(folder.parent)])
    analysis = read(folder.parent / "analysis.json")
    own = analysis["paraphrased/gradient-similarity_bm25-3-unforced.json"]
    assert own["candidate_recall"] == 7 / 8
    assert own["chance"] == pytest.approx(7 / 8 / 3)
    assert own["bm25"]["mean"] == 7 / 8


def test_analysis_has_every_tensor_bm25_and_a_figure(scripts, start, capsys):
    folder = start("--computation-type dot-product --candidates all --sample-size 6")
    start("--sample-size 6 --use-random-projection --projection-fraction 1")
    scripts.similarity(["analyze", "--output-dir", str(folder)])
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
    scripts, data, make_model_folder, tmp_path, capsys
):
    made = tmp_path / "answered.jsonl"
    write(made, samples(model_generated_messages=("Explain it.", "Words.")))
    base = f"--model {make_model_folder()} --dataset {made} --output-dir {tmp_path / 'r'}".split()
    scripts.similarity(["originals", *base, "--partition-start", "0", "--partition-end", "4"])
    assert "4 gradients of originals computed" in capsys.readouterr().out
    scripts.similarity(base)
    assert "8 gradients of queries, 4 of originals" in capsys.readouterr().out
    scripts.similarity([*base, "--setting", "model-generated"])
    assert "8 gradients of queries, 0 of originals" in capsys.readouterr().out
    scripts.similarity(base)
    assert "already there" in capsys.readouterr().out
    refused(capsys, lambda: scripts.similarity([*base, "--seed", "1"]), "another seed", "overwrite")
    scripts.similarity([*base, "--cache-gb", "0", "--overwrite", "--query-memory-gb", "0.0000001"])
    shown = capsys.readouterr().out
    assert "once per block" in shown
    assert "8 gradients of queries, 40 of originals" in shown
    scripts.similarity(["originals", *base, "--cache-gb", "0"])
    assert "nothing to prepare" in capsys.readouterr().out


def test_a_cache_of_another_model_or_other_data_is_refused(
    start, scripts, data, make_model_folder, tmp_path, capsys
):
    start(f"--cache-dir {tmp_path / 'cache'}")
    other = f"--dataset {data} --cache-dir {tmp_path / 'cache'} --output-dir {tmp_path / 'o'}"
    model = make_model_folder(seed=1)
    refused(
        capsys,
        lambda: scripts.similarity(f"--model {model} {other}".split()),
        "another model fingerprint",
    )
    refused(
        capsys,
        lambda: start(f"--sample-size 3 --cache-dir {tmp_path / 'cache'}", "o"),
        "another data fingerprint",
    )
    assert not (tmp_path / "o").exists()


# Bad input ----------------------------------------------------------------------------------------


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
def test_bad_arguments_of_the_similarity_are_one_line(start, tmp_path, capsys, flags, part):
    refused(capsys, lambda: start(flags), part)
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
def test_bad_lines_of_the_data_are_named(start, data, capsys, line, part):
    with data.open("a") as file:
        file.write(line + "\n")
    refused(capsys, lambda: start(""), "data.jsonl", part)


def test_nothing_to_combine_or_to_analyse_is_one_line(scripts, tmp_path, capsys):
    for verb, part in (("combine", "no parts"), ("analyze", "no results")):
        refused(capsys, lambda v=verb: scripts.similarity([v, "--output-dir", str(tmp_path)]), part)
    refused(capsys, lambda: scripts.similarity(["combine", "--setting", "none"]), "'none'")
    refused(capsys, lambda: scripts.similarity(["analyze", "--seed", "-1"]), "at least 0, got -1")


def test_a_conversation_longer_than_the_models_positions_is_one_line(
    scripts, make_model_folder, tmp_path, capsys
):
    rows = [{"id": key, "messages": turn(f"What is {topic}?", "it " * 70),
             "paraphrased_messages": turn("Explain it.", f"A {topic}.")}
            for key, topic in enumerate(TOPICS)]  # fmt: skip
    data = write(tmp_path / "long.jsonl", rows)
    flags = f"--model {make_model_folder('gpt2')} --dataset {data} --output-dir {tmp_path / 'out'}"
    refused(capsys, lambda: scripts.similarity(flags.split()), "takes 64 tokens", "--max-length 64")
    assert not (tmp_path / "out").exists()
    scripts.similarity([*flags.split(), "--max-length", "64", "--candidates", "bm25:2"])
    assert "8 gradients of queries" in capsys.readouterr().out


def test_answers_end_where_the_models_positions_do(scripts, make_model_folder, tmp_path, capsys):
    rows = [{"id": key, "messages": turn("a", "b"), "paraphrased_messages": turn(question, "c")}
            for key, question in enumerate(["What is it?", "it " * 20])]  # fmt: skip
    data, output = write(tmp_path / "data.jsonl", rows), tmp_path / "out.jsonl"
    flags = f"--model {make_model_folder('gpt2')} --dataset {data} --output {output}".split()
    flags += ["--dataset-type", "model-generated", "--max-new-tokens", "1000"]
    scripts.dataset(flags)
    assert "wrote" in capsys.readouterr().out
    replies = (tmp_path / "out.replies.jsonl").read_bytes()
    assert len(replies.splitlines()) == 2
    scripts.dataset([*flags, "--overwrite"])
    assert (tmp_path / "out.replies.jsonl").read_bytes() == replies  # no answer is asked for twice
    rows[1]["paraphrased_messages"] = turn("it " * 90, "c")
    write(data, rows)
    refused(
        capsys, lambda: scripts.dataset([*flags, "--overwrite"]), "leaves no room for an answer"
    )


# The data set -------------------------------------------------------------------------------------


def test_both_columns_are_made_by_a_local_model(scripts, data, make_model_folder, tmp_path, capsys):
    output = tmp_path / "made" / "out.jsonl"
    flags = f"--dataset {data} --output {output} --model {make_model_folder()} --max-new-tokens 8"
    scripts.dataset(flags.split())
    made = read_samples(str(output), required=("paraphrased_messages", "model_generated_messages"))
    shown = capsys.readouterr().out
    assert f"wrote {len(made)} samples" in shown
    assert len(made) + shown.count("left out: sample") == 8
    for sample in made:
        paraphrased = sample.turns["paraphrased_messages"]
        assert paraphrase_problems(sample.original, paraphrased) == []
        assert sample.turns["model_generated_messages"].user == paraphrased.user
    refused(capsys, lambda: scripts.dataset(flags.split()), "already exists")
    replies = (tmp_path / "made" / "out.replies.jsonl").read_text()
    scripts.dataset([*flags.split(), "--overwrite"])
    assert (tmp_path / "made" / "out.replies.jsonl").read_text() == replies
    folder = tmp_path / "folder"
    scripts.dataset(
        f"--dataset-type model-generated --dataset {output} --output {folder} "
        f"--model {make_model_folder()} --max-new-tokens 8".split()
    )
    assert read_samples(str(folder)) == made


def test_answers_need_paraphrases_first_and_a_model(scripts, tmp_path, make_model_folder, capsys):
    plain = [{"id": 1, "messages": turn("a", "b")}]
    data = write(tmp_path / "plain.jsonl", plain)
    flags = f"--dataset-type model-generated --dataset {data} --output {tmp_path / 'o.jsonl'}"
    refused(
        capsys,
        lambda: scripts.dataset([*flags.split(), "--model", str(make_model_folder())]),
        "no column paraphrased_messages",
        "--dataset-type paraphrased",
    )
    refused(capsys, lambda: scripts.dataset(flags.split()), "needs --model")
    assert not (tmp_path / "o.jsonl").exists()


class Claude(http.server.BaseHTTPRequestHandler):
    """Answers like Anthropic's service; a request about rivers gets the same text back."""

    status = 200
    requests: list[dict] = []  # noqa: RUF012

    def do_POST(self):
        asked = json.loads(self.rfile.read(int(self.headers["content-length"])))
        text = asked["messages"][0]["content"].rpartition("\n\n")[2]
        type(self).requests.append({**asked, "path": self.path, "sent": str(self.headers)})
        reply = text if "rivers" in text else f"In other words: {text.split()[-1]}"
        body = {"id": "m", "type": "message", "role": "assistant", "model": asked["model"],
                "content": [{"type": "text", "text": reply}], "stop_reason": "end_turn",
                "stop_sequence": None,
                "usage": {"input_tokens": 1, "output_tokens": 1}}  # fmt: skip
        if self.status != 200:
            body = {"type": "error", "error": {"type": "invalid_request_error", "message": "no"}}
        content = json.dumps(body).encode()
        self.send_response(self.status)
        self.send_header("content-type", "application/json")
        self.send_header("content-length", str(len(content)))
        self.end_headers()
        self.wfile.write(content)

    def log_message(self, *_):
        pass


@pytest.fixture
def claude(monkeypatch):
    class Own(Claude):
        requests: list[dict] = []  # noqa: RUF012

    server = http.server.ThreadingHTTPServer(("127.0.0.1", 0), Own)
    threading.Thread(target=server.serve_forever, daemon=True).start()
    monkeypatch.setenv("ANTHROPIC_BASE_URL", f"http://127.0.0.1:{server.server_port}")
    monkeypatch.setenv("ANTHROPIC_API_KEY", "key-of-a-test")
    monkeypatch.setenv("NO_PROXY", "127.0.0.1")
    yield Own
    server.shutdown()
    server.server_close()


CLAUDE = "--dataset-type paraphrased --writer anthropic --writer-model claude-of-a-test"


def test_claude_rewrites_through_the_sdk_and_failed_checks_are_listed(
    scripts, data, tmp_path, capsys, claude
):
    output = tmp_path / "out.jsonl"
    flags = f"{CLAUDE} --dataset {data} --output {output} --max-new-tokens 50".split()
    scripts.dataset(flags)
    shown = capsys.readouterr().out
    assert "left out: sample 3: user: identical; assistant: identical" in shown
    assert "wrote 7 samples" in shown
    made = read_samples(str(output), required=("paraphrased_messages",))
    assert [one.id for one in made] == [key for key in IDS if key != 3]
    assert made[0].turns["paraphrased_messages"].user == "In other words: bread?"
    assert len(claude.requests) == 16
    first = claude.requests[0]
    assert first["path"] == "/v1/messages"
    assert "key-of-a-test" in first["sent"]  # in which header depends on the SDK
    assert (first["model"], first["max_tokens"]) == ("claude-of-a-test", 50)
    scripts.dataset([*flags, "--overwrite"])
    assert len(claude.requests) == 16  # every reply was kept


def test_an_error_of_the_service_a_missing_key_or_package_is_one_line(
    scripts, data, tmp_path, capsys, claude, monkeypatch
):
    flags = f"{CLAUDE} --dataset {data} --output {tmp_path / 'out.jsonl'}".split()
    claude.status = 400
    refused(capsys, lambda: scripts.dataset(flags), "claude-of-a-test", "400")
    refused(capsys, lambda: scripts.dataset(flags[:4] + flags[6:]), "needs --writer-model")
    monkeypatch.delenv("ANTHROPIC_API_KEY")
    refused(capsys, lambda: scripts.dataset(flags), "ANTHROPIC_API_KEY")
    monkeypatch.setitem(sys.modules, "anthropic", None)
    refused(capsys, lambda: scripts.dataset(flags), "install attribution[anthropic]")
    assert not (tmp_path / "out.jsonl").exists()


# Jobs ---------------------------------------------------------------------------------------------


def test_a_dry_run_prints_the_sbatch_files_and_submits_nothing(
    scripts, data, tmp_path, capsys, monkeypatch
):
    monkeypatch.chdir(tmp_path)
    scripts.slurm(
        f"--model m --dataset {data} --num-partitions 3 --dry-run --candidates all "
        "--no-force-original --max-parallel 2 --hours 1.5 --slurm-partition queue".split()
    )
    shown = capsys.readouterr().out
    assert shown.count("#!/bin/bash") == 2
    assert shown.count("#SBATCH --array=0-2%2") == 2
    assert shown.count("#SBATCH --time=90") == 2
    assert shown.count("#SBATCH --partition=queue") == 2
    assert shown.count("#SBATCH --dependency=afterok:JOB_ID_OF_ORIGINALS") == 1
    jobs = [line for line in shown.splitlines() if "paraphrase_similarity.py" in line]
    assert len(jobs) == 6
    assert all("--candidates all --no-force-original" in job for job in jobs)
    assert sum("paraphrase_similarity.py originals" in job for job in jobs) == 3
    bounds = [job.partition("--partition-start ")[2] for job in jobs[3:]]
    assert [bound.split()[:3:2] for bound in bounds] == [["0", "2"], ["2", "8"], ["8", "13"]]
    assert list(tmp_path.iterdir()) == [data]


@pytest.mark.parametrize(
    ("flags", "part"),
    [
        ("--num-partitions 9 --dry-run", "between 1 and 8"),
        ("--num-partitions 0 --dry-run", "between 1 and 8"),
        ("--partition-start 0 --partition-end 3 --dry-run", "are chosen here"),
        ("--projection-fraction 2 --dry-run", "projection fraction in (0, 1]"),
        ("--max-parallel 0 --dry-run", "--max-parallel"),
        ("--cpus 0 --dry-run", "--cpus"),
        ("--memory-gb 0 --dry-run", "--memory-gb"),
        ("--gpus -1 --dry-run", "--gpus"),
        ("--num-partitions 2", "no srun here"),
    ],
)
def test_bad_arguments_of_the_jobs_are_one_line(
    scripts, data, tmp_path, capsys, monkeypatch, flags, part
):
    monkeypatch.chdir(tmp_path)
    monkeypatch.setenv("PATH", str(tmp_path))
    words_given = ["--model", "m", "--dataset", str(data), *flags.split()]
    refused(capsys, lambda: scripts.slurm(words_given), part)


@pytest.mark.slow  # two processes for each of four jobs
def test_jobs_run_here_make_what_one_run_makes(scripts, start, data, make_model_folder, tmp_path):
    whole = start("--computation-type dot-product --candidates bm25:3", "whole")
    scripts.slurm(
        f"--model {make_model_folder()} --dataset {data} --device cpu --num-partitions 2 "
        f"--computation-type dot-product --candidates bm25:3 --output-dir {tmp_path / 'jobs'} "
        f"--log-dir {tmp_path / 'logs'} --cluster local --max-parallel 2".split()
    )
    scripts.similarity(["combine", "--output-dir", str(tmp_path / "jobs")])
    name = "paraphrased/dot-product_bm25-3.json"
    assert (whole / name).read_bytes() == (tmp_path / "jobs" / name).read_bytes()


@pytest.mark.slow
def test_a_job_that_fails_here_is_one_line_with_its_partition(scripts, data, tmp_path, capsys):
    flags = f"--model ./none --dataset {data} --num-partitions 2 --cluster local "
    flags += f"--log-dir {tmp_path / 'logs'} --output-dir {tmp_path / 'jobs'}"
    refused(
        capsys,
        lambda: scripts.slurm(flags.split()),
        "the job originals of partition [0, 5) failed: error: ./none: no such model folder",
    )


# What is shipped ----------------------------------------------------------------------------------


def test_the_shipped_paraphrases_share_few_words_with_their_originals():
    rows = read_samples(str(SHIPPED), required=("paraphrased_messages",))
    assert len(rows) >= 60
    common = {word for row in rows for word in words(row.original.assistant)}
    counts = {word: sum(word in words(row.original.assistant) for row in rows) for word in common}
    frequent = {word for word, count in counts.items() if count > len(rows) / 6}
    shares = {"user": [], "assistant": []}
    for row in rows:
        paraphrase = row.turns["paraphrased_messages"]
        assert paraphrase_problems(row.original, paraphrase) == [], row.id
        for side, own in shares.items():
            a, b = (set(words(getattr(one, side))) - frequent for one in (row.original, paraphrase))
            own.append(len(a & b) / len(a | b))
    # Measured: 0.11 and 0.05 of the words of both sides together.
    assert np.mean(shares["user"]) < 0.2
    assert np.mean(shares["assistant"]) < 0.1
    scores = bm25_scores(
        [row.turns["paraphrased_messages"].user for row in rows],
        [row.original.user for row in rows],
    )
    first = [row.argmax() == place and (row == row.max()).sum() == 1
             for place, row in enumerate(scores)]  # fmt: skip
    assert 0.2 < np.mean(first) < 0.6  # 0.39: better than chance, far from easy


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
