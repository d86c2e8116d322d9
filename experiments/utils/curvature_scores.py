"""K-FAC and EK-FAC influence of encoded documents, fitted and scored in memory.

The same passes as ``fit-hessians`` and ``run-query``, for documents and queries that are encoded
already; the commands are for what must survive a kill or does not fit in memory.
"""

from collections.abc import Sequence

import torch
from attribution.examples import Example
from attribution.progress import CountedBatches
from if_query.batching import make_batches
from if_query.datasets import TokenDataset
from if_query.encoding import EncodedExample
from if_query.models import LanguageModelLoss, select_maps
from if_query.passes import load_batches
from jaxtyping import Float
from math_utils.capture import frozen
from math_utils.curvature import (
    CurvatureConfig,
    Damping,
    Strategy,
    collect_queries,
    fit_curvature,
    score_batch,
)
from torch import Tensor
from transformers import PreTrainedModel


def curvature_scores(
    model: PreTrainedModel,
    documents: Sequence[Example],
    queries: Sequence[Example],
    *,
    strategy: Strategy = "ekfac",
    modules: str = "mlp",
    damping: float = 0.1,
    is_empirical: bool = False,
    batch_size: int = 16,
    seed: int = 0,
) -> Float[Tensor, "query document"]:
    """gᵀ(F + λI)⁻¹g, the curvature fitted on the documents themselves.

    Args:
        model: in general the new checkpoint; left as it was.
        documents: what may have taught the answers.
        queries: what is asked.
        strategy: the approximation of F.
        modules: the linear maps, as ``fit-hessians --modules``.
        damping: λ over the mean eigenvalue of each map.
        is_empirical: F of the documents' own labels in place of sampled ones.
        batch_size: documents of the greatest length in a pass; shorter ones go in larger batches.
        seed: of sampled labels.

    Returns:
        The scores in nats per unit weight of one document. Positive is helpful.

    Raises:
        InputError: where ``modules`` selects no map.
        CurvatureError: where a loss or a gradient is not finite.
    """
    maps = select_maps(model, modules).maps
    given, asked = (_dataset(some) for some in (documents, queries))
    # float64 models are for tests of tiny differences; statistics are float32 otherwise.
    dtype = torch.promote_types(model.dtype, torch.float32)
    plans = [
        make_batches(each.lengths, max_tokens=batch_size * int(each.lengths.max()))
        for each in (given, asked)
    ]
    document_batches = list(load_batches(model, given, plans[0]))
    sizes = [len(rows) for rows in plans[0]]
    query_batches = list(load_batches(model, asked, plans[1]))
    factors = fit_curvature(
        model,
        maps,
        CountedBatches(document_batches, sizes, description=strategy),
        LanguageModelLoss.for_model(model, "given" if is_empirical else "sampled", seed),
        CurvatureConfig(strategy, covariance_dtype=dtype),
    )
    scores = torch.empty(len(queries), len(documents), dtype=dtype)
    query_rows = torch.tensor([row for rows in plans[1] for row in rows])
    with frozen(model):
        loss = LanguageModelLoss.for_model(model)
        preconditioned, _ = collect_queries(
            model, maps, query_batches, loss, factors, Damping(damping), dtype=dtype
        )
        counted = CountedBatches(document_batches, sizes, description="scores")
        for rows, batch in zip(plans[0], counted, strict=True):
            found = score_batch(model, maps, batch, loss, preconditioned, dtype=dtype).total
            scores[query_rows[:, None], torch.tensor(rows)] = found.to(dtype)
    return scores


def _dataset(examples: Sequence[Example]) -> TokenDataset:
    return TokenDataset.from_examples(
        EncodedExample(list(one.token_ids), one.labels) for one in examples
    )
