"""Weights of data sources: bounded, summing to 1, moved by exponentiated gradients.

A step multiplies every weight by exp(η · influence / scale) and projects the result onto
{Σ w = 1, min ≤ w ≤ max} in the Kullback–Leibler divergence, the geometry of that step (Kivinen
and Warmuth 1997). The projection is exact: w = clip(c · v, min, max) for the one c that makes the
sum 1.
Scaling after clipping instead would break the bounds again.
"""

import math
from collections.abc import Mapping

from math_utils.errors import InfluenceError


def check_bounds(num_sources: int, min_weight: float, max_weight: float) -> None:
    """Raise an InfluenceError if no weights of so many sources satisfy the bounds."""
    if num_sources < 1:
        raise InfluenceError("expected at least one source, got none")
    if num_sources * min_weight > 1 or num_sources * max_weight < 1:
        raise InfluenceError(
            f"expected bounds that {num_sources} weights with sum 1 can satisfy, got min_weight "
            f"{min_weight:g} (sum at least {num_sources * min_weight:g}) and max_weight "
            f"{max_weight:g} (sum at most {num_sources * max_weight:g}); widen them"
        )


def project_onto_bounds(
    weights: Mapping[str, float], min_weight: float, max_weight: float
) -> dict[str, float]:
    """The nearest weights, in KL divergence, with sum 1 and min_weight ≤ w ≤ max_weight.

    Args:
        weights: positive numbers, of any sum.
        min_weight: no weight is less.
        max_weight: no weight is more.

    Returns:
        clip(c · w, min_weight, max_weight), in the order given: sources keep their order by
        weight, and those inside the bounds keep their ratios.

    Raises:
        InfluenceError: if a weight is not positive and finite, or the bounds cannot be satisfied.
    """
    check_bounds(len(weights), min_weight, max_weight)
    for source, weight in weights.items():
        if not 0 < weight < math.inf:
            raise InfluenceError(f"expected a positive, finite weight of {source}, got {weight}")
    # Σ clip(c·w) grows with c, piecewise linearly, with kinks where a weight meets a bound.
    kinks = sorted(
        {bound / weight for weight in weights.values() for bound in (min_weight, max_weight)}
    )

    def clipped(scale: float) -> dict[str, float]:
        return {s: min(max(scale * w, min_weight), max_weight) for s, w in weights.items()}

    above = next((k for k in kinks if math.fsum(clipped(k).values()) >= 1), kinks[-1])
    low = max((k for k in kinks if k < above), default=0.0)
    # On [low, above] the clipped set does not change; solve for c within it.
    middle = (low + above) / 2
    free = [s for s, w in weights.items() if min_weight < middle * w < max_weight]
    if not free:
        return clipped(above)
    fixed = math.fsum(w for s, w in clipped(middle).items() if s not in free)
    scale = (1 - fixed) / math.fsum(weights[s] for s in free)
    return clipped(scale)


def exponentiated_step(
    weights: Mapping[str, float],
    influence: Mapping[str, float],
    *,
    learning_rate: float,
    scale: float,
    min_weight: float,
    max_weight: float,
) -> dict[str, float]:
    """One step of exponentiated gradient ascent on influence, projected onto the bounds.

    Args:
        weights: where the step starts; positive.
        influence: of each source on the probes; positive is helpful.
        learning_rate: η, without unit.
        scale: what influences are divided by, in their unit; 0 means that there is nothing to
            learn and leaves weights where they are, within the bounds.
        min_weight: no weight is less afterwards.
        max_weight: no weight is more afterwards.

    Returns:
        The new weights, in the order of ``weights``. Adding a constant to all influences changes
        nothing.

    Raises:
        InfluenceError: if sources differ, an influence is not finite, or the bounds cannot be
            satisfied.
    """
    if set(weights) != set(influence):
        raise InfluenceError(
            f"expected influence of the sources {', '.join(weights)}, got {', '.join(influence)}"
        )
    for source, value in influence.items():
        if not math.isfinite(value):
            raise InfluenceError(f"expected a finite influence of the source {source}, got {value}")
    steps = {s: learning_rate * influence[s] / scale if scale > 0 else 0.0 for s in weights}
    largest = max(steps.values())
    # exp(-700) is the smallest that stays a normal number; such a source ends at its minimum.
    grown = {s: w * math.exp(max(steps[s] - largest, -700.0)) for s, w in weights.items()}
    return project_onto_bounds(
        {s: max(w, 1e-300) for s, w in grown.items()}, min_weight, max_weight
    )
