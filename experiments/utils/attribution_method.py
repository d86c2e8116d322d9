"""What every method is to scripts, leaderboard and ablations: options, and scores of a task."""

from abc import ABC, abstractmethod
from typing import ClassVar

import numpy as np
from jaxtyping import Bool, Float
from pydantic import ConfigDict
from pydantic.dataclasses import dataclass
from utils.attribution_task import AttributionTask

STRICT = ConfigDict(extra="forbid")


@dataclass(frozen=True, config=STRICT)
class Method(ABC):
    """A method of attribution; its fields are the flags of its script.

    To add one: a frozen dataclass like those in :mod:`utils.checkpoint_methods`, and a line in
    :data:`utils.attribution_methods.METHODS`.
    """

    needs_old: ClassVar[bool] = False
    """Whether it compares with the old checkpoint."""
    needs_new: ClassVar[bool] = True
    """Whether it asks a model at all."""

    @property
    @abstractmethod
    def title(self) -> str:
        """What tables call it."""

    def check(self) -> None:
        """Say what is out of range, before a model is loaded.

        Raises:
            InputError: a value is out of range.
        """
        return  # nothing is, unless a method says so

    @abstractmethod
    def scores(self, task: AttributionTask) -> Float[np.ndarray, "query document"]:
        """Score every document for every query; higher is more related.

        Long work is cut into ``task.parts.get(name, compute)``, which a script can resume.
        """

    def validation_queries(self, task: AttributionTask) -> Bool[np.ndarray, " query"]:
        """The queries that something was learned on; the others alone judge the method."""
        return np.zeros(len(task.queries), dtype=np.bool_)
