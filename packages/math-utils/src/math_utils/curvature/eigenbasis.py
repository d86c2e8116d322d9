"""Eigenbases of covariances, and what a gradient looks like in them."""

from collections import deque
from collections.abc import Iterable, Iterator
from concurrent.futures import Executor, Future, ThreadPoolExecutor
from dataclasses import dataclass, replace
from functools import partial

import torch

from math_utils._typing import Float, SquareMatrix, Tensor, Vector
from math_utils.capture import CapturedPair
from math_utils.curvature.covariance import Covariances
from math_utils.linalg import symmetric_eigendecomposition

_Decomposition = Future[tuple[Vector, SquareMatrix]]

_MAX_WORKERS = 16
_ALONE = 4096
"""Wider matrices are decomposed one at a time: each needs several copies in float64."""


@dataclass(frozen=True, eq=False)
class Eigenbasis:
    """A = Q_A diag(λ_A) Q_Aᵀ and S = Q_S diag(λ_S) Q_Sᵀ of one map.

    Attributes:
        input_basis: Q_A, eigenvectors as columns.
        output_basis: Q_S, likewise.
        input_values: λ_A, ascending.
        output_values: λ_S, ascending.
        num_positions: T of the covariances.
    """

    input_basis: Float[Tensor, "d_in d_in"]
    output_basis: Float[Tensor, "d_out d_out"]
    input_values: Float[Tensor, " d_in"]
    output_values: Float[Tensor, " d_out"]
    num_positions: int

    def to(self, device: torch.device) -> "Eigenbasis":
        """The same eigenbasis on another device."""
        return Eigenbasis(
            self.input_basis.to(device),
            self.output_basis.to(device),
            self.input_values.to(device),
            self.output_values.to(device),
            self.num_positions,
        )


def decompose(
    covariances: Iterable[tuple[str, Covariances]], *, dtype: torch.dtype = torch.float64
) -> Iterator[tuple[str, Eigenbasis]]:
    """Eigenbases, one map after another.

    Maps that read the same inputs have equal covariances A; each is decomposed once and its
    basis shared. On a CPU, matrices up to 4,096 wide go side by side, one thread each, because
    half of an eigendecomposition hardly gains from a second thread.

    Args:
        covariances: (name, covariances) of every map; may be read from disk one by one.
        dtype: dtype of the decompositions.

    Yields:
        (name, its eigenbasis), in the order of ``covariances``.

    Raises:
        CurvatureError: if a covariance or a decomposition is not finite, with the map's name.
    """
    workers = max(1, min(torch.get_num_threads(), _MAX_WORKERS))
    recent: list[tuple[Tensor, _Decomposition]] = []
    waiting: deque[tuple[str, int, _Decomposition, _Decomposition]] = deque()
    with ThreadPoolExecutor(workers) as pool:

        def start(matrix: Tensor, what: str) -> _Decomposition:
            return _start(pool, matrix, dtype, what)

        for name, covariance in covariances:
            inputs = covariance.inputs
            known = next(
                (r for m, r in recent if m.shape == inputs.shape and m.equal(inputs)), None
            )
            if known is None:
                known = start(inputs, f"{name}: covariance of inputs")
                # Maps that share inputs stand close together in a block.
                recent = [*recent[-3:], (inputs, known)]
            outputs = start(covariance.output_gradients, f"{name}: covariance of output gradients")
            waiting.append((name, covariance.num_positions, known, outputs))
            if len(waiting) > workers:
                yield _finish(*waiting.popleft())
        while waiting:
            yield _finish(*waiting.popleft())


def _start(pool: Executor, matrix: Tensor, dtype: torch.dtype, name: str) -> _Decomposition:
    """Decompose small matrices one per thread, large ones with all threads together."""
    run = partial(symmetric_eigendecomposition, matrix, dtype=dtype, name=name)
    if matrix.device.type != "cpu" or matrix.shape[0] > _ALONE:
        done: _Decomposition = Future()
        done.set_result(run())
        return done

    def on_one_thread() -> tuple[Vector, SquareMatrix]:
        torch.set_num_threads(1)  # of the calling thread, here the pool's
        return run()

    return pool.submit(on_one_thread)


def _finish(
    name: str, num_positions: int, inputs: _Decomposition, outputs: _Decomposition
) -> tuple[str, Eigenbasis]:
    (input_values, input_basis), (output_values, output_basis) = inputs.result(), outputs.result()
    return name, Eigenbasis(input_basis, output_basis, input_values, output_values, num_positions)


def share_equal_bases(bases: Iterable[tuple[str, Eigenbasis]]) -> dict[str, Eigenbasis]:
    """Let maps with equal input bases hold one tensor, so that inputs are rotated once for all.

    :func:`decompose` gives such bases; after they were on disk each map has a copy of its own.
    """
    shared: dict[str, Eigenbasis] = {}
    recent: list[Tensor] = []
    for name, basis in bases:
        own = basis.input_basis
        known = next(
            (r for r in recent if r.shape == own.shape and r.device == own.device and r.equal(own)),
            None,
        )
        if known is None:
            recent = [*recent[-3:], own]
        else:
            basis = replace(basis, input_basis=known)
        shared[name] = basis
    return shared


def kfac_eigenvalues(basis: Eigenbasis, num_examples: int) -> Float[Tensor, "d_out d_in"]:
    """Λ = (T/N) λ_S λ_Aᵀ: the Kronecker product, on the scale of the Fisher per example.

    Args:
        basis: eigenbasis of covariances that are averaged over T positions.
        num_examples: N.

    Source: Martens and Grosse 2015 (arXiv 1503.05671), section 3; with positions treated as
    independent, so that T/N positions make up an example.
    """
    per_example = basis.num_positions / num_examples
    return per_example * torch.outer(basis.output_values, basis.input_values)


def rotate(
    gradients: Float[Tensor, "... d_out d_in"],
    input_basis: Float[Tensor, "d_in d_in"] | None,
    output_basis: Float[Tensor, "d_out d_out"] | None,
) -> Float[Tensor, "... d_out d_in"]:
    """Q_Sᵀ G Q_A; a basis that is None is the identity."""
    if input_basis is not None:
        gradients = gradients @ input_basis
    return gradients if output_basis is None else output_basis.mT @ gradients


def rotate_pair(
    pair: CapturedPair,
    input_basis: Float[Tensor, "d_in d_in"] | None,
    output_basis: Float[Tensor, "d_out d_out"] | None,
) -> tuple[Float[Tensor, "token d_in"], Float[Tensor, "token d_out"]]:
    """Q_Aᵀ a_t and Q_Sᵀ δ_t at every position; a basis that is None is the identity.

    Inputs that several maps read are rotated once, where these maps share one basis tensor.
    """
    inputs, gradients = pair.inputs, pair.output_gradients
    if input_basis is not None:
        # The basis is kept with the product: its id names no other tensor as long as that lives.
        key = ("rotated", id(input_basis))
        _, inputs = pair.shared(key, lambda: (input_basis, pair.inputs @ input_basis))
    return inputs, gradients if output_basis is None else gradients @ output_basis


def rotate_back(
    gradients: Float[Tensor, "... d_out d_in"],
    input_basis: Float[Tensor, "d_in d_in"] | None,
    output_basis: Float[Tensor, "d_out d_out"] | None,
) -> Float[Tensor, "... d_out d_in"]:
    """Q_S G Q_Aᵀ, the inverse of :func:`rotate`."""
    if input_basis is not None:
        gradients = gradients @ input_basis.mT
    return gradients if output_basis is None else output_basis @ gradients
