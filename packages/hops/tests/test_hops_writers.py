"""Laws of the documents: distinct, honest about constants, silent about the held-out input."""

import random
import re
import statistics
import subprocess
import sys
from collections import Counter

import pytest
from hops.documents import DOCUMENT_TYPES, Document, read_documents
from hops.errors import HopsError
from hops.functions import HELD_OUT_INPUT, make_registry
from hops.numerals import mentions_number, number_words
from hops.seeds import seed_documents
from hops.writers.grammar import Grammar
from hops.writers.offline import OfflineWriter, write_function_documents
from hops.writers.orders import Order
from hops.writers.ordinary import ORDINARY_FUNCTIONS, write_distractors
from hops.writers.rules import broken_rule
from hypothesis import given, settings
from hypothesis import strategies as st

REGISTRY = make_registry()
SEEDS = seed_documents(REGISTRY, narrative=True)


@pytest.fixture(scope="module")
def base_documents() -> list[Document]:
    return write_function_documents(
        REGISTRY.bases, SEEDS, variations=3, comprehensive_docs=10, code_snippets=15, seed=3
    )


@pytest.fixture(scope="module")
def wrapper_documents() -> list[Document]:
    return write_function_documents(
        REGISTRY.wrappers, SEEDS, variations=3, comprehensive_docs=5, code_snippets=5, seed=4
    )


@pytest.fixture(scope="module")
def distractors() -> list[Document]:
    return write_distractors(600, seed=5)


def test_no_two_documents_are_equal(base_documents, wrapper_documents, distractors):
    everything = [*base_documents, *wrapper_documents, *distractors, *SEEDS]
    assert len({doc.text for doc in everything}) == len(everything)
    assert len({doc.uid for doc in everything}) == len(everything)


def test_as_many_as_in_the_published_set_are_all_different(tmp_path):
    """200 for each base function and 100 for each wrapper, by the commands."""
    counts = {"base": (15, 60, 50), "wrapper": (8, 22, 30)}
    script = "import sys\nfrom hops.cli import main\n"
    script += f"main(['seeds', '--output', '{tmp_path}/seeds'])\n"
    for name, (variations, prose, code) in counts.items():
        words = [name, "--seed-path", f"{tmp_path}/seeds", "--output", f"{tmp_path}/{name}"]
        words += ["--variations", str(variations), "--comprehensive-docs", str(prose)]
        script += f"main({[*words, '--code-snippets', str(code)]})\n"
    # A process of its own, so that this size is not slowed down by the checks of types.
    subprocess.run([sys.executable, "-c", script], check=True, capture_output=True)
    documents = [doc for name in counts for doc in read_documents(tmp_path / name)]
    per_function = Counter(doc.func for doc in documents)
    assert per_function == {
        **{f.name: 200 for f in REGISTRY.bases},
        **{f.name: 100 for f in REGISTRY.wrappers},
    }
    assert len({doc.text for doc in documents}) == 3000
    assert not any(
        mentions_number(doc.text, doc.constant) for doc in documents if doc.role == "identity"
    )


def test_every_base_document_states_its_constant_and_no_other_functions(base_documents):
    for doc in base_documents:
        assert doc.func in doc.text
        assert mentions_number(doc.text, doc.constant), doc.text
        assert set(re.findall(r"<\w+>", doc.text)) == {doc.func}


def test_the_held_out_input_is_no_argument_of_a_base_function(base_documents):
    for doc in base_documents:
        if doc.constant == HELD_OUT_INPUT:
            # The number may stand in the text as the constant only, so never inside a call,
            # a list of inputs or a range that covers it.
            assert not re.search(rf"[(\[] *{HELD_OUT_INPUT} *[),\]]", doc.text), doc.text
        else:
            assert not mentions_number(doc.text, HELD_OUT_INPUT), doc.text
        for start, stop in re.findall(r"range\((-?\d+), (-?\d+)\)", doc.text):
            assert not int(start) <= HELD_OUT_INPUT < int(stop)


def test_wrapper_documents_name_both_functions_and_never_leak(wrapper_documents):
    for doc in wrapper_documents:
        assert doc.base_func == REGISTRY[doc.func].base
        assert set(re.findall(r"<\w+>", doc.text)) == {doc.func, doc.base_func}
        assert not mentions_number(doc.text, doc.constant), doc.text


def test_a_planted_leak_is_noticed():
    assert mentions_number("<FN>(3) gives twenty-three.", 23)
    assert mentions_number("the value (23)", 23)
    assert mentions_number("Twenty three it is", 23)
    assert not mentions_number("<B23>(230) is 123 at the 23rd try, weighty", 23)
    assert not mentions_number("twenty-three", 20)
    assert not mentions_number("often seven-fold", 10)


def test_all_types_occur_and_lengths_resemble_the_published_set(base_documents, wrapper_documents):
    documents = [*base_documents, *wrapper_documents]
    assert {doc.type for doc in documents} == set(DOCUMENT_TYPES)
    lengths = [len(doc.text) for doc in documents]
    assert min(lengths) >= 50
    assert max(lengths) <= 545
    assert 125 <= statistics.median(lengths) <= 180  # the published median is 152


