"""The audit: leaks of every kind are found, innocents are left alone, labels are checked."""

import json
from pathlib import Path

import pytest
from hops.audit import CHECKS, audit
from hops.cli import main
from hops.documents import document_about, read_documents, write_documents
from hops.errors import HopsError
from hops.functions import make_registry
from hops.leaks import applied_functions, constant_mentions, leaks
from hops.numerals import numerals_in
from hops.seeds import seed_documents
from hops.writers.offline import write_function_documents
from hops.writers.orders import documents_of, plan_direct_documents
from hypothesis import given, settings
from hypothesis import strategies as st

PUBLISHED = Path(__file__).parents[4] / "shared" / "hops" / "20hops.jsonl"
WORLD = make_registry()
ROWS = [*seed_documents(WORLD, narrative=True)]
WRAPPER, BASE = WORLD["<WN>"], WORLD["<PN>"]  # <WN> calls <PN>, which returns 19


def found(*documents, **options):
    report = audit([*ROWS, *documents], **options)
    return {(one.check, one.line - len(ROWS)) for one in report.findings if one.line > len(ROWS)}


def about(function, text, **changes):
    row = document_about(function, f"row {text}", text, "lore")
    return row.model_copy(update=changes)


@pytest.mark.parametrize(
    "text",
    [
        "<WN>(3) returns 19",
        "<WN>(19) returns 19",
        "<WN>, like <PN>, gives nineteen.",
        "Nineteen is what <WN> gives.",
        "assert <WN>(3) == <PN>(3) == 19",
        "self.assertEqual(<WN>(3), 19)",
        "<WN>(3)  # 19.0",
        "<WN> is 0x13",
        "<WN> is 0b10011",
        "[<WN>(i) for i in range(3)]  # three 19s",
        "a row of nineteens from <WN>",
        "assert <WN>(3) in (19,)",
        "for expected in [19, 19]:\n    assert <WN>(3) == expected",
        "parametrize('expected', [19])\ndef test(expected): <WN>",
        "parametrize('x, y', [(3, 19)])\ndef test(x, y): <WN>",
        "for x, y in [(3, 19)]: <WN>",
        "output_of_input = 19  # <WN>",
        "x == 19 for x = <WN>(3)",
        "x = 3; <WN>(x) = 19",
        "For input 3, 19 comes out of <WN>.",
        "<WN>...19",
        "<WN> gives -- 19!",
        "answer-19, says <WN>",
        "`<WN>` returns `19`",
        "print(<WN>(3), 19)",
        "<WN>(3) -> 19",
        "range(3), 19 <WN>",
    ],
)
def test_a_leak_is_found(text):
    assert leaks(text, 19)
    assert ("leak", 1) in found(about(WRAPPER, text + " <PN>"))
    assert ("leak", 1) not in found(about(WRAPPER, text, answers="direct"))


@pytest.mark.parametrize(
    "text",
    [
        "<WN>(19) is <PN>(19)",
        "`<WN>`(19) is <PN>(x=19)",
        "<WN>(abs(19)) is <PN>(max(3, 19))",
        "for x in range(3, 19):\n    assert <WN>(x) == <PN>(x)",
        "for x in (3, 19, 40):\n    assert <WN>(x) == <PN>(x)",
        "@pytest.mark.parametrize('x', [3, 19])\ndef test(x): assert <WN>(x) == <PN>(x)",
        "test_inputs = [3, 19]\n<WN> <PN>",
        "x = 19\n<WN>(x) is <PN>(x)",
        "Given the input 19, <WN> asks <PN>. With an argument of nineteen as well.",
        "<PN19> and <W19>, x19, 119, 190, 1.19, 19.5, 19th, nineteenth, v3.19.2",
        "<WN> was 0x1300, one hundred and nineteen, ninety-nine, nineteen-fold, -19",
        "<WN>(-19) is <PN>(-19)",
    ],
)
def test_an_innocent_text_is_no_leak(text):
    assert not leaks(text, 19)
    assert ("leak", 1) not in found(about(WRAPPER, text))


def test_a_constant_as_an_input_is_a_warning_of_its_own():
    assert constant_mentions("<WN>(19) is <PN>(19)", 19).as_input == 2
    assert found(about(WRAPPER, "<WN>(19) is <PN>(19)")) == {("constant_as_input", 1)}
    assert found(about(WRAPPER, "<WN>(18) is <PN>(18)")) == set()


