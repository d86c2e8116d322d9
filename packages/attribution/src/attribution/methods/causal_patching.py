"""Causal patching: do the dimensions that a document moved carry the change of the answer?

For a document z and a layer, the dimensions with the largest |a_ℓ(z)| are taken from the new
checkpoint into the old one while it reads the query, at the positions asked for. The score is the
share of the full change of the correct answer's margin that this brings about:

    score = (m(patched) − m(old)) / (m(new) − m(old)).

Where the patch stands, by layer ℓ (see :mod:`attribution.decoder`):

- ℓ < L: the old model's blocks above ℓ, its final norm and its head read the patched states.
- ℓ = L, the normalised output: each dimension brings its column of the head along. A logit is a
  sum over dimensions d of W[v, d] · h[d], and a patched dimension contributes the new product, the
  others the old one. So all dimensions of the last layer give the new model's logits exactly,
  whatever training did to the head, and no dimension the old model's. (New states under an old
  head, and the reverse, belong to neither model.)
"""

from collections.abc import Sequence
from dataclasses import dataclass

import torch
from jaxtyping import Bool, Float, Int
from math_utils.language_modeling import TokenBatch
from torch import Tensor
from tqdm import tqdm
from transformers import PreTrainedModel

from attribution.activations import states_by_layer
from attribution.aggregation import Aggregation, aggregate_layers
from attribution.checkpoints import Checkpoints, check_examples, resolve_layers
from attribution.decoder import (
    Objective,
    check_read_out,
    label_logits,
    logit_margins,
    run_decoder,
)
from attribution.errors import AttributionError
from attribution.examples import Example, collate
from attribution.methods.attr_weighted_change import weighted_changes
from attribution.modes import evaluation_mode
from attribution.pooling import SpanPooling, pooled_positions
from attribution.vectors import DEFAULT_VECTORS, VectorOptions


@dataclass(frozen=True)
class PatchOptions:
    """What is patched.

    Attributes:
        percentile: p, the share of the dimensions that a document patches, in (0, 100]; rounded up.
        span: positions of the query at which it is patched: "text", all that predict a token;
            "span", those that predict a token of the answer; "last", the last of these.
        batch_size: patched copies of a query per pass; of no effect beyond rounding.
        progress: whether to show a progress bar.
    """

    percentile: float = 10.0
    span: SpanPooling = "span"
    batch_size: int = 64
    progress: bool = True


DEFAULT_PATCH = PatchOptions()


def causal_patching(
    checkpoints: Checkpoints,
    documents: Sequence[Example],
    queries: Sequence[Example],
    *,
    vectors: VectorOptions = DEFAULT_VECTORS,
    patch: PatchOptions = DEFAULT_PATCH,
    objective: Objective = "loss",
    num_steps: int | None = None,
    aggregation: Aggregation = "mean",
) -> Float[Tensor, "query document"]:
    """Score every document by the share of a query's change that its dimensions carry.

    Args:
        checkpoints: old and new.
        documents: what may have taught the answers.
        queries: what is asked; its span is the answer.
        vectors: layers to sweep, and the pooling and batches of a_ℓ(z).
        patch: how many dimensions, where, and the batches.
        objective: of the gradients in a_ℓ(z).
        num_steps: None or K, as in :func:`attribution.methods.attr_weighted_change`.
        aggregation: over layers.

    Returns:
        The scores. Positive: the patch moves the margin the way that training moved it; 1 is all
        of the change. (For a query that training made worse, that is the way down.)

    Raises:
        AttributionError: on unfit examples, layers or options, a document whose attribution is
            zero, a head with a bias, or a query whose margin did not change.
    """
    attributions = weighted_changes(
        checkpoints, documents, vectors, objective=objective, num_steps=num_steps
    )
    attributions.check_nonzero()
    masks = largest_dimensions(attributions.values, patch.percentile)
    return aggregate_layers(
        patching_scores(checkpoints, masks, queries, attributions.layers, patch), aggregation
    )


