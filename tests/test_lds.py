"""Retrained models, leave-out, and the two scripts over them, on a world of a few documents."""

import dataclasses
import importlib
import json
import shutil
from pathlib import Path

import numpy as np
import pytest
from forks import Fork, kill_when, script
from hops.errors import HopsError
from hops.files import sha256_of
from hops.presets import Preset
from hops.world import build_world

EXPERIMENTS = Path(__file__).parents[1] / "experiments"
LDS, LEADERBOARD = EXPERIMENTS / "lds.py", EXPERIMENTS / "leaderboard.py"
TINY = Preset(
    num_functions=2,
    num_old_distractors=24,
    num_new_distractors=4,
    variations=0,
    wrapper_variations=0,
    comprehensive_docs=4,
    code_snippets=4,
    hidden_size=32,
    num_layers=1,
    old_epochs=1.0,
    new_epochs=1.0,
)


@pytest.fixture(scope="module")
def world(tmp_path_factory):
    return build_world(tmp_path_factory.mktemp("world"), preset=TINY).output_dir


@pytest.fixture
def utils(monkeypatch):
    """The modules that the scripts share, as `uv run` would import them."""
    monkeypatch.syspath_prepend(str(EXPERIMENTS))
    names = ("retrained_bank", "retrained_models", "leave_out", "worlds", "scored_methods")
    modules = {name: importlib.import_module(f"utils.{name}") for name in names}
    modules["task"] = importlib.import_module("utils.attribution_task").AttributionTask
    return modules


@pytest.fixture
def task(utils, world):
    return utils["task"].read(utils["worlds"].task_of_world(world))


@pytest.fixture
def plan(utils):
    return utils["retrained_bank"].BankPlan(num_subsets=4, repeats=1, seed=5)


def contents(folder):
    return {path.name: sha256_of(path) for path in (folder / "models").iterdir()}


def run(path, *flags):
    return Fork(script(path, *flags)).wait()


def test_subsets_hold_their_share_differ_and_do_not_depend_on_how_many_there_are(utils):
    bank = utils["retrained_bank"].BankPlan
    plans = [bank(num_subsets=size, share=0.3, seed=1) for size in (4, 50)]
    masks = np.array([plans[1].mask(subset, 40) for subset in range(50)])
    assert (masks.sum(axis=1) == 12).all()
    assert len({mask.tobytes() for mask in masks}) == 50
    assert (plans[0].mask(3, 40) == masks[3]).all()
    assert 0.1 < masks.mean(axis=0).min() < masks.mean(axis=0).max() < 0.55
    assert plans[0].job(2, 0, 40) == plans[1].job(2, 0, 40)
    seeds = {plans[0].job(subset, repeat, 40).seed for subset in range(4) for repeat in range(3)}
    assert len(seeds) == 12
    keys = {plans[0].job(subset, repeat, 40).key for subset in range(4) for repeat in range(3)}
    assert len(keys) == 12
    assert (bank(seed=2).mask(0, 40) != bank(seed=1).mask(0, 40)).any()
    for share in (0.01, 0.99):  # of 40 documents
        with pytest.raises(HopsError, match="of 40 documents is"):
            bank(share=share).mask(0, 40)


def test_a_bank_holds_what_models_trained_on_its_subsets_answer(utils, task, plan, tmp_path):
    make, models = utils["retrained_bank"], utils["retrained_models"]
    store = make.open_store(task, tmp_path)
    bank = make.make_bank(store, plan)
    assert bank.masks.shape == (4, len(task.documents))
    assert bank.losses.shape == bank.correct.shape == (4, 1, len(task.queries))
    job = plan.job(2, 0, store.num_documents)
    assert sorted(job.lines) == np.flatnonzero(bank.masks[2]).tolist()
    alone = models.retrain(store.training, job, store.questions)
    np.testing.assert_array_equal(alone.losses, bank.losses[2, 0])
    assert np.ptp(bank.losses, axis=0).min() > 0  # each subset makes another model
    read = make.read_bank(tmp_path, task)
    np.testing.assert_array_equal(read.losses, bank.losses)


