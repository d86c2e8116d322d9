"""Mined negatives against naive searches, and drawn ones against their exact probabilities."""

from itertools import permutations

import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from math_utils.contrastive import HardNegativeMiner
from math_utils.contrastive.mining import MINING_STRATEGIES
from math_utils.errors import ContrastiveError
from scipy.stats import chisquare

NAN = float("nan")
SIZES = st.integers(1, 5)


def draw(*shape, seed=0):
    generator = torch.Generator().manual_seed(seed)
    return torch.randn(*shape, generator=generator, dtype=torch.float64)


def seeded(seed=0):
    return torch.Generator().manual_seed(seed)


def at_cosines(*values):
    """An anchor and unit vectors at these cosines to it."""
    cosines = torch.tensor(values, dtype=torch.float64)
    rows = torch.stack([cosines, (1 - cosines.square()).sqrt()], dim=1)
    return torch.tensor([1.0, 0.0], dtype=torch.float64), rows


def naive(strategy, anchor, candidates, k, positive, margin, allowed):
    """The definition for one anchor, by sorting lists."""
    similarity = torch.cosine_similarity(anchor[None], candidates, dim=1).tolist()
    order = sorted(
        (i for i in range(len(candidates)) if allowed[i]), key=lambda i: (-similarity[i], i)
    )
    if strategy == "semi_hard":
        own = 1 - float(torch.cosine_similarity(anchor, positive, dim=0))
        band = [i for i in order if own < 1 - similarity[i] < own + margin]
        order = band + [i for i in order if i not in band]
    return order[:k]


@pytest.mark.parametrize("strategy", ["hardest", "semi_hard"])
@settings(deadline=None, max_examples=60)
@given(
    batch=SIZES, dim=st.integers(2, 5), count=st.integers(1, 9), seed=st.integers(0, 999),
    margin=st.floats(0.05, 1.5),
)  # fmt: skip
def test_hard_negatives_are_those_of_the_definition(strategy, batch, dim, count, seed, margin):
    anchors, positives = draw(batch, dim, seed=seed), draw(batch, dim, seed=seed + 1000)
    shared, own = draw(count, dim, seed=seed + 2000), draw(batch, count, dim, seed=seed + 3000)
    allowed = draw(batch, count, seed=seed + 4000) > -0.5
    allowed[:, 0] = True
    k = int(allowed.sum(dim=1).min())
    miner = HardNegativeMiner(strategy, margin=margin)
    mined = miner.mine(anchors, shared, k, positives, allowed=allowed)
    mined_own = miner.mine(anchors, own, k, positives, allowed=allowed)
    everywhere = miner.mine(anchors, shared, count, positives)
    assert mined.shape == (batch, k)
    for i in range(batch):
        rest = (k, positives[i], margin, allowed[i])
        assert mined[i].tolist() == naive(strategy, anchors[i], shared, *rest)
        assert mined_own[i].tolist() == naive(strategy, anchors[i], own[i], *rest)
        alone = miner.mine(anchors[i], own[i], k, positives[i], allowed=allowed[i])
        assert torch.equal(alone, mined_own[i])
        assert sorted(everywhere[i].tolist()) == list(range(count))


def test_semi_hard_negatives_lie_strictly_between_and_are_filled_with_the_hardest():
    """The positive at distance 0.4, margin 0.3: the band is (0.4, 0.7)."""
    anchor, candidates = at_cosines(0.9, 0.55, 0.1, 0.35, 0.7, 0.2)
    positive = at_cosines(0.6)[1][0]
    miner = HardNegativeMiner("semi_hard", margin=0.3)
    assert miner.mine(anchor, candidates, 1, positive).tolist() == [1]
    assert miner.mine(anchor, candidates, 2, positive).tolist() == [1, 3]
    assert miner.mine(anchor, candidates, 4, positive).tolist() == [1, 3, 0, 4]
    assert miner.mine(anchor, candidates, 6, positive).tolist() == [1, 3, 0, 4, 5, 2]
    # Exactly as far as the positive, and exactly at the margin, are both outside.
    anchor, candidates = at_cosines(0.0, 1.0, -1.0)
    near, opposite = at_cosines(1.0)[1][0], HardNegativeMiner("semi_hard", margin=1.0)
    assert opposite.mine(anchor, candidates, 3, near).tolist() == [1, 0, 2]
    wider = HardNegativeMiner("semi_hard", margin=1.0 + 1e-9)
    assert wider.mine(anchor, candidates, 3, near).tolist() == [0, 1, 2]


