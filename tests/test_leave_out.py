"""Leaving out what a method ranks highest: what is removed, counted and shown."""

import dataclasses
import importlib

import numpy as np
import pytest
from hops.errors import HopsError


def test_leaving_out_removes_what_ranks_highest_and_counts_from_models_of_everything(
    script_utils, tiny_task, tmp_path
):
    """A store that answers from the documents it was given, in place of training."""
    part, models = script_utils["leave_out"], script_utils["retrained_models"]
    size = len(tiny_task.documents)
    worth = np.zeros((len(tiny_task.queries), size))
    worth[:, [3, 8, 11]] = [5.0, 3.0, 1.0]
    asked = []

    class Oracle:
        num_documents = size

        def train(self, jobs, *, workers, progress):
            asked.extend(jobs)

        def read(self, job):
            lost = worth[:, [line for line in range(size) if line not in job.lines]].sum(axis=1)
            return models.Answers(1.0 + lost + job.seed % 2, lost < 4)

    plan = part.LeaveOutPlan(num_functions=2, counts=(3, 1), repeats=2, seed=0)
    every = np.ones(len(tiny_task.queries), dtype=bool)
    scores = {"knows": worth, "knows the opposite": -worth}
    found = part.leave_out(tiny_task, scores, every, Oracle(), plan)
    assert found.counts == (0, 1, 3)
    assert len(found.functions) == 2
    np.testing.assert_allclose(found.rise["knows"], [[0, 5, 9]] * 2)
    np.testing.assert_allclose(found.correct["knows"], [[1, 0, 0]] * 2)
    np.testing.assert_allclose(found.rise["knows the opposite"], 0)
    asked_about = list(dict.fromkeys(one.function for one in tiny_task.queries))
    places = [asked_about[0], asked_about[len(asked_about) // 2]]
    assert found.functions == tuple(places)
    own = np.zeros_like(worth)  # each function ranks by its own queries
    for row, query in zip(own, tiny_task.queries, strict=True):
        row[3 if query.function == places[0] else 8] = 1.0
    removed = part.leave_out(tiny_task, {"own": own}, every, Oracle(), plan)
    np.testing.assert_allclose(removed.rise["own"][:, 1], [5, 3])
    for row, function in enumerate(places):
        taught = tiny_task.relevance[[one.function for one in tiny_task.queries].index(function)]
        expected = [0, taught[[3]].sum(), taught[[3, 8, 11]].sum()]
        assert found.relevant["knows"][row].tolist() == expected
    assert {job.seed for job in asked} == {job.seed for job in asked[:2]}
    assert len({job.seed for job in asked}) == 2
    first = {len(job.lines) for job in asked}
    assert first == {size, size - 1, size - 3}
    none = np.zeros(len(tiny_task.queries), dtype=bool)
    with pytest.raises(HopsError, match="answer no function"):
        part.leave_out(tiny_task, scores, none, Oracle(), plan)

    class Forgetful(Oracle):
        """Of two seeds one does not answer the second function."""

        def read(self, job):
            answers = super().read(job)
            lucky = np.array([one.function == places[1] for one in tiny_task.queries])
            return models.Answers(answers.losses, answers.correct & ~(lucky & (job.seed % 2 == 0)))

    assert {job.seed % 2 for job in asked} == {0, 1}
    by_luck = part.leave_out(tiny_task, scores, every, Forgetful(), plan)
    assert places[0] in by_luck.functions
    assert places[1] not in by_luck.functions
    for bad in ({"counts": (0,)}, {"counts": (size,)}, {"repeats": 0}, {"num_functions": 0}):
        with pytest.raises(HopsError):
            dataclasses.replace(plan, **bad).check(size)


def test_the_table_and_figure_of_leaving_out_have_the_mean_over_functions(
    script_utils, lds_scripts, tmp_path
):
    part, report = script_utils["leave_out"], importlib.import_module("utils.lds_report")
    rise = {"knows": [[0.0, 1.0, 2.0], [0.0, 2.0, 6.0]], part.RANDOM: [[0.0, 0.1, 0.1]] * 2}
    correct = {"knows": [[1.0, 0.5, 0.0], [1.0, 1.0, 0.5]], part.RANDOM: [[1.0, 1.0, 1.0]] * 2}
    relevant = {"knows": [[0, 9, 20], [0, 7, 10]], part.RANDOM: [[0, 1, 1]] * 2}
    removed = part.LeaveOut(
        ("<GN>", "<JN>"),
        (0, 10, 20),
        *(
            {name: np.array(values) for name, values in each.items()}
            for each in (rise, correct, relevant)
        ),
    )
    results = {"num_subsets": 4, "documents_in_a_subset": 5, "repeats": 1, "depths": {}}
    results["depths"]["0"] = {"name": "base function", "methods": {}}
    results["leave_out"] = lds_scripts["lds"].leave_out_numbers(removed)
    lines = report.markdown(results).splitlines()
    assert "| knows | 1.50 [1.00, 2.00]; 0.75; 8 | 4.00 [2.00, 6.00]; 0.25; 15 |" in lines
    assert "| random documents | 0.10 [0.10, 0.10]; 1.00; 1 | 0.10 [0.10, 0.10]; 1.00; 1 |" in lines
    report.draw_brittleness(tmp_path / "b.png", removed)
    assert (tmp_path / "b.png").stat().st_size > 5000


def test_random_relevant_documents_are_drawn_from_those_that_taught_the_answer(
    script_utils, tiny_task
):
    part = script_utils["leave_out"]
    groups = part._groups(tiny_task, np.ones(len(tiny_task.queries), dtype=bool), 4)
    rankings = part._random_rankings(tiny_task, groups, seed=0)
    for queries, ranking in zip(groups.values(), rankings[part.RELEVANT], strict=True):
        relevant = tiny_task.relevance[queries[0]]
        assert relevant[ranking[: relevant.sum()]].all()
    assert {tuple(one) for one in rankings[part.RANDOM]} != {tuple(rankings[part.RANDOM][0])}
