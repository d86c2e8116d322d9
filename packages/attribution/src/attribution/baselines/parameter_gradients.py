"""Gradients of examples with respect to all parameters of a model, one example at a time.

Every trained tensor takes part: embedding, head, attention, feed-forward blocks and norms, tied
ones once. An example runs on its own, so that no batch and no padding can have any effect.
"""

from collections.abc import Callable, Iterator, Sequence

import torch
from jaxtyping import Float
from torch import Tensor
from tqdm import tqdm
from transformers import PreTrainedModel

from attribution.checkpoints import check_examples
from attribution.errors import AttributionError
from attribution.examples import Example
from attribution.gradient_similarity import EncodedExample, ExampleGradients

Transform = Callable[[Tensor], Tensor]


def stack_gradients(
    gradients: ExampleGradients,
    examples: Sequence[Example],
    what: str,
    *,
    transform: Transform | None = None,
) -> Float[Tensor, "example width"]:
    """∇L of every example, flat, in nats per unit of weight, on the model's device.

    Args:
        gradients: of the model.
        examples: documents or queries; the memory is their number times ``width``.
        what: what they are, for the progress bar and for messages.
        transform: applied to each flat gradient, such as a projection.

    Raises:
        AttributionError: on a gradient that is not finite, or zero.
    """
    return torch.cat(list(gradient_blocks(gradients, examples, what, 1, transform=transform)))


def gradient_blocks(
    gradients: ExampleGradients,
    examples: Sequence[Example],
    what: str,
    batch_size: int,
    *,
    transform: Transform | None = None,
) -> Iterator[Float[Tensor, "block width"]]:
    """The same, ``batch_size`` rows at a time.

    Raises:
        AttributionError: on a gradient that is not finite, or zero: it has no direction, and an
            example that teaches nothing is a mistake upstream.
    """
    rows: list[Tensor] = []
    for index, example in enumerate(tqdm(examples, desc=f"{what} gradients", unit=f" {what}s")):
        encoded = EncodedExample(example.token_ids, tuple(example.labels), index)
        gradient = gradients(encoded)
        if not gradient.any():
            raise AttributionError(f"{what} {index}: its gradient is zero and has no direction")
        rows.append(gradient if transform is None else transform(gradient))
        if len(rows) == batch_size or index + 1 == len(examples):
            yield torch.stack(rows)
            rows = []


def gradient_dots(
    model: PreTrainedModel,
    documents: Sequence[Example],
    queries: Sequence[Example],
    *,
    unit_norm: bool = False,
    batch_size: int = 16,
) -> Float[Tensor, "query document"]:
    """⟨∇L(query), ∇L(document)⟩ over all parameters; with ``unit_norm`` their cosine.

    Memory: (queries + ``batch_size``) · parameters; documents are streamed. Time: one forward and
    backward pass per text.

    Args:
        model: a Hugging Face causal language model; left as it was.
        documents: what may have taught the answers.
        queries: what is asked.
        unit_norm: whether gradients are divided by their norms.
        batch_size: documents whose gradients are multiplied with all queries' at once.

    Returns:
        The products on the CPU: nats² per unit² of weight, or cosines. Positive is helpful.

    Raises:
        AttributionError: on unfit examples, or a gradient that is zero or not finite.
    """
    check_examples(queries, model, "query")
    check_examples(documents, model, "document")
    gradients = ExampleGradients(model)
    asked = stack_gradients(gradients, queries, "query")
    columns = []
    for block in gradient_blocks(gradients, documents, "document", batch_size):
        dots = asked @ block.T
        columns.append((dots / block.norm(dim=1) if unit_norm else dots).cpu())
    products = torch.cat(columns, dim=1)
    return products / asked.norm(dim=1, keepdim=True).cpu() if unit_norm else products
