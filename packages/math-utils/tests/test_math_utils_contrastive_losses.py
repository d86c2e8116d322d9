"""Losses against naive loops, finite differences and dense Laplacians, and what they refuse."""

import math

import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from math_utils.contrastive import InfoNCELoss, LocalContrastiveLoss, SpectralRegularization
from math_utils.errors import ContrastiveError

NAN, INFINITY = float("nan"), float("inf")
SIZES = st.integers(1, 6)


def draw(*shape, seed=0):
    generator = torch.Generator().manual_seed(seed)
    return torch.randn(*shape, generator=generator, dtype=torch.float64)


def cosine(x, y):
    """With floored norms, number by number."""
    x, y = x.tolist(), y.tolist()
    norms = [max(math.sqrt(sum(one * one for one in each)), 1e-8) for each in (x, y)]
    return sum(a * b for a, b in zip(x, y, strict=True)) / (norms[0] * norms[1])


def naive_info_nce(anchor, positive, negatives, temperature):
    own = math.exp(cosine(anchor, positive) / temperature)
    others = [math.exp(cosine(anchor, negative) / temperature) for negative in negatives]
    return -math.log(own / (own + sum(others)))


@settings(deadline=None, max_examples=40)
@given(batch=SIZES, dim=SIZES, count=st.integers(0, 5), seed=st.integers(0, 99))
def test_every_form_of_info_nce_is_the_naive_sum(batch, dim, count, seed):
    anchors, positives = draw(batch, dim, seed=seed), draw(batch, dim, seed=seed + 100)
    own, shared = draw(batch, count, dim, seed=seed + 200), draw(count, dim, seed=seed + 300)
    loss = InfoNCELoss(0.3, reduction="none")
    in_batch = [torch.cat([positives[:i], positives[i + 1 :]]) for i in range(batch)]
    for found, negatives in (
        (loss(anchors, positives, own), own),
        (loss(anchors, positives, shared), [shared] * batch),
        (loss(anchors, positives), in_batch),
    ):
        assert found.shape == (batch,)
        for i in range(batch):
            expected = naive_info_nce(anchors[i], positives[i], negatives[i], 0.3)
            assert float(found[i]) == pytest.approx(expected, abs=1e-12)
            alone = loss(anchors[i], positives[i], negatives[i])
            assert alone.shape == ()
            assert float(alone) == pytest.approx(expected, abs=1e-12)


def test_reductions_are_mean_and_sum_of_the_single_losses():
    anchors, positives, negatives = draw(5, 3), draw(5, 3, seed=1), draw(5, 4, 3, seed=2)
    similar = torch.tensor([True, False, True, False, False])
    for kind, arguments in (
        (InfoNCELoss, (anchors, positives, negatives)),
        (LocalContrastiveLoss, (anchors, positives, similar)),
    ):
        each = kind(0.9, reduction="none")(*arguments)
        torch.testing.assert_close(kind(0.9, reduction="sum")(*arguments), each.sum())
        torch.testing.assert_close(kind(0.9, reduction="mean")(*arguments), each.mean())
        torch.testing.assert_close(kind(0.9)(*arguments), each.mean())


def test_info_nce_knows_directions_and_sets_only():
    """Lengths of vectors and the order of negatives do not matter."""
    anchors, positives, negatives = draw(4, 3), draw(4, 3, seed=1), draw(4, 6, 3, seed=2)
    loss = InfoNCELoss(0.2, reduction="none")
    expected = loss(anchors, positives, negatives)
    lengths = draw(4, 6, 1, seed=3).exp()
    longer = loss(7 * anchors, 0.01 * positives, lengths * negatives)
    torch.testing.assert_close(longer, expected)
    order = torch.tensor([3, 5, 0, 1, 4, 2])
    torch.testing.assert_close(loss(anchors, positives, negatives[:, order]), expected)
    rows = torch.tensor([2, 0, 3, 1])
    in_batch = loss(anchors, positives)
    torch.testing.assert_close(loss(anchors[rows], positives[rows]), in_batch[rows])


def test_without_negatives_the_loss_and_its_gradient_are_0():
    for anchors, positives, negatives in (
        (draw(3, 2), draw(3, 2, seed=1), draw(3, 0, 2)),
        (draw(3, 2), draw(3, 2, seed=1), draw(0, 2)),
        (draw(1, 2), draw(1, 2, seed=1), None),
        (draw(2), draw(2, seed=1), None),
        (draw(2), draw(2, seed=1), draw(0, 2)),
    ):
        anchors.requires_grad_()
        loss = InfoNCELoss(0.1)(anchors, positives, negatives)
        assert loss.item() == 0
        loss.backward()
        assert not anchors.grad.any()


