"""The study of learned embeddings: what training may see, that it can learn, and the command."""

import csv
import importlib
import json
import subprocess
import sys
from dataclasses import replace
from pathlib import Path

import numpy as np
import pytest
import torch
from if_query.errors import InputError

SCRIPT = Path(__file__).parents[1] / "experiments" / "learned_embedding.py"


@pytest.fixture(scope="module", autouse=True)
def path_of_experiments():
    """The scripts' folder comes first, as where `uv run` starts one."""
    with pytest.MonkeyPatch.context() as patch:
        patch.syspath_prepend(str(SCRIPT.parent))
        yield


@pytest.fixture(scope="module")
def script():
    return importlib.import_module("learned_embedding")


@pytest.fixture(scope="module")
def pools():
    return importlib.import_module("utils.learned_embedding_texts")


@pytest.fixture(scope="module")
def training():
    return importlib.import_module("utils.learned_embedding_training")


@pytest.fixture(scope="module")
def texts(pools):
    """20 functions of 3 questions, 8 documents and 2 of the wrapper; 20 distractors.

    A text's features are its function's own vector in the first 8 dimensions and noise in the
    other 8, which whitening cannot tell apart but training can.
    """
    generator = torch.Generator().manual_seed(0)
    functions = [f"<B{number:02d}>" for number in range(20)]
    vectors = torch.randn(20, 8, generator=generator)

    def features(numbers, share):
        own = share * vectors[numbers] + 0.3 * torch.randn(len(numbers), 8, generator=generator)
        return torch.cat([own, torch.randn(len(numbers), 8, generator=generator)], dim=1)

    asked, about, wrapped = ([n for n in range(20) for _ in range(times)] for times in (3, 8, 2))
    documents = torch.cat([features(about, 1), features(wrapped, 0.5), features([0] * 20, 0)])
    names = [functions[n] for n in about]
    wrappers = [functions[n].replace("B", "C") for n in wrapped]
    bases = [functions[n] for n in wrapped]
    return pools.Texts(
        query_functions=np.array([functions[n] for n in asked]),
        document_functions=np.array(names + wrappers + [""] * 20),
        document_bases=np.array(names + bases + [""] * 20),
        queries={"state": features(asked, 1)},
        documents={"state": documents},
    )


def test_no_function_and_no_document_is_in_two_pools(pools, texts):
    for seed in range(5):
        fit, validation, learned_on, held_out = pools.split(texts, 0.4, seed)
        for first, second in ((fit, validation), (learned_on, held_out)):
            assert not set(first.documents) & set(second.documents)
            assert not set(first.queries) & set(second.queries)
            bases = [set(texts.document_bases[one.documents]) - {""} for one in (first, second)]
            assert not bases[0] & bases[1]
            for one, own in zip((first, second), bases, strict=True):
                assert set(texts.query_functions[one.queries]) == own
        assert set(fit.documents) | set(validation.documents) == set(learned_on.documents)
        assert len(learned_on.documents) + len(held_out.documents) == 20 * 10 + 20
        assert len(set(texts.query_functions[held_out.queries])) == 8


def test_what_is_learned_and_chosen_does_not_depend_on_held_out_features(pools, training, texts):
    held_out = pools.split(texts, 0.4, 3)[3]
    queries, documents = texts.queries["state"].clone(), texts.documents["state"].clone()
    queries[held_out.queries] = 7.0
    documents[held_out.documents] = 7.0
    changed = replace(texts, queries={"state": queries}, documents={"state": documents})
    rows, others = (
        list(training.study(one, "state", 3, held_out=0.4, learning_rates=(1e-3, 1e-2), steps=6))
        for one in (texts, changed)
    )
    for row, other in zip(rows, others, strict=True):
        names = ("method", "start", "learning_rate")
        assert [row[name] for name in names] == [other[name] for name in names]
    seen = pools.split(texts, 0.4, 3)[2]
    for recipe in training.RECIPES:
        weights = [
            training.train(
                recipe, pools.whitened(one, "state", seen, [seen])[0], 1e-2, steps=6, seed=3
            ).weight
            for one in (texts, changed)
        ]
        assert torch.equal(*weights)
        assert not torch.equal(weights[0], torch.eye(16))


