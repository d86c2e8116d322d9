"""The methods' scripts stopped, taken up again, and given what they cannot use."""

import importlib
import json

import numpy as np
import pytest
from forks import Fork, kill_when, script
from method_script_cases import EXPERIMENTS, documents, read, write


def test_a_finished_run_is_not_repeated_and_another_one_not_replaced(run_method, capsys):
    path = run_method("bm25")
    before = path.stat().st_mtime_ns
    with pytest.raises(SystemExit) as leaving:
        run_method("bm25")
    assert leaving.value.code == 2
    assert "--overwrite" in capsys.readouterr().err
    run_method("bm25", "--resume")
    assert "already there" in capsys.readouterr().out
    assert path.stat().st_mtime_ns == before
    with pytest.raises(SystemExit):
        run_method("bm25", "--resume --seed 1 --cutoffs 2")
    assert "another cutoffs, seed" in capsys.readouterr().err
    run_method("bm25", "--overwrite --seed 1")
    assert path.stat().st_mtime_ns > before


def test_a_run_killed_on_the_way_ends_with_the_same_bytes(
    method_script, methods, two_models, tmp_path, monkeypatch, capsys
):
    monkeypatch.chdir(tmp_path)
    write(tmp_path / "data.jsonl", documents())
    inputs = " ".join(map(str, range(1, 3)))
    base = f"--dataset data.jsonl --old {two_models[0]} --new {two_models[1]} --device cpu "
    base += "--pooling text "
    words = f"{base} --inputs {inputs} --output killed/out.jsonl".split()

    def again(*flags):
        name = "causal_patching"
        method_script.run_method(name, methods[name], None, [*words, *flags])

    folder = tmp_path / "killed"
    kill_when(
        script(EXPERIMENTS / "causal_patching.py", *words),
        lambda: len(list(folder.glob("out.parts/query_*.npy"))) == 3,
    )
    kept = {one: one.stat().st_mtime_ns for one in folder.glob("out.parts/*.npy")}
    assert 3 < len(kept) < 13  # of twelve queries, and one part that all share
    assert not (folder / "out.jsonl").exists()
    for flags, message in (([], "--resume"), (["--resume", "--percentile", "20"], "percentile")):
        with pytest.raises(SystemExit) as leaving:
            again(*flags)
        assert leaving.value.code == 2
        assert message in capsys.readouterr().err.splitlines()[-1]
    assert {one: one.stat().st_mtime_ns for one in folder.glob("out.parts/*.npy")} == kept
    again("--resume")
    assert f"going on: {len(kept)} parts" in capsys.readouterr().out
    folder.rename(tmp_path / "resumed")
    again()
    for name in ("out.jsonl", "out.metrics.json", "out.arguments.json"):
        assert (tmp_path / "resumed" / name).read_bytes() == (folder / name).read_bytes()


def test_a_run_that_is_killed_while_it_replaces_another_can_go_on(
    run_method, methods, monkeypatch, capsys
):
    """The rows of the run before it are there, and are not those that were asked for."""
    path = run_method("dh_similarity")
    scripts = importlib.import_module("utils.method_script")
    before = path.read_bytes()

    class Killed(BaseException):
        pass

    def killed(*_):
        raise Killed

    with monkeypatch.context() as patched:
        patched.setattr(scripts, "replacing", killed)  # after metrics and arguments, before rows
        with pytest.raises(Killed):
            run_method("dh_similarity", "--overwrite --pooling text")
    assert path.read_bytes() == before
    with pytest.raises(SystemExit):
        run_method("dh_similarity", "--resume")
    assert "another pooling" in capsys.readouterr().err
    run_method("dh_similarity", "--resume --pooling text")
    assert "going on: 2 parts" in capsys.readouterr().out
    assert path.read_bytes() != before
    assert not path.with_suffix(".parts").exists()
    whole = run_method("dh_similarity", "--pooling text", output="whole.jsonl")
    assert path.read_bytes() == whole.read_bytes()


