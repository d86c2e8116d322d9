"""What the options cost in accuracy that make EK-FAC cheaper, for bench_ekfac.py.

Random weights on random tokens are a poor judge of that: every gradient looks like every other. So
the model is trained for a short time, on sequences of four sources, each a random Markov chain, and
each example and query is of one of them.
"""

import statistics
from collections.abc import Sequence
from copy import deepcopy
from dataclasses import dataclass
from functools import partial
from typing import Any

import torch
from scipy.stats import spearmanr
from torch import Tensor
from tqdm import tqdm
from utils.ekfac_measuring import has_bfloat16_units, quick_garbage_collection, timed
from utils.ekfac_model import (
    STAGES,
    Config,
    build_model,
    collate_rows,
    device_of,
    draw_lengths,
    plain_pass,
    summed_loss,
)
from utils.ekfac_ours import Examples, Option, Ours
from utils.report_table import ReportTable

OPTIONS = (
    Option(),
    Option("float32 eigendecompositions", eigen_dtype=torch.float32),
    Option("bases from 1/2 of the examples", covariance_share=1 / 2),
    Option("bases from 1/4 of the examples", covariance_share=1 / 4),
    Option("bases from 1/8 of the examples", covariance_share=1 / 8),
    Option("queries of rank 8", rank=8),
    Option("queries of rank 32", rank=32),
)
BFLOAT16 = Option("model in bfloat16, statistics in float32", model_dtype=torch.bfloat16)
NOT_MEASURED = (
    "model in bfloat16: not measured, this CPU has no units for it and would emulate them"
)
PLAIN_BATCH = 8
TRAIN_BATCH = 16
LEARNING_RATE = 1e-3

NUM_SOURCES = 4
NUM_STATES = 256
"""Tokens that the sources use, all the same ones."""
NUM_SUCCESSORS = 4
"""Tokens that may follow a token, in one source."""


@dataclass(frozen=True)
class OptionRow:
    """One option against the exact path.

    Attributes:
        name: the option.
        seconds: of the whole job, all stages; median of the rounds.
        multiple: the same in plain passes.
        multiple_range: least and greatest of the rounds.
        pearson: correlation with the exact scores of a query, mean over queries.
        spearman: the same of ranks.
    """

    name: str
    seconds: float
    multiple: float
    multiple_range: tuple[float, float]
    pearson: float
    spearman: float


def measure_options(config: Config, rounds: int) -> list[OptionRow]:
    """Time of the whole job and correlation of its scores with the exact ones, for each option."""
    examples = trained_examples(config)
    options = (*OPTIONS, BFLOAT16) if measures_bfloat16(config) else OPTIONS
    plain_batches = [
        collate_rows(examples.train, range(first, min(first + PLAIN_BATCH, len(examples.train))))
        for first in range(0, len(examples.train), PLAIN_BATCH)
    ]
    plain_batches = [batch.to(device_of(config)) for batch in plain_batches]
    seconds: dict[str, list[float]] = {option.name: [] for option in options}
    multiples: dict[str, list[float]] = {option.name: [] for option in options}
    scores: dict[str, Tensor] = {}
    with quick_garbage_collection():
        for option in tqdm([one for _ in range(rounds) for one in options], desc="options"):
            own = Examples(deepcopy(examples.model), examples.train, examples.queries)
            system = Ours(config, own, option)
            plain, _ = timed(config, partial(plain_pass, examples.model, plain_batches))
            taken, found = timed(config, partial(_whole_job, system))
            scores[option.name] = found
            seconds[option.name].append(taken)
            multiples[option.name].append(taken / plain)
    exact = scores[OPTIONS[0].name]
    return [
        OptionRow(
            option.name,
            statistics.median(seconds[option.name]),
            statistics.median(multiples[option.name]),
            (min(multiples[option.name]), max(multiples[option.name])),
            *correlations(exact, scores[option.name]),
        )
        for option in options
    ]


def measures_bfloat16(config: Config) -> bool:
    """Whether the table has a row for it."""
    return config.bfloat16 or has_bfloat16_units(config)


def _whole_job(system: Ours) -> Any:
    for stage in STAGES:
        result = system.run(stage)
    return result


def correlations(exact: Tensor, found: Tensor) -> tuple[float, float]:
    """(Pearson, Spearman) of two matrices [query, train], each the mean over queries."""
    pairs = list(zip(exact.double(), found.double(), strict=True))
    pearson = [float(torch.corrcoef(torch.stack(pair))[0, 1]) for pair in pairs]
    spearman = [float(spearmanr(*(row.numpy() for row in pair)).statistic) for pair in pairs]
    return statistics.mean(pearson), statistics.mean(spearman)


def options_table(rows: Sequence[OptionRow], train_steps: int) -> ReportTable:
    """For a person."""
    return ReportTable(
        f"Options that change a number, on a model trained for {train_steps} steps",
        ("option", "whole job: s", "× plain", "Pearson", "Spearman"),
        [
            [
                row.name,
                f"{row.seconds:.2f}",
                f"{row.multiple:.2f}",
                f"{row.pearson:.5f}",
                f"{row.spearman:.5f}",
            ]
            for row in rows
        ],
    )


def trained_examples(config: Config) -> Examples:
    """A model trained for a short time, on the training examples among others like them."""
    generator = torch.Generator().manual_seed(config.seed + 2)
    sources = make_sources(generator)
    train = draw_sequences(config, sources, config.num_examples, generator)
    queries = draw_sequences(config, sources, config.num_queries, generator)
    model = build_model(config)
    optimizer = torch.optim.AdamW(model.parameters(), lr=LEARNING_RATE)
    for _ in tqdm(range(config.train_steps), desc="training"):
        rows = torch.randint(len(train), (TRAIN_BATCH,), generator=generator).tolist()
        batch = collate_rows(train, rows).to(device_of(config))
        loss = summed_loss(model, batch.input_ids, batch.label_positions()) / batch.num_tokens
        loss.backward()
        optimizer.step()
        optimizer.zero_grad(set_to_none=True)
    return Examples(model, train, queries)


def make_sources(generator: torch.Generator) -> Tensor:
    """[source, state, successor]: the tokens that may follow each token, all equally likely."""
    shape = (NUM_SOURCES, NUM_STATES, NUM_SUCCESSORS)
    return torch.randint(NUM_STATES, shape, generator=generator)


def draw_sequences(
    config: Config, sources: Tensor, count: int, generator: torch.Generator
) -> list[list[int]]:
    """Sequences of uniformly random lengths, each of one source."""
    sequences = []
    first = config.vocabulary - NUM_STATES
    for length in draw_lengths(config, count, generator):
        source = sources[int(torch.randint(NUM_SOURCES, (), generator=generator))]
        choices = torch.randint(NUM_SUCCESSORS, (length,), generator=generator).tolist()
        states = [int(torch.randint(NUM_STATES, (), generator=generator))]
        for choice in choices[1:]:
            states.append(int(source[states[-1], choice]))
        sequences.append([first + state for state in states])
    return sequences
