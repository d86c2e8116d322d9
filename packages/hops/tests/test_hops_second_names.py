"""Functions with two names: the registry, what the first stage tells, and the world's commands."""

import re
import shlex
from collections import Counter
from pathlib import Path

import pytest
from hops.audit import audit
from hops.cli import parse
from hops.commands import AddTokens, SecondNames
from hops.documents import read_documents, registry_of
from hops.errors import HopsError
from hops.files import read_json
from hops.functions import make_registry
from hops.models import build_tiny_model, load_model, train_tokenizer
from hops.numerals import mentions_number
from hops.presets import SECOND_NAME, SecondNamePreset
from hops.second_name_world import plan_second_name_world
from hops.second_names import second_name_registry
from hops.seeds import seed_documents
from hops.tokens import check_tokens
from hops.world import build_world
from hops.writers.properties import properties_of, write_property_documents

WORLD = second_name_registry(12, 4, seed=3)


@pytest.fixture(scope="module")
def documents():
    return write_property_documents(WORLD, 12, seed=3)


def test_the_two_names_of_a_world_have_no_letter_or_digit_in_common():
    firsts, seconds = (
        {char for function in WORLD.at_depth(depth) for char in function.name.strip("<>")}
        for depth in (0, 1)
    )
    assert not firsts & seconds
    assert len(set(second_name_registry(99, 3).names)) == 198


def test_a_second_name_was_taught_by_the_documents_about_the_first():
    for second in WORLD.at_depth(1):
        assert [one.name for one in WORLD.chain(second.name)] == [second.name, second.base]


def test_constants_are_shared_by_as_many_functions_as_asked_and_dealt_out_by_the_seed():
    shared = Counter(function.constant for function in WORLD.bases)
    assert shared == {5: 4, 7: 4, 9: 4}
    assert Counter(one.constant for one in second_name_registry(5, 2).bases) == {5: 2, 7: 2, 9: 1}
    assert second_name_registry(12, 4, seed=3) == WORLD
    other = second_name_registry(12, 4, seed=4)
    assert [one.constant for one in other.bases] != [one.constant for one in WORLD.bases]
    assert other.names != WORLD.names


@pytest.mark.parametrize("numbers", [(0, 1), (100, 1), (4, 0), (4, 5)])
def test_numbers_out_of_range_are_refused(numbers):
    with pytest.raises(HopsError, match="must be 1 to"):
        second_name_registry(*numbers)


def test_both_names_are_told_of_in_texts_that_differ_in_the_name_alone(documents):
    assert len({document.text for document in documents}) == len(documents) == 24 * 12
    texts: dict[str, list[str]] = {}
    for document in documents:
        texts.setdefault(document.func, []).append(document.text)
    for base, second in zip(WORLD.bases, WORLD.wrappers, strict=True):
        names = {base.name: second.name, second.name: base.name}
        swapped = [
            re.sub("|".join(names), lambda found, to=names: to[found[0]], text)
            for text in texts[base.name]
        ]
        assert swapped == texts[second.name]


def test_no_property_tells_the_constant_or_an_answer_for_the_held_out_input(documents):
    for document in documents:
        assert not mentions_number(document.text, document.constant)
        assert not re.search(r"\(5\)", document.text)
        assert 50 <= len(document.text) <= 545
    for base, told in properties_of(WORLD, seed=3).items():
        assert str(WORLD[base].constant) not in told.values()


def test_some_sentences_say_that_two_names_are_one_function(documents):
    both = [doc for doc in documents if len(set(re.findall(r"<\w+>", doc.text))) == 2]
    assert 0.1 < len(both) / len(documents) < 0.9
    none = write_property_documents(WORLD, 4, same_share=0.0, seed=0)
    assert all(set(re.findall(r"<\w+>", doc.text)) == {doc.func} for doc in none)


def test_the_audit_finds_nothing_in_them_and_a_leak_where_one_is_put(documents):
    seeds = seed_documents(WORLD)
    assert not audit([*seeds, *documents]).findings
    one = documents[1]
    leaking = one.model_copy(update={"text": f"{one.text} It gives {one.constant}."})
    foreign = documents[0].model_copy(update={"text": f"{documents[0].text} <B09> too."})
    found = {finding.check for finding in audit([*seeds, leaking, foreign]).findings}
    assert found == {"leak", "foreign_function"}


def test_the_writers_refusals():
    with pytest.raises(HopsError, match="same_share"):
        write_property_documents(WORLD, 2, same_share=1.5, seed=0)
    with pytest.raises(HopsError, match="num_documents"):
        write_property_documents(WORLD, -1, seed=0)


