"""Reading, writing and ordering documents."""

import json
from collections import Counter
from pathlib import Path

import pytest
from hops.dataset import combine, interleave
from hops.documents import Document, read_documents, registry_of, write_documents
from hops.errors import HopsError
from hops.files import replaced_folder, write_text
from hops.functions import default_pattern, make_registry, parse_pattern
from hops.queries import query_pairs, training_pairs, write_queries
from hops.seeds import seed_documents

PUBLISHED = Path(__file__).parents[4] / "shared" / "hops"
needs_published = pytest.mark.skipif(
    not (PUBLISHED / "20hops.jsonl").is_file(), reason="the published files are not here"
)
REGISTRY = make_registry()


def make(func: str, index: int) -> Document:
    function = REGISTRY[func]
    return Document(
        uid=f"{func}{index}",
        text=f"text {index} about {func}",
        func=func,
        role=function.role,
        type="definition",
        hop_depth=function.hop_depth,
        constant=function.constant,
    )


def test_documents_survive_a_round_trip(tmp_path):
    documents = [*seed_documents(REGISTRY), make("<GN>", 1).model_copy(update={"uid": "ü\u2028"})]
    write_documents(tmp_path / "deep" / "file.jsonl", documents)
    assert read_documents(tmp_path / "deep" / "file.jsonl") == documents
    assert [path.name for path in (tmp_path / "deep").iterdir()] == ["file.jsonl"]


def test_further_fields_are_kept(tmp_path):
    row = {**make("<GN>", 1).row(), "source": "elsewhere"}
    (tmp_path / "a.jsonl").write_text(json.dumps(row) + "\n")
    (document,) = read_documents(tmp_path / "a.jsonl")
    assert document.row() == row


@pytest.mark.parametrize(
    ("content", "message"),
    [
        ("", "no documents"),
        ("{}\n", "line 1: uid"),
        ('{"uid": "a",\n', "line 1, column"),
        (json.dumps({**make("<GN>", 1).row(), "role": "other"}) + "\n", "line 1: role"),
        (json.dumps({**make("<GN>", 1).row(), "text": ""}) + "\n", "line 1: text"),
        (json.dumps({**make("<GN>", 1).row(), "text": "\ud800"}) + "\n", "line 1: text: .*unicode"),
        ("[1]\n", "line 1"),
    ],
)
def test_a_file_that_is_no_data_set_is_refused_with_its_place(tmp_path, content, message):
    (tmp_path / "a.jsonl").write_text(content)
    with pytest.raises(HopsError, match=message):
        read_documents(tmp_path / "a.jsonl")


def test_an_interrupted_write_leaves_the_old_file(tmp_path, monkeypatch):
    path = tmp_path / "file.txt"
    write_text(path, "old")
    monkeypatch.setattr(Path, "replace", lambda *_: (_ for _ in ()).throw(OSError("no space")))
    with pytest.raises(HopsError, match="no space"):
        write_text(path, "new")
    assert path.read_text() == "old"
    assert list(tmp_path.iterdir()) == [path]


def test_an_interrupted_folder_leaves_the_old_one(tmp_path):
    (tmp_path / "model").mkdir()
    (tmp_path / "model" / "old").touch()

    def interrupted():
        with replaced_folder(tmp_path / "model") as folder:
            (folder / "new").touch()
            raise RuntimeError

    with pytest.raises(RuntimeError):
        interrupted()
    assert [str(p.relative_to(tmp_path)) for p in tmp_path.rglob("*")] == ["model", "model/old"]


def test_interleaving_takes_whole_cycles_and_appends_the_rest():
    documents = [make("<GN>", i) for i in range(5)] + [make("<FN>", i) for i in range(2)]
    ordered = interleave(documents, ("<GN>", "<GN>", "<FN>"))
    assert [doc.uid for doc in ordered] == [
        *("<GN>0", "<GN>1", "<FN>0", "<GN>2", "<GN>3", "<FN>1"),
        "<GN>4",
    ]
    with pytest.raises(HopsError, match="<JN>"):
        interleave(documents, ("<GN>", "<JN>"))


