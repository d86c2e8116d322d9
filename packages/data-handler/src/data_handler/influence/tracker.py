"""Weights of data sources that follow influence while a model trains."""

import copy
import logging
from collections.abc import Iterable, Mapping
from dataclasses import asdict, dataclass
from typing import Any, Literal, Protocol, runtime_checkable

import torch.distributed
from math_utils.errors import InfluenceError
from transformers import TrainerCallback
from transformers.trainer_callback import ExportableState

from data_handler.influence.calculator import MixtureWeightCalculator
from data_handler.influence.mixture import check_bounds, project_onto_bounds

Loader = Iterable[Mapping[str, Any]]
logger = logging.getLogger(__name__)


@runtime_checkable
class TakesWeights(Protocol):
    """What samples by source, such as :class:`WeightedSourceDataset`."""

    def set_weights(self, weights: Mapping[str, float]) -> None:
        """Sample by these weights from now on."""


@dataclass(frozen=True)
class WeightUpdate:
    """One update: what was measured and what became of the weights.

    Attributes:
        step: optimizer steps done before it.
        weights: by source, after it.
        influence: mean influence by source on the probes, positive is helpful, in nats.
        standard_error: of these means.
    """

    step: int
    weights: dict[str, float]
    influence: dict[str, float]
    standard_error: dict[str, float]


