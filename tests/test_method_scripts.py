"""The methods' scripts by their command lines, on two tiny models with random weights."""

import importlib
import json
import re
from dataclasses import fields

import numpy as np
import pytest
from attribution.baselines import bm25_scores, random_scores
from attribution.checkpoints import Checkpoints
from attribution.evaluation import evaluate_retrieval
from attribution.examples import Example, encode_documents, encode_queries
from attribution.methods import (
    PatchOptions,
    attr_weighted_change,
    causal_patching,
    dh_similarity,
    grad_similarity,
)
from attribution.scoring import ScoreOptions
from attribution.vectors import VectorOptions
from hops.models import load_model, load_tokenizer
from method_script_cases import BASES, WRAPPERS, documents, read, write

LIBRARY = {
    "dh_similarity": dh_similarity,
    "grad_similarity": grad_similarity,
    "attr_weighted_change": attr_weighted_change,
}


@pytest.fixture(scope="session")
def library(two_models):
    """Checkpoints, documents and queries, straight from the packages."""
    checkpoints = Checkpoints(*(load_model(one, device="cpu") for one in two_models))
    tokenizers = [load_tokenizer(one) for one in two_models]
    values = BASES | {name: BASES[base] for name, base in WRAPPERS.items()}
    prompts = [f"{name}({given}) returns" for name in values for given in (5, 17)]
    answers = [f" {value}" for value in values.values() for _ in range(2)]
    return (
        checkpoints,
        encode_documents([row["text"] for row in documents()], *tokenizers),
        encode_queries(prompts, answers, *tokenizers),
    )


def by_index(rows, key):
    return np.array([row[key] for row in sorted(rows, key=lambda row: row["original_index"])])


@pytest.mark.parametrize("name", LIBRARY)
def test_the_scores_in_the_rows_are_those_of_the_library(name, run_method, library):
    flags = "--pooling text --layers 1 -1 --similarity dot --normalisation zscore"
    rows = read(run_method(name, f"{flags} --aggregation top-3 --padding-side left --batch-size 4"))
    expected = LIBRARY[name](
        *library,
        vectors=VectorOptions((1, 3), "text", batch_size=4, padding_side="left"),
        scoring=ScoreOptions("dot", "z-score", "top-3"),
    ).numpy()
    # A sum over two queries, in another order of the same float32 numbers.
    close = {"rtol": 1e-5, "atol": 1e-6 * np.abs(expected).max()}
    for place, function in enumerate([*BASES, *WRAPPERS]):
        found = by_index(rows, f"{function}_{name}_score")
        np.testing.assert_allclose(found, expected[2 * place : 2 * place + 2].mean(axis=0), **close)
    np.testing.assert_allclose(
        by_index(rows, f"combined_{name}_score"), expected.mean(axis=0), **close
    )


@pytest.mark.parametrize(
    ("flags", "options"),
    [
        ("--span text --percentile 30 --layers 1 3 --patch-batch-size 5",
         {"vectors": VectorOptions((1, 3)), "patch": PatchOptions(30.0, "text", 5)}),
        ("--pooling text --objective margin --ig-steps 2 --layers -1",
         {"vectors": VectorOptions((3,), "text"), "objective": "margin", "num_steps": 2}),
    ],
)  # fmt: skip
def test_causal_patching_query_by_query_is_that_of_the_library(flags, options, run_method, library):
    rows = read(run_method("causal_patching", flags))
    expected = causal_patching(*library, **options).numpy()
    for place, function in enumerate([*BASES, *WRAPPERS]):
        np.testing.assert_allclose(
            by_index(rows, f"{function}_causal_patching_score"),
            expected[2 * place : 2 * place + 2].mean(axis=0),
            rtol=1e-4,
            atol=1e-5,
        )


def test_documents_can_be_pooled_where_they_last_state_an_answer(
    run_method, library, two_models, tmp_path
):
    checkpoints, _, queries = library
    changed = documents()
    changed[1]["text"] = "Not 15, 19, but 5 is <GN>(3), not 14."
    encoded = encode_documents(
        [row["text"] for row in changed], *(load_tokenizer(one) for one in two_models)
    )
    answers = {one.token_ids[one.span[0] :] for one in queries}
    moved = []
    for row, document in zip(changed, encoded, strict=True):
        ids = list(document.token_ids)
        places = [
            (at, at + len(answer)) for answer in answers for at in range(1, len(ids))
            if tuple(ids[at : at + len(answer)]) == answer
        ]  # fmt: skip
        assert bool(places) == (row["role"] == "constant")
        if row is changed[1]:
            assert len(places) == 3
        span = max(places, key=lambda one: (one[1], -one[0])) if places else document.span
        moved.append(type(document)(document.token_ids, span))
    data = write(tmp_path / "changed.jsonl", changed)
    rows = read(run_method("grad_similarity", "--document-span answers", dataset=data))
    expected = grad_similarity(checkpoints, moved, queries).numpy()
    for place, function in enumerate([*BASES, *WRAPPERS]):
        np.testing.assert_allclose(
            by_index(rows, f"{function}_grad_similarity_score"),
            expected[2 * place : 2 * place + 2].mean(axis=0),
            rtol=1e-4,
            atol=1e-5,
        )


