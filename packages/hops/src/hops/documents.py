"""The rows of a HOPS data set: their schema, reading and writing as JSONL.

The identity of a row is its line number: in the published files the ``uid`` repeats and
``parent_uid`` is often missing.
"""

import json
from collections.abc import Iterable, Sequence
from pathlib import Path
from typing import Literal

from pydantic import BaseModel, ConfigDict, Field, ValidationError

from hops.errors import HopsError
from hops.files import write_text
from hops.functions import Function, Registry, Role, make_pair

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
        hop_depth: 0 for a base function, 1 for a wrapper; None for a distractor.
        constant: What the function returns (a wrapper's text never states it); None for a
            distractor.
        parent_uid: The seed document that this one varies, where there is one.
        base_func: The base function behind ``func``, where the file says so.
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

    def row(self) -> dict[str, object]:
        """The row as written to JSONL: optional fields only where they are set."""
        row = self.model_dump()
        for name in ("parent_uid", "base_func"):
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

    A wrapper's base is its ``base_func``, or else the base function with the same constant.

    Args:
        documents: Rows that include every base function whose wrapper they mention.

    Returns:
        The pairs in order of the first appearance of the base function.

    Raises:
        HopsError: A function has two constants, or no base function is found for a wrapper.
    """
    constants: dict[str, int] = {}
    wrapper_bases: dict[str, str | None] = {}
    bases: list[str] = []
    for document in documents:
        if document.func is None or document.constant is None or document.role == "distractor":
            continue
        if constants.setdefault(document.func, document.constant) != document.constant:
            raise HopsError(
                f"{document.func} has the constants {constants[document.func]} and "
                f"{document.constant}; a function has one."
            )
        if document.role == "identity":
            wrapper_bases[document.func] = document.base_func
        elif document.func not in bases:
            bases.append(document.func)
    wrapper_of: dict[str, str] = {}
    for wrapper, base in wrapper_bases.items():
        by_constant = [name for name in bases if constants[name] == constants[wrapper]]
        found = base or (by_constant[0] if len(by_constant) == 1 else None)
        if found not in bases:
            raise HopsError(f"{wrapper} has no base function among {', '.join(bases) or 'none'}.")
        wrapper_of[found] = wrapper
    return Registry(tuple(make_pair(base, wrapper_of.get(base), constants[base]) for base in bases))


def document_about(
    function: Function,
    uid: str,
    text: str,
    kind: DocumentType,
    parent_uid: str | None = None,
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
    )
