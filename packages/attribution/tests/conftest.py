"""Pairs of tiny random checkpoints of the real architectures, and examples for them."""

from collections.abc import Callable
from typing import Any

import numpy as np
import pytest
import torch
from attribution.checkpoints import Checkpoints
from attribution.examples import Example
from attribution.gradient_similarity import EncodedExample
from transformers import (
    AutoModelForCausalLM,
    GPT2Config,
    GPTNeoXConfig,
    LlamaConfig,
    Olmo2Config,
    PreTrainedModel,
    Qwen3Config,
)

CHECKPOINT_VOCABULARY = 31
_SIZES: dict[str, Any] = {
    "vocab_size": CHECKPOINT_VOCABULARY,
    "hidden_size": 12,
    "intermediate_size": 20,
    "num_hidden_layers": 3,
    "num_attention_heads": 2,
    "max_position_embeddings": 64,
    "bos_token_id": 0,
    "eos_token_id": 1,
    "pad_token_id": 2,
}
_CONFIGS: dict[str, Callable[[], Any]] = {
    "olmo2": lambda: Olmo2Config(**_SIZES),
    "llama": lambda: LlamaConfig(**_SIZES, num_key_value_heads=1, tie_word_embeddings=True),
    "qwen3": lambda: Qwen3Config(**_SIZES, num_key_value_heads=1, head_dim=8),
    "gpt_neox": lambda: GPTNeoXConfig(**_SIZES),
    "gpt2": lambda: GPT2Config(
        vocab_size=CHECKPOINT_VOCABULARY,
        n_embd=12,
        n_layer=3,
        n_head=2,
        n_inner=20,
        n_positions=64,
    ),
}


def _model(architecture: str, seed: int, dtype: torch.dtype, std: float) -> PreTrainedModel:
    with torch.random.fork_rng():
        torch.manual_seed(seed)
        model = AutoModelForCausalLM.from_config(_CONFIGS[architecture](), dtype=torch.float32)
        for parameter in model.parameters():  # large enough that every part matters
            torch.nn.init.normal_(parameter, mean=float(parameter.ndim == 1), std=std)
    model = model.to(dtype).eval()
    if dtype == torch.float64:
        _use_float64_norms(model)
    return model


def _use_float64_norms(model: PreTrainedModel) -> None:
    """Hugging Face computes RMSNorm in float32 in any model, which would drown small errors."""
    for parent in list(model.modules()):
        for name, child in list(parent.named_children()):
            if type(child).__name__.endswith("RMSNorm"):
                norm = torch.nn.RMSNorm(child.weight.shape, eps=child.variance_epsilon)
                norm.weight = child.weight
                setattr(parent, name, norm)


@pytest.fixture(scope="session")
def make_checkpoints() -> Callable[..., Checkpoints]:
    """An old model, and a new one whose every parameter (the head's too) differs from it."""

    def make(
        architecture: str = "olmo2", dtype: torch.dtype = torch.float64, std: float = 0.3
    ) -> Checkpoints:
        return Checkpoints(
            _model(architecture, 0, dtype, std),
            _model(architecture, 1, dtype, std),
        )

    return make


@pytest.fixture(scope="session")
def build() -> Callable[..., PreTrainedModel]:
    """A new model of its own, float64 to the norms unless asked otherwise."""

    def make(architecture: str, dtype: torch.dtype = torch.float64) -> PreTrainedModel:
        return _model(architecture, 0, dtype, 0.3)

    return make


@pytest.fixture(scope="session")
def encode() -> Callable[..., list[EncodedExample]]:
    """Some random conversations of 4 to 14 tokens, the labels being the end of each."""

    def make(count: int, seed: int, first_key: int = 0) -> list[EncodedExample]:
        generator = np.random.default_rng(seed)
        made = []
        for key in range(first_key, first_key + count):
            length = int(generator.integers(4, 15))
            ids = generator.integers(1, CHECKPOINT_VOCABULARY, size=length).tolist()
            prompt = int(generator.integers(1, length - 1))
            made.append(EncodedExample(tuple(ids), (-100,) * prompt + tuple(ids[prompt:]), key))
        return made

    return make


@pytest.fixture(scope="session")
def examples() -> list[Example]:
    """Whole texts, answers of one and two tokens, and a span within a text; 2 to 11 tokens."""
    generator = torch.Generator().manual_seed(3)
    texts = [
        torch.randint(3, CHECKPOINT_VOCABULARY, (length,), generator=generator).tolist()
        for length in (5, 11, 2, 7, 9, 4)
    ]
    return [
        Example.whole_text(texts[0]),
        Example.answer(texts[1][:-1], texts[1][-1:]),
        Example.whole_text(texts[2]),
        Example.answer(texts[3][:-2], texts[3][-2:]),
        Example(tuple(texts[4]), (3, 6)),
        Example.whole_text(texts[5], end_id=1),
    ]