def test_equally_hard_candidates_keep_their_order():
    candidates = torch.tensor([[1.0, 0.0], [2.0, 0.0], [0.0, 1.0], [4.0, 0.0]]).repeat(20, 1)
    mined = HardNegativeMiner().mine(torch.tensor([1.0, 0.0]), candidates, 60)
    assert mined.tolist() == [i for i in range(80) if i % 4 != 2]


@pytest.mark.parametrize("strategy", MINING_STRATEGIES)
def test_lengths_do_not_matter_and_all_candidates_are_a_permutation(strategy):
    anchors, positives, candidates = draw(6, 4), draw(6, 4, seed=1), draw(15, 4, seed=2)
    lengths = draw(15, 1, seed=3).exp()

    def mine(anchors, positives, candidates):
        miner = HardNegativeMiner(strategy, generator=seeded(5))
        return miner.mine(anchors, candidates, 15, positives)

    mined = mine(anchors, positives, candidates)
    assert torch.equal(mined, mine(3 * anchors, 0.1 * positives, lengths * candidates))
    assert torch.equal(mined.sort(dim=1).values, torch.arange(15).expand(6, 15))


def test_zero_vectors_are_as_near_as_orthogonal_ones():
    anchor, candidates = at_cosines(0.5, -0.5)
    candidates = torch.cat([candidates, torch.zeros(1, 2, dtype=torch.float64)])
    assert HardNegativeMiner().mine(anchor, candidates, 3).tolist() == [0, 2, 1]
    assert HardNegativeMiner().mine(0 * anchor, candidates, 3).tolist() == [0, 1, 2]


NUM_DRAWS = 40_000


def frequencies(mined, sequences):
    """How often each sequence was drawn."""
    codes = [tuple(row) for row in mined.tolist()]
    return [codes.count(sequence) for sequence in sequences]


def sequence_probability(sequence, weights):
    """Plackett-Luce: each draw by weight among those that are left."""
    probability, left = 1.0, sum(weights)
    for one in sequence:
        probability *= weights[one] / left
        left -= weights[one]
    return probability


@pytest.mark.parametrize("temperature", [0.5, 1.0])
@pytest.mark.parametrize("k", [1, 2, 3])
def test_weighted_draws_have_the_probabilities_of_the_softmax_without_replacement(k, temperature):
    """First draws, ordered pairs and ordered triples of four candidates, by chi-squared."""
    anchor, candidates = at_cosines(0.8, 0.1, -0.6, 0.3)
    miner = HardNegativeMiner("distance_weighted", temperature=temperature, generator=seeded(1))
    mined = miner.mine(anchor.expand(NUM_DRAWS, 2), candidates, k)
    weights = (torch.tensor([0.8, 0.1, -0.6, 0.3]) / temperature).exp().tolist()
    sequences = list(permutations(range(4), k))
    expected = [NUM_DRAWS * sequence_probability(one, weights) for one in sequences]
    assert min(expected) > 5
    assert chisquare(frequencies(mined, sequences), expected).pvalue > 1e-3
    # The same frequencies do not fit even draws, nor another temperature.
    even = [NUM_DRAWS / len(sequences)] * len(sequences)
    assert chisquare(frequencies(mined, sequences), even).pvalue < 1e-6


def test_random_draws_are_even_over_ordered_pairs():
    anchor, candidates = at_cosines(0.8, 0.1, -0.6, 0.3)
    miner = HardNegativeMiner("random", generator=seeded(2))
    mined = miner.mine(anchor.expand(NUM_DRAWS, 2), candidates, 2)
    sequences = list(permutations(range(4), 2))
    assert chisquare(frequencies(mined, sequences)).pvalue > 1e-3


def test_draws_among_the_allowed_have_their_probabilities_alone():
    anchor, candidates = at_cosines(0.8, 0.1, -0.6, 0.3)
    allowed = torch.tensor([False, True, True, True])
    miner = HardNegativeMiner("distance_weighted", temperature=0.5, generator=seeded(3))
    mined = miner.mine(anchor.expand(NUM_DRAWS, 2), candidates, 2, allowed=allowed)
    weights = [0.0, *(torch.tensor([0.1, -0.6, 0.3]) / 0.5).exp().tolist()]
    sequences = list(permutations([1, 2, 3], 2))
    expected = [NUM_DRAWS * sequence_probability(one, weights) for one in sequences]
    assert chisquare(frequencies(mined, sequences), expected).pvalue > 1e-3


