"""One vector per text of a matrix of states."""

from typing import Literal

import torch
from jaxtyping import Bool, Float
from math_utils.language_modeling import TokenBatch
from torch import Tensor

SpanPooling = Literal["last", "span", "text"]


def pooled_positions(batch: TokenBatch, pooling: SpanPooling) -> Bool[Tensor, "batch seq"]:
    """True at the positions whose states are averaged.

    Args:
        batch: the examples, with −100 at tokens that are no target.
        pooling: "last", the one position that predicts the last target: for a query the token
            before the answer's last token, for a whole text with an end token its last real token;
            "span", all positions that predict a target; "text", all that predict a token of the
            text, which leaves out only the very last token.
    """
    predicts = batch.label_positions()
    if pooling == "span":
        return predicts
    if pooling == "last":
        places = torch.arange(predicts.shape[1], device=predicts.device)
        last = torch.where(predicts, places, -1).amax(dim=1)
        return places[None, :] == last[:, None]
    followed = torch.zeros_like(batch.attention_mask)
    followed[:, :-1] = batch.attention_mask[:, :-1] & batch.attention_mask[:, 1:]
    return followed


def pool(
    states: Float[Tensor, "batch seq hidden"], positions: Bool[Tensor, "batch seq"]
) -> Float[Tensor, "batch hidden"]:
    """The mean of the states over the positions that are True, of which every row has one."""
    # Not states * mask: what stands at padded positions may be infinite or NaN.
    kept = states.masked_fill(~positions[:, :, None], 0.0)
    return kept.sum(dim=1) / positions.sum(dim=1, keepdim=True)
