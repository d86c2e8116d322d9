"""Checking a data set: is every label true, and is anything in it twice?

**Critical** is what makes a label false, so that a method judged on the data would be judged
wrongly: a wrapper that tells its value without saying so, an answer taught for the held-out
input, a row whose role, depth, constant or base contradicts the others.  **Warnings** are flaws
that leave every label true: the published set has some, and remains usable.
"""

import re
from collections import Counter
from collections.abc import Iterator, Sequence
from dataclasses import asdict, dataclass
from typing import Any, Literal

from hops.diversity import Diversity, measure_diversity
from hops.documents import Document, registry_of
from hops.errors import HopsError
from hops.functions import HELD_OUT_INPUT, Function, Registry
from hops.leaks import applied_functions, constant_mentions
from hops.numerals import mentions_number

Severity = Literal["critical", "warning"]

CHECKS: dict[str, tuple[Severity, str]] = {
    "leak": ("critical", "a wrapper's text states its constant, and the row is not `direct`"),
    "held_out_answer": ("critical", f"a text that tells a value calls it with {HELD_OUT_INPUT}"),
    "role_mismatch": ("critical", "role, hop depth, function and constant do not fit together"),
    "contradiction": ("critical", "a constant, depth or callee differs from most rows' about it"),
    "unknown_base": ("critical", "no rows are about the function that a wrapper calls"),
    "foreign_function": ("critical", "the text names a function that its labels do not"),
    "function_not_named": ("warning", "the text does not name its own function"),
    "callee_not_named": ("warning", "a wrapper's text does not name what it calls"),
    "missing_constant": ("warning", "a text that should tell a constant has no such number"),
    "constant_as_input": ("warning", "a wrapper's text has its constant as an input"),
    "held_out_loop": ("warning", f"a loop over values with {HELD_OUT_INPUT} among them calls it"),
    "held_out_call": ("warning", f"a wrapper's text calls a function with {HELD_OUT_INPUT}"),
    "duplicate_uid": ("warning", "an earlier row has this uid"),
    "duplicate_text": ("warning", "an earlier row has this text"),
}
"""What is looked for: its severity and its meaning."""


@dataclass(frozen=True)
class Finding:
    """One thing that is wrong with one row.

    Attributes:
        check: A key of :data:`CHECKS`.
        line: The row's line in the file, from 1.
        detail: What was found.
    """

    check: str
    line: int
    detail: str

    @property
    def severity(self) -> Severity:
        """Whether a label is false."""
        return CHECKS[self.check][0]


@dataclass(frozen=True)
class AuditReport:
    """What :func:`audit` found in a data set.

    Attributes:
        num_rows: Documents.
        num_distinct_uids: Different values of ``uid``.
        num_direct: Rows labelled ``answers: direct``.
        lengths: The shortest, median and longest text, in characters.
        roles: Rows of each role.
        types: Rows of each type.
        findings: What is wrong, in the order of the checks.
        diversity: For base functions (``constant``) and wrappers (``identity``).
    """

    num_rows: int
    num_distinct_uids: int
    num_direct: int
    lengths: tuple[int, int, int]
    roles: dict[str, int]
    types: dict[str, int]
    findings: tuple[Finding, ...]
    diversity: dict[str, Diversity]

    def count(self, severity: Severity) -> int:
        """The findings of a severity."""
        return sum(finding.severity == severity for finding in self.findings)

    def passes(self, *, strict: bool = False) -> bool:
        """Whether nothing critical was found, and with ``strict`` no warning either."""
        return not (self.count("critical") or (strict and self.findings))

    def to_json(self) -> dict[str, Any]:
        """The report as JSON: counts of every check, and every finding."""
        counts = Counter(finding.check for finding in self.findings)
        return {
            **asdict(self),
            "critical": self.count("critical"),
            "warnings": self.count("warning"),
            "counts": {check: counts[check] for check in CHECKS},
            "findings": [
                {"severity": finding.severity, **asdict(finding)} for finding in self.findings
            ],
        }


