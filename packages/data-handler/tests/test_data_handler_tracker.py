"""Weights that follow while training runs: hand-written loops and the Trainer."""

import json
import logging
import runpy
from functools import partial
from pathlib import Path

import pytest
import torch
from data_handler.influence import InfluenceTracker, MixtureWeightCalculator, WeightedSourceDataset
from forks import together
from math_utils.errors import InfluenceError
from math_utils.influence import MixtureConfig
from transformers import Trainer, TrainingArguments

TWO_PROCESSES = Path(__file__).parent / "two_processes.py"


def rows_of(seed, count, length=7):
    """Examples of a source; each seed prefers other tokens."""
    generator = torch.Generator().manual_seed(seed)
    ids = torch.randint(3 + 6 * seed, 9 + 6 * seed, (count, length), generator=generator)
    return [{"input_ids": row, "labels": row} for row in ids]


def batches_of(rows, size=4):
    return torch.utils.data.DataLoader(rows, batch_size=size)


SOURCES = {"zero": rows_of(0, 12), "one": rows_of(1, 10)}
LOADERS = {name: batches_of(rows[:6]) for name, rows in SOURCES.items()}
PROBES = {"probe": batches_of(rows_of(1, 5))}


def make_tracker(model, *, sampler=None, interval=2, **more):
    config = MixtureConfig(update_interval=interval, learning_rate=0.5, smoothing=0.5)
    calculator = MixtureWeightCalculator(model, PROBES, config, "first_order")
    return InfluenceTracker(calculator, LOADERS, sampler, **more)


def test_a_hand_written_loop_updates_at_its_interval_after_warm_up(model):
    mixture = WeightedSourceDataset(SOURCES)
    tracker = make_tracker(model, sampler=mixture, interval=3, warmup_steps=4)
    tracker.on_train_begin()
    assert tracker.weights == pytest.approx({"zero": 0.5, "one": 0.5})
    for _ in range(11):
        tracker.on_step_end()
    tracker.on_epoch_end()
    tracker.on_train_end()
    assert [update.step for update in tracker.history] == [4, 7, 10]
    assert tracker.weights == tracker.history[-1].weights
    assert mixture.weights == pytest.approx(tracker.weights)
    # The probe is of the second source, whose gradients are like its own.
    assert tracker.weights["one"] > 0.6


def test_its_state_goes_through_json_and_on(model):
    one = make_tracker(model)
    for _ in range(4):
        one.on_step_end()
    mixture = WeightedSourceDataset(SOURCES)
    other = make_tracker(model, sampler=mixture)
    other.load_state_dict(json.loads(json.dumps(one.state_dict())))
    assert other.history == one.history
    assert mixture.weights == pytest.approx(one.weights)
    for tracker in (one, other):
        for _ in range(2):
            tracker.on_step_end()
    assert other.history == one.history
    with pytest.raises(InfluenceError, match="state of the sources zero, one"):
        other.load_state_dict({**one.state_dict(), "weights": {"zero": 1.0}})


def failing(model, **more):
    tracker = make_tracker(model, interval=1, **more)
    tracker._source_loaders = {**LOADERS, "one": []}
    return tracker


def test_a_failure_stops_training_with_the_reason(model):
    with pytest.raises(InfluenceError, match=r"after step 1: the source one is empty"):
        failing(model).on_step_end()


def test_a_failure_is_a_warning_where_asked_for_and_keeps_the_weights(model, caplog):
    tracker = failing(model, on_error="warn", initial_weights={"zero": 0.3, "one": 0.7})
    with caplog.at_level(logging.WARNING):
        tracker.on_step_end()
    assert "the source one is empty" in caplog.text
    assert tracker.weights == pytest.approx({"zero": 0.3, "one": 0.7})
    assert tracker.history == []


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        ({"warmup_steps": -1}, "warmup_steps"),
        ({"initial_weights": {"zero": 1.0}}, "initial weights of the sources zero, one"),
    ],
)
def test_bad_arguments_are_refused(model, arguments, message):
    with pytest.raises(InfluenceError, match=message):
        make_tracker(model, **arguments)


