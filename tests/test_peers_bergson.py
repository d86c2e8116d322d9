"""The benchmark's systems fit the same Fisher: ours, kronfluence's and bergson's, tiny and exact.

bergson 2.5.1 leaves the last token of every sequence out of its covariances (the collection mask
of ``data.pad_and_tensor``), and divides what it sums by the positions that remain. With the same
tokens left out of ours, all numbers agree; eigenvalues and scores see every token in both.
"""

from dataclasses import replace
from pathlib import Path

import pytest
import torch

EXPERIMENTS = Path(__file__).parents[1] / "experiments"

pytestmark = pytest.mark.peers


@pytest.fixture(scope="module", autouse=True)
def path_of_experiments():
    with pytest.MonkeyPatch.context() as patch:
        patch.syspath_prepend(EXPERIMENTS)
        yield


@pytest.fixture(scope="module")
def config():
    from utils.ekfac_model import Config

    return Config(
        num_layers=2, width=16, num_examples=12, num_queries=3, min_length=4, max_length=9,
        fit_tokens=40, score_tokens=40, threads=1, device="cpu", peer_batch_sizes=(2, 4),
    )  # fmt: skip


def scores_of(system):
    from utils.ekfac_model import STAGES

    for stage in STAGES:
        found = system.run(stage)
    return found


def without_last_positions(pair):
    rows = torch.tensor(pair.lengths).cumsum(0) - 1
    kept = torch.ones(len(pair.inputs), dtype=torch.bool)
    kept[rows] = False
    return replace(
        pair,
        inputs=pair.inputs[kept],
        output_gradients=pair.output_gradients[kept],
        lengths=tuple(length - 1 for length in pair.lengths),
        _memo={},
    )


def test_scores_of_bergson_are_ours_once_the_last_tokens_leave_the_covariances(config, monkeypatch):
    from utils.ekfac_bergson import Bergson, BergsonSettings
    from utils.ekfac_ours import CovarianceSums, Ours

    theirs = scores_of(Bergson(config, BergsonSettings(36, 36, 36)))
    whole = scores_of(Ours(config))
    add = CovarianceSums.add
    monkeypatch.setattr(
        CovarianceSums, "add", lambda self, pair: add(self, without_last_positions(pair))
    )
    ours = scores_of(Ours(config))
    # float32 on both sides, and damping by 0.1 of the mean eigenvalue.
    assert (ours - theirs).norm() < 1e-4 * ours.norm()
    assert (whole - theirs).norm() > 1e-3 * ours.norm()


def test_a_batch_size_of_bergson_is_chosen_and_changes_no_score(config):
    from utils.ekfac_bergson import Bergson, BergsonSettings, choose_settings

    chosen = choose_settings(config)
    assert {chosen.covariances, chosen.lambdas, chosen.scores} <= {18, 36}
    one, other = (scores_of(Bergson(config, BergsonSettings(n, n, n))) for n in (9, 72))
    assert (one - other).norm() < 1e-4 * one.norm()


def test_scores_of_kronfluence_are_ours(config):
    from utils.ekfac_kronfluence import Kronfluence, KronfluenceSetting, KronfluenceSettings
    from utils.ekfac_ours import Ours

    setting = KronfluenceSetting(4, by_length=True)
    theirs = scores_of(Kronfluence(config, KronfluenceSettings(setting, setting, setting)))
    ours = scores_of(Ours(config))
    assert (ours - theirs).norm() < 1e-4 * ours.norm()
