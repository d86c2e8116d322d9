"""Baselines from gradients of the new checkpoint's parameters, with their options as flags."""

from collections.abc import Callable, Iterator
from contextlib import contextmanager
from dataclasses import replace
from pathlib import Path
from typing import Any, ClassVar, Literal

import numpy as np
from if_query.errors import InputError
from jaxtyping import Float
from pydantic.dataclasses import dataclass
from utils.attribution_method import STRICT, Method
from utils.attribution_task import AttributionTask

Scores = Float[np.ndarray, "query document"]


@dataclass(frozen=True, config=STRICT)
class GradientCosine(Method):
    """The angle between whole gradients."""

    title: ClassVar[str] = "gradient cosine"

    def scores(self, task: AttributionTask) -> Scores:
        """See :func:`attribution.baselines.gradient_cosine_scores`."""
        from attribution.baselines import gradient_cosine_scores

        return as_part(task, lambda *texts: gradient_cosine_scores(task.new_model, *texts))


@dataclass(frozen=True, config=STRICT)
class TracIn(Method):
    """Inner products of gradients at the saved checkpoints of the training run."""

    training_dir: Path | None = None
    """A run's folder with its checkpoint-N folders; by default the runs from --old to --new, or the
    last of them, that which holds --new, where --old is not given."""
    unit_norm: bool = False
    """Divide gradients by their norms at every checkpoint."""

    @property
    def title(self) -> str:
        """With its normalisation."""
        return "TracIn, unit norm" if self.unit_norm else "TracIn"

    def scores(self, task: AttributionTask) -> Scores:
        """See :func:`attribution.baselines.tracin_scores`; each checkpoint is a part.

        Where several runs led from --old to --new, all their checkpoints count, and a document
        counts in the runs that read it.
        """
        from attribution.trainer_checkpoints import find_trainer_checkpoints
        from utils.training_runs import training_runs

        if self.training_dir is None:
            old = None if task.arguments.old is None else Path(task.arguments.old)
            runs = training_runs(Path(str(task.arguments.new)).parent, old)
        else:
            runs = training_runs(self.training_dir, None)
        stages = [(run, one) for run in runs for one in find_trainer_checkpoints(run.folder)]
        task.notes["training_dirs"] = [str(run.folder) for run in runs]
        task.notes["checkpoint_steps"] = [one.step for _, one in stages]
        task.notes["learning_rates"] = [one.learning_rate for _, one in stages]
        parts = [
            task.parts.get(
                f"{run.folder.name}_checkpoint_{one.step}",
                lambda run=run, one=one: self._at(task, run, one, runs[-1].passes),  # type: ignore[misc]
            )
            for run, one in stages
        ]
        total: Scores = np.sum(parts, axis=0)
        return total

    def _at(self, task: AttributionTask, run: Any, checkpoint: Any, passes: float) -> Scores:
        """One checkpoint's part: 0 for what its run did not read, frozen embeddings left out."""
        from attribution.baselines import tracin_scores
        from attribution.trainer_checkpoints import traced_models

        (traced,) = traced_models([checkpoint], task.device)
        traced = replace(traced, learning_rate=traced.learning_rate * run.passes / passes)
        if run.froze_embeddings:
            traced.model.get_input_embeddings().requires_grad_(False)
        texts = None if run.texts is None else task.texts
        read = [
            place
            for place in range(len(task.document_examples))
            if texts is None or texts[place] in run.texts
        ]
        found = np.zeros((len(task.query_examples), len(task.document_examples)), np.float32)
        if read:
            documents = [task.document_examples[place] for place in read]
            queries = task.query_examples
            scores = tracin_scores([traced], documents, queries, unit_norm=self.unit_norm)
            found[:, read] = scores.numpy()
        return found


