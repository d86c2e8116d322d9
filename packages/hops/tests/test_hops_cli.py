"""The real commands, end to end, and what bad input gets."""

import dataclasses
import json
import os
import shlex
import subprocess
import sys
from collections import Counter
from pathlib import Path

import pytest
import torch
from forks import Fork
from hops.cli import main, parse
from hops.commands import COMMANDS, shell_line
from hops.documents import read_documents
from hops.files import read_json
from hops.models import build_tiny_model, load_model, train_tokenizer
from hops.numerals import mentions_number
from hops.presets import PRESETS, Preset
from hops.world import build_world, plan_world

TINY = Preset(
    num_functions=2,
    num_old_distractors=24,
    num_new_distractors=10,
    variations=1,
    comprehensive_docs=1,
    code_snippets=1,
    hidden_size=32,
    num_layers=1,
    old_epochs=1.0,
    new_epochs=1.0,
)


def hops(*words: object, folder: Path) -> subprocess.CompletedProcess[str]:
    return subprocess.run(
        [sys.executable, "-m", "hops.cli", *map(str, words)],
        cwd=folder,
        capture_output=True,
        text=True,
        timeout=300,
        env={**os.environ, "COLUMNS": "80"},
    )


def test_the_commands_make_a_world_from_nothing(tmp_path, monkeypatch):
    """What `build_world` says to type makes the same files, byte for byte."""
    (tmp_path / "called").mkdir()
    (tmp_path / "typed").mkdir()
    monkeypatch.chdir(tmp_path / "called")
    world = build_world(Path("w"), preset=TINY, seed=1)
    assert [line.split()[1] for line in world.commands] == [
        *("seeds", "base", "wrapper", "combine", "distractors", "distractors", "combine"),
        *("train", "add-tokens", "train", "logit-eval", "logit-eval", "queries"),
    ]
    assert world.new_model.is_dir()
    assert set(world.accuracy) == {"old", "new"}

    # One process for all the lines: each is the real parser and command.
    def typed() -> None:
        os.chdir(tmp_path / "typed")
        for line in world.commands:
            main(shlex.split(line)[1:])

    status, _, errors = Fork(typed).wait()
    assert status == 0, errors
    for path in (world.training_set, world.new_model / "model.safetensors", world.query_json):
        assert (tmp_path / "typed" / path).read_bytes() == path.read_bytes(), path
    assert "Traceback" not in errors


STAGES = ("first_training", "new_training")


def test_a_world_in_two_stages_states_values_in_the_second_alone_with_frozen_embeddings(tmp_path):
    preset = dataclasses.replace(
        TINY, resolution_docs=2, property_docs=2, first_epochs=1.0, query_depths=(0, 1)
    )
    world = build_world(tmp_path, preset=preset, seed=1)
    documents = read_documents(world.training_set)
    models, data = world.new_model.parents[1], world.training_set.parent
    first, second = (read_documents(data / f"{name}_stage.jsonl") for name in ("first", "second"))
    assert {document.answers for document in first} == {None, "resolution", "property"}
    assert not any(mentions_number(one.text, one.constant) for one in first if one.constant)
    assert {one.role for one in second} == {"constant", "distractor"}
    # Every document is learnt, and no other; the distractors twice.
    texts = Counter(one.text for one in [*first, *second])
    assert texts == Counter(one.text for one in documents) + Counter(
        one.text for one in documents if one.role == "distractor"
    )
    stages = [load_model(str(models / name / "final_model")) for name in STAGES]
    embeddings = [model.get_input_embeddings().weight for model in stages]
    heads = [model.get_output_embeddings().weight for model in stages]
    assert torch.equal(*embeddings)
    assert not torch.equal(*heads)
    assert len({query["func"] for query in read_json(world.query_json)}) == 4


def test_a_single_command_runs_as_a_program(tmp_path):
    done = hops("seeds", "--output", "s.jsonl", "--num_functions", 2, folder=tmp_path)
    assert done.returncode == 0, done.stderr
    assert done.stdout == "s.jsonl: 24 documents\n"
    assert len((tmp_path / "s.jsonl").read_text().splitlines()) == 24


def test_help_is_a_tour_and_loads_no_torch(tmp_path):
    script = (
        "import sys\nfrom hops.cli import main\ntry:\n    main(['train', '--help'])\n"
        "except SystemExit as stop:\n    print(stop.code, 'torch' in sys.modules)\n"
    )
    done = subprocess.run([sys.executable, "-c", script], capture_output=True, text=True)
    assert done.stdout.endswith("0 False\n"), done.stderr
    tour = hops("--help", folder=tmp_path)
    assert tour.returncode == 0
    for command in COMMANDS:
        assert command.name in tour.stdout


GOOD_ROW = (
    '{"uid": "a", "text": "t", "func": "<GN>", "role": "constant", "type": "lore", '
    '"hop_depth": 0, "constant": 5}'
)


