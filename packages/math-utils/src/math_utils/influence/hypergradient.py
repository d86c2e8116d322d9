"""Derivatives of the probe loss with respect to how a model is trained.

Training minimises L(θ) = Σ_s w_s L_s(θ) + (ρ/2)‖θ‖², with L_s the mean loss of source s, and P is
the mean loss of the probe examples. Every derivative goes through one vector, the sensitivity
u = dP/df of the probe loss to a constant force f added to the gradient of training:

    at a minimum of L (Cook and Weisberg 1982; Koh and Liang 2017, arXiv 1703.04730):
        u = −(∇²L + λI)⁻¹ ∇P,   dP/dw_s = u·∇L_s,   dP/dρ = u·θ
    after T steps θ ← θ − η_g (∇L + ρθ) of gradient descent, by reverse accumulation
    (Maclaurin et al. 2015, arXiv 1502.03492), with a_T = ∇P(θ_T), a_t = a_{t+1} − H_t η a_{t+1}:
        dP/dw_s = −Σ_t η a_{t+1}·∇L_s(θ_t),   dP/dη_g = −Σ_t [a_{t+1}·(∇L(θ_t) + ρθ_t)]_g,
        dP/dρ = −Σ_t η a_{t+1}·θ_t,           u = −Σ_t η a_{t+1}.

These are derivatives of a loss: negative is helpful. Influence has the opposite sign.
"""

from collections.abc import Callable, Iterable, Iterator, Mapping, Sequence
from contextlib import contextmanager
from dataclasses import dataclass
from typing import Any

import torch
from torch import nn

from math_utils._typing import Float, Tensor
from math_utils.capture import frozen
from math_utils.causal_lm import label_losses, token_batch
from math_utils.errors import InfluenceError
from math_utils.influence.base import check_labelled
from math_utils.influence.jvp_embedding import forward_mode_attention
from math_utils.linalg import conjugate_gradients

ExampleLosses = Callable[[nn.Module, Any], Float[Tensor, " batch"]]
"""The loss of every example of a batch of whatever kind, differentiable."""

Parameters = dict[str, Tensor]
EVERYTHING = "all"


def language_model_losses(model: nn.Module, batch: Mapping[str, Any]) -> Float[Tensor, " batch"]:
    """Summed cross-entropy of every example in nats; labels of −100 and padding carry nothing."""
    tokens = token_batch(batch).to(next(model.parameters()).device)
    check_labelled(tokens, "batch")
    return label_losses(model, tokens)[0]


@dataclass(frozen=True, eq=False)
class Hypergradients:
    """Derivatives of the mean loss of the probe examples, in nats; negative is helpful.

    Attributes:
        probe_loss: P itself, at the trained weights.
        mixture: dP/dw_s per source.
        weight_decay: dP/dρ per group of parameters, its contribution to the derivative.
        learning_rate: dP/dη_g per group; empty at a minimum, which does not depend on rates.
        sensitivity: u by parameter: the derivative with respect to a force added to its gradient.
            An example's influence (positive = helpful) is −u·∇L_example.
    """

    probe_loss: float
    mixture: dict[str, float]
    weight_decay: dict[str, float]
    learning_rate: dict[str, float]
    sensitivity: dict[str, Tensor]


