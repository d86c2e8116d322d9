"""Models of no library: found by structure, with biased and shared heads, or refused."""

from types import SimpleNamespace

import pytest
import torch
from math_utils.causal_lm import call_model, find_blocks, find_embedding, find_head, token_batch
from math_utils.errors import InfluenceError
from math_utils.influence import (
    DataInfCalculator,
    DiscriminativeGradientExtractor,
    FirstOrderCalculator,
    InfluenceConfig,
    InfluenceDistillation,
    InfluenceDistillationConfig,
    JVPEmbeddingConfig,
)
from torch import nn

DOUBLE = torch.float64
VOCAB, WIDTH = 13, 5


class Plain(nn.Module):
    """A causal language model that knows nothing of embeddings' getters, with a biased head."""

    def __init__(self, *, tied=False, bias=True, padding_idx=None):
        super().__init__()
        generator = torch.Generator().manual_seed(1)
        self.table = nn.Embedding(VOCAB, WIDTH, padding_idx=padding_idx)
        self.blocks = nn.ModuleList(nn.Linear(WIDTH, WIDTH) for _ in range(3))
        self.classify = nn.Linear(WIDTH, VOCAB, bias=bias)
        if tied:
            self.classify.weight = self.table.weight
        for parameter in self.parameters():
            parameter.data = torch.randn(parameter.shape, generator=generator, dtype=DOUBLE)

    def forward(self, input_ids, attention_mask=None):
        states = self.table(input_ids)
        for block in self.blocks:
            places = torch.arange(1, input_ids.shape[1] + 1, dtype=DOUBLE)[:, None]
            states = states + torch.tanh(block(states.cumsum(dim=1) / places))
        return SimpleNamespace(logits=self.classify(states))


SEQUENCES = [[3, 4, 4, 9], [7, 1, 2], [5, 12, 5, 4, 6], [8, 3], [0, 4, 9, 9]]


def batch(rows):
    longest = max(len(SEQUENCES[row]) for row in rows)
    ids = [SEQUENCES[row] + [0] * (longest - len(SEQUENCES[row])) for row in rows]
    mask = [[1] * len(SEQUENCES[row]) + [0] * (longest - len(SEQUENCES[row])) for row in rows]
    return {"input_ids": torch.tensor(ids), "attention_mask": torch.tensor(mask)}


def naive(model, names):
    """[example, parameters] by autograd, the bias of the head behind its rows."""
    rows = []
    for ids in SEQUENCES:
        model.zero_grad()
        logits = model(torch.tensor([ids])).logits[0, :-1]
        nn.functional.cross_entropy(logits, torch.tensor(ids[1:]), reduction="sum").backward()
        parts = []
        for name in names:
            weight = model.get_submodule(name).weight.grad
            bias = model.classify.bias
            if bias is not None and weight is model.classify.weight.grad:
                weight = torch.cat([weight, bias.grad[:, None]], dim=1)
            parts.append(weight.flatten())
        rows.append(torch.cat(parts))
    model.zero_grad(set_to_none=True)
    return torch.stack(rows)


@pytest.mark.parametrize("tied", [False, True])
@pytest.mark.parametrize("bias", [False, True])
@pytest.mark.parametrize("padding_idx", [None, 4])
def test_gradients_and_influence_of_a_model_found_by_structure(tied, bias, padding_idx):
    model = Plain(tied=tied, bias=bias, padding_idx=padding_idx)
    config = InfluenceConfig(dtype=DOUBLE)
    extractor = DiscriminativeGradientExtractor(model, config)
    assert list(extractor.layers) == (["table"] if tied else ["table", "classify"])
    expected = naive(model, extractor.layers)
    loader = [batch([0, 1, 2]), batch([3, 4])]
    found = extractor.compute_embeddings(loader)
    torch.testing.assert_close(found, expected)
    calculator = FirstOrderCalculator(model, config, extractor)
    torch.testing.assert_close(calculator.compute_influence(loader, loader), expected @ expected.T)
    total = torch.zeros(2, 3, dtype=DOUBLE)
    sizes = [rows * cols for rows, cols in extractor.layers.values()]
    for layer in expected.split(sizes, dim=1):
        g, v = layer[:3], layer[3:]
        damping = 0.1 * g.square().mean()
        weights = (v @ g.T) / (damping + g.square().sum(dim=1))
        total += (v @ g.T - weights @ (g @ g.T) / 3) / damping
    influence = DataInfCalculator(model, config, extractor).compute_influence(
        [batch([0, 1, 2])], [batch([3, 4])]
    )
    torch.testing.assert_close(influence, total, rtol=1e-10, atol=1e-10)


