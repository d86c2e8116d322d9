"""The figures: what must stand in them, and what is refused."""

import json

import pytest
from hops.errors import HopsError
from hops.files import write_json
from hops.plots import plot_evaluation, plot_training
from hops.training_config import LOSS_FILE, SUMMARY_FILE


def statistics(accuracy):
    low, high = max(0.0, accuracy - 0.1), accuracy + 1e-17
    return {"accuracy": accuracy, "accuracy_low": low, "accuracy_high": high}


@pytest.fixture
def evaluation(tmp_path):
    functions = [
        {"name": name, "hop_depth": depth, "mean_probability": 0.4, **statistics(accuracy)}
        for name, depth, accuracy in (("GN", 0, 1.0), ("JN", 0, 0.5), ("FN", 1, 0.0))
    ]
    write_json(
        tmp_path / "e.json",
        {
            "chance": 0.2,
            "depths": {"0": statistics(0.75), "1": statistics(0.0)},
            "functions": functions,
        },
    )
    return tmp_path / "e.json"


@pytest.fixture
def run(tmp_path):
    write_json(tmp_path / LOSS_FILE, [{"step": s, "loss": 3.0 / s} for s in range(1, 11)])
    depths = [{"0": statistics(0.5), "1": statistics(0.1)}, {"0": statistics(1.0)}]
    write_json(
        tmp_path / SUMMARY_FILE,
        [{"step": 5 + 5 * i, "chance": 0.2, "depths": d} for i, d in enumerate(depths)],
    )
    return tmp_path


def drawn_text(path):
    """The comments of an SVG hold its texts."""
    return path.read_text()


def test_the_figure_of_an_evaluation_names_each_function_and_depth(evaluation, tmp_path):
    plot_evaluation(evaluation, tmp_path / "figures" / "e.svg")
    text = drawn_text(tmp_path / "figures" / "e.svg")
    for word in ("GN", "JN", "FN", "base functions", "wrappers, depth 1", "0.75", "chance"):
        assert f"{word}" in text, word


def test_wrappers_told_have_a_panel_and_a_line_of_their_own(evaluation, run, tmp_path):
    value = json.loads(evaluation.read_text())
    value["functions"].append({**value["functions"][-1], "name": "IN", "is_told": True})
    value["told"] = {"1": statistics(0.875)}
    write_json(evaluation, value)
    plot_evaluation(evaluation, tmp_path / "e.svg")
    text = drawn_text(tmp_path / "e.svg")
    assert text.count("wrappers, depth 1, value told") == 1
    assert "0.88" in text
    points = json.loads((run / SUMMARY_FILE).read_text())
    points[0]["told"] = {"1": statistics(0.9)}
    write_json(run / SUMMARY_FILE, points)
    plot_training([run], tmp_path / "t.svg")
    assert "wrappers, depth 1, value told" in drawn_text(tmp_path / "t.svg")


def test_many_functions_go_on_in_another_column(evaluation, tmp_path):
    value = json.loads(evaluation.read_text())
    value["functions"] = [{**value["functions"][0], "name": f"B{i}"} for i in range(120)]
    del value["depths"]["1"]
    write_json(evaluation, value)
    plot_evaluation(evaluation, tmp_path / "e.svg")
    text = drawn_text(tmp_path / "e.svg")
    assert text.count("base functions") == 3
    assert all(f"B{i} " in text for i in (0, 50, 119))


def test_the_figure_of_a_run_shows_loss_and_accuracy_at_each_depth(run, tmp_path):
    plot_training([run], tmp_path / "t.svg")
    text = drawn_text(tmp_path / "t.svg")
    for word in ("training loss", "base functions", "wrappers, depth 1", "chance"):
        assert word in text, word
    plot_training([run, run], tmp_path / "t.png")
    assert (tmp_path / "t.png").read_bytes().startswith(b"\x89PNG")


def test_a_run_without_functions_still_shows_its_loss(run, tmp_path):
    write_json(run / SUMMARY_FILE, [{"step": 10, "fraction": 1.0, "train_loss": 0.3}])
    plot_training([run], tmp_path / "t.svg")
    assert "no function was asked" in drawn_text(tmp_path / "t.svg")


def test_what_cannot_be_drawn_is_refused_and_leaves_no_file(evaluation, run, tmp_path):
    with pytest.raises(HopsError, match=r"cannot draw .xyz; expected one of"):
        plot_evaluation(evaluation, tmp_path / "e.xyz")
    write_json(tmp_path / "half.json", {"chance": 0.2, "depths": {}})
    with pytest.raises(HopsError, match="functions: Field required"):
        plot_evaluation(tmp_path / "half.json", tmp_path / "e.svg")
    with pytest.raises(HopsError, match="cannot be read"):
        plot_training([tmp_path / "nothing"], tmp_path / "e.svg")
    write_json(run / SUMMARY_FILE, [])
    with pytest.raises(HopsError, match="no evaluated checkpoint"):
        plot_training([run], tmp_path / "e.svg")
    assert not list(tmp_path.glob("e.[!j]*"))
