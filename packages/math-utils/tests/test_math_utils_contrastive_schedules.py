"""Curriculum and annealing: both ends, every border, carrying over, and being taken up again."""

import io
import json
import math
from itertools import pairwise

import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from math_utils.contrastive import CurriculumParams, CurriculumScheduler, TemperatureAnnealing
from math_utils.contrastive.schedules import ANNEALING_SCHEDULES
from math_utils.errors import ContrastiveError

NAN, INFINITY = float("nan"), float("inf")


def curriculum(stages=4, samples=100):
    return CurriculumScheduler.linear(stages, samples, 4, 19, 0.5, 0.2)


def by_json(state):
    return json.loads(json.dumps(state))


def by_torch(state):
    file = io.BytesIO()
    torch.save(state, file)
    file.seek(0)
    return torch.load(file, weights_only=True)


def test_a_linear_curriculum_goes_in_equal_steps_from_start_to_end():
    stages = curriculum().stages
    assert [one.k_neighbors for one in stages] == [4, 9, 14, 19]
    assert [one.temperature for one in stages] == pytest.approx([0.5, 0.4, 0.3, 0.2])
    assert [one.difficulty for one in stages] == pytest.approx([0, 1 / 3, 2 / 3, 1])
    assert stages[0] == CurriculumParams(4, 0.5, 0.0)
    assert stages[-1] == CurriculumParams(19, 0.2, 1.0)
    falling = CurriculumScheduler.linear(3, 1, 8, 1, 0.1, 0.3).stages
    assert [one.k_neighbors for one in falling] == [8, 5, 1]  # 4.5 is rounded up
    assert [one.temperature for one in falling] == pytest.approx([0.1, 0.2, 0.3])
    assert CurriculumScheduler.linear(1, 10, 3, 3, 0.1, 0.1).stages == (
        CurriculumParams(3, 0.1, 1.0),
    )