def test_losses_and_answers_are_those_of_the_model(utils, task, tmp_path):
    """Against one forward pass by hand; the loss is in nats, summed over the answer's tokens."""
    import torch

    store = utils["retrained_bank"].open_store(task, tmp_path)
    answers = utils["retrained_models"].ask(task.new_model, task.tokenizers[1], store.questions)
    for place, example in enumerate(task.query_examples):
        ids, labels = torch.tensor([example.token_ids]), torch.tensor([example.labels])
        with torch.no_grad():
            output = task.new_model(input_ids=ids, labels=labels)
        num_targets = example.span[1] - example.span[0]
        assert answers.losses[place] == pytest.approx(float(output.loss) * num_targets, abs=1e-4)
    assert answers.correct.dtype == bool


@pytest.mark.slow
@pytest.mark.timeout(1800)
def test_two_workers_give_the_same_bits_as_one(utils, task, plan, tmp_path):
    make = utils["retrained_bank"]
    for workers in (1, 2):
        store = make.open_store(task, tmp_path / str(workers))
        make.make_bank(store, plan, workers=workers)
    assert contents(tmp_path / "1") == contents(tmp_path / "2")


def test_a_bank_killed_on_the_way_ends_as_an_undisturbed_one(utils, task, world, plan, tmp_path):
    make = utils["retrained_bank"]
    make.make_bank(make.open_store(task, tmp_path / "whole"), plan)
    flags = ["--world", world, "--output-dir", tmp_path / "killed", "--num-models", "4"]
    flags += ["--repeats", "1", "--seed", "5", "--methods", "random", "--leave-out-methods"]
    models = tmp_path / "killed" / "models"
    kill_when(script(LDS, *flags), lambda: len(list(models.glob("*.npz"))) == 2)
    (models / ".half.npz.1.tmp").write_bytes(b"half a file")
    before = {path.name: path.stat().st_mtime_ns for path in models.glob("[!.]*.npz")}
    assert len(before) == 2
    make.make_bank(make.open_store(task, tmp_path / "killed"), plan)
    (models / ".half.npz.1.tmp").unlink()
    assert contents(tmp_path / "killed") == contents(tmp_path / "whole")
    after = {path.name: path.stat().st_mtime_ns for path in models.iterdir()}
    assert before.items() <= after.items()  # what was finished was not trained again


def test_models_of_another_training_or_other_questions_are_refused(utils, task, world, tmp_path):
    make, models = utils["retrained_bank"], utils["retrained_models"]
    store = make.open_store(task, tmp_path)
    assert make.open_store(task, tmp_path) == store
    longer = dataclasses.replace(store.training, epochs=2.0)
    with pytest.raises(HopsError, match="another training;"):
        models.RetrainingStore.open(tmp_path, longer, store.questions)
    with pytest.raises(HopsError, match="another questions;"):
        models.RetrainingStore.open(tmp_path, store.training, store.questions[1:])
    with pytest.raises(HopsError, match="no whole bank"):
        make.read_bank(tmp_path, task)
    with pytest.raises(HopsError, match=r"training_config\.json"):
        models.read_training(
            world / "models" / "old", dataset=task.arguments.dataset, old_model=Path("old")
        )


def test_a_world_that_was_moved_keeps_its_bank_and_one_that_was_changed_does_not(
    utils, world, plan, tmp_path
):
    make, bank = utils["retrained_bank"], tmp_path / "bank"

    def task_at(folder):
        return utils["task"].read(utils["worlds"].task_of_world(folder))

    first, moved = tmp_path / "first", tmp_path / "moved"
    shutil.copytree(world, first)
    make.make_bank(make.open_store(task_at(world), bank), plan)
    trained = contents(bank)
    first.rename(moved)
    store = make.open_store(task_at(moved), bank)
    assert store.training.dataset_path.is_relative_to(moved)
    assert Path(store.training.model).is_relative_to(moved)
    (bank / "models" / f"{plan.job(1, 0, store.num_documents).key}.npz").unlink()
    make.make_bank(store, plan)
    assert contents(bank) == trained
    documents = moved / "documents" / "training_set.jsonl"
    documents.write_text(documents.read_text().replace("returns", "gives"))
    with pytest.raises(HopsError, match=r"training_set\.jsonl: not what .* was trained from"):
        make.open_store(task_at(moved), bank)
    shutil.copy(world / "documents" / "training_set.jsonl", documents)
    weights = moved / "models" / "old" / "model.safetensors"
    shutil.copy(moved / "models" / "new_training" / "final_model" / weights.name, weights)
    with pytest.raises(HopsError, match=r"model\.safetensors: not what .* was trained from"):
        make.open_store(task_at(moved), bank)