@pytest.mark.parametrize("form", ["own", "shared", "in batch", "one"])
def test_the_gradient_of_info_nce_is_that_of_finite_differences(form):
    anchors, positives = draw(3, 4).requires_grad_(), draw(3, 4, seed=1).requires_grad_()
    negatives = {
        "own": draw(3, 5, 4, seed=2),
        "shared": draw(5, 4, seed=2),
        "one": draw(5, 4, seed=2),
    }
    inputs = [anchors, positives]
    if form == "one":
        inputs = [each.detach()[0].requires_grad_() for each in inputs]
    if form in negatives:
        inputs.append(negatives[form].requires_grad_())
    loss = InfoNCELoss(0.5, reduction="none")
    assert torch.autograd.gradcheck(loss, inputs)
    assert torch.autograd.gradgradcheck(loss, inputs)


@pytest.mark.parametrize("dtype", [torch.float64, torch.float32, torch.bfloat16])
def test_zero_vectors_have_cosine_0_and_finite_gradients(dtype):
    anchors, positives = torch.zeros(2, 3, dtype=dtype), torch.ones(2, 3, dtype=dtype)
    positives[1] = 0
    negatives = torch.zeros(2, 4, 3, dtype=dtype)
    inputs = [each.requires_grad_() for each in (anchors, positives, negatives)]
    losses = InfoNCELoss(0.1, reduction="none")(*inputs)
    torch.testing.assert_close(losses, torch.full_like(losses, math.log(5)))
    losses.sum().backward()
    assert all(each.grad.isfinite().all() for each in inputs)


def test_short_vectors_are_measured_against_the_floor():
    """Of length 1e-9: the cosine is a tenth of the angle's."""
    unit = torch.tensor([1.0, 0.0], dtype=torch.float64)
    loss = InfoNCELoss(1.0)(1e-9 * unit, unit, torch.zeros(1, 2, dtype=torch.float64))
    assert float(loss) == pytest.approx(math.log(math.exp(0.1) + 1) - 0.1)


def test_half_precision_is_summed_in_float32():
    """In which the floor of norms is not 0."""
    anchors, positives = draw(8, 16).half(), draw(8, 16, seed=1).half()
    anchors[3] = 0
    loss = InfoNCELoss(0.05, reduction="none")
    found = loss(anchors, positives)
    assert found.dtype == torch.float32
    torch.testing.assert_close(found, loss(anchors.float(), positives.float()))


def test_the_temperature_is_the_one_that_was_set_last():
    anchors, positives = draw(4, 3), draw(4, 3, seed=1)
    loss = InfoNCELoss(0.1)
    loss.temperature = 0.7
    torch.testing.assert_close(loss(anchors, positives), InfoNCELoss(0.7)(anchors, positives))
    for bad in (0.0, -1.0, NAN, INFINITY):
        with pytest.raises(ContrastiveError, match="temperature to be positive and finite"):
            loss.temperature = bad
        with pytest.raises(ContrastiveError, match="temperature to be positive and finite"):
            InfoNCELoss(bad)
    assert loss.temperature == 0.7


@settings(deadline=None, max_examples=40)
@given(batch=SIZES, dim=SIZES, margin=st.floats(0.1, 5), seed=st.integers(0, 99))
def test_pairs_cost_what_the_definition_says(batch, dim, margin, seed):
    first, second = draw(batch, dim, seed=seed), draw(batch, dim, seed=seed + 100)
    similar = draw(batch, seed=seed + 200) > 0
    loss = LocalContrastiveLoss(margin, reduction="none")
    found = loss(first, second, similar)
    for i in range(batch):
        pairs = zip(first[i].tolist(), second[i].tolist(), strict=True)
        distance = math.sqrt(sum((a - b) ** 2 for a, b in pairs))
        expected = distance**2 if similar[i] else max(0, margin - distance) ** 2
        assert float(found[i]) == pytest.approx(expected, abs=1e-12)
        assert float(loss(first[i], second[i], similar[i])) == pytest.approx(expected, abs=1e-12)
    torch.testing.assert_close(loss(second, first, similar), found)


