"""What the leaderboard counts beside retrieval: who taught an answer, and who states it."""

import dataclasses
import json
from types import SimpleNamespace

import numpy as np
import pytest


def test_among_documents_with_the_same_answer_only_who_taught_it_counts(lds_scripts, script_utils):
    """Two functions return 5: a method that finds the number alone is right half of the time."""
    board, scored = lds_scripts["leaderboard"], script_utils["scored_methods"].ScoredMethod
    of_documents = [("<GN>", 5)] * 10 + [("<JN>", 5)] * 10 + [("<KN>", 7)] * 10
    functions = np.array([name for name, _ in of_documents])
    queries = [
        SimpleNamespace(function=one, base_function=one, answer=" 5") for one in ("<GN>", "<JN>")
    ]
    task = SimpleNamespace(
        documents=[
            SimpleNamespace(func=name, constant=value, states_value=True)
            for name, value in of_documents
        ],
        queries=queries,
        chains=functions,
        relevance=np.array([functions == one.function for one in queries]),
    )
    task.states_value = task.relevance
    asked, every = np.array([one.function for one in queries]), np.ones(2, dtype=bool)

    def same_answer(scores):
        method = scored("m", "m", scores, every, 0.0, 0.0, None)
        found = board._judged(task, method, None, every, asked, 0)
        return found["same_answer"]["mean"], found["retrieval"]["metrics"]["precision@10"]["mean"]

    others_first = (functions == "<KN>") * 9.0
    assert same_answer(task.relevance + others_first) == (1.0, 0.0)
    assert same_answer(-1.0 * task.relevance + others_first) == (0.0, 0.0)
    by_number = np.array([[value == 5 for _, value in of_documents]] * 2, dtype=float)
    assert same_answer(by_number) == (0.5, 0.5)
    found = board._judged(
        task, scored("m", "m", by_number, every, 0, 0, None), None, every, asked, 0
    )
    assert "states_value" not in found  # all that taught an answer state it
    # No function of another chain returns the same: documents of <GN>'s wrapper do not count.
    task.documents = [
        SimpleNamespace(func=one, constant=max(0, place // 10 - 1), states_value=True)
        for place, one in enumerate(functions)
    ]
    task.queries = [SimpleNamespace(function="<GN>", base_function="<GN>", answer=" 0")] * 2
    task.chains = np.where(functions == "<JN>", "<GN>", functions)
    task.relevance = task.states_value = np.array([functions == "<GN>"] * 2)
    method = scored("m", "m", by_number, every, 0.0, 0.0, None)
    assert "same_answer" not in board._judged(task, method, None, every, asked, 0)
    # Even where scores are so large that one less is the same number.
    last = board.put_last(np.array([[-3e20, 1.0, 2.0]]), np.array([[False, True, False]]))
    assert last[0, 1] < last[0, 0] < last[0, 2]


def test_of_the_documents_that_taught_an_answer_those_that_state_it_are_counted_apart(
    lds_scripts, script_utils, tiny_task, tiny_world, tmp_path
):
    """Relevant to a wrapper are documents of two kinds; one method finds the one, one the other."""
    board, scored = lds_scripts["leaderboard"], script_utils["scored_methods"].ScoredMethod
    names = np.array([str(one.func) for one in tiny_task.documents])
    asked = np.array([one.function for one in tiny_task.queries])
    depths = np.array([one.hop_depth for one in tiny_task.queries])
    bases = np.array([one.base_function for one in tiny_task.queries])
    wrapper = (names[None, :] == asked[:, None]) & (depths[:, None] == 1)
    base = names[None, :] == bases[:, None]
    np.testing.assert_array_equal(tiny_task.relevance, base | wrapper)
    np.testing.assert_array_equal(tiny_task.states_value, base)

    def judged(scores, rows):
        method = scored("m", "m", scores.astype(float), np.ones(len(asked), bool), 0, 0, None)
        found = board._judged(tiny_task, method, None, rows, asked, 0)
        further = [found.get(name, {}).get("mean") for name in ("states_value", "among_values")]
        return [found["retrieval"]["metrics"]["precision@10"]["mean"], *further]

    assert (wrapper.sum(axis=1)[depths == 1] == 2).all()
    assert (base.sum(axis=1) == 8).all()
    # Of 16 documents that state a value 8 state the one asked for: at worst 2 are among ten.
    for scores, expected in (
        (2.0 * wrapper + base, [1.0, 0.8, 0.8]),
        (1.0 * base - wrapper, [0.8, 0.8, 0.8]),
        (1.0 * wrapper - base, [0.2, 0.0, 0.2]),
    ):
        assert judged(scores, depths == 1) == pytest.approx(expected)
    assert judged(1.0 * base, depths == 0)[1:] == [
        None,
        None,
    ]  # a base's documents all state its value


def test_what_tells_other_things_of_a_base_function_taught_its_wrapper_alone(
    script_utils, lds_scripts, tiny_world, tmp_path
):
    rows = [json.loads(line) for line in (tiny_world / "documents" / "training_set.jsonl").open()]
    function = next(row["func"] for row in rows if row["hop_depth"] == 0)
    changed = next(place for place, row in enumerate(rows) if row["func"] == function)
    rows[changed]["answers"] = "property"
    path = tmp_path / "documents.jsonl"
    path.write_text("".join(json.dumps(row) + "\n" for row in rows))
    arguments = dataclasses.replace(script_utils["worlds"].task_of_world(tiny_world), dataset=path)
    task = script_utils["task"].read(arguments)
    about = np.array([row["func"] == function for row in rows])
    # Ranked first, and all others about the function last: 15 documents state a value, 7 this one.
    first = np.tile(2.0 * (np.arange(len(rows)) == changed) - about, (len(task.queries), 1))
    bases = np.array([query.function == function for query in task.queries])
    groups = [function] * int(bases.sum())
    found = lds_scripts["leaderboard"]._further(task, first[bases], bases, groups, 0)
    assert found.keys() == {"among_values"}
    assert found["among_values"]["mean"] == pytest.approx(0.2)  # after 8 of the other
    for query, relevant, states in zip(
        task.queries, task.relevance, task.states_value, strict=True
    ):
        if query.base_function == function:
            assert relevant[changed] == (query.hop_depth == 1)
            assert (relevant[about].sum(), states.sum()) == (
                about.sum() - (query.hop_depth == 0), about.sum() - 1
            )  # fmt: skip
