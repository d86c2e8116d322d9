"""The methods of ``attribution.methods`` with their options as flags.

Vectors of documents are made in portions, each a part that a killed run need not repeat.
"""

from collections.abc import Callable, Sequence
from typing import Any, ClassVar, Literal

import numpy as np
from if_query.errors import InputError
from jaxtyping import Bool, Float
from pydantic.dataclasses import dataclass
from tqdm import tqdm
from utils.attribution_method import STRICT, Method
from utils.attribution_task import AttributionTask

Scores = Float[np.ndarray, "query document"]
PORTION = 256
"""Documents in one part. Fixed, so that a resumed run pads the same batches."""


@dataclass(frozen=True, config=STRICT)
class LayeredMethod(Method):
    """One score from the scores of several layers."""

    layers: tuple[int, ...] | None = None
    """0 the embeddings to L the normalised output; negative ones from the end; all but 0 by
    default."""
    aggregation: Literal["mean", "top-3", "learned"] = "mean"
    """Over layers: their mean, the three highest of each query and document, or convex weights
    learned on validation queries."""
    document_span: Literal["text", "answers"] = "text"
    """A document's targets: its whole text, or the last place that states the answer of any query,
    where it states one."""
    validation_share: float = 0.5
    """Share of the base functions whose queries are for validation where weights are learned; the
    metrics are over the other queries."""

    def check(self) -> None:
        """Say what is out of range.

        Raises:
            InputError: the share is not between 0 and 1.
        """
        if not 0 < self.validation_share < 1:
            raise InputError(
                f"--validation-share: expected a share in (0, 1), got {self.validation_share}"
            )

    def validation_queries(self, task: AttributionTask) -> Bool[np.ndarray, " query"]:
        """Those of a share of the base functions, drawn by the seed; none without learning.

        Raises:
            InputError: no function is left on one side.
        """
        if self.aggregation != "learned":
            return super().validation_queries(task)
        functions = sorted({query.base_function for query in task.queries})
        count = round(self.validation_share * len(functions))
        if not 0 < count < len(functions):
            raise InputError(
                f"--validation-share: {self.validation_share} of {len(functions)} base functions "
                f"leaves {count} for validation and {len(functions) - count} to judge by"
            )
        order = np.random.default_rng(task.arguments.seed).permutation(len(functions))
        chosen = {functions[place] for place in order[:count]}
        return np.array([query.base_function in chosen for query in task.queries])

    def documents(self, task: AttributionTask) -> list[Any]:
        """The documents with the targets asked for."""
        return task.document_examples if self.document_span == "text" else task.answer_examples

    def over_layers(self, by_layer: Any, task: AttributionTask) -> Scores:
        """Aggregate [layer, query, document]."""
        import torch
        from attribution.aggregation import aggregate_layers, learn_layer_weights
        from attribution.checkpoints import resolve_layers
        from attribution.decoder import num_layers_of

        task.notes["layers"] = list(resolve_layers(self.layers, num_layers_of(task.new_model)))
        how: Any = self.aggregation
        if how == "learned":
            how = learn_layer_weights(
                by_layer,
                torch.from_numpy(task.relevance),
                torch.from_numpy(self.validation_queries(task)),
            )
            task.notes["layer_weights"] = list(how)
            chosen = self.validation_queries(task)
            task.notes["validation_functions"] = sorted(
                {one.function for one, is_seen in zip(task.queries, chosen, strict=True) if is_seen}
            )
        return aggregate_layers(by_layer, how).numpy()


@dataclass(frozen=True, config=STRICT)
class VectorMethod(LayeredMethod):
    """Compares one vector of a document with one of a query, layer by layer."""

    pooling: Literal["last", "span", "text"] = "last"
    """Positions whose vectors are averaged: the one that predicts the last target, those that
    predict a target, or all."""
    similarity: Literal["cosine", "dot"] = "cosine"
    """Cosine or inner product."""
    normalisation: Literal["none", "zscore", "whiten"] = "none"
    """Per layer, with the statistics of the documents."""

    def vectors(self, task: AttributionTask, examples: Sequence[Any]) -> Any:
        """The :class:`attribution.vectors.LayerVectors` of documents or queries."""
        raise NotImplementedError

    def vector_options(self, task: AttributionTask) -> Any:
        """Layers, pooling and batches for the package."""
        from attribution.vectors import VectorOptions

        return VectorOptions(
            layers=self.layers,
            pooling=self.pooling,
            batch_size=task.arguments.batch_size,
            padding_side=task.arguments.padding_side,
            progress=False,
        )

    def scores(self, task: AttributionTask) -> Scores:
        """The similarity of a document's and a query's vectors, over layers."""
        from attribution.scoring import ScoreOptions, score_layers

        # Queries first: they are few, and most mistakes show in them.
        queries = in_portions(task, "queries", task.query_examples, self.vectors)
        documents = in_portions(task, "documents", self.documents(task), self.vectors)
        options = ScoreOptions(
            similarity=self.similarity,
            normalisation="z-score" if self.normalisation == "zscore" else self.normalisation,
        )
        return self.over_layers(score_layers(queries, documents, options), task)


@dataclass(frozen=True, config=STRICT)
class DhSimilarity(VectorMethod):
    """Did training move the states of document and query in one direction?"""

    needs_old: ClassVar[bool] = True
    title: ClassVar[str] = "Δh similarity"

    def vectors(self, task: AttributionTask, examples: Sequence[Any]) -> Any:
        """Changes of states."""
        from attribution.activations import state_changes

        return state_changes(task.checkpoints, examples, self.vector_options(task))