def test_the_gradient_of_pairs_is_that_of_finite_differences():
    first, second = draw(6, 3).requires_grad_(), draw(6, 3, seed=1).requires_grad_()
    similar = torch.tensor([True, False, True, False, False, False])
    with torch.no_grad():
        second[3] = first[3] + 0.1  # inside the margin; the fifth is far outside
        second[4] = first[4] + 10
    loss = LocalContrastiveLoss(1.0, reduction="none")
    assert torch.autograd.gradcheck(lambda *pair: loss(*pair, similar), (first, second))
    dissimilar = loss(first, second, similar)
    assert dissimilar[3] > 0
    assert dissimilar[4] == 0


def test_equal_pairs_have_the_gradient_0():
    """d = 0, where the root has no derivative, similar or not, in one batch with other pairs."""
    first = draw(3, 2).requires_grad_()
    second = first.detach().clone()
    second[2] += 0.2
    losses = LocalContrastiveLoss(1.5, reduction="none")(
        first, second, torch.tensor([True, False, False])
    )
    losses.sum().backward()
    assert losses[:2].tolist() == [0, 1.5**2]
    assert not first.grad[:2].any()
    assert first.grad[2].isfinite().all()
    assert first.grad[2].any()


def dense_laplacian(num_nodes, edges, weights, normalized):
    """From the adjacency matrix; inverse roots of degree 0 are 0."""
    adjacency = torch.zeros(num_nodes, num_nodes, dtype=torch.float64)
    for (i, j), weight in zip(edges.T.tolist(), weights.tolist(), strict=True):
        adjacency[i, j] += weight
        adjacency[j, i] += weight
    degrees = adjacency.sum(dim=1)
    laplacian = torch.diag(degrees) - adjacency
    if not normalized:
        return laplacian
    roots = [degree**-0.5 if degree else 0.0 for degree in degrees.tolist()]
    inverse = torch.diag(torch.tensor(roots, dtype=torch.float64))
    return inverse @ laplacian @ inverse


@pytest.mark.parametrize("normalized", [True, False])
@settings(deadline=None, max_examples=40)
@given(num_nodes=st.integers(2, 7), dim=SIZES, num_edges=st.integers(0, 12), seed=SIZES)
def test_the_penalty_is_the_trace_with_the_dense_laplacian(
    normalized, num_nodes, dim, num_edges, seed
):
    """Isolated nodes, several edges between two nodes and weights of 0 come up."""
    generator = torch.Generator().manual_seed(seed)
    source = torch.randint(num_nodes, (num_edges,), generator=generator)
    jump = torch.randint(1, num_nodes, (num_edges,), generator=generator)
    edges = torch.stack([source, (source + jump) % num_nodes])
    weights = torch.rand(num_edges, generator=generator, dtype=torch.float64)
    weights[::3] = 0
    states = draw(num_nodes, dim, seed=seed)
    penalty = SpectralRegularization(0.7, normalized=normalized)
    laplacian = dense_laplacian(num_nodes, edges, weights, normalized)
    expected = 0.7 * torch.trace(states.T @ laplacian @ states)
    torch.testing.assert_close(penalty(states, edges, weights), expected)
    ones = torch.ones(num_edges, dtype=torch.float64)
    expected = 0.7 * torch.trace(
        states.T @ dense_laplacian(num_nodes, edges, ones, normalized) @ states
    )
    torch.testing.assert_close(penalty(states, edges), expected)
    torch.testing.assert_close(
        penalty(states, edges.flip(0), weights), penalty(states, edges, weights)
    )


@pytest.mark.parametrize("normalized", [True, False])
def test_the_gradient_of_the_penalty_is_that_of_finite_differences(normalized):
    edges = torch.tensor([[0, 1, 2, 0], [1, 2, 3, 2]])  # node 4 is isolated
    weights = draw(4, seed=2).exp().requires_grad_()
    states = draw(5, 3).requires_grad_()
    penalty = SpectralRegularization(0.5, normalized=normalized)
    assert torch.autograd.gradcheck(lambda z, w: penalty(z, edges, w), (states, weights))
    penalty(states, edges, weights).backward()
    assert not states.grad[4].any()
    assert weights.grad.isfinite().all()


