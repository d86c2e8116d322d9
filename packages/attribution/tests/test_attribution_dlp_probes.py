"""Deep linear probes: what they see and do not see, and a world in which they must work."""

from collections.abc import Callable, Sequence
from typing import Any

import pytest
import torch
from attribution.checkpoints import Checkpoints
from attribution.errors import AttributionError
from attribution.examples import Example
from attribution.methods import ProbeOptions, deal_folds, dlp_probes
from attribution.methods.dlp_probes import _Training, retrieval_loss
from attribution.probe_generator import DeepLinearGenerator, probe_responses, text_batches
from torch import Tensor
from transformers import AutoModelForCausalLM, LlamaConfig

SMALL: dict[str, Any] = {
    "num_probes": 3,
    "latent_size": 4,
    "num_generator_layers": 2,
    "embedding_size": 8,
    "num_steps": 4,
    "num_queries": 4,
    "num_documents": 6,
}
FUNCTIONS = list(range(3, 13))
OTHERS = range(13, 31)


class World:
    """Texts with one function's name among other words; a query has the name and other words."""

    def __init__(self, functions: Sequence[int] = FUNCTIONS, words: range = OTHERS) -> None:
        self._others = words
        self.random = torch.Generator().manual_seed(5)
        self.documents: list[Example] = []
        self.queries: list[Example] = []
        self.about: list[int | None] = []
        self.asked: list[int] = []
        for function in functions:
            for _ in range(4):
                words = [*self._words(2), function, *self._words(1)]
                self.documents.append(Example.whole_text(words, end_id=1))
                self.about.append(function)
            for _ in range(2):
                words = [*self._words(1), function, *self._words(1)]
                self.queries.append(Example.answer(words, [2]))
                self.asked.append(function)
        self.documents.append(Example.whole_text(self._words(4), end_id=1))
        self.about.append(None)
        self.relevance = torch.tensor([[a == b for b in self.about] for a in self.asked])

    def _words(self, count: int) -> list[int]:
        return torch.randint(
            self._others[0], self._others[-1] + 1, (count,), generator=self.random
        ).tolist()

    def run(self, pair: Checkpoints, relevance: Tensor | None = None, **options: Any) -> Tensor:
        held_out = options.pop("held_out", FUNCTIONS[7:])
        return dlp_probes(
            pair,
            self.documents,
            self.queries,
            self.relevance if relevance is None else relevance,
            query_functions=self.asked,
            document_functions=self.about,
            held_out=held_out,
            options=ProbeOptions(**SMALL | options),
        )

    def ranks_above(self, scores: Tensor, functions: Sequence[int]) -> float:
        """ROC-AUC over the queries of some functions and the documents of the same ones."""
        rows = [place for place, name in enumerate(self.asked) if name in functions]
        columns = [place for place, name in enumerate(self.about) if name in functions]
        found, truth = scores[rows][:, columns], self.relevance[rows][:, columns]
        areas = [
            (own[right][:, None] > own[~right][None, :]).double().mean()
            for own, right in zip(found, truth, strict=True)
        ]
        return float(torch.stack(areas).mean())


@pytest.fixture(scope="module")
def pair(make_checkpoints: Callable[..., Checkpoints]) -> Checkpoints:
    return make_checkpoints("llama")


def test_scores_are_cosines_the_same_for_a_seed_and_leave_models_and_random_state_alone(
    pair: Checkpoints,
) -> None:
    world = World()
    both = (pair.old, pair.new)
    before = [{n: v.clone() for n, v in model.state_dict().items()} for model in both]
    state = torch.get_rng_state()
    scores = world.run(pair)
    assert scores.shape == (len(world.queries), len(world.documents))
    assert scores.abs().max() <= 1 + 1e-9
    assert torch.equal(world.run(pair), scores)
    assert not torch.allclose(world.run(pair, seed=1), scores, atol=1e-2)
    assert torch.equal(torch.get_rng_state(), state)
    for model, kept in zip(both, before, strict=True):
        assert all(torch.equal(value, kept[name]) for name, value in model.state_dict().items())
        assert all(one.grad is None and one.requires_grad for one in model.parameters())
        assert not model.training


