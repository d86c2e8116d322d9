"""What the methods between two checkpoints share: layers, pooled vectors, and parts of the work.

Vectors of documents are made in portions, each a part that a killed run need not repeat.
"""

from abc import abstractmethod
from collections.abc import Sequence
from typing import Any, Literal

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

    @abstractmethod
    def vectors(self, task: AttributionTask, examples: Sequence[Any]) -> Any:
        """The :class:`attribution.vectors.LayerVectors` of documents or queries."""

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
        queries = in_portions(task, "queries", task.query_examples, self)
        documents = in_portions(task, "documents", self.documents(task), self)
        options = ScoreOptions(
            similarity=self.similarity,
            normalisation="z-score" if self.normalisation == "zscore" else self.normalisation,
        )
        return self.over_layers(score_layers(queries, documents, options), task)


def in_portions(
    task: AttributionTask,
    name: str,
    examples: Sequence[Any],
    method: "VectorMethod",
) -> Any:
    """The vectors of all queries or documents, portion by portion, with how many per second.

    Raises:
        AttributionError: naming the portion, whose examples its message counts from 0.
    """
    import torch
    from attribution.checkpoints import resolve_layers
    from attribution.decoder import num_layers_of
    from attribution.errors import AttributionError
    from attribution.vectors import LayerVectors

    found = []
    with tqdm(total=len(examples), desc=name, unit=f" {name}") as bar:
        for start in range(0, len(examples), PORTION):
            portion = examples[start : start + PORTION]

            def compute(portion: Sequence[Any] = portion) -> np.ndarray:
                own: np.ndarray = method.vectors(task, portion).values.numpy()
                return own

            try:
                values = task.parts.get(f"{name}_{start:08d}", compute)
            except AttributionError as error:
                place = f" from {start}" if start else ""
                raise AttributionError(f"{name}{place}: {error}") from error
            found.append(torch.from_numpy(values))
            bar.update(len(portion))
    layers = resolve_layers(method.layers, num_layers_of(task.new_model))
    return LayerVectors(torch.cat(found, dim=1), layers, f"vector ({name})")
