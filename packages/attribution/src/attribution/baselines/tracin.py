"""TracIn: inner products of gradients along a training run, at its saved checkpoints.

Pruthi, Liu, Sundararajan and Kale 2020 (arXiv 2002.08484), TracInCP:

    score(q, z) = Σ_k η_k ⟨∇L(q; θ_k), ∇L(z; θ_k)⟩.
"""

import math
from collections.abc import Iterable, Sequence
from dataclasses import dataclass

from jaxtyping import Float
from torch import Tensor
from transformers import PreTrainedModel

from attribution.baselines.parameter_gradients import gradient_dots
from attribution.errors import AttributionError
from attribution.examples import Example


@dataclass(frozen=True)
class TracedModel:
    """A model at one point of its training.

    Attributes:
        model: with the parameters of that point.
        learning_rate: η_k, the step size that these gradients stand for.
    """

    model: PreTrainedModel
    learning_rate: float

    def __post_init__(self) -> None:
        if not 0 < self.learning_rate < math.inf:
            raise AttributionError(f"expected a positive learning rate, got {self.learning_rate}")


def tracin_scores(
    checkpoints: Iterable[TracedModel],
    documents: Sequence[Example],
    queries: Sequence[Example],
    *,
    unit_norm: bool = False,
    batch_size: int = 16,
) -> Float[Tensor, "query document"]:
    """How much the run's steps on a document lowered a query's loss, to first order.

    What is approximated: a step on z at θ lowers L(q) by η ⟨∇L(q; θ), ∇L(z; θ)⟩ for plain
    gradient descent on z alone. Here θ is the nearest saved checkpoint and not where z was seen;
    every document is taken to be seen equally often between two checkpoints; and AdamW, which
    rescales every entry of a gradient and has a memory, is taken for gradient descent. A common
    factor of all η changes no ranking.

    Args:
        checkpoints: read once, one after the other: a generator needs memory for one model only.
        documents: what may have taught the answers.
        queries: what is asked.
        unit_norm: gradients divided by their norms at every checkpoint, so that documents with
            large gradients are not ahead everywhere.
        batch_size: documents multiplied at once; of no effect on the scores beyond rounding.

    Returns:
        The scores in nats (with ``unit_norm``: in units of η). Positive is helpful.

    Raises:
        AttributionError: on no checkpoint, a learning rate that is not positive, unfit examples,
            or a gradient that is zero or not finite.
    """
    total: Tensor | None = None
    for one in checkpoints:
        dots = gradient_dots(
            one.model, documents, queries, unit_norm=unit_norm, batch_size=batch_size
        )
        weighted = one.learning_rate * dots
        total = weighted if total is None else total + weighted
    if total is None:
        raise AttributionError("expected at least one checkpoint, got none")
    return total
