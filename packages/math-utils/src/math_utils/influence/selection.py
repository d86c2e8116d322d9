"""From influences to choices: best first, in turns, and weights within bounds."""

import math

import torch

from math_utils._typing import Float, Int, Tensor
from math_utils.errors import InfluenceError


def select_top(influence: Float[Tensor, " num_train"], budget: int) -> Int[Tensor, " budget"]:
    """The ``budget`` most helpful examples, best first; ties by number.

    Raises:
        InfluenceError: if the budget is not between 1 and their number.
    """
    _check_budget(budget, len(influence))
    return torch.argsort(influence, descending=True, stable=True)[:budget]


def select_round_robin(
    influence: Float[Tensor, "num_targets num_train"], budget: int
) -> Int[Tensor, " budget"]:
    """Each target in turn takes the most helpful example that is left.

    Raises:
        InfluenceError: if the budget is not between 1 and their number.
    """
    _check_budget(budget, influence.shape[1])
    queues = [
        iter(row.tolist()) for row in torch.argsort(influence, dim=1, descending=True, stable=True)
    ]
    chosen: dict[int, None] = {}
    while len(chosen) < budget:
        queue = queues[len(chosen) % len(queues)]
        chosen[next(example for example in queue if example not in chosen)] = None
    return torch.tensor(list(chosen))


def regularized_weights(
    influence: Float[Tensor, " num_weights"],
    regularization: float | None,
    *,
    total: float = 1.0,
    low: float = 0.0,
    high: float = math.inf,
) -> Float[Tensor, " num_weights"]:
    """The weights w = argmin −wᵀp + (η/2)‖w‖² over Σw = total, low ≤ w ≤ high, in float64.

    Completing the square, w is the projection of p/η: w_i = clip(p_i/η − τ, low, high), with the
    threshold τ that makes the sum right (Nikdan et al. 2025, arXiv 2505.19051).

    Args:
        influence: p, positive = helpful.
        regularization: η; None takes (standard deviation of p) / (mean weight).
        total: the sum of the weights.
        low: no weight is less.
        high: no weight is more.

    Raises:
        InfluenceError: if no weights satisfy the bounds, or an influence is not finite.
    """
    wide = influence.double()
    if not wide.isfinite().all():
        place = int((~wide.isfinite()).nonzero()[0])
        raise InfluenceError(f"expected finite influences, got {float(wide[place])} at {place}")
    if regularization is None:
        spread = float(wide.std(correction=0))
        scaled = (wide - wide.mean()) / spread if spread else torch.zeros_like(wide)
        scaled = scaled * total / len(wide)
    else:
        if not 0 < regularization < math.inf:
            raise InfluenceError(
                f"expected a regularization that is positive and finite, got {regularization}"
            )
        scaled = wide / regularization
    return project_to_capped_simplex(scaled, total=total, low=low, high=high)


def project_to_capped_simplex(
    values: Float[Tensor, " num_weights"],
    *,
    total: float = 1.0,
    low: float = 0.0,
    high: float = math.inf,
) -> Float[Tensor, " num_weights"]:
    """The nearest weights with Σw = total and low ≤ w ≤ high: w_i = clip(v_i − τ, low, high).

    The sum falls with τ and is linear between the points where a weight meets a bound; the right
    piece is found by bisection over these, and τ on it exactly. (Clipping and renormalising
    instead would break the bounds.)

    Args:
        values: v.
        total: the sum of the weights.
        low: no weight is less.
        high: no weight is more.

    Returns:
        Weights in float64.

    Raises:
        InfluenceError: if no weights satisfy the bounds.
    """
    num_weights, wide = len(values), values.double()
    slack = 1e-12 * max(1.0, abs(total))
    if not num_weights or not (
        low <= high and num_weights * low <= total + slack and total <= num_weights * high + slack
    ):
        raise InfluenceError(
            f"expected bounds that {num_weights} weights with the sum {total:g} can satisfy, got "
            f"min {low:g} (at least {num_weights * low:g} in all) and max {high:g} (at most "
            f"{num_weights * high:g}); lower min or raise max"
        )

    def total_at(threshold: float) -> float:
        return float((wide - threshold).clamp(low, high).sum())

    bends = torch.cat([wide - low, wide - high])
    bends = bends[bends.isfinite()].sort().values
    if math.isinf(high):
        # Below the first bend all weights move; start where the sum is certainly enough.
        first = bends[:1] - (abs(total) / num_weights + abs(low) + 1)
        bends = torch.cat([first, bends])
    left, right = 0, len(bends) - 1
    while right - left > 1:
        middle = (left + right) // 2
        if total_at(float(bends[middle])) >= total:
            left = middle
        else:
            right = middle
    start, stop = float(bends[left]), float(bends[right])
    surplus = total_at(start) - total
    # At the middle of the piece, where rounding cannot put a weight on the wrong side of a bound.
    middle_values = wide - (start + stop) / 2
    moving = int(((middle_values < high) & (middle_values > low)).sum())
    threshold = min(start + (surplus / moving if moving else 0.0), stop)
    return (wide - threshold).clamp(low, high)


def _check_budget(budget: int, num_examples: int) -> None:
    if not 1 <= budget <= num_examples:
        raise InfluenceError(
            f"expected a budget between 1 and the number of examples, {num_examples}, got {budget}"
        )
