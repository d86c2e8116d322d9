"""Fitting curvature in memory: the stages in their order, over batches that can be read twice."""

from collections.abc import Iterable, Mapping

from torch import nn

from math_utils._typing import Float, Tensor
from math_utils.capture import frozen
from math_utils.curvature.config import CurvatureConfig, Strategy
from math_utils.curvature.covariance import CovarianceSums
from math_utils.curvature.decomposition import decompose
from math_utils.curvature.eigenbasis import Eigenbasis, kfac_eigenvalues
from math_utils.curvature.eigenvalues import EigenvalueSums
from math_utils.curvature.factors import CurvatureFactors, MapFactors
from math_utils.curvature.gradients import Objective
from math_utils.curvature.replayed import ReplayedPasses
from math_utils.language_modeling import TokenBatch
from math_utils.linear_maps import LinearMap


def fit_curvature(
    model: nn.Module,
    maps: Mapping[str, LinearMap],
    batches: Iterable[TokenBatch],
    objective: Objective,
    config: CurvatureConfig | None = None,
) -> CurvatureFactors:
    """Fit the Fisher information of every map, F = (1/N) Σ_n vec(G_n) vec(G_n)ᵀ, approximately.

    Which Fisher it is, the true or the empirical, is up to the objective: the one with labels
    sampled from the model, the other with the labels of the data.

    Args:
        model: left as it was, after an exception too.
        maps: the linear maps to fit.
        batches: read once for each pass over the data (ekfac: twice, and the same both
            times), so not an iterator.
        objective: the summed loss of every example, in nats; the same at each reading.
        config: strategy and precision.

    Returns:
        The factors, averaged per example.

    Raises:
        ValueError: on no maps, no examples, a map that never runs, or a loss, gradient or
            decomposition that is not finite (the message names the module and the example).
    """
    config = config or CurvatureConfig()
    if not maps:
        raise ValueError("expected at least one linear map to fit, got none")
    if config.strategy == "identity":
        return CurvatureFactors("identity", {name: MapFactors() for name in maps})
    bases: dict[str, Eigenbasis] | None = None
    room = config.replay_bytes if config.strategy == "ekfac" else 0
    passes = ReplayedPasses(model, maps, objective, room)
    with frozen(model):
        if config.strategy in ("kfac", "ekfac"):
            covariances = CovarianceSums(maps, config.covariance_dtype)
            num_examples = _pass(passes, maps, batches, config, covariances)
            bases = dict(decompose(covariances.drain(), dtype=config.eigen_dtype))
            if config.strategy == "kfac":
                products = {n: kfac_eigenvalues(basis, num_examples) for n, basis in bases.items()}
                return assemble("kfac", bases, products)
        passes.keep_no_more()
        eigenvalues = EigenvalueSums(maps, bases, config.covariance_dtype)
        num_examples = _pass(passes, maps, batches, config, eigenvalues)
    return assemble(config.strategy, bases, dict(eigenvalues.drain(num_examples)))


def assemble(
    strategy: Strategy,
    bases: Mapping[str, Eigenbasis] | None,
    eigenvalues: Mapping[str, Float[Tensor, "d_out d_in"]],
) -> CurvatureFactors:
    """Put eigenbases (none for ``diagonal``) and eigenvalues together into factors."""
    return CurvatureFactors(
        strategy,
        {
            name: MapFactors(
                input_basis=None if bases is None else bases[name].input_basis,
                output_basis=None if bases is None else bases[name].output_basis,
                eigenvalues=values,
            )
            for name, values in eigenvalues.items()
        },
    )


def _pass(
    passes: ReplayedPasses,
    maps: Mapping[str, LinearMap],
    batches: Iterable[TokenBatch],
    config: CurvatureConfig,
    sums: CovarianceSums | EigenvalueSums,
) -> int:
    """One pass over the data into running sums; the number of examples."""
    num_examples = 0
    for place, batch in enumerate(batches):
        passes.run(
            place,
            maps,
            batch,
            sums.add,
            dtype=config.covariance_dtype,
            loss_scale=config.loss_scale,
        )
        num_examples += len(batch.input_ids)
    if not num_examples:
        raise ValueError("expected at least one example to fit curvature on, got none")
    return num_examples
