"""How much each data source helps a model on probe sets, and what weights follow from it."""

import math
from collections.abc import Iterable, Iterator, Mapping
from contextlib import contextmanager
from dataclasses import dataclass
from typing import Any, Literal

import torch
from math_utils.errors import InfluenceError
from math_utils.influence import (
    DataInfCalculator,
    FirstOrderCalculator,
    InfluenceCalculator,
    InfluenceConfig,
    InfluenceDistillation,
    InfluenceDistillationConfig,
    MixtureConfig,
    smooth,
)
from torch import nn
from torch.nn.parallel import DistributedDataParallel

from data_handler.influence.mixture import check_bounds, exponentiated_step

Batch = Mapping[str, Any]
Loader = Iterable[Batch]
Method = Literal["datainf", "distillation", "first_order"]
METHODS: tuple[Method, ...] = ("datainf", "distillation", "first_order")


@dataclass(frozen=True)
class SourceInfluence:
    """The influence of one source.

    Attributes:
        mean: over its examples, of their influence on the probes (the mean over the examples of
            a domain, domains weighted); positive is helpful. In nats per unit weight of one
            training example (datainf), or in nats² per unit weight² (the others).
        standard_error: of the mean, over the source's examples.
        num_examples: how many were measured.
        by_domain: the mean for each probe domain alone.
    """

    mean: float
    standard_error: float
    num_examples: int
    by_domain: dict[str, float]


class MixtureWeightCalculator:
    """Weights of data sources by their influence on probe sets.

    All sources are measured together, as one training set, so that DataInf divides by one
    curvature and the numbers of different sources compare. Probes of all domains are measured in
    the same pass, at the model's present weights; nothing is kept between two measurements but
    the running influence.

    Args:
        model: a causal language model; left as it was.
        probe_loaders: probe examples by domain; read again at each measurement.
        config: bounds, learning rate and smoothing.
        method: "datainf", "first_order" (inner products of gradients) or "distillation".
        influence_config: target and damping of datainf and first_order.
        distillation_config: of distillation.
        domain_weights: how much each domain counts, not negative; even if None. Scaled to sum 1.

    Raises:
        InfluenceError: on an unknown method, no domains, or domain weights that do not fit.
    """

    def __init__(
        self,
        model: nn.Module,
        probe_loaders: Mapping[str, Loader],
        config: MixtureConfig | None = None,
        method: Method = "datainf",
        *,
        influence_config: InfluenceConfig | None = None,
        distillation_config: InfluenceDistillationConfig | None = None,
        domain_weights: Mapping[str, float] | None = None,
    ) -> None:
        if method not in METHODS:
            raise InfluenceError(f"expected a method among {', '.join(METHODS)}, got {method!r}")
        if not probe_loaders:
            raise InfluenceError("expected at least one probe domain, got none")
        self.config = config or MixtureConfig()
        self.running_influence: dict[str, float] | None = None
        """The smoothed influence of each source; None before the first update."""
        self.last_measured: dict[str, SourceInfluence] = {}
        """What the last measurement found."""
        self._probe_loaders = dict(probe_loaders)
        self._domain_weights = _normalised(domain_weights, self._probe_loaders)
        if isinstance(model, DistributedDataParallel):
            model = model.module
        self._model = model
        self._calculator: InfluenceCalculator
        if method == "distillation":
            self._calculator = InfluenceDistillation(model, distillation_config)
        elif method == "datainf":
            self._calculator = DataInfCalculator(model, influence_config)
        else:
            self._calculator = FirstOrderCalculator(model, influence_config)

    def measure(self, source_loaders: Mapping[str, Loader]) -> dict[str, SourceInfluence]:
        """The influence of every source on the probes, at the model's present weights.

        The global random state is left as it was, although loaders draw from it. Mixed precision
        is switched off: gradients are those of the weights as they are stored.

        Args:
            source_loaders: examples by source, at least two of each.

        Raises:
            InfluenceError: on no sources, an empty loader, a source with one example, or an
                influence that is not finite, named.
        """
        if not source_loaders:
            raise InfluenceError("expected at least one source, got none")
        sources, probes = _Chained(source_loaders, "source"), _Chained(self._probe_loaders, "probe")
        with torch.random.fork_rng(devices=[]), _full_precision(self._model):
            influence = self._calculator.compute_influence(sources, probes).double()
        by_domain = {
            domain: rows.mean(dim=0) for domain, rows in probes.split(influence, dim=0).items()
        }
        joint = sum(self._domain_weights[domain] * one for domain, one in by_domain.items())
        assert isinstance(joint, torch.Tensor)
        found = {}
        for source, values in sources.split(joint, dim=0).items():
            if not torch.isfinite(values).all():
                raise InfluenceError(f"an influence of the source {source} is not finite")
            if len(values) < 2:
                raise InfluenceError(
                    f"expected at least 2 examples of the source {source} for a standard error, "
                    f"got {len(values)}"
                )
            found[source] = SourceInfluence(
                mean=float(values.mean()),
                standard_error=float(values.std() / math.sqrt(len(values))),
                num_examples=len(values),
                by_domain={
                    domain: float(sources.split(one, dim=0)[source].mean())
                    for domain, one in by_domain.items()
                },
            )
        self.last_measured = found
        return found

    def compute_weights(self, source_loaders: Mapping[str, Loader]) -> dict[str, float]:
        """The weights after one step from even ones; the running influence is left alone.

        Raises:
            InfluenceError: as :meth:`measure`, or if the bounds cannot be satisfied.
        """
        self._check_bounds(source_loaders)
        found = self.measure(source_loaders)
        even = dict.fromkeys(found, 1 / len(found))
        return self._step(even, {s: one.mean for s, one in found.items()}, found, None)

    def update(
        self,
        current: Mapping[str, float],
        source_loaders: Mapping[str, Loader],
        learning_rate: float | None = None,
    ) -> dict[str, float]:
        """Measure, take the result into the running influence, and step from ``current``.

        The step is exponentiated gradient ascent: w ∝ w · exp(η · influence / scale), with the
        scale √(mean over sources of influence² + standard error²), so that η has no unit and
        influences that are all noise move little; then the projection onto the bounds.

        Args:
            current: weights by source.
            source_loaders: examples of the same sources.
            learning_rate: η; the config's if None.

        Returns:
            New weights by source, with sum 1 and within the bounds.

        Raises:
            InfluenceError: as :meth:`measure`, on other sources than in ``current``, or if the
                bounds cannot be satisfied. The running influence is then as it was.
        """
        if set(current) != set(source_loaders):
            raise InfluenceError(
                f"expected loaders of the sources {', '.join(current)}, "
                f"got {', '.join(source_loaders)}"
            )
        self._check_bounds(source_loaders)
        found = self.measure(source_loaders)
        running = self.running_influence
        latest = torch.tensor([one.mean for one in found.values()], dtype=torch.float64)
        previous = None
        if running is not None:
            previous = torch.tensor([running[source] for source in found], dtype=torch.float64)
        numbers = smooth(previous, latest, self.config.smoothing).tolist()
        smoothed = dict(zip(found, numbers, strict=True))
        weights = self._step(current, smoothed, found, learning_rate)
        self.running_influence = smoothed
        return weights

    def _step(
        self,
        current: Mapping[str, float],
        influence: Mapping[str, float],
        found: Mapping[str, SourceInfluence],
        learning_rate: float | None,
    ) -> dict[str, float]:
        squares = [influence[s] ** 2 + found[s].standard_error ** 2 for s in influence]
        return exponentiated_step(
            current,
            influence,
            learning_rate=self.config.learning_rate if learning_rate is None else learning_rate,
            scale=math.sqrt(math.fsum(squares) / len(squares)),
            min_weight=self.config.min_weight,
            max_weight=self.config.max_weight,
        )

    def _check_bounds(self, source_loaders: Mapping[str, Loader]) -> None:
        check_bounds(len(source_loaders), self.config.min_weight, self.config.max_weight)