def test_a_damaged_model_is_named(utils, task, plan, tmp_path):
    make = utils["retrained_bank"]
    store = make.open_store(task, tmp_path)
    bad = tmp_path / "models" / f"{plan.job(0, 0, store.num_documents).key}.npz"
    bad.parent.mkdir()
    bad.write_bytes(b"PK no archive")
    with pytest.raises(HopsError, match=bad.name):
        store.read(plan.job(0, 0, store.num_documents))


def test_leaving_out_removes_what_ranks_highest_and_counts_from_models_of_everything(
    utils, task, tmp_path
):
    """A store that answers from the documents it was given, in place of training."""
    part, models = utils["leave_out"], utils["retrained_models"]
    size = len(task.documents)
    worth = np.zeros((len(task.queries), size))
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
    every = np.ones(len(task.queries), dtype=bool)
    scores = {"knows": worth, "knows the opposite": -worth}
    found = part.leave_out(task, scores, every, Oracle(), plan)
    assert found.counts == (0, 1, 3)
    assert len(found.functions) == 2
    np.testing.assert_allclose(found.rise["knows"], [[0, 5, 9]] * 2)
    np.testing.assert_allclose(found.correct["knows"], [[1, 0, 0]] * 2)
    np.testing.assert_allclose(found.rise["knows the opposite"], 0)
    asked_about = list(dict.fromkeys(one.function for one in task.queries))
    places = [asked_about[0], asked_about[len(asked_about) // 2]]
    assert found.functions == tuple(places)
    own = np.zeros_like(worth)  # each function ranks by its own queries
    for row, query in zip(own, task.queries, strict=True):
        row[3 if query.function == places[0] else 8] = 1.0
    removed = part.leave_out(task, {"own": own}, every, Oracle(), plan)
    np.testing.assert_allclose(removed.rise["own"][:, 1], [5, 3])
    for row, function in enumerate(places):
        taught = task.relevance[[one.function for one in task.queries].index(function)]
        expected = [0, taught[[3]].sum(), taught[[3, 8, 11]].sum()]
        assert found.relevant["knows"][row].tolist() == expected
    assert {job.seed for job in asked} == {job.seed for job in asked[:2]}
    assert len({job.seed for job in asked}) == 2
    first = {len(job.lines) for job in asked}
    assert first == {size, size - 1, size - 3}
    none = np.zeros(len(task.queries), dtype=bool)
    with pytest.raises(HopsError, match="answer no function"):
        part.leave_out(task, scores, none, Oracle(), plan)

    class Forgetful(Oracle):
        """Of two seeds one does not answer the second function."""

        def read(self, job):
            answers = super().read(job)
            lucky = np.array([one.function == places[1] for one in task.queries])
            return models.Answers(answers.losses, answers.correct & ~(lucky & (job.seed % 2 == 0)))

    assert {job.seed % 2 for job in asked} == {0, 1}
    by_luck = part.leave_out(task, scores, every, Forgetful(), plan)
    assert places[0] in by_luck.functions
    assert places[1] not in by_luck.functions
    for bad in ({"counts": (0,)}, {"counts": (size,)}, {"repeats": 0}, {"num_functions": 0}):
        with pytest.raises(HopsError):
            dataclasses.replace(plan, **bad).check(size)


def test_the_table_and_figure_of_leaving_out_have_the_mean_over_functions(
    utils, script_modules, tmp_path
):
    part, report = utils["leave_out"], importlib.import_module("utils.lds_report")
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
    results["leave_out"] = script_modules["lds"].leave_out_numbers(removed)
    lines = report.markdown(results).splitlines()
    assert "| knows | 1.50 [1.00, 2.00]; 0.75; 8 | 4.00 [2.00, 6.00]; 0.25; 15 |" in lines
    assert "| random documents | 0.10 [0.10, 0.10]; 1.00; 1 | 0.10 [0.10, 0.10]; 1.00; 1 |" in lines
    report.draw_brittleness(tmp_path / "b.png", removed)
    assert (tmp_path / "b.png").stat().st_size > 5000


def test_no_agreement_of_retrained_models_leaves_little_to_foretell(script_modules):
    """Losses of pure noise: a root taken query by query would say 0.30."""
    rng = np.random.default_rng(0)
    groups = [f"<{place // 3}>" for place in range(90)]
    found = script_modules["lds"].noise(rng.normal(size=(8, 2, 90)), groups, 0)
    assert found["ceiling"]["mean"] < 0.15
    signal = rng.normal(size=(8, 1, 90))
    both = script_modules["lds"].noise(np.repeat(signal, 2, axis=1), groups, 0)
    assert both["ceiling"]["low"] == pytest.approx(1.0)
    halves = script_modules["lds"].noise(signal + rng.normal(size=(8, 2, 90)), groups, 0)
    assert 0.35 < halves["agreement"]["mean"] < 0.6  # half of the variance is shared
    assert halves["ceiling"]["mean"] == pytest.approx(
        (2 * halves["agreement"]["mean"] / (1 + halves["agreement"]["mean"])) ** 0.5
    )


def test_random_relevant_documents_are_drawn_from_those_that_taught_the_answer(utils, task):
    part = utils["leave_out"]
    groups = part._groups(task, np.ones(len(task.queries), dtype=bool), 4)
    rankings = part._random_rankings(task, groups, seed=0)
    for queries, ranking in zip(groups.values(), rankings[part.RELEVANT], strict=True):
        relevant = task.relevance[queries[0]]
        assert relevant[ranking[: relevant.sum()]].all()
    assert {tuple(one) for one in rankings[part.RANDOM]} != {tuple(rankings[part.RANDOM][0])}


@pytest.mark.slow
@pytest.mark.timeout(1800)
def test_the_scripts_from_a_world_to_tables_and_figures(world, tmp_path):
    lds = ["--world", world, "--output-dir", tmp_path / "lds", "--num-models", 4, "--repeats", 2]
    lds += ["--methods", "bm25", "random", "--leave-out-methods"]
    done = run(LDS, *lds)
    assert done.returncode == 0, done.stderr[-2000:]
    results = json.loads((tmp_path / "lds" / "metrics.json").read_text())
    assert set(results["depths"]) == {"0", "1"}
    assert -1 <= results["depths"]["0"]["methods"]["bm25"]["mean"] <= 1
    assert "ceiling" in results["depths"]["0"]
    board = ["--world", world, "--output-dir", tmp_path / "board", "--bank", tmp_path / "lds"]
    # Two functions are too few to train probes on some and judge them by others.
    board += ["--methods", "random", "bm25", "dlp_probes"]
    done = run(LEADERBOARD, *board)
    assert done.returncode == 0, done.stderr[-2000:]
    found = json.loads((tmp_path / "board" / "leaderboard.json").read_text())
    kinds = {kind["name"]: kind["methods"] for kind in found["kinds"]}
    assert set(kinds) == {"base function", "wrapper"}
    assert kinds["base function"]["bm25"]["lds"] == {
        key: results["depths"]["0"]["methods"]["bm25"][key] for key in ("mean", "low", "high")
    }
    assert "functions" in kinds["wrapper"]["dlp_probes"]["failure"]
    assert kinds["wrapper"]["bm25"]["peak_mebibytes"] > 20
    lines = (tmp_path / "board" / "leaderboard.md").read_text().splitlines()
    assert sum(line.startswith("| bm25 |") for line in lines) == 2
    assert (tmp_path / "board" / "leaderboard.png").stat().st_size > 5000
    scored = tmp_path / "board" / "scores" / "bm25.json"
    before = scored.stat().st_mtime_ns
    assert run(LEADERBOARD, *board).returncode == 0
    assert scored.stat().st_mtime_ns == before  # not scored again


@pytest.fixture
def script_modules(monkeypatch):
    monkeypatch.syspath_prepend(str(EXPERIMENTS))
    return {name: importlib.import_module(name) for name in ("lds", "leaderboard")}


def test_among_documents_with_the_same_answer_only_who_taught_it_counts(script_modules, utils):
    """Two functions return 5: a method that finds the number alone is right half of the time."""
    from types import SimpleNamespace

    board, scored = script_modules["leaderboard"], utils["scored_methods"].ScoredMethod
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
    script_modules, utils, task, world, tmp_path
):
    """Relevant to a wrapper are documents of two kinds; one method finds the one, one the other."""
    board, scored = script_modules["leaderboard"], utils["scored_methods"].ScoredMethod
    names = np.array([str(one.func) for one in task.documents])
    asked = np.array([one.function for one in task.queries])
    depths = np.array([one.hop_depth for one in task.queries])
    bases = np.array([one.base_function for one in task.queries])
    wrapper = (names[None, :] == asked[:, None]) & (depths[:, None] == 1)
    base = names[None, :] == bases[:, None]
    np.testing.assert_array_equal(task.relevance, base | wrapper)
    np.testing.assert_array_equal(task.states_value, base)

    def judged(scores, rows):
        method = scored("m", "m", scores.astype(float), np.ones(len(asked), bool), 0, 0, None)
        found = board._judged(task, method, None, rows, asked, 0)
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
    utils, script_modules, world, tmp_path
):
    rows = [json.loads(line) for line in (world / "documents" / "training_set.jsonl").open()]
    function = next(row["func"] for row in rows if row["hop_depth"] == 0)
    changed = next(place for place, row in enumerate(rows) if row["func"] == function)
    rows[changed]["answers"] = "property"
    path = tmp_path / "documents.jsonl"
    path.write_text("".join(json.dumps(row) + "\n" for row in rows))
    arguments = dataclasses.replace(utils["worlds"].task_of_world(world), dataset=path)
    task = utils["task"].read(arguments)
    about = np.array([row["func"] == function for row in rows])
    # Ranked first, and all others about the function last: 15 documents state a value, 7 this one.
    first = np.tile(2.0 * (np.arange(len(rows)) == changed) - about, (len(task.queries), 1))
    bases = np.array([query.function == function for query in task.queries])
    groups = [function] * int(bases.sum())
    found = script_modules["leaderboard"]._further(task, first[bases], bases, groups, 0)
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