class HyperGradientCalculator:
    """Hypergradients of a model's training, at a minimum or of some steps.

    Args:
        model: never changed; taken in evaluation mode.
        losses: the loss of every example of a batch.
        parameters: names of the trained parameters; those that require a gradient if None.
        groups: names of parameters by group, each trained parameter in one of them; a single
            group "all" if None.
        weight_decay: ρ.

    Raises:
        InfluenceError: on unknown names, or groups that are not a partition.
    """

    def __init__(
        self,
        model: nn.Module,
        losses: ExampleLosses = language_model_losses,
        *,
        parameters: Sequence[str] | None = None,
        groups: Mapping[str, Sequence[str]] | None = None,
        weight_decay: float = 0.0,
    ) -> None:
        own = dict(model.named_parameters())
        wanted = (
            [name for name, p in own.items() if p.requires_grad]
            if parameters is None
            else list(parameters)
        )
        unknown = [name for name in wanted if name not in own]
        if unknown or not wanted:
            raise InfluenceError(
                f"expected names of parameters of {type(model).__name__}, got "
                f"{', '.join(unknown) or 'none that requires a gradient'}"
            )
        if not 0 <= weight_decay < float("inf"):
            raise InfluenceError(f"expected a weight_decay of at least 0, got {weight_decay}")
        self.model, self.weight_decay, self.names = model, weight_decay, tuple(wanted)
        self.groups = {EVERYTHING: wanted} if groups is None else dict(groups)
        grouped = [name for names in self.groups.values() for name in names]
        if sorted(grouped) != sorted(wanted):
            raise InfluenceError(
                "expected groups that hold every trained parameter once, got "
                f"{len(grouped)} names for {len(wanted)} parameters; differing: "
                f"{', '.join(sorted(set(grouped) ^ set(wanted))[:3]) or 'repeated ones'}"
            )
        self._caller = _Losses(model, losses)

    def at_minimum(
        self,
        source_loaders: Mapping[str, Iterable[Any]],
        weights: Mapping[str, float],
        probe_loader: Iterable[Any],
        *,
        damping: float = 0.0,
        tolerance: float = 1e-8,
        max_iterations: int = 1000,
    ) -> Hypergradients:
        """Derivatives of retraining to the minimum of L, which the model's weights are.

        Costs one Hessian-vector product over all sources per iteration.

        Args:
            source_loaders: the examples of each source.
            weights: w_s of each.
            probe_loader: the probe examples.
            damping: λ, absolute; for curvature that is not positive definite.
            tolerance: of the conjugate gradients.
            max_iterations: of the conjugate gradients.

        Raises:
            InfluenceError: on empty loaders or sources that do not match the weights.
            CurvatureError: if ∇²L + λI is not positive definite, or iterations do not suffice.
        """
        sources = _read(source_loaders, weights)
        probe = _read_loader(probe_loader, "probe loader")
        with self._ready():
            theta = self._parameters()
            probe_loss, pull = self._mean_gradient(theta, probe)
            gradients = {name: self._mean_gradient(theta, one)[1] for name, one in sources.items()}

            def product(vector: Tensor) -> Tensor:
                image = self._hessian_product(theta, sources, weights, _unflat(vector, theta))
                return _flat(image) + damping * vector

            solution = conjugate_gradients(
                product, _flat(pull), tolerance=tolerance, max_iterations=max_iterations
            )
        sensitivity = _unflat(-solution, theta)
        return Hypergradients(
            probe_loss=probe_loss,
            mixture={name: _dot(sensitivity, one) for name, one in gradients.items()},
            weight_decay=self._by_group(sensitivity, theta),
            learning_rate={},
            sensitivity=sensitivity,
        )

    def of_steps(
        self,
        source_loaders: Mapping[str, Iterable[Any]],
        weights: Mapping[str, float],
        probe_loader: Iterable[Any],
        learning_rates: Mapping[str, float] | float,
        *,
        num_steps: int = 1,
    ) -> Hypergradients:
        """Derivatives of some steps of gradient descent on L from the model's weights.

        Keeps the weights of every step; costs, beside the steps, a Hessian-vector product for
        every step but the first.

        Args:
            source_loaders: the examples of each source; a step uses all of them.
            weights: w_s of each.
            probe_loader: the probe examples.
            learning_rates: η_g by group, or one for all.
            num_steps: T.

        Raises:
            InfluenceError: on empty loaders, or sources or groups that do not match.
        """
        if num_steps < 1:
            raise InfluenceError(f"expected num_steps of at least 1, got {num_steps}")
        sources = _read(source_loaders, weights)
        probe = _read_loader(probe_loader, "probe loader")
        rates = self._rates(learning_rates)
        with self._ready():
            path = [self._parameters()]
            pushes: list[dict[str, Parameters]] = []
            for _ in range(num_steps):
                now = path[-1]
                pushes.append({name: self._mean_gradient(now, b)[1] for name, b in sources.items()})
                whole = self._whole_gradient(now, pushes[-1], weights)
                path.append({n: now[n] - rates[n] * whole[n] for n in now})
            probe_loss, adjoint = self._mean_gradient(path[-1], probe)
            mixture = dict.fromkeys(sources, 0.0)
            decay, learning_rate = (dict.fromkeys(self.groups, 0.0) for _ in range(2))
            sensitivity = {name: torch.zeros_like(value) for name, value in adjoint.items()}
            for step in reversed(range(num_steps)):
                now, force = path[step], {n: -rates[n] * a for n, a in adjoint.items()}
                for name, push in pushes[step].items():
                    mixture[name] += _dot(force, push)
                whole = self._whole_gradient(now, pushes[step], weights)
                for group, value in self._by_group(adjoint, whole).items():
                    learning_rate[group] -= value
                for group, value in self._by_group(force, now).items():
                    decay[group] += value
                sensitivity = {name: sensitivity[name] + force[name] for name in sensitivity}
                if step:
                    bend = self._hessian_product(now, sources, weights, force)
                    adjoint = {name: adjoint[name] + bend[name] for name in adjoint}
        return Hypergradients(probe_loss, mixture, decay, learning_rate, sensitivity)

    @contextmanager
    def _ready(self) -> Iterator[None]:
        """The model out of training, with attention that can be differentiated twice."""
        with frozen(self.model), forward_mode_attention(self.model):
            yield

    def _parameters(self) -> Parameters:
        own = dict(self.model.named_parameters())
        return {name: own[name].detach() for name in self.names}

    def _batch_losses(self, theta: Parameters, batch: Any) -> Tensor:
        values = {f"model.{name}": value for name, value in theta.items()}
        losses: Tensor = torch.func.functional_call(self._caller, values, (batch,))
        if not losses.isfinite().all():
            row = int((~losses.isfinite()).nonzero()[0])
            raise InfluenceError(f"expected finite losses, got {losses[row].item()} in row {row}")
        return losses

    def _mean_gradient(self, theta: Parameters, batches: Sequence[Any]) -> tuple[float, Parameters]:
        """The mean loss over examples, however batched, and its gradient."""
        leaves = {name: value.detach().requires_grad_() for name, value in theta.items()}
        total, num_examples = 0.0, 0
        sums = {name: torch.zeros_like(value) for name, value in theta.items()}
        for batch in batches:
            losses = self._batch_losses(leaves, batch)
            total, num_examples = total + float(losses.detach().sum()), num_examples + len(losses)
            for name, own in zip(leaves, _gradient(losses.sum(), leaves), strict=True):
                sums[name] += own
        return total / num_examples, {name: value / num_examples for name, value in sums.items()}

    def _whole_gradient(
        self, theta: Parameters, gradients: Mapping[str, Parameters], weights: Mapping[str, float]
    ) -> Parameters:
        return {
            name: self.weight_decay * value
            + sum(weights[source] * own[name] for source, own in gradients.items())
            for name, value in theta.items()
        }

    def _hessian_product(
        self,
        theta: Parameters,
        sources: Mapping[str, Sequence[Any]],
        weights: Mapping[str, float],
        vector: Parameters,
    ) -> Parameters:
        """(Σ_s w_s ∇²L_s + ρI) v, by differentiating ∇L·v."""
        product = {name: self.weight_decay * value for name, value in vector.items()}
        for source, batches in sources.items():
            leaves = {name: value.detach().requires_grad_() for name, value in theta.items()}
            num_examples = 0
            sums = {name: torch.zeros_like(value) for name, value in theta.items()}
            for batch in batches:
                losses = self._batch_losses(leaves, batch)
                num_examples += len(losses)
                first = _gradient(losses.sum(), leaves, create_graph=True)
                slope = sum(
                    (own * vector[name]).sum() for name, own in zip(leaves, first, strict=True)
                )
                assert isinstance(slope, Tensor)
                for name, own in zip(leaves, _gradient(slope, leaves), strict=True):
                    sums[name] += own
            for name in product:
                product[name] = product[name] + weights[source] / num_examples * sums[name]
        return product

    def _rates(self, learning_rates: Mapping[str, float] | float) -> dict[str, float]:
        by_group = (
            dict(learning_rates)
            if isinstance(learning_rates, Mapping)
            else dict.fromkeys(self.groups, learning_rates)
        )
        if set(by_group) != set(self.groups):
            raise InfluenceError(
                f"expected one learning rate for each group ({', '.join(self.groups)}), got them "
                f"for {', '.join(by_group) or 'none'}"
            )
        return {name: by_group[group] for group, names in self.groups.items() for name in names}

    def _by_group(self, left: Parameters, right: Parameters) -> dict[str, float]:
        return {
            group: sum(float((left[name] * right[name]).sum()) for name in names)
            for group, names in self.groups.items()
        }