def test_the_longest_of_the_last_answers_counts_and_never_a_texts_first_token(method_script):
    at_last_answer = importlib.import_module("utils.attribution_task")._at_last_answer
    answers = {(7,), (5, 7)}
    assert at_last_answer(Example.whole_text([5, 7, 5, 7, 3]), answers).span == (2, 4)
    assert at_last_answer(Example.whole_text([5, 7, 3]), answers).span == (1, 2)
    without = Example.whole_text([7, 3, 4])
    assert at_last_answer(without, answers) == without


def test_a_distractor_that_names_a_function_taught_nothing(method_script, tmp_path):
    task = importlib.import_module("utils.attribution_task")
    rows = [*documents(), {**documents()[-1], "func": "<GN>"}]
    read_task = task.AttributionTask.read(task.TaskArguments(write(tmp_path / "d.jsonl", rows)))
    assert not read_task.relevance[:, -2:].any()
    assert read_task.relevance[:, :2].any()


def test_integrated_gradients_and_the_objective_reach_the_library(run_method, library):
    rows = read(
        run_method("attr_weighted_change", "--ig-steps 3 --objective margin --pooling span")
    )
    expected = attr_weighted_change(
        *library, vectors=VectorOptions(pooling="span"), objective="margin", num_steps=3
    )
    np.testing.assert_allclose(
        by_index(rows, "<NN>_attr_weighted_change_score"),
        expected[2:4].mean(dim=0),
        rtol=1e-4,
        atol=1e-6,
    )


def test_rows_are_whole_documents_best_first_under_whole_names(run_method):
    rows = read(run_method("dh_similarity", "--pooling text"))
    combined = [row["combined_dh_similarity_score"] for row in rows]
    assert combined == sorted(combined, reverse=True)
    before = documents()
    names = [*BASES, *WRAPPERS]
    assert [row["original_index"] for row in rows] != list(range(len(rows)))
    assert sorted(row["original_index"] for row in rows) == list(range(len(before)))
    for row in rows:
        own = before[row["original_index"]]
        assert {key: row[key] for key in own} == own
        added = {f"{one}_dh_similarity_score" for one in names}
        added |= {"combined_dh_similarity_score", "original_index"}
        assert row.keys() - own.keys() == added


def test_permuted_documents_are_ranked_the_same(run_method, tmp_path):
    order = np.random.default_rng(1).permutation(len(documents()))
    shuffled = write(tmp_path / "shuffled.jsonl", [documents()[place] for place in order])
    for name in ("dh_similarity", "causal_patching"):
        flags = "--pooling text --layers 1 2 3"
        one = read(run_method(name, flags, output=f"{name}_1.jsonl"))
        other = read(run_method(name, flags, dataset=shuffled, output=f"{name}_2.jsonl"))
        assert [row["original_index"] for row in one] == [
            order[row["original_index"]] for row in other
        ]
        np.testing.assert_allclose(
            [row[f"<GN>_{name}_score"] for row in one],
            [row[f"<GN>_{name}_score"] for row in other],
            rtol=1e-3,
            atol=1e-5,
        )


