"""The contracts of embeddings, influence and selection, with the laws that they keep.

Loaders are iterables of mappings with ``input_ids`` [batch, seq] and, where wanted,
``attention_mask`` and ``labels``. Laws, for every implementation:

- how a loader batches its examples, and what padding it adds on which side, changes no result;
- the order of examples permutes results and changes nothing else;
- a model is left as it was (``requires_grad``, ``grad``, training mode, hooks), after an
  exception too.

Influence is positive where training on the example helps the probe: it lowers its loss.
"""

from abc import ABC, abstractmethod
from collections.abc import Iterable, Iterator, Mapping
from typing import Any, Literal, get_args

import torch

from math_utils._typing import Float, Int, Tensor
from math_utils.causal_lm import token_batch
from math_utils.errors import InfluenceError
from math_utils.language_modeling import TokenBatch

Batch = Mapping[str, Any]
Loader = Iterable[Batch]
Aggregation = Literal["mean", "sum", "max", "min"]
DEFAULT_DOMAIN = "default"


class EmbeddingExtractor(ABC):
    """Turns every example into one vector."""

    @property
    @abstractmethod
    def embedding_dim(self) -> int:
        """Width of an embedding."""

    @abstractmethod
    def compute_batch_embeddings(self, batch: Batch) -> Float[Tensor, "batch dim"]:
        """The embeddings of one batch."""

    def compute_embeddings(
        self, loader: Loader, max_samples: int | None = None
    ) -> Float[Tensor, "num_examples dim"]:
        """The embeddings of all examples, in the loader's order.

        Args:
            loader: the examples.
            max_samples: stop after so many.

        Returns:
            One row per example, on the CPU.

        Raises:
            InfluenceError: if the loader is empty.
        """
        rows: list[Tensor] = []
        for batch in limited(loader, max_samples, "loader"):
            rows.append(self.compute_batch_embeddings(batch).cpu())
        return torch.cat(rows)


class InfluenceCalculator(ABC):
    """Influence of training examples on probe examples."""

    @abstractmethod
    def cache_probe(self, probe_loader: Loader, domain: str = DEFAULT_DOMAIN) -> None:
        """Keep what is needed of the probe examples of one domain, at the present weights."""

    @abstractmethod
    def compute_influence(
        self,
        train_loader: Loader,
        probe_loader: Loader | None = None,
        *,
        domain: str = DEFAULT_DOMAIN,
    ) -> Float[Tensor, "num_probe num_train"]:
        """Influence of every training example on every probe example; positive = helpful.

        Args:
            train_loader: the training examples.
            probe_loader: the probe examples; None takes the cached ones of ``domain``. Given
                ones neither read nor change the cache.
            domain: which cache, where no loader is given.

        Raises:
            InfluenceError: on an empty loader, or if neither is there.
        """

    def compute_batch_influence(
        self, batch: Batch, domain: str = DEFAULT_DOMAIN
    ) -> Float[Tensor, "num_probe batch"]:
        """Influence of one batch, which is the whole training set, on the cached probes."""
        return self.compute_influence([batch], domain=domain)

    @abstractmethod
    def clear_cache(self, domain: str | None = None) -> None:
        """Forget the cached probes of one domain, or of all."""


class DataSelector(ABC):
    """Chooses training examples."""

    @abstractmethod
    def select(self, loader: Loader, budget: int) -> Int[Tensor, " budget"]:
        """The numbers of ``budget`` examples of a loader, the best first, none twice."""


def aggregate(
    influence: Float[Tensor, "num_probe num_train"], how: str = "mean"
) -> Float[Tensor, " num_train"]:
    """One number per training example: mean, sum, max or min over the probe examples.

    Raises:
        InfluenceError: on another way.
    """
    if how not in get_args(Aggregation):
        raise InfluenceError(
            f"expected an aggregation among {', '.join(get_args(Aggregation))}, got {how!r}"
        )
    if how == "mean":
        return influence.mean(dim=0)
    if how == "sum":
        return influence.sum(dim=0)
    return influence.amax(dim=0) if how == "max" else influence.amin(dim=0)


def smooth(
    previous: Float[Tensor, "*shape"] | None, latest: Float[Tensor, "*shape"], gamma: float
) -> Float[Tensor, "*shape"]:
    """A running estimate that takes in a new one: gamma · latest + (1 − gamma) · previous.

    Args:
        previous: the estimate so far; None before the first.
        latest: the new one.
        gamma: the rate, in (0, 1].

    Raises:
        InfluenceError: on a rate out of range.
    """
    if not 0 < gamma <= 1:
        raise InfluenceError(f"expected gamma in (0, 1], got {gamma}")
    return latest if previous is None else gamma * latest + (1 - gamma) * previous


def limited(loader: Loader, max_samples: int | None, name: str) -> Iterator[Batch]:
    """The batches of a loader up to so many examples, the last one cut.

    Raises:
        InfluenceError: if there is no example, or ``max_samples`` is not positive.
    """
    if max_samples is not None and max_samples < 1:
        raise InfluenceError(f"expected max_samples to be at least 1 or None, got {max_samples}")
    num_examples = 0
    for batch in loader:
        size = len(batch["input_ids"]) if isinstance(batch, Mapping) and "input_ids" in batch else 0
        left = size if max_samples is None else max_samples - num_examples
        if size > left:
            batch = {
                key: value[:left] if isinstance(value, torch.Tensor) else value
                for key, value in batch.items()
            }
        num_examples += min(size, left)
        yield batch
        if max_samples is not None and num_examples >= max_samples:
            return
    if not num_examples:
        raise InfluenceError(
            f"the {name} is empty: expected at least one example, got none; an iterator that was "
            "read before is empty too, so pass a loader that can be read again"
        )


def token_batches(
    loader: Loader, name: str, *, max_samples: int | None = None, labelled: bool = True
) -> Iterator[TokenBatch]:
    """The checked, right-padded batches of a loader; keys count its examples.

    Args:
        loader: the examples.
        name: what it is, for messages.
        max_samples: stop after so many.
        labelled: whether every example must have a label that counts.

    Raises:
        InfluenceError: on an empty loader, malformed batches, or an example without labels.
    """
    first = 0
    for batch in limited(loader, max_samples, name):
        tokens = token_batch(batch, first_key=first)
        if labelled:
            check_labelled(tokens, name)
        first += len(tokens.input_ids)
        yield tokens


def check_labelled(batch: TokenBatch, name: str) -> None:
    """Raise an InfluenceError where an example has no label to predict."""
    bare = (~batch.label_positions().any(dim=1)).nonzero()
    if len(bare):
        raise InfluenceError(
            f"example {int(batch.example_keys[int(bare[0])])} of the {name}: expected at least one "
            "label after its first token, got none (all are -100, or it has a single token); its "
            "gradient would be zero: drop the example or label it"
        )
