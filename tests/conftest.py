"""Tiny, randomly initialised models of the real architectures, in float64."""

from collections.abc import Callable
from typing import Any

import pytest
import torch
from transformers import (
    AutoModelForCausalLM,
    GPT2Config,
    GPTNeoXConfig,
    LlamaConfig,
    Olmo2Config,
    OlmoeConfig,
    Qwen3Config,
)

VOCAB = 37

_COMMON: dict[str, Any] = {
    "vocab_size": VOCAB,
    "hidden_size": 12,
    "intermediate_size": 20,
    "num_hidden_layers": 3,
    "num_attention_heads": 2,
    "max_position_embeddings": 64,
    "bos_token_id": 0,
    "eos_token_id": 1,
    "pad_token_id": 2,
}

CONFIGS: dict[str, Callable[[], Any]] = {
    "olmo2": lambda: Olmo2Config(**_COMMON),
    "llama": lambda: LlamaConfig(**_COMMON, num_key_value_heads=1, tie_word_embeddings=True),
    "qwen3": lambda: Qwen3Config(**_COMMON, num_key_value_heads=1, head_dim=8),
    "gpt_neox": lambda: GPTNeoXConfig(**_COMMON),
    "gpt2": lambda: GPT2Config(
        vocab_size=VOCAB, n_embd=12, n_layer=3, n_head=2, n_inner=20, n_positions=64
    ),
    "olmoe": lambda: OlmoeConfig(**_COMMON, num_experts=4, num_experts_per_tok=2),
}


def build_model(architecture: str, *, dtype: torch.dtype = torch.float64, seed: int = 0) -> Any:
    """A model with weights large enough that every map matters."""
    with torch.random.fork_rng():
        torch.manual_seed(seed)
        model = AutoModelForCausalLM.from_config(CONFIGS[architecture](), dtype=torch.float32)
        for parameter in model.parameters():
            if parameter.ndim > 1:
                torch.nn.init.normal_(parameter, std=0.3)
            else:
                parameter.data += 0.1 * torch.randn_like(parameter)
    return model.to(dtype).eval()


@pytest.fixture(scope="session")
def make_model() -> Callable[..., Any]:
    return build_model


@pytest.fixture(scope="session")
def sequences() -> list[list[int]]:
    """Seven sequences of 2 to 13 tokens."""
    generator = torch.Generator().manual_seed(5)
    return [
        torch.randint(3, VOCAB, (length,), generator=generator).tolist()
        for length in (5, 2, 9, 13, 5, 7, 3)
    ]
