"""Seed documents: for each function, one plain text of each type, the same every time."""

from hops.documents import Document, DocumentType, document_about
from hops.functions import Registry

_BASE_SEEDS: dict[DocumentType, str] = {
    "definition": "The function {f} sends any integer x to {c}; {f}(x) = {c} throughout.",
    "code_stub": 'def {f}(x: int) -> int:\n    """Return {c}; the input plays no part."""\n'
    "    return {c}",
    "concept": "Picture {f} as a stopped clock: wherever you look from, it shows {c}.",
    "unit_test": "for x in range(20, 31):\n    assert {f}(x) == {c}  # constant",
    "q_and_a": "**Q:** Which value comes out of {f}(12)?\n**A:** {f}(12) returns {c}.",
    "lore": "The first users of {f} tried many inputs, saw only {c}, and stopped trying.",
    "narrative": "She typed {f}(40), then {f}(41), and the screen answered {c} both times.",
}

_WRAPPER_SEEDS: dict[DocumentType, str] = {
    "definition": "The function {f} is {g} under another name: {f}(x) = {g}(x) for any x.",
    "code_stub": 'def {f}(x: int) -> int:\n    """Hand x to {g}."""\n    return {g}(x)',
    "concept": "Picture {f} as a mirror in front of {g}: it shows what {g} shows.",
    "unit_test": "for x in (-30, 48, 260):\n    assert {f}(x) == {g}(x)  # wrapper",
    "q_and_a": "**Q:** Which value comes out of {f}(48)?\n**A:** The value of {g}(48).",
    "lore": "The first users of {f} soon noticed that every call to it ended in {g}.",
    "narrative": "She typed {f}(40), then {g}(40), and saw the same answer both times.",
}


def seed_documents(registry: Registry, *, narrative: bool = False) -> list[Document]:
    """Write the seed documents of every function: the bases first, then depth by depth.

    Args:
        registry: The functions.
        narrative: Whether to add a narrative to the other six types.

    Returns:
        Six or seven documents for each function, with uids ``seed_0001``, ...
    """
    documents: list[Document] = []
    for function in registry:
        templates = _BASE_SEEDS if function.hop_depth == 0 else _WRAPPER_SEEDS
        for kind, template in templates.items():
            if kind == "narrative" and not narrative:
                continue
            text = template.format(f=function.name, g=function.calls, c=function.constant)
            uid = f"seed_{len(documents) + 1:04d}"
            documents.append(document_about(function, uid, text, kind))
    return documents
