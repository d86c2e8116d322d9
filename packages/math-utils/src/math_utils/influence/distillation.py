"""Influence Distillation: exact influence of a few examples, spread to all others.

Nikdan et al. 2025 (arXiv 2505.19051). Every example gets a cheap embedding; landmarks among them
get true gradients and so their first-order influence p_L on the probe examples; kernel ridge
regression on the embeddings carries it to the others,

    p̂ = K_SL (K_LL + λI)⁻¹ p_L.

Landmarks keep their exact influence, so that with all examples as landmarks the result is exact.
"""

import zlib
from collections.abc import Iterator, Mapping
from dataclasses import dataclass

import torch
from torch import nn

from math_utils._typing import Float, Int, Tensor
from math_utils.causal_lm import token_batch
from math_utils.errors import InfluenceError
from math_utils.influence.base import (
    DEFAULT_DOMAIN,
    Batch,
    DataSelector,
    EmbeddingExtractor,
    InfluenceCalculator,
    Loader,
    limited,
)
from math_utils.influence.config import InfluenceConfig, InfluenceDistillationConfig
from math_utils.influence.first_order import FirstOrderCalculator
from math_utils.influence.gradient import DiscriminativeGradientExtractor
from math_utils.influence.jvp_embedding import JVPEmbeddingExtractor
from math_utils.influence.kernel_ridge import KernelRidge
from math_utils.influence.landmark import LandmarkSelector
from math_utils.influence.selection import regularized_weights, select_round_robin, select_top


@dataclass(frozen=True)
class DistillationQuality:
    """How near propagated influence is to exact first-order influence.

    Over the examples that are not landmarks (over all, if all are); means over probe examples.

    Attributes:
        pearson: correlation.
        spearman: rank correlation.
        relative_error: ‖p̂ − p‖ / ‖p‖.
        num_landmarks: examples with exact gradients.
        num_examples: all examples.
    """

    pearson: float
    spearman: float
    relative_error: float
    num_landmarks: int
    num_examples: int


