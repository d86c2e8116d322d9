"""The files of a query run: three tables, and matrices beside them."""

import json
from collections.abc import Iterator, Sequence
from typing import Any

import numpy as np
import pyarrow as pa

from if_query.models import load_tokenizer
from if_query.query_pass import Examples, Run
from if_query.score_arrays import ScoreArrays, best_and_worst
from if_query.tables import extra_columns, extra_values, write_table
from if_query.whole_files import replacing


def write_results(run: Run, arrays: ScoreArrays, losses: list[float]) -> None:
    """Write the tables; each is the old one or the new one."""
    config, folder = run.config, run.config.output_dir
    text, real = pa.string(), pa.float32()

    def write(name: str, columns: list[str], rows: Iterator[list[Any]], types: list[Any]) -> None:
        write_table(folder / f"{name}.{config.format}", columns, rows, types)

    def example_table(
        name: str, examples: Examples, number: str | None, values: Sequence[float] | np.ndarray
    ) -> None:
        own = [f"{name}_id", "prompt", "completion", *([number] if number else [])]
        extras = extra_columns(examples.pairs, own)
        types = [text] * 3 + [real] * (len(own) - 3) + [text] * len(extras)
        rows = (
            [
                pair.pair_id,
                pair.prompt,
                pair.completion,
                *([float(values[row])] if number else []),
                *extra_values(pair, extras),
            ]
            for row, pair in enumerate(examples.pairs)
        )
        write(name, own + list(extras.values()), rows, types)

    example_table("query", run.queries, "loss", losses)
    own_influence = arrays.self_influence
    example_table(
        "train",
        run.train,
        None if own_influence is None else "self_influence",
        [] if own_influence is None else own_influence,
    )
    write(
        "influences",
        ["query_id", "train_id", "influence_score"]
        + (["per_token_scores"] if config.per_token_scores else []),
        _influence_rows(run, arrays),
        [text, text, real] + ([pa.list_(real)] if config.per_token_scores else []),
    )
    if arrays.module_scores is not None:
        names = list(run.tracked.maps)
        write(
            "module_scores",
            ["query_id", "train_id", *names],
            _module_rows(run, arrays),
            [text, text] + [real] * len(names),
        )
    if config.per_token_scores:
        _write_tokens(run)
    with replacing(folder / "scores.npy") as temporary, temporary.open("wb") as file:
        np.save(file, np.asarray(arrays.scores))


def _kept_rows(run: Run, arrays: ScoreArrays, query: int) -> list[int]:

    if run.config.top_k is None:
        return list(range(len(run.train.pairs)))
    return best_and_worst(arrays.scores[query], run.config.top_k)


def _influence_rows(run: Run, arrays: ScoreArrays) -> Iterator[list[Any]]:
    for query, asked in enumerate(run.queries.pairs):
        for row in _kept_rows(run, arrays, query):
            values = [asked.pair_id, run.train.pairs[row].pair_id, float(arrays.scores[query, row])]
            if arrays.token_scores is not None:
                values.append(arrays.token_scores[query, arrays.tokens_of(row)].tolist())
            yield values


def _module_rows(run: Run, arrays: ScoreArrays) -> Iterator[list[Any]]:
    assert arrays.module_scores is not None
    for query, asked in enumerate(run.queries.pairs):
        for row in _kept_rows(run, arrays, query):
            scores = arrays.module_scores[:, query, row].tolist()
            yield [asked.pair_id, run.train.pairs[row].pair_id, *scores]


def _write_tokens(run: Run) -> None:
    """train_tokens.jsonl: the token strings of every training example, in the order of scores."""
    tokenizer = load_tokenizer(run.config.model, revision=run.config.revision)
    path = run.config.output_dir / "train_tokens.jsonl"
    with replacing(path) as temporary, temporary.open("w", encoding="utf-8") as file:
        for pair, example in zip(run.train.pairs, run.train.dataset, strict=True):
            tokens = [tokenizer.decode([token]) for token in example.input_ids]
            row = {"train_id": pair.pair_id, "tokens": tokens}
            file.write(json.dumps(row, ensure_ascii=False) + "\n")