def test_a_full_disk_on_the_way_keeps_what_is_finished(run_method, methods, monkeypatch, capsys):
    results = importlib.import_module("utils.method_results")

    def full(*_):
        raise OSError(28, "No space left on device", "results/out.jsonl")

    with monkeypatch.context() as patched:
        patched.setattr(results, "retrieval_metrics", full)
        with pytest.raises(SystemExit) as leaving:
            run_method("grad_similarity")
    assert leaving.value.code == 2
    assert "No space left" in capsys.readouterr().err
    path = run_method("grad_similarity", "--resume")
    assert "going on: 2 parts" in capsys.readouterr().out
    assert not path.with_suffix(".parts").exists()


def test_a_part_that_is_there_is_read_and_not_computed(method_script, tmp_path):
    saved = importlib.import_module("utils.saved_parts")
    parts = saved.SavedParts(tmp_path / "parts")
    first = parts.get("a", lambda: np.arange(3.0))
    again = parts.get("a", lambda: pytest.fail("computed twice"))
    assert again.tobytes() == first.tobytes()
    (tmp_path / "parts" / "a.npy").write_bytes(b"")
    with pytest.raises(ValueError, match="not an array"):
        parts.get("a", lambda: np.arange(3.0))


@pytest.mark.parametrize(
    ("flags", "message"),
    [
        ("--old {old} --new {new} --layers 9", "layers between 0"),
        ("--old {old} --new {new} --layers 1 1", "each once"),
        ("--old {old} --new {old}", "example 0, layer 1: its vector (queries) is zero"),
        ("--old {other} --new {new}", "architecture differs"),
        ("--old {old} --new nowhere/at/all", "nowhere/at/all"),
        ("--old {old}", "pass --new"),
        ("--new {new}", "pass --old"),
        ("--old {old} --new {new} --dtype bfloat16", "float32"),
        ("--old {old} --new {new} --device nothing", "nothing"),
        ("--old {old} --new {new} --batch-size 0", "--batch-size"),
        ("--old {old} --new {new} --cutoffs 0", "--cutoffs"),
        ("--old {old} --new {new} --hop-depths 7", "No query to write"),
        ("--old {old} --new {new} --prompt-format x", "{func}"),
        ("--old {old} --new {new} --aggregation learned --validation-share 0.01", "leaves 0"),
        ("--old {old} --new {new} --pooling first", "--pooling"),
        ("--old {old} --new {new} --queries {tmp}/none.json", "none.json"),
        ("--old {old} --new {new} --dataset {tmp}/none.jsonl", "none.jsonl"),
        ("--old {old} --new {new} --dataset {tmp}/empty.jsonl", "no documents"),
        ("--old {old} --new {new} --dataset {tmp}/ranked.jsonl", "original_index"),
        ("--old {old} --new {new} --dataset {tmp}/rain.jsonl", "no document is about a function"),
        ("--old {old} --new {new} --output {tmp}/rain.jsonl/x/out.jsonl", "rain.jsonl"),
        ("--old {old} --new {new} --output {tmp}/out.csv", ".jsonl"),
        ("--old {old} --new {new} --queries {tmp}/untaught.json", "nothing to find"),
        ("--old {old} --new {new} --queries {tmp}/incomplete.json", "completion"),
        ("--old {old} --new {new} --queries {tmp}/empty.jsonl", "at least one"),
        ("--old {old} --new {new} --queries {tmp}/number.json", "query 1: expected an object"),
        (
            "--old {old} --new {new} --queries {tmp}/depth.json",
            "hop_depth: Input should be",
        ),
        ("--old {old} --new {new} --queries {tmp}/text.json", "taught_by: Input should be"),
        ("--old {old} --new {new} --queries {tmp}/list.json", "query 0: expected an object"),
        ("--old {old} --new {new} --queries {tmp}/unknown.json", "no document is about <Z>"),
        ("--old {old} --new {new} --queries {tmp}/torn.jsonl", "torn.jsonl: line 2, column 2"),
    ],
)
def test_bad_input_is_one_line_and_leaves_nothing(
    flags, message, method_script, methods, two_models, make_model_folder, tmp_path, capsys
):
    rows = documents()
    write(tmp_path / "data.jsonl", rows)
    (tmp_path / "empty.jsonl").touch()
    write(tmp_path / "rain.jsonl", rows[-1:])
    write(tmp_path / "ranked.jsonl", [row | {"original_index": 1} for row in rows])
    for name, query in (
        ("untaught", {"prompt": "a", "completion": "b", "func": "<Z>", "taught_by": ["<Y>"]}),
        ("incomplete", {"prompt": "a", "func": "<GN>"}),
        ("depth", {"prompt": "a", "completion": "b", "func": "<GN>", "hop_depth": "0"}),
        ("text", {"prompt": "a", "completion": "b", "func": "<Z>", "taught_by": "<GN>"}),
        ("list", ["a", "b"]),
        ("unknown", {"prompt": "a", "completion": "b", "func": "<Z>"}),
    ):
        (tmp_path / f"{name}.json").write_text(json.dumps([query]))
    fit = {"prompt": "a", "completion": "b", "func": "<GN>"}
    (tmp_path / "number.json").write_text(json.dumps([fit, fit | {"completion": 5}]))
    (tmp_path / "torn.jsonl").write_text(json.dumps(fit) + "\n{")
    before = sorted(tmp_path.rglob("*"))
    filled = flags.format(
        old=two_models[0],
        new=two_models[1],
        other=make_model_folder("llama"),
        tmp=tmp_path,
        func="{func}",
    )
    base = f"--dataset {tmp_path}/data.jsonl --output {tmp_path}/new/folder/out.jsonl --device cpu"
    with pytest.raises(SystemExit) as leaving:
        method_script.run_method(
            "dh_similarity", methods["dh_similarity"], None, f"{base} {filled}".split()
        )
    assert leaving.value.code == 2
    errors = capsys.readouterr().err.splitlines()
    lines = [line for line in errors if line.startswith("error: ")]
    assert len(lines) == 1
    assert message in lines[0]
    assert sorted(tmp_path.rglob("*")) == before


