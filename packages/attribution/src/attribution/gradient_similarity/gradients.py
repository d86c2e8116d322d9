"""The gradient of one example's loss, with respect to every parameter tensor."""

import hashlib
from collections.abc import Sequence
from dataclasses import dataclass

import torch
from jaxtyping import Float
from math_utils.language_modeling import IGNORED_LABEL
from torch import Tensor, nn

from attribution.errors import AttributionError
from attribution.gradient_similarity.layout import FlatLayout, parameter_layout
from attribution.modes import evaluation_mode

_BYTES_AT_ONCE = 1 << 26


@dataclass(frozen=True)
class EncodedExample:
    """One example as the model reads it.

    Attributes:
        input_ids: token ids, unpadded.
        labels: the token expected at each position, -100 where none counts; as many as ids.
            Position t predicts the label at t + 1, so the first label never counts.
        key: its numeric id, by which results and errors name it.
    """

    input_ids: tuple[int, ...]
    labels: tuple[int, ...]
    key: int = 0

    @property
    def num_labels(self) -> int:
        """Number of predicted tokens."""
        return sum(label != IGNORED_LABEL for label in self.labels[1:])

    def digest(self) -> str:
        """SHA-256 of key, ids and labels."""
        content = repr((self.key, self.input_ids, self.labels))
        return hashlib.sha256(content.encode()).hexdigest()


class ExampleGradients:
    """∇L of one example at a time, flat: L is the summed cross-entropy of its labels in nats.

    The model is run in evaluation mode on a batch of one, so that no other example and no padding
    has any effect; afterwards its mode is as before, and its ``.grad`` fields are never touched.
    Parameters that the loss does not reach (experts without a token) have gradient 0.

    Args:
        model: a Hugging Face causal language model; parameters that do not require a gradient
            are left out, tied ones count once.

    Attributes:
        layout: of the flat gradients.
        count: how many gradients were computed.
    """

    def __init__(self, model: nn.Module) -> None:
        self.model = model
        self.layout: FlatLayout = parameter_layout(model)
        self.count = 0

    def __call__(self, example: EncodedExample) -> Float[Tensor, " width"]:
        """The gradient, on the device of the model.

        Raises:
            AttributionError: if the example has no label or its gradient is not finite.
        """
        if len(example.input_ids) != len(example.labels) or not example.num_labels:
            raise AttributionError(
                f"example {example.key}: expected as many labels as ids and at least one that "
                f"counts, got {len(example.labels)} labels, {example.num_labels} of them counting"
            )
        named = {n: p for n, p in self.model.named_parameters() if p.requires_grad}
        device = next(iter(named.values())).device
        with evaluation_mode(self.model), torch.enable_grad():
            loss = self._loss(example, device)
            found = torch.autograd.grad(loss, list(named.values()), allow_unused=True)
        flat = self.layout.new_vector(device)
        for (name, part), gradient in zip(self.layout.parts(flat), found, strict=True):
            if gradient is not None:
                part.copy_(gradient.reshape(-1))
                if not torch.isfinite(part).all():
                    raise AttributionError(
                        f"example {example.key}: the gradient of {name} is not finite"
                    )
        self.count += 1
        return flat

    def _loss(self, example: EncodedExample, device: torch.device) -> Tensor:
        input_ids = torch.tensor([example.input_ids], device=device)
        targets = torch.tensor(example.labels[1:], device=device)
        logits = self.model(input_ids=input_ids, use_cache=False).logits[0, :-1]
        logits = logits.to(torch.promote_types(logits.dtype, torch.float32))
        return torch.nn.functional.cross_entropy(
            logits, targets, ignore_index=IGNORED_LABEL, reduction="sum"
        )


def model_fingerprint(model: nn.Module) -> str:
    """SHA-256 of a model's parameters: names, shapes and every byte."""
    digest = hashlib.sha256()
    for name, parameter in model.named_parameters():
        digest.update(f"{name} {list(parameter.shape)} {parameter.dtype}\n".encode())
        flat = parameter.detach().reshape(-1).contiguous().view(torch.uint8)
        for run in flat.split(_BYTES_AT_ONCE):
            digest.update(run.cpu().numpy())
    return digest.hexdigest()


def data_fingerprint(examples: Sequence[EncodedExample]) -> str:
    """SHA-256 of examples in their order."""
    return hashlib.sha256("\n".join(one.digest() for one in examples).encode()).hexdigest()
