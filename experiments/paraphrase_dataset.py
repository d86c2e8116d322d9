"""Make the two columns of queries: paraphrased samples, and a model's answers to them.

Question: none of its own; it makes what paraphrase_similarity.py compares.

Command:   uv run experiments/paraphrase_dataset.py --dataset D --output data.jsonl \
               --dataset-type both --model M
Result:    the data set with `paraphrased_messages` (user and assistant each rewritten) and
           `model_generated_messages` (the rewritten question with M's greedy answer)
Run time:  that of writer and model; replies are kept beside the output, each asked for only once
"""

import json
from collections.abc import Sequence
from dataclasses import replace
from pathlib import Path
from typing import Any, Literal

from if_query.command_line import parse
from if_query.errors import InputError
from pydantic import ConfigDict
from pydantic.dataclasses import dataclass
from utils.paraphrase_config import SHIPPED_DATA, one_line_errors


@dataclass(frozen=True, config=ConfigDict(extra="forbid"))
class DatasetConfig:
    """Rewrite samples, and have a model answer the rewritten questions."""

    output: Path
    """JSONL file (a name that ends in .jsonl or .json), or a folder for `datasets` to load."""
    dataset_type: Literal["paraphrased", "model-generated", "both"] = "both"
    """Which column to make; model-generated needs the paraphrased one in the data set."""
    dataset: str = str(SHIPPED_DATA)
    """JSONL file, folder that `datasets` saved, or Hugging Face id."""
    writer: Literal["local", "anthropic"] = "local"
    """Who rewrites: a local Hugging Face model, or Claude (needs attribution[anthropic])."""
    writer_model: str | None = None
    """The model that rewrites; --model by default for a local writer."""
    model: str | None = None
    """The model whose gradients will be compared; it answers the rewritten questions."""
    max_new_tokens: int = 512
    """Longest text that a model writes."""
    sample_size: int | None = None
    """Use so many samples, chosen at random; all by default."""
    seed: int = 42
    """Seed of that choice."""
    device: str | None = None
    """Where local models run; CUDA where there is one by default."""
    replies: Path | None = None
    """Replies of writer and model, kept as JSONL; OUTPUT's name with .replies.jsonl by default."""
    overwrite: bool = False
    """Replace an output file that is there."""


def main(args: Sequence[str] | None = None) -> None:
    """Make the columns that are asked for."""
    with one_line_errors():
        make_data_set(parse(DatasetConfig, program="paraphrase_dataset.py", args=args))


def make_data_set(config: DatasetConfig) -> None:
    """Read, rewrite, answer, check and write."""
    from attribution.paraphrases import choose_samples, read_samples, write_samples

    rewrites = config.dataset_type in ("paraphrased", "both")
    answers = config.dataset_type in ("model-generated", "both")
    if config.max_new_tokens < 1:
        raise InputError(f"expected --max-new-tokens of at least 1, got {config.max_new_tokens}")
    if answers and config.model is None:
        raise InputError(f"--dataset-type {config.dataset_type} needs --model, which answers")
    if config.output.exists() and not config.overwrite:
        raise InputError(f"{config.output}: already exists; pass --overwrite to replace it")
    samples = read_samples(
        config.dataset, required=("messages",) if rewrites else ("messages", "paraphrased_messages")
    )
    samples = choose_samples(samples, config.sample_size, seed=config.seed)
    models: dict[str, tuple[Any, Any]] = {}
    problems: dict[int, list[str]] = {}
    if rewrites:
        samples = paraphrased(samples, make_writer(config, models), problems)
    if answers:
        samples = answered(samples, make_answerer(config, models), problems)
    for number, found in problems.items():
        print(f"left out: sample {number}: {'; '.join(found)}")
    kept = [sample for sample in samples if sample.id not in problems]
    if not kept:
        raise InputError("every sample failed a check, so nothing is written; see the list above")
    write_samples(config.output, kept)
    print(f"wrote {len(kept)} samples to {config.output}; {len(problems)} failed a check")


def paraphrased(samples: list[Any], writer: Any, problems: dict[int, list[str]]) -> list[Any]:
    """Both sides rewritten; notes what fails a check."""
    from attribution.paraphrases import paraphrase, paraphrase_problems
    from tqdm import tqdm

    made = []
    for sample in tqdm(samples, desc="paraphrases", unit="sample"):
        turn = paraphrase(writer, sample.original)
        found = paraphrase_problems(sample.original, turn)
        if found:
            problems[sample.id] = found
        kept = {name: t for name, t in sample.turns.items() if name == "messages"}
        made.append(replace(sample, turns={**kept, "paraphrased_messages": turn}))
    return made


def answered(samples: list[Any], writer: Any, problems: dict[int, list[str]]) -> list[Any]:
    """The model's greedy answer to each rewritten question; notes empty ones."""
    from attribution.paraphrases import Turn
    from tqdm import tqdm

    made = []
    for sample in tqdm(samples, desc="answers", unit="sample"):
        question = sample.turns["paraphrased_messages"].user
        turn = Turn(question, "" if sample.id in problems else writer.reply(question))
        if not turn.assistant and sample.id not in problems:
            problems[sample.id] = ["model's answer: empty"]
        made.append(replace(sample, turns={**sample.turns, "model_generated_messages": turn}))
    return made


def make_writer(config: DatasetConfig, models: dict[str, tuple[Any, Any]]) -> Any:
    """The writer asked for, with its replies kept."""
    from attribution.paraphrases import AnthropicWriter, CachedWriter

    name = config.writer_model or (config.model if config.writer == "local" else None)
    if name is None:
        raise InputError(f"the writer {config.writer} needs --writer-model")
    writer = (
        AnthropicWriter(name, max_tokens=config.max_new_tokens)
        if config.writer == "anthropic"
        else local_writer(name, config, models)
    )
    return CachedWriter(writer, replies_path(config))


def make_answerer(config: DatasetConfig, models: dict[str, tuple[Any, Any]]) -> Any:
    """The model that answers, with its replies kept beside the writer's."""
    from attribution.paraphrases import CachedWriter

    return CachedWriter(local_writer(str(config.model), config, models), replies_path(config))


def replies_path(config: DatasetConfig) -> Path:
    """Where replies are kept."""
    return config.replies or config.output.with_name(f"{config.output.stem}.replies.jsonl")


def local_writer(name: str, config: DatasetConfig, models: dict[str, tuple[Any, Any]]) -> Any:
    """A local model that answers greedily; loaded once."""
    from attribution.gradient_similarity import model_fingerprint
    from attribution.paraphrases import LocalWriter
    from if_query.models import load_model, load_tokenizer

    if name not in models:
        tokenizer = load_tokenizer(name)
        models[name] = load_model(name, dtype="float32", device=config.device), tokenizer
    model, tokenizer = models[name]
    # A folder may hold another model tomorrow, so its name alone does not say who wrote.
    identity = json.dumps([name, model_fingerprint(model)[:16]])
    return LocalWriter(model, tokenizer, identity, max_new_tokens=config.max_new_tokens)


if __name__ == "__main__":
    main()
