"""Every row of the specification's table of bad input: status 2, one line, nothing written."""

import errno
import io
import json
import os
import shutil
import subprocess
import sys
from pathlib import Path

import pytest
from datasets import Dataset
from if_query import fit_hessians, run_query
from if_query_commands import write

PAIR = {"pair_id": "a", "prompt": "x", "completion": " y"}


@pytest.fixture
def failing(capsys, tmp_path):
    """Run a command that must fail, and return its one line."""

    def run(main, arguments, *, may_exist=()):
        output = tmp_path / "output"
        with pytest.raises(SystemExit) as leaving:
            main(["--output-dir", str(output), "--device", "cpu", *arguments])
        assert leaving.value.code == 2
        printed = [line for line in capsys.readouterr().err.splitlines() if "error:" in line]
        assert len(printed) == 1
        assert printed[0].startswith("error: ")
        if not may_exist:
            assert not output.exists()
        return printed[0]

    return run


@pytest.fixture
def fit_fails(failing, make_model_folder, token_data):
    def run(*, model=None, data=None, more=(), may_exist=()):
        arguments = ["--model", str(model or make_model_folder())]
        arguments += ["--hessian-dataset", str(data or token_data), "--dtype", "float32", *more]
        return failing(fit_hessians.main, arguments, may_exist=may_exist)

    return run


@pytest.fixture
def factors(fitted) -> Path:
    return fitted


@pytest.fixture
def query_fails(failing, make_model_folder, pair_files, factors):
    def run(*, model=None, train=None, query=None, folder=None, more=(), may_exist=()):
        arguments = ["--model", str(model or make_model_folder()), "--dtype", "float32"]
        arguments += ["--factors-dir", str(folder or factors)]
        arguments += ["--train-json", str(train or pair_files[0])]
        arguments += ["--query-json", str(query or pair_files[1]), *more]
        return failing(run_query.main, arguments, may_exist=may_exist)

    return run


@pytest.mark.parametrize("which", ["train", "query"])
def test_missing_or_unreadable_file(query_fails, tmp_path, which):
    assert "no such file" in query_fails(**{which: tmp_path / "nowhere.json"})
    assert "got a folder" in query_fails(**{which: tmp_path})


def test_not_json_names_line_and_column(query_fails, tmp_path):
    path = write(tmp_path / "bad.json", '[\n  {"pair_id": "a",, }\n]')
    line = query_fails(query=path)
    assert "line 2" in line
    assert "column 19" in line


def test_not_a_list(query_fails, tmp_path):
    assert "list" in query_fails(train=write(tmp_path / "bad.json", PAIR))


def test_item_without_a_required_field_names_index_and_id(query_fails, tmp_path):
    bad = [PAIR, {"pair_id": "b", "prompt": "x"}]
    line = query_fails(train=write(tmp_path / "bad.json", bad))
    assert "item 1" in line
    assert "'b'" in line
    assert "completion" in line


def test_field_of_the_wrong_type(query_fails, tmp_path):
    line = query_fails(train=write(tmp_path / "bad.json", [{**PAIR, "prompt": 3}]))
    assert "prompt" in line
    assert "string" in line


def test_duplicate_pair_id(query_fails, tmp_path):
    line = query_fails(train=write(tmp_path / "bad.json", [PAIR, PAIR]))
    assert "duplicate" in line
    assert "'a'" in line


def test_empty_list(query_fails, tmp_path):
    assert "empty" in query_fails(query=write(tmp_path / "bad.json", []))


def test_empty_completion(query_fails, tmp_path):
    line = query_fails(query=write(tmp_path / "bad.json", [{**PAIR, "completion": ""}]))
    assert "completion" in line
    assert "empty" in line


def test_lone_surrogates(query_fails, tmp_path):
    content = '[{"pair_id": "a", "prompt": "x\\ud800", "completion": "y"}]'
    assert "surrogate" in query_fails(query=write(tmp_path / "bad.json", content))


@pytest.mark.parametrize("command", ["fit", "query"])
def test_unknown_model_folder(fit_fails, query_fails, tmp_path, command):
    fails = {"fit": fit_fails, "query": query_fails}[command]
    assert "no such model folder" in fails(model=tmp_path / "nowhere")
    assert "no config.json" in fails(model=tmp_path)


