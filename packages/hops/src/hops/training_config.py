"""What a training run is told; kept apart so that ``hops train --help`` loads no torch."""

from pathlib import Path
from typing import Literal

from pydantic import ConfigDict
from pydantic.dataclasses import dataclass

from hops.errors import HopsError
from hops.prompts import PROMPT_FORMAT

SUMMARY_FILE = "checkpoint_evaluation_summary.json"
"""In the output folder: what the model answered at each checkpoint."""
LOSS_FILE = "loss_history.json"
"""In the output folder: the training loss along the steps, in nats per token."""


@dataclass(frozen=True, config=ConfigDict(extra="forbid"))
class TrainConfig:
    """Train a model on documents; evaluate its logits at each checkpoint."""

    model: str
    """A model folder or id, or tiny-olmo2 | tiny-llama to build a small one."""
    dataset_path: Path
    """The training documents (JSONL)."""
    output_dir: Path
    """Gets training_config.json, checkpoint_evaluation_summary.json and final_model/."""
    seed_path: Path | None = None
    """Seed documents (or any documents): the functions evaluated at each checkpoint."""
    tokenizer_data: tuple[Path, ...] = ()
    """Further documents that the tokenizer of a tiny model is trained on."""
    epochs: float = 1.0
    """Passes over the documents."""
    batch_size: int = 16
    """Documents in one step (on each device)."""
    learning_rate: float = 1e-3
    """The peak learning rate of AdamW."""
    schedule: Literal["constant", "cosine"] = "constant"
    """What the learning rate does after warming up."""
    warmup_steps: int = 0
    """Steps of linear warm-up."""
    weight_decay: float = 0.0
    """AdamW's weight decay."""
    adam_beta2: float = 0.999
    """AdamW's rate of forgetting squared gradients."""
    freeze_embeddings: bool = False
    """Keep the input embeddings as they are, so that nothing new is tied to a single token."""
    checkpoint_fraction: float = 0.25
    """A checkpoint is saved and evaluated after each such fraction of the steps."""
    shuffle_training: bool = True
    """Shuffle the documents in each epoch, those of like length together."""
    hop_depth: tuple[int, ...] = ()
    """Train on functions of these depths only (distractors stay); all by default."""
    skip_direct: bool = False
    """Leave out the documents that tell a wrapper's value (`answers: direct`)."""
    max_length: int = 512
    """Tokens of a document that are trained on."""
    precision: Literal["float32", "bfloat16"] = "float32"
    """bfloat16 trains in mixed precision."""
    hidden_size: int = 128
    """The width of a tiny model."""
    num_layers: int = 3
    """The layers of a tiny model."""
    vocab_size: int = 1200
    """The vocabulary of a tiny model, before function tokens."""
    split_numbers: bool = False
    """Whether a tiny model's tokenizer splits numbers into digits."""
    prompt_format: str = PROMPT_FORMAT
    """The prompt of the evaluation."""
    seed: int = 0
    """Seeds the initial weights, the order of the documents and the Trainer."""
    overwrite: bool = False
    """Discard what another run left in the output folder."""

    def check(self) -> None:
        """Say what is out of range.

        Raises:
            HopsError: A value is out of range.
        """
        positive = {
            "epochs": self.epochs,
            "batch_size": self.batch_size,
            "learning_rate": self.learning_rate,
            "max_length": self.max_length - 1,
        }
        for name, value in positive.items():
            if not value > 0:
                raise HopsError(f"{name} is too small: {getattr(self, name)}.")
        if not 0.0 < self.checkpoint_fraction <= 1.0:
            raise HopsError(
                f"checkpoint_fraction must be in (0, 1], got {self.checkpoint_fraction}."
            )
        if not 0.0 <= self.adam_beta2 < 1.0:
            raise HopsError(f"adam_beta2 must be in [0, 1), got {self.adam_beta2}.")
        if self.warmup_steps < 0 or self.weight_decay < 0:
            raise HopsError("warmup_steps and weight_decay must not be negative.")
