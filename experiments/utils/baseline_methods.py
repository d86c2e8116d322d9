"""Baselines as methods: what attribution must beat."""

from typing import ClassVar, Literal

import numpy as np
from jaxtyping import Float
from pydantic.dataclasses import dataclass
from utils.attribution_method import STRICT, Method
from utils.attribution_task import AttributionTask

Scores = Float[np.ndarray, "query document"]


@dataclass(frozen=True, config=STRICT)
class TextBaseline(Method):
    """Knows the texts alone."""

    needs_new: ClassVar[bool] = False
    query_text: Literal["prompt-and-answer", "prompt", "answer"] = "prompt-and-answer"
    """What of a query is searched for."""

    def query_texts(self, task: AttributionTask) -> list[str]:
        """The text of each query."""
        what = "text" if self.query_text == "prompt-and-answer" else self.query_text
        return [getattr(query, what) for query in task.queries]


@dataclass(frozen=True, config=STRICT)
class Random(Method):
    """Scores that know nothing: the floor."""

    needs_new: ClassVar[bool] = False
    title: ClassVar[str] = "random"

    def scores(self, task: AttributionTask) -> Scores:
        """Uniform scores by the task's seed."""
        from attribution.baselines import random_scores

        return random_scores(len(task.queries), len(task.documents), seed=task.arguments.seed)


@dataclass(frozen=True, config=STRICT)
class BM25(TextBaseline):
    """Shared rare words."""

    title: ClassVar[str] = "BM25"

    def scores(self, task: AttributionTask) -> Scores:
        """See :func:`attribution.baselines.bm25_scores`."""
        from attribution.baselines import bm25_scores

        return bm25_scores(self.query_texts(task), task.texts)


@dataclass(frozen=True, config=STRICT)
class TfIdf(TextBaseline):
    """The angle between weighted counts of words."""

    title: ClassVar[str] = "tf-idf"

    def scores(self, task: AttributionTask) -> Scores:
        """See :func:`attribution.baselines.tfidf_scores`."""
        from attribution.baselines import tfidf_scores

        return tfidf_scores(self.query_texts(task), task.texts)


@dataclass(frozen=True, config=STRICT)
class EditDistance(TextBaseline):
    """How much of the text is the same, letter by letter."""

    title: ClassVar[str] = "edit distance"

    def scores(self, task: AttributionTask) -> Scores:
        """See :func:`attribution.baselines.edit_distance_scores`."""
        from attribution.baselines import edit_distance_scores

        return edit_distance_scores(self.query_texts(task), task.texts)


@dataclass(frozen=True, config=STRICT)
class RepresentationSimilarity(Method):
    """The angle between the new model's hidden states."""

    layer: Literal["last", "middle", "mean"] = "last"
    """Which hidden states: the normalised output, those of the middle block, or their mean."""
    state_pooling: Literal["last", "mean"] = "mean"
    """The state at the last token, or the mean over all."""

    @property
    def title(self) -> str:
        """With its layer."""
        return f"representation similarity, {self.layer}"

    def scores(self, task: AttributionTask) -> Scores:
        """See :func:`attribution.baselines.representation_similarity_scores`."""
        from attribution.baselines import representation_similarity_scores

        queries = [list(example.token_ids) for example in task.query_examples]
        # Without the end token, which is the same after every document.
        documents = [list(example.token_ids[:-1]) for example in task.document_examples]
        return task.parts.get(
            "scores",
            lambda: representation_similarity_scores(
                task.new_model,
                queries,
                documents,
                layer=self.layer,
                pooling=self.state_pooling,
                batch_size=task.arguments.batch_size,
            ),
        )