def test_a_model_id_that_cannot_be_had_is_one_line(fit_fails):
    assert "cannot load the model nobody/nothing" in fit_fails(model="nobody/nothing")


def test_data_set_that_is_missing_or_has_no_input_ids(fit_fails, tmp_path):
    assert "no such data set" in fit_fails(data=tmp_path / "nowhere.jsonl")
    Dataset.from_dict({"text": ["a", "b"]}).save_to_disk(tmp_path / "texts")
    assert "input_ids" in fit_fails(data=tmp_path / "texts")


def test_ids_outside_the_vocabulary(fit_fails, tmp_path):
    path = write(tmp_path / "bad.jsonl", '{"input_ids": [3, 4]}\n{"input_ids": [3, 70000]}\n')
    line = fit_fails(data=path)
    assert "70000" in line
    assert "row 1" in line


def test_examples_without_label_tokens_are_named_and_score_zero(
    make_model_folder, factors, pair_files, tmp_path, capsys
):
    """Nothing precedes the one token that is left of this example, so nothing is scored."""
    pairs = [{"pair_id": "bare", "prompt": "", "completion": " Lima"}, PAIR]
    output = tmp_path / "output"
    run_query.main(
        f"--model {make_model_folder()} --dtype float32 --device cpu --factors-dir {factors} "
        f"--train-json {write(tmp_path / 'train.json', pairs)} --query-json {pair_files[1]} "
        f"--output-dir {output} --max-length 1".split()
    )
    assert "have no label token" in capsys.readouterr().out
    metadata = json.loads((output / "metadata.json").read_text())
    assert metadata["unscored_train"] == ["bare", "a"]
    scores = [line.split(",")[2] for line in (output / "influences.csv").read_text().split()[1:]]
    assert set(scores) == {"0"}


def test_a_data_set_without_any_label_is_nothing_to_fit(fit_fails, tmp_path):
    """Eigenvalues would be 0, without an inverse; the first label is never predicted."""
    rows = [{"input_ids": ids, "labels": [5, -100][: len(ids)]} for ids in ([5, 6], [5])]
    data = write(tmp_path / "data.jsonl", "".join(json.dumps(row) + "\n" for row in rows))
    assert "no example has a label token" in fit_fails(data=data)


def damaged(factors: Path, folder: Path) -> Path:
    shutil.copytree(factors, folder)
    return folder


def test_factors_missing_incomplete_truncated_or_altered(query_fails, factors, tmp_path):
    assert "no factors here" in query_fails(folder=tmp_path / "nowhere")

    folder = damaged(factors, tmp_path / "incomplete")
    metadata = json.loads((folder / "metadata.json").read_text())
    write(folder / "metadata.json", {**metadata, "status": "fitting"})
    assert "incomplete" in query_fails(folder=folder)

    folder = damaged(factors, tmp_path / "lacking")
    next((folder / "eigenvalues").iterdir()).unlink()
    assert "missing" in query_fails(folder=folder)

    folder = damaged(factors, tmp_path / "truncated")
    path = next((folder / "eigenbases").iterdir())
    write(path, path.read_bytes()[:-10])
    assert "truncated or altered" in query_fails(folder=folder)

    folder = damaged(factors, tmp_path / "altered")
    path = next((folder / "eigenbases").iterdir())
    content = bytearray(path.read_bytes())
    content[-1] ^= 1
    write(path, bytes(content))
    assert "checksum is wrong" in query_fails(folder=folder)

    folder = damaged(factors, tmp_path / "garbled")
    write(folder / "metadata.json", "{")
    assert "not readable as JSON" in query_fails(folder=folder)


def test_factors_of_another_model_name_both_sides(
    query_fails, make_model_folder, factors, pair_files, tmp_path, capsys
):
    other = make_model_folder("olmo2", seed=1)
    line = query_fails(model=other)
    assert str(other) in line
    assert str(make_model_folder()) in line
    assert "--allow-mismatch" in line
    arguments = f"--model {other} --dtype float32 --device cpu --factors-dir {factors} "
    arguments += f"--train-json {pair_files[0]} --query-json {pair_files[1]} "
    run_query.main(f"{arguments} --output-dir {tmp_path / 'allowed'} --allow-mismatch".split())
    assert "warning: " in capsys.readouterr().out
    assert "--allow-mismatch" in query_fails(more=["--revision", "abc"])
    # Another architecture cannot be allowed.
    line = query_fails(model=make_model_folder("gpt2"), more=["--allow-mismatch"])
    assert "no such map" in line


