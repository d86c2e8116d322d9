"""Gradients of many examples with respect to one weight, kept without forming them.

The gradient of example n with respect to a matrix of R rows and C columns is

    linear map:  G_n = Σ_t δ_t a_tᵀ            (a_t, δ_t) as captured, or G_n where that is smaller
    head:        the same, with δ_t = softmax(W a_t) − onehot(y_t): kept are a_t and y_t only
    embedding:   G_n = Σ_t e_{id_t} ε_tᵀ        kept are the rows that occur in the example
    tied weight: the sum of the last two: it is one weight

so that for N examples of T positions, memory is O(N T (R + C)), for heads and embeddings
O(N T C): nothing has the size of the vocabulary times the number of examples. Everything that
influence needs (inner products, norms, weighted sums) is a sum over rows of the matrix, and is
computed for a block of rows of all examples at a time, formed when it is needed.
"""

from abc import ABC, abstractmethod
from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from itertools import chain

import torch

from math_utils._typing import Float, Tensor
from math_utils.curvature.gradients import gradient_chunks

BLOCK_ELEMENTS = {"cpu": 1 << 22, "cuda": 1 << 27}
"""Entries of a block of rows formed at once; a block has one row at the least."""


class GradientBlock(ABC):
    """Some rows of the gradients of all examples."""

    @abstractmethod
    def dense(self) -> Float[Tensor, "example rows cols"]:
        """The rows themselves."""

    def dot(self, matrices: Float[Tensor, "query rows cols"]) -> Float[Tensor, "query example"]:
        """⟨M_q, G_n⟩ over these rows."""
        products: Tensor = matrices.flatten(1) @ self.dense().flatten(1).T
        return products

    def combine(
        self, coefficients: Float[Tensor, "query example"]
    ) -> Float[Tensor, "query rows cols"]:
        """Σ_n c_qn G_n."""
        own = self.dense()
        sums: Tensor = coefficients @ own.flatten(1)
        shaped: Tensor = sums.unflatten(1, own.shape[1:])
        return shaped

    def squared_norms(self) -> Float[Tensor, " example"]:
        """‖G_n‖² over these rows."""
        own = self.dense().flatten(1)
        squares: Tensor = torch.linalg.vecdot(own, own)
        return squares


@dataclass(frozen=True, eq=False)
class DenseBlock(GradientBlock):
    """Rows that were formed."""

    tensor: Float[Tensor, "example rows cols"]

    def dense(self) -> Float[Tensor, "example rows cols"]:
        """The rows themselves."""
        return self.tensor


class LayerGradients(ABC):
    """The gradients of ``num_examples`` examples with respect to one weight, rows × cols."""

    name: str
    num_examples: int
    num_rows: int
    num_cols: int

    @abstractmethod
    def block(self, start: int, stop: int) -> GradientBlock:
        """Rows ``start`` to ``stop`` of all gradients."""

    @property
    @abstractmethod
    def cost_per_row(self) -> int:
        """Entries that forming one row of all examples takes."""

    @property
    @abstractmethod
    def sample(self) -> Tensor:
        """A tensor on the gradients' device and of their dtype."""

    @property
    def device(self) -> torch.device:
        """Where the gradients are."""
        return self.sample.device

    @property
    def dtype(self) -> torch.dtype:
        """What the gradients are computed in."""
        return self.sample.dtype

    @property
    def num_entries(self) -> int:
        """Entries of one gradient."""
        return self.num_rows * self.num_cols

    def dense(self) -> Float[Tensor, "example rows cols"]:
        """All gradients, formed: examples × entries of memory."""
        return self.block(0, self.num_rows).dense()


def row_blocks(
    *layers: LayerGradients, num_queries: int = 0, max_elements: int | None = None
) -> Iterator[tuple[int, int]]:
    """Cut the rows of a weight so that a block of all ``layers`` and queries fits the budget.

    Args:
        layers: gradients of different examples with respect to the same weight.
        num_queries: matrices of the same size that are held beside a block.
        max_elements: the budget; ``BLOCK_ELEMENTS`` of the device if None.
    """
    first = layers[0]
    budget = max_elements or BLOCK_ELEMENTS.get(first.device.type, BLOCK_ELEMENTS["cpu"])
    cost = sum(layer.cost_per_row for layer in layers) + num_queries * first.num_cols
    height = max(1, min(first.num_rows, budget // max(1, cost)))
    for start in range(0, first.num_rows, height):
        yield start, min(start + height, first.num_rows)


@dataclass(frozen=True, eq=False)
class Factored:
    """Some examples' (a_t, δ_t), example by example."""

    inputs: Float[Tensor, "token cols"]
    output_gradients: Float[Tensor, "token rows"]
    lengths: tuple[int, ...]


class MatrixGradients(LayerGradients):
    """Gradients of a linear map; each part is formed or factored, whichever is smaller."""

    def __init__(self, name: str, parts: Sequence[Factored | Tensor]) -> None:
        self.name = name
        self._parts = [_smaller(part) for part in parts]
        first = self._parts[0]
        if isinstance(first, Tensor):
            self.num_rows, self.num_cols = first.shape[1:]
        else:
            self.num_rows = first.output_gradients.shape[1]
            self.num_cols = first.inputs.shape[1]
        self._num_tokens = sum(len(p.inputs) for p in self._parts if isinstance(p, Factored))
        self.num_examples = sum(
            len(part) if isinstance(part, Tensor) else len(part.lengths) for part in self._parts
        )

    @classmethod
    def join(cls, parts: Sequence["MatrixGradients"]) -> "MatrixGradients":
        """The examples of all parts in a row."""
        return cls(parts[0].name, list(chain.from_iterable(part._parts for part in parts)))

    @property
    def cost_per_row(self) -> int:
        """Entries that forming one row of all examples takes."""
        return self.num_examples * self.num_cols + self._num_tokens

    @property
    def sample(self) -> Tensor:
        """A tensor on the gradients\' device and of their dtype."""
        first = self._parts[0]
        return first if isinstance(first, Tensor) else first.inputs

    def block(self, start: int, stop: int) -> DenseBlock:
        """Rows ``start`` to ``stop`` of all gradients."""
        formed = [
            part[:, start:stop]
            if isinstance(part, Tensor)
            else form(part.inputs, part.output_gradients[:, start:stop], part.lengths)
            for part in self._parts
        ]
        return DenseBlock(formed[0] if len(formed) == 1 else torch.cat(formed))


def form(
    inputs: Float[Tensor, "token cols"],
    output_gradients: Float[Tensor, "token rows"],
    lengths: Sequence[int],
) -> Float[Tensor, "example rows cols"]:
    """Σ_t δ_t a_tᵀ of every example."""
    everything = len(lengths) * inputs.shape[1] * output_gradients.shape[1]
    limit = {"cpu": everything, "cuda": everything}
    chunks = gradient_chunks(inputs, output_gradients, lengths, max_elements=limit)
    ((_, formed),) = chunks
    return formed


def _smaller(part: Factored | Tensor) -> Factored | Tensor:
    if isinstance(part, Tensor):
        return part
    (num_tokens, cols), rows = part.inputs.shape, part.output_gradients.shape[1]
    if len(part.lengths) * rows * cols <= num_tokens * (rows + cols):
        return form(part.inputs, part.output_gradients, part.lengths)
    return part


def join(parts: Sequence[LayerGradients]) -> LayerGradients:
    """The examples of all parts in a row; the parts are of one kind and one weight."""
    joined: LayerGradients = type(parts[0]).join(parts)  # type: ignore[attr-defined]
    return joined
