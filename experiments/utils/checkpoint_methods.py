"""The methods of ``attribution.methods`` with their options as flags."""

from collections.abc import Sequence
from typing import Any, ClassVar, Literal

import numpy as np
from if_query.errors import InputError
from pydantic.dataclasses import dataclass
from tqdm import tqdm
from utils.attribution_method import STRICT
from utils.attribution_task import AttributionTask
from utils.layered_method import LayeredMethod, Scores, VectorMethod, in_portions


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
        from attribution.methods import Patcher, PatchOptions, largest_dimensions

        source = AttrWeightedChange(
            layers=self.layers,
            pooling=self.pooling,
            objective=self.objective,
            ig_steps=self.ig_steps,
        )
        attributions = in_portions(task, "documents", self.documents(task), source)
        attributions.check_nonzero()
        masks = largest_dimensions(attributions.values, self.percentile)
        layers = resolve_layers(self.layers, task.checkpoints.num_layers)
        patch = PatchOptions(
            percentile=self.percentile,
            span=self.span,
            batch_size=self.patch_batch_size,
            progress=False,
        )
        patcher = Patcher(task.checkpoints, masks, layers, patch)
        num_documents = len(task.documents)
        found = []
        with tqdm(
            total=len(task.queries) * num_documents, desc="patched", unit=" documents"
        ) as bar:
            for index, query in enumerate(task.query_examples):

                def patched(query: Any = query) -> np.ndarray:
                    scores: np.ndarray = patcher.scores(query).numpy()
                    return scores

                by_layer = task.parts.get(f"query_{index:05d}", patched)
                found.append(torch.from_numpy(by_layer))
                bar.update(num_documents)
        return self.over_layers(torch.stack(found, dim=1), task)


def check_steps(steps: int) -> None:
    """Refuse a negative number of steps.

    Raises:
        InputError: on one.
    """
    if steps < 0:
        raise InputError(f"--ig-steps: expected at least 0, got {steps}")
