"""A tiny OLMo-2."""

import pytest
import torch
from transformers import AutoModelForCausalLM, Olmo2Config

VOCABULARY = 24


def make_model(seed=0, dtype=torch.float32):
    with torch.random.fork_rng():
        torch.manual_seed(seed)
        config = Olmo2Config(
            vocab_size=VOCABULARY,
            hidden_size=16,
            intermediate_size=24,
            num_hidden_layers=2,
            num_attention_heads=2,
            max_position_embeddings=32,
            initializer_range=0.3,
        )
        return AutoModelForCausalLM.from_config(config).to(dtype)


@pytest.fixture
def model():
    return make_model()


@pytest.fixture
def double_model():
    return make_model(dtype=torch.float64)


@pytest.fixture
def model_maker():
    return make_model
