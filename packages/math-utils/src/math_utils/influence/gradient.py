"""Per-example gradients of the layers that tell examples apart: input embedding and LM head.

Or of any other :class:`~math_utils.influence.config.InfluenceTarget`. The loss is the summed
cross-entropy of an example in nats; labels of −100 and padding carry nothing. Nothing is clipped
or normalised, on any path: every number is a derivative.
"""

from collections.abc import Iterator, Mapping
from contextlib import ExitStack

import torch
from torch import nn

from math_utils._typing import Float, Tensor
from math_utils.capture import CapturedLookup, CapturedPair, capture_lookups, frozen
from math_utils.causal_lm import HeadUse, find_head, label_losses, token_batch
from math_utils.curvature.gradients import backward_pass
from math_utils.errors import InfluenceError, NonFiniteError
from math_utils.influence.base import (
    Batch,
    EmbeddingExtractor,
    Loader,
    check_labelled,
    token_batches,
)
from math_utils.influence.config import InfluenceConfig
from math_utils.influence.hadamard import RandomizedHadamardTransform
from math_utils.influence.layer_gradients import (
    Factored,
    LayerGradients,
    MatrixGradients,
    join,
    row_blocks,
)
from math_utils.influence.targets import find_target_layers, if_there, layer_shapes
from math_utils.influence.vocabulary_gradients import (
    EmbeddingGradients,
    HeadGradients,
    HeadPositions,
    TiedGradients,
    output_weight,
)
from math_utils.language_modeling import TokenBatch

_FORMED_ELEMENTS = 1 << 27
"""Gradient entries of a batch formed at once before they are projected."""


