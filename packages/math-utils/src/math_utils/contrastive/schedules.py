"""Schedules of training: a curriculum by samples, a temperature by steps. Plain numbers only."""

import math
from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any, Literal, get_args

from math_utils.contrastive.checks import check_choice, check_count, check_positive
from math_utils.errors import ContrastiveError

AnnealingSchedule = Literal["linear", "exponential", "cosine"]
ANNEALING_SCHEDULES: tuple[str, ...] = get_args(AnnealingSchedule)


@dataclass(frozen=True)
class CurriculumParams:
    """What one stage of a curriculum asks for.

    Attributes:
        k_neighbors: how many neighbours, for example negatives of an anchor.
        temperature: of a loss or of draws.
        difficulty: from 0, the easiest, to 1, the hardest.
    """

    k_neighbors: int
    temperature: float
    difficulty: float

    def __post_init__(self) -> None:
        check_count("k_neighbors", self.k_neighbors)
        check_positive("temperature", self.temperature)
        if not 0 <= self.difficulty <= 1:
            raise ContrastiveError(f"expected difficulty in [0, 1], got {self.difficulty}")


class CurriculumScheduler:
    """Stages that follow one another as samples are seen.

    Stage i lasts while the samples seen are in [i n, (i + 1) n), with n samples per stage. Samples
    beyond a border count in the next stage, and one step may pass several; the last stage stays.

    Source: the idea is that of Bengio et al. 2009, Curriculum learning.

    Args:
        stages: what each stage asks for, at least one.
        samples_per_stage: n.

    Raises:
        ContrastiveError: on no stages or no samples per stage.
    """

    def __init__(self, stages: Sequence[CurriculumParams], samples_per_stage: int) -> None:
        if not stages:
            raise ContrastiveError("expected a curriculum of at least one stage, got none")
        self.stages = tuple(stages)
        self.samples_per_stage = check_count("samples_per_stage", samples_per_stage)
        self._num_samples = 0

    @classmethod
    def linear(
        cls,
        stages: int,
        samples_per_stage: int,
        k_start: int,
        k_end: int,
        t_start: float,
        t_end: float,
    ) -> "CurriculumScheduler":
        """Equal steps from the start's values to the end's.

        Stage i of S has f = i / (S − 1), k_start + f (k_end − k_start) neighbours rounded to the
        nearest whole number (halves up), the temperature t_start + f (t_end − t_start) and the
        difficulty f. A single stage is the start and the end at once, with the difficulty 1.

        Args:
            stages: S.
            samples_per_stage: samples until the next stage.
            k_start: neighbours of the first stage.
            k_end: neighbours of the last stage; may be fewer.
            t_start: temperature of the first stage.
            t_end: temperature of the last stage; may be higher.

        Raises:
            ContrastiveError: on a count below 1, a temperature that is not positive and finite, or
                a single stage that should both start and end at different values.
        """
        check_count("stages", stages)
        check_count("k_start", k_start)
        check_count("k_end", k_end)
        check_positive("t_start", t_start)
        check_positive("t_end", t_end)
        if stages == 1 and (k_start, t_start) != (k_end, t_end):
            raise ContrastiveError(
                "a single stage cannot start and end at different values, got "
                f"k {k_start} to {k_end} and temperature {t_start} to {t_end}; "
                "ask for two stages or more"
            )
        fractions = [i / (stages - 1) for i in range(stages)] if stages > 1 else [1.0]
        return cls(
            [
                CurriculumParams(
                    k_neighbors=math.floor(k_start + share * (k_end - k_start) + 0.5),
                    temperature=(1 - share) * t_start + share * t_end,
                    difficulty=share,
                )
                for share in fractions
            ],
            samples_per_stage,
        )

    @property
    def stage(self) -> int:
        """The number of the current stage, from 0."""
        return min(self._num_samples // self.samples_per_stage, len(self.stages) - 1)

    def current_params(self) -> CurriculumParams:
        """What the current stage asks for."""
        return self.stages[self.stage]

    def step(self, batch_size: int) -> CurriculumParams:
        """Count a batch as seen and return what the stage that it leads to asks for.

        Raises:
            ContrastiveError: on a batch size below 1.
        """
        self._num_samples += check_count("batch_size", batch_size)
        return self.current_params()

    def state_dict(self) -> dict[str, Any]:
        """Plain numbers; the stages themselves are not in it, only how many there are."""
        return {
            "num_samples": self._num_samples,
            "num_stages": len(self.stages),
            "samples_per_stage": self.samples_per_stage,
        }

    def load_state_dict(self, state: dict[str, Any]) -> None:
        """Go on where another curriculum of the same stages stood.

        Raises:
            ContrastiveError: on the state of another curriculum, or of none; nothing is changed.
        """
        own = self.state_dict()
        self._num_samples = _loaded_count(state, own, "num_samples")


class TemperatureAnnealing:
    """A temperature that goes from its start to its end in so many steps, and stays there.

    With f = min(step / steps, 1):

    - linear: start + f (end − start);
    - exponential: start (end / start)^f;
    - cosine: end + (start − end) (1 + cos πf) / 2.

    Args:
        start: at step 0.
        end: at step ``steps`` and after.
        steps: how many steps it takes.
        schedule: "linear", "exponential" or "cosine".

    Raises:
        ContrastiveError: on a start or an end that is not positive and finite (an exponential
            never reaches 0, and no loss can be divided by it), no steps, or another schedule.
    """

    def __init__(self, start: float, end: float, steps: int, schedule: str = "cosine") -> None:
        self.start = check_positive("start", start)
        self.end = check_positive("end", end)
        self.steps = check_count("steps", steps)
        self.schedule = check_choice("schedule", schedule, ANNEALING_SCHEDULES)
        self._num_steps = 0

    @property
    def temperature(self) -> float:
        """The temperature at the current step."""
        return self.at(self._num_steps)

    def at(self, step: int) -> float:
        """The temperature at a step, from 0.

        Raises:
            ContrastiveError: on a negative step.
        """
        if step < 0:
            raise ContrastiveError(f"expected a step of at least 0, got {step}")
        # The ends are exact, and so is every step between equal ends.
        if step >= self.steps or self.start == self.end:
            return self.end
        share = step / self.steps
        if self.schedule == "linear":
            return (1 - share) * self.start + share * self.end
        if self.schedule == "exponential":
            return self.start * math.exp(share * (math.log(self.end) - math.log(self.start)))
        weight = (1 + math.cos(math.pi * share)) / 2
        return weight * self.start + (1 - weight) * self.end

    def step(self) -> float:
        """Go one step on and return the temperature there."""
        self._num_steps += 1
        return self.temperature

    def state_dict(self) -> dict[str, Any]:
        """Plain numbers and the schedule's name."""
        return {
            "num_steps": self._num_steps,
            "start": self.start,
            "end": self.end,
            "steps": self.steps,
            "schedule": self.schedule,
        }

    def load_state_dict(self, state: dict[str, Any]) -> None:
        """Go on where another annealing with the same arguments stood.

        Raises:
            ContrastiveError: on the state of another annealing, or of none; nothing is changed.
        """
        self._num_steps = _loaded_count(state, self.state_dict(), "num_steps")


def _loaded_count(state: dict[str, Any], own: dict[str, Any], name: str) -> int:
    """The count of a state whose other entries are one's own."""
    if set(state) != set(own):
        raise ContrastiveError(
            f"expected a state with {', '.join(own)}, got {', '.join(map(str, state)) or 'none'}"
        )
    for key, value in own.items():
        if key != name and state[key] != value:
            raise ContrastiveError(
                f"expected the state of a schedule with {key} {value!r}, got {state[key]!r}"
            )
    count = state[name]
    if isinstance(count, bool) or not isinstance(count, int) or count < 0:
        raise ContrastiveError(f"expected {name} to be a whole number, 0 or more, got {count!r}")
    return count