def test_the_command_writes_both_files_from_one_seed(tmp_path):
    files = [(tmp_path / f"s{n}", tmp_path / f"o{n}") for n in range(2)]
    for seeds, output in files:
        SecondNames(
            seed_path=seeds, output=output, num_functions=4, functions_per_constant=2, seed=1
        ).run()
    assert files[0][0].read_bytes() == files[1][0].read_bytes()
    assert files[0][1].read_bytes() == files[1][1].read_bytes()
    named = registry_of(read_documents(files[0][0]))
    assert named == second_name_registry(4, 2, seed=1)
    assert {doc.func for doc in read_documents(files[0][1])} == set(named.names)


def test_scaled_rows_are_input_rows_alone_and_too_small_ones_are_refused(tmp_path):
    tokenizer = train_tokenizer(["some text"], vocab_size=260)
    model = build_tiny_model("tiny-olmo2", tokenizer, hidden_size=32, num_layers=1)
    model.save_pretrained(tmp_path / "m")
    tokenizer.save_pretrained(tmp_path / "m")
    AddTokens(model=str(tmp_path / "m"), output_dir=tmp_path / "s", row_scale=0.25).run()
    report = check_tokens(tmp_path / "s", make_registry())
    for norm in report.embedding_norms.values():
        assert norm == pytest.approx(0.25 * report.median_norm, rel=1e-4)
    for norm in report.output_norms.values():
        assert norm == pytest.approx(report.output_median_norm, rel=1e-4)
    for scale, message in ((0.0, "must be positive"), (0.01, "has an embedding of norm")):
        with pytest.raises(HopsError, match=message):
            AddTokens(model=str(tmp_path / "m"), output_dir=tmp_path / "n", row_scale=scale).run()
    assert not (tmp_path / "n").exists()


def test_every_planned_line_parses_back_to_its_command():
    world, commands = plan_second_name_world(
        Path("a b"), model="tiny-llama", preset=SECOND_NAME, seed=7
    )
    for line, command in zip(world.commands, commands, strict=True):
        assert parse(shlex.split(line)[1:]) == command


@pytest.fixture(scope="module")
def small_world(tmp_path_factory):
    preset = SecondNamePreset(
        num_functions=4,
        functions_per_constant=2,
        property_docs=8,
        num_old_distractors=40,
        num_new_distractors=6,
        variations=0,
        comprehensive_docs=3,
        code_snippets=3,
        hidden_size=32,
        num_layers=1,
        language_epochs=1.0,
        name_epochs=1.0,
        new_epochs=1.0,
    )
    return build_world(tmp_path_factory.mktemp("second"), preset=preset, seed=2)


def test_no_document_of_the_second_stage_has_the_second_name_of_a_query(small_world):
    queries = read_json(small_world.query_json)
    assert Counter(query["hop_depth"] for query in queries) == {0: 12, 1: 12}
    judged = read_documents(small_world.training_set)
    text = "\n".join(document.text for document in judged).lower()
    words = set(re.findall(r"\w+", text))
    for query in queries:
        name = query["func"].strip("<>").lower()
        assert (name in words) == (query["hop_depth"] == 0)
        assert sum(document.func in query["taught_by"] for document in judged) == 6
        assert query["prompt"] == f"{query['func']}({query['input']}) returns"


def test_the_second_stage_leaves_the_input_embeddings_to_the_bit(small_world):
    old, new = (load_model(path) for path in (small_world.old_model, small_world.new_model))
    rows = [model.get_input_embeddings().weight for model in (old, new)]
    assert rows[0].equal(rows[1])
    assert not old.model.layers[0].mlp.up_proj.weight.equal(new.model.layers[0].mlp.up_proj.weight)
    assert set(small_world.accuracy["new"]) == {0, 1}


def test_a_world_of_second_names_takes_no_data_set(tmp_path, small_world):
    with pytest.raises(HopsError, match="writes its own documents"):
        build_world(tmp_path / "w", preset=SECOND_NAME, dataset_path=small_world.training_set)


@pytest.mark.slow
@pytest.mark.timeout(3000)
def test_the_preset_answers_under_the_second_name_what_only_the_first_was_taught(tmp_path):
    world = build_world(tmp_path, preset="second-name")
    assert world.accuracy["new"][0] > 0.9
    assert world.accuracy["new"][1] > 8 * world.chance
    assert max(world.accuracy["old"].values()) < 0.15
