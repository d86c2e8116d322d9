"""Scores of many methods: what is kept, what is made again, and by which queries it is judged."""

import importlib
import shutil

import numpy as np
import pytest
from hops.errors import HopsError
from method_script_cases import EXPERIMENTS, documents, write


@pytest.fixture
def scored(methods, monkeypatch):
    """The module, its processes run here and their methods noted down."""
    monkeypatch.syspath_prepend(str(EXPERIMENTS))
    module = importlib.import_module("utils.scored_methods")
    module.asked = []

    def here(name, key, arguments, folder):
        module.asked.append(name)
        module._score_and_write(name, key, arguments, folder)

    monkeypatch.setattr(module, "_score_apart", here)
    return module


@pytest.fixture
def arguments(two_models, tmp_path, scored):
    task = importlib.import_module("utils.attribution_task")
    for name, folder in zip(("old", "new"), two_models, strict=True):
        shutil.copytree(folder, tmp_path / name)
    data = write(tmp_path / "data.jsonl", documents())
    return task.TaskArguments(
        dataset=data,
        old=str(tmp_path / "old"),
        new=str(tmp_path / "new"),
        inputs=(5,),
        device="cpu",
    )


def test_scores_are_kept_for_the_same_task_and_failures_are_tried_again(
    scored, arguments, tmp_path
):
    names = ("random", "bm25", "tracin")

    def again(given=arguments):
        scored.asked.clear()
        found = scored.score_methods(given, names, tmp_path / "scores")
        assert [one.name for one in found] == list(names)
        return found, tuple(scored.asked)

    found, asked = again()
    assert asked == names
    assert found[2].scores is None
    assert found[2].judged is None
    assert "expected folders checkpoint-N" in found[2].failure
    for one in found[:2]:
        assert one.failure is None
        assert one.scores.shape == (6, 13)
        assert one.judged.all()
        assert one.peak_mebibytes > 20
    kept, asked = again()
    assert asked == ("tracin",)
    assert all((a.scores == b.scores).all() for a, b in zip(found[:2], kept[:2], strict=True))
    shutil.copy(tmp_path / "scores" / "bm25.npy", tmp_path / "scores" / "tracin.npy")
    assert again()[1] == ("tracin",)  # whatever it left when it did not fail
    assert again(scored.TaskArguments(**vars_of(arguments) | {"seed": 1}))[1] == names
    assert again()[1] == names  # what the other seed replaced
    weights = tmp_path / "new" / "config.json"
    weights.write_text(weights.read_text() + "\n")
    assert again()[1] == names
    write(arguments.dataset, documents()[::-1])
    assert again()[1] == names
    (tmp_path / "scores" / "bm25.npy").write_bytes(b"")
    with pytest.raises(HopsError, match="not scores"):
        again()


def vars_of(arguments):
    return {name: getattr(arguments, name) for name in arguments.__dataclass_fields__}


def test_a_method_that_learned_on_some_queries_is_judged_by_the_others(
    scored, arguments, methods, monkeypatch, tmp_path
):
    learned = type(methods["dh_similarity"])(pooling="text", aggregation="learned")
    monkeypatch.setitem(scored.METHODS, "learned", learned)
    (found,) = scored.score_methods(arguments, ("learned",), tmp_path / "scores")
    task = scored.AttributionTask.read(arguments)
    assert (found.judged == ~learned.validation_queries(task)).all()
    assert 0 < found.judged.sum() < len(found.judged)


