"""Similarities as JSON: keyed by numeric ids, the arguments beside them, in parts or whole."""

import itertools
import json
import re
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any, Literal

import numpy as np

from attribution.errors import AttributionError
from attribution.gradient_similarity.results import Similarities
from attribution.gradient_similarity.store import replacing

ComputationType = Literal["gradient-similarity", "dot-product"]
_PART = re.compile(r"(?P<whole>.+)_part_(?P<start>\d+)_(?P<end>\d+)\.json")
_KEYED = ("values", "bm25", "query_squared_norms", "original_squared_norms")


@dataclass(frozen=True)
class Part:
    """One file of results for the queries whose id is in [start, end).

    Attributes:
        path: of the file.
        whole: the path of the file that all parts make.
        start: first query id.
        end: the id after the last.
    """

    path: Path
    whole: Path
    start: int
    end: int


def part_path(whole: Path, start: int, end: int) -> Path:
    """``NAME_part_START_END.json`` for ``NAME.json``."""
    return whole.with_name(f"{whole.stem}_part_{start}_{end}.json")


def find_parts(folder: Path) -> list[Part]:
    """The parts in a folder, in order of what they are parts of and of their first id."""
    parts = []
    for path in folder.glob("*_part_*.json"):
        found = _PART.fullmatch(path.name)
        if found is not None:
            whole = path.with_name(found["whole"] + ".json")
            parts.append(Part(path, whole, int(found["start"]), int(found["end"])))
    return sorted(parts, key=lambda part: (part.whole.name, part.start, part.end))


def results_as_json(
    similarities: Similarities,
    computation_type: ComputationType,
    bm25: Mapping[int, Mapping[int, float]],
) -> dict[str, Any]:
    """Query id → candidate id → cosine, or → parameter → inner product with norms beside.

    Args:
        similarities: of all queries of one file.
        computation_type: "gradient-similarity" for cosines of the whole gradient, "dot-product"
            for what cosines of any subset are made of.
        bm25: query id → candidate id → score of the user's messages.
    """
    s = similarities
    dots = computation_type == "dot-product"
    cosines = s.cosines()
    values: dict[str, dict[str, Any]] = {str(query): {} for query in s.query_ids}
    scores: dict[str, dict[str, float]] = {str(query): {} for query in s.query_ids}
    for place, (query, original) in enumerate(s.pairs.tolist()):
        keys = s.query_ids[query], s.original_ids[original]
        measured = _by_name(s, s.dots[place]) if dots else float(cosines[place])
        values[str(keys[0])][str(keys[1])] = measured
        scores[str(keys[0])][str(keys[1])] = bm25[keys[0]][keys[1]]
    content: dict[str, Any] = {"values": values, "bm25": scores}
    if dots:
        for name, ids, norms in (
            ("query_squared_norms", s.query_ids, s.query_squared_norms),
            ("original_squared_norms", s.original_ids, s.original_squared_norms),
        ):
            rows = zip(ids, norms, strict=True)
            content[name] = {str(key): _by_name(s, row) for key, row in rows}
    return content


def similarities_of(content: Mapping[str, Any]) -> Similarities:
    """The inverse of :func:`results_as_json` for inner products."""
    queries = tuple(map(int, content["query_squared_norms"]))
    originals = tuple(map(int, content["original_squared_norms"]))
    place = {original: index for index, original in enumerate(originals)}
    tensors = tuple(next(iter(content["query_squared_norms"].values())))
    pairs, dots = [], []
    for index, query in enumerate(queries):
        for other, measured in content["values"][str(query)].items():
            pairs.append((index, place[int(other)]))
            dots.append([measured[name] for name in tensors])

    def matrix(rows: Mapping[str, Mapping[str, float]]) -> np.ndarray:
        return np.array([[row[name] for name in tensors] for row in rows.values()], dtype=float)

    return Similarities(
        tensors=tensors,
        query_ids=queries,
        original_ids=originals,
        pairs=np.array(pairs, dtype=np.int64).reshape(-1, 2),
        dots=np.array(dots, dtype=float).reshape(-1, len(tensors)),
        query_squared_norms=matrix(content["query_squared_norms"]),
        original_squared_norms=matrix(content["original_squared_norms"]),
    )


def combine_parts(parts: Sequence[Part]) -> dict[str, Any]:
    """Merge the parts of one whole, in the order of numeric ids.

    Returns:
        What one run over all queries would have written.

    Raises:
        AttributionError: if parts overlap, a query is in none, or they were made with different
            arguments; names the partition.
    """
    parts = sorted(parts, key=lambda part: (part.start, part.end))
    for before, after in itertools.pairwise(parts):
        if after.start < before.end:
            raise AttributionError(
                f"{after.path.name} overlaps {before.path.name}; remove one of them"
            )
    contents = [read_results(part.path) for part in parts]
    first = _shared(contents[0]["arguments"])
    for part, content in zip(parts, contents, strict=True):
        others = [k for k, v in _shared(content["arguments"]).items() if first.get(k) != v]
        if others:
            raise AttributionError(
                f"{part.path.name} and {parts[0].path.name} were made with another "
                f"{', '.join(others)}"
            )
    _check_complete(parts, contents, first["sample_ids"])
    merged: dict[str, Any] = {
        "arguments": {**contents[0]["arguments"], "partition_start": None, "partition_end": None}
    }
    for name in _KEYED:
        rows = {key: row for content in contents for key, row in content.get(name, {}).items()}
        if name in contents[0]:
            merged[name] = {key: rows[key] for key in sorted(rows, key=int)}
    return merged


def read_results(path: Path) -> dict[str, Any]:
    """Read a file of results, whole or part.

    Raises:
        AttributionError: if it is not one.
    """
    try:
        content = json.loads(path.read_text(encoding="utf-8"))
    except ValueError as error:
        raise AttributionError(f"{path}: not readable as JSON: {error}") from error
    if not isinstance(content, dict) or not {"arguments", "values", "bm25"} <= set(content):
        raise AttributionError(f"{path}: expected arguments, values and bm25 in it")
    return content


def write_results(path: Path, content: Mapping[str, Any]) -> None:
    """Write a file of results, whole or not at all."""
    path.parent.mkdir(parents=True, exist_ok=True)
    with replacing(path) as temporary:
        text = json.dumps(content, indent=1, ensure_ascii=False, allow_nan=False)
        temporary.write_text(text + "\n", encoding="utf-8")


def _check_complete(
    parts: Sequence[Part], contents: Sequence[Mapping[str, Any]], ids: Sequence[int]
) -> None:
    for part, content in zip(parts, contents, strict=True):
        expected = [str(one) for one in ids if part.start <= one < part.end]
        if sorted(content["values"], key=int) != expected:
            raise AttributionError(
                f"{part.path.name} does not have the queries that its name says; make it again"
            )
    lacking = [one for one in ids if not any(part.start <= one < part.end for part in parts)]
    if lacking:
        start = max((part.end for part in parts if part.end <= lacking[0]), default=lacking[0])
        end = min((part.start for part in parts if part.start > lacking[0]), default=ids[-1] + 1)
        count = sum(start <= one < end for one in lacking)
        raise AttributionError(
            f"{part_path(parts[0].whole, start, end).name} is missing: {count} queries from id "
            f"{lacking[0]} are in no partition"
        )


def _shared(arguments: Mapping[str, Any]) -> dict[str, Any]:
    return {key: value for key, value in arguments.items() if not key.startswith("partition_")}


def _by_name(similarities: Similarities, row: np.ndarray) -> dict[str, float]:
    return dict(zip(similarities.tensors, row.tolist(), strict=True))
