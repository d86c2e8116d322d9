"""Results folders as run-query writes them, made without a model."""

import hashlib
import json
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import pyarrow as pa
import pytest
import safetensors.numpy
from if_query.run_query import digest_of
from if_query.score_arrays import best_and_worst
from if_query.tables import write_table

MODULES = [f"model.layers.{layer}.mlp.{name}" for layer in (0, 1) for name in ("up", "down")]
Pairs = list[dict[str, Any]]


def pairs_of(kind: str, count: int, num_chars: int) -> Pairs:
    words = ["a", "river", "runs", "north", "of", "the", "old", "town", "and", "freezes"]
    generator = np.random.default_rng(len(kind))
    return [
        {
            "pair_id": f"{kind}_{n}",
            "prompt": f"Where is place {n}?",
            "completion": " ".join(generator.choice(words, size=num_chars // 5)),
            "topic": f"topic {n % 3}",
        }
        for n in range(count)
    ]


def write_results(
    folder: Path,
    *,
    train: Pairs | int = 30,
    queries: Pairs | int = 4,
    per_token: bool = False,
    per_module: bool = False,
    own_influence: bool = False,
    top_k: int | None = None,
    suffix: str = "csv",
    num_chars: int = 60,
    num_tokens: int = 12,
    **changes: Any,
) -> Path:
    """A results folder and, beside it, the factors folder that it names."""
    train = pairs_of("train", train, num_chars) if isinstance(train, int) else train
    queries = pairs_of("query", queries, 40) if isinstance(queries, int) else queries
    generator = np.random.default_rng(3)
    scores = generator.standard_t(3, size=(len(queries), len(train))).astype(np.float32)
    folder.mkdir(parents=True)
    text, real = pa.string(), pa.float32()
    losses = generator.gamma(2, size=len(queries)).astype(np.float32)
    own = generator.gamma(2, size=len(train)).astype(np.float32)
    for name, pairs, number in (("query", queries, losses), ("train", train, own)):
        numbered = name == "query" or own_influence
        columns = [f"{name}_id", "prompt", "completion"]
        columns += [{"query": "loss", "train": "self_influence"}[name]] * numbered
        extras = [key for key in pairs[0] if key not in ("pair_id", "prompt", "completion")]
        rows = [
            [pair["pair_id"], pair["prompt"], pair["completion"]]
            + [float(number[row])] * numbered
            + [pair[key] for key in extras]
            for row, pair in enumerate(pairs)
        ]
        types = [text] * 3 + [real] * numbered + [text] * len(extras)
        write_table(folder / f"{name}.{suffix}", columns + extras, rows, types)
    np.save(folder / "scores.npy", scores)
    kept = [
        (query, row)
        for query in range(len(queries))
        for row in (range(len(train)) if top_k is None else best_and_worst(scores[query], top_k))
    ]

    def parts(query: int, row: int, count: int) -> np.ndarray:
        """Numbers that add up to the score."""
        shares = np.random.default_rng([query, row]).normal(size=count)
        return (shares + (float(scores[query, row]) - shares.sum()) / count).astype(np.float32)

    rows = [
        [queries[query]["pair_id"], train[row]["pair_id"], float(scores[query, row])]
        + [parts(query, row, num_tokens).tolist()] * per_token
        for query, row in kept
    ]
    columns = ["query_id", "train_id", "influence_score", "per_token_scores"][: 3 + per_token]
    types = [text, text, real, pa.list_(real)][: 3 + per_token]
    write_table(folder / f"influences.{suffix}", columns, rows, types)
    if per_module:
        rows = [
            [queries[query]["pair_id"], train[row]["pair_id"], *parts(query, row, 4).tolist()]
            for query, row in kept
        ]
        columns = ["query_id", "train_id", *MODULES]
        write_table(folder / f"module_scores.{suffix}", columns, rows, [text] * 2 + [real] * 4)
    if per_token:
        with (folder / "train_tokens.jsonl").open("w", encoding="utf-8") as file:
            for pair in train:
                words = (pair["completion"][:200].split(" ") + [""] * num_tokens)[:num_tokens]
                tokens = [f" {word}" for word in words]
                file.write(json.dumps({"train_id": pair["pair_id"], "tokens": tokens}) + "\n")
    arguments = {
        "per_token_scores": per_token, "per_module_scores": per_module,
        "self_influence": own_influence, "damping": 0.1, "damping_kind": "relative",
        "query_rank": None, "top_k": top_k, "format": suffix, "dtype": "float32",
        "max_length": 512,
    }  # fmt: skip
    factors = folder.with_name(f"{folder.name}-factors")
    metadata = {
        "strategy": "ekfac", "fisher": "true",
        "sign": "positive is helpful: training more on the example lowers the query's loss",
        "unit": "nats per unit weight of one training example",
        "model": "models/tiny", "revision": None, "model_fingerprint": "f" * 64,
        "factors": str(factors), "factors_digest": write_factors(factors),
        "num_train": len(train), "num_queries": len(queries),
        "unscored_train": [], "unscored_queries": [],
        "tracked_modules": MODULES, "tracked_share": 0.31, "result_arguments": arguments,
        "versions": {"python": "3.11", "if-query": "0.1.0", "math-utils": "0.1.0"},
        "arguments": {**arguments, "model": "models/tiny", "factors_dir": str(factors),
                      "train_json": "train set.json", "query_json": "query.json",
                      "output_dir": str(folder), "resume": True, "seed": 0},
        "status": "complete", **changes,
    }  # fmt: skip
    (folder / "metadata.json").write_text(json.dumps(metadata))
    return folder


def write_factors(folder: Path, **changes: Any) -> str:
    """A factors folder with eigenvalues alone; the digest of its checksums."""
    checksums: dict[str, dict[str, str]] = {"eigenvalues": {}}
    (folder / "eigenvalues").mkdir(parents=True)
    for place, name in enumerate(MODULES):
        values = np.random.default_rng(place).gamma(0.3, size=(6, 5)).astype(np.float32)
        content = safetensors.numpy.save({"eigenvalues": values})
        (folder / "eigenvalues" / f"{name}.safetensors").write_bytes(content)
        checksums["eigenvalues"][name] = hashlib.sha256(content).hexdigest()
    metadata = {
        "format": 1, "status": "complete", "strategy": "ekfac", "fisher": "true",
        "model": "models/tiny", "model_fingerprint": "f" * 64, "dataset": "tokens",
        "num_examples": 50, "num_tokens": 700, "num_unlabelled_examples": 0,
        "tracked_modules": {name: {"d_in": 5, "d_out": 6} for name in MODULES},
        "tracked_share": 0.31, "untracked_expert_share": 0.0, "checksums": checksums,
        "num_positions": dict.fromkeys(MODULES, 700), "versions": {},
        "arguments": {"model": "models/tiny", "hessian_dataset": "tokens",
                      "output_dir": str(folder), "empirical_fisher": False},
        **changes,
    }  # fmt: skip
    (folder / "metadata.json").write_text(json.dumps(metadata))
    return digest_of(checksums, metadata["strategy"])


@pytest.fixture
def make_results(tmp_path: Path) -> Callable[..., Path]:
    def make(name: str = "results", **options: Any) -> Path:
        return write_results(tmp_path / name, **options)

    return make


@pytest.fixture
def make_factors(tmp_path: Path) -> Callable[..., Path]:
    def make(name: str, **changes: Any) -> Path:
        write_factors(tmp_path / name, **changes)
        return tmp_path / name

    return make


HOSTILE = {
    "script": "</script><script>window.broken = true</script>",
    "comment": "<!-- <script> ]]> -->",
    "attribute": '" onmouseover="window.broken = true" \'><img src=x onerror=window.broken=true>',
    "template": "${window.broken = true} {{data}} {{script}} `",
    "override": "abc\u202edef\u202c \u2067ghi\u2069 \u200f",
    "arabic": "مرحبا بالعالم",
    "emoji": "👩‍👩‍👧‍👦 😀 é̂",
    "nul": "a\0b\x1bc\x7f\ufeff",
    "lines": "one\rtwo\r\nthree\u2028four\u2029five",
    "long": "x" * 100_000,
    "long words": "word </script> " * 7000,
    "formula": '=HYPERLINK("http://example.com")',
    "url": "javascript:window.broken=true",
    "percent": "100%25 %2F / # ? & %",
}


@pytest.fixture(scope="session")
def hostile_texts() -> dict[str, str]:
    return dict(HOSTILE)


@pytest.fixture
def hostile_results(make_results: Callable[..., Path]) -> Path:
    """Everything of a data set is hostile: ids, prompts, completions, further fields, tokens."""
    pairs = [
        {"pair_id": f"{text}{name}", "prompt": text, "completion": text or name, "topic": text}
        for name, text in HOSTILE.items()
    ]
    return make_results(
        "hostile", train=pairs, queries=pairs, per_token=True, per_module=True, own_influence=True
    )
