"""The angle between two examples' gradients with respect to all parameters."""

from collections.abc import Sequence

from jaxtyping import Float
from torch import Tensor
from transformers import PreTrainedModel

from attribution.baselines.parameter_gradients import gradient_dots
from attribution.examples import Example


def gradient_cosine_scores(
    model: PreTrainedModel,
    documents: Sequence[Example],
    queries: Sequence[Example],
    *,
    batch_size: int = 16,
) -> Float[Tensor, "query document"]:
    """The score cos(∇L(query), ∇L(document)), L the summed loss of the targets, all parameters.

    Args:
        model: a Hugging Face causal language model, in general the new checkpoint.
        documents: what may have taught the answers.
        queries: what is asked.
        batch_size: documents multiplied at once; of no effect on the scores beyond rounding.

    Returns:
        The scores in [-1, 1]. Positive is helpful: a small enough step of gradient descent on the
        document lowers the query's loss. Unlike a dot product, no long or surprising document is
        ahead by the size of its gradient alone.

    Raises:
        AttributionError: on unfit examples, or a gradient that is zero or not finite.
    """
    return gradient_dots(model, documents, queries, unit_norm=True, batch_size=batch_size)
