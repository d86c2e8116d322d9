"""Similarities, normalisation and layer weights against their formulas and laws."""

import itertools
import math
from dataclasses import replace

import pytest
import torch
from attribution.aggregation import Aggregation, aggregate_layers, learn_layer_weights
from attribution.errors import AttributionError
from attribution.scoring import ScoreOptions, normalise, score_layers, score_vectors
from attribution.vectors import LayerVectors
from torch import Tensor

NUM_LAYERS, NUM_DOCUMENTS, NUM_QUERIES, HIDDEN = 4, 40, 6, 7


def vectors(num_examples: int, seed: int, what: str = "gradient") -> LayerVectors:
    generator = torch.Generator().manual_seed(seed)
    mixing = torch.randn(HIDDEN, HIDDEN, generator=torch.Generator().manual_seed(0)).double()
    values = torch.randn(NUM_LAYERS, num_examples, HIDDEN, generator=generator).double()
    return LayerVectors(values @ mixing + 1.5, (0, 1, 3, 4), what)


def pair() -> tuple[LayerVectors, LayerVectors]:
    return vectors(NUM_QUERIES, 1), vectors(NUM_DOCUMENTS, 2)


def test_cosines_and_dots_are_those_of_every_pair() -> None:
    queries, documents = pair()
    cosines = score_layers(queries, documents)
    dots = score_layers(queries, documents, ScoreOptions(similarity="dot"))
    for layer, query, document in itertools.product(range(NUM_LAYERS), range(3), range(5)):
        a, b = queries.values[layer, query], documents.values[layer, document]
        assert dots[layer, query, document] == pytest.approx(float(a @ b))
        expected = float(a @ b / a.norm() / b.norm())
        assert cosines[layer, query, document] == pytest.approx(expected)


def test_cosines_of_tiny_float32_vectors_do_not_underflow() -> None:
    values = torch.tensor([[[3e-30, -4e-30], [1e-30, 0.0]]])
    one = LayerVectors(values, (1,), "gradient")
    found = score_layers(one, one)[0]
    torch.testing.assert_close(found, torch.tensor([[1.0, 0.6], [0.6, 1.0]]))


def test_z_scores_have_the_documents_mean_and_spread_and_constants_count_nothing() -> None:
    queries, documents = (each.values[0].clone() for each in pair())
    queries[:, 2], documents[:, 2] = 9.7, 0.1
    a, b = normalise(queries, documents, "z-score", damping=0.1)
    mean, std = documents.mean(dim=0), documents.std(dim=0, correction=0)
    kept = [0, 1, 3, 4, 5, 6]
    torch.testing.assert_close(a[:, kept], ((queries - mean) / std)[:, kept])
    torch.testing.assert_close(b[:, kept], ((documents - mean) / std)[:, kept])
    assert (a[:, 2] == 0).all()
    assert (b[:, 2] == 0).all()


def test_whitening_is_the_damped_inverse_root_and_tends_to_the_identity_covariance() -> None:
    queries, documents = (each.values[1] for each in pair())
    a, b = normalise(queries, documents, "whiten", damping=0.3)
    centred = documents - documents.mean(dim=0)
    covariance = centred.T @ centred / NUM_DOCUMENTS
    damped = covariance + 0.3 * covariance.trace() / HIDDEN * torch.eye(HIDDEN)
    torch.testing.assert_close(b @ b.T, centred @ torch.linalg.inv(damped) @ centred.T)
    shifted = queries - documents.mean(dim=0)
    torch.testing.assert_close(a @ b.T, shifted @ torch.linalg.inv(damped) @ centred.T)
    _, white = normalise(queries, documents, "whiten", damping=1e-12)
    torch.testing.assert_close(white.T @ white / NUM_DOCUMENTS, torch.eye(HIDDEN).double())


@pytest.mark.parametrize("normalisation", ["none", "z-score", "whiten"])
@pytest.mark.parametrize("similarity", ["cosine", "dot"])
@pytest.mark.parametrize("aggregation", ["mean", "top-3", (0.1, 0.0, 0.6, 0.3)])
def test_documents_permute_and_queries_do_not_see_each_other(
    normalisation: str, similarity: str, aggregation: Aggregation
) -> None:
    queries, documents = pair()
    options = ScoreOptions(similarity, normalisation, aggregation)  # type: ignore[arg-type]
    scores = score_vectors(queries, documents, options)
    assert scores.shape == (NUM_QUERIES, NUM_DOCUMENTS)
    order = torch.randperm(NUM_DOCUMENTS, generator=torch.Generator().manual_seed(0))
    permuted = replace(documents, values=documents.values[:, order])
    torch.testing.assert_close(score_vectors(queries, permuted, options), scores[:, order])
    alone = replace(queries, values=queries.values[:, 2:3])
    torch.testing.assert_close(score_vectors(alone, documents, options), scores[2:3])


def test_a_zero_vector_has_no_cosine_and_says_so_whatever_the_normalisation() -> None:
    for normalisation in ("none", "z-score", "whiten"):
        for broken in (0, 1):
            both = [vectors(NUM_QUERIES, 1), vectors(NUM_DOCUMENTS, 2)]
            both[broken].values[2, 5] = 0.0
            options = ScoreOptions(normalisation=normalisation)  # type: ignore[arg-type]
            with pytest.raises(AttributionError, match="example 5, layer 3: its gradient is zero"):
                score_layers(*both, options)
            dots = score_layers(*both, replace(options, similarity="dot"))
            assert dots.isfinite().all()