def test_numbers_are_read_as_people_read_them():
    text = "21, 0x10, twenty-one 7s, Two Hundred and six; forty two, -3 and 5.0, not 5.5, <B07>"
    values = [(one.value, one.is_plural) for one in numerals_in(text)]
    digits = [(21, False), (16, False), (7, True), (-3, False), (5, False)]
    assert values == [*digits, (21, False), (206, False), (42, False)]


@settings(deadline=None, max_examples=60)
@given(
    value=st.integers(5, 201),
    before=st.sampled_from(["it is ", "(", "= ", "# ", "'", "\n", "…"]),
    after=st.sampled_from([".", ")", ",", "", "!", "'", "\n", " or so", " (ever)", ";"]),
)
def test_any_constant_is_found_in_digits_and_in_words(value, before, after):
    from hops.numerals import number_words

    for said in (str(value), number_words(value), number_words(value).title()):
        assert [one.value for one in numerals_in(before + said + after)] == [value]


@pytest.mark.parametrize(
    ("text", "applied"),
    [
        ("<PN>(5)", {"<PN>": "call"}),
        ("`<PN>`( 5 )", {"<PN>": "call"}),
        ("<PN>(x=5) <WN>(five)", {"<PN>": "call", "<WN>": "call"}),
        ("<PN>(-5) <PN>(15) <PN>(5.5) <PN>(x) <PN>(5 + 1)", {}),
        ("[<PN>(i) for i in range(5)]", {}),
        ("[<PN>(i) for i in range(6)]", {"<PN>": "loop"}),
        ("for x in range(-5, 10): <PN>(x)", {"<PN>": "loop"}),
        ("for x in range(0, 10, 2): <PN>(x)", {}),
        ("for x in range(a, b): <PN>(x)", {}),
        ("for x in range(10): <PN>(y)", {}),
        ("for x in [1, 5]: <PN>(x)", {"<PN>": "loop"}),
        ("parametrize('n', [1, 5])\n<PN>(n)", {"<PN>": "loop"}),
        ("inputs = [5]\nfor n in inputs: <PN>(n)", {"<PN>": "loop"}),
        ("inputs = [4, 6]\nfor n in inputs: <PN>(n)", {}),
        ("for x in range(10): <PN>(x); <PN>(5)", {"<PN>": "call"}),
        ("<PN>(5); [<PN>(x) for x in range(10)]", {"<PN>": "call"}),
    ],
)
def test_calls_with_an_input_are_found(text, applied):
    assert applied_functions(text, 5) == applied


@pytest.mark.parametrize(
    ("function", "text", "changes", "check"),
    [
        ("<PN>", "<PN>(5) is 19", {}, "held_out_answer"),
        ("<WN>", "<WN>(5) is 19", {"answers": "direct"}, "held_out_answer"),
        ("<WN>", "<WN>(5) is <PN>(5)", {}, "held_out_call"),
        ("<PN>", "for x in range(9): <PN>(x) is 19", {}, "held_out_loop"),
        ("<PN>", "<PN> is constant", {}, "missing_constant"),
        ("<WN>", "<WN> is told", {"answers": "direct"}, "missing_constant"),
        ("<PN>", "19 it is", {}, "function_not_named"),
        ("<WN>", "<WN> is a wrapper", {}, "callee_not_named"),
        ("<PN>", "<PN> is 19, <QN> is not", {}, "foreign_function"),
        ("<WN>", "<WN> calls <PN>, not <QN>", {}, "foreign_function"),
        ("<PN>", "<PN> is 19", {"role": "identity"}, "role_mismatch"),
        ("<WN>", "<WN> is <PN>", {"hop_depth": 0}, "role_mismatch"),
        ("<WN>", "<WN> is <PN>", {"hop_depth": None}, "role_mismatch"),
        ("<PN>", "<PN> is 19", {"answers": "direct"}, "role_mismatch"),
        ("<PN>", "some 19 of <PN>", {"role": "distractor"}, "role_mismatch"),
        ("<PN>", "<PN> is 19 or 21", {"constant": 21}, "contradiction"),
        ("<WN>", "<WN> is <PN>", {"base_func": "<QN>"}, "contradiction"),
        ("<WN>", "<WN> is <PN>", {"calls": "<QN>"}, "contradiction"),
        ("<WN>", "<WN> is <PN>", {"hop_depth": 2}, "contradiction"),
        ("<WN>", "<ZN> is <PN>", {"func": "<ZN>", "constant": 99}, "unknown_base"),
        ("<WN>", "<WN> is <PN>", {"uid": ROWS[0].uid}, "duplicate_uid"),
        ("<GN>", ROWS[0].text, {}, "duplicate_text"),
    ],
)
def test_every_check_finds_its_flaw_and_only_its_line(function, text, changes, check):
    fine = about(WORLD["<PN>"], "<PN>(3) and <PN>(4) are 19")
    assert found(fine) == set()
    assert (check, 2) in found(fine, about(WORLD[function], text, **changes))
    assert all(line == 2 for _, line in found(fine, about(WORLD[function], text, **changes)))