def audit(
    documents: Sequence[Document],
    *,
    world: Registry | None = None,
    diversity_docs: int = 50,
) -> AuditReport:
    """Check a data set.

    Args:
        documents: The rows, in file order.
        world: The functions; by default what most rows say of them.
        diversity_docs: Documents drawn about each function to measure diversity.

    Returns:
        The report; flawed data raises nothing.

    Raises:
        HopsError: There are no documents, or ``diversity_docs`` is not positive.
    """
    if not documents or diversity_docs < 1:
        raise HopsError("An audit needs documents, and draws at least one for diversity.")
    functions = {one.name: one for one in world} if world else _functions(documents)
    findings: list[Finding] = []
    uids: dict[str, int] = {}
    texts: dict[str, int] = {}
    for line, document in enumerate(documents, start=1):
        for check, detail in [*_labels(document, functions), *_text(document, functions)]:
            findings.append(Finding(check, line, detail))
        for check, seen, value in (
            ("duplicate_uid", uids, document.uid),
            ("duplicate_text", texts, document.text),
        ):
            first = seen.setdefault(value, line)
            if first != line:
                findings.append(Finding(check, line, f"first on line {first}"))
    order = list(CHECKS)
    lengths = sorted(len(document.text) for document in documents)
    return AuditReport(
        num_rows=len(documents),
        num_distinct_uids=len(uids),
        num_direct=sum(document.answers == "direct" for document in documents),
        lengths=(lengths[0], lengths[len(lengths) // 2], lengths[-1]),
        roles=dict(Counter(document.role for document in documents)),
        types=dict(Counter(document.type for document in documents)),
        findings=tuple(sorted(findings, key=lambda one: (order.index(one.check), one.line))),
        diversity=measure_diversity(documents, diversity_docs),
    )


def _functions(documents: Sequence[Document]) -> dict[str, Function]:
    """The functions as most rows describe them; only those whose chains hold together."""
    described: dict[str, Counter[tuple[int, int, str | None, str | None]]] = {}
    for document in documents:
        if document.func is None or document.constant is None or document.role == "distractor":
            continue
        depth = document.hop_depth
        if depth is None or (depth == 0) != (document.role == "constant"):
            continue
        description = (document.constant, depth, document.calls, document.base_func)
        described.setdefault(document.func, Counter())[description] += 1
    rows: list[Document] = []
    functions: dict[str, Function] = {}
    ordered = sorted(described.items(), key=lambda item: item[1].most_common(1)[0][0][1])
    for name, descriptions in ordered:
        (constant, depth, calls, base), _ = descriptions.most_common(1)[0]
        row = Document(
            uid=name,
            text=name,
            func=name,
            role="identity" if depth else "constant",
            type="unknown",
            hop_depth=depth,
            constant=constant,
            calls=calls,
            base_func=base,
        )
        try:
            functions = {one.name: one for one in registry_of([*rows, row])}
        except HopsError:
            continue  # its rows are reported as having an unknown base
        rows.append(row)
    return functions


def _labels(document: Document, functions: dict[str, Function]) -> Iterator[tuple[str, str]]:
    name, role, depth = document.func, document.role, document.hop_depth
    if role == "distractor":
        if (name, depth, document.constant) != (None, None, None):
            yield "role_mismatch", f"a distractor about {name} with constant {document.constant}"
        return
    if name is None or depth is None or document.constant is None:
        yield "role_mismatch", f"role {role} without function, hop depth or constant"
        return
    if (depth == 0) != (role == "constant") or depth < 0:
        yield "role_mismatch", f"role {role} at hop depth {depth}"
        return
    if document.answers == "direct" and depth == 0:
        yield "role_mismatch", "a base function's row is labelled as a direct answer"
    known = functions.get(name)
    if known is None:
        yield "unknown_base", f"{name} calls {document.calls or document.base_func or 'nothing'}"
        return
    for field, here, usual in (
        ("constant", document.constant, known.constant),
        ("hop depth", depth, known.hop_depth),
        ("base", document.base_func, known.base),
        ("callee", document.calls, known.calls),
    ):
        if here is not None and here != usual:
            yield "contradiction", f"{name} has {field} {here} here and {usual} in other rows"


def _text(document: Document, functions: dict[str, Function]) -> Iterator[tuple[str, str]]:
    text, name = document.text, document.func
    function = functions.get(name) if name is not None else None
    named = set(re.findall(r"<\w+>", text)) & functions.keys()
    is_resolution = document.answers == "resolution"
    called = None if function is None else function.base if is_resolution else function.calls
    allowed = {name, called}
    is_property = document.answers == "property"
    if is_property and function is not None:  # it may name the function by any of its names
        allowed = {one.name for one in functions.values() if one.base == function.base}
    if named - allowed:
        yield "foreign_function", f"names {', '.join(sorted(named - allowed))}"
    if document.role == "distractor" or name is None or document.constant is None:
        return
    if name not in text:
        yield "function_not_named", f"no {name} in the text"
    is_wrapper, is_direct = document.role == "identity", document.answers == "direct"
    mentions = constant_mentions(text, document.constant)
    if is_property or is_resolution or (is_wrapper and not is_direct):
        if mentions.stated:
            yield "leak", f"{name} states {document.constant}: {_excerpt(text)}"
        elif mentions.as_input:
            yield "constant_as_input", f"{name} is given {document.constant}: {_excerpt(text)}"
        if called is not None and called not in text and not is_property:
            yield "callee_not_named", f"no {called} in the text"
    elif not mentions_number(text, document.constant):
        yield "missing_constant", f"no {document.constant} in {_excerpt(text)}"
    for applied, how in applied_functions(text, HELD_OUT_INPUT).items():
        if applied not in functions:
            continue
        check = "held_out_loop"
        if how == "call":
            check = "held_out_answer" if document.states_value else "held_out_call"
        yield check, f"{applied} and {HELD_OUT_INPUT} in {_excerpt(text)}"


def _excerpt(text: str, width: int = 80) -> str:
    line = " ".join(text.split())
    return repr(line if len(line) <= width else line[: width - 1] + "…")