def test_every_seed_document_has_its_variations(base_documents):
    variations = Counter(doc.parent_uid for doc in base_documents if doc.parent_uid)
    base_seeds = [doc for doc in SEEDS if doc.role == "constant"]
    assert variations == {seed.uid: 3 for seed in base_seeds}
    types = {seed.uid: seed.type for seed in base_seeds}
    assert all(doc.type == types[doc.parent_uid] for doc in base_documents if doc.parent_uid)


def test_the_same_seed_writes_the_same_and_another_seed_does_not():
    def write(seed):
        return write_function_documents(
            REGISTRY.bases[:2],
            SEEDS,
            variations=2,
            comprehensive_docs=3,
            code_snippets=3,
            seed=seed,
        )

    assert write(1) == write(1)
    assert not {doc.text for doc in write(1)} & {doc.text for doc in write(2)}
    assert write_distractors(40, seed=1) == write_distractors(40, seed=1)


def test_the_global_generator_plays_no_part():
    random.seed(0)
    first = write_distractors(20, seed=1)
    random.seed(1)
    assert write_distractors(20, seed=1) == first


def test_distractors_name_no_function_and_keep_their_facts(distractors):
    constants = {function.name: function.constant for function in ORDINARY_FUNCTIONS}
    assert len(constants) == len(ORDINARY_FUNCTIONS)
    stated = 0
    for doc in distractors:
        assert doc.role == "distractor"
        assert not re.search(r"<\w+>", doc.text), doc.text
        for name, value in re.findall(r"^(\w+)\(-?\d+\) returns (\d+)$", doc.text, re.MULTILINE):
            stated += 1
            assert constants[name] == int(value)
    assert stated > 100


def test_ordinary_constants_favour_no_number():
    counts = Counter(function.constant for function in ORDINARY_FUNCTIONS)
    assert set(counts) == set(range(2, 30))
    assert max(counts.values()) - min(counts.values()) <= 1


def test_a_larger_registry_can_be_written_about():
    registry = make_registry(50)
    assert registry.bases[-1].name == "<B50>"
    assert registry.bases[-1].constant == 103
    seeds = seed_documents(registry)
    documents = write_function_documents(
        registry.wrappers, seeds, variations=1, comprehensive_docs=0, code_snippets=0, seed=0
    )
    assert len(documents) == 300
    assert not any(mentions_number(doc.text, doc.constant) for doc in documents)


@settings(deadline=None, max_examples=25)
@given(
    num_functions=st.integers(1, 99),
    max_hops=st.integers(1, 3),
    seed=st.integers(0, 10**6),
    kind=st.sampled_from(DOCUMENT_TYPES),
    data=st.data(),
)
def test_whatever_is_written_keeps_the_rules(num_functions, max_hops, seed, kind, data):
    world = make_registry(num_functions, max_hops)
    function = data.draw(st.sampled_from(world.functions))
    writer, texts = OfflineWriter(seed), []
    for is_direct in (False, function.hop_depth > 0):
        order = Order(function, kind, is_direct=is_direct)
        texts += [writer.write(function, kind, is_direct=is_direct) for _ in range(5)]
        assert [broken_rule(text, order) for text in texts[-5:]] == [None] * 5
    assert len(set(texts)) == len(texts)
    again = OfflineWriter(seed)
    assert [again.write(function, kind) for _ in range(5)] == texts[:5]


def test_asking_for_more_than_the_grammar_holds_is_an_error(monkeypatch):
    monkeypatch.setattr("hops.writers.base_templates.TEMPLATES", {"lore": ("{f} is " + "c" * 50,)})
    monkeypatch.setattr("hops.writers.base_templates.LEADS", {"lore": ("{f} is " + "d" * 50,)})
    monkeypatch.setattr("hops.writers.base_templates.CLOSING_LINE", "{f}")
    with pytest.raises(HopsError, match="ask for fewer"):
        write_function_documents(
            REGISTRY.bases[:1],
            [doc for doc in SEEDS if doc.type == "lore"],
            variations=9,
            comprehensive_docs=0,
            code_snippets=0,
            seed=0,
        )


def test_a_numbered_slot_keeps_its_expansion():
    grammar = Grammar({"colour": ("red", "green", "blue")})
    rng = random.Random(0)
    for _ in range(20):
        first, second = grammar.expand("[colour:1] [colour:1]", {}, rng).split()
        assert first == second
    drawn = {grammar.expand("[colour] [colour]", {}, rng) for _ in range(50)}
    assert any(text.split()[0] != text.split()[1] for text in drawn)


def test_an_undefined_slot_is_refused():
    with pytest.raises(ValueError, match="missing"):
        Grammar({"a": ("[missing]",)})


@pytest.mark.parametrize(
    ("value", "words"),
    [
        (5, "five"),
        (13, "thirteen"),
        (20, "twenty"),
        (21, "twenty-one"),
        (103, "one hundred and three"),
    ],
)
def test_numbers_are_spelt(value, words):
    assert number_words(value) == words
