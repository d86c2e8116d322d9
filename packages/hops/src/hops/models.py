"""Small models of real architectures, with a tokenizer trained on the documents.

``tiny-olmo2`` and ``tiny-llama`` are ``Olmo2ForCausalLM`` and ``LlamaForCausalLM`` with random
weights; nothing is downloaded.  Any other model name is a local folder or a Hugging Face id.
"""

from collections.abc import Iterable, Sequence
from pathlib import Path
from typing import Any, Literal, cast, get_args

import torch
from tokenizers import Tokenizer, decoders, pre_tokenizers
from tokenizers.models import BPE
from tokenizers.trainers import BpeTrainer
from transformers import (
    AutoModelForCausalLM,
    AutoTokenizer,
    LlamaConfig,
    LlamaForCausalLM,
    Olmo2Config,
    Olmo2ForCausalLM,
    PreTrainedModel,
    PreTrainedTokenizerFast,
)

from hops.errors import HopsError

TinyModel = Literal["tiny-olmo2", "tiny-llama"]
TINY_MODELS: tuple[str, ...] = get_args(TinyModel)

EOS_TOKEN, PAD_TOKEN = "<|endoftext|>", "<|pad|>"


def train_tokenizer(
    texts: Iterable[str],
    *,
    vocab_size: int = 1200,
    function_names: Sequence[str] = (),
    split_numbers: bool = False,
) -> PreTrainedTokenizerFast:
    """Train a byte-level BPE tokenizer.

    Args:
        texts: What to train on.
        vocab_size: The vocabulary, with 256 bytes and two special tokens in it.
        function_names: Cut out of the texts first, so that no merge is spent on names that
            become tokens of their own.
        split_numbers: Whether a number is separated from the space before it and into single
            digits; otherwise " 15" may become one token.

    Returns:
        A tokenizer with an end-of-text and a padding token.

    Raises:
        HopsError: The vocabulary is too small for the bytes.
    """
    if vocab_size < 258:
        raise HopsError(f"A byte-level vocabulary needs at least 258 entries, not {vocab_size}.")
    tokenizer = Tokenizer(BPE())
    byte_level = pre_tokenizers.ByteLevel(add_prefix_space=False, use_regex=True)
    digits = pre_tokenizers.Digits(individual_digits=True)
    tokenizer.pre_tokenizer = (
        pre_tokenizers.Sequence([digits, byte_level]) if split_numbers else byte_level
    )
    tokenizer.decoder = decoders.ByteLevel()
    trainer = BpeTrainer(
        vocab_size=vocab_size,
        special_tokens=[EOS_TOKEN, PAD_TOKEN],
        initial_alphabet=sorted(pre_tokenizers.ByteLevel.alphabet()),
        show_progress=False,
    )
    tokenizer.train_from_iterator((_without(text, function_names) for text in texts), trainer)
    return PreTrainedTokenizerFast(
        tokenizer_object=tokenizer,
        eos_token=EOS_TOKEN,
        pad_token=PAD_TOKEN,
        model_max_length=1024,
        clean_up_tokenization_spaces=False,
    )


def _without(text: str, names: Sequence[str]) -> str:
    for name in names:
        text = text.replace(name, " ")
    return text


def build_tiny_model(
    name: TinyModel,
    tokenizer: PreTrainedTokenizerFast,
    *,
    hidden_size: int = 128,
    num_layers: int = 3,
    seed: int = 0,
) -> PreTrainedModel:
    """Build a randomly initialised model for a tokenizer.

    Args:
        name: The architecture.
        tokenizer: Fixes the vocabulary and the special ids.
        hidden_size: The width, a multiple of 32 (heads are 32 wide).
        num_layers: The number of decoder layers.
        seed: Seeds the initialisation; the global generator is left as it was.

    Returns:
        A float32 model on the CPU.

    Raises:
        HopsError: The name or a size is not usable.
    """
    if name not in TINY_MODELS:
        raise HopsError(f"Unknown tiny model {name!r}; expected one of {', '.join(TINY_MODELS)}.")
    if hidden_size < 32 or hidden_size % 32 or num_layers < 1:
        raise HopsError(
            f"A tiny model needs a width that is a multiple of 32 and at least one layer, "
            f"not {hidden_size} and {num_layers}."
        )
    sizes: dict[str, Any] = {
        "vocab_size": len(tokenizer),
        "hidden_size": hidden_size,
        "intermediate_size": 2 * hidden_size,
        "num_hidden_layers": num_layers,
        "num_attention_heads": hidden_size // 32,
        "num_key_value_heads": hidden_size // 32,
        "max_position_embeddings": 1024,
        "bos_token_id": None,
        "eos_token_id": tokenizer.eos_token_id,
        "pad_token_id": tokenizer.pad_token_id,
        "tie_word_embeddings": False,
        "initializer_range": 0.05,
        "use_cache": False,
    }
    with torch.random.fork_rng(devices=[]):
        torch.manual_seed(seed)
        if name == "tiny-olmo2":
            return Olmo2ForCausalLM(Olmo2Config(**sizes))
        return LlamaForCausalLM(LlamaConfig(**sizes))


def load_tokenizer(model: str | Path) -> PreTrainedTokenizerFast:
    """Load the tokenizer of a model folder or id; without a padding token, EOS pads.

    Raises:
        HopsError: There is no usable tokenizer.
    """
    _check_folder(model)
    try:
        tokenizer = AutoTokenizer.from_pretrained(str(model))
    except (OSError, ValueError) as error:
        raise HopsError(f"{model}: no tokenizer could be loaded ({_first_line(error)}).") from error
    if tokenizer.pad_token_id is None:
        tokenizer.pad_token = tokenizer.eos_token
    return cast(PreTrainedTokenizerFast, tokenizer)


def load_model(
    model: str | Path,
    *,
    dtype: torch.dtype | Literal["auto"] = torch.float32,
    device: str | None = None,
) -> PreTrainedModel:
    """Load a causal language model from safetensors, for inference or training.

    Args:
        model: A local folder or a Hugging Face id.
        dtype: The dtype of its weights; ``"auto"`` keeps that of the files.
        device: Where to put it; CUDA where there is one by default.

    Returns:
        The model, in evaluation mode.

    Raises:
        HopsError: The model cannot be loaded.
    """
    _check_folder(model)
    device = device or ("cuda" if torch.cuda.is_available() else "cpu")
    try:
        loaded = AutoModelForCausalLM.from_pretrained(str(model), dtype=dtype, use_safetensors=True)
    except (OSError, ValueError) as error:
        raise HopsError(f"{model}: no model could be loaded ({_first_line(error)}).") from error
    return cast(PreTrainedModel, cast(torch.nn.Module, loaded).to(device).eval())


def _check_folder(model: str | Path) -> None:
    """Say at once that a path is no model folder, instead of asking a hub for it."""
    path = Path(model)
    looks_like_path = path.is_absolute() or str(model).startswith(".") or len(path.parts) != 2
    if path.is_dir():
        if not (path / "config.json").is_file():
            raise HopsError(f"{model}: expected a model folder with a config.json in it.")
    elif looks_like_path or path.exists() or path.parent.exists():
        raise HopsError(f"{model}: no such model folder; expected one, or a Hugging Face id.")


def _first_line(error: Exception) -> str:
    return str(error).strip().split("\n")[0].rstrip(".")