def test_results_of_other_arguments_are_not_overwritten(query_fails, tmp_path, capsys):
    output = tmp_path / "output"
    write_done = json.dumps({"status": "complete", "model_fingerprint": "another"})
    output.mkdir()
    write(output / "metadata.json", write_done)
    line = query_fails(may_exist=("metadata.json",))
    assert "results of other arguments" in line
    assert "--overwrite" in line
    assert [path.name for path in output.iterdir()] == ["metadata.json"]


def test_a_folder_with_other_things_is_not_touched(fit_fails, tmp_path):
    output = tmp_path / "output"
    output.mkdir()
    write(output / "thesis.txt", "mine")
    assert "not empty" in fit_fails(may_exist=("thesis.txt",), more=["--overwrite"])
    assert [path.name for path in output.iterdir()] == ["thesis.txt"]


def broken_model(make_model_folder, folder: Path, entry: float) -> Path:
    from safetensors.torch import load_file, save_file

    shutil.copytree(make_model_folder(), folder)
    weights = load_file(folder / "model.safetensors")
    weights["model.layers.1.mlp.up_proj.weight"][0, 0] = entry
    save_file(weights, folder / "model.safetensors", metadata={"format": "pt"})
    return folder


def test_a_non_finite_model_names_example_and_module(
    fit_fails, query_fails, make_model_folder, tmp_path
):
    model = broken_model(make_model_folder, tmp_path / "broken", float("nan"))
    line = fit_fails(model=model, may_exist=("metadata.json",))
    assert "is not finite for row" in line
    shutil.rmtree(tmp_path / "output", ignore_errors=True)
    line = query_fails(model=model, more=["--allow-mismatch"], may_exist=("metadata.json",))
    assert "is not finite for pair_id 'q" in line


def test_float16_that_overflows_names_example_and_module(fit_fails, make_model_folder, tmp_path):
    model = broken_model(make_model_folder, tmp_path / "large", 60000.0)
    line = fit_fails(model=model, more=["--dtype", "float16"], may_exist=("metadata.json",))
    assert "is not finite for row" in line
    assert "wider dtype" in line


@pytest.mark.parametrize("command", ["fit", "query"])
def test_a_full_disk_is_named_and_leaves_no_partial_file(
    fit_fails, query_fails, tmp_path, monkeypatch, command
):
    fails = {"fit": fit_fails, "query": query_fails}[command]
    suffix = {"fit": ".safetensors.tmp", "query": ".csv.tmp"}[command]
    real_open = io.open

    def full(path, *args, **kwargs):
        if str(path).endswith(suffix):
            raise OSError(errno.ENOSPC, os.strerror(errno.ENOSPC))
        return real_open(path, *args, **kwargs)

    monkeypatch.setattr("io.open", full)
    line = fails(may_exist=("metadata.json",))
    assert "No space left on device" in line
    assert "partial files were removed" in line
    assert not list((tmp_path / "output").rglob("*.tmp"))
    assert not list((tmp_path / "output").rglob("*.csv"))


@pytest.mark.parametrize(
    ("more", "named"),
    [
        (["--strategy", "best"], "invalid choice 'best'"),
        (["--no-such-flag"], "--no-such-flag"),
        (["--factor-batch-size", "0"], "factor"),
        (["--layer-stride", "0"], "layer"),
        (["--modules", "nothing_here"], "selects no linear map"),
        (["--modules", "lm_head"], "lm_head is the output head"),
        (["--modules", ""], "lm_head is the output head"),
        (["--device", "abacus"], "abacus"),
        (["--memory-gb", "inf"], "--memory-gb: input should be less"),
        (["--memory-gb", "1e300"], "--memory-gb: input should be less"),
        (["--replay-memory-gb", "inf"], "--replay-memory-gb: input should be less"),
        (["--save-interval", "nan"], "--save-interval: input should be greater"),
        (["--save-interval", "-1"], "--save-interval: input should be greater"),
    ],
)
def test_bad_flags_of_fit_hessians(fit_fails, more, named):
    assert named in fit_fails(more=more)


