"""What the Trainer calls back: a progress bar, and the evaluation of each checkpoint."""

from collections.abc import Collection
from pathlib import Path
from typing import Any

from pydantic import TypeAdapter
from tqdm import tqdm
from transformers import (
    PreTrainedModel,
    PreTrainedTokenizerFast,
    TrainerCallback,
    TrainerControl,
    TrainerState,
    TrainingArguments,
)

from hops.files import read_json, write_json, write_text
from hops.functions import Registry
from hops.logit_eval import evaluate_logits
from hops.training_config import LOSS_FILE, SUMMARY_FILE

WHOLE_MARK = "hops_checkpoint_is_whole"
"""A file in a checkpoint folder that was saved and evaluated to the end."""


def read_summary(output_dir: Path) -> list[dict[str, Any]]:
    """Read the evaluations of a run so far."""
    return TypeAdapter(list[dict[str, Any]]).validate_python(read_json(output_dir / SUMMARY_FILE))


class ProgressBar(TrainerCallback):
    """A progress bar on stderr, with the loss."""

    def __init__(self, description: str) -> None:
        self._description = description
        self._bar: tqdm[Any] | None = None

    def on_train_begin(
        self, args: TrainingArguments, state: TrainerState, control: TrainerControl, **_: Any
    ) -> None:
        """Open the bar at the step the run continues from."""
        if state.is_world_process_zero:
            self._bar = tqdm(
                total=state.max_steps,
                initial=state.global_step,
                desc=self._description,
                unit="step",
            )

    def on_step_end(
        self, args: TrainingArguments, state: TrainerState, control: TrainerControl, **_: Any
    ) -> None:
        """Advance the bar."""
        if self._bar is not None:
            self._bar.update(state.global_step - self._bar.n)

    def on_log(
        self,
        args: TrainingArguments,
        state: TrainerState,
        control: TrainerControl,
        logs: dict[str, float] | None = None,
        **_: Any,
    ) -> None:
        """Show the loss."""
        if self._bar is not None and logs and "loss" in logs:
            self._bar.set_postfix(loss=f"{float(logs['loss']):.3f}")

    def on_train_end(
        self, args: TrainingArguments, state: TrainerState, control: TrainerControl, **_: Any
    ) -> None:
        """Close the bar."""
        if self._bar is not None:
            self._bar.close()


class CheckpointEvaluation(TrainerCallback):
    """Evaluates each checkpoint, adds to the summary, then marks the checkpoint as whole."""

    def __init__(
        self,
        output_dir: Path,
        tokenizer: PreTrainedTokenizerFast,
        registry: Registry | None,
        told: Collection[str],
        prompt_format: str,
        done_steps: int,
    ) -> None:
        self._output_dir = output_dir
        self._tokenizer = tokenizer
        self._registry = registry
        self._told = told
        self._prompt_format = prompt_format
        kept = [e for e in read_summary(output_dir) if e["step"] <= done_steps]
        self._entries = kept

    def on_step_end(
        self, args: TrainingArguments, state: TrainerState, control: TrainerControl, **_: Any
    ) -> None:
        """Log the loss at each checkpoint, so that a resumed run averages over the same steps."""
        if control.should_save:
            control.should_log = True

    def on_save(
        self,
        args: TrainingArguments,
        state: TrainerState,
        control: TrainerControl,
        model: PreTrainedModel | None = None,
        **_: Any,
    ) -> None:
        """Evaluate the model that was just saved; the mark comes last."""
        if not state.is_world_process_zero or model is None:
            return
        losses = [
            {"step": entry["step"], "loss": entry["loss"]}
            for entry in state.log_history
            if "loss" in entry
        ]
        entry: dict[str, Any] = {
            "step": state.global_step,
            "fraction": state.global_step / state.max_steps,
            "train_loss": losses[-1]["loss"] if losses else None,
        }
        if self._registry is not None:
            evaluation = evaluate_logits(
                model,
                self._tokenizer,
                self._registry,
                told=self._told,
                prompt_format=self._prompt_format,
            ).to_json()
            entry["chance"] = evaluation["chance"]
            entry["depths"] = evaluation["depths"]
            entry["told"] = evaluation["told"]
            entry["accuracy"] = {f["name"]: f["accuracy"] for f in evaluation["functions"]}
        self._entries.append(entry)
        write_json(self._output_dir / LOSS_FILE, losses)
        write_json(self._output_dir / SUMMARY_FILE, self._entries)
        write_text(self._output_dir / f"checkpoint-{state.global_step}" / WHOLE_MARK, "")