def test_unfit_statistics_and_layers_are_refused() -> None:
    queries, documents = pair()
    with pytest.raises(AttributionError, match="same layers"):
        score_layers(queries, replace(documents, layers=(0, 1, 2, 4)))
    alike = replace(documents, values=documents.values[:, :1].repeat(1, 3, 1))
    for how in ("z-score", "whiten"):
        options = ScoreOptions(normalisation=how)  # type: ignore[arg-type]
        with pytest.raises(AttributionError, match="all documents have the same vector"):
            score_layers(queries, alike, options)
        with pytest.raises(AttributionError, match="at least two documents"):
            score_layers(queries, replace(documents, values=documents.values[:, :1]), options)
        with pytest.raises(AttributionError, match="a positive damping"):
            score_layers(queries, documents, replace(options, damping=0.0))


def test_layers_aggregate_as_named() -> None:
    scores = torch.tensor([[[1.0]], [[-4.0]], [[3.0]], [[2.0]]])
    assert aggregate_layers(scores, "mean").item() == 0.5
    assert aggregate_layers(scores, "top-3").item() == 2.0
    assert aggregate_layers(scores[:2], "top-3").item() == -1.5
    assert aggregate_layers(scores, (0.5, 0.25, 0.25, 0.0)).item() == 0.25
    for bad in ((0.5, 0.5), (0.5, 0.5, 0.5, -0.5), (0.3, 0.3, 0.3, 0.0)):
        with pytest.raises(AttributionError, match="expected 4 non-negative weights"):
            aggregate_layers(scores, bad)


def layer_scores(seed: int = 0) -> tuple[Tensor, Tensor, Tensor]:
    """Layers 0 and 2 know something of the truth, 1 nothing and 3 the opposite."""
    generator = torch.Generator().manual_seed(seed)
    relevance = torch.rand(10, NUM_DOCUMENTS, generator=generator) < 0.2
    relevance[:, 0] = True
    noise = torch.randn(NUM_LAYERS, 10, NUM_DOCUMENTS, generator=generator)
    signal = torch.tensor([1.0, 0.0, 0.7, -1.0])[:, None, None] * relevance
    return noise + signal, relevance, torch.arange(10) < 6


def cross_entropy(
    scores: Tensor, relevance: Tensor, weights: Tensor, temperature: float = 1.0
) -> float:
    """The loss that the weights minimise, written out."""
    spread = scores.double().std(dim=2, correction=0).mean() * temperature
    combined = torch.einsum("l,lqd->qd", weights.double(), scores.double()) / spread
    return sum(
        float(row.logsumexp(0) - row[truth].mean())
        for row, truth in zip(combined, relevance, strict=True)
    )


@pytest.mark.parametrize(("seed", "temperature"), [(0, 1.0), (1, 1.0), (2, 1.0), (0, 0.4)])
def test_learned_weights_are_the_best_of_the_simplex(seed: int, temperature: float) -> None:
    scores, relevance, validation = layer_scores(seed)
    weights = learn_layer_weights(scores, relevance, validation, temperature=temperature)
    assert min(weights) >= 0
    assert math.isclose(sum(weights), 1.0, abs_tol=1e-12)
    assert weights[3] == 0.0 or temperature < 1  # where the top alone counts it may help a little
    seen = scores[:, validation], relevance[validation]
    found = cross_entropy(*seen, torch.tensor(weights, dtype=torch.float64), temperature)
    grid = [
        torch.tensor([a, b, c, 12 - a - b - c]) / 12
        for a, b, c in itertools.product(range(13), repeat=3)
        if a + b + c <= 12
    ]
    best = min(cross_entropy(*seen, point, temperature) for point in grid)
    # Not below the optimum by more than a grid of twelfths can miss, never above it.
    assert best - 0.5 < found <= best + 1e-9
    for move in itertools.permutations(range(4), 2):
        near = torch.tensor(weights, dtype=torch.float64)
        step = min(1e-3, float(near[move[0]]))
        near[move[0]] -= step
        near[move[1]] += step
        assert cross_entropy(*seen, near, temperature) >= found - 6e-9  # six queries


def test_learned_weights_never_see_test_queries_and_do_not_depend_on_unit_or_order() -> None:
    scores, relevance, validation = layer_scores()
    weights = learn_layer_weights(scores, relevance, validation)
    hidden, unknown = scores.clone(), relevance.clone()
    hidden[:, ~validation] = float("nan")
    unknown[~validation] = False
    assert learn_layer_weights(hidden, unknown, validation) == weights
    visible = scores.clone()
    visible[:, validation] *= -1
    assert learn_layer_weights(visible, relevance, validation) != weights
    order = torch.randperm(NUM_DOCUMENTS, generator=torch.Generator().manual_seed(1))
    for other, truth in (
        (1e-6 * scores + 3e-6, relevance),
        (scores[..., order], relevance[:, order]),
    ):
        assert learn_layer_weights(other, truth, validation) == pytest.approx(weights, abs=1e-4)
    turned = learn_layer_weights(scores.flip(0), relevance, validation)
    assert turned[::-1] == pytest.approx(weights, abs=1e-6)


def test_weights_cannot_be_learned_from_nothing() -> None:
    scores, relevance, validation = layer_scores()
    with pytest.raises(AttributionError, match="got 0 queries"):
        learn_layer_weights(scores, relevance, torch.zeros(10, dtype=torch.bool))
    empty = relevance.clone()
    empty[2] = False
    with pytest.raises(AttributionError, match="got 6 queries, 1 of them without"):
        learn_layer_weights(scores, empty, validation)
    with pytest.raises(AttributionError, match="no layer can be preferred"):
        learn_layer_weights(torch.ones_like(scores), relevance, validation)
