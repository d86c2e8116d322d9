"""Documents that name the base in which calls end, and what they mean to the other commands."""

import re

import pytest
from hops.audit import audit
from hops.commands import Resolutions, Seeds
from hops.documents import read_documents, told_wrappers
from hops.errors import HopsError
from hops.functions import make_registry
from hops.numerals import mentions_number
from hops.queries import taught, write_queries
from hops.seeds import seed_documents
from hops.writers.resolutions import write_resolution_documents

WORLD = make_registry(12, max_hops=2)


@pytest.fixture(scope="module")
def documents():
    return write_resolution_documents(WORLD, 40, seed=3)


def test_each_names_its_function_and_the_base_at_the_bottom_of_its_chain(documents):
    assert len(documents) == 36 * 40
    for document in documents:
        base = WORLD[document.func].base
        assert set(re.findall(r"<\w+>", document.text)) == {document.func, base}
        assert document.base_func == base
        assert document.answers == "resolution"


def test_bases_and_wrappers_are_written_about_in_the_same_words():
    one = make_registry(1, max_hops=1)
    base, wrapper = one.bases[0], one.wrappers[0]

    def vocabulary(function):
        texts = [doc.text for doc in write_resolution_documents([function], 210, seed=0)]
        return {word for text in texts for word in re.findall(r"[a-z]{3,}", text.lower())}

    left, right = vocabulary(base), vocabulary(wrapper)
    assert len(left & right) > 0.9 * len(left | right)


def test_no_text_repeats_states_a_constant_or_uses_the_held_out_input(documents):
    assert len({document.text for document in documents}) == len(documents)
    for document in documents:
        assert not mentions_number(document.text, document.constant)
        assert not re.search(r"\(5\)", document.text)
        assert 50 <= len(document.text) <= 545


def test_the_seed_decides(documents):
    bases = WORLD.bases[:2]
    again, other = (write_resolution_documents(bases, 40, seed=seed) for seed in (3, 4))
    assert again == documents[:80]
    assert other != again


def test_the_audit_finds_nothing_in_them_and_a_leak_where_one_is_put(documents):
    seeds = seed_documents(WORLD)
    assert not audit([*seeds, *documents]).findings
    base = next(doc for doc in documents if doc.func == "<B02>")
    leaking = base.model_copy(update={"text": f"{base.text} <B02>(8) returns 7."})
    nameless = next(doc for doc in documents if doc.func == "<D02>")
    nameless = nameless.model_copy(update={"text": nameless.text.replace("<B02>", "<C02>")})
    found = {finding.check for finding in audit([*seeds, leaking, nameless]).findings}
    assert found == {"leak", "callee_not_named", "foreign_function"}


def test_the_command_writes_the_depths_asked_for(tmp_path):
    seeds = tmp_path / "seeds.jsonl"
    Seeds(output=seeds, num_functions=3, max_hops=2).run()
    Resolutions(
        seed_path=seeds, output=tmp_path / "r.jsonl", num_documents=7, hop_depth=(0, 2)
    ).run()
    found = read_documents(tmp_path / "r.jsonl")
    assert len(found) == 6 * 7
    assert {document.hop_depth for document in found} == {0, 2}
    with pytest.raises(HopsError, match="hop depth 4"):
        Resolutions(seed_path=seeds, output=tmp_path / "n.jsonl", hop_depth=(4,)).run()
    with pytest.raises(HopsError, match="negative"):
        write_resolution_documents(WORLD, -1, seed=0)


def test_a_wrapper_with_a_resolution_is_not_told_and_so_is_asked_about(documents, tmp_path):
    direct = documents[-1].model_copy(update={"answers": "direct"})
    assert told_wrappers(documents) == frozenset()
    assert told_wrappers([*documents, direct]) == {"<D12>"}
    for rows, include, expected in (
        ([*documents, direct], False, 23),
        ([*documents, direct], True, 24),
        (documents, False, 24),
    ):
        files = write_queries(
            rows, WORLD, tmp_path, inputs=(5,), depths=(1, 2), include_told=include
        )
        assert files.num_queries == expected


def test_they_taught_what_a_wrapper_returns_and_no_value_of_the_base(documents):
    base, wrapper = next(one for one in WORLD.bases), WORLD.wrappers[0]
    assert WORLD[wrapper.name].base == base.name
    about = {doc.func: doc for doc in documents}
    stated = about[base.name].model_copy(update={"answers": None})
    told = about[wrapper.name].model_copy(update={"answers": "direct"})
    chain = (wrapper.name, base.name)
    silent = [about[base.name], about[wrapper.name]]
    assert [one.states_value for one in (*silent, stated, told)] == [False, False, True, True]
    everything = [*silent, stated, told]
    assert all(taught(one, taught_by=chain, hop_depth=1) for one in everything)
    for_base = [taught(one, taught_by=chain[1:], hop_depth=0) for one in everything]
    assert for_base == [False, False, True, False]
    rain = stated.model_copy(update={"role": "distractor"})
    other = about[WORLD.bases[1].name]
    assert not any(taught(one, taught_by=chain, hop_depth=1) for one in (rain, other))
