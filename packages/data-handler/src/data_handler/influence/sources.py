"""A data set that mixes sources by weights, which may change while it is read."""

from collections.abc import Mapping, Sequence
from typing import Any

import numpy as np
import torch
from math_utils.errors import InfluenceError
from torch.utils.data import Dataset


class WeightedSourceDataset(Dataset[Any]):
    """Example ``i`` is drawn from a source by the present weights, then evenly within it.

    The draw depends on (seed, i) and on the weights at the time of reading, and on nothing else:
    so it works under any sampler, with shuffling, several processes and resumed training. Weights
    live in shared memory, where workers of a data loader see a change at once; batches that they
    have fetched ahead keep the old ones. Examples of a source are drawn with replacement.

    Args:
        sources: map-style data sets by name.
        num_samples: the length of an epoch; the examples of all sources together if None.
        weights: by name, summing to 1; even if None.
        seed: of the draws.

    Raises:
        InfluenceError: on no sources, an empty one, or weights that do not fit them.
    """

    def __init__(
        self,
        sources: Mapping[str, Sequence[Any] | Dataset[Any]],
        *,
        num_samples: int | None = None,
        weights: Mapping[str, float] | None = None,
        seed: int = 0,
    ) -> None:
        self._sources: dict[str, Any] = dict(sources)
        if not self._sources:
            raise InfluenceError("expected at least one source, got none")
        for name, source in self._sources.items():
            if not len(source):
                raise InfluenceError(f"the source {name} is empty: expected at least one example")
        total = sum(len(source) for source in self._sources.values())
        self._num_samples = total if num_samples is None else num_samples
        if self._num_samples < 1 or seed < 0:
            raise InfluenceError(
                f"expected num_samples of at least 1 and a seed of at least 0, "
                f"got {num_samples} and {seed}"
            )
        self._seed = seed
        even = 1 / len(self._sources)
        self._cumulative = torch.zeros(len(self._sources), dtype=torch.float64).share_memory_()
        self.set_weights(dict.fromkeys(self._sources, even) if weights is None else weights)

    def __len__(self) -> int:
        """Examples in an epoch."""
        return self._num_samples

    def __getitem__(self, index: int) -> Any:
        """The example at ``index`` under the present weights."""
        if not 0 <= index < self._num_samples:
            raise IndexError(f"index {index} of {self._num_samples} examples")
        name, place = self.draw(index)
        return self._sources[name][place]

    def draw(self, index: int) -> tuple[str, int]:
        """The (source, place in it) that ``index`` stands for under the present weights."""
        which, where = np.random.default_rng([self._seed, index]).random(2)
        names = list(self._sources)
        last = len(names) - 1
        row = min(int(torch.searchsorted(self._cumulative, float(which), right=True)), last)
        size = len(self._sources[names[row]])
        return names[row], min(int(where * size), size - 1)

    @property
    def weights(self) -> dict[str, float]:
        """The present weights by source."""
        steps = torch.diff(self._cumulative, prepend=self._cumulative.new_zeros(1))
        return dict(zip(self._sources, steps.tolist(), strict=True))

    def set_weights(self, weights: Mapping[str, float]) -> None:
        """Change the weights, for every worker of a data loader too.

        Raises:
            InfluenceError: unless there is one for each source, none negative, with sum 1.
        """
        if set(weights) != set(self._sources):
            raise InfluenceError(
                f"expected weights of the sources {', '.join(self._sources)}, "
                f"got {', '.join(weights)}"
            )
        ordered = torch.tensor([weights[name] for name in self._sources], dtype=torch.float64)
        if not (ordered.min() >= 0 and abs(float(ordered.sum()) - 1) < 1e-6):
            raise InfluenceError(
                f"expected weights that are not negative and sum to 1, got {dict(weights)}"
            )
        self._cumulative.copy_(ordered.cumsum(0))