class _Losses(nn.Module):
    """Lets ``functional_call`` replace parameters in a call of the losses."""

    def __init__(self, model: nn.Module, losses: ExampleLosses) -> None:
        super().__init__()
        self.model, self.losses = model, losses

    def forward(self, batch: Any) -> Tensor:
        """The loss of every example."""
        return self.losses(self.model, batch)


def _read(
    loaders: Mapping[str, Iterable[Any]], weights: Mapping[str, float]
) -> dict[str, list[Any]]:
    if not loaders or set(loaders) != set(weights):
        raise InfluenceError(
            f"expected one weight for each source ({', '.join(loaders) or 'none'}), got weights "
            f"for {', '.join(weights) or 'none'}"
        )
    return {
        name: _read_loader(one, f"loader of the source {name!r}") for name, one in loaders.items()
    }


def _read_loader(loader: Iterable[Any], name: str) -> list[Any]:
    batches = list(loader)
    if not batches:
        raise InfluenceError(f"the {name} is empty: expected at least one batch, got none")
    return batches


def _gradient(
    value: Tensor, leaves: Mapping[str, Tensor], *, create_graph: bool = False
) -> tuple[Tensor, ...]:
    """Derivatives by leaf, zero where the value does not depend on one."""
    if not value.requires_grad:
        return tuple(torch.zeros_like(one) for one in leaves.values())
    return torch.autograd.grad(
        value,
        list(leaves.values()),
        create_graph=create_graph,
        allow_unused=True,
        materialize_grads=True,
    )


def _flat(parameters: Parameters) -> Float[Tensor, " dim"]:
    return torch.cat([value.flatten() for value in parameters.values()])


def _unflat(vector: Float[Tensor, " dim"], like: Parameters) -> Parameters:
    parts = vector.split([value.numel() for value in like.values()])
    return {
        name: part.view_as(value) for (name, value), part in zip(like.items(), parts, strict=True)
    }


def _dot(left: Parameters, right: Parameters) -> float:
    return sum(float((left[name] * right[name]).sum()) for name in left)