@pytest.mark.parametrize(
    ("name", "flags", "message"),
    [
        ("causal_patching", "--percentile 0", "--percentile"),
        ("causal_patching", "--patch-batch-size 0", "--patch-batch-size"),
        ("causal_patching", "--ig-steps -1", "--ig-steps"),
        ("attr_weighted_change", "--ig-steps -1", "--ig-steps"),
        ("grad_similarity", "--dtype bfloat16", "float32"),
        ("grad_similarity", "--dtype float16", "float32"),
    ],
)
def test_bad_options_of_a_method_are_named(name, flags, message, run_method, capsys):
    with pytest.raises(SystemExit) as leaving:
        run_method(name, flags)
    assert leaving.value.code == 2
    assert message in capsys.readouterr().err


def test_the_baseline_script_takes_the_name_of_its_method(method_script, methods, tmp_path, capsys):
    data = write(tmp_path / "data.jsonl", documents())
    chosen = {name: methods[name] for name in ("bm25", "random")}
    flags = f"--dataset {data} --output {tmp_path}/out.jsonl --method".split()
    method_script.run_chosen_method(chosen, "baseline.py", "What?", [*flags, "random"])
    assert "combined_random_score" in read(tmp_path / "out.jsonl")[0]
    for words in ([*flags, "dog"], flags, flags[:-1]):
        with pytest.raises(SystemExit) as leaving:
            method_script.run_chosen_method(chosen, "baseline.py", "What?", words)
        assert leaving.value.code == 2
        assert "bm25, random" in capsys.readouterr().err


def test_the_scripts_refuse_as_commands_too(tmp_path):
    words = ["--method=bm25", "--dataset", "nowhere.jsonl", "--output", "out.jsonl"]
    done = Fork(script(EXPERIMENTS / "baseline.py", *words, folder=tmp_path)).wait()
    assert done.returncode == 2
    assert done.stderr.startswith("error: nowhere.jsonl")
    assert len(done.stderr.splitlines()) == 1
