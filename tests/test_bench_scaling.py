"""The benchmark of growth, at two tiny points per factor; and its exponents."""

import json
from pathlib import Path

import pytest

EXPERIMENTS = Path(__file__).parents[1] / "experiments"
STAGES = ["covariances", "eigendecompositions", "corrected eigenvalues", "scores"]


@pytest.fixture(scope="module", autouse=True)
def path_of_experiments():
    with pytest.MonkeyPatch.context() as patch:
        patch.syspath_prepend(EXPERIMENTS)
        yield


def test_every_factor_is_measured_fitted_and_drawn(tmp_path, capsys):
    from bench_scaling import Config, main

    folder = tmp_path / "new"
    main(Config(quick=True, repeats=1, threads=1, device="cpu", output_dir=folder))
    written = json.loads((folder / "points.json").read_text())
    factors = ["examples", "queries", "width", "layers", "length"]
    assert list(written["curves"]) == factors
    for curve in written["curves"].values():
        assert len({point["value"] for point in curve}) == len(curve) == 2
        assert all(seconds > 0 for point in curve for seconds in point["seconds"]["scores"])
    found = {(one["factor"], one["stage"]): one for one in written["exponents"]}
    assert set(found) == {(f, s) for f in factors for s in [*STAGES, "peak memory"]}
    # What the arithmetic says: examples of one length are so many times the work of one.
    assert found["examples", "covariances"]["expected"] == pytest.approx(1)
    assert found["queries", "covariances"]["expected"] == pytest.approx(0)
    assert found["width", "eigendecompositions"]["expected"] == pytest.approx(3)
    assert found["layers", "eigendecompositions"]["expected"] == pytest.approx(1)
    markdown = (folder / "tables.md").read_text()
    assert "examples 8" in markdown
    assert "examples 8" in capsys.readouterr().out
    assert "| width | corrected eigenvalues |" in markdown
    assert (folder / "scaling.png").read_bytes()[:4] == b"\x89PNG"


def test_exponents_of_power_laws_are_their_powers_and_ranges_those_of_the_rounds():
    from utils.ekfac_scaling_report import Point, exponents

    def point(value):
        # Rounds grow with powers 1, 2 and 3; medians with the middle one.
        seconds = {stage: [value, value**2, value**3] for stage in STAGES}
        return Point(value, seconds, 5 * value**0.5, dict.fromkeys(STAGES, 7 * value**4))

    *times, memory = exponents({"width": [point(value) for value in (2, 4, 16)]})
    assert [one.stage for one in times] == STAGES
    for one in times:
        assert (one.low, one.measured, one.high) == pytest.approx((1, 2, 3))
        assert one.expected == pytest.approx(4)
    assert memory.measured == pytest.approx(0.5)
    assert memory.expected is None