def test_distillation_runs_on_it():
    model = Plain().float()
    model.forward = lambda input_ids, attention_mask=None: SimpleNamespace(
        logits=model.classify(_states(model, input_ids))
    )
    config = InfluenceDistillationConfig(embedding=JVPEmbeddingConfig(num_blocks=2))
    with pytest.warns(UserWarning, match="all of them are landmarks"):
        found = InfluenceDistillation(model, config).compute_influence(
            [batch([0, 1, 2])], [batch([3, 4])]
        )
    exact = FirstOrderCalculator(model).compute_influence([batch([0, 1, 2])], [batch([3, 4])])
    torch.testing.assert_close(found, exact)


def _states(model, input_ids):
    states = model.table(input_ids)
    for block in model.blocks:
        states = states + torch.tanh(block(states.cumsum(dim=1)))
    return states


def test_what_is_not_there_is_named_with_what_was_looked_for():
    headless = nn.Sequential(nn.Embedding(9, 4), nn.Linear(4, 6))
    with pytest.raises(
        InfluenceError, match=r"get_output_embeddings\(\) and for a linear map with"
    ):
        DiscriminativeGradientExtractor(headless)
    no_embedding = nn.Sequential(nn.Linear(4, 6))
    with pytest.raises(InfluenceError, match=r"get_input_embeddings\(\) and for one .* found none"):
        DiscriminativeGradientExtractor(no_embedding)
    two = nn.ModuleList([nn.Embedding(9, 4), nn.Embedding(9, 4), nn.Linear(4, 9)])
    with pytest.raises(InfluenceError, match="found 0, 1"):
        find_embedding(two)
    with pytest.raises(InfluenceError, match=r"ModuleList"):
        find_blocks(nn.Linear(2, 2))
    with pytest.raises(InfluenceError, match=r"selects nothing of Plain; .* for example, blocks.0"):
        DiscriminativeGradientExtractor(Plain(), InfluenceConfig(target="mlp"))
    with pytest.raises(InfluenceError, match="the target 'lora' selects nothing"):
        DiscriminativeGradientExtractor(Plain(), InfluenceConfig(target="lora"))

    class Odd(Plain):
        def get_output_embeddings(self):
            return nn.Linear(WIDTH, VOCAB)

        def get_input_embeddings(self):
            return nn.Linear(WIDTH, VOCAB)

    with pytest.raises(InfluenceError, match=r"embedding to be a torch.nn.Embedding, got a Linear"):
        find_embedding(Odd())
    with pytest.raises(InfluenceError, match="to be modules of the model"):
        find_head(Odd())


def test_a_model_without_logits_and_a_head_that_runs_twice_are_refused():
    model = Plain()
    forward = model.forward
    model.forward = lambda input_ids, attention_mask=None: forward(input_ids).logits
    with pytest.raises(InfluenceError, match=r"to have logits .* got a Tensor; wrap the model"):
        DiscriminativeGradientExtractor(model).compute_batch_gradients(batch([0]))

    def twice(input_ids, attention_mask=None):
        first = model.table(input_ids)
        model.classify(first)
        return SimpleNamespace(logits=model.classify(first))

    model.forward = twice
    with pytest.raises(InfluenceError, match=r"run once .* ran 2 times"):
        DiscriminativeGradientExtractor(model).compute_batch_gradients(batch([0]))


def test_a_scaled_embedding_is_refused():
    class Scaled(nn.Embedding):
        def forward(self, ids):
            return 2 * super().forward(ids)

    model = Plain()
    model.table = Scaled(VOCAB, WIDTH).double()
    with pytest.raises(InfluenceError, match="table: expected an embedding that looks up rows"):
        DiscriminativeGradientExtractor(model).compute_batch_gradients(batch([0]))


def test_padding_moves_behind_real_tokens_wherever_it_was():
    tokens = token_batch(
        {
            "input_ids": torch.tensor([[9, 9, 3, 4, 9], [5, 9, 6, 9, 9]]),
            "attention_mask": torch.tensor([[0, 0, 1, 1, 0], [1, 0, 1, 0, 0]]),
            "labels": torch.tensor([[9, 9, -100, 4, 9], [5, 9, 6, 9, 9]]),
        },
        first_key=7,
    )
    assert tokens.input_ids.tolist() == [[3, 4], [5, 6]]
    assert tokens.labels.tolist() == [[-100, 4], [5, 6]]
    assert tokens.attention_mask.all()
    assert tokens.example_keys.tolist() == [7, 8]


def test_a_mask_is_given_only_where_something_is_padded():
    seen = []

    class Watched(nn.Module):
        def forward(self, **arguments):
            seen.append(sorted(arguments))

    call_model(Watched(), token_batch(batch([0, 1])))
    call_model(Watched(), token_batch(batch([1])))
    assert seen == [["attention_mask", "input_ids"], ["input_ids"]]
