"""Tiny, randomly initialised models of the real architectures, in float64."""

import importlib
import json
import random
from collections.abc import Callable
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import paraphrase_cases
import pytest
import torch
from hops.world import build_world
from lds_cases import TINY
from method_script_cases import EXPERIMENTS, documents, write
from tokenizers import Tokenizer, decoders, pre_tokenizers
from tokenizers.models import BPE
from tokenizers.trainers import BpeTrainer
from transformers import (
    AutoModelForCausalLM,
    GPT2Config,
    GPTNeoXConfig,
    LlamaConfig,
    Olmo2Config,
    OlmoeConfig,
    PreTrainedTokenizerFast,
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
    "olmoe": lambda: OlmoeConfig(
        **_COMMON, num_experts=4, num_experts_per_tok=2, experts_implementation="eager"
    ),
}


def build_model(
    architecture: str,
    *,
    dtype: torch.dtype = torch.float64,
    seed: int = 0,
    vocab_size: int = VOCAB,
    std: float = 0.3,
) -> Any:
    """A model with weights large enough that every map matters."""
    with torch.random.fork_rng():
        torch.manual_seed(seed)
        config = CONFIGS[architecture]()
        config.vocab_size = vocab_size
        model = AutoModelForCausalLM.from_config(config, dtype=torch.float32)
        for parameter in model.parameters():
            if parameter.ndim > 1:
                torch.nn.init.normal_(parameter, std=std)
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


TEXT = [
    "The capital of France is Paris and the capital of Peru is Lima.",
    "Two and three are five; seven and two are nine.",
    "Emma was written by Jane Austen, and Ulysses by James Joyce.",
    "A short line.",
]


def save_tokenizer(folder: Path, *, eos: bool = True) -> int:
    """A byte-level BPE tokenizer beside a model; its vocabulary size."""
    tokenizer = Tokenizer(BPE())
    tokenizer.pre_tokenizer = pre_tokenizers.ByteLevel(add_prefix_space=False)
    tokenizer.decoder = decoders.ByteLevel()
    special = ["<eos>", "<pad>"] if eos else []
    trainer = BpeTrainer(
        vocab_size=300,
        special_tokens=special,
        initial_alphabet=pre_tokenizers.ByteLevel.alphabet(),
        show_progress=False,
    )
    tokenizer.train_from_iterator(TEXT, trainer)
    names = {"eos_token": "<eos>", "pad_token": "<pad>"} if eos else {}
    PreTrainedTokenizerFast(tokenizer_object=tokenizer, **names).save_pretrained(folder)
    return tokenizer.get_vocab_size()


@pytest.fixture(scope="session")
def make_model_folder(tmp_path_factory: pytest.TempPathFactory) -> Callable[..., Path]:
    """A saved float32 model with its tokenizer; one folder per architecture and seed."""
    folders: dict[tuple[Any, ...], Path] = {}

    def make(
        architecture: str = "olmo2", *, seed: int = 0, eos: bool = True, std: float = 0.3
    ) -> Path:
        key = (architecture, seed, eos, std)
        if key not in folders:
            folder = tmp_path_factory.mktemp(f"{architecture}-{seed}")
            vocab = save_tokenizer(folder, eos=eos)
            model = build_model(
                architecture, dtype=torch.float32, seed=seed, vocab_size=vocab, std=std
            )
            model.save_pretrained(folder)
            folders[key] = folder
        return folders[key]

    return make