class InfluenceTracker(TrainerCallback, ExportableState):
    """Measures influence at intervals while a model trains and moves the weights of sources.

    With a Hugging Face Trainer, call :meth:`attach` (or pass it among the callbacks: then weights
    go into the trainer's log history, but not to its reporting). In a hand-written loop call
    ``on_train_begin()``, and ``on_step_end()`` after every optimizer step (``on_epoch_end()`` and
    ``on_train_end()`` do nothing).
    Its state is saved in the Trainer's checkpoints and restored from them; a hand-written loop
    uses :meth:`state_dict` and :meth:`load_state_dict`. Under torch.distributed each process
    measures, and all take the weights of the first, so that they agree to the last bit.

    Args:
        calculator: measures the influence of sources on probes; its config has the interval,
            learning rate, smoothing and bounds.
        source_loaders: examples of every source to measure with, read at each update. A few
            dozen to a few hundred per source do; the standard errors in ``history`` tell.
        sampler: is told the weights; None for a loop that reads :attr:`weights` itself.
        initial_weights: even if None; projected onto the bounds.
        warmup_steps: optimizer steps before the first update.
        on_error: "raise" stops training with the reason when an update fails; "warn" logs the
            reason and keeps the weights.

    Raises:
        InfluenceError: on sources, bounds, warm-up or ``on_error`` that make no sense.
    """

    def __init__(
        self,
        calculator: MixtureWeightCalculator,
        source_loaders: Mapping[str, Loader],
        sampler: TakesWeights | None = None,
        *,
        initial_weights: Mapping[str, float] | None = None,
        warmup_steps: int = 0,
        on_error: Literal["raise", "warn"] = "raise",
    ) -> None:
        if on_error not in ("raise", "warn"):
            raise InfluenceError(f'expected on_error "raise" or "warn", got {on_error!r}')
        if warmup_steps < 0:
            raise InfluenceError(f"expected warmup_steps of at least 0, got {warmup_steps}")
        bounds = calculator.config.min_weight, calculator.config.max_weight
        check_bounds(len(source_loaders), *bounds)
        if initial_weights is None:
            initial_weights = dict.fromkeys(source_loaders, 1 / len(source_loaders))
        elif set(initial_weights) != set(source_loaders):
            raise InfluenceError(
                f"expected initial weights of the sources {', '.join(source_loaders)}, "
                f"got {', '.join(initial_weights)}"
            )
        self._calculator = calculator
        self._source_loaders = dict(source_loaders)
        self._sampler = sampler
        self._warmup_steps = warmup_steps
        self._on_error = on_error
        self._trainer: Any = None
        self._num_steps = 0
        self._weights = project_onto_bounds(
            {name: max(initial_weights[name], 1e-300) for name in source_loaders}, *bounds
        )
        self._history: list[WeightUpdate] = []

    @property
    def weights(self) -> dict[str, float]:
        """The present weights by source, with sum 1."""
        return dict(self._weights)

    @property
    def history(self) -> list[WeightUpdate]:
        """Every update so far, the oldest first."""
        return list(self._history)

    def attach(self, trainer: Any) -> None:
        """Become a callback of a Trainer, and log through its own reporting."""
        self._trainer = trainer
        trainer.add_callback(self)

    def on_train_begin(
        self, args: Any = None, state: Any = None, control: Any = None, **kwargs: Any
    ) -> None:
        """Take up the state of a checkpoint that training goes on from, and set the weights."""
        if state is not None:
            saved = state.stateful_callbacks.setdefault(type(self).__name__, {})
            if state.global_step and saved.get("attributes"):
                self.load_state_dict(saved["attributes"])
            self._num_steps = state.global_step
        self._apply()

    def on_step_end(
        self, args: Any = None, state: Any = None, control: Any = None, **kwargs: Any
    ) -> None:
        """Count an optimizer step, and update the weights where one is due."""
        self._num_steps = self._num_steps + 1 if state is None else state.global_step
        since = self._num_steps - self._warmup_steps
        if since >= 0 and self._num_steps and since % self._calculator.config.update_interval == 0:
            self.update_weights()
            if self._trainer is not None:
                self._trainer.log(self.log_entries())
            elif state is not None:
                state.log_history.append({**self.log_entries(), "step": self._num_steps})

    def on_epoch_end(
        self, args: Any = None, state: Any = None, control: Any = None, **kwargs: Any
    ) -> None:
        """Nothing: updates are counted in steps."""

    def on_train_end(
        self, args: Any = None, state: Any = None, control: Any = None, **kwargs: Any
    ) -> None:
        """Nothing: no probe is kept between two measurements."""

    def update_weights(self) -> dict[str, float]:
        """Measure influence now and move the weights; returns them.

        Raises:
            InfluenceError: if measuring fails and ``on_error`` is "raise"; its cause is attached.
        """
        reason = ""
        weights = self._weights
        try:
            weights = self._calculator.update(self._weights, self._source_loaders)
        except Exception as error:
            if self._on_error == "raise" and not _is_distributed():
                raise InfluenceError(self._failed(error)) from error
            reason = self._failed(error)
        if _any_failed(bool(reason)):
            reason = reason or self._failed("another process failed")
            if self._on_error == "raise":
                raise InfluenceError(reason)
            logger.warning("%s; the weights stay %s", reason, self._weights)
            return self.weights
        found, running = self._calculator.last_measured, self._calculator.running_influence or {}
        # Every process has measured; the first one's numbers hold, so that none drifts.
        rows = [
            weights,
            running,
            {name: one.mean for name, one in found.items()},
            {name: one.standard_error for name, one in found.items()},
        ]
        self._weights, running, means, errors = _of_first_process(rows, list(self._weights))
        self._calculator.running_influence = running
        self._history.append(WeightUpdate(self._num_steps, self.weights, means, errors))
        self._apply()
        return self.weights

    def _failed(self, why: object) -> str:
        return f"influence could not be measured after step {self._num_steps}: {why}"

    def log_entries(self) -> dict[str, float]:
        """``influence/weight_<source>``, and influence with its standard error where measured."""
        entries = {f"influence/weight_{name}": weight for name, weight in self._weights.items()}
        if self._history:
            last = self._history[-1]
            for name in self._weights:
                entries[f"influence/mean_{name}"] = last.influence[name]
                entries[f"influence/standard_error_{name}"] = last.standard_error[name]
        return entries

    def state_dict(self) -> dict[str, Any]:
        """Everything needed to go on, as JSON values."""
        return {
            "num_steps": self._num_steps,
            "weights": self.weights,
            "running_influence": self._calculator.running_influence,
            "history": [asdict(update) for update in self._history],
        }

    def load_state_dict(self, state: Mapping[str, Any]) -> None:
        """Go on from what :meth:`state_dict` gave.

        Raises:
            InfluenceError: if it is of other sources.
        """
        if set(state["weights"]) != set(self._source_loaders):
            raise InfluenceError(
                f"expected a state of the sources {', '.join(self._source_loaders)}, "
                f"got one of {', '.join(state['weights'])}"
            )
        self._num_steps = state["num_steps"]
        self._weights = {name: state["weights"][name] for name in self._source_loaders}
        self._calculator.running_influence = copy.deepcopy(state["running_influence"])
        self._history = [WeightUpdate(**update) for update in state["history"]]
        self._apply()

    def state(self) -> dict[str, Any]:
        """What the Trainer writes into its checkpoints."""
        return {"args": {}, "attributes": self.state_dict()}

    def _apply(self) -> None:
        if self._sampler is not None:
            self._sampler.set_weights(self._weights)


def _is_distributed() -> bool:
    return torch.distributed.is_available() and torch.distributed.is_initialized()


def _any_failed(failed: bool) -> bool:
    """Whether any process failed; all of them learn it, so that none waits for another."""
    if not _is_distributed():
        return failed
    flag = torch.tensor([float(failed)], device=_communication_device())
    torch.distributed.all_reduce(flag, op=torch.distributed.ReduceOp.MAX)
    return bool(flag.item())


def _of_first_process(rows: list[dict[str, float]], sources: list[str]) -> list[dict[str, float]]:
    """Numbers by source, as the process of rank 0 has them."""
    if not _is_distributed():
        return [{name: row[name] for name in sources} for row in rows]
    numbers = torch.tensor(
        [[row[name] for name in sources] for row in rows],
        dtype=torch.float64,
        device=_communication_device(),
    )
    torch.distributed.broadcast(numbers, src=0)
    return [dict(zip(sources, row, strict=True)) for row in numbers.tolist()]


def _communication_device() -> str:
    return "cuda" if torch.distributed.get_backend() == "nccl" else "cpu"
