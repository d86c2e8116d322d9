"""DataInf: influence with a closed form of the damped inverse of the curvature."""

from collections.abc import Sequence
from typing import Any

import torch
from jaxtyping import Float
from math_utils.influence import DataInfCalculator, InfluenceConfig
from torch import Tensor
from transformers import PreTrainedModel

from attribution.checkpoints import check_examples
from attribution.examples import Example, PaddingSide, collate
from attribution.progress import CountedBatches


def datainf_scores(
    model: PreTrainedModel,
    documents: Sequence[Example],
    queries: Sequence[Example],
    *,
    target: str = "mlp",
    damping: float = 0.1,
    batch_size: int = 16,
    padding_side: PaddingSide = "right",
) -> Float[Tensor, "query document"]:
    """gᵀ(F + λI)⁻¹g layer by layer, the inverse of a mean taken as the mean of inverses.

    F is the empirical Fisher of ``documents``, averaged per document; see
    :mod:`math_utils.influence.datainf` for the formula (Kwon, Wu, Wu and Zou 2023, arXiv
    2310.00902, with the opposite sign).

    Args:
        model: a Hugging Face causal language model, in general the new checkpoint.
        documents: what may have taught the answers.
        queries: what is asked.
        target: the weights: "mlp" as EK-FAC has them by default, "both" (embedding and head),
            "all" or a pattern, see :class:`math_utils.influence.InfluenceTarget`.
        damping: λ over the mean squared entry of a layer's gradients.
        batch_size: texts per pass; of no effect on the scores beyond rounding.
        padding_side: where shorter texts are padded; of no effect either.

    Returns:
        The scores, in nats per unit weight of one document. Positive is helpful.

    Raises:
        AttributionError: on unfit examples.
        InfluenceError: where the model has no such weights.
        NonFiniteError: where a gradient is not finite, naming example and layer.
    """
    check_examples(queries, model, "query")
    check_examples(documents, model, "document")
    # float64 where the model is in float64: influences may nearly cancel.
    config = InfluenceConfig(
        lambda_val=damping, target=target, dtype=torch.promote_types(model.dtype, torch.float32)
    )
    order = sorted(range(len(documents)), key=lambda index: -len(documents[index].token_ids))
    given = _loader([documents[index] for index in order], batch_size, padding_side)
    scores = DataInfCalculator(model, config).compute_influence(
        CountedBatches(
            given, [len(one["input_ids"]) for one in given], description="document gradients"
        ),
        _loader(queries, batch_size, padding_side),
    )
    restored = torch.empty_like(scores)
    restored[:, order] = scores
    return restored


def _loader(
    examples: Sequence[Example], batch_size: int, padding_side: PaddingSide
) -> list[dict[str, Any]]:
    batches = [
        collate(examples[first : first + batch_size], padding_side)
        for first in range(0, len(examples), batch_size)
    ]
    return [
        {
            "input_ids": batch.input_ids,
            "attention_mask": batch.attention_mask.long(),
            "labels": batch.labels,
        }
        for batch in batches
    ]