@dataclass(frozen=True, config=STRICT)
class GradSimilarity(VectorMethod):
    """Would one shift of the hidden state lower the losses of document and query?"""

    title: ClassVar[str] = "gradient similarity"
    objective: Literal["loss", "margin"] = "loss"
    """What is differentiated: cross-entropy, or minus the margin of the logits."""

    def vectors(self, task: AttributionTask, examples: Sequence[Any]) -> Any:
        """Gradients of the loss with respect to states, at the new checkpoint."""
        from attribution.gradients import state_gradients

        return state_gradients(
            task.new_model, examples, self.vector_options(task), objective=self.objective
        )


@dataclass(frozen=True, config=STRICT)
class AttrWeightedChange(VectorMethod):
    """Do the same dimensions move and matter in document and query?"""

    needs_old: ClassVar[bool] = True
    objective: Literal["loss", "margin"] = "loss"
    """What is differentiated: cross-entropy, or minus the margin of the logits."""
    ig_steps: int = 0
    """K steps of integrated gradients from the old states to the new ones; 0 for the gradient at
    the new ones."""

    @property
    def title(self) -> str:
        """With the steps."""
        if self.ig_steps:
            return f"attribution-weighted change, {self.ig_steps} IG steps"
        return "attribution-weighted change"

    def check(self) -> None:
        """Say what is out of range.

        Raises:
            InputError: a value is out of range.
        """
        super().check()
        check_steps(self.ig_steps)

    def vectors(self, task: AttributionTask, examples: Sequence[Any]) -> Any:
        """Changes times gradients, or integrated gradients."""
        from attribution.methods import weighted_changes

        return weighted_changes(
            task.checkpoints,
            examples,
            self.vector_options(task),
            objective=self.objective,
            num_steps=self.ig_steps or None,
        )


@dataclass(frozen=True, config=STRICT)
class CausalPatching(LayeredMethod):
    """Do the dimensions that a document moved carry the change of the answer?"""

    needs_old: ClassVar[bool] = True
    title: ClassVar[str] = "causal patching"
    pooling: Literal["last", "span", "text"] = "last"
    """Positions over which a document's attribution is averaged."""
    objective: Literal["loss", "margin"] = "loss"
    """What the attribution differentiates: cross-entropy, or minus the margin of the logits."""
    ig_steps: int = 0
    """K steps of integrated gradients for the attribution; 0 for the gradient at the new states."""
    percentile: float = 10.0
    """Share of the dimensions that a document patches, in percent."""
    span: Literal["last", "span", "text"] = "span"
    """Positions of the query that are patched: the one that predicts the answer's last token, all
    that predict a token of the answer, or all."""
    patch_batch_size: int = 64
    """Patched copies of a query in one forward pass."""

    def check(self) -> None:
        """Say what is out of range.

        Raises:
            InputError: a value is out of range.
        """
        super().check()
        check_steps(self.ig_steps)
        if not 0 < self.percentile <= 100:
            raise InputError(f"--percentile: expected one in (0, 100], got {self.percentile}")
        if self.patch_batch_size < 1:
            raise InputError(
                f"--patch-batch-size: expected at least 1, got {self.patch_batch_size}"
            )

    def scores(self, task: AttributionTask) -> Scores:
        """Query by query; each is a part."""
        import torch
        from attribution.checkpoints import resolve_layers
        from attribution.methods import PatchOptions, largest_dimensions, patching_scores

        source = AttrWeightedChange(
            layers=self.layers,
            pooling=self.pooling,
            objective=self.objective,
            ig_steps=self.ig_steps,
        )
        attributions = in_portions(task, "documents", self.documents(task), source.vectors)
        attributions.check_nonzero()
        masks = largest_dimensions(attributions.values, self.percentile)
        layers = resolve_layers(self.layers, task.checkpoints.num_layers)
        patch = PatchOptions(
            percentile=self.percentile,
            span=self.span,
            batch_size=self.patch_batch_size,
            progress=False,
        )
        found = []
        for index, query in enumerate(tqdm(task.query_examples, desc="patched", unit=" queries")):
            by_layer = task.parts.get(
                f"query_{index:05d}",
                lambda query=query: patching_scores(
                    task.checkpoints, masks, [query], layers, patch
                ).numpy(),
            )
            found.append(torch.from_numpy(by_layer))
        return self.over_layers(torch.cat(found, dim=1), task)


def check_steps(steps: int) -> None:
    """Refuse a negative number of steps.

    Raises:
        InputError: on one.
    """
    if steps < 0:
        raise InputError(f"--ig-steps: expected at least 0, got {steps}")


def in_portions(
    task: AttributionTask,
    name: str,
    examples: Sequence[Any],
    vectors_of: Callable[[AttributionTask, Sequence[Any]], Any],
) -> Any:
    """The vectors of all queries or documents, portion by portion, with how many per second.

    Raises:
        AttributionError: naming the portion, whose examples its message counts from 0.
    """
    import torch
    from attribution.errors import AttributionError
    from attribution.vectors import LayerVectors

    found = []
    with tqdm(total=len(examples), desc=name, unit=f" {name}") as bar:
        for start in range(0, len(examples), PORTION):
            portion = examples[start : start + PORTION]

            def compute(portion: Sequence[Any] = portion) -> np.ndarray:
                return vectors_of(task, portion).values.numpy()

            try:
                values = task.parts.get(f"{name}_{start:08d}", compute)
            except AttributionError as error:
                place = f" from {start}" if start else ""
                raise AttributionError(f"{name}{place}: {error}") from error
            found.append(torch.from_numpy(values))
            bar.update(len(portion))
    values = torch.cat(found, dim=1)
    # Only whether both sides are of the same layers is asked of them from here on.
    return LayerVectors(values, tuple(range(len(values))), f"vector ({name})")
