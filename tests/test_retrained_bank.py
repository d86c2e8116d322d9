"""Banks of models retrained on subsets: what they hold, keep after a kill, and refuse."""

import dataclasses
import shutil
from pathlib import Path

import numpy as np
import pytest
from forks import kill_when, script
from hops.errors import HopsError
from lds_cases import LDS, contents


@pytest.fixture
def plan(script_utils):
    return script_utils["retrained_bank"].BankPlan(num_subsets=4, repeats=1, seed=5)


def test_subsets_hold_their_share_differ_and_do_not_depend_on_how_many_there_are(script_utils):
    bank = script_utils["retrained_bank"].BankPlan
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


def test_a_bank_holds_what_models_trained_on_its_subsets_answer(
    script_utils, tiny_task, plan, tmp_path
):
    make, models = script_utils["retrained_bank"], script_utils["retrained_models"]
    store = make.open_store(tiny_task, tmp_path)
    bank = make.make_bank(store, plan)
    assert bank.masks.shape == (4, len(tiny_task.documents))
    assert bank.losses.shape == bank.correct.shape == (4, 1, len(tiny_task.queries))
    job = plan.job(2, 0, store.num_documents)
    assert sorted(job.lines) == np.flatnonzero(bank.masks[2]).tolist()
    alone = models.retrain(store.training, job, store.questions)
    np.testing.assert_array_equal(alone.losses, bank.losses[2, 0])
    assert np.ptp(bank.losses, axis=0).min() > 0  # each subset makes another model
    read = make.read_bank(tmp_path, tiny_task)
    np.testing.assert_array_equal(read.losses, bank.losses)


def test_losses_and_answers_are_those_of_the_model(script_utils, tiny_task, tmp_path):
    """Against one forward pass by hand; the loss is in nats, summed over the answer's tokens."""
    import torch

    store = script_utils["retrained_bank"].open_store(tiny_task, tmp_path)
    answers = script_utils["retrained_models"].ask(
        tiny_task.new_model, tiny_task.tokenizers[1], store.questions
    )
    for place, example in enumerate(tiny_task.query_examples):
        ids, labels = torch.tensor([example.token_ids]), torch.tensor([example.labels])
        with torch.no_grad():
            output = tiny_task.new_model(input_ids=ids, labels=labels)
        num_targets = example.span[1] - example.span[0]
        assert answers.losses[place] == pytest.approx(float(output.loss) * num_targets, abs=1e-4)
    assert answers.correct.dtype == bool


@pytest.mark.slow
@pytest.mark.timeout(1800)
def test_two_workers_give_the_same_bits_as_one(script_utils, tiny_task, plan, tmp_path):
    make = script_utils["retrained_bank"]
    for workers in (1, 2):
        store = make.open_store(tiny_task, tmp_path / str(workers))
        make.make_bank(store, plan, workers=workers)
    assert contents(tmp_path / "1") == contents(tmp_path / "2")


def test_a_bank_killed_on_the_way_ends_as_an_undisturbed_one(
    script_utils, tiny_task, tiny_world, plan, tmp_path
):
    make = script_utils["retrained_bank"]
    make.make_bank(make.open_store(tiny_task, tmp_path / "whole"), plan)
    flags = ["--world", tiny_world, "--output-dir", tmp_path / "killed", "--num-models", "4"]
    flags += ["--repeats", "1", "--seed", "5", "--methods", "random", "--leave-out-methods"]
    models = tmp_path / "killed" / "models"
    kill_when(script(LDS, *flags), lambda: len(list(models.glob("*.npz"))) == 2)
    (models / ".half.npz.1.tmp").write_bytes(b"half a file")
    before = {path.name: path.stat().st_mtime_ns for path in models.glob("[!.]*.npz")}
    assert len(before) == 2
    make.make_bank(make.open_store(tiny_task, tmp_path / "killed"), plan)
    (models / ".half.npz.1.tmp").unlink()
    assert contents(tmp_path / "killed") == contents(tmp_path / "whole")
    after = {path.name: path.stat().st_mtime_ns for path in models.iterdir()}
    assert before.items() <= after.items()  # what was finished was not trained again


def test_models_of_another_training_or_other_questions_are_refused(
    script_utils, tiny_task, tiny_world, tmp_path
):
    make, models = script_utils["retrained_bank"], script_utils["retrained_models"]
    store = make.open_store(tiny_task, tmp_path)
    assert make.open_store(tiny_task, tmp_path) == store
    longer = dataclasses.replace(store.training, epochs=2.0)
    with pytest.raises(HopsError, match="another training;"):
        models.RetrainingStore.open(tmp_path, longer, store.questions)
    with pytest.raises(HopsError, match="another questions;"):
        models.RetrainingStore.open(tmp_path, store.training, store.questions[1:])
    with pytest.raises(HopsError, match="no whole bank"):
        make.read_bank(tmp_path, tiny_task)
    with pytest.raises(HopsError, match=r"training_config\.json"):
        models.read_training(
            tiny_world / "models" / "old",
            dataset=tiny_task.arguments.dataset,
            old_model=Path("old"),
        )


def test_a_world_that_was_moved_keeps_its_bank_and_one_that_was_changed_does_not(
    script_utils, tiny_world, plan, tmp_path
):
    make, bank = script_utils["retrained_bank"], tmp_path / "bank"

    def task_at(folder):
        return script_utils["task"].read(script_utils["worlds"].task_of_world(folder))

    first, moved = tmp_path / "first", tmp_path / "moved"
    shutil.copytree(tiny_world, first)
    make.make_bank(make.open_store(task_at(tiny_world), bank), plan)
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
    shutil.copy(tiny_world / "documents" / "training_set.jsonl", documents)
    weights = moved / "models" / "old" / "model.safetensors"
    shutil.copy(moved / "models" / "new_training" / "final_model" / weights.name, weights)
    with pytest.raises(HopsError, match=r"model\.safetensors: not what .* was trained from"):
        make.open_store(task_at(moved), bank)


def test_a_damaged_model_is_named(script_utils, tiny_task, plan, tmp_path):
    make = script_utils["retrained_bank"]
    store = make.open_store(tiny_task, tmp_path)
    bad = tmp_path / "models" / f"{plan.job(0, 0, store.num_documents).key}.npz"
    bad.parent.mkdir()
    bad.write_bytes(b"PK no archive")
    with pytest.raises(HopsError, match=bad.name):
        store.read(plan.job(0, 0, store.num_documents))