def test_labels_texts_and_number_of_held_out_functions_never_influence_training(
    pair: Checkpoints,
) -> None:
    world = World()
    held = FUNCTIONS[7:]
    scores = world.run(pair, num_steps=5)
    rows = torch.tensor([name in held for name in world.asked])
    columns = torch.tensor([name in held for name in world.about])
    unseen = rows[:, None] | columns[None, :]
    noise = torch.rand(unseen.shape, generator=torch.Generator().manual_seed(1)) < 0.5
    for labels in (noise, ~world.relevance, torch.ones_like(noise)):
        other = torch.where(unseen, labels, world.relevance)
        assert torch.equal(world.run(pair, other, num_steps=5), scores)
    seen = torch.where(unseen, world.relevance, noise)
    assert not torch.allclose(world.run(pair, seen, num_steps=5), scores, atol=1e-3)
    # Nor do their texts: the scores of training functions stay when those are replaced.
    for place, name in enumerate(world.about):
        if name in held:
            world.documents[place] = Example.whole_text([30, 30, 30, 30])
    changed = world.run(pair, num_steps=5)
    # To rounding: the batches in which scores are taken have other lengths.
    torch.testing.assert_close(changed[~rows][:, ~columns], scores[~rows][:, ~columns])


def test_scores_do_not_depend_on_batches_or_the_order_of_held_out_documents(
    pair: Checkpoints,
) -> None:
    world = World()
    scores = world.run(pair)
    for size in (1, 7):
        torch.testing.assert_close(world.run(pair, batch_size=size), scores, rtol=1e-6, atol=1e-7)
    last = len(world.documents) - 1
    order = [*range(28), *reversed(range(28, last)), last]  # documents 28 on are held out
    world.documents = [world.documents[place] for place in order]
    world.about = [world.about[place] for place in order]
    permuted = world.run(pair, world.relevance[:, order])
    torch.testing.assert_close(permuted, scores[:, order], rtol=1e-6, atol=1e-7)


@pytest.mark.parametrize("architecture", ["olmo2", "llama", "qwen3", "gpt_neox", "gpt2"])
def test_probes_are_read_like_tokens_behind_the_text_without_its_last_target(
    make_checkpoints: Callable[..., Checkpoints], examples: list[Example], architecture: str
) -> None:
    """Probes that are the embeddings of words give what these words would."""
    model = make_checkpoints(architecture).new
    words = [7, 19]
    embedding: Any = model.get_input_embeddings()
    with torch.no_grad():
        probes = embedding(torch.tensor(words))
        for rows, batch in text_batches(examples, 4, model.device):
            found = probe_responses(model, batch, probes)
            for row, states in zip(rows, found, strict=True):
                read = examples[row].token_ids[: examples[row].span[1] - 1]
                ids = torch.tensor([[*read, *words]])
                expected = model.base_model(ids).last_hidden_state[0, -2:]
                torch.testing.assert_close(states, expected, rtol=1e-8, atol=1e-9)
    assert examples[1].token_ids[-1] not in examples[1].token_ids[: examples[1].span[1] - 1]


def test_the_generator_is_a_chain_of_linear_maps() -> None:
    one = DeepLinearGenerator(
        num_probes=5,
        latent_size=7,
        num_layers=3,
        hidden_size=11,
        scale=0.02,
        generator=torch.Generator().manual_seed(0),
    )
    assert [tuple(each.shape) for each in one.parameters()] == [(5, 7), (7, 7), (7, 7), (7, 11)]
    first, second, third = one.maps
    torch.testing.assert_close(one(), 0.02 * (one.latents @ first @ second @ third))
    assert 0.005 < one().square().mean().sqrt() < 0.05
    one.latents = -2 * one.latents
    torch.testing.assert_close(one(), 0.02 * (one.latents @ first @ second @ third))


