"""Pooled hidden states and their similarity on tiny random models of real architectures."""

from typing import Literal

import numpy as np
import pytest
import torch
from attribution.activations import Layer, Pooling, pooled_hidden_states
from attribution.baselines import representation_similarity_scores
from transformers import (
    AutoModelForCausalLM,
    GPT2Config,
    GPTNeoXConfig,
    LlamaConfig,
    Olmo2Config,
    PreTrainedModel,
)

VOCAB = 41
_SIZES = {
    "vocab_size": VOCAB,
    "hidden_size": 24,
    "intermediate_size": 40,
    "num_hidden_layers": 3,
    "num_attention_heads": 4,
    "max_position_embeddings": 64,
    "pad_token_id": 0,
    "bos_token_id": 0,
    "eos_token_id": 0,
}
CONFIGS = {
    "olmo2": Olmo2Config(**_SIZES, num_key_value_heads=2),
    "llama": LlamaConfig(**_SIZES, num_key_value_heads=2),
    "gpt_neox": GPTNeoXConfig(**_SIZES),
    "gpt2": GPT2Config(
        vocab_size=VOCAB, n_embd=24, n_layer=3, n_head=4, n_positions=64, bos_token_id=0
    ),
}
LAYERS: tuple[Layer, ...] = ("last", "middle", "mean")
POOLINGS: tuple[Pooling, ...] = ("last", "mean")


@pytest.fixture(scope="module", params=list(CONFIGS))
def model(request: pytest.FixtureRequest) -> PreTrainedModel:
    with torch.random.fork_rng():
        torch.manual_seed(0)
        built = AutoModelForCausalLM.from_config(CONFIGS[request.param], dtype=torch.float32)
        for parameter in built.parameters():  # weights of size one, so that errors would show
            torch.nn.init.normal_(parameter, std=0.3)
    return built.eval()


def texts(num_texts: int, seed: int = 0) -> list[list[int]]:
    generator = np.random.default_rng(seed)
    lengths = generator.integers(1, 14, size=num_texts)
    return [generator.integers(VOCAB, size=length).tolist() for length in lengths]


def naive(model: PreTrainedModel, text: list[int], layer: Layer, pooling: Pooling) -> torch.Tensor:
    """One text by itself, unpadded, through the whole model."""
    with torch.no_grad():
        states = model(torch.tensor([text]), output_hidden_states=True).hidden_states
    chosen = {"last": states[3], "middle": states[2], "mean": sum(states[1:]) / 3}[layer][0]
    return chosen[-1] if pooling == "last" else chosen.mean(dim=0)


@pytest.mark.parametrize("layer", LAYERS)
@pytest.mark.parametrize("pooling", POOLINGS)
@pytest.mark.parametrize("padding_side", ["right", "left"])
@pytest.mark.parametrize("batch_size", [1, 4, 50])
def test_states_equal_those_of_each_text_alone_whatever_the_batch_and_the_padding(
    model: PreTrainedModel,
    layer: Layer,
    pooling: Pooling,
    padding_side: Literal["right", "left"],
    batch_size: int,
) -> None:
    many = texts(11)
    pooled = pooled_hidden_states(
        model,
        many,
        layer=layer,
        pooling=pooling,
        batch_size=batch_size,
        padding_side=padding_side,
    )
    expected = torch.stack([naive(model, text, layer, pooling) for text in many])
    # Float32: batched and single matrix products round differently.
    torch.testing.assert_close(pooled, expected, rtol=1e-4, atol=1e-4 * float(expected.abs().max()))


def test_the_last_layer_is_the_normalised_output_of_the_decoder(model: PreTrainedModel) -> None:
    text = texts(1)[0]
    with torch.no_grad():
        output = model.base_model(torch.tensor([text])).last_hidden_state[0, -1]
    torch.testing.assert_close(pooled_hidden_states(model, [text])[0], output)


def test_layers_and_poolings_are_not_the_same_thing(model: PreTrainedModel) -> None:
    many = texts(4)
    variants = [
        pooled_hidden_states(model, many, layer=layer, pooling=pooling)
        for layer in LAYERS
        for pooling in POOLINGS
    ]
    for first in range(len(variants)):
        for second in range(first):
            assert not torch.allclose(variants[first], variants[second], rtol=1e-2)


@pytest.mark.parametrize("batch_size", [1, 5])
def test_scores_are_cosines_and_a_permutation_of_the_documents_permutes_them(
    model: PreTrainedModel, batch_size: int
) -> None:
    queries, documents = texts(3, seed=1), texts(9, seed=2)
    documents[4] = queries[1]
    scores = representation_similarity_scores(model, queries, documents, batch_size=batch_size)
    a, b = (
        torch.stack([naive(model, text, "last", "last") for text in group])
        for group in (queries, documents)
    )
    expected = torch.cosine_similarity(a[:, None], b[None], dim=-1)
    np.testing.assert_allclose(scores, expected.numpy(), atol=1e-4)
    assert scores[1].argmax() == 4
    assert scores[1, 4] == pytest.approx(1.0, abs=1e-5)
    order = np.random.default_rng(3).permutation(9)
    permuted = representation_similarity_scores(
        model, queries, [documents[index] for index in order], batch_size=batch_size
    )
    np.testing.assert_allclose(permuted, scores[:, order], atol=1e-4)


def test_the_model_is_left_as_it_was_after_an_error_too(model: PreTrainedModel) -> None:
    model.train()
    next(model.base_model.children()).eval()
    before = [module.training for module in model.modules()]
    assert len(set(before)) == 2
    pooled_hidden_states(model, texts(2))
    assert [module.training for module in model.modules()] == before
    with pytest.raises(IndexError):
        pooled_hidden_states(model, [[VOCAB + 5]])
    assert [module.training for module in model.modules()] == before
    assert all(parameter.grad is None for parameter in model.parameters())
    assert all(parameter.requires_grad for parameter in model.parameters())
    model.eval()


def test_dropout_is_off_even_for_a_model_in_training() -> None:
    config = GPT2Config(vocab_size=VOCAB, n_embd=24, n_layer=2, n_head=4, n_positions=64)
    noisy = AutoModelForCausalLM.from_config(config, dtype=torch.float32).train()
    many = texts(3)
    assert torch.equal(pooled_hidden_states(noisy, many), pooled_hidden_states(noisy, many))


def test_states_of_a_bfloat16_model_are_pooled_in_float32(model: PreTrainedModel) -> None:
    many = texts(3)
    full = pooled_hidden_states(model, many, pooling="mean")
    reduced = AutoModelForCausalLM.from_config(model.config, dtype=torch.bfloat16)
    reduced.load_state_dict(model.state_dict())
    states = pooled_hidden_states(reduced, many, pooling="mean")
    assert states.dtype == torch.float32
    assert not torch.equal(states, states.bfloat16().float())
    assert torch.cosine_similarity(states, full).min() > 0.99


def test_empty_texts_and_broken_states_are_refused_by_number(model: PreTrainedModel) -> None:
    with pytest.raises(ValueError, match="got text 1 empty"):
        pooled_hidden_states(model, [[1], []])
    with pytest.raises(ValueError, match="got none"):
        pooled_hidden_states(model, [])
    embedding = model.get_input_embeddings().weight
    original = embedding.detach().clone()
    with torch.no_grad():
        embedding[7] = float("nan")
    try:
        with pytest.raises(ValueError, match="text 2: its hidden state is not finite"):
            pooled_hidden_states(model, [[1, 2, 3], [4], [5, 7]])
    finally:
        with torch.no_grad():
            embedding.copy_(original)