@pytest.mark.parametrize("script", ["leaderboard", "lds"])
def test_tables_are_of_the_judged_queries_alone_each_depth_apart(scored, arguments, script):
    """The other queries get the truth as their scores, and losses that the scores foretell."""
    board = importlib.import_module(script)
    bank_of = importlib.import_module("utils.retrained_bank").Bank
    task = scored.AttributionTask.read(arguments)
    random = np.random.default_rng(16)
    judged = np.array([one.base_function != "<GN>" for one in task.queries])
    truth = task.relevance.astype(float)
    scores = np.where(judged[:, None], random.random(truth.shape), truth)
    masks = random.random((8, 13)) < 0.5
    # Two trainings on each subset; the mean of the two is foretold, and neither of them.
    mean, noise = -(masks @ scores.T), random.normal(size=(8, 1, 6))
    losses = np.stack([mean + noise[:, 0] * 9, mean - noise[:, 0] * 9], axis=1)
    losses[:, :, ~judged] *= -1
    bank = bank_of(masks, losses, np.ones(losses.shape, dtype=bool))
    method = scored.ScoredMethod("m", "M", scores, judged, 1.25, 640.0, None)
    failed = scored.ScoredMethod("f", "F", None, None, 0.0, 0.0, "too | few")
    if script == "lds":
        results = board.judge(task, bank, [method, failed], 0)
        found = [results["depths"][depth]["methods"]["m"]["mean"] for depth in ("0", "1")]
        assert found == pytest.approx([1.0, 1.0])
        return
    results = board.judge(task, [method, failed], bank, 0)
    for kind, depth in zip(results["kinds"], (0, 1), strict=True):
        rows = np.array([one.hop_depth == depth for one in task.queries]) & judged
        assert kind["methods"]["m"]["retrieval"]["num_queries"] == rows.sum() == 2
        assert kind["num_queries"] == 3
        assert kind["methods"]["m"]["lds"]["mean"] == pytest.approx(1.0)
        first = scores[rows].argmax(axis=1)
        hits = [task.relevance[rows][row, place] for row, place in enumerate(first)]
        metrics = kind["methods"]["m"]["retrieval"]["metrics"]
        assert metrics["precision@1"]["mean"] == pytest.approx(np.mean(hits))
    lines = importlib.import_module("utils.leaderboard_report").markdown(results).splitlines()
    heads = [one.strip() for one in lines[2].split("|")[1:-1]]
    row = dict(zip(heads, (one.strip() for one in lines[4].split("|")[1:-1]), strict=True))
    kind = results["kinds"][0]["methods"]["m"]
    metrics = {name: one["mean"] for name, one in kind["retrieval"]["metrics"].items()}
    whole = kind["retrieval"]["metrics"]["precision@10"]
    assert row == {
        "method": "m",
        "P@10 [95 %]": f"{whole['mean']:.2f} [{whole['low']:.2f}, {whole['high']:.2f}]",
        "R@1": f"{metrics['recall@1']:.3f}",
        "R@5": f"{metrics['recall@5']:.3f}",
        "R@10": f"{metrics['recall@10']:.3f}",
        "mAP": f"{metrics['map']:.2f}",
        "AUC": f"{metrics['roc_auc']:.2f}",
        "LDS [95 %]": "1.00 [1.00, 1.00]",
        "seconds": "1.2",
        "MiB": "640",
    }
    assert "| f | failed: too / few |" in lines[5]
    assert len({metrics[one] for one in ("recall@1", "recall@5", "recall@10")}) == 3


def test_tables_put_the_best_first_and_what_failed_last(scored, methods):
    """Of the linear datamodeling score, with what luck may give at most over all methods."""
    report = importlib.import_module("utils.lds_report")
    board = importlib.import_module("utils.leaderboard_report")

    def entry(mean, luck):
        return {"mean": mean, "low": mean - 0.1, "high": mean + 0.1, "luck": luck}

    by = {"poor": entry(-0.2, 0.05), "fine": entry(0.5, 0.2), "broken": {"failure": "no"}}
    depths = {"0": {"name": "base function", "methods": by}}
    results = {"num_subsets": 4, "documents_in_a_subset": 5, "repeats": 1, "depths": depths}
    rows = [one for one in report.markdown(results).splitlines() if one.startswith("| ")][1:]
    assert rows == [
        "| by luck at most (95 %) | ±0.20 |",
        "| fine | 0.50 [0.40, 0.60] |",
        "| poor | -0.20 [-0.30, -0.10] |",
        "| broken | failed: no |",
    ]
    kinds = {name: {"retrieval": {"metrics": {"precision@10": {"mean": mean}}}}
             for name, mean in (("poor", 0.1), ("fine", 0.9))}  # fmt: skip
    assert board._ordered({"methods": {"broken": {"failure": "no"}, **kinds}}) == [
        "fine", "poor", "broken",
    ]  # fmt: skip