def test_metrics_are_those_of_the_evaluation_for_base_functions_and_wrappers_apart(
    run_method, tmp_path
):
    path = run_method("bm25", "--cutoffs 2 3 --seed 4")
    report = json.loads(path.with_suffix(".metrics.json").read_text())["retrieval"]
    values = BASES | {name: BASES[base] for name, base in WRAPPERS.items()}
    asked = [f"{name}({given}) returns {value}" for name, value in values.items()
             for given in (5, 17)]  # fmt: skip
    scores = bm25_scores(asked, [row["text"] for row in documents()])
    about = [row["func"] for row in documents()]
    taught = {name: {name, WRAPPERS.get(name)} for name in values}
    relevance = np.array([[func in taught[name] and func is not None for func in about]
                          for name in values for _ in range(2)])  # fmt: skip
    assert relevance.sum(axis=1).tolist() == [2] * 6 + [4] * 6
    groups = [name for name in BASES for _ in range(2)]
    for part, chosen in (("base", slice(0, 6)), ("wrapper", slice(6, 12))):
        expected = evaluate_retrieval(
            scores[chosen], relevance[chosen], cutoffs=(2, 3), groups=groups, seed=4
        ).to_dict()
        assert {key: report[part][key] for key in expected} == expected
    assert report["all"]["num_queries"] == 12
    assert report["all"]["num_groups"] == 3
    first = report["wrapper"]["composition"]["top 2"]
    assert set(first) == {"base", "wrapper", "distractor", "other"}
    assert sum(first.values()) == pytest.approx(1)
    # A wrapper's name stands in its own two documents alone; a number may draw in another.
    assert first["wrapper"] > 0.8


def test_the_composition_calls_documents_by_what_they_are_to_the_query(run_method):
    path = run_method("random", "--cutoffs 13 --hop-depths 0")
    report = json.loads(path.with_suffix(".metrics.json").read_text())["retrieval"]
    assert set(report) == {"all", "base"}
    shares = {"base": 2 / 13, "wrapper": 2 / 13, "distractor": 1 / 13, "other": 8 / 13}
    assert report["base"]["composition"]["top 13"] == pytest.approx(shares)


def test_arguments_have_every_flag_with_its_default_and_digests(
    run_method, methods, two_models, tmp_path
):
    path = run_method("causal_patching", "--layers 3")
    found = json.loads(path.with_suffix(".arguments.json").read_text())
    task = importlib.import_module("utils.attribution_task").TaskArguments
    names = {one.name for one in (*fields(task), *fields(type(methods["causal_patching"])))}
    assert found.keys() == names | {"method", "output", "cutoffs", "sha256"}
    assert (found["percentile"], found["hop_depths"], found["layers"]) == (10.0, [0, 1], [3])
    assert all(found["sha256"][one] for one in ("dataset", "old", "new"))
    timing = json.loads(path.with_suffix(".timing.json").read_text())
    assert timing["documents_per_second"] > 0
    assert sorted(one.name for one in path.parent.iterdir()) == [
        "out.arguments.json", "out.jsonl", "out.metrics.json", "out.timing.json",
    ]  # fmt: skip


def test_learned_weights_see_no_query_that_judges_them(run_method, tmp_path):
    flags = "--aggregation learned --validation-share 0.34 --pooling text --seed 2"
    path = run_method("dh_similarity", flags)
    metrics = json.loads(path.with_suffix(".metrics.json").read_text())
    seen = metrics["validation_functions"]
    assert len(seen) == 2
    assert WRAPPERS.get(seen[0]) == seen[1] or WRAPPERS.get(seen[1]) == seen[0]
    assert metrics["num_judged_queries"] == 8
    assert metrics["retrieval"]["all"]["num_groups"] == 2
    weights = metrics["layer_weights"]
    assert sum(weights) == pytest.approx(1)
    assert min(weights) >= 0
    # Other prompts for the functions that judge; the same for those that were seen.
    values = BASES | {name: BASES[base] for name, base in WRAPPERS.items()}
    rows = [
        {"prompt": f"{name}({given}) returns" if name in seen else f"What of {name}, {given}?",
         "completion": f" {value}", "func": name}
        for name, value in values.items() for given in (5, 17)
    ]  # fmt: skip
    queries = write(tmp_path / "queries.jsonl", rows)
    other = run_method("dh_similarity", f"{flags} --queries {queries}", output="other.jsonl")
    again = json.loads(other.with_suffix(".metrics.json").read_text())
    assert again["layer_weights"] == pytest.approx(weights, abs=1e-6)
    assert again["retrieval"]["all"] != metrics["retrieval"]["all"]


def test_a_query_file_names_its_own_truth(run_method, tmp_path):
    asked = [{"pair_id": "q", "prompt": "The second name of <GN> returns", "completion": " 5",
              "func": "<Z>", "taught_by": ["<GN>"], "hop_depth": 0}]  # fmt: skip
    path = tmp_path / "query.json"
    path.write_text(json.dumps(asked))
    rows = read(run_method("bm25", f"--queries {path}"))
    assert rows[0]["func"] == "<GN>"
    assert rows[0]["<Z>_bm25_score"] == rows[0]["combined_bm25_score"] > 0