class DiscriminativeGradientExtractor(EmbeddingExtractor):
    """Per-example gradients of a target of a causal language model.

    A gradient is the concatenation of its layers in the order of :attr:`layers`, each flattened
    row by row from [rows, cols]: [vocab, width] for the embedding, [outputs, inputs] for linear
    maps and head whatever the layout of their weight, a bias being the last column.

    Args:
        model: a causal language model; never changed.
        config: target and dtype.
        projection_dim: project gradients to so many dimensions by a randomised Hadamard
            transform; None leaves them whole.
        seed: of the projection.

    Raises:
        InfluenceError: if the model does not have the target.
    """

    def __init__(
        self,
        model: nn.Module,
        config: InfluenceConfig | None = None,
        *,
        projection_dim: int | None = None,
        seed: int = 0,
    ) -> None:
        self.model = model
        self.config = config or InfluenceConfig()
        self._found = find_target_layers(model, self.config.target_name)
        wanted = self._found.head
        self._head = wanted if wanted is not None else if_there(find_head, model)
        self.layers: dict[str, tuple[int, int]] = layer_shapes(self._found)
        self.gradient_dim = sum(rows * cols for rows, cols in self.layers.values())
        self.projection: RandomizedHadamardTransform | None = None
        if projection_dim is not None:
            self.projection = RandomizedHadamardTransform(
                self.gradient_dim, projection_dim, seed=seed
            )

    @property
    def embedding_dim(self) -> int:
        """Width of a gradient, after projection where there is one."""
        return self.gradient_dim if self.projection is None else self.projection.output_dim

    @property
    def share_of_parameters(self) -> float:
        """Entries of the gradient over the model's parameters, shared weights counted once."""
        return self.gradient_dim / sum(p.numel() for p in self.model.parameters())

    def compute_batch_embeddings(self, batch: Batch) -> Float[Tensor, "batch dim"]:
        """The (projected) gradients of one batch."""
        return self.compute_batch_gradients(batch)

    def compute_batch_gradients(self, batch: Batch) -> Float[Tensor, "batch dim"]:
        """∂L_n/∂θ of every example, in nats per unit weight, formed: batch × dim of memory.

        Raises:
            InfluenceError: on a malformed batch or an example without labels.
            NonFiniteError: if a loss or a gradient is not finite.
        """
        tokens = token_batch(batch)
        check_labelled(tokens, "batch")
        return self._formed(tokens)

    def iterate_gradients(self, loader: Loader) -> Iterator[Float[Tensor, "batch dim"]]:
        """The (projected) gradients of each batch of a loader in turn."""
        for tokens in token_batches(loader, "loader"):
            yield self._formed(tokens)

    def compute_aggregated_gradient(
        self, loader: Loader, reduction: str = "mean"
    ) -> Float[Tensor, " dim"]:
        """The gradient of the loss of all examples together, without forming any one's.

        Args:
            loader: the examples.
            reduction: "sum" over examples, or "mean": the sum over their number, however they
                are batched.

        Raises:
            InfluenceError: on an empty loader or another reduction.
        """
        if reduction not in ("mean", "sum"):
            raise InfluenceError(f'expected reduction "mean" or "sum", got {reduction!r}')
        total: dict[str, Tensor] = {}
        num_examples = 0
        for tokens in token_batches(loader, "loader"):
            num_examples += len(tokens.input_ids)
            for name, layer in self.capture(tokens).items():
                if name not in total:
                    shape = (layer.num_rows, layer.num_cols)
                    total[name] = torch.zeros(shape, dtype=self.config.dtype, device=layer.device)
                ones = total[name].new_ones(1, layer.num_examples)
                for start, stop in row_blocks(layer, num_queries=1):
                    total[name][start:stop] += layer.block(start, stop).combine(ones)[0]
        flat = torch.cat([total[name].flatten() for name in self.layers])
        if reduction == "mean":
            flat /= num_examples
        return flat if self.projection is None else self.projection.project(flat)

    def gather(
        self, loader: Loader, name: str, *, max_samples: int | None = None
    ) -> dict[str, LayerGradients]:
        """The gradients of all examples of a loader by layer, unformed.

        Memory is that of the layers' inputs and output gradients: examples × positions × (rows +
        cols) for linear maps (or examples × rows × cols where that is less), examples × positions
        × width for embedding and head.

        Args:
            loader: the examples.
            name: what it is, for messages.
            max_samples: stop after so many.

        Raises:
            InfluenceError: on an empty loader, a malformed batch or an example without labels.
        """
        batches = token_batches(loader, name, max_samples=max_samples)
        parts = [self.capture(tokens) for tokens in batches]
        return {layer: join([part[layer] for part in parts]) for layer in self.layers}

    def capture(self, tokens: TokenBatch) -> dict[str, LayerGradients]:
        """One forward pass, and a backward pass where more than the head is wanted.

        Args:
            tokens: right-padded, every example with a label.

        Raises:
            NonFiniteError: if a loss or a gradient is not finite, with the example and the layer.
            InfluenceError: if embedding or head do something besides looking up and multiplying.
        """
        tokens = tokens.to(next(self.model.parameters()).device)
        pairs: dict[str, Factored] = {}
        lookups: list[CapturedLookup] = []
        uses: list[HeadUse] = []

        def objective(model: nn.Module, batch: TokenBatch) -> Tensor:
            losses, use = label_losses(model, batch, head=self._head and self._head[1])
            if use is not None:
                uses.append(use)
            return losses

        def keep(pair: CapturedPair) -> None:
            pairs[pair.name] = Factored(pair.inputs, pair.output_gradients, pair.lengths)

        with ExitStack() as stack:
            stack.enter_context(frozen(self.model))
            if self._found.embedding is not None:
                stack.enter_context(
                    capture_lookups(
                        self._found.embedding[1],
                        tokens.attention_mask,
                        lookups.append,
                        dtype=self.config.dtype,
                    )
                )
            backward_pass(
                self.model, self._found.maps, tokens, objective, keep, dtype=self.config.dtype
            )
            return self._layers_of(tokens, pairs, lookups, uses)

    def _layers_of(
        self,
        tokens: TokenBatch,
        pairs: Mapping[str, Factored],
        lookups: list[CapturedLookup],
        uses: list[HeadUse],
    ) -> dict[str, LayerGradients]:
        layers: dict[str, LayerGradients] = {}
        embedding = head = None
        if self._found.embedding is not None:
            embedding = self._embedding_gradients(tokens, lookups)
            layers[embedding.name] = embedding
        if self._found.head is not None:
            head = self._head_gradients(tokens, uses[0])
            layers[head.name] = head
        if self._found.is_tied and head is not None and embedding is not None:
            layers = {embedding.name: TiedGradients(head, embedding)}
        for name, linear_map in self._found.maps.items():
            if name in pairs:
                layers[name] = MatrixGradients(name, [pairs[name]])
            else:
                # A routed part of the model may not have run on this batch.
                shape = (len(tokens.input_ids), linear_map.d_out, linear_map.d_in)
                zeros = torch.zeros(shape, dtype=self.config.dtype, device=tokens.input_ids.device)
                layers[name] = MatrixGradients(name, [zeros])
        return layers

    def _embedding_gradients(
        self, tokens: TokenBatch, lookups: list[CapturedLookup]
    ) -> EmbeddingGradients:
        assert self._found.embedding is not None
        name, module = self._found.embedding
        if module.scale_grad_by_freq or not all(one.is_plain for one in lookups):
            raise InfluenceError(
                f"{name}: expected an embedding that looks up rows of its weight and does nothing "
                "else, but its output or gradient is scaled; choose a target without it"
            )
        for one in lookups:
            finite = one.output_gradients.isfinite().all(dim=1)
            if not finite.all():
                row = int(one.example_of_token[int((~finite).nonzero()[0])])
                example = int(tokens.example_keys[row])
                raise NonFiniteError(f"the output gradient of {name}", example)
        return EmbeddingGradients.from_positions(
            name,
            torch.cat([one.ids for one in lookups]),
            torch.cat([one.output_gradients for one in lookups]),
            torch.cat([one.example_of_token for one in lookups]),
            num_examples=len(tokens.input_ids),
            num_rows=module.num_embeddings,
            padding_idx=module.padding_idx,
        )

    def _head_gradients(self, tokens: TokenBatch, use: HeadUse) -> HeadGradients:
        assert self._found.head is not None
        name, module = self._found.head
        if not use.are_logits:
            raise InfluenceError(
                f"{name}: expected the model's logits to be the outputs of its head, but it "
                "transforms them afterwards (scaling, soft caps); choose a target without the head"
            )
        weight = output_weight(module)
        inputs, outputs = use.inputs[0].to(self.config.dtype), use.outputs[0]
        if getattr(module, "bias", None) is not None:
            inputs = nn.functional.pad(inputs, (0, 1), value=1.0)
        if weight.dtype == self.config.dtype:
            normalizers = outputs.logsumexp(dim=1)
        else:
            normalizers = weight.normalizers(inputs)
        predicts = tokens.label_positions()
        targets = tokens.labels[:, 1:][predicts[:, :-1]].to(inputs.device)
        lengths = tuple(predicts.sum(dim=1).tolist())
        return HeadGradients(name, weight, HeadPositions(inputs, targets, normalizers, lengths))

    def _formed(self, tokens: TokenBatch) -> Tensor:
        num_examples = len(tokens.input_ids)
        if self.projection is None or num_examples * self.gradient_dim <= _FORMED_ELEMENTS:
            return self._formed_at_once(tokens)
        return torch.cat([self._formed_at_once(_row(tokens, n)) for n in range(num_examples)])

    def _formed_at_once(self, tokens: TokenBatch) -> Tensor:
        layers = self.capture(tokens)
        whole = torch.cat([layers[name].dense().flatten(1) for name in self.layers], dim=1)
        return whole if self.projection is None else self.projection.project(whole)


def _row(tokens: TokenBatch, row: int) -> TokenBatch:
    own = slice(row, row + 1)
    return TokenBatch(
        tokens.input_ids[own],
        tokens.attention_mask[own],
        tokens.labels[own],
        tokens.example_keys[own],
    )