def test_a_stage_ends_with_its_last_sample():
    scheduler = curriculum()
    assert scheduler.stage == 0
    for seen in range(1, 601):
        params = scheduler.step(1)
        assert scheduler.stage == min(seen // 100, 3)
        assert params == scheduler.current_params() == scheduler.stages[scheduler.stage]


def test_surplus_samples_carry_over_and_a_step_may_pass_stages():
    scheduler = curriculum()
    stages = []
    for batch in (60, 60, 79, 1, 60):  # 60, 120, 199, 200, 260
        scheduler.step(batch)
        stages.append(scheduler.stage)
    assert stages == [0, 1, 1, 2, 2]
    jumping = curriculum(stages=5)
    assert jumping.step(250).difficulty == 0.5
    assert jumping.stage == 2
    assert jumping.step(49).difficulty == 0.5
    assert jumping.step(1).difficulty == 0.75
    assert jumping.step(100_000).difficulty == 1
    assert jumping.step(1).difficulty == 1


@settings(deadline=None, max_examples=60)
@given(
    batches=st.lists(st.integers(1, 250), max_size=12),
    stages=st.integers(2, 6),
    samples=st.integers(1, 120),
)
def test_how_samples_come_in_batches_does_not_matter(batches, stages, samples):
    stepwise, at_once = curriculum(stages, samples), curriculum(stages, samples)
    for batch in batches:
        stepwise.step(batch)
    if batches:
        at_once.step(sum(batches))
    assert stepwise.current_params() == at_once.current_params()
    assert stepwise.state_dict() == at_once.state_dict()


@pytest.mark.parametrize("stored", [by_json, by_torch])
@pytest.mark.parametrize("before", [0, 37, 100, 137, 5000])
def test_a_curriculum_goes_on_in_the_middle_of_a_stage(stored, before):
    scheduler, restored = curriculum(), curriculum()
    if before:
        scheduler.step(before)
    restored.step(250)  # is overwritten
    restored.load_state_dict(stored(scheduler.state_dict()))
    for _ in range(30):
        assert restored.current_params() == scheduler.current_params()
        assert restored.step(11) == scheduler.step(11)


@pytest.mark.parametrize("schedule", ANNEALING_SCHEDULES)
@pytest.mark.parametrize(("start", "end"), [(1.0, 0.05), (0.05, 1.0), (0.07, 0.07)])
def test_annealing_begins_and_ends_where_it_says_and_never_turns_back(schedule, start, end):
    annealing = TemperatureAnnealing(start, end, 7, schedule)
    assert annealing.temperature == annealing.at(0) == start
    values = [start] + [annealing.step() for _ in range(12)]
    assert values == [annealing.at(step) for step in range(13)]
    assert values[7:] == [end] * 6
    steps = [(b - a) * math.copysign(1, end - start) for a, b in pairwise(values)]
    assert all(step >= 0 for step in steps)
    if start != end:
        assert all(step > 0 for step in steps[:7])


def test_annealing_follows_its_formulas():
    for step in range(11):
        share = step / 10
        linear, exponential, cosine = (
            TemperatureAnnealing(0.8, 0.2, 10, schedule).at(step)
            for schedule in ("linear", "exponential", "cosine")
        )
        assert linear == pytest.approx(0.8 - 0.6 * share)
        assert exponential == pytest.approx(0.8 * 0.25**share)
        assert cosine == pytest.approx(0.2 + 0.6 * (1 + math.cos(math.pi * share)) / 2)
    middle = {name: TemperatureAnnealing(1.0, 0.01, 2, name).at(1) for name in ANNEALING_SCHEDULES}
    assert middle == pytest.approx({"linear": 0.505, "exponential": 0.1, "cosine": 0.505})


@pytest.mark.parametrize("stored", [by_json, by_torch])
@pytest.mark.parametrize("before", [0, 3, 8, 20])
def test_annealing_goes_on_where_it_stood(stored, before):
    annealing, restored = (TemperatureAnnealing(0.7, 0.1, 8, "exponential") for _ in range(2))
    for _ in range(before):
        annealing.step()
    restored.step()
    restored.load_state_dict(stored(annealing.state_dict()))
    for _ in range(10):
        assert restored.temperature == annealing.temperature
        assert restored.step() == annealing.step()


def linear(**changed):
    arguments = {
        "stages": 3,
        "samples_per_stage": 10,
        "k_start": 2,
        "k_end": 8,
        "t_start": 1.0,
        "t_end": 0.1,
    }
    return CurriculumScheduler.linear(**{**arguments, **changed})


@pytest.mark.parametrize(
    ("call", "message"),
    [
        (lambda: CurriculumScheduler([], 10), "at least one stage, got none"),
        (lambda: linear(stages=0), "stages to be a whole number of at least 1, got 0"),
        (lambda: linear(stages=-2), "stages to be a whole number"),
        (lambda: linear(stages=1), "single stage cannot start and end at different values"),
        (lambda: linear(stages=1, k_end=2), "single stage cannot"),
        (lambda: linear(samples_per_stage=0), "samples_per_stage to be a whole number"),
        (lambda: linear(k_start=0), "k_start to be a whole number"),
        (lambda: linear(k_end=0), "k_end to be a whole number"),
        (lambda: linear(t_start=0.0), "t_start to be positive and finite"),
        (lambda: linear(t_end=-1.0), "t_end to be positive and finite"),
        (lambda: linear(t_end=INFINITY), "t_end to be positive and finite"),
        (lambda: linear().step(0), "batch_size to be a whole number"),
        (lambda: linear().step(-5), "batch_size to be a whole number"),
        (lambda: CurriculumParams(0, 0.1, 0.5), "k_neighbors"),
        (lambda: CurriculumParams(1, 0.0, 0.5), "temperature"),
        (lambda: CurriculumParams(1, 0.1, 1.5), "difficulty in"),
        (lambda: CurriculumParams(1, 0.1, NAN), "difficulty in"),
        (lambda: TemperatureAnnealing(1.0, 0.0, 5, "exponential"), "end to be positive and finite"),
        (lambda: TemperatureAnnealing(1.0, 0.0, 5, "linear"), "end to be positive and finite"),
        (lambda: TemperatureAnnealing(1.0, -0.1, 5, "cosine"), "end to be positive and finite"),
        (lambda: TemperatureAnnealing(0.0, 1.0, 5, "exponential"), "start to be positive"),
        (lambda: TemperatureAnnealing(NAN, 1.0, 5), "start to be positive"),
        (lambda: TemperatureAnnealing(1.0, 0.1, 0), "steps to be a whole number of at least 1"),
        (lambda: TemperatureAnnealing(1.0, 0.1, 5, "step"), "schedule among linear, exponential"),
        (lambda: TemperatureAnnealing(1.0, 0.1, 5).at(-1), "step of at least 0"),
    ],
)
def test_what_is_ill_defined_is_refused_with_the_reason(call, message):
    with pytest.raises(ContrastiveError, match=message):
        call()


@pytest.mark.parametrize(
    ("changed", "message"),
    [
        ({"num_samples": -1}, "num_samples to be a whole number"),
        ({"num_samples": 2.5}, "num_samples to be a whole number"),
        ({"num_stages": 5}, "with num_stages 4, got 5"),
        ({"samples_per_stage": 7}, "with samples_per_stage 100, got 7"),
        ({"further": 1}, "expected a state with num_samples, num_stages, samples_per_stage"),
    ],
)
def test_the_state_of_another_curriculum_is_refused_and_changes_nothing(changed, message):
    scheduler = curriculum()
    scheduler.step(130)
    before = scheduler.state_dict()
    with pytest.raises(ContrastiveError, match=message):
        scheduler.load_state_dict({**before, **changed})
    with pytest.raises(ContrastiveError, match="got none"):
        scheduler.load_state_dict({})
    assert scheduler.state_dict() == before


@pytest.mark.parametrize(
    "changed", [{"num_steps": -1}, {"start": 0.2}, {"steps": 9}, {"schedule": "linear"}]
)
def test_the_state_of_another_annealing_is_refused(changed):
    annealing = TemperatureAnnealing(0.7, 0.1, 8, "cosine")
    with pytest.raises(ContrastiveError, match="expected"):
        annealing.load_state_dict({**annealing.state_dict(), **changed})
