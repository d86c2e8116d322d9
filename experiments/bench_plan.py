"""How near to the truth is the time that --plan foretells?

    uv run experiments/bench_plan.py
    uv run experiments/bench_plan.py --num-examples 2048 --width 512

A randomly initialised OLMo-2 in float32 on examples of many lengths. fit-hessians is planned and
then run, stage by stage, and so is run-query, in one process and with the same flags. Memory and
disk are compared in tests/test_plan.py, in processes of their own.

Expected: every long stage within 25 % of what was foretold, on a machine that does nothing else.
Other work on it disturbs either side: the table is of one run. About 3 minutes on an idle core.
"""

import json
import random
import tempfile
import time
from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path

import tyro
from rich.console import Console
from rich.table import Table


@dataclass(frozen=True)
class Config:
    """What is planned and run."""

    num_examples: int = 512
    """Examples that the curvature is fitted on."""
    num_train: int = 256
    """Training examples that are scored."""
    num_queries: int = 16
    """Queries."""
    width: int = 256
    """Hidden size; the MLP is four times as wide."""
    layers: int = 4
    """Decoder layers."""
    longest: int = 128
    """Words of the longest example, about as many tokens; the shortest has an eighth of it."""
    seed: int = 0
    """Seed of the model and the data."""


def main(config: Config) -> None:
    """Plan, run, and print both."""
    with tempfile.TemporaryDirectory() as folder:
        root = Path(folder)
        write_inputs(config, root)
        rows = [*fit_rows(root), *query_rows(root)]
    table = Table(title=f"seconds, OLMo-2 of {config.layers} layers and width {config.width}")
    for column in ("stage", "foretold", "taken", "foretold / taken"):
        table.add_column(column, justify="left" if column == "stage" else "right")
    for stage, foretold, taken in rows:
        table.add_row(stage, f"{foretold:.2f}", f"{taken:.2f}", f"{foretold / taken:.2f}")
    Console().print(table)


def write_inputs(config: Config, root: Path) -> None:
    """A model with a tokenizer of words, token ids, and pairs."""
    import torch
    from tokenizers import Tokenizer, models, pre_tokenizers
    from transformers import AutoModelForCausalLM, Olmo2Config, PreTrainedTokenizerFast

    words = [f"w{n}" for n in range(1000)]
    vocabulary = {word: number for number, word in enumerate(["<eos>", *words])}
    tokenizer = Tokenizer(models.WordLevel(vocabulary, unk_token="<eos>"))
    tokenizer.pre_tokenizer = pre_tokenizers.Whitespace()
    named = PreTrainedTokenizerFast(tokenizer_object=tokenizer, eos_token="<eos>")
    named.save_pretrained(root / "model")
    with torch.random.fork_rng():
        torch.manual_seed(config.seed)
        model = AutoModelForCausalLM.from_config(
            Olmo2Config(
                vocab_size=len(vocabulary),
                hidden_size=config.width,
                intermediate_size=4 * config.width,
                num_hidden_layers=config.layers,
                num_attention_heads=4,
                max_position_embeddings=2 * config.longest,
                eos_token_id=0,
                pad_token_id=0,
            ),
            dtype=torch.float32,
        )
    model.save_pretrained(root / "model")
    draw = random.Random(config.seed)

    def text() -> str:
        return " ".join(draw.choices(words, k=draw.randint(config.longest // 8, config.longest)))

    with (root / "tokens.jsonl").open("w") as file:
        for _ in range(config.num_examples):
            file.write(json.dumps({"input_ids": named.encode(text())}) + "\n")
    for name, count in (("train", config.num_train), ("query", config.num_queries)):
        pairs = [{"pair_id": str(n), "prompt": "", "completion": text()} for n in range(count)]
        (root / f"{name}.json").write_text(json.dumps(pairs))


def fit_rows(root: Path) -> list[tuple[str, float, float]]:
    """(stage, seconds foretold, seconds taken) of fit-hessians."""
    from if_query.fit_hessians import FitHessiansConfig, prepare
    from if_query.fit_stages import decompose_covariances, fit_covariances, fit_eigenvalues
    from if_query.plan.fit_plan import plan_fit

    fit, metadata = prepare(
        FitHessiansConfig(
            model=str(root / "model"),
            hessian_dataset=root / "tokens.jsonl",
            output_dir=root / "factors",
            dtype="float32",
        )
    )
    plan = plan_fit(fit, num_groups=None, memory_gb=None)
    fit.store.metadata = metadata
    stages: dict[str, Callable[..., None]] = {
        "covariances": fit_covariances,
        "eigenbases": decompose_covariances,
        "eigenvalues": fit_eigenvalues,
    }
    foretold = {one.name: one.seconds for one in plan.stages}
    rows = []
    for name, stage in stages.items():
        start = time.perf_counter()
        stage(fit)
        rows.append((name, foretold[name], time.perf_counter() - start))
    return rows


def query_rows(root: Path) -> list[tuple[str, float, float]]:
    """The same of run-query, whose stages are timed together."""
    from if_query.plan.query_plan import plan_query
    from if_query.plan.query_trials import QueryTrials
    from if_query.query_memory import choose_memory, place_factors
    from if_query.query_pass import score_all
    from if_query.results import write_results
    from if_query.run_query import RunQueryConfig, prepare

    run, store = prepare(
        RunQueryConfig(
            model=str(root / "model"),
            factors_dir=root / "factors",
            train_json=root / "train.json",
            query_json=root / "query.json",
            output_dir=root / "results",
            dtype="float32",
        )
    )
    plan = plan_query(run, store)
    foretold = sum(one.seconds for one in plan.stages)
    start = time.perf_counter()
    memory = choose_memory(run, store, QueryTrials(run, store.strategy))
    run = place_factors(run, store, memory)
    write_results(run, *score_all(run))
    return [("run-query in all", foretold, time.perf_counter() - start)]


if __name__ == "__main__":
    main(tyro.cli(Config))