@contextmanager
def _full_precision(model: nn.Module) -> Iterator[None]:
    """No autocast, neither from around nor in a forward method that accelerate has wrapped."""
    wrapped = vars(model).get("forward")
    original = vars(model).get("_original_forward")
    device = next(model.parameters()).device.type
    try:
        if wrapped is not None and original is not None:
            model.forward = original
        with torch.autocast(device, enabled=False):
            yield
    finally:
        if wrapped is not None and original is not None:
            model.forward = wrapped


class _Chained:
    """Several loaders as one, which remembers whose examples came where."""

    def __init__(self, loaders: Mapping[str, Loader], kind: str) -> None:
        self._loaders = loaders
        self._kind = kind
        self._sizes: dict[str, int] = {}

    def __iter__(self) -> Iterator[Batch]:
        sizes = dict.fromkeys(self._loaders, 0)
        for name, loader in self._loaders.items():
            for batch in loader:
                if not isinstance(batch, Mapping) or "input_ids" not in batch:
                    raise InfluenceError(
                        f"the {self._kind} {name}: expected batches with input_ids, got "
                        + (f"keys {', '.join(batch)}" if isinstance(batch, Mapping) else "")
                        + ("" if isinstance(batch, Mapping) else type(batch).__name__)
                    )
                sizes[name] += len(batch["input_ids"])
                yield batch
            if not sizes[name]:
                raise InfluenceError(
                    f"the {self._kind} {name} is empty: expected at least one example; an "
                    "iterator that was read before is empty too"
                )
        self._sizes = sizes

    def split(self, values: torch.Tensor, dim: int) -> dict[str, torch.Tensor]:
        """Values of all examples, in the order read, by loader."""
        parts = values.split(list(self._sizes.values()), dim=dim)
        return dict(zip(self._sizes, parts, strict=True))


def _normalised(
    weights: Mapping[str, float] | None, domains: Mapping[str, object]
) -> dict[str, float]:
    if weights is None:
        return dict.fromkeys(domains, 1 / len(domains))
    if set(weights) != set(domains):
        raise InfluenceError(
            f"expected weights of the domains {', '.join(domains)}, got {', '.join(weights)}"
        )
    total = math.fsum(weights.values())
    if min(weights.values()) < 0 or not 0 < total < math.inf:
        raise InfluenceError(
            f"expected domain weights that are not negative with a positive sum, got "
            f"{dict(weights)}"
        )
    return {domain: weights[domain] / total for domain in domains}
