"""Prompt and completion pairs, the examples that influence queries are made of.

A file of pairs is a JSON list of objects, or a ``.jsonl`` file with one object per line::

    [{"pair_id": "france", "prompt": "The capital of France is", "completion": " Paris"}]

``pair_id``, ``prompt`` and ``completion`` are strings; a number as ``pair_id`` is refused, because
the ids come out as CSV text, where 1 and "1" could not be told apart. Further fields are kept.
"""

import json
from collections.abc import Iterator
from pathlib import Path
from typing import Any

from pydantic import BaseModel, ConfigDict, ValidationError

from if_query.errors import InputError
from if_query.text_files import iterate_json_lines, read_json, surrogate_position

_REQUIRED = ("pair_id", "prompt", "completion")


class Pair(BaseModel):
    """One example: a prompt and the completion whose loss is measured.

    Attributes:
        pair_id: unique in its file.
        prompt: may be empty.
        completion: never empty.
        extras: all further fields of the object, in their order.
    """

    model_config = ConfigDict(frozen=True, strict=True, extra="forbid")

    pair_id: str
    prompt: str
    completion: str
    extras: dict[str, Any]


def load_pairs(path: str | Path) -> list[Pair]:
    """Read and check the pairs of a JSON or JSON Lines file.

    Args:
        path: a ``.jsonl`` file with one object per line; any other name is read as a JSON list.

    Returns:
        The pairs in the order of the file, at least one.

    Raises:
        InputError: the file is missing, unreadable, not UTF-8, not JSON, not a list or empty; an
            item (counted from 0) is not an object, lacks a field, has a field of the wrong type,
            a ``pair_id`` seen before, an empty completion, or text with lone surrogates.
    """
    path = Path(path)
    pairs: list[Pair] = []
    first_with: dict[str, str] = {}
    for place, item in _items(path):
        pair = _to_pair(item, f"{path}: {place}")
        if pair.pair_id in first_with:
            raise InputError(
                f"{path}: {place} (pair_id {pair.pair_id!r}): duplicate pair_id, "
                f"first used by {first_with[pair.pair_id]}"
            )
        first_with[pair.pair_id] = place
        pairs.append(pair)
    if not pairs:
        raise InputError(f"{path}: expected at least one pair, got an empty list")
    return pairs


def _items(path: Path) -> Iterator[tuple[str, Any]]:
    """Each item with the words that say where it is."""
    if path.suffix == ".jsonl":
        for index, (line, item) in enumerate(iterate_json_lines(path)):
            yield f"item {index}, line {line}", item
        return
    document = read_json(path)
    if not isinstance(document, list):
        raise InputError(f"{path}: expected a list of pairs, got {_type_name(document)}")
    for index, item in enumerate(document):
        yield f"item {index}", item


def _to_pair(item: Any, where: str) -> Pair:
    if not isinstance(item, dict):
        raise InputError(f"{where}: expected an object, got {_type_name(item)}")
    if "pair_id" in item:
        where = f"{where} (pair_id {item['pair_id']!r})"
    required = {name: item[name] for name in _REQUIRED if name in item}
    extras = {name: value for name, value in item.items() if name not in _REQUIRED}
    try:
        pair = Pair.model_validate({**required, "extras": extras})
    except ValidationError as error:
        raise InputError(f"{where}: {_reason(error)}") from error
    if not pair.completion:
        raise InputError(f"{where}: field 'completion': expected text, got an empty string")
    for name, value in item.items():
        _check_surrogates(name, value, where)
    return pair


def _reason(error: ValidationError) -> str:
    first = error.errors()[0]
    name = first["loc"][0]
    if first["type"] == "missing":
        return f"field {name!r}: missing"
    hint = "; write it in quotes" if isinstance(first["input"], int) else ""
    return f"field {name!r}: expected a string, got {_type_name(first['input'])}{hint}"


def _check_surrogates(name: str, value: Any, where: str) -> None:
    """Refuse text, nested text included, that could not be written to the result files."""
    text = value if isinstance(value, str) else json.dumps(value, ensure_ascii=False)
    for part in (name, text):
        position = surrogate_position(part)
        if position is not None:
            raise InputError(
                f"{where}: field {name!r}: lone surrogate U+{ord(part[position]):04X} at "
                f"character {position}; half of a pair of escapes is missing"
            )


def _type_name(value: Any) -> str:
    return "null" if value is None else type(value).__name__