@pytest.mark.parametrize("strategy", ["distance_weighted", "random"])
def test_the_generator_alone_decides_the_draws(strategy):
    anchors, candidates = draw(8, 3), draw(30, 3, seed=1)
    before = torch.get_rng_state()

    def mine(seed):
        return HardNegativeMiner(strategy, generator=seeded(seed)).mine(anchors, candidates, 5)

    first = mine(7)
    torch.manual_seed(12345)
    assert torch.equal(mine(7), first)
    assert not torch.equal(mine(8), first)
    torch.set_rng_state(before)
    mine(7)
    assert torch.equal(torch.get_rng_state(), before)
    miner = HardNegativeMiner(strategy, generator=seeded(7))
    assert torch.equal(miner.mine(anchors, candidates, 5), first)
    assert not torch.equal(miner.mine(anchors, candidates, 5), first)  # it goes on


def test_a_low_temperature_draws_the_hardest():
    anchors, candidates = draw(5, 3), draw(20, 3, seed=1)
    miner = HardNegativeMiner("distance_weighted", generator=seeded())
    miner.temperature = 1e-6
    hardest = HardNegativeMiner().mine(anchors, candidates, 4)
    assert torch.equal(miner.mine(anchors, candidates, 4), hardest)


def test_nothing_is_kept_for_gradients():
    anchors, candidates = draw(3, 2).requires_grad_(), draw(4, 2, seed=1).requires_grad_()
    kept = []
    with torch.autograd.graph.saved_tensors_hooks(kept.append, lambda tensor: tensor):
        HardNegativeMiner().mine(anchors, candidates, 2)
        assert not kept
        (anchors @ candidates.T).exp()
    assert kept


ROWS, CANDIDATES = torch.eye(3), torch.eye(3).repeat(2, 1)
BROKEN = torch.tensor([[1.0, 0.0, 0.0], [0.0, NAN, 0.0], [0.0, 0.0, 1.0]])


@pytest.mark.usefixtures("no_shape_hook")
@pytest.mark.parametrize(
    ("call", "message"),
    [
        (lambda: HardNegativeMiner("easiest"), "strategy among hardest, semi_hard, distance"),
        (lambda: HardNegativeMiner("semi_hard", margin=0.0), "margin to be positive and finite"),
        (
            lambda: HardNegativeMiner("distance_weighted", temperature=0.0, generator=seeded()),
            "temperature to be positive and finite",
        ),
        (lambda: HardNegativeMiner("random"), "a generator for the strategy random"),
        (lambda: HardNegativeMiner("distance_weighted"), "a generator for the strategy distance"),
        (
            lambda: HardNegativeMiner("semi_hard").mine(ROWS, CANDIDATES, 2),
            "the positive for the strategy semi_hard",
        ),
        (
            lambda: HardNegativeMiner("semi_hard").mine(ROWS, CANDIDATES, 2, ROWS[:2]),
            "anchor and positive of one shape",
        ),
        (lambda: HardNegativeMiner().mine(ROWS, CANDIDATES, 0), "k to be a whole number of at"),
        (lambda: HardNegativeMiner().mine(ROWS, CANDIDATES, -1), "k to be a whole number of at"),
        (lambda: HardNegativeMiner().mine(ROWS, CANDIDATES, 7), "at most .* candidates, 6, got 7"),
        (lambda: HardNegativeMiner().mine(ROWS, CANDIDATES[:0], 1), "candidates, 0, got 1"),
        (
            lambda: HardNegativeMiner().mine(
                ROWS,
                CANDIDATES,
                2,
                allowed=torch.tensor([[True] * 6, [True] + [False] * 5, [True] * 6]),
            ),
            r"\(allowed\) candidates, 1, got 2",
        ),
        (
            lambda: HardNegativeMiner().mine(ROWS, CANDIDATES, 2, allowed=torch.ones(3, 6)),
            "allowed to be boolean",
        ),
        (
            lambda: HardNegativeMiner().mine(
                ROWS, CANDIDATES, 2, allowed=torch.ones(3, 5, dtype=torch.bool)
            ),
            r"of the shape \[3, 6\]",
        ),
        (lambda: HardNegativeMiner().mine(ROWS, CANDIDATES[:, :2], 1), "candidates of the shape"),
        (lambda: HardNegativeMiner().mine(ROWS[:2], torch.ones(3, 4, 3), 1), "candidates of the"),
        (lambda: HardNegativeMiner().mine(ROWS[:0], CANDIDATES, 1), "at least one row"),
        (lambda: HardNegativeMiner().mine(BROKEN, CANDIDATES, 1), r"anchor\[1\]: expected finite"),
        (lambda: HardNegativeMiner().mine(ROWS, BROKEN, 1), r"candidates\[1\]: expected finite"),
        (
            lambda: HardNegativeMiner("semi_hard").mine(ROWS, CANDIDATES, 1, BROKEN),
            r"positive\[1\]: expected finite",
        ),
    ],
)
def test_what_is_ill_defined_is_refused_with_the_reason(call, message):
    with pytest.raises(ContrastiveError, match=message):
        call()