@pytest.mark.parametrize(
    ("script", "arguments", "message"),
    [
        ("lds", {"world": "nowhere"}, "No world nowhere"),
        ("lds", {"world": "nowhere", "share": 1.0}, "share"),
        ("lds", {"world": "nowhere", "num_models": 2}, "at least 3 subsets"),
        ("lds", {"world": "nowhere", "workers": 0}, "--workers"),
        ("lds", {"methods": ("magic",)}, "No method magic"),
        ("leaderboard", {}, "--world, or --dataset"),
        ("leaderboard", {"dataset": Path("d")}, "needs --old and --new"),
        ("leaderboard", {"world": "w", "old": "o"}, "brings its own"),
    ],
)
def test_bad_arguments_are_refused_before_anything_is_written(
    script_modules, script, arguments, message, tmp_path, monkeypatch
):
    monkeypatch.chdir(tmp_path)
    module = script_modules[script]
    with pytest.raises(HopsError, match=message):
        module.main(module.Config(**arguments))
    assert not list(tmp_path.iterdir())


def test_a_share_that_is_no_document_is_refused_before_anything_is_written(
    script_modules, world, tmp_path
):
    module = script_modules["lds"]
    config = module.Config(
        world=str(world), output_dir=tmp_path / "o", share=1e-4, methods=("bm25",)
    )
    with pytest.raises(HopsError, match="documents is 0"):
        module.main(config)
    assert not list(tmp_path.iterdir())


def test_bad_input_to_the_program_is_one_line_and_status_two(tmp_path, world):
    done = run(LDS, "--world", world, "--output-dir", tmp_path / "o", "--methods", "magic")
    assert done.returncode == 2
    assert done.stderr.startswith("error: No method magic")
    assert done.stderr.count("\n") == 1
    unknown = run(LEADERBOARD, "--world", world, "--method", "bm25")
    assert (unknown.returncode, unknown.stderr.count("\n")) == (2, 1)
    assert "--method" in unknown.stderr
    assert not list(tmp_path.iterdir())
