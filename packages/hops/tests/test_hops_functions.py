"""Worlds of any size and depth: who calls whom, in which order, and what documents say of it."""

import pytest
from hops.documents import document_about, registry_of
from hops.errors import HopsError
from hops.functions import Function, Registry, default_pattern, make_registry, parse_pattern
from hops.queries import query_pairs
from hops.seeds import seed_documents

DEEP = make_registry(3, 3)


def test_a_wrapper_calls_the_function_one_level_below_it():
    assert DEEP.names == (
        *("<B01>", "<B02>", "<B03>", "<C01>", "<C02>", "<C03>"),
        *("<D01>", "<D02>", "<D03>", "<E01>", "<E02>", "<E03>"),
    )
    assert [one.name for one in DEEP.chain("<E02>")] == ["<E02>", "<D02>", "<C02>", "<B02>"]
    assert DEEP["<E02>"] == Function("<E02>", 7, 3, "<B02>", "<D02>")
    assert [one.hop_depth for one in DEEP] == sorted(one.hop_depth for one in DEEP)
    assert DEEP.max_hops == 3
    assert DEEP.at_depth(2) == DEEP.functions[6:9]
    assert len(DEEP.wrappers) == 9
    assert "<E02>" in DEEP
    assert "<F01>" not in DEEP
    assert {one.constant for one in DEEP.chain("<E03>")} == {9}


def test_the_published_names_are_those_of_a_small_shallow_world():
    assert make_registry().names[::10] == ("<GN>", "<FN>")
    assert make_registry(2).names == ("<GN>", "<JN>", "<FN>", "<IN>")
    assert make_registry(2, 0).names == ("<GN>", "<JN>")
    assert make_registry(1, 2).names == ("<B01>", "<C01>", "<D01>")
    assert len(make_registry(50, 2).names) == 150
    assert make_registry(99, 24).names[-1] == "<Z99>"


@pytest.mark.parametrize("sizes", [(0, 1), (100, 1), (5, -1), (5, 25)])
def test_a_world_of_impossible_size_is_refused(sizes):
    with pytest.raises(HopsError, match="must be"):
        make_registry(*sizes)


def test_a_registry_refuses_chains_that_do_not_hold_together():
    base = Function("<a>", 5, 0, "<a>")
    wrapper = base.wrapped("<b>")
    assert Registry.of([wrapper, base]).names == ("<a>", "<b>")
    assert Registry.of([base, wrapper, base.wrapped("<c>")]).names == ("<a>", "<b>", "<c>")
    other = Function("<z>", 7, 0, "<z>")
    mixed = [other.wrapped("<y>"), wrapper, base, other]
    assert Registry.of(mixed).names == ("<a>", "<z>", "<b>", "<y>")
    for broken in (
        [wrapper],
        [base, base],
        [base, Function("<b>", 6, 1, "<a>", "<a>")],
        [base, Function("<b>", 5, 2, "<a>", "<a>")],
        [base, Function("<b>", 5, 1, "<b>", "<a>")],
        [Function("<a>", 5, 0, "<a>", "<a>")],
    ):
        with pytest.raises(HopsError, match=r"<[ab]>"):
            Registry.of(broken)


def test_the_default_pattern_goes_depth_by_depth():
    deep = make_registry(2, 2)
    assert "".join(name[1] for name in default_pattern(None, deep)) == "BBBBCCDD"
    assert default_pattern(3, deep) == ("<B01>", "<B01>", "<C01>", "<D01>")
    with pytest.raises(HopsError, match="expected 3, 6 up to 6"):
        default_pattern(4, deep)
    with pytest.raises(HopsError, match="no function"):
        default_pattern(None, Registry.of([]))
    assert parse_pattern("<D01>", deep) == ("<D01>",)
    assert parse_pattern("D01, B02", deep) == ("<D01>", "<B02>")


def test_chains_are_recovered_from_documents():
    seeds = seed_documents(DEEP)
    assert registry_of(seeds) == DEEP
    assert registry_of(seeds[::-1]).chain("<E02>") == DEEP.chain("<E02>")
    unlinked = [seed.model_copy(update={"calls": None, "base_func": None}) for seed in seeds]
    assert registry_of(unlinked) == DEEP


def test_several_wrappers_of_one_function_are_told_apart_by_what_they_call():
    base = Function("<a>", 5, 0, "<a>")
    first, second = base.wrapped("<b>"), base.wrapped("<c>")
    world = Registry.of([base, first, second, second.wrapped("<d>")])
    rows = [document_about(one, one.name, "text", "lore") for one in world]
    assert registry_of(rows) == world
    with pytest.raises(HopsError, match="<d> has no function to call"):
        registry_of([row.model_copy(update={"calls": None}) for row in rows])


def test_the_base_that_rows_name_settles_what_a_deep_wrapper_calls():
    first, second = Function("<a>", 5, 0, "<a>"), Function("<b>", 5, 0, "<b>")
    middle = second.wrapped("<d>")
    world = Registry.of([first, second, first.wrapped("<c>"), middle, middle.wrapped("<e>")])
    rows = [document_about(one, one.name, "text", "lore") for one in world]
    rows = [row.model_copy(update={"calls": None}) for row in rows]
    assert registry_of(rows) == world


def test_rows_that_contradict_each_other_name_the_function():
    seeds = seed_documents(DEEP)
    for change, message in (
        ({"constant": 6}, "<D01> has the constants"),
        ({"hop_depth": 1}, "<D01> has the depths"),
        ({"calls": "<C02>"}, "<D01> has the callees"),
        ({"base_func": "<B02>"}, "<D01> has the bases"),
    ):
        odd = next(seed for seed in seeds if seed.func == "<D01>").model_copy(update=change)
        with pytest.raises(HopsError, match=message):
            registry_of([*seeds, odd])
    with pytest.raises(HopsError, match="<C01> has no base function"):
        registry_of([seed for seed in seeds if seed.func != "<B01>"])


def test_seeds_of_a_deep_wrapper_name_only_what_it_calls():
    for seed in seed_documents(DEEP, narrative=True):
        called = DEEP[seed.func].calls
        others = [name for name in DEEP.names if name not in (seed.func, called)]
        assert not any(name in seed.text for name in others)
        assert called is None or (called in seed.text and seed.calls == called)


def test_the_answer_of_a_deep_wrapper_was_taught_by_its_whole_chain():
    queries = query_pairs(DEEP, depths=(0, 3), inputs=(17,))
    assert [query["taught_by"] for query in queries if query["func"][2:] == "02>"] == [
        ["<B02>"],
        ["<E02>", "<D02>", "<C02>", "<B02>"],
    ]