@pytest.fixture(scope="session")
def token_data(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A small data set of ids and labels, in JSONL: lengths 2 to 12, some prompts unlabelled."""
    generator = random.Random(3)
    path = tmp_path_factory.mktemp("data") / "tokens.jsonl"
    with path.open("w") as file:
        for row in range(14):
            ids = [generator.randrange(2, 250) for _ in range(2 + row * 5 % 11)]
            labels = [-100 if place < row % 3 else token for place, token in enumerate(ids)]
            file.write(json.dumps({"input_ids": ids, "labels": labels}) + "\n")
    return path


def write_pairs(path: Path, pairs: list[dict[str, Any]]) -> Path:
    path.write_text(json.dumps(pairs))
    return path


@pytest.fixture(scope="session")
def pair_files(tmp_path_factory: pytest.TempPathFactory) -> tuple[Path, Path]:
    """(train.json, query.json): six training examples and two queries of unlike lengths."""
    folder = tmp_path_factory.mktemp("pairs")
    train = [
        {"pair_id": f"t{n}", "prompt": prompt, "completion": completion, "topic": topic}
        for n, (prompt, completion, topic) in enumerate(
            [
                ("The capital of France is", " Paris.", "capitals"),
                ("", "The capital of Peru is Lima, as everybody knows who was there.", "capitals"),
                ("Two and three are", " five", "sums"),
                ("Seven and", " two are nine.", "sums"),
                ("Emma was written by", " Jane Austen", "authors"),
                ("Ulysses", " by James Joyce", "authors"),
            ]
        )
    ]
    query = [
        {"pair_id": "q0", "prompt": "The capital of Peru is", "completion": " Lima"},
        {"pair_id": "q1", "prompt": "Two and two are", "completion": " four", "score": 3},
    ]
    return write_pairs(folder / "train.json", train), write_pairs(folder / "query.json", query)


@pytest.fixture(scope="session")
def fitted(
    make_model_folder: Callable[..., Path],
    token_data: Path,
    tmp_path_factory: pytest.TempPathFactory,
) -> Path:
    """EK-FAC factors of the default model on `token_data`."""
    from if_query_commands import fit

    return fit(make_model_folder(), token_data, tmp_path_factory.mktemp("factors") / "ekfac")


# The methods' scripts


@pytest.fixture
def method_script(monkeypatch):
    """The module that all of them share, as `uv run` would import it."""
    monkeypatch.syspath_prepend(str(EXPERIMENTS))
    return importlib.import_module("utils.method_script")


@pytest.fixture
def methods(method_script):
    return importlib.import_module("utils.attribution_methods").METHODS


@pytest.fixture(scope="session")
def two_models(make_model_folder):
    return make_model_folder("olmo2", seed=0), make_model_folder("olmo2", seed=1)


@pytest.fixture
def run_method(method_script, methods, two_models, tmp_path):
    """Runs a method's command: its name and further flags, which win; gives the rows' path."""

    def run(name, flags="", *, dataset=None, output="results/out.jsonl"):
        path = tmp_path / output
        data = dataset or write(tmp_path / "data.jsonl", documents())
        base = f"--dataset {data} --output {path} --device cpu --inputs 5 17 "
        base += f"--old {two_models[0]} --new {two_models[1]} "
        method_script.run_method(name, methods[name], None, (base + flags).split())
        return path

    return run


# Retrained models, and the scripts over them


@pytest.fixture(scope="session")
def tiny_world(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """Documents, queries and two trained models."""
    return build_world(tmp_path_factory.mktemp("world"), preset=TINY).output_dir


@pytest.fixture
def script_utils(monkeypatch):
    """The modules that the scripts share, as `uv run` would import them."""
    monkeypatch.syspath_prepend(str(EXPERIMENTS))
    names = ("retrained_bank", "retrained_models", "leave_out", "worlds", "scored_methods")
    modules = {name: importlib.import_module(f"utils.{name}") for name in names}
    modules["task"] = importlib.import_module("utils.attribution_task").AttributionTask
    return modules


@pytest.fixture
def tiny_task(script_utils, tiny_world):
    return script_utils["task"].read(script_utils["worlds"].task_of_world(tiny_world))


@pytest.fixture
def lds_scripts(monkeypatch):
    monkeypatch.syspath_prepend(str(EXPERIMENTS))
    return {name: importlib.import_module(name) for name in ("lds", "leaderboard")}


# Paraphrases


@pytest.fixture
def paraphrase_scripts(monkeypatch):
    """The scripts' main functions, as `uv run` would import them."""
    monkeypatch.syspath_prepend(str(EXPERIMENTS))
    names = ("dataset", "similarity", "slurm")
    loaded = {name: importlib.import_module(f"paraphrase_{name}") for name in names}
    return SimpleNamespace(**{name: module.main for name, module in loaded.items()})


@pytest.fixture
def paraphrase_data(tmp_path):
    """Eight conversations with paraphrases."""
    return paraphrase_cases.write(tmp_path / "data.jsonl", paraphrase_cases.samples())


@pytest.fixture
def start_similarity(paraphrase_scripts, paraphrase_data, make_model_folder, tmp_path):
    """Runs `paraphrase_similarity.py` on the tiny model; further flags as one string."""
    base = f"--model {make_model_folder()} --dataset {paraphrase_data} --device cpu"

    def run(flags, folder="results"):
        paraphrase_scripts.similarity(f"{base} --output-dir {tmp_path / folder} {flags}".split())
        return tmp_path / folder

    return run