def test_the_loss_is_the_mean_log_probability_of_relevant_documents() -> None:
    logits = torch.tensor([[1.0, 2.0, 0.0], [0.5, 0.5, 3.0]], dtype=torch.float64)
    relevant = torch.tensor([[True, True, False], [False, False, True]])
    p, q = logits.softmax(dim=1)
    expected = -((p[0].log() + p[1].log()) / 2 + q[2].log()) / 2
    torch.testing.assert_close(retrieval_loss(logits, relevant), expected)


NAMES = list(range(3, 43))
WORDS = range(43, 83)


@pytest.fixture(scope="module")
def reader() -> Checkpoints:
    """Each state is its token's embedding plus the mean of those before it, and nothing else.

    Names vary in four dimensions of the embeddings, other words, three times as strongly, in eight.
    """
    config = LlamaConfig(
        vocab_size=83, hidden_size=12, intermediate_size=4, num_hidden_layers=1,
        num_attention_heads=2, num_key_value_heads=2, max_position_embeddings=32, pad_token_id=2,
    )  # fmt: skip
    random = torch.Generator().manual_seed(0)
    with torch.random.fork_rng():
        model: Any = AutoModelForCausalLM.from_config(config, dtype=torch.float32)
    block = model.model.layers[0]
    with torch.no_grad():
        for weight in (block.self_attn.q_proj.weight, block.mlp.down_proj.weight):
            weight.zero_()  # the same attention for all, and no feed-forward block
        for weight in (block.self_attn.v_proj.weight, block.self_attn.o_proj.weight):
            weight.copy_(torch.eye(12))
        embedding = model.get_input_embeddings().weight.zero_()
        embedding[NAMES, :4] = torch.randn(40, 4, generator=random)
        embedding[list(WORDS), 4:] = 3 * torch.randn(40, 8, generator=random)
    return Checkpoints(model.eval(), model)


def test_probes_learn_what_tells_functions_apart_and_apply_it_to_functions_held_out(
    reader: Checkpoints,
) -> None:
    world = World(NAMES, WORDS)
    held_out = NAMES[30:]
    learning = {"num_steps": 60, "num_queries": 30, "num_documents": 60, "learning_rate": 2e-2}
    untrained, trained, misled = (
        world.ranks_above(world.run(reader, labels, held_out=held_out, **options), held_out)
        for labels, options in (
            (None, {"num_steps": 0}),
            (None, learning),
            (world.relevance[torch.randperm(len(world.queries), generator=world.random)], learning),
        )
    )
    assert trained > 0.95
    # Chance is 0.5; some of the names shows without training, or whatever is trained.
    assert max(untrained, misled) < 0.85


def test_every_query_of_a_step_meets_a_document_that_taught_it() -> None:
    relevance = torch.eye(40, dtype=torch.bool).repeat(1, 2)
    training = _Training(range(40), range(80), relevance)
    for seed in range(5):
        random = torch.Generator().manual_seed(seed)
        queries, documents, relevant = training.draw(6, 9, random)
        assert (len(set(queries)), len(set(documents))) == (6, 9)
        assert torch.equal(relevant, relevance[queries][:, documents])
        assert relevant.any(dim=1).all()


