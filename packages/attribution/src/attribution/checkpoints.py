"""Two checkpoints of one model, checked once."""

from collections.abc import Sequence
from dataclasses import dataclass

import torch
from transformers import PreTrainedModel

from attribution.decoder import num_layers_of, vocabulary_size_of
from attribution.errors import AttributionError
from attribution.examples import Example


@dataclass(frozen=True)
class Checkpoints:
    """An old and a new checkpoint whose hidden states can be compared entry by entry.

    Attributes:
        old: before the training in question.
        new: after it.

    Raises:
        AttributionError: where they differ in architecture, size, vocabulary, precision or device,
            or a parameter is not finite, or the precision is below float32.
    """

    old: PreTrainedModel
    new: PreTrainedModel

    def __post_init__(self) -> None:
        facts = [_facts(model) for model in (self.old, self.new)]
        for name, old in facts[0].items():
            if facts[1][name] != old:
                raise AttributionError(
                    f"expected two checkpoints of one model; their {name} differs: "
                    f"old {old}, new {facts[1][name]}"
                )
        check_precision(self.new)
        for which, model in (("old", self.old), ("new", self.new)):
            for name, parameter in model.named_parameters():
                # One number for all entries: infinities and NaN survive a sum of absolute values.
                if not torch.isfinite(parameter.detach().abs().max()):
                    raise AttributionError(f"{name} of the {which} checkpoint is not finite")

    @property
    def device(self) -> torch.device:
        """Where both are."""
        return self.new.device

    @property
    def num_layers(self) -> int:
        """L, the number of blocks; layers count from 0, the embeddings, to L."""
        return num_layers_of(self.new)


def _facts(model: PreTrainedModel) -> dict[str, object]:
    config = model.config.get_text_config()
    return {
        "architecture": type(model).__name__,
        "number of layers": num_layers_of(model),
        "hidden size": config.hidden_size,
        "vocabulary size": vocabulary_size_of(model),
        "precision": model.dtype,
        "device": model.device,
    }


def check_precision(model: PreTrainedModel) -> None:
    """Refuse a model below float32.

    Raises:
        AttributionError: on one.
    """
    if model.dtype not in (torch.float32, torch.float64):
        raise AttributionError(
            f"expected checkpoints in float32, which gradients and small changes need, "
            f"got {model.dtype}; load them with dtype=torch.float32"
        )


def resolve_layers(layers: Sequence[int] | None, num_layers: int) -> tuple[int, ...]:
    """The layers asked for, negative ones counted from the end; None means 1 to L.

    Raises:
        AttributionError: on none, one twice, or one that the model does not have.
    """
    if layers is None:
        return tuple(range(1, num_layers + 1))
    chosen = tuple(layer + num_layers + 1 if layer < 0 else layer for layer in layers)
    if (
        not chosen
        or len(set(chosen)) != len(chosen)
        or not set(chosen) <= set(range(num_layers + 1))
    ):
        raise AttributionError(
            f"expected layers between 0 (embeddings) and {num_layers} (normalised output), each "
            f"once and at least one, got {list(layers)}"
        )
    return chosen


def check_examples(examples: Sequence[Example], model: PreTrainedModel, what: str) -> None:
    """Refuse an empty set and token ids that the model does not have.

    Raises:
        AttributionError: naming the example.
    """
    if not examples:
        raise AttributionError(f"expected at least one {what}, got none")
    vocabulary_size = vocabulary_size_of(model)
    for index, example in enumerate(examples):
        if min(example.token_ids) < 0 or max(example.token_ids) >= vocabulary_size:
            raise AttributionError(
                f"{what} {index}: expected token ids from 0 to {vocabulary_size - 1}, got "
                f"{min(example.token_ids)} to {max(example.token_ids)}"
            )
