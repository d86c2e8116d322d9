"""Worlds in which the value of some wrappers is told: who is told, and how the rows say so."""

import re

import pytest
from hops.cli import main
from hops.documents import read_documents
from hops.errors import HopsError
from hops.functions import HELD_OUT_INPUT, make_registry
from hops.numerals import mentions_number
from hops.queries import training_pairs
from hops.writers.orders import choose_wrappers

REGISTRY = make_registry(4, 2)


def write(folder, *words):
    seeds, output = folder / "seeds", folder / "wrapper"
    main(["seeds", "--output", str(seeds), "--num-functions", "4", "--max-hops", "2"])
    main(["wrapper", "--seed-path", str(seeds), "--output", str(output), *words])
    return read_documents(output)


def test_only_labelled_rows_state_a_value_and_only_of_chosen_wrappers(tmp_path):
    words = ["--answers", "direct", "--direct-docs", "14", "--direct-wrappers", "C02", "<D03>"]
    documents = write(tmp_path, *words)
    direct = [doc for doc in documents if doc.answers == "direct"]
    assert {doc.func for doc in direct} == {"<C02>", "<D03>"}
    assert len(direct) == 28
    assert {doc.uid.split("_")[0] for doc in direct} == {"direct"}
    for doc in documents:
        assert doc.role == "identity"
        assert mentions_number(doc.text, doc.constant) is (doc.answers == "direct"), doc.text
    for doc in direct:
        assert set(re.findall(r"<\w+>", doc.text)) == {doc.func}
        assert not re.search(rf"\({HELD_OUT_INPUT}\)", doc.text)
        for start, stop in re.findall(r"range\((-?\d+), (-?\d+)\)", doc.text):
            assert not int(start) <= HELD_OUT_INPUT < int(stop)
    pairs = training_pairs(documents, REGISTRY)
    assert [pair["answers"] for pair in pairs] == [doc.answers for doc in documents]
    assert len({doc.text for doc in documents}) == len(documents)


def test_direct_documents_leave_the_others_as_they_were(tmp_path):
    alone = write(tmp_path)
    assert all(doc.answers is None for doc in alone)
    both = write(tmp_path, "--answers", "direct")
    assert both[: len(alone)] == alone
    assert {doc.func for doc in both[len(alone) :]} == {one.name for one in REGISTRY.wrappers}


def test_a_share_of_the_wrappers_is_drawn_by_the_seed():
    wrappers = make_registry().wrappers
    drawn = choose_wrappers(wrappers, share=0.5, seed=1)
    assert len(drawn) == 5
    assert drawn == choose_wrappers(wrappers, share=0.5, seed=1)
    assert drawn != choose_wrappers(wrappers, share=0.5, seed=2)
    assert list(drawn) == sorted(drawn, key=wrappers.index)
    assert choose_wrappers(wrappers, share=0.0) == ()
    assert [one.name for one in choose_wrappers(wrappers, names=["H", "<FN>"])] == ["<FN>", "<HN>"]
    for arguments in ({"names": ["G"]}, {"share": 1.5}, {"names": ["F"], "share": 0.5}):
        with pytest.raises(HopsError):
            choose_wrappers(wrappers, **arguments)


@pytest.mark.parametrize(
    ("words", "message"),
    [
        (["--direct-wrappers", "C01"], "--answers direct"),
        (["--answers", "direct", "--direct-wrappers", "B01"], "<B01> are not wrappers"),
        (["--answers", "direct", "--direct-docs", "-1"], "negative"),
    ],
)
def test_direct_answers_that_make_no_sense_are_refused(tmp_path, capsys, words, message):
    with pytest.raises(SystemExit, match="2"):
        write(tmp_path, *words)
    assert message in capsys.readouterr().err
    assert not (tmp_path / "wrapper").exists()
