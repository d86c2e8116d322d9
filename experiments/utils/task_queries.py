"""The queries of a task: those of hops about every function, or a file of them."""

import json
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Annotated, Any

from hops.documents import Document, told_wrappers
from hops.functions import Registry
from hops.queries import query_pairs
from if_query.errors import InputError
from pydantic import BaseModel, ConfigDict, Field, ValidationError


@dataclass(frozen=True)
class TaskQuery:
    """One question with its true answer.

    Attributes:
        query_id: its name.
        prompt: what the model reads.
        answer: what it should say, with the space before it.
        function: the function asked about.
        base_function: the base function at the bottom of its chain (itself at depth 0).
        hop_depth: 0 for a base function, 1 for a wrapper.
        taught_by: the functions whose documents taught the answer.
    """

    query_id: str
    prompt: str
    answer: str
    function: str
    base_function: str
    hop_depth: int
    taught_by: tuple[str, ...]

    @property
    def text(self) -> str:
        """Prompt and answer."""
        return self.prompt + self.answer


def queries_about(
    registry: Registry,
    documents: Sequence[Document],
    *,
    inputs: Sequence[int],
    depths: Sequence[int],
    prompt_format: str,
) -> tuple[TaskQuery, ...]:
    """The queries of hops about the functions, without wrappers whose value some document tells.

    Raises:
        HopsError: none is left, or the arguments are unusable.
    """
    pairs = query_pairs(
        registry,
        inputs=inputs,
        depths=depths,
        without=told_wrappers(documents),
        prompt_format=prompt_format,
    )
    return tuple(_query_of(pair, registry) for pair in pairs)


def read_queries(path: Path, registry: Registry) -> tuple[TaskQuery, ...]:
    """Read objects of ``prompt``, ``completion``, ``func``, and ``taught_by`` where func is new.

    Args:
        path: JSON, or JSONL by its suffix.
        registry: the functions that documents are about.

    Raises:
        InputError: the file is unusable, or a field is missing.
    """
    pairs = _pairs_in(path)
    queries = []
    for number, pair in enumerate(pairs):
        try:
            asked = _AskedQuery.model_validate(pair)
        except ValidationError as error:
            first = error.errors()[0]
            field = ".".join(str(part) for part in first["loc"]) or "an object"
            raise InputError(
                f"{path}: query {number}: expected an object with prompt, completion and func: "
                f"{field}: {first['msg']}"
            ) from error
        if not asked.taught_by and asked.func not in registry:
            raise InputError(
                f"{path}: query {number}: no document is about {asked.func}; expected taught_by, "
                "the functions whose documents taught the answer"
            )
        queries.append(_query_of(asked.model_dump(), registry))
    return tuple(queries)


def _pairs_in(path: Path) -> list[Any]:
    try:
        text = path.read_text(encoding="utf-8")
    except (OSError, UnicodeDecodeError) as error:
        raise InputError(f"{path}: cannot be read ({error})") from error
    pairs: Any = []
    # Not splitlines: it cuts at separators such as U+2028, which JSON has within texts.
    parts = text.split("\n") if path.suffix == ".jsonl" else [text]
    for number, part in enumerate(parts, start=1):
        try:
            pairs += [json.loads(part)] if part.strip() else []
        except json.JSONDecodeError as error:
            where = f"line {number if len(parts) > 1 else error.lineno}, column {error.colno}"
            raise InputError(f"{path}: {where}: not JSON ({error.msg})") from error
    if path.suffix != ".jsonl":
        pairs = pairs[0] if pairs else []
    if not isinstance(pairs, list) or not pairs:
        raise InputError(f"{path}: expected a list of queries with at least one")
    return pairs


class _AskedQuery(BaseModel):
    """A query as a file has it; what is not read may stand beside it."""

    model_config = ConfigDict(strict=True)

    prompt: str
    completion: str
    func: str
    taught_by: list[str] | None = None
    base_func: str | None = None
    hop_depth: Annotated[int, Field(ge=0)] | None = None
    pair_id: str | int | None = None


def _query_of(pair: dict[str, Any], registry: Registry) -> TaskQuery:
    function = pair["func"]
    taught_by = pair.get("taught_by") or [one.name for one in registry.chain(function)]
    depth = pair.get("hop_depth")
    return TaskQuery(
        query_id=str(pair.get("pair_id") or f"query about {function}"),
        prompt=pair["prompt"],
        answer=pair["completion"],
        function=function,
        base_function=pair.get("base_func") or taught_by[-1],
        hop_depth=len(taught_by) - 1 if depth is None else depth,
        taught_by=tuple(taught_by),
    )
