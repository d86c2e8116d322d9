"""Deep linear probes as a method: every query is scored by probes that never saw its function."""

from typing import Any, ClassVar

import numpy as np
from if_query.errors import InputError
from jaxtyping import Float
from pydantic.dataclasses import dataclass
from utils.attribution_method import STRICT, Method
from utils.attribution_task import AttributionTask


@dataclass(frozen=True, config=STRICT)
class DlpProbes(Method):
    """Deep linear probes, cross-fitted over functions."""

    needs_old: ClassVar[bool] = True
    title: ClassVar[str] = "deep linear probes"
    num_folds: int = 5
    """The base functions are dealt to so many folds; each is judged by probes trained on the
    others."""
    num_probes: int = 8
    """Probes behind every text."""
    latent_size: int = 32
    """Entries of a latent."""
    num_generator_layers: int = 3
    """Linear maps between latent and probe."""
    embedding_size: int = 64
    """Entries of what the head makes of the responses."""
    subtract_old: bool = False
    """Take the new checkpoint's responses minus the old one's."""
    num_steps: int = 40
    """Steps of AdamW; 0 leaves the probes as they were drawn."""
    learning_rate: float = 1e-3
    """Of AdamW."""
    decay: float = 1.0
    """How fast all weights go back to their initial values, per unit of learning rate."""

    def check(self) -> None:
        """Say what is out of range.

        Raises:
            InputError, AttributionError: a value is.
        """
        if self.num_folds < 2:
            raise InputError(f"--num-folds: expected at least 2, got {self.num_folds}")
        self.options(seed=0, batch_size=1)

    def options(self, *, seed: int, batch_size: int) -> Any:
        """The package's options.

        Raises:
            AttributionError: a value is out of range.
        """
        from attribution.methods import ProbeOptions

        return ProbeOptions(
            num_probes=self.num_probes,
            latent_size=self.latent_size,
            num_generator_layers=self.num_generator_layers,
            embedding_size=self.embedding_size,
            subtract_old=self.subtract_old,
            num_steps=self.num_steps,
            learning_rate=self.learning_rate,
            decay=self.decay,
            batch_size=batch_size,
            seed=seed,
        )

    def scores(self, task: AttributionTask) -> Float[np.ndarray, "query document"]:
        """See :func:`attribution.methods.dlp_probes`; each fold is a part."""
        import torch
        from attribution.methods import deal_folds, dlp_probes

        base_of = {
            one.name: task.registry.chain(one.name)[-1].name for one in task.registry.functions
        }
        asked = [query.base_function for query in task.queries]
        about = [
            None if one.role == "distractor" else base_of.get(str(one.func))
            for one in task.documents
        ]
        options = self.options(seed=task.arguments.seed, batch_size=task.arguments.batch_size)
        folds = deal_folds(asked, self.num_folds, task.arguments.seed)
        found = np.empty(task.relevance.shape, dtype=np.float32)
        for fold in range(self.num_folds):
            rows = [place for place, own in enumerate(folds) if own == fold]
            held_out = sorted({asked[row] for row in rows})
            found[rows] = task.parts.get(
                f"fold_{fold}",
                lambda rows=rows, held_out=held_out: dlp_probes(  # type: ignore[misc]
                    task.checkpoints,
                    task.document_examples,
                    task.query_examples,
                    torch.from_numpy(task.relevance),
                    query_functions=asked,
                    document_functions=about,
                    held_out=held_out,
                    options=options,
                ).numpy()[rows],
            )
        task.notes["fold_of_function"] = dict(zip(asked, folds, strict=True))
        return found
