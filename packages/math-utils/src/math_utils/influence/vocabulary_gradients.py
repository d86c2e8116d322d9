"""Gradients of the weights that have a row per token of the vocabulary, never formed as a whole.

See :mod:`math_utils.influence.layer_gradients` for what is kept of each.
"""

from collections.abc import Sequence
from dataclasses import dataclass
from itertools import chain

import torch
from torch import nn

from math_utils._typing import Float, Int, Tensor
from math_utils.errors import InfluenceError
from math_utils.influence.layer_gradients import DenseBlock, GradientBlock, LayerGradients, form

_SAMPLED_ENTRIES = 256


@dataclass(frozen=True, eq=False)
class SparseBlock(GradientBlock):
    """Rows of an embedding: most are zero for most examples.

    Attributes:
        rows: where an entry stands among the block's rows.
        gradients: the entries; an example has one for a row at the most.
        examples: whose they are.
        num_examples: of all.
        num_rows: of the block.
    """

    rows: Int[Tensor, " entry"]
    gradients: Float[Tensor, "entry cols"]
    examples: Int[Tensor, " entry"]
    num_examples: int
    num_rows: int

    def dense(self) -> Float[Tensor, "example rows cols"]:
        """The rows themselves."""
        shape = (self.num_examples, self.num_rows, self.gradients.shape[1])
        out = self.gradients.new_zeros(shape)
        out[self.examples, self.rows] = self.gradients
        return out

    def dot(self, matrices: Float[Tensor, "query rows cols"]) -> Float[Tensor, "query example"]:
        """⟨M_q, G_n⟩ over these rows, from the entries alone."""
        out = matrices.new_zeros(len(matrices), self.num_examples)
        for own, one in zip(out, matrices, strict=True):
            products = torch.linalg.vecdot(one[self.rows], self.gradients)
            own.index_add_(0, self.examples, products)
        return out

    def combine(
        self, coefficients: Float[Tensor, "query example"]
    ) -> Float[Tensor, "query rows cols"]:
        """Σ_n c_qn G_n, from the entries alone."""
        shape = (len(coefficients), self.num_rows, self.gradients.shape[1])
        out = self.gradients.new_zeros(shape)
        for own, one in zip(out, coefficients, strict=True):
            own.index_add_(0, self.rows, one[self.examples][:, None] * self.gradients)
        return out

    def squared_norms(self) -> Float[Tensor, " example"]:
        """‖G_n‖² over these rows, from the entries alone."""
        out = self.gradients.new_zeros(self.num_examples)
        return out.index_add_(0, self.examples, torch.linalg.vecdot(self.gradients, self.gradients))