def test_whitening_is_that_of_its_source_and_relevance_that_of_the_function(pools, texts):
    seen, held_out = pools.split(texts, 0.4, 0)[2:]
    whitened, other = pools.whitened(texts, "state", seen, (seen, held_out))
    assert whitened.documents.mean(dim=0).abs().max() < 1e-5
    covariance = torch.cov(whitened.documents.T)
    assert (covariance - torch.eye(16)).abs().max() < 0.1  # 1 % of shrinkage
    assert (torch.cov(other.documents.T) - torch.eye(16)).abs().max() > 0.1
    assert whitened.relevance.shape == (12 * 3, 12 * 10 + 12)
    assert (whitened.relevance.sum(axis=1) == 8).all()  # wrappers do not count


def test_every_recipe_learns_what_carries_over_to_other_functions(pools, training, texts):
    seen, held_out = pools.split(texts, 0.4, 1)[2:]
    learned_on, scored_on = pools.whitened(texts, "state", seen, (seen, held_out))
    unlearned = training.score(scored_on)["map"]
    identity = torch.nn.Linear(16, 16, bias=False)
    torch.nn.init.eye_(identity.weight)
    assert training.score(scored_on, identity)["map"] == pytest.approx(unlearned)
    before = torch.get_rng_state()
    for recipe in training.RECIPES:
        projection = training.train(recipe, learned_on, 1e-2, steps=60, seed=0)
        assert training.score(scored_on, projection)["map"] > unlearned + 0.1, recipe.name
    assert torch.equal(torch.get_rng_state(), before)


def run(*arguments, cwd):
    command = [sys.executable, str(SCRIPT), *map(str, arguments)]
    return subprocess.run(command, capture_output=True, text=True, cwd=cwd, timeout=900)


@pytest.mark.slow
@pytest.mark.timeout(1000)
def test_the_study_runs_from_the_world_to_the_figure_and_again(tmp_path):
    folder = tmp_path / "out"
    done = run("--smoke", "--features", "state", "gradient", "--output-dir", folder, cwd=tmp_path)
    assert done.returncode == 0, done.stderr[-2000:]
    assert "mean over 2 splits" in done.stdout
    rows = (folder / "rows.csv").read_text()
    assert len(list(csv.DictReader(rows.splitlines()))) == 2 * 2 * (3 + 8)
    summary = json.loads((folder / "metrics.json").read_text())
    assert set(summary["mean_low_high"]) == {"state", "gradient"}
    assert (folder / "learned_embedding.png").stat().st_size > 5000
    assert not list(folder.glob(".*.tmp"))
    done = run("--smoke", "--features", "state", "gradient", "--output-dir", folder, cwd=tmp_path)
    assert done.returncode == 0, done.stderr[-2000:]
    assert (folder / "rows.csv").read_text() == rows


@pytest.mark.parametrize(
    ("changed", "said"),
    [
        ({"seeds": 1}, "--seeds: expected at least 2, for intervals, got 1"),
        ({"functions": 500}, "--functions: expected 10 to 99, got 500"),
        ({"functions": 9}, "--functions: expected 10 to 99, got 9"),
        ({"held_out": 0.9}, "--held-out: expected a share from 0.1 to 0.6, got 0.9"),
        ({"steps": 0}, "--steps: expected at least 1, got 0"),
        ({"features": ()}, "--features: expected at least one"),
        ({"learning_rates": (0.0,)}, "--learning-rates: expected rates between 0 and 1"),
        ({"learning_rates": ()}, "--learning-rates: expected rates between 0 and 1"),
    ],
)
def test_bad_sizes_are_refused_before_any_work(script, tmp_path, changed, said):
    with pytest.raises(InputError, match=said):
        script.main(script.Config(output_dir=tmp_path / "out", **changed))
    assert not (tmp_path / "out").exists()


def refused(capsys, script, *words):
    with pytest.raises(SystemExit) as leaving:
        script.command(words)
    assert leaving.value.code == 2
    errors = [line for line in capsys.readouterr().err.splitlines() if line.startswith("error: ")]
    assert len(errors) == 1
    return errors[0]


def test_the_command_refuses_a_folder_that_is_a_file_in_one_line(
    script, tmp_path, monkeypatch, capsys
):
    monkeypatch.chdir(tmp_path)
    (tmp_path / "taken").write_text("a file")
    assert "taken" in refused(capsys, script, "--smoke", "--output-dir", "taken")
    assert [path.name for path in tmp_path.iterdir()] == ["taken"]


def test_the_real_command_refuses_bad_usage_in_one_line_without_a_traceback(tmp_path):
    done = run("--steps", "many", cwd=tmp_path)
    assert done.returncode == 2
    assert done.stderr.startswith("error: ")
    assert done.stderr.count("\n") == 1
