"""The parts of plans: trials of batches, eigendecompositions, what is kept, what is free."""

from contextlib import contextmanager
from types import SimpleNamespace

import numpy as np
import torch
from if_query.datasets import TokenDataset
from if_query.device_memory import Memory
from if_query.encoding import EncodedExample
from if_query.plan import room, trials
from if_query.plan.eigen_costs import EigenCosts
from if_query.plan.replay import Replay
from if_query.plan.report import Plan, StagePlan
from math_utils.curvature import CurvatureConfig
from math_utils.linear_maps import find_linear_maps


def test_batches_are_kept_from_the_first_on_as_long_as_they_fit_together():
    found = Replay(np.array([5.0, 3.0, 1.0]), np.zeros(3))
    assert [found.kept(room) for room in (0, 4, 5, 7, 8, 9, 99)] == [0, 0, 1, 1, 2, 3, 3]


def test_what_is_free_is_said_and_what_is_not_enough_is_a_warning(tmp_path, monkeypatch):
    plan = Plan([StagePlan("a", 5 * 10**9, 0, 3 * 10**9, 1.0)], 0)
    monkeypatch.setattr(room, "held_memory", lambda: Memory(10**9))

    def lines(memory: float, disk: float) -> list[str]:
        monkeypatch.setattr(room, "free_host_memory", lambda: int(memory * 1e9))
        usage = SimpleNamespace(free=int(disk * 1e9))
        asked_at = []
        monkeypatch.setattr(room.shutil, "disk_usage", lambda path: asked_at.append(path) or usage)
        found = room.describe_room(plan, tmp_path / "not" / "there")
        assert asked_at == [tmp_path]
        return found

    enough = [f"free now: 5 GB of host memory, 3 GB on disk at {tmp_path}"]
    assert lines(4.0, 3.0) == enough
    first, second = lines(3.9, 2.9)[1:]
    assert first.startswith("warning: 5 GB of host memory are needed, 4.9 GB are there")
    assert second.startswith("warning: 3 GB on disk are needed, 2.9 GB are there")
    assert len(lines(3.9, 3.0)) == len(lines(4.0, 2.9)) == 2


def costs_of(widths, *, threads=2):
    model = torch.nn.ModuleDict(
        {name: torch.nn.Linear(*shape, bias=False, device="meta") for name, shape in widths.items()}
    )
    maps = find_linear_maps(model, lambda name: True)
    own = EigenCosts(maps, CurvatureConfig(), dict.fromkeys(maps, torch.device("cpu")))
    own._workers = threads
    own._timed = {(width, torch.device("cpu"), 1): width * 1.0 for width in (8, 16, 1024)}
    return own


def test_a_basis_that_maps_share_is_timed_once_and_widths_beyond_grow_cubically():
    costs = costs_of({"gate": (8, 16), "up": (8, 16), "down": (2048, 8)})
    assert costs.seconds({}) == (8 + 16 + 8 + 16 + 8 * 1024 + 8) / 2
    assert costs.seconds({"up": "gate"}) == (8 + 16 + 16 + 8 * 1024 + 8) / 2


def test_covariances_bases_and_decompositions_under_way_are_held_at_once():
    """One map: both covariances, their bases, and four matrices of each decomposition under way."""
    costs = costs_of({"one": (8, 16)}, threads=1)
    pair = 4 * (8**2 + 16**2)
    decomposing = 4 * 8 * 16**2  # in float64
    assert costs.peak_bytes({}, 4) == 2 * pair + max(decomposing, 2 * pair)
    assert costs_of({"one": (8, 16)}).peak_bytes({}, 4) == 2 * pair + 2 * decomposing


def test_of_an_input_that_maps_share_the_covariance_is_read_again_but_not_its_basis():
    costs = costs_of({"gate": (8, 16), "up": (8, 16)}, threads=1)
    outputs, inputs = 4 * 16**2, 4 * 8**2
    own = 2 * outputs + inputs + 2 * inputs  # two of up's outputs, its inputs, gate's remembered
    assert costs.peak_bytes({"up": "gate"}, 4) == 2 * outputs + own + 4 * 8 * 16**2


def test_the_longest_and_the_most_labelled_batches_are_tried_and_stand_ins_taken_off(monkeypatch):
    """Eleven batches of one row each, of which five over the range are tried anyway."""
    lengths = range(22, 0, -2)
    labels = [[-100] * length for length in lengths]
    labels[3] = [5] * 16
    dataset = TokenDataset.from_examples(
        EncodedExample([5] * length, own) for length, own in zip(lengths, labels, strict=True)
    )
    tried: list[int] = []
    peaks = {row: 1000 + 10 * row for row in range(11)}

    @contextmanager
    def peak_of():
        found = Memory()
        yield found
        found.host, found.device = peaks[tried[-1]], 2 * peaks[tried[-1]]

    monkeypatch.setattr(trials, "peak_of", peak_of)

    def tries(on_host: bool) -> Memory:
        tried.clear()
        found = trials.try_batches(
            dataset,
            [[row] for row in range(11)],
            lambda rows: tried.append(rows[0]),
            stand_ins=lambda rows: 500 if rows[0] == 10 else 100,
            on_host=on_host,
        )
        assert len(found.seconds) == 11
        return found.peak

    # The seventh of ten, of row 8, is the greatest without what stands in.
    assert tries(on_host=True) == Memory(1080 - 100, 2200)
    assert sorted(set(tried)) == [0, 2, 3, 5, 8, 10]
    assert tries(on_host=False) == Memory(1100, 2160 - 100)