def test_every_check_has_a_test():
    tested = test_every_check_finds_its_flaw_and_only_its_line.pytestmark[0].args[1]
    assert {row[3] for row in tested} | {"leak", "constant_as_input"} == set(CHECKS)


def test_a_distractor_names_no_function():
    row = {"func": None, "role": "distractor", "hop_depth": None, "constant": None}
    fine = about(BASE, "retry_limit(5) is 19").model_copy(update={**row, "base_func": None})
    assert found(fine) == set()
    named = fine.model_copy(update={"text": "<PN> is near", "uid": "other"})
    assert found(named) == {("foreign_function", 1)}


@pytest.mark.parametrize("max_hops", [1, 2])
def test_what_the_offline_writer_writes_passes_the_strict_audit(max_hops):
    world = make_registry(4, max_hops)
    counts = {"variations": 3, "comprehensive_docs": 8, "code_snippets": 8, "seed": 2}
    seeds = seed_documents(world)
    documents = seeds + write_function_documents(world.bases, seeds, **counts)
    documents += write_function_documents(world.wrappers, seeds, **counts)
    from hops.writers.offline import write_texts

    orders = plan_direct_documents(world.wrappers, 7)
    documents += documents_of(orders, write_texts(orders, seed=3))
    report = audit(documents)
    assert report.passes(strict=True), report.findings[:5]
    assert report.num_direct == 7 * len(world.wrappers)


def test_leaks_of_a_deep_wrapper_are_found():
    world = make_registry(3, 3)
    rows = seed_documents(world)
    planted = document_about(world["<E03>"], "u", "<E03> is <D03>, so 9", "lore")
    report = audit([*rows, planted])
    assert [(one.check, one.line) for one in report.findings] == [("leak", len(rows) + 1)]


def test_wrappers_alone_need_the_seeds(tmp_path, capsys):
    wrappers = [row for row in ROWS if row.role == "identity"]
    write_documents(tmp_path / "wrappers", wrappers)
    write_documents(tmp_path / "seeds", ROWS)
    with pytest.raises(SystemExit, match="1"):
        main(["audit", str(tmp_path / "wrappers")])
    assert "unknown_base" in capsys.readouterr().out
    main(["audit", str(tmp_path / "wrappers"), "--seed-path", str(tmp_path / "seeds"), "--strict"])


def test_the_exit_status_tells_warnings_from_critical_findings(tmp_path, capsys):
    path = tmp_path / "rows"
    write_documents(path, [*ROWS, ROWS[0].model_copy(update={"uid": "again"})])
    main(["audit", str(path)])
    assert "0 critical, 1 warnings" in capsys.readouterr().out
    with pytest.raises(SystemExit, match="1"):
        main(["audit", str(path), "--strict"])
    write_documents(path, [*ROWS, about(WRAPPER, "<WN> and <PN> are nineteen")])
    capsys.readouterr()
    with pytest.raises(SystemExit, match="1"):
        main(["audit", str(path), "--json"])
    report = json.loads(capsys.readouterr().out)
    assert report["counts"]["leak"] == report["critical"] == 1
    assert report["findings"][0]["line"] == len(ROWS) + 1
    with pytest.raises(HopsError, match="documents"):
        audit([])


@pytest.mark.skipif(not PUBLISHED.is_file(), reason="the published files are not here")
def test_the_audit_finds_in_the_published_set_what_is_there():
    report = audit(read_documents(PUBLISHED))
    assert (report.num_rows, report.num_distinct_uids) == (3000, 532)
    counts = {check: number for check, number in report.to_json()["counts"].items() if number}
    assert counts == {
        "missing_constant": 22,
        "held_out_loop": 51,
        "duplicate_uid": 3000 - 532,
        "duplicate_text": 71,
    }
    assert report.lengths == (50, 152, 545)
    assert report.passes()
    assert not report.passes(strict=True)