@pytest.mark.parametrize(
    ("words", "message"),
    [
        ([], "Missing subcommand"),
        (["nonsense"], "nonsense"),
        (["seeds"], "--output"),
        (["world", "--output-dir", "w", "--preset", "three-hop"], "two-hop"),
        (["plot", "--output", "x.png"], "either --training or --evaluation"),
        (["plot", "--output", "x.png", "--training", "."], "loss_history.json: cannot be read"),
        (["plot", "--output", "x.png", "--evaluation", "other"], "chance: Field required"),
        (["seeds", "--output", "s", "--num-functions", "many"], "many"),
        (["seeds", "--output", "s", "--num-functions", "0"], "1 to 99"),
        (["seeds", "--output", "s", "--misspelt", "1"], "--misspelt"),
        (["seeds", "--output", "file/s"], "file/s"),
        (["base", "--seed-path", "missing", "--output", "s"], "missing"),
        (["base", "--seed-path", "bad", "--output", "s"], "bad: line 2"),
        (["base", "--seed-path", "file", "--output", "s", "--variations", "-1"], "negative"),
        (["distractors", "--output", "s", "--function-share", "2"], r"[0, 1]"),
        (["alternating", "--inputs", "file", "--output", "s", "--pattern", "Z"], "<ZN>"),
        (["combine", "--inputs", "file", "--output", "s", "--weights", "1", "2"], "1 weights"),
        (["seeds", "--output", "s", "--max-hops", "25"], "0 to 24"),
        (["alternating", "--inputs", "file", "--output", "s", "--num-hops", "2"], "expected 1"),
        (["combine", "--inputs", "file", "--output", "s", "--weights", "-1"], "not negative"),
        (["wrapper", "--seed-path", "file", "--output", "s", "--answers", "maybe"], "maybe"),
        (["base", "--seed-path", "file", "--output", "s", "--writer", "anthropic"], "_API_KEY"),
        (["audit"], "PATH"),
        (["audit", "missing"], "missing: cannot be read"),
        (["audit", "bad"], "bad: line 2"),
        (["audit", "file", "--diversity-docs", "0"], "at least one"),
        (["audit", "file", "--seed-path", "missing"], "missing: cannot be read"),
        (["check-tokens", "--model", "./none", "--max-hops", "-1"], "0 to 24"),
        (["add-tokens", "--model", "./none", "--output-dir", "o"], "./none"),
        (["train", "--model", "./none", "--dataset-path", "file", "--output-dir", "o"], "./none"),
        (["train", "--model", "m", "--dataset-path", "no", "--output-dir", "o"], "no: cannot"),
        (["train", "--config", "bad"], "bad: not JSON at line 2"),
        (["train", "--config", "other"], "colour"),
        (
            ["logit-eval", "--model-path", "./none", "--seed-path", "file", "--output", "o"],
            "./none",
        ),
        (
            ["queries", "--dataset-path", "file", "--output-dir", "o", "--only-correct"],
            "--model-path",
        ),
        (
            ["queries", "--dataset-path", "file", "--output-dir", "o", "--inputs", "5", "5"],
            "differ",
        ),
    ],
)
def test_bad_input_is_one_line_and_status_two(words, message, tmp_path, monkeypatch, capsys):
    monkeypatch.chdir(tmp_path)
    monkeypatch.delenv("ANTHROPIC_API_KEY", raising=False)
    Path("file").write_text(GOOD_ROW + "\n")
    Path("bad").write_text(GOOD_ROW + "\n{\n")
    Path("other").write_text('{"colour": "red"}')
    with pytest.raises(SystemExit) as stop:
        main(words)
    assert stop.value.code == 2
    captured = capsys.readouterr()
    assert captured.out == ""
    lines = captured.err.splitlines()
    assert len(lines) == 1, captured.err
    assert lines[0].startswith("hops: ")
    assert message in lines[0]
    assert sorted(path.name for path in tmp_path.iterdir()) == ["bad", "file", "other"]


def test_bad_input_gets_the_same_from_the_program(tmp_path):
    done = hops("base", "--seed-path", "missing", "--output", "s", folder=tmp_path)
    assert done.returncode == 2
    assert done.stderr.count("\n") == 1
    assert "Traceback" not in done.stderr


def test_every_planned_line_parses_back_to_its_command():
    for dataset in (None, Path("some data/d.jsonl")):
        world, commands = plan_world(
            Path("a b"),
            model="tiny-llama",
            preset=PRESETS["quickstart"],
            dataset_path=dataset,
            seed=7,
        )
        for line, command in zip(world.commands, commands, strict=True):
            assert parse(shlex.split(line)[1:]) == command
            assert shell_line(command) == line


def test_a_configuration_file_gives_defaults_that_flags_override(tmp_path):
    given = {"model": "m", "dataset_path": "d", "output_dir": "o", "epochs": 2.0, "seed": 5}
    given |= {"shuffle_training": False, "hop_depth": [0, 1], "seed_path": None}
    path = tmp_path / "c.json"
    path.write_text(json.dumps({"arguments": given}))
    command = parse(["train", "--config", str(path), "--seed", "9", "--shuffle-training"])
    assert (command.model, command.epochs, command.seed) == ("m", 2.0, 9)
    assert command.hop_depth == (0, 1)
    assert command.shuffle_training
    assert not parse(["train", "--config", str(path)]).shuffle_training


def test_check_tokens_reports_and_exits_with_one_when_something_is_missing(tmp_path, capsys):
    tokenizer = train_tokenizer(["some text"], vocab_size=260)
    model = build_tiny_model("tiny-llama", tokenizer, hidden_size=32, num_layers=1)
    model.save_pretrained(tmp_path)
    tokenizer.save_pretrained(tmp_path)
    with pytest.raises(SystemExit) as stop:
        main(["check-tokens", "--model", str(tmp_path), "--num-functions", "1"])
    assert stop.value.code == 1
    report = json.loads(capsys.readouterr().out)
    assert not report["ok"]
    assert len(report["problems"]) == 2
