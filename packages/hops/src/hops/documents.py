"""The rows of a HOPS data set: their schema, reading and writing as JSONL.

The identity of a row is its line number: in the published files the ``uid`` repeats and
``parent_uid`` is often missing.
"""

import json
from collections.abc import Iterable, Sequence
from pathlib import Path
from typing import Any, Literal

from pydantic import BaseModel, ConfigDict, Field, ValidationError

from hops.errors import HopsError
from hops.files import write_text
from hops.functions import Function, Registry, Role

DocumentType = Literal[
    "definition", "code_stub", "concept", "unit_test", "q_and_a", "lore", "narrative"
]
DOCUMENT_TYPES: tuple[DocumentType, ...] = (
    "definition",
    "code_stub",
    "concept",
    "unit_test",
    "q_and_a",
    "lore",
    "narrative",
)


class Document(BaseModel):
    """One row: a text with what it is about.  Further fields are kept.

    Attributes:
        uid: A name that this package makes unique; published files repeat it.
        text: What a model is trained on.
        func: The function the text is about; None for a distractor.
        role: ``constant`` (a base function), ``identity`` (a wrapper) or ``distractor``.
        type: The kind of text; published files also use ``unknown``.
        hop_depth: 0 for a base function, 1 for a wrapper of one, ...; None for a distractor.
        constant: What the function returns; None for a distractor.  A wrapper's text never
            states it, unless ``answers`` is ``direct``.
        parent_uid: The seed document that this one varies, where there is one.
        base_func: The base function behind ``func``, where the file says so.
        calls: What a wrapper calls, one level below it, where the file says so.
        answers: ``direct`` where a wrapper's text states what the wrapper returns;
            ``resolution`` where the text says in which base the calls of the function end, and
            states no constant; ``property`` where it tells other properties of the function, and
            states no constant.
    """

    model_config = ConfigDict(frozen=True, extra="allow")

    uid: str
    text: str = Field(min_length=1)
    func: str | None
    role: Role
    type: DocumentType | Literal["unknown"]
    hop_depth: int | None
    constant: int | None
    parent_uid: str | None = None
    base_func: str | None = None
    calls: str | None = None
    answers: Literal["direct", "resolution", "property"] | None = None

    @property
    def states_value(self) -> bool:
        """Whether the text says what its function returns; the audit checks that it does."""
        if self.answers is None:
            return self.role == "constant"
        return self.answers == "direct"

    def row(self) -> dict[str, object]:
        """The row as written to JSONL: optional fields only where they are set."""
        row = self.model_dump()
        for name in ("parent_uid", "base_func", "calls", "answers"):
            if row[name] is None:
                del row[name]
        return row


def read_documents(path: Path) -> list[Document]:
    """Read a JSONL file of documents; row ``i`` of the result is line ``i`` of the file.

    Args:
        path: The file. Repeated uids and missing optional fields are accepted.

    Returns:
        The documents in file order.

    Raises:
        HopsError: The file is missing, empty, or a line is not a document.
    """
    try:
        lines = path.read_text(encoding="utf-8").removesuffix("\n").split("\n")
    except (OSError, UnicodeDecodeError) as error:
        raise HopsError(f"{path}: cannot be read ({error}).") from error
    if lines == [""]:
        raise HopsError(f"{path}: no documents; expected one JSON object per line.")
    documents = []
    for number, line in enumerate(lines, start=1):
        try:
            documents.append(Document.model_validate(json.loads(line)))
        except json.JSONDecodeError as error:
            raise HopsError(
                f"{path}: line {number}, column {error.colno}: not JSON ({error.msg})."
            ) from error
        except ValidationError as error:
            first = error.errors()[0]
            field = ".".join(str(part) for part in first["loc"]) or "row"
            raise HopsError(f"{path}: line {number}: {field}: {first['msg']}.") from error
    return documents


def write_documents(path: Path, documents: Iterable[Document]) -> None:
    """Write documents as JSONL, one per line, replacing the file as a whole.

    Raises:
        HopsError: The file cannot be written.
    """
    write_text(
        path,
        "".join(json.dumps(doc.row(), ensure_ascii=False) + "\n" for doc in documents),
    )


def registry_of(documents: Sequence[Document]) -> Registry:
    """Recover the functions that documents (or seeds) are about.

    A wrapper calls what its rows name in ``calls``; where they do not say, its ``base_func`` at
    depth 1, or else the only function one level below it with its constant.

    Args:
        documents: Rows about every function that a wrapper among them stands on.

    Returns:
        The functions in depth order, those of a depth in order of first appearance.

    Raises:
        HopsError: A function has two constants, depths or callees, or nothing is found that a
            wrapper could call.
    """
    constants = _agreed(documents, "constant")
    depths = _agreed(documents, "hop_depth")
    callees, named_bases = _agreed(documents, "calls"), _agreed(documents, "base_func")
    functions: dict[str, Function] = {}
    for name in sorted(depths, key=lambda one: depths[one]):
        constant, depth = constants.get(name), depths[name]
        if constant is None:
            raise HopsError(f"{name} has no constant.")
        if depth == 0:
            functions[name] = Function(name, constant, 0, name)
            continue
        below = [one for one in functions.values() if one.hop_depth == depth - 1]
        callee = callees.get(name) or (named_bases.get(name) if depth == 1 else None)
        found = [
            one
            for one in below
            if one.constant == constant and callee in (None, one.name)
            if named_bases.get(name) in (None, one.base)
        ]
        if len(found) != 1:
            raise HopsError(
                f"{name} has no {'base function' if depth == 1 else 'function to call'} among "
                f"{', '.join(one.name for one in below) or 'none'}."
            )
        functions[name] = found[0].wrapped(name)
    return Registry.of(list(functions.values()))


def _agreed(
    documents: Sequence[Document], field: Literal["constant", "hop_depth", "calls", "base_func"]
) -> dict[str, Any]:
    """What the rows about each function say in ``field``, where they say anything."""
    values: dict[str, Any] = {}
    for document in documents:
        value = getattr(document, field)
        if document.func is None or document.role == "distractor" or value is None:
            continue
        if values.setdefault(document.func, value) != value:
            what = {"constant": "constants", "hop_depth": "depths", "calls": "callees"}
            raise HopsError(
                f"{document.func} has the {what.get(field, 'bases')} {values[document.func]} and "
                f"{value}; a function has one."
            )
    return values


def told_wrappers(documents: Iterable[Document]) -> frozenset[str]:
    """The wrappers whose value some document states directly; the others must be composed."""
    return frozenset(
        document.func
        for document in documents
        if document.answers == "direct" and document.func is not None
    )


def document_about(
    function: Function,
    uid: str,
    text: str,
    kind: DocumentType,
    parent_uid: str | None = None,
    answers: Literal["direct", "resolution", "property"] | None = None,
) -> Document:
    """Make the row for a text about ``function``."""
    return Document(
        uid=uid,
        text=text,
        func=function.name,
        role=function.role,
        type=kind,
        hop_depth=function.hop_depth,
        constant=function.constant,
        parent_uid=parent_uid,
        base_func=function.base,
        calls=function.calls,
        answers=answers,
    )
