"""Kernel ridge regression from landmarks to all examples, in chunks, by Cholesky."""

import torch

from math_utils._typing import Float, Tensor
from math_utils.errors import InfluenceError
from math_utils.influence.config import KernelRidgeConfig

_CHUNK_ELEMENTS = 1 << 22
_SMALLEST_PIVOT = 1e-14


class KernelRidge:
    """p̂(x) = k(x, L) (K_LL + λI)⁻¹ p_L for values p_L at landmarks L, in float64.

    The kernel is k(x, y) = x·y, or exp(−‖x − y‖² / 2σ²) with σ the median distance of two
    landmarks; λ = damping · mean diagonal of K_LL.

    Args:
        landmarks: the landmarks' embeddings.
        values: what is known there, some quantities at once.
        config: kernel and damping.

    Raises:
        InfluenceError: if most landmarks coincide (rbf), or the matrix is not positive definite.
    """

    def __init__(
        self,
        landmarks: Float[Tensor, "num_landmarks dim"],
        values: Float[Tensor, "quantity num_landmarks"],
        config: KernelRidgeConfig | None = None,
    ) -> None:
        self.config = config or KernelRidgeConfig()
        self._landmarks = landmarks.double()
        self.bandwidth = median_distance(self._landmarks) if self.config.kernel == "rbf" else None
        matrix = self._kernel(self._landmarks)
        damping = self.config.damping * float(matrix.diagonal().mean())
        matrix.diagonal().add_(damping)
        factor, info = torch.linalg.cholesky_ex(matrix)
        pivots = factor.diagonal().square()
        if int(info) or not bool(pivots.min() > _SMALLEST_PIVOT * pivots.max()):
            raise InfluenceError(
                f"the {self.config.kernel} kernel of {len(landmarks)} landmarks plus damping "
                f"{damping:.3g}: expected a positive definite matrix, but its Cholesky "
                "decomposition fails (landmarks that coincide or depend on each other linearly); "
                "raise KernelRidgeConfig.damping, or choose fewer landmarks"
            )
        self._coefficients = torch.cholesky_solve(values.double().T, factor)

    def predict(
        self, embeddings: Float[Tensor, "num_examples dim"], *, chunk_size: int | None = None
    ) -> Float[Tensor, "quantity num_examples"]:
        """The values at any embeddings, in float64.

        Args:
            embeddings: one row per example.
            chunk_size: rows done at once; changes memory only.
        """
        rows = chunk_size or max(1, _CHUNK_ELEMENTS // len(self._landmarks))
        parts = [
            self._kernel(part.double()) @ self._coefficients for part in embeddings.split(rows)
        ]
        return torch.cat(parts).T.contiguous()

    def _kernel(self, rows: Float[Tensor, "rows dim"]) -> Float[Tensor, "rows num_landmarks"]:
        products: Tensor = rows @ self._landmarks.T
        if self.bandwidth is None:
            return products
        norms, own = rows.square().sum(dim=1), self._landmarks.square().sum(dim=1)
        squares = (norms[:, None] + own - 2 * products).clamp_min_(0)
        return squares.div_(-2 * self.bandwidth**2).exp_()


def median_distance(points: Float[Tensor, "num_points dim"]) -> float:
    """The median distance of two different points (1 for a single point).

    Raises:
        InfluenceError: if it is zero or not finite.
    """
    if len(points) < 2:
        return 1.0
    median = float(torch.pdist(points).median())
    if not 0 < median < float("inf"):
        raise InfluenceError(
            f"expected distances of landmarks with a positive, finite median, got {median}: most "
            "landmarks have the same embedding; use the linear kernel or other embeddings"
        )
    return median
