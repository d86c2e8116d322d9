"""The data set that mixes sources."""

from collections import Counter

import pytest
import torch
from data_handler.influence import WeightedSourceDataset
from math_utils.errors import InfluenceError
from scipy.stats import chisquare
from torch.utils.data import DataLoader

SOURCES = {"a": [("a", n) for n in range(5)], "b": [("b", n) for n in range(3)], "c": [("c", 0)]}


def names_of(dataset):
    return Counter(dataset[index][0] for index in range(len(dataset)))


def test_sources_come_by_weight_and_examples_evenly_within():
    weights = {"a": 0.5, "b": 0.3, "c": 0.2}
    dataset = WeightedSourceDataset(SOURCES, num_samples=6000, weights=weights, seed=3)
    found = names_of(dataset)
    assert chisquare([found[n] for n in "abc"], [6000 * weights[n] for n in "abc"]).pvalue > 1e-3
    within = Counter(n for name, n in (dataset[i] for i in range(6000)) if name == "a")
    assert chisquare([within[n] for n in range(5)]).pvalue > 1e-3


def test_an_index_stands_for_one_example_whatever_is_read_before():
    one, other = (WeightedSourceDataset(SOURCES, num_samples=50, seed=1) for _ in range(2))
    assert [one[i] for i in range(50)] == [other[i] for i in reversed(range(50))][::-1]
    assert [one[i] for i in range(50)] != [
        WeightedSourceDataset(SOURCES, num_samples=50, seed=2)[i] for i in range(50)
    ]


def test_reading_leaves_the_global_random_state_alone():
    before = torch.random.get_rng_state()
    names_of(WeightedSourceDataset(SOURCES))
    assert torch.equal(before, torch.random.get_rng_state())


@pytest.mark.parametrize("num_workers", [0, 2])
def test_a_change_of_weights_reaches_the_workers_of_a_running_loader(num_workers):
    dataset = WeightedSourceDataset(
        SOURCES, num_samples=400, weights={"a": 1.0, "b": 0.0, "c": 0.0}
    )
    loader = DataLoader(
        dataset, batch_size=4, num_workers=num_workers, collate_fn=lambda rows: [r[0] for r in rows]
    )
    seen = []
    for number, batch in enumerate(loader):
        if number == 20:
            dataset.set_weights({"a": 0.0, "b": 0.0, "c": 1.0})
        seen.append(set(batch))
    ahead = 1 + 2 * num_workers  # batches that workers may have fetched before the change
    assert seen[:20] == [{"a"}] * 20
    assert seen[20 + ahead :] == [{"c"}] * (100 - 20 - ahead)
    assert dataset.weights == {"a": 0, "b": 0, "c": 1}


def test_the_length_is_that_of_all_sources_unless_given():
    assert len(WeightedSourceDataset(SOURCES)) == 9
    dataset = WeightedSourceDataset(SOURCES, num_samples=4)
    with pytest.raises(IndexError):
        dataset[4]


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        ({"sources": {}}, "at least one source"),
        ({"sources": {"a": []}}, "source a is empty"),
        ({"sources": SOURCES, "num_samples": 0}, "num_samples"),
        ({"sources": SOURCES, "weights": {"a": 1.0}}, "weights of the sources a, b, c"),
        ({"sources": SOURCES, "weights": {"a": 1.0, "b": 0.5, "c": 0.5}}, "sum to 1"),
        ({"sources": SOURCES, "weights": {"a": 1.5, "b": -0.5, "c": 0.0}}, "not negative"),
        ({"sources": SOURCES, "seed": -1}, "seed"),
    ],
)
def test_bad_arguments_are_refused(arguments, message):
    with pytest.raises(InfluenceError, match=message):
        WeightedSourceDataset(**arguments)