def train(model, folder, *, resume=None, max_steps=6, attach=True, **settings):
    mixture = WeightedSourceDataset(SOURCES, num_samples=64)
    tracker = make_tracker(model, sampler=mixture)
    arguments = TrainingArguments(
        output_dir=str(folder),
        max_steps=max_steps,
        per_device_train_batch_size=2,
        learning_rate=1e-2,
        # Constant, so that a training that was cut off has had the same steps.
        lr_scheduler_type="constant",
        logging_steps=1,
        save_steps=3,
        use_cpu=True,
        report_to=[],
        disable_tqdm=True,
        **settings,
    )
    callbacks = [] if attach else [tracker]
    trainer = Trainer(model=model, args=arguments, train_dataset=mixture, callbacks=callbacks)
    if attach:
        tracker.attach(trainer)
    trainer.train(resume_from_checkpoint=resume)
    return trainer, tracker


@pytest.mark.parametrize("attach", [True, False])
@pytest.mark.parametrize(
    "settings",
    [{}, {"gradient_accumulation_steps": 2}, {"dataloader_num_workers": 2}, {"bf16": True}],
)
def test_the_trainer_updates_and_logs_the_weights(model, tmp_path, attach, settings):
    trainer, tracker = train(model, tmp_path, attach=attach, **settings)
    assert [update.step for update in tracker.history] == [2, 4, 6]
    logged = [e for e in trainer.state.log_history if "influence/weight_one" in e]
    assert [entry["step"] for entry in logged] == [2, 4, 6]
    for entry, update in zip(logged, tracker.history, strict=True):
        assert entry["influence/weight_one"] == update.weights["one"]
        assert entry["influence/mean_zero"] == update.influence["zero"]
        assert entry["influence/standard_error_zero"] > 0
    assert tracker.weights["one"] > 0.5


def test_attached_weights_go_through_the_trainers_reporting(model, tmp_path):
    from transformers import TrainerCallback

    reported = []

    class Reporter(TrainerCallback):
        def on_log(self, args, state, control, logs=None, **kwargs):
            reported.append(dict(logs))

    mixture = WeightedSourceDataset(SOURCES, num_samples=64)
    arguments = TrainingArguments(
        str(tmp_path), max_steps=2, use_cpu=True, report_to=[], save_strategy="no"
    )
    trainer = Trainer(model=model, args=arguments, train_dataset=mixture, callbacks=[Reporter()])
    make_tracker(model, sampler=mixture).attach(trainer)
    trainer.train()
    assert any("influence/weight_zero" in logs for logs in reported)


def test_training_that_goes_on_from_a_checkpoint_ends_as_if_undisturbed(model_maker, tmp_path):
    whole, tracker = train(model_maker(), tmp_path / "whole")
    train(model_maker(), tmp_path / "cut", max_steps=3)
    resumed, other = train(
        model_maker(seed=1), tmp_path / "cut", resume=str(tmp_path / "cut" / "checkpoint-3")
    )
    assert other.history == tracker.history
    pairs = zip(whole.model.parameters(), resumed.model.parameters(), strict=True)
    assert all(torch.equal(one, two) for one, two in pairs)


def test_two_processes_have_equal_weights_on_every_rank(tmp_path):
    train = runpy.run_path(str(TWO_PROCESSES))["main"]
    together([partial(train, tmp_path)] * 2)
    first, second = (json.loads((tmp_path / f"rank{rank}.json").read_text()) for rank in (0, 1))
    assert len(first["history"]) == 2
    assert first["after_failure"]["history"] == []
    assert first["stopped"]
    for state in (first, second):
        # Each process has measured on its own what it did not take over from the first.
        del state["after_failure"]["running_influence"]
    assert first == second