class InfluenceDistillation(InfluenceCalculator, DataSelector):
    """First-order influence of many examples, from the gradients of a few.

    Training loaders are read twice, first for embeddings and then for the landmarks' gradients,
    and must give the same examples in the same order both times; that is checked.

    Args:
        model: a causal language model; never changed.
        config: embeddings, landmarks, kernel, weights.
        embedding_extractor: another source of embeddings; forward-mode ones if None.
        gradient_extractor: of the gradients; embedding and head in float32 if None. One that
            does not project: inner products are exact without.

    Raises:
        InfluenceError: if the model lacks what an extractor needs.
    """

    def __init__(
        self,
        model: nn.Module,
        config: InfluenceDistillationConfig | None = None,
        embedding_extractor: EmbeddingExtractor | None = None,
        gradient_extractor: DiscriminativeGradientExtractor | None = None,
    ) -> None:
        self.model = model
        self.config = config or InfluenceDistillationConfig()
        self.embedding_extractor = embedding_extractor or JVPEmbeddingExtractor(
            model, self.config.embedding
        )
        gradient_extractor = gradient_extractor or DiscriminativeGradientExtractor(
            model, InfluenceConfig()
        )
        self.exact = FirstOrderCalculator(model, gradient_extractor=gradient_extractor)

    def cache_probe(self, probe_loader: Loader, domain: str = DEFAULT_DOMAIN) -> None:
        """Keep the gradients of the probe examples of one domain, at the present weights."""
        self.exact.cache_probe(probe_loader, domain)

    def clear_cache(self, domain: str | None = None) -> None:
        """Forget the cached probes of one domain, or of all."""
        self.exact.clear_cache(domain)

    def compute_influence(
        self,
        train_loader: Loader,
        probe_loader: Loader | None = None,
        *,
        domain: str = DEFAULT_DOMAIN,
    ) -> Float[Tensor, "num_probe num_train"]:
        """Propagated first-order influence; see :class:`InfluenceCalculator`.

        Raises:
            InfluenceError: on an empty loader, one that gives other examples when it is read
                again, an example without labels among the landmarks, nothing cached, or a kernel
                matrix that is not positive definite.
        """
        return self._propagate(train_loader, probe_loader, [domain])[0][0]

    def compute_sample_weights(
        self,
        train_loader: Loader,
        probe_loader: Loader | None = None,
        *,
        total: float | None = None,
        domain: str = DEFAULT_DOMAIN,
    ) -> Float[Tensor, " num_train"]:
        """The weights w = argmin −wᵀp + (η/2)‖w‖², w ≥ 0, for p the mean influence over probes.

        Args:
            train_loader: the training examples.
            probe_loader: the probe examples; None takes the cached ones.
            total: the sum of the weights; the number of examples if None.
            domain: which cache.
        """
        mean = self.compute_influence(train_loader, probe_loader, domain=domain).mean(dim=0)
        return regularized_weights(
            mean, self.config.regularization, total=float(len(mean)) if total is None else total
        )

    def compute_mixture_weights(
        self,
        source_loaders: Mapping[str, Loader],
        probe_loader: Loader | None = None,
        *,
        domain: str = DEFAULT_DOMAIN,
    ) -> dict[str, float]:
        """The weights of data sources: the same problem, within the bounds of the mixture.

        p of a source is the mean influence of its examples, over probe examples too; landmarks
        are chosen among the examples of all sources together.

        Args:
            source_loaders: the examples of every source.
            probe_loader: the probe examples; None takes the cached ones.
            domain: which cache.

        Returns:
            One weight per source, summing to 1.

        Raises:
            InfluenceError: on no sources, an empty one, or bounds that cannot be satisfied.
        """
        mixture = self.config.mixture
        sources = _Sources(source_loaders)
        regularized_weights(  # bounds first: they cost nothing to check
            torch.zeros(len(source_loaders)), 1.0, low=mixture.min_weight, high=mixture.max_weight
        )
        mean = self.compute_influence(sources, probe_loader, domain=domain).mean(dim=0)
        means = torch.stack([part.mean() for part in mean.split(sources.sizes())])
        weights = regularized_weights(
            means, self.config.regularization, low=mixture.min_weight, high=mixture.max_weight
        )
        return dict(zip(source_loaders, weights.tolist(), strict=True))

    def select(self, loader: Loader, budget: int) -> Int[Tensor, " budget"]:
        """The most helpful examples for the cached probes, best first.

        With several cached domains, each in turn takes the best example that is left.

        Raises:
            InfluenceError: if nothing is cached, or the budget is larger than the loader.
        """
        domains = list(self.exact.cached_domains) or [DEFAULT_DOMAIN]
        influences, _ = self._propagate(loader, None, domains)
        means = torch.stack([one.mean(dim=0) for one in influences])
        return (
            select_top(means[0], budget) if len(means) == 1 else select_round_robin(means, budget)
        )

    def evaluate(
        self,
        train_loader: Loader,
        probe_loader: Loader | None = None,
        *,
        domain: str = DEFAULT_DOMAIN,
    ) -> DistillationQuality:
        """Compare with exact first-order influence, which costs a gradient of every example."""
        (found,), landmarks = self._propagate(train_loader, probe_loader, [domain])
        exact = self.exact.compute_influence(train_loader, probe_loader, domain=domain)
        held_out = torch.ones(found.shape[1], dtype=torch.bool)
        if len(landmarks) < found.shape[1]:
            held_out[landmarks] = False
        found, exact = found[:, held_out].double(), exact[:, held_out].double()
        return DistillationQuality(
            pearson=_correlation(found, exact),
            spearman=_correlation(_ranks(found), _ranks(exact)),
            relative_error=float(((found - exact).norm(dim=1) / exact.norm(dim=1)).mean()),
            num_landmarks=len(landmarks),
            num_examples=len(held_out),
        )

    def _propagate(
        self, train_loader: Loader, probe_loader: Loader | None, domains: list[str]
    ) -> tuple[list[Tensor], Tensor]:
        """([num_probe, num_train] for every domain, the landmarks)."""
        if probe_loader is None:
            self.exact.check_cached(domains)
        recorded = _Recorded(train_loader)
        embeddings = self.embedding_extractor.compute_embeddings(recorded)
        landmarks = LandmarkSelector(self.config.landmarks).select(embeddings).sort().values
        picked = _Picked(train_loader, landmarks, recorded.digests)
        known = self.exact.compute_influences(picked, probe_loader, domains)
        ridge = KernelRidge(embeddings[landmarks], torch.cat(known), self.config.kernel_ridge)
        spread = ridge.predict(embeddings).to(known[0].dtype)
        spread[:, landmarks] = torch.cat(known)
        return list(spread.split([len(one) for one in known])), landmarks


