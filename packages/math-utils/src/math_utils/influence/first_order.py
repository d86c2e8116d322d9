"""First-order influence: the inner product of a probe's gradient and a training example's.

ΔL_probe = −η ⟨g_probe, g_train⟩ after one step of gradient descent of rate η on the example
(TracIn; Pruthi et al. 2020, arXiv 2002.08484), so that a positive influence is helpful.
"""

from collections.abc import Iterable, Iterator, Sequence

import torch
from torch import nn

from math_utils._typing import Float, Tensor
from math_utils.errors import InfluenceError
from math_utils.influence.base import DEFAULT_DOMAIN, InfluenceCalculator, Loader, token_batches
from math_utils.influence.config import InfluenceConfig
from math_utils.influence.gradient import DiscriminativeGradientExtractor
from math_utils.influence.layer_gradients import LayerGradients, join, row_blocks

_FEWEST_EXAMPLES = 32


class GradientInfluenceCalculator(InfluenceCalculator):
    """What calculators share that compare gradients: an extractor, and one cache per domain.

    Args:
        model: a causal language model.
        config: what is computed; the extractor's if None.
        gradient_extractor: for this model; one with ``config`` if None.

    Raises:
        InfluenceError: if the extractor is for another model, target or dtype, or projects.
    """

    def __init__(
        self,
        model: nn.Module,
        config: InfluenceConfig | None = None,
        gradient_extractor: DiscriminativeGradientExtractor | None = None,
    ) -> None:
        if gradient_extractor is None:
            gradient_extractor = DiscriminativeGradientExtractor(model, config)
        self.model, self.gradient_extractor = model, gradient_extractor
        self.config = config or gradient_extractor.config
        if gradient_extractor.model is not model:
            raise InfluenceError(
                "expected a gradient_extractor of the same model, got one of another; build both "
                "on one model"
            )
        for name in ("target", "dtype"):
            own, other = (getattr(one, name) for one in (self.config, gradient_extractor.config))
            if own != other:
                raise InfluenceError(
                    f"expected one {name}, got {own} in config and {other} in the "
                    "gradient_extractor's; give both the same config"
                )
        if gradient_extractor.projection is not None:
            raise InfluenceError(
                "expected a gradient_extractor that does not project: inner products are exact "
                "here and need no formed gradients; leave out projection_dim"
            )
        self._cache: dict[str, dict[str, LayerGradients]] = {}

    def cache_probe(self, probe_loader: Loader, domain: str = DEFAULT_DOMAIN) -> None:
        """Keep the gradients of the probe examples of one domain, at the present weights."""
        self._cache[domain] = self.gradient_extractor.gather(probe_loader, "probe loader")

    def clear_cache(self, domain: str | None = None) -> None:
        """Forget the cached probes of one domain, or of all."""
        if domain is None:
            self._cache.clear()
        else:
            self._cache.pop(domain, None)

    @property
    def cached_domains(self) -> tuple[str, ...]:
        """The domains whose probes are cached, in the order of caching."""
        return tuple(self._cache)

    def check_cached(self, domains: Iterable[str]) -> None:
        """Raise an InfluenceError where a domain has no cached probes."""
        for domain in domains:
            if domain not in self._cache:
                raise InfluenceError(
                    f"no probe examples are cached for the domain {domain!r} (cached: "
                    f"{', '.join(self._cache) or 'none'}); call cache_probe first or give a "
                    "probe_loader"
                )

    def _probes(self, probe_loader: Loader | None, domain: str) -> dict[str, LayerGradients]:
        if probe_loader is not None:
            return self.gradient_extractor.gather(probe_loader, "probe loader")
        self.check_cached([domain])
        return self._cache[domain]


class FirstOrderCalculator(GradientInfluenceCalculator):
    """Inner products of gradients, in nats² per unit weight²; training examples are streamed."""

    def compute_influence(
        self,
        train_loader: Loader,
        probe_loader: Loader | None = None,
        *,
        domain: str = DEFAULT_DOMAIN,
    ) -> Float[Tensor, "num_probe num_train"]:
        """⟨g_probe, g_train⟩ over the target; see :class:`InfluenceCalculator`."""
        return self.compute_influences(train_loader, probe_loader, [domain])[0]

    def compute_influences(
        self, train_loader: Loader, probe_loader: Loader | None, domains: Sequence[str]
    ) -> list[Float[Tensor, "num_probe num_train"]]:
        """The same for several domains, with one gradient per training example.

        Args:
            train_loader: the training examples.
            probe_loader: the probe examples; None takes the cached ones of every domain.
            domains: which caches.
        """
        probes = [self._probes(probe_loader, domain) for domain in domains]
        num_probes = max(next(iter(one.values())).num_examples for one in probes)
        columns: list[list[Tensor]] = [[] for _ in domains]
        for trained in self._groups(train_loader, max(num_probes, _FEWEST_EXAMPLES)):
            for own, probe in zip(columns, probes, strict=True):
                parts = [inner_products(probe[name], trained[name]) for name in trained]
                own.append(torch.stack(parts).sum(dim=0).cpu())
        return [torch.cat(own, dim=1) for own in columns]

    def _groups(self, loader: Loader, num_examples: int) -> Iterator[dict[str, LayerGradients]]:
        """Gradients of at least so many examples at a time: probes are formed for each group."""
        group: list[dict[str, LayerGradients]] = []
        size = 0
        for tokens in token_batches(loader, "train loader"):
            group.append(self.gradient_extractor.capture(tokens))
            size += len(tokens.input_ids)
            if size >= num_examples:
                yield {name: join([one[name] for one in group]) for name in group[0]}
                group, size = [], 0
        if group:
            yield {name: join([one[name] for one in group]) for name in group[0]}


def inner_products(
    left: LayerGradients, right: LayerGradients, *, max_elements: int | None = None
) -> Float[Tensor, "left right"]:
    """⟨G_i, G_j⟩ of every two examples, a block of rows at a time.

    Args:
        left: some examples; a block of their rows is formed, so the fewer ones.
        right: other examples, the same weight.
        max_elements: entries formed at once.
    """
    shape = (left.num_examples, right.num_examples)
    total = torch.zeros(shape, dtype=right.dtype, device=right.device)
    blocks = row_blocks(left, right, num_queries=left.num_examples, max_elements=max_elements)
    for start, stop in blocks:
        total += right.block(start, stop).dot(left.block(start, stop).dense())
    return total
