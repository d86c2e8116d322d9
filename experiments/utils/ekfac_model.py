"""The model, data and settings that the EK-FAC benchmarks share."""

from collections.abc import Sequence
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any, Literal, Protocol

import torch
from math_utils.language_modeling import TokenBatch, sample_labels
from torch import Tensor
from transformers import AutoModelForCausalLM, Olmo2Config
from utils.ekfac_arithmetic import GatedDecoder, Workload

STAGES = ("covariances", "eigendecompositions", "corrected eigenvalues", "scores")


@dataclass(frozen=True)
class Preset:
    """A model, as OLMo-2 has it with MLPs 4 times as wide, and what is run on it."""

    num_layers: int
    width: int
    num_examples: int
    num_queries: int
    min_length: int
    max_length: int
    num_heads: int = 4
    vocabulary: int = 2048


PRESETS = {
    "small": Preset(4, 256, 256, 24, 16, 128),
    "large": Preset(8, 512, 64, 24, 16, 128),
    "1b": Preset(16, 2048, 1000, 8, 512, 512, num_heads=16, vocabulary=100_352),
}
FROM_PRESET = (
    "num_layers",
    "width",
    "num_examples",
    "num_queries",
    "min_length",
    "max_length",
    "vocabulary",
)


@dataclass(frozen=True)
class Config:
    """Time and peak memory of every stage of EK-FAC influence."""

    preset: Literal["small", "large", "1b"] = "small"
    """4 layers of width 256, 8 of width 512, or OLMo-2 of a billion parameters, which is for
    CUDA; what follows down to the vocabulary is the preset's where it is 0."""
    num_layers: int = 0
    """Layers."""
    width: int = 0
    """Width of the model; that of its MLPs is 4 times as much."""
    num_examples: int = 0
    """Training examples, which are also what curvature is fitted on."""
    num_queries: int = 0
    """Queries."""
    min_length: int = 0
    """Lengths are uniformly random from here."""
    max_length: int = 0
    """Lengths are uniformly random up to here."""
    vocabulary: int = 0
    """Tokens of the vocabulary; those of published models have 30,000 to 260,000."""
    fit_tokens: int | None = None
    """Our tokens per batch in both passes of the fit, padding counted; by default the fastest."""
    score_tokens: int | None = None
    """The same where examples are scored."""
    batch_sizes: tuple[int, ...] = (6, 8, 12)
    """What our trial goes through, as a number of the longest examples."""
    replay_bytes: int | None = None
    """What our covariance pass may keep, so that corrected eigenvalues need not run the whole model
    again; 0 keeps nothing, and by default it is a quarter of what is free, as in fit-hessians."""
    kronfluence: bool = True
    """Compare with kronfluence where it is installed."""
    bergson: bool = True
    """Compare with bergson where it is installed."""
    peer_batch_sizes: tuple[int, ...] = (8, 16, 32)
    """Batch sizes that a peer's trial goes through; bergson has as many of the longest examples."""
    repeats: int = 3
    """Rounds; medians over them are reported."""
    option_repeats: int = 2
    """Rounds of the table of options that change a number; 0 leaves the table out."""
    bfloat16: bool = False
    """Give that table a row with the model in bfloat16 even where there are no units for it: it
    takes a hundred times as long then, and only its correlation tells something."""
    train_steps: int = 150
    """Steps of AdamW, 16 examples each, that the model of that table is trained for."""
    threads: int = 2
    """CPU threads of torch."""
    device: Literal["cpu", "cuda"] | None = None
    """CUDA where there is one, otherwise the CPU."""
    seed: int = 0
    """Of weights, lengths, tokens and sampled labels."""
    output: Path = Path("results/bench_ekfac.json")
    """Where to write the rows; the tables go beside it, in Markdown."""

    def __post_init__(self) -> None:
        for name in FROM_PRESET:
            if not getattr(self, name):
                object.__setattr__(self, name, getattr(PRESETS[self.preset], name))


class System(Protocol):
    """One implementation; each stage uses the results of those before it."""

    def run(self, stage: str) -> Any:
        """Do one stage and keep its result; scores [query, train] are returned."""


# Model and data