@dataclass(frozen=True, config=STRICT)
class TrackStar(Method):
    """Projected gradients, whitened by the documents' second moment, as unit vectors."""

    title: ClassVar[str] = "TrackStar"
    projection_dim: int = 256
    """Dimensions kept of the gradient of each parameter tensor."""
    trackstar_damping: float = 0.1
    """Over the mean eigenvalue of each tensor's second moment."""
    query_share: float = 0.0
    """Share of the queries' second moment in the whitening."""

    def check(self) -> None:
        """Say what is out of range.

        Raises:
            AttributionError: a value is.
        """
        self.options(seed=0)

    def options(self, *, seed: int) -> Any:
        """The package's options."""
        from attribution.baselines import TrackStarOptions

        return TrackStarOptions(self.projection_dim, self.trackstar_damping, self.query_share, seed)

    def scores(self, task: AttributionTask) -> Scores:
        """See :func:`attribution.baselines.trackstar_scores`."""
        from attribution.baselines import trackstar_scores

        options = self.options(seed=task.arguments.seed)
        return as_part(
            task, lambda *texts: trackstar_scores(task.new_model, *texts, options=options)
        )


@dataclass(frozen=True, config=STRICT)
class DataInf(Method):
    """Influence with a closed form of the inverse curvature."""

    target: str = "mlp"
    """The weights: mlp, both (embedding and head), all, or a pattern of module names."""
    lambda_val: float = 0.1
    """Damping over the mean squared entry of each layer's gradients."""

    @property
    def title(self) -> str:
        """With its weights."""
        return f"DataInf, {self.target}"

    def scores(self, task: AttributionTask) -> Scores:
        """See :func:`attribution.baselines.datainf_scores`."""
        from attribution.baselines import datainf_scores

        options: dict[str, Any] = {"target": self.target, "damping": self.lambda_val}
        options |= {
            "batch_size": task.arguments.batch_size,
            "padding_side": task.arguments.padding_side,
        }
        with data_errors():
            return as_part(task, lambda *texts: datainf_scores(task.new_model, *texts, **options))


@dataclass(frozen=True, config=STRICT)
class Curvature(Method):
    """Influence with a factored Fisher of the documents."""

    strategy: Literal["ekfac", "kfac", "diagonal", "identity"] = "ekfac"
    """The approximation, as of fit-hessians."""
    modules: str = "mlp"
    """The linear maps: mlp, attention, all, or a pattern of module names."""
    damping: float = 0.1
    """Over the mean eigenvalue of each map."""
    empirical_fisher: bool = False
    """Take the documents' labels in place of labels sampled from the model."""

    @property
    def title(self) -> str:
        """With its weights where they are not the default."""
        names = {"ekfac": "EK-FAC", "kfac": "K-FAC", "diagonal": "diagonal Fisher",
                 "identity": "gradient dot product"}  # fmt: skip
        return names[self.strategy] + ("" if self.modules == "mlp" else f", {self.modules}")

    def scores(self, task: AttributionTask) -> Scores:
        """See :func:`utils.curvature_scores.curvature_scores`."""
        from utils.curvature_scores import curvature_scores

        with data_errors():
            return as_part(
                task,
                lambda *texts: curvature_scores(
                    task.new_model,
                    *texts,
                    strategy=self.strategy,
                    modules=self.modules,
                    damping=self.damping,
                    is_empirical=self.empirical_fisher,
                    batch_size=task.arguments.batch_size,
                    seed=task.arguments.seed,
                ),
            )


def as_part(task: AttributionTask, score: Callable[[list[Any], list[Any]], Any]) -> Scores:
    """The scores of (documents, queries), kept when they are done."""
    return task.parts.get(
        "scores", lambda: score(task.document_examples, task.query_examples).numpy()
    )


@contextmanager
def data_errors() -> Iterator[None]:
    """What the math finds wrong with data or options is bad input here.

    Raises:
        InputError: in its place.
    """
    from math_utils.errors import CurvatureError, InfluenceError

    try:
        yield
    except (CurvatureError, InfluenceError) as error:
        raise InputError(str(error)) from error