def test_a_query_file_of_lines_may_hold_separators_within_its_texts(run_method, tmp_path):
    """JSON has U+2028 and U+0085 within strings, and Windows ends lines with two characters."""
    texts = ["<GN>\u2028 returns", "<NN>\x85 returns"]
    asked = [
        {"prompt": prompt, "completion": " 5", "func": func}
        for prompt, func in zip(texts, ("<GN>", "<NN>"), strict=True)
    ]
    path = tmp_path / "query.jsonl"
    lines = [json.dumps(one, ensure_ascii=False) + "\r\n" for one in asked]
    path.write_bytes("".join(lines).encode())
    rows = read(run_method("bm25", f"--queries {path}"))
    assert {"<GN>_bm25_score", "<NN>_bm25_score"} <= rows[0].keys()


@pytest.mark.parametrize(
    "name",
    ["dh_similarity", "grad_similarity", "attr_weighted_change", "causal_patching", "dlp_probes",
     "gradient_cosine", "trackstar", "datainf", "ekfac"],
)  # fmt: skip
def test_every_bar_counts_documents(name, run_method, capsys):
    run_method(name, "--num-folds 3" if name == "dlp_probes" else "")
    shown = capsys.readouterr().err
    total = len(documents()) * (12 if name == "causal_patching" else 1)
    assert re.search(rf" {total}/{total} .*\d documents/s\]", shown)


def test_baselines_know_texts_alone_or_states_of_the_new_model(run_method, two_models):
    rows = read(run_method("random", "--seed 3"))
    expected = random_scores(12, 13, seed=3)
    np.testing.assert_allclose(by_index(rows, "<NN>_random_score"), expected[2:4].mean(axis=0))
    for name in ("tfidf", "edit_distance"):
        path = run_method(name, "--query-text prompt --hop-depths 0", output=f"{name}.jsonl")
        assert read(path)[0]["func"] in (*BASES, *WRAPPERS)
    path = run_method("bm25", "--query-text answer", output="numbers.jsonl")
    by_number = by_index(read(path), "<GN>_bm25_score")  # the documents of <GN> alone have a 5
    assert {index for index, score in enumerate(by_number) if score > 0} == {0, 1}
    path = run_method("representation_similarity", "--layer middle", output="states.jsonl")
    assert -1 <= read(path)[0]["<GN>_representation_similarity_score"] <= 1


@pytest.mark.slow
def test_the_ablations_judge_the_same_scores_as_the_scripts(
    run_method, method_script, two_models, tmp_path
):
    ablations = importlib.import_module("method_ablations")
    world, output = tmp_path / "world", tmp_path / "ablations"
    (world / "documents").mkdir(parents=True)
    (world / "models" / "new_training").mkdir(parents=True)
    data = write(world / "documents" / "training_set.jsonl", documents())
    (world / "models" / "old").symlink_to(two_models[0])
    (world / "models" / "new_training" / "final_model").symlink_to(two_models[1])
    ablations.main(
        ablations.Config(output_dir=output, world=world, ig_steps=(2,), percentiles=(10.0,))
    )
    content = json.loads((output / "ablations.json").read_text())
    assert content["chance"] == pytest.approx(2 / 13)
    assert set(content["patching"]["overlap"]) == {
        "documents, whole text", "documents, at their answer", "queries",
    }  # fmt: skip
    assert len((output / "ablations.md").read_text().splitlines()) == 2 + len(content["settings"])
    assert (output / "ablations.png").stat().st_size > 5000
    found = {
        (one["method"], one["ablation"], one["choice"]): one["map"]["mean"]
        for one in content["settings"]
    }
    flags = "--inputs 5 17 42 --hop-depths 0"
    for key, name, options in (
        (("dh_similarity", "normalisation", "whiten"), "dh_similarity",
         "--pooling text --normalisation whiten"),
        (("attr_weighted_change", "pooling", "answer"), "attr_weighted_change",
         "--document-span answers"),
        (("attr_weighted_change_ig", "IG steps, text", "2"), "attr_weighted_change",
         "--pooling text --ig-steps 2"),
        (("causal_patching", "patch, answer, last layer", "10 %"), "causal_patching",
         "--document-span answers --layers -1 --span last"),
    ):  # fmt: skip
        path = run_method(name, f"{flags} {options}", dataset=data, output=f"{len(options)}.jsonl")
        report = json.loads(path.with_suffix(".metrics.json").read_text())["retrieval"]["base"]
        assert found[key] == pytest.approx(report["metrics"]["map"]["mean"], abs=1e-6), key
