"""Influence Distillation: exact where it must be, and near where it may not."""

import pytest
import torch
from influence_cases import config, make_batch, make_loader
from math_utils.errors import InfluenceError
from math_utils.influence import (
    DiscriminativeGradientExtractor,
    FirstOrderCalculator,
    InfluenceDistillation,
    InfluenceDistillationConfig,
    JVPEmbeddingConfig,
    KernelRidge,
    KernelRidgeConfig,
    LandmarkConfig,
    LandmarkSelector,
    MixtureConfig,
)

CLOSE = {"rtol": 1e-8, "atol": 1e-10}


def distill(model, num_landmarks, *, kernel="rbf", embeddings=None, **kwargs):
    settings = InfluenceDistillationConfig(
        embedding=JVPEmbeddingConfig(num_blocks=2),
        landmarks=LandmarkConfig(num_landmarks=num_landmarks),
        kernel_ridge=KernelRidgeConfig(kernel, 1e-2),
        **kwargs,
    )
    extractor = DiscriminativeGradientExtractor(model, config())
    return InfluenceDistillation(model, settings, embeddings, extractor)


@pytest.fixture(scope="module")
def many():
    generator = torch.Generator().manual_seed(8)
    return [
        torch.randint(3, 37, (int(length),), generator=generator).tolist()
        for length in torch.randint(3, 9, (24,), generator=generator)
    ]


TRAIN = [range(5), range(5, 14), range(14, 20)]
PROBE = [[20, 21], [22, 23]]


@pytest.mark.parametrize("architecture", ["olmo2", "gpt2"])
def test_with_all_examples_as_landmarks_it_is_exact(make_model, many, architecture):
    model = make_model(architecture)
    train, probe = make_loader(many, TRAIN), make_loader(many, PROBE)
    found = distill(model, 20).compute_influence(train, probe)
    exact = FirstOrderCalculator(model, config()).compute_influence(train, probe)
    torch.testing.assert_close(found, exact, **CLOSE)
    quality = distill(model, 20).evaluate(train, probe)
    assert quality.pearson == pytest.approx(1)
    assert quality.spearman == pytest.approx(1)
    assert (quality.num_landmarks, quality.num_examples) == (20, 20)


@pytest.mark.parametrize("kernel", ["linear", "rbf"])
def test_landmarks_are_exact_and_the_others_are_kernel_ridge(make_model, many, kernel):
    model = make_model("olmo2")
    train, probe = make_loader(many, TRAIN), make_loader(many, PROBE)
    distillation = distill(model, 8, kernel=kernel)
    found = distillation.compute_influence(train, probe)
    exact = distillation.exact.compute_influence(train, probe)
    embeddings = distillation.embedding_extractor.compute_embeddings(train)
    chosen = LandmarkSelector(distillation.config.landmarks).select(embeddings)
    ridge = KernelRidge(embeddings[chosen], exact[:, chosen], KernelRidgeConfig(kernel, 1e-2))
    expected = ridge.predict(embeddings)
    expected[:, chosen] = exact[:, chosen]
    torch.testing.assert_close(found, expected, rtol=1e-6, atol=1e-8)


def test_selection_uses_every_cached_domain_in_turn(make_model, many):
    model = make_model("olmo2")
    distillation = distill(model, 20)
    train = make_loader(many, TRAIN)
    with pytest.raises(InfluenceError, match="call cache_probe first"):
        distillation.select(train, 3)
    exact = FirstOrderCalculator(model, config())
    rows = []
    for name, probe in (("a", [[20, 21]]), ("b", [[22], [23]])):
        distillation.cache_probe(make_loader(many, probe), name)
        rows.append(exact.compute_influence(train, make_loader(many, probe)).mean(dim=0))
        order = rows[-1].argsort(descending=True)
        if name == "a":
            assert distillation.select(train, 5).tolist() == order[:5].tolist()
    first, second = (row.argsort(descending=True).tolist() for row in rows)
    expected = [first[0]]
    expected.append(next(n for n in second if n not in expected))
    expected.append(next(n for n in first if n not in expected))
    assert distillation.select(train, 3).tolist() == expected
    batch = make_batch(many, range(6))
    by_domain = distillation.compute_batch_influence(batch, "b").mean(dim=0)
    torch.testing.assert_close(by_domain, rows[1][:6], **CLOSE)


def test_weights_of_sources_keep_their_bounds_and_follow_influence(make_model, many):
    model = make_model("olmo2")
    distillation = distill(model, 20, mixture=MixtureConfig(min_weight=0.1, max_weight=0.6))
    probe = make_loader(many, PROBE)
    sources = {f"s{n}": make_loader(many, [rows]) for n, rows in enumerate(TRAIN)}
    weights = distillation.compute_mixture_weights(sources, probe)
    exact = FirstOrderCalculator(model, config())
    means = [float(exact.compute_influence(one, probe).mean()) for one in sources.values()]
    assert list(weights) == list(sources)
    assert sum(weights.values()) == pytest.approx(1)
    assert all(0.1 <= weight <= 0.6 for weight in weights.values())
    assert max(weights, key=weights.get) == f"s{means.index(max(means))}"
    samples = distillation.compute_sample_weights(make_loader(many, TRAIN), probe)
    assert float(samples.sum()) == pytest.approx(20)
    assert (samples >= 0).all()
    tight = distill(model, 20, mixture=MixtureConfig(min_weight=0.5))
    with pytest.raises(InfluenceError, match="lower min or raise max"):
        tight.compute_mixture_weights(sources, probe)
    with pytest.raises(InfluenceError, match="at least one source"):
        distillation.compute_mixture_weights({}, probe)
    with pytest.raises(InfluenceError, match="loader of the source 'empty' is empty"):
        distillation.compute_mixture_weights({**sources, "empty": []}, probe)


class Shuffled:
    """Another order at each reading."""

    def __init__(self, batches):
        self.batches = batches

    def __iter__(self):
        self.batches = self.batches[::-1]
        return iter(self.batches)


def test_a_loader_that_shuffles_or_is_used_up_is_refused(make_model, many):
    distillation = distill(make_model("olmo2"), 4)
    probe = make_loader(many, PROBE)
    for loader in (Shuffled(make_loader(many, TRAIN)), iter(make_loader(many, TRAIN))):
        with pytest.raises(InfluenceError, match="the same examples in the same order"):
            distillation.compute_influence(loader, probe)
    with pytest.raises(InfluenceError, match="train loader is empty"):
        distillation.compute_influence([], probe)
    with pytest.raises(InfluenceError, match="probe loader is empty"):
        distillation.compute_influence(make_loader(many, TRAIN), [])
