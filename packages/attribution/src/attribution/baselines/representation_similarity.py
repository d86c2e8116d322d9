"""Representation similarity: the angle between a model's hidden states."""

from collections.abc import Sequence

import numpy as np
from jaxtyping import Float32
from torch.nn.functional import normalize
from transformers import PreTrainedModel

from attribution.activations import Layer, Pooling, pooled_hidden_states


def representation_similarity_scores(
    model: PreTrainedModel,
    queries: Sequence[Sequence[int]],
    documents: Sequence[Sequence[int]],
    *,
    layer: Layer = "last",
    pooling: Pooling = "last",
    batch_size: int = 16,
) -> Float32[np.ndarray, "query train"]:
    """Score documents by the cosine of their pooled hidden state with the query's.

    Args:
        model: a Hugging Face causal language model; left as it was.
        queries: token ids of each query, none empty.
        documents: token ids of each document, none empty.
        layer: which hidden states, see :func:`attribution.activations.pooled_hidden_states`.
        pooling: which positions, see there.
        batch_size: sequences per forward pass; of no effect on the scores beyond rounding.

    Returns:
        The scores [query, train] in [-1, 1]; 0 where a state is zero.

    Raises:
        ValueError: on an empty sequence or a hidden state that is not finite.
    """
    query_states, document_states = (
        pooled_hidden_states(model, texts, layer=layer, pooling=pooling, batch_size=batch_size)
        for texts in (queries, documents)
    )
    scores = normalize(query_states, dim=-1) @ normalize(document_states, dim=-1).T
    return scores.numpy()