class _Recorded:
    """A loader whose examples are remembered by a digest of their tokens and labels."""

    def __init__(self, loader: Loader) -> None:
        self._loader = loader
        self.digests: list[int] = []

    def __iter__(self) -> Iterator[Batch]:
        for batch in limited(self._loader, None, "train loader"):
            self.digests += _digests(batch)
            yield batch


class _Picked:
    """Some examples of a loader, checked to be those that were there before."""

    def __init__(
        self, loader: Loader, chosen: Int[Tensor, " num_landmarks"], digests: list[int]
    ) -> None:
        self._loader, self._digests = loader, digests
        self._chosen = torch.zeros(len(digests), dtype=torch.bool)
        self._chosen[chosen] = True

    def __iter__(self) -> Iterator[Batch]:
        first = 0
        for batch in self._loader:
            size = len(batch["input_ids"])
            if _digests(batch) != self._digests[first : first + size]:
                break
            own = self._chosen[first : first + size]
            first += size
            if own.any():
                yield {
                    key: value[own.to(value.device)] if isinstance(value, Tensor) else value
                    for key, value in batch.items()
                }
        if first != len(self._digests):
            raise InfluenceError(
                "the train loader: expected the same examples in the same order when it is read "
                f"again, but they differ after example {first}; pass a list of batches, or a "
                "loader that does not shuffle"
            )


class _Sources:
    """The examples of all sources, one source after the other."""

    def __init__(self, loaders: Mapping[str, Loader]) -> None:
        if not loaders:
            raise InfluenceError("expected at least one source, got none")
        self._loaders = loaders
        self._sizes = dict.fromkeys(loaders, 0)

    def __iter__(self) -> Iterator[Batch]:
        for name, loader in self._loaders.items():
            self._sizes[name] = 0
            for batch in limited(loader, None, f"loader of the source {name!r}"):
                self._sizes[name] += len(batch["input_ids"])
                yield batch

    def sizes(self) -> list[int]:
        """Examples per source, as last counted."""
        return list(self._sizes.values())


def _digests(batch: Batch) -> list[int]:
    tokens = token_batch(batch)
    rows = torch.stack([tokens.input_ids, tokens.labels], dim=2).cpu()
    masks = tokens.attention_mask.cpu()
    return [zlib.crc32(row[mask].numpy().tobytes()) for row, mask in zip(rows, masks, strict=True)]


def _correlation(left: Tensor, right: Tensor) -> float:
    """Mean over rows of Pearson's correlation; NaN where a row is constant."""
    left = left - left.mean(dim=1, keepdim=True)
    right = right - right.mean(dim=1, keepdim=True)
    return float(((left * right).sum(dim=1) / (left.norm(dim=1) * right.norm(dim=1))).mean())


def _ranks(values: Tensor) -> Tensor:
    return values.argsort(dim=1).argsort(dim=1).double()