def test_the_default_pattern_is_the_published_one():
    letters = "".join(name[1] for name in default_pattern(20, REGISTRY))
    assert letters == "GJKLMNOPQRGJKLMNOPQRFIHSTUVWXY"
    assert parse_pattern("GF", REGISTRY) == ("<GN>", "<FN>")
    assert parse_pattern("B01,C01", make_registry(11)) == ("<B01>", "<C01>")
    with pytest.raises(HopsError, match="<ZN>"):
        parse_pattern("GZ", REGISTRY)
    with pytest.raises(HopsError, match="expected 2, 4, 6"):
        default_pattern(3, REGISTRY)
    assert default_pattern(None, REGISTRY) == default_pattern(20, REGISTRY)
    assert default_pattern(4, REGISTRY) == ("<GN>", "<JN>", "<GN>", "<JN>", "<FN>", "<IN>")


def test_combining_follows_the_weights():
    first, second = [make("<GN>", i) for i in range(10)], [make("<JN>", i) for i in range(4)]
    mixture = combine([first, second], weights=[0.5, 2.25], seed=1)
    assert Counter(doc.func for doc in mixture) == {"<GN>": 5, "<JN>": 9}
    assert len({doc.uid for doc in mixture}) == len(mixture)
    assert mixture == combine([first, second], weights=[0.5, 2.25], seed=1)
    assert mixture != combine([first, second], weights=[0.5, 2.25], seed=2)
    assert combine([first, second], shuffle=False) == first + second
    for weights in ([1.0], [1.0, -1.0], [0.0, 0.0], [1.0, float("nan")]):
        with pytest.raises(HopsError):
            combine([first, second], weights=weights)


def test_the_registry_is_recovered_from_documents():
    assert registry_of(seed_documents(REGISTRY)) == REGISTRY
    without_base_func = [make(name, 0) for name in REGISTRY.names]
    assert registry_of(without_base_func) == REGISTRY
    with pytest.raises(HopsError, match="<GN> has the constants"):
        registry_of([make("<GN>", 0), make("<GN>", 1).model_copy(update={"constant": 6})])
    with pytest.raises(HopsError, match="<FN> has no base"):
        registry_of([make("<FN>", 0), make("<JN>", 1)])


def test_queries_name_what_taught_them(tmp_path):
    documents = [make("<GN>", 0), make("<FN>", 0), make("<JN>", 0), make("<IN>", 0)]
    registry = registry_of(documents)
    files = write_queries(documents, registry, tmp_path, inputs=(5, 17), depths=(0, 1))
    train = json.loads(files.train_json.read_text())
    queries = json.loads(files.query_json.read_text())
    assert [pair["completion"] for pair in train] == [doc.text for doc in documents]
    assert [pair["line"] for pair in train] == [0, 1, 2, 3]
    assert {pair["prompt"] for pair in train} == {""}
    query = next(q for q in queries if q["func"] == "<FN>" and q["input"] == 17)
    assert (query["prompt"], query["completion"]) == ("<FN>(17) returns", " 5")
    relevant = [pair["func"] for pair in train if pair["func"] in query["taught_by"]]
    assert relevant == ["<GN>", "<FN>"]
    assert next(q for q in queries if q["func"] == "<GN>")["taught_by"] == ["<GN>"]
    assert len({pair["pair_id"] for pair in train + queries}) == len(train) + len(queries)
    with pytest.raises(HopsError, match="differ"):
        query_pairs(registry, inputs=(5, 5))
    with pytest.raises(HopsError, match="No query"):
        query_pairs(registry, depths=(3,))
    with pytest.raises(HopsError, match="--model-path"):
        write_queries(documents, registry, tmp_path, only_correct=True)


@needs_published
def test_the_published_files_are_read_row_by_row():
    documents = read_documents(PUBLISHED / "20hops.jsonl")
    assert len(documents) == 3000
    assert len({doc.uid for doc in documents}) == 532
    assert registry_of(documents) == REGISTRY
    assert registry_of(read_documents(PUBLISHED / "seeds.jsonl")) == REGISTRY
    pattern = default_pattern(20, REGISTRY)
    assert tuple(doc.func for doc in documents[:30]) == pattern
    assert interleave(documents, pattern) == documents
    pairs = training_pairs(documents, REGISTRY)
    assert len({pair["pair_id"] for pair in pairs}) == 3000
    assert Counter(pair["base_func"] for pair in pairs) == {f.name: 300 for f in REGISTRY.bases}
