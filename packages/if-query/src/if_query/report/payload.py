"""Everything a report page shows, as one JSON value.

Keys are short where they repeat per row. Training examples are listed once, however many queries
show them; rows of queries name them by their place in that list.
"""

from collections.abc import Sequence
from dataclasses import replace
from typing import Any

import numpy as np

from if_query.influence_results import InfluenceResults, ResultExample
from if_query.report.details import Details
from if_query.report.encoding import packed, packed_exactly
from if_query.report.heat_map import make_heat_map
from if_query.report.limits import EXTRA_CHARS, ID_CHARS, TOKEN_CHARS, Limits
from if_query.report.shown import QUANTILES, ShownRows, significant, summarise


def make_payload(
    results: InfluenceResults, shown: Sequence[ShownRows], details: Details, limits: Limits
) -> dict[str, Any]:
    """What the page's scripts read.

    Args:
        results: the run.
        shown: the rows of its first queries, at least as many as ``limits`` allows.
        details: contributions to their scores.
        limits: what is kept of all that.
    """
    shown = [one.narrowed(limits.rows) for one in shown[: limits.num_queries]]
    heat_map = make_heat_map(results, min(limits.map_queries, len(shown)), limits.map_train)
    listed = sorted({row for one in shown for row in one.rows} | set(heat_map.train))
    place_of = {row: place for place, row in enumerate(listed)}
    with_text = {row for one in shown for row in one.rows}
    return {
        "queries": [
            _query(results, query, one, details, limits, place_of)
            for query, one in enumerate(shown)
        ],
        "train": [_train(results, row, details, limits, row in with_text) for row in listed],
        "modules": details.module_names,
        "quantiles": list(QUANTILES),
        "map": {
            "queries": heat_map.queries,
            "train": [place_of[row] for row in heat_map.train],
            "scores": packed_exactly(heat_map.scores),
            "orders": {name: list(order) for name, order in heat_map.orders.items()},
        },
        "counts": {
            "queries": len(results.queries),
            "train": len(results.train),
            "shown_queries": len(shown),
            "rows": limits.rows,
            "text_chars": limits.text_chars,
            "num_tokens": limits.num_tokens,
        },
    }


def _query(
    results: InfluenceResults,
    query: int,
    shown: ShownRows,
    details: Details,
    limits: Limits,
    place_of: dict[int, int],
) -> dict[str, Any]:
    scores = np.asarray(results.matrix[query])
    rows = {
        "train": [place_of[row] for row in shown.rows],
        "helpful": len(shown.helpful),
        "score": [significant(float(scores[row])) for row in shown.rows],
        "rank": shown.ranks,
        "percentile": [significant(value, 6) for value in shown.percentiles],
    }
    if details.per_token and limits.num_tokens:
        rows["tokens"] = [
            _packed_or_none(details.per_token.get((query, row)), limits.num_tokens)
            for row in shown.rows
        ]
    if details.per_module:
        rows["modules"] = [
            _packed_or_none(details.per_module.get((query, row))) for row in shown.rows
        ]
    loss = float(results.losses[query])
    return {
        **_example(results.queries[query], query, limits),
        "loss": significant(loss) if np.isfinite(loss) else None,
        **summarise(scores),
        "rows": rows,
    }


def _train(
    results: InfluenceResults, row: int, details: Details, limits: Limits, with_text: bool
) -> dict[str, Any]:
    # Those that stand in the heat map alone need no more than a few words to be told by.
    kept = limits if with_text else replace(limits, text_chars=80, num_tokens=0, num_extras=0)
    own = _example(results.train[row], row, kept)
    if results.self_influence is not None:
        own["self"] = significant(float(results.self_influence[row]))
    if row in details.tokens and kept.num_tokens:
        tokens = details.tokens[row]
        own["tokens"] = [token[:TOKEN_CHARS] for token in tokens[: kept.num_tokens]]
        own["num_tokens"] = len(tokens)
    return own


def _example(example: ResultExample, row: int, limits: Limits) -> dict[str, Any]:
    """An example's texts, cut; "cut" has their whole lengths where they were longer."""
    texts = {"prompt": example.prompt, "completion": example.completion}
    lengths = {name: len(text) for name, text in texts.items() if len(text) > limits.text_chars}
    extras = {
        name[:EXTRA_CHARS]: value[:EXTRA_CHARS]
        for name, value in list(example.extras.items())[: limits.num_extras]
        if value
    }
    name = example.example_id
    return {
        # A cut id is still unique, since links are made of it.
        "id": name if len(name) <= ID_CHARS else f"{name[:ID_CHARS]}…#{row + 1}",
        **{name: text[: limits.text_chars] for name, text in texts.items()},
        **({"cut": lengths} if lengths else {}),
        **({"extras": extras} if extras else {}),
    }


def _packed_or_none(values: np.ndarray | None, count: int | None = None) -> list[Any] | None:
    """Contributions packed, or None where the run kept none for this pair (``--top-k``)."""
    return None if values is None else packed(values[:count])
