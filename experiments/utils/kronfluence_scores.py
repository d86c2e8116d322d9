"""Influence as the library kronfluence computes it, for comparison; group ``peers``."""

import tempfile
from collections.abc import Sequence
from copy import deepcopy
from typing import Any, Literal

import torch
from attribution.examples import Example, collate
from if_query.errors import InputError
from if_query.models import select_maps
from jaxtyping import Float
from torch import Tensor
from transformers import PreTrainedModel


def kronfluence_scores(
    model: PreTrainedModel,
    documents: Sequence[Example],
    queries: Sequence[Example],
    *,
    strategy: Literal["ekfac", "kfac", "diagonal", "identity"] = "ekfac",
    modules: str = "mlp",
    is_empirical: bool = False,
    batch_size: int = 16,
    seed: int = 0,
) -> Float[Tensor, "query document"]:
    """gᵀ(F + λI)⁻¹g of kronfluence, the loss being the summed cross-entropy of the targets.

    λ is 0.1 of the mean eigenvalue of each map, its default and the one relative damping it has.

    Args:
        model: a copy of it is changed by the library.
        documents: what may have taught the answers.
        queries: what is asked.
        strategy: the approximation of F.
        modules: the linear maps, as ``fit-hessians --modules``.
        is_empirical: F of the documents' own labels in place of sampled ones.
        batch_size: texts per pass.
        seed: of sampled labels, which here depend on batches.

    Returns:
        The scores; positive is helpful. For K-FAC they are per position, not per document: the
        library's F, and its scores, are scaled by one number.

    Raises:
        InputError: where the library is not installed, or ``modules`` selects no map or one that
            it does not know.
    """
    try:
        from kronfluence.analyzer import Analyzer, prepare_model
        from kronfluence.arguments import FactorArguments, ScoreArguments
        from kronfluence.task import Task
        from kronfluence.utils.dataset import DataLoaderKwargs
    except ImportError as error:
        raise InputError(
            f"kronfluence is not installed ({error}); run uv sync --group peers"
        ) from error

    names = list(select_maps(model, modules).maps)
    unknown = [name for name in names if not isinstance(model.get_submodule(name), torch.nn.Linear)]
    if unknown:
        raise InputError(
            f"kronfluence knows torch.nn.Linear alone, and {unknown[0]} is a "
            f"{type(model.get_submodule(unknown[0])).__name__}"
        )
    generator = torch.Generator().manual_seed(seed)

    class SummedLoss(Task):  # type: ignore[misc]
        def compute_train_loss(self, batch: Any, model: Any, sample: bool = False) -> Tensor:
            logits = model(input_ids=batch["ids"], attention_mask=batch["mask"]).logits[:, :-1]
            labels = batch["labels"][:, 1:].flatten()
            logits = logits.flatten(0, 1)
            if sample:
                drawn = torch.multinomial(
                    logits.detach().softmax(dim=-1).cpu(), 1, generator=generator
                )
                labels = torch.where(labels < 0, labels, drawn[:, 0].to(labels.device))
            return torch.nn.functional.cross_entropy(logits, labels, reduction="sum")

        def compute_measurement(self, batch: Any, model: Any) -> Tensor:
            return self.compute_train_loss(batch, model)

        def get_influence_tracked_modules(self) -> list[str]:
            return names

        def get_attention_mask(self, batch: Any) -> Tensor:
            mask: Tensor = batch["mask"]
            return mask

    def as_batch(some: Sequence[Example]) -> dict[str, Tensor]:
        batch = collate(some)
        return {
            "ids": batch.input_ids,
            "mask": batch.attention_mask.long(),
            "labels": batch.labels,
        }

    task = SummedLoss()
    with tempfile.TemporaryDirectory() as folder, torch.random.fork_rng():
        analyzer = Analyzer(
            analysis_name="peer",
            model=prepare_model(deepcopy(model), task),
            task=task,
            cpu=model.device.type == "cpu",
            disable_tqdm=True,
            output_dir=folder,
        )
        analyzer.set_dataloader_kwargs(DataLoaderKwargs(collate_fn=as_batch))
        analyzer.fit_all_factors(
            factors_name=strategy,
            dataset=list(documents),
            per_device_batch_size=batch_size,
            factor_args=FactorArguments(strategy=strategy, use_empirical_fisher=is_empirical),
        )
        analyzer.compute_pairwise_scores(
            scores_name=strategy,
            factors_name=strategy,
            query_dataset=list(queries),
            train_dataset=list(documents),
            per_device_query_batch_size=batch_size,
            per_device_train_batch_size=batch_size,
            score_args=ScoreArguments(damping_factor=None),
        )
        scores: Tensor = analyzer.load_pairwise_scores(strategy)["all_modules"]
    return scores.float()
