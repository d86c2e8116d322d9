"""Other libraries as methods, where the dependency group ``peers`` is installed."""

from importlib.util import find_spec
from typing import ClassVar, Literal

from if_query.errors import InputError
from pydantic.dataclasses import dataclass
from utils.attribution_method import STRICT, Method
from utils.attribution_task import AttributionTask
from utils.gradient_methods import Scores, as_part


@dataclass(frozen=True, config=STRICT)
class PeerMethod(Method):
    """A method that another library computes."""

    library: ClassVar[str]

    def check(self) -> None:
        """Say that the library is missing, before a model is loaded.

        Raises:
            InputError: it is.
        """
        if find_spec(self.library) is None:
            raise InputError(f"{self.library} is not installed; run uv sync --group peers")


@dataclass(frozen=True, config=STRICT)
class Kronfluence(PeerMethod):
    """Influence by kronfluence."""

    library: ClassVar[str] = "kronfluence"
    strategy: Literal["ekfac", "kfac", "diagonal", "identity"] = "ekfac"
    """The approximation of the Fisher information."""
    modules: str = "mlp"
    """The linear maps: mlp, attention, all, or a pattern of module names."""
    empirical_fisher: bool = False
    """Take the documents' labels in place of labels sampled from the model."""

    @property
    def title(self) -> str:
        """With its approximation."""
        return f"kronfluence, {self.strategy}"

    def scores(self, task: AttributionTask) -> Scores:
        """See :func:`utils.kronfluence_scores.kronfluence_scores`."""
        from utils.kronfluence_scores import kronfluence_scores

        return as_part(
            task,
            lambda *texts: kronfluence_scores(
                task.new_model,
                *texts,
                strategy=self.strategy,
                modules=self.modules,
                is_empirical=self.empirical_fisher,
                batch_size=task.arguments.batch_size,
                seed=task.arguments.seed,
            ),
        )


@dataclass(frozen=True, config=STRICT)
class Bergson(PeerMethod):
    """TrackStar, or plain gradient similarity, by bergson."""

    library: ClassVar[str] = "bergson"
    kind: Literal["trackstar", "cosine", "dot"] = "trackstar"
    """Whitened unit gradients, unit gradients, or gradients."""
    projection_dim: int = 16
    """Rows and columns kept of every map's gradient; 0 for no projection."""

    @property
    def title(self) -> str:
        """With what it computes."""
        return f"bergson, {self.kind}"

    def scores(self, task: AttributionTask) -> Scores:
        """See :func:`utils.bergson_scores.bergson_scores`."""
        from utils.bergson_scores import bergson_scores

        return as_part(
            task,
            lambda *texts: bergson_scores(
                task.new_model,
                *texts,
                kind=self.kind,
                projection_dim=self.projection_dim,
                batch_size=task.arguments.batch_size,
                seed=task.arguments.seed,
            ),
        )
