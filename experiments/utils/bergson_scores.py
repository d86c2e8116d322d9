"""Gradient similarity and TrackStar as the library bergson computes them; group ``peers``."""

import tempfile
from collections.abc import Sequence
from copy import deepcopy
from pathlib import Path
from typing import Any, Literal

import torch
from attribution.examples import Example
from if_query.batching import make_batches
from if_query.errors import InputError
from jaxtyping import Float
from torch import Tensor
from torch.nn.functional import normalize
from transformers import PreTrainedModel


def bergson_scores(
    model: PreTrainedModel,
    documents: Sequence[Example],
    queries: Sequence[Example],
    *,
    kind: Literal["trackstar", "cosine", "dot"] = "trackstar",
    projection_dim: int = 16,
    batch_size: int = 16,
    seed: int = 0,
) -> Float[Tensor, "query document"]:
    """The products of gradients that bergson collects, of the linear maps inside the blocks.

    Embedding, head and norms are left out: the library hooks linear maps below the head.

    Args:
        model: a copy of it is run, as the library writes onto modules.
        documents: what may have taught the answers.
        queries: what is asked.
        kind: "dot", ⟨∇L, ∇L⟩; "cosine" of them; "trackstar", the cosine after the library's
            H^(−1/2), H the second moment of the documents' gradients map by map, damped by 0.1 of
            its mean eigenvalue.
        projection_dim: both sides of every map's gradient are projected to so many; 0 for none.
        batch_size: documents of the greatest length in a pass.
        seed: of the projections.

    Returns:
        The scores; positive is helpful.

    Raises:
        InputError: where the library is not installed.
    """
    try:
        from bergson.hessians.preconditioner import DensePreconditioner
    except ImportError as error:
        raise InputError(
            f"bergson is not installed ({error}); run uv sync --group peers"
        ) from error

    own = deepcopy(model).requires_grad_(True)
    given, processor = _gradients(
        own, documents, projection_dim, batch_size, seed, with_moments=kind == "trackstar"
    )
    asked, _ = _gradients(own, queries, projection_dim, batch_size, seed, with_moments=False)
    if kind == "trackstar":
        precondition = DensePreconditioner.from_processor(processor, power=-0.5).apply
        asked, given = precondition(asked), precondition(given)
    rows = [torch.cat(list(one.values()), dim=1) for one in (asked, given)]
    if kind != "dot":
        rows = [normalize(one, dim=1) for one in rows]
    return rows[0] @ rows[1].T


def _gradients(
    model: PreTrainedModel,
    examples: Sequence[Example],
    projection_dim: int,
    batch_size: int,
    seed: int,
    *,
    with_moments: bool,
) -> tuple[dict[str, Tensor], Any]:
    """({map: [example, entries]}, the library's processor with the second moments)."""
    from bergson.collector.collector import CollectorComputer
    from bergson.collector.in_memory_collector import InMemoryCollector
    from bergson.config.config import IndexConfig
    from bergson.gradients import GradientProcessor
    from datasets import Dataset

    lengths = [len(one.token_ids) for one in examples]
    data = Dataset.from_dict(
        {
            "input_ids": [list(one.token_ids) for one in examples],
            "labels": [one.labels for one in examples],
            "length": lengths,
        }
    )
    processor = GradientProcessor(projection_dim=projection_dim or None, projection_seed=seed)
    with tempfile.TemporaryDirectory() as folder:
        config = IndexConfig(
            run_path=folder,
            projection_dim=projection_dim,
            projection_seed=seed,
            loss_reduction="sum",
        )
        Path(config.partial_run_path).mkdir(parents=True, exist_ok=True)
        collector = InMemoryCollector(
            model=model.base_model,
            cfg=config,
            processor=processor,
            data=data,
            skip_hessians=not with_moments,
        )
        CollectorComputer(
            model=model,
            data=data,
            collector=collector,
            batches=make_batches(lengths, max_tokens=batch_size * max(lengths)),
            cfg=config,
        ).run_with_collector_hooks()
    return {name: found.float() for name, found in collector.gradients.items()}, processor
