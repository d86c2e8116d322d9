"""One vector per layer and example, and how they are made: what the methods compare."""

from collections.abc import Sequence
from dataclasses import dataclass

import torch
from jaxtyping import Float
from torch import Tensor

from attribution.errors import AttributionError
from attribution.examples import PaddingSide
from attribution.pooling import SpanPooling


@dataclass(frozen=True)
class VectorOptions:
    """Which vectors to take, and how to run the model for them.

    Attributes:
        layers: 0 (embeddings) to L (normalised output), negative ones from the end; None: 1 to L.
        pooling: which positions are averaged, see :func:`attribution.pooling.pooled_positions`.
        batch_size: texts per pass; of no effect on the vectors beyond rounding.
        padding_side: where shorter texts are padded; of no effect either.
        progress: whether to show a progress bar.
    """

    layers: Sequence[int] | None = None
    pooling: SpanPooling = "last"
    batch_size: int = 16
    padding_side: PaddingSide = "right"
    progress: bool = True


DEFAULT_VECTORS = VectorOptions()


@dataclass(frozen=True)
class LayerVectors:
    """Pooled vectors of some examples.

    Attributes:
        values: the vectors, on the CPU.
        layers: the layer of each first index.
        what: what they are, for messages.
    """

    values: Float[Tensor, "layer example hidden"]
    layers: tuple[int, ...]
    what: str

    def check_finite(self) -> "LayerVectors":
        """Itself, or an error that names the first example with a NaN or an infinity.

        Raises:
            AttributionError: on one.
        """
        self._refuse(~torch.isfinite(self.values).all(dim=-1), "is not finite")
        return self

    def check_nonzero(self) -> None:
        """Refuse a vector that is zero: its cosine would be NaN, and no dimension is its largest.

        Raises:
            AttributionError: naming the first such example and its layer.
        """
        self._refuse(
            (self.values == 0).all(dim=-1),
            "is zero and has no direction; compare two different checkpoints, and leave out layers "
            "that training did not change",
        )

    def _refuse(self, bad: Tensor, why: str) -> None:
        if bad.any():
            layer, example = (int(index) for index in bad.nonzero()[0])
            raise AttributionError(
                f"example {example}, layer {self.layers[layer]}: its {self.what} {why}"
            )