def build_model(config: Config) -> Any:
    """The same weights at every call."""
    layers, width = sizes_of(config)
    preset = PRESETS[config.preset]
    with torch.random.fork_rng():
        torch.manual_seed(config.seed)
        model = AutoModelForCausalLM.from_config(
            Olmo2Config(
                vocab_size=config.vocabulary,
                hidden_size=width,
                intermediate_size=4 * width,
                num_hidden_layers=layers,
                num_attention_heads=preset.num_heads,
                max_position_embeddings=config.max_length,
                eos_token_id=1,
            ),
            dtype=torch.float32,
        )
    return model.to(config.device).eval()


def draw_lengths(config: Config, count: int, generator: torch.Generator) -> list[int]:
    """Uniformly random lengths in tokens."""
    bounds = (config.min_length, config.max_length + 1)
    lengths: list[int] = torch.randint(*bounds, (count,), generator=generator).tolist()
    return lengths


def make_sequences(config: Config, *, queries: bool = False) -> list[list[int]]:
    """Random tokens of uniformly random lengths."""
    generator = torch.Generator().manual_seed(config.seed + queries)
    count = config.num_queries if queries else config.num_examples
    lengths = draw_lengths(config, count, generator)
    return [
        torch.randint(3, config.vocabulary, (n,), generator=generator).tolist() for n in lengths
    ]


def collate_rows(sequences: Sequence[Sequence[int]], rows: Sequence[int]) -> TokenBatch:
    """Some of the sequences, every token of them a label."""
    chosen = [sequences[row] for row in rows]
    return TokenBatch.collate(chosen, chosen, rows)


def collate_in_order(config: Config, batch_size: int) -> list[TokenBatch]:
    """The training examples in their own, random order."""
    sequences, rows = make_sequences(config), range(config.num_examples)
    return [
        collate_rows(sequences, rows[first : first + batch_size]).to(device_of(config))
        for first in range(0, len(rows), batch_size)
    ]


def plain_pass(model: Any, batches: Sequence[TokenBatch]) -> None:
    """What an epoch of training costs without the optimizer."""
    for batch in batches:
        model.zero_grad(set_to_none=True)
        summed_loss(model, batch.input_ids, batch.label_positions()).backward()
    model.zero_grad(set_to_none=True)


def summed_loss(
    model: Any, input_ids: Tensor, predicts: Tensor, sampled: tuple[Tensor, int] | None = None
) -> Tensor:
    """Summed next-token cross-entropy where a position predicts a label."""
    return label_losses(model, input_ids, predicts, sampled).sum()


def label_losses(
    model: Any, input_ids: Tensor, predicts: Tensor, sampled: tuple[Tensor, int] | None = None
) -> Tensor:
    """Next-token cross-entropy of every position that predicts a label, row by row.

    Labels are the tokens, or those that our :func:`sample_labels` draws for (keys, seed), so that
    all systems fit the same Fisher. (torch.multinomial takes 6 times as long on a CPU.)
    """
    logits = model(input_ids=input_ids, use_cache=False).logits[predicts]
    if sampled is None:
        targets = input_ids[:, 1:][predicts[:, :-1]]
    else:
        keys, seed = sampled
        targets = sample_labels(logits, predicts.nonzero()[:, 0], keys, seed=seed)
    return torch.nn.functional.cross_entropy(logits, targets, reduction="none")


def device_of(config: Config) -> torch.device:
    """Where the models are."""
    return torch.device(config.device or "cpu")


def quarter_of(config: Config) -> Config:
    """With a quarter of the examples, for trials."""
    return replace(config, num_examples=max(1, config.num_examples // 4))


def sizes_of(config: Config) -> tuple[int, int]:
    """Layers and width of the model."""
    return config.num_layers, config.width


def shapes_of(config: Config) -> GatedDecoder:
    """The model for :mod:`utils.ekfac_arithmetic`."""
    layers, width = sizes_of(config)
    return GatedDecoder(layers, width, 4 * width, config.vocabulary)


def workloads_of(config: Config) -> tuple[Workload, Workload]:
    """(training examples, queries) for :mod:`utils.ekfac_arithmetic`."""
    train, queries = (make_sequences(config, queries=one) for one in (False, True))
    return Workload.of([len(ids) for ids in train]), Workload.of([len(ids) for ids in queries])
