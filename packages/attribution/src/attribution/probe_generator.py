"""Probes made by a deep linear generator, and what a frozen model answers to them.

A probe is a vector in a model's embedding space, no word of its vocabulary. It stands behind a text
and is read like one more token: under causal attention the text is untouched by it, and the last
layer's state at its place is what the model "says" about the text when it is asked like this.
"""

import inspect
import itertools
from collections.abc import Iterator, Sequence
from typing import Any

import torch
from jaxtyping import Float
from math_utils.language_modeling import TokenBatch
from torch import Tensor
from transformers import PreTrainedModel

from attribution.decoder import num_positions
from attribution.errors import AttributionError
from attribution.examples import Example


class DeepLinearGenerator:
    """Latents → linear maps without nonlinearities → probes.

    Together they are one linear map; but gradient descent on a product of matrices prefers low
    rank (arXiv 1905.13655), and such probes generalise better than freely trained ones (Kahana,
    Horwitz, Shuval and Hoshen 2024, arXiv 2410.10811).

    Args:
        num_probes: probes M, one latent each.
        latent_size: entries of a latent.
        num_layers: linear maps, at least one; all but the last are square.
        hidden_size: entries of a probe, the model's hidden size.
        scale: root mean square of a probe's entries at the start, that of real embeddings.
        generator: for the initial values.
    """

    def __init__(
        self,
        *,
        num_probes: int,
        latent_size: int,
        num_layers: int,
        hidden_size: int,
        scale: float,
        generator: torch.Generator,
    ) -> None:
        def normal(*shape: int, std: float) -> Tensor:
            return torch.randn(*shape, generator=generator) * std

        widths = [latent_size] * num_layers + [hidden_size]
        self.latents = normal(num_probes, latent_size, std=1.0)
        self.maps = [
            normal(d_in, d_out, std=d_in**-0.5) for d_in, d_out in itertools.pairwise(widths)
        ]
        self.scale = scale

    def parameters(self) -> list[Tensor]:
        """What is trained."""
        return [self.latents, *self.maps]

    def __call__(self) -> Float[Tensor, "probe hidden"]:
        """The probes."""
        probes = self.latents
        for one in self.maps:
            probes = probes @ one
        return self.scale * probes


def text_batches(
    examples: Sequence[Example], batch_size: int, device: torch.device
) -> Iterator[tuple[list[int], TokenBatch]]:
    """What the model reads of each example, those of like length together: (rows, batch).

    The last target is never read, so that no answer is among the inputs; padding is on the left,
    so that the probes of all rows stand at the same places.
    """
    order = sorted(range(len(examples)), key=lambda index: -examples[index].span[1])
    for first in range(0, len(order), batch_size):
        rows = order[first : first + batch_size]
        read = [examples[row].token_ids[: examples[row].span[1] - 1] for row in rows]
        yield rows, TokenBatch.collate(read, read, rows, padding_side="left").to(device)


def probe_responses(
    model: PreTrainedModel, batch: TokenBatch, probes: Float[Tensor, "probe hidden"]
) -> Float[Tensor, "batch probe hidden"]:
    """The last layer's states at the probes, which stand behind each text in their order.

    Args:
        model: frozen by its caller: the graph reaches ``probes`` through it.
        batch: texts, padded on the left.
        probes: a probe reads the text and the probes before it.
    """
    size, num_probes = len(batch.input_ids), len(probes)
    embedding: Any = model.get_input_embeddings()
    texts = embedding(batch.input_ids).detach()
    mask = torch.cat([batch.attention_mask, batch.attention_mask.new_ones(size, num_probes)], dim=1)
    options: dict[str, Any] = {}
    if "position_ids" in inspect.signature(model.base_model.forward).parameters:
        options["position_ids"] = (mask.long().cumsum(dim=1) - 1).clamp_min(0)
    output = model.base_model(
        inputs_embeds=torch.cat([texts, probes.to(texts.dtype).expand(size, -1, -1)], dim=1),
        attention_mask=mask.long(),
        use_cache=False,
        **options,
    )
    states: Tensor = output.last_hidden_state[:, -num_probes:]
    return states


def check_room(examples: Sequence[Example], num_probes: int, model: PreTrainedModel) -> None:
    """Refuse texts that leave no place for the probes.

    Raises:
        AttributionError: naming the first one.
    """
    limit = num_positions(model)
    for index, example in enumerate(examples):
        if limit is not None and example.span[1] - 1 + num_probes > limit:
            raise AttributionError(
                f"text {index}: its {example.span[1] - 1} tokens and {num_probes} probes are more "
                f"than the model's {limit} positions"
            )
