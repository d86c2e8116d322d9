"""Curvature health: what the page says of factors, and what it warns of."""

import json

import numpy as np
import pytest
from if_query.influence_results import InfluenceResults
from if_query.report import health
from if_query.report.health import describe_health, describe_module, find_factors

SHAPE = {"d_in": 2, "d_out": 2}


def test_damping_counts_directions_as_the_formula_says():
    values = np.array([4.0, 1.0, 0.0, 3.0], dtype=np.float32)
    found = describe_module("m", (values, True), SHAPE, 0.5, relative=True)
    assert found["damping"] == 1.0  # half of the mean, which is 2
    assert found["effective_share"] == pytest.approx((4 / 5 + 1 / 2 + 0 + 3 / 4) / 4, rel=1e-3)
    assert found["share_below_damping"] == 0.25
    assert found["values"][0] == 4.0
    absolute = describe_module("m", (values, True), SHAPE, 0.5, relative=False)
    assert absolute["damping"] == 0.5


def test_eigenvalues_below_zero_not_finite_or_all_zero_are_counted():
    values = np.array([1.0, -1.0, np.nan, np.inf], dtype=np.float32)
    found = describe_module("m", (values, True), SHAPE, 0.1, relative=True)
    assert (found["num_negative"], found["num_not_finite"]) == (1, 2)
    none = describe_module("m", (np.zeros(4, dtype=np.float32), True), SHAPE, 0.1, relative=True)
    assert (none["largest"], none["effective_share"]) == (0.0, 0.0)


def test_of_a_large_map_evenly_spaced_rows_are_read_and_it_is_marked(make_results, monkeypatch):
    folder = make_results()
    results = InfluenceResults.load(folder)
    factors = find_factors(results.metadata, None)
    whole = describe_health(results.metadata, factors)["modules"][0]
    monkeypatch.setattr(health, "MOST_VALUES", 15)
    part = describe_health(results.metadata, factors)["modules"][0]
    assert (whole["complete"], part["complete"]) == (True, False)
    assert part["largest"] <= whole["largest"]
    assert part["places"][-1] == 100


def test_what_a_reader_should_be_wary_of_is_said(make_results, make_factors):
    folder = make_results(unscored_train=["train_1"], fisher="empirical")
    results = InfluenceResults.load(folder)
    place = folder.with_name("results-factors")
    fitted = json.loads((place / "metadata.json").read_text())
    fitted["num_positions"] = dict.fromkeys(fitted["num_positions"], 3)
    fitted["untracked_expert_share"] = 0.4
    (place / "metadata.json").write_text(json.dumps(fitted))
    warnings = describe_health(results.metadata, find_factors(results.metadata, None))["warnings"]
    text = " ".join(warnings)
    for part in (
        "Only 31 % of the model's parameters",
        "empirical Fisher",
        "Training examples without a label token, whose scores are 0: 1.",
        "40 % of the parameters are routed experts",
        "4 of 4 covariances come from fewer tokens",
    ):
        assert part in text
    sound = make_results("sound", tracked_share=0.9)
    metadata = InfluenceResults.load(sound).metadata
    assert describe_health(metadata, find_factors(metadata, None))["warnings"] == []