def largest_dimensions(
    attributions: Float[Tensor, "layer example hidden"], percentile: float
) -> Bool[Tensor, "layer example hidden"]:
    """True at the top p % of each vector's entries by absolute value, at least one; ties by index.

    Raises:
        AttributionError: on a percentile outside (0, 100].
    """
    if not 0 < percentile <= 100:
        raise AttributionError(f"expected a percentile in (0, 100], got {percentile}")
    # A little less before rounding up: 20 % of 15 is 3, not 4, whatever the last bit.
    count = max(1, -int(-(percentile / 100 * attributions.shape[-1] - 1e-9) // 1))
    order = attributions.abs().argsort(dim=-1, descending=True, stable=True)
    chosen = torch.zeros_like(attributions, dtype=torch.bool)
    return chosen.scatter(-1, order[..., :count], True)


def patching_scores(
    checkpoints: Checkpoints,
    masks: Bool[Tensor, "layer mask hidden"],
    queries: Sequence[Example],
    layers: Sequence[int],
    patch: PatchOptions = DEFAULT_PATCH,
) -> Float[Tensor, "layer query mask"]:
    """The share of each query's change of margin that each set of dimensions carries.

    Masks that occur twice at a layer are run once.

    Args:
        checkpoints: old and new.
        masks: True at the dimensions taken from the new checkpoint, per layer of ``layers``.
        queries: what is asked.
        layers: the layer of each first index of ``masks``.
        patch: positions and batches; its percentile is not used here.

    Raises:
        AttributionError: as :func:`causal_patching`.
    """
    check_examples(queries, checkpoints.new, "query")
    patcher = Patcher(checkpoints, masks, layers, patch)
    found = []
    with tqdm(
        total=len(queries) * patcher.num_runs,
        desc="patches",
        unit="patch",
        disable=not patch.progress,
    ) as bar:
        for index, query in enumerate(queries):
            try:
                found.append(patcher.scores(query))
            except AttributionError as error:
                raise AttributionError(f"query {index}: {error}") from error
            bar.update(patcher.num_runs)
    return torch.stack(found, dim=1)


class Patcher:
    """The same sets of dimensions for one query after another; checked and sorted out once.

    Args:
        checkpoints: old and new.
        masks: as for :func:`patching_scores`.
        layers: the layer of each first index of ``masks``.
        patch: positions and batches.

    Attributes:
        num_runs: patches run for a query, which are as many as differ at each layer.

    Raises:
        AttributionError: on unknown layers, or a head with a bias.
    """

    def __init__(
        self,
        checkpoints: Checkpoints,
        masks: Bool[Tensor, "layer mask hidden"],
        layers: Sequence[int],
        patch: PatchOptions = DEFAULT_PATCH,
    ) -> None:
        self._checkpoints, self._patch = checkpoints, patch
        self._layers = resolve_layers(layers, checkpoints.num_layers)
        for model in (checkpoints.old, checkpoints.new):
            if getattr(model.get_output_embeddings(), "bias", None) is not None:
                raise AttributionError(
                    "the head has a bias, which belongs to no dimension to patch"
                )
            with evaluation_mode(model):
                check_read_out(model)
        self._unique = [torch.unique(each, dim=0, return_inverse=True) for each in masks]
        self.num_runs = sum(len(rows) for rows, _ in self._unique)

    def scores(self, query: Example) -> Float[Tensor, "layer mask"]:
        """The share of the query's change of margin that each set of dimensions carries.

        Raises:
            AttributionError: where the margin did not change.
        """
        old, new = self._checkpoints.old, self._checkpoints.new
        with evaluation_mode(old), evaluation_mode(new), torch.no_grad():
            reading = _Reading(self._checkpoints, query, self._layers, self._patch.span)
            if reading.full_change == 0:
                raise AttributionError(
                    "both checkpoints have the same margin; there is no change to carry"
                )
            found = []
            for layer, (rows, inverse) in zip(self._layers, self._unique, strict=True):
                margins = [
                    reading.margins(layer, some.to(self._checkpoints.device)).cpu()
                    for some in rows.split(self._patch.batch_size)
                ]
                share = (torch.cat(margins) - reading.old_margin) / reading.full_change
                found.append(share[inverse])
        return torch.stack(found)


class _Reading:
    """One query as both checkpoints read it."""

    def __init__(
        self, checkpoints: Checkpoints, query: Example, layers: Sequence[int], span: SpanPooling
    ) -> None:
        self._old, self._new = checkpoints.old, checkpoints.new
        self._batch = collate([query]).to(checkpoints.device)
        self._last = checkpoints.num_layers
        wanted = sorted({*layers, self._last})
        self._old_states = states_by_layer(self._old, self._batch, wanted)
        self._new_states = states_by_layer(self._new, self._batch, wanted)
        self._patched = pooled_positions(self._batch, span)
        self._targets: Int[Tensor, " label"] = label_logits(
            self._new, self._new_states[self._last], self._batch
        )[1]
        nothing = torch.zeros(
            1, self._new_states[self._last].shape[-1], dtype=torch.bool, device=checkpoints.device
        )
        self.old_margin = float(self._margins_of_last_layer(nothing))
        self.full_change = self._new_margin() - self.old_margin

    def _new_margin(self) -> float:
        logits, targets, _ = label_logits(self._new, self._new_states[self._last], self._batch)
        return float(logit_margins(logits, targets).sum())

    def margins(self, layer: int, masks: Bool[Tensor, "mask hidden"]) -> Float[Tensor, " mask"]:
        """The answer's margin under each mask, summed over its tokens."""
        if layer == self._last:
            return self._margins_of_last_layer(masks)
        here = self._patched[:, :, None] & masks[:, None, :]
        states = torch.where(here, self._new_states[layer], self._old_states[layer])
        copies = _repeat(self._batch, len(masks))
        output = run_decoder(self._old, copies, {layer: lambda _: states})
        return _summed_margins(self._old, output, copies)

    def _margins_of_last_layer(self, masks: Bool[Tensor, "mask hidden"]) -> Float[Tensor, " mask"]:
        """Each patched dimension contributes the new product of state and head, others the old."""
        predicts = self._batch.label_positions()
        at_label = self._patched[predicts]  # a position outside the span stays old
        chosen = masks[:, None, :] & at_label[None, :, None]
        logits: Tensor = sum(
            model.get_output_embeddings()(states[self._last][predicts] * mine)
            for model, states, mine in (
                (self._new, self._new_states, chosen),
                (self._old, self._old_states, ~chosen),
            )
        )
        targets = self._targets.repeat(len(masks))
        margins = logit_margins(logits.flatten(0, 1), targets)
        return margins.view(len(masks), -1).sum(dim=1)


def _repeat(batch: TokenBatch, times: int) -> TokenBatch:
    return TokenBatch(
        batch.input_ids.repeat(times, 1),
        batch.attention_mask.repeat(times, 1),
        batch.labels.repeat(times, 1),
        batch.example_keys.repeat(times),
    )


def _summed_margins(
    model: PreTrainedModel, states: Float[Tensor, "batch seq hidden"], batch: TokenBatch
) -> Float[Tensor, " batch"]:
    logits, targets, rows = label_logits(model, states, batch)
    margins = logit_margins(logits, targets)
    total = torch.zeros(len(batch.input_ids), dtype=margins.dtype, device=margins.device)
    return total.index_add(0, rows, margins)
