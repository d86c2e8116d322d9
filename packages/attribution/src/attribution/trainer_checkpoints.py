"""Checkpoints that the Hugging Face Trainer left in a folder, with their learning rates."""

import json
from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import torch
from transformers import AutoModelForCausalLM

from attribution.baselines.tracin import TracedModel
from attribution.errors import AttributionError

STATE_FILE = "trainer_state.json"


@dataclass(frozen=True)
class TrainerCheckpoint:
    """One ``checkpoint-N`` folder, and the stretch of training that ended there.

    Attributes:
        folder: of the model.
        step: N.
        learning_rate: mean of the rates logged since the checkpoint before it (since the
            beginning, for the first).
        share: of the steps up to the last checkpoint, those since the one before it.
    """

    folder: Path
    step: int
    learning_rate: float
    share: float


def find_trainer_checkpoints(folder: Path) -> list[TrainerCheckpoint]:
    """The checkpoints of a training run, by step.

    The Trainer writes the learning rate of every logged step into ``trainer_state.json``.

    Raises:
        AttributionError: on a folder without checkpoints, or a checkpoint that logged no learning
            rate since the one before it.
    """
    found = {
        int(path.name.removeprefix("checkpoint-")): path
        for path in folder.glob("checkpoint-*")
        if path.name.removeprefix("checkpoint-").isdigit() and (path / STATE_FILE).is_file()
    }
    if not found:
        raise AttributionError(
            f"{folder}: expected folders checkpoint-N with a {STATE_FILE}, as the Trainer saves "
            "them, got none"
        )
    checkpoints = []
    before = 0
    for step, path in sorted(found.items()):
        rates = [
            float(entry["learning_rate"])
            for entry in _log_history(path / STATE_FILE)
            if "learning_rate" in entry and before < entry["step"] <= step
        ]
        if not rates:
            raise AttributionError(
                f"{path}: its {STATE_FILE} has no learning rate between steps {before} and {step}"
            )
        mean = sum(rates) / len(rates)
        checkpoints.append(TrainerCheckpoint(path, step, mean, (step - before) / max(found)))
        before = step
    return checkpoints


def traced_models(
    checkpoints: Sequence[TrainerCheckpoint], device: torch.device | str = "cpu"
) -> Iterator[TracedModel]:
    """Load one checkpoint after the other, in float32, for :func:`tracin_scores`.

    Each stands for the steps since the one before it: η_k is their mean learning rate times their
    share of all steps, so that checkpoints at unequal distances count in proportion. (Where every
    distance is the same this is the paper's η_k up to a common factor.)
    """
    for one in checkpoints:
        model: Any = AutoModelForCausalLM.from_pretrained(one.folder, dtype=torch.float32)
        yield TracedModel(model.to(device).eval(), one.learning_rate * one.share)


def _log_history(path: Path) -> list[dict[str, Any]]:
    try:
        history = json.loads(path.read_text(encoding="utf-8"))["log_history"]
        return [entry for entry in history if isinstance(entry["step"], int)]
    except (ValueError, KeyError, TypeError) as error:
        raise AttributionError(f"{path}: not the state of a Trainer: {error}") from error