def test_the_null_space_of_the_laplacian_costs_nothing():
    edges = torch.tensor([[0, 1, 2], [1, 2, 3]])
    constant = torch.ones(4, 2, dtype=torch.float64)
    assert float(SpectralRegularization(normalized=False)(constant, edges)) == 0
    roots = torch.tensor([1.0, 2, 2, 1], dtype=torch.float64).sqrt()[:, None]
    assert float(SpectralRegularization()(roots, edges)) == pytest.approx(0, abs=1e-30)
    assert float(SpectralRegularization()(constant, edges)) > 0.1
    assert float(SpectralRegularization(0.0)(draw(4, 2), edges)) == 0


ROWS = torch.ones(3, 2)
EDGES = torch.tensor([[0, 1], [1, 2]])
PAIRS = torch.tensor([True, False, True])
BROKEN = torch.tensor([[1.0, 2.0], [NAN, 0.0], [3.0, 4.0]])


@pytest.mark.usefixtures("no_shape_hook")
@pytest.mark.parametrize(
    ("call", "message"),
    [
        (lambda: InfoNCELoss(reduction="max"), "reduction among mean, sum, none, got 'max'"),
        (lambda: LocalContrastiveLoss(reduction="max"), "reduction among"),
        (lambda: LocalContrastiveLoss(0.0), "margin to be positive and finite"),
        (lambda: LocalContrastiveLoss(NAN), "margin to be positive and finite"),
        (lambda: SpectralRegularization(-1.0), "weight to be finite and not negative"),
        (lambda: SpectralRegularization(INFINITY), "weight to be finite and not negative"),
        (lambda: InfoNCELoss()(ROWS, torch.ones(2, 2)), r"of one shape, got \[3, 2\] and \[2, 2\]"),
        (lambda: InfoNCELoss()(ROWS[:0], ROWS[:0]), "at least one row"),
        (lambda: InfoNCELoss()(ROWS[None], ROWS[None]), r"vector \[dim\] or at least one row"),
        (lambda: InfoNCELoss()(ROWS, ROWS, torch.ones(4, 3)), r"negatives .* got \[4, 3\]"),
        (lambda: InfoNCELoss()(ROWS, ROWS, torch.ones(2, 4, 2)), r"\[3, num_negatives, 2\], got"),
        (lambda: InfoNCELoss()(ROWS[0], ROWS[0], torch.ones(2, 4, 2)), "negatives of the shape"),
        (lambda: InfoNCELoss()(BROKEN, ROWS), r"anchors\[1\]: expected finite"),
        (lambda: InfoNCELoss()(ROWS, BROKEN), r"positives\[1\]: expected finite"),
        (lambda: InfoNCELoss()(ROWS, ROWS, BROKEN), r"negatives\[1\]: expected finite"),
        (lambda: InfoNCELoss()(3e38 * ROWS, ROWS), r"norms of anchors\[0\]"),
        (lambda: LocalContrastiveLoss()(ROWS, ROWS[:2], PAIRS), "of one shape"),
        (lambda: LocalContrastiveLoss()(ROWS, ROWS, PAIRS[:2]), r"boolean of the shape \[3\]"),
        (lambda: LocalContrastiveLoss()(ROWS, ROWS, PAIRS.long()), "to be boolean"),
        (lambda: LocalContrastiveLoss()(BROKEN, ROWS, PAIRS), r"first\[1\]: expected finite"),
        (lambda: LocalContrastiveLoss()(ROWS, BROKEN, PAIRS), r"second\[1\]: expected finite"),
        (lambda: SpectralRegularization()(ROWS, EDGES[:1]), r"edges \[2, edge\]"),
        (lambda: SpectralRegularization()(ROWS[0], EDGES), r"embeddings \[node, dim\]"),
        (
            lambda: SpectralRegularization()(ROWS, EDGES + 1),
            r"edge 1: .* from 0 to 2, got \[2, 3\]",
        ),
        (lambda: SpectralRegularization()(ROWS, EDGES - 1), r"edge 0: .* got \[-1, 0\]"),
        (lambda: SpectralRegularization()(ROWS, EDGES[[0, 0]]), "edge 0 joins node 0 to itself"),
        (lambda: SpectralRegularization()(ROWS, EDGES, ROWS[:, 0]), "one weight for each of 2"),
        (
            lambda: SpectralRegularization()(ROWS, EDGES, torch.tensor([1.0, -2.0])),
            "edge 1: .* got -2.0",
        ),
        (lambda: SpectralRegularization()(BROKEN, EDGES), r"embeddings\[1\]: expected finite"),
    ],
)
def test_what_is_ill_defined_is_refused_with_the_reason(call, message):
    with pytest.raises(ContrastiveError, match=message):
        call()