class HeadWeight:
    """The matrix of an output head as it was when gradients were captured, and its softmax.

    It holds a reference, not a copy; :meth:`rows` raises if the weight was changed since.
    """

    def __init__(self, weight: Tensor, bias: Tensor | None, *, transposed: bool) -> None:
        self._weight, self._bias, self._transposed = weight, bias, transposed
        self._state = self._fingerprint()

    @property
    def num_rows(self) -> int:
        """The vocabulary."""
        return self._weight.shape[1] if self._transposed else self._weight.shape[0]

    @property
    def dtype(self) -> torch.dtype:
        """The weight's own."""
        return self._weight.dtype

    def rows(self, start: int, stop: int, dtype: torch.dtype) -> Float[Tensor, "rows cols"]:
        """Rows of [W, bias], cast.

        Raises:
            InfluenceError: if the weight has changed.
        """
        weight = self._weight.detach()
        own = (weight[:, start:stop].T if self._transposed else weight[start:stop]).to(dtype)
        if self._bias is None:
            return own
        return torch.cat([own, self._bias.detach()[start:stop, None].to(dtype)], dim=1)

    def normalizers(
        self, inputs: Float[Tensor, "token cols"], *, height: int = 4096
    ) -> Float[Tensor, " token"]:
        """Log Σ_v exp(w_v · a_t), a block of the vocabulary at a time."""
        total = inputs.new_full((len(inputs),), -torch.inf)
        for start in range(0, self.num_rows, height):
            rows = self.rows(start, min(start + height, self.num_rows), inputs.dtype)
            total = torch.logaddexp(total, (inputs @ rows.T).logsumexp(dim=1))
        return total

    def check_unchanged(self) -> None:
        """Raise an InfluenceError where the weight is not what it was when captured."""
        (versions, sample), (now, entries) = self._state, self._fingerprint()
        if versions != now or not torch.equal(sample, entries):
            raise InfluenceError(
                "the head's weights have changed since the gradients were captured, and the two do "
                "not fit together; call cache_probe again after a training step"
            )

    def _fingerprint(self) -> tuple[tuple[int, ...], Tensor]:
        flat = self._weight.detach().reshape(-1)
        stride = max(1, flat.numel() // _SAMPLED_ENTRIES)
        tensors = [self._weight] if self._bias is None else [self._weight, self._bias]
        return tuple(tensor._version for tensor in tensors), flat[::stride].clone()


@dataclass(frozen=True, eq=False)
class HeadPositions:
    """The positions of some examples that predict a label.

    Attributes:
        inputs: a_t, with a last entry 1 where the head has a bias.
        targets: the labels.
        normalizers: log of the sum of exponentials of the logits.
        lengths: positions per example.
    """

    inputs: Float[Tensor, "token cols"]
    targets: Int[Tensor, " token"]
    normalizers: Float[Tensor, " token"]
    lengths: tuple[int, ...]


class HeadGradients(LayerGradients):
    """Gradients of an output head, whose δ_t are computed again for each block of rows."""

    def __init__(self, name: str, weight: HeadWeight, positions: HeadPositions) -> None:
        self.name, self.weight, self.positions = name, weight, positions
        self.num_examples = len(positions.lengths)
        self.num_rows, self.num_cols = weight.num_rows, positions.inputs.shape[1]

    @classmethod
    def join(cls, parts: Sequence["HeadGradients"]) -> "HeadGradients":
        """The examples of all parts in a row."""
        own = [part.positions for part in parts]
        joined = HeadPositions(
            torch.cat([one.inputs for one in own]),
            torch.cat([one.targets for one in own]),
            torch.cat([one.normalizers for one in own]),
            tuple(chain.from_iterable(one.lengths for one in own)),
        )
        return cls(parts[0].name, parts[0].weight, joined)

    @property
    def cost_per_row(self) -> int:
        """Entries that forming one row of all examples takes."""
        return self.num_examples * self.num_cols + len(self.positions.inputs)

    @property
    def sample(self) -> Tensor:
        """A tensor on the gradients\' device and of their dtype."""
        return self.positions.inputs

    def block(self, start: int, stop: int) -> DenseBlock:
        """Rows ``start`` to ``stop`` of all gradients.

        Raises:
            InfluenceError: if the head's weights have changed since the capture.
        """
        self.weight.check_unchanged()
        own = self.positions
        rows = self.weight.rows(start, stop, own.inputs.dtype)
        deltas = torch.addmm(own.normalizers[:, None], own.inputs, rows.T, beta=-1).exp_()
        inside = ((own.targets >= start) & (own.targets < stop)).nonzero()[:, 0]
        deltas[inside, own.targets[inside] - start] -= 1
        return DenseBlock(form(own.inputs, deltas, own.lengths))


class EmbeddingGradients(LayerGradients):
    """Gradients of an input embedding: the rows that occur, sorted by row."""

    def __init__(
        self,
        name: str,
        rows: Int[Tensor, " entry"],
        gradients: Float[Tensor, "entry cols"],
        examples: Int[Tensor, " entry"],
        *,
        num_examples: int,
        num_rows: int,
    ) -> None:
        order = torch.argsort(rows, stable=True)
        self.name, self.num_examples, self.num_rows = name, num_examples, num_rows
        self.num_cols = gradients.shape[1]
        self._rows, self._gradients, self._examples = (
            rows[order],
            gradients[order],
            examples[order],
        )

    @classmethod
    def from_positions(
        cls,
        name: str,
        ids: Int[Tensor, " token"],
        output_gradients: Float[Tensor, "token cols"],
        example_of_token: Int[Tensor, " token"],
        *,
        num_examples: int,
        num_rows: int,
        padding_idx: int | None = None,
    ) -> "EmbeddingGradients":
        """Add up the positions of an example that look up the same row.

        The row ``padding_idx`` gets no gradient, as in ``torch.nn.Embedding``: training never
        changes it.
        """
        if padding_idx is not None:
            kept = ids != padding_idx
            ids, output_gradients = ids[kept], output_gradients[kept]
            example_of_token = example_of_token[kept]
        keys, place = torch.unique(example_of_token * num_rows + ids, return_inverse=True)
        summed = output_gradients.new_zeros(len(keys), output_gradients.shape[1])
        summed.index_add_(0, place, output_gradients)
        return cls(
            name,
            keys % num_rows,
            summed,
            keys // num_rows,
            num_examples=num_examples,
            num_rows=num_rows,
        )

    @classmethod
    def join(cls, parts: Sequence["EmbeddingGradients"]) -> "EmbeddingGradients":
        """The examples of all parts in a row."""
        first, examples = 0, []
        for part in parts:
            examples.append(part._examples + first)
            first += part.num_examples
        return cls(
            parts[0].name,
            torch.cat([part._rows for part in parts]),
            torch.cat([part._gradients for part in parts]),
            torch.cat(examples),
            num_examples=first,
            num_rows=parts[0].num_rows,
        )

    @property
    def cost_per_row(self) -> int:
        """Entries that forming one row of all examples takes: blocks are not formed."""
        return 1

    @property
    def sample(self) -> Tensor:
        """A tensor on the gradients\' device and of their dtype."""
        return self._gradients

    def block(self, start: int, stop: int) -> SparseBlock:
        """Rows ``start`` to ``stop`` of all gradients."""
        bounds = torch.tensor([start, stop], device=self.device)
        low, high = torch.searchsorted(self._rows, bounds).tolist()
        return SparseBlock(
            self._rows[low:high] - start,
            self._gradients[low:high],
            self._examples[low:high],
            num_examples=self.num_examples,
            num_rows=stop - start,
        )


class TiedGradients(LayerGradients):
    """Gradients of one weight that is both head and embedding: the sum of the two parts."""

    def __init__(self, head: HeadGradients, embedding: EmbeddingGradients) -> None:
        self.name, self.head, self.embedding = embedding.name, head, embedding
        self.num_examples, self.num_rows = head.num_examples, head.num_rows
        self.num_cols = head.num_cols

    @classmethod
    def join(cls, parts: Sequence["TiedGradients"]) -> "TiedGradients":
        """The examples of all parts in a row."""
        return cls(
            HeadGradients.join([part.head for part in parts]),
            EmbeddingGradients.join([part.embedding for part in parts]),
        )

    @property
    def cost_per_row(self) -> int:
        """Entries that forming one row of all examples takes."""
        return self.head.cost_per_row

    @property
    def sample(self) -> Tensor:
        """A tensor on the gradients\' device and of their dtype."""
        return self.head.sample

    def block(self, start: int, stop: int) -> DenseBlock:
        """Rows ``start`` to ``stop`` of all gradients."""
        formed, looked_up = self.head.block(start, stop).tensor, self.embedding.block(start, stop)
        # The head's last column may be a bias, which the embedding does not have.
        formed[looked_up.examples, looked_up.rows, : looked_up.gradients.shape[1]] += (
            looked_up.gradients
        )
        return DenseBlock(formed)


def output_weight(head: nn.Module) -> HeadWeight:
    """The matrix of a head, which is ``nn.Linear`` or shaped like GPT-2's Conv1D."""
    bias = getattr(head, "bias", None)
    return HeadWeight(
        head.get_parameter("weight"),
        bias if isinstance(bias, Tensor) else None,
        transposed=not isinstance(head, nn.Linear),
    )