@pytest.mark.parametrize(
    ("more", "named"),
    [
        (["--damping", "-1"], "--damping: input should be greater"),
        (["--damping", "inf"], "--damping: input should be a finite number"),
        (["--query-rank", "0"], "--query-rank: input should be greater"),
        (["--memory-gb", "inf"], "--memory-gb: input should be less"),
        (["--query-memory-gb", "inf"], "--query-memory-gb: input should be less"),
        (["--save-interval", "nan"], "--save-interval: input should be greater"),
    ],
)
def test_bad_flags_of_run_query(query_fails, more, named):
    assert named in query_fails(more=more)


@pytest.mark.parametrize(
    ("flag", "expected"),
    [
        ("--memory-gb", "expected a number"),
        ("--covariance-share", "expected a number"),
        ("--module-partitions", "expected a whole number"),
        ("--factor-batch-size", "expected a whole number"),
    ],
)
@pytest.mark.parametrize("encoding", ["utf-8", "ascii"])
def test_what_is_no_number_is_named_without_the_types_behind_it(
    fit_fails, monkeypatch, flag, expected, encoding
):
    """However the terminal draws the box that messages come in."""
    monkeypatch.setattr("sys.stdout", io.TextIOWrapper(io.BytesIO(), encoding=encoding))
    for value in ("many", ""):
        line = fit_fails(more=[flag, value])
        assert line == f"error: {flag}: {expected}, got {value!r} (see fit-hessians --help)"


def test_more_examples_than_can_be_counted_are_all_of_them(
    make_model_folder, token_data, tmp_path, capsys
):
    fit_hessians.main(
        f"--model {make_model_folder()} --hessian-dataset {token_data} --strategy identity "
        f"--output-dir {tmp_path / 'f'} --dtype float32 --max-examples {10**20}".split()
    )
    assert json.loads((tmp_path / "f" / "metadata.json").read_text())["num_examples"] == 14


def test_missing_flags_are_one_line(capsys):
    with pytest.raises(SystemExit) as leaving:
        fit_hessians.main([])
    assert leaving.value.code == 2
    error = capsys.readouterr().err
    assert error.count("\n") == 1
    assert "--model" in error


def test_a_yaml_file_gives_defaults_and_misspelt_keys_are_refused(
    fit_fails, make_model_folder, token_data, tmp_path
):
    good = write(tmp_path / "good.yaml", "strategy: diagonal\nempirical_fisher: true\nseed: 3\n")
    output = tmp_path / "factors"
    fit_hessians.main(
        f"--config {good} --model {make_model_folder()} --hessian-dataset {token_data} "
        f"--output-dir {output} --dtype float32 --device cpu --seed 4".split()
    )
    metadata = json.loads((output / "metadata.json").read_text())
    assert (metadata["strategy"], metadata["fisher"], metadata["seed"]) == (
        "diagonal", "empirical", 4,
    )  # fmt: skip
    bad = write(tmp_path / "bad.yaml", "stratgy: diagonal\n")
    assert "--stratgy" in fit_fails(more=["--config", str(bad)])
    assert "bad.yaml" not in fit_fails(more=["--config", str(good), "--strategy", "none"])
    assert "no.yaml" in fit_fails(more=["--config", str(tmp_path / "no.yaml")])


@pytest.mark.parametrize("command", ["fit_hessians", "run_query"])
def test_the_installed_commands_fail_in_one_line_and_help_without_torch(command, tmp_path):
    """The console scripts themselves; help does not wait for torch."""
    script = Path(sys.executable).parent / command.replace("_", "-")
    failed = subprocess.run(
        [script, "--model", "x", "--output-dir", tmp_path / "o"], capture_output=True, text=True
    )
    assert failed.returncode == 2
    assert failed.stderr.count("\n") == 1
    assert failed.stdout == ""
    helped = subprocess.run([script, "--help"], capture_output=True, text=True)
    assert helped.returncode == 0
    assert "--output-dir" in helped.stdout
    code = f"import sys, if_query.{command}; sys.exit('torch' in sys.modules)"
    assert subprocess.run([sys.executable, "-c", code]).returncode == 0