def test_training_on_everything_at_once_is_adam_with_a_pull_back_to_the_start(
    pair: Checkpoints,
) -> None:
    """The reference: one text after the other, the loss written out, and Adam by its library."""
    world = World()
    rate, decay, temperature = 1e-2, 5.0, 0.3
    found = world.run(
        pair, num_steps=3, num_queries=99, num_documents=99, learning_rate=rate, decay=decay,
        temperature=temperature, subtract_old=True,
    )  # fmt: skip
    random = torch.Generator().manual_seed(0)
    weight = pair.new.get_input_embeddings().weight.detach()
    generator = DeepLinearGenerator(
        num_probes=3, latent_size=4, num_layers=2, hidden_size=12,
        scale=float(weight.square().mean().sqrt()), generator=random,
    )  # fmt: skip
    head = torch.randn(36, 8, generator=random) * 36**-0.5
    tensors = [one.double() for one in (*generator.parameters(), head, torch.zeros(8))]
    start = [one.clone() for one in tensors]
    for one in tensors:
        one.requires_grad_(True)
    generator.latents, *generator.maps = tensors[:3]

    def embed(some: Sequence[Example]) -> Tensor:
        rows = []
        for one in some:
            ((_, batch),) = text_batches([one], 1, torch.device("cpu"))
            new, old = (
                probe_responses(model, batch, generator()) for model in (pair.new, pair.old)
            )
            row = ((new - old).flatten(1) @ tensors[3] + tensors[4])[0]
            rows.append(row / row.norm())
        return torch.stack(rows)

    held = FUNCTIONS[7:]
    queries = [
        one for one, name in zip(world.queries, world.asked, strict=True) if name not in held
    ]
    documents = [
        one for one, name in zip(world.documents, world.about, strict=True) if name not in held
    ]
    relevant = world.relevance[[name not in held for name in world.asked]]
    relevant = relevant[:, [name not in held for name in world.about]]
    optimizer = torch.optim.Adam(tensors, lr=rate)
    for _ in range(3):
        logs = (embed(queries) @ embed(documents).T / temperature).log_softmax(dim=1)
        loss = -torch.stack(
            [row[truth].mean() for row, truth in zip(logs, relevant, strict=True)]
        ).mean()
        for one, slope in zip(tensors, torch.autograd.grad(loss, tensors), strict=True):
            one.grad = slope
        optimizer.step()
        with torch.no_grad():
            for one, first in zip(tensors, start, strict=True):
                one += rate * decay * (first - one)
    with torch.no_grad():
        expected = embed(world.queries) @ embed(world.documents).T
    torch.testing.assert_close(found, expected, rtol=1e-7, atol=1e-8)


def test_folds_hold_every_function_out_once() -> None:
    functions = ["a", "b", "a", "c", "d", "e", "e"]
    folds = deal_folds(functions, 3, seed=0)
    assert folds[0] == folds[2]
    assert folds[5] == folds[6]
    sizes = [len({name for name, own in zip(functions, folds, strict=True) if own == fold})
             for fold in range(3)]  # fmt: skip
    assert sorted(sizes) == [1, 2, 2]
    assert folds == deal_folds(functions, 3, seed=0)
    assert any(folds != deal_folds(functions, 3, seed=seed) for seed in range(1, 5))
    for bad in (1, 6):
        with pytest.raises(AttributionError, match="expected between 2 and 5 folds"):
            deal_folds(functions, bad, seed=0)


def test_what_cannot_be_trained_or_read_is_named(
    pair: Checkpoints, make_checkpoints: Callable[..., Checkpoints]
) -> None:
    world = World()
    with pytest.raises(AttributionError, match="hold out fewer functions"):
        world.run(pair, held_out=FUNCTIONS)
    with pytest.raises(AttributionError, match="hold out fewer functions"):
        world.run(pair, torch.zeros_like(world.relevance))
    world.documents[3] = Example.whole_text([5] * 63)
    assert world.run(pair).isfinite().all()  # rotary positions have no end
    learned = make_checkpoints("gpt2")
    with pytest.raises(AttributionError, match="text 3: its 62 tokens and 3 probes are more than"):
        world.run(learned)
    world.documents[3] = Example.whole_text([5] * 62)
    assert world.run(learned).isfinite().all()
    for bad in ({"num_probes": 0}, {"num_steps": -1}, {"temperature": 0.0}, {"learning_rate": 0.0},
                {"decay": -1.0}, {"embedding_size": 0}):  # fmt: skip
        with pytest.raises(AttributionError, match="expected"):
            ProbeOptions(**bad)
