"""Policy for symmetric eigendecompositions, and products with a matrix's own transpose."""

from collections.abc import Callable, Iterator, Sequence

import torch

from math_utils._typing import Float, Matrix, SquareMatrix, Tensor, Vector
from math_utils.errors import CurvatureError

_NotConverged: type[Exception] = torch.linalg.LinAlgError  # type: ignore[attr-defined]


def symmetric_eigendecomposition(
    matrix: SquareMatrix, *, dtype: torch.dtype = torch.float64, name: str = "matrix"
) -> tuple[Vector, SquareMatrix]:
    """Eigenvalues λ (ascending, none negative) and eigenvectors Q of M = Q diag(λ) Qᵀ.

    The matrix is symmetrised and decomposed in ``dtype``; what rounding made of zero eigenvalues
    of a positive semi-definite matrix, slightly negative numbers, is set to zero.

    Args:
        matrix: positive semi-definite up to rounding.
        dtype: the dtype of the decomposition. float64 by default: in float32 the small
            eigenvalues of a covariance, which damping divides by, are rounding error.
        name: names the matrix in an error.

    Returns:
        (λ [dim], Q [dim, dim] with eigenvectors as columns), in the dtype of ``matrix``.

    Raises:
        CurvatureError: if the matrix, or what the decomposition returns, is not finite, or the
            decomposition does not converge.
    """
    if not torch.isfinite(matrix).all():
        raise _not_finite(name)
    # One copy at a time: with LAPACK's own, an eigendecomposition takes 4 matrices in ``dtype``.
    symmetric = matrix.to(dtype)
    symmetric = (symmetric + symmetric.T).div_(2)
    try:
        values, vectors = torch.linalg.eigh(symmetric)
    except _NotConverged as error:
        raise CurvatureError(
            f"{name}: the eigendecomposition in {dtype} did not converge; "
            "use a wider eigendecomposition dtype"
        ) from error
    if not (torch.isfinite(values).all() and torch.isfinite(vectors).all()):
        raise _returned_not_finite(name, dtype)
    return values.clamp_min(0).to(matrix.dtype), vectors.to(matrix.dtype)


def stacked_eigendecompositions(
    matrices: Sequence[SquareMatrix], names: Sequence[str], *, dtype: torch.dtype = torch.float64
) -> list[tuple[Vector, SquareMatrix] | CurvatureError]:
    """:func:`symmetric_eigendecomposition` of matrices of one width, in one call of the library.

    Where the call fails for a matrix that does not converge, or for want of memory, they go one
    by one.

    Args:
        matrices: at least one, all of one width and dtype on one device.
        names: of the matrices, for errors.
        dtype: the dtype of the decompositions.

    Returns:
        What each gives, in order: (λ, Q), or the error that it alone would have raised, so that
        one bad matrix does not take its neighbours with it.
    """
    whole = torch.stack([torch.isfinite(matrix).all() for matrix in matrices]).tolist()
    found = [None if fine else _not_finite(n) for fine, n in zip(whole, names, strict=True)]
    places = [place for place, error in enumerate(found) if error is None]
    outcomes: list[tuple[Vector, SquareMatrix] | CurvatureError] = []
    if len(places) > 1:
        outcomes = _decompose_stack(
            [matrices[place] for place in places], [names[place] for place in places], dtype
        )
    if not outcomes:
        outcomes = [_decompose_alone(matrices[place], names[place], dtype) for place in places]
    solved = iter(outcomes)
    return [next(solved) if error is None else error for error in found]


def _decompose_stack(
    matrices: Sequence[SquareMatrix], names: Sequence[str], dtype: torch.dtype
) -> list[tuple[Vector, SquareMatrix] | CurvatureError]:
    """Outcomes in order; [] where the stack as a whole failed."""
    try:
        stack = matrices[0].new_empty((len(matrices), *matrices[0].shape), dtype=dtype)
        for place, matrix in zip(stack, matrices, strict=True):
            place.copy_(matrix).add_(matrix.T.to(dtype)).div_(2)
        values, vectors = torch.linalg.eigh(stack)
    except (_NotConverged, torch.OutOfMemoryError):
        return []
    del stack
    fine = torch.isfinite(values).all(dim=1) & torch.isfinite(vectors).flatten(1).all(dim=1)
    # Copies, so that a result that is kept does not keep the stack.
    return [
        (
            values[place].clamp_min(0).to(matrix.dtype),
            vectors[place].to(matrix.dtype, copy=True),
        )
        if is_fine
        else _returned_not_finite(name, dtype)
        for place, (matrix, name, is_fine) in enumerate(
            zip(matrices, names, fine.tolist(), strict=True)
        )
    ]


def _decompose_alone(
    matrix: SquareMatrix, name: str, dtype: torch.dtype
) -> tuple[Vector, SquareMatrix] | CurvatureError:
    try:
        return symmetric_eigendecomposition(matrix, dtype=dtype, name=name)
    except CurvatureError as error:
        return error


def _not_finite(name: str) -> CurvatureError:
    return CurvatureError(f"{name}: expected finite entries, found NaN or infinity")


def _returned_not_finite(name: str, dtype: torch.dtype) -> CurvatureError:
    return CurvatureError(
        f"{name}: the eigendecomposition in {dtype} returned NaN or infinity; "
        "use a wider eigendecomposition dtype"
    )


def add_gram_(total: SquareMatrix, rows: Matrix, *, block: int = 256) -> None:
    """``total += rowsᵀ rows`` on and above the diagonal blocks; see :func:`symmetrize_`.

    Only blocks that touch the upper triangle are computed, which saves up to half of the
    arithmetic of the full product.

    Args:
        total: the running sum [dim, dim]; changed in place.
        rows: [rows, dim], in the dtype of ``total``.
        block: width of a block column.
    """
    for stop, start in _block_columns(total.shape[0], block):
        total[:stop, start:stop].addmm_(rows[:, :stop].T, rows[:, start:stop])


def gram_blocks(rows: Matrix, *, block: int = 256) -> list[Float[Tensor, "_ _"]]:
    """The block columns of ``rowsᵀ rows`` down to the diagonal, for :func:`add_blocks_`.

    What :func:`add_gram_` adds, to be added to several sums; the lower triangle takes no memory.
    """
    columns = _block_columns(rows.shape[1], block)
    return [rows[:, :stop].T @ rows[:, start:stop] for stop, start in columns]


def add_blocks_(total: SquareMatrix, blocks: list[Float[Tensor, "_ _"]]) -> None:
    """Add what :func:`gram_blocks` gave to the upper triangle of a running sum, in place."""
    start = 0
    for one in blocks:
        stop, width = one.shape
        total[:stop, start : start + width].add_(one)
        start += width


def _block_columns(dim: int, block: int) -> Iterator[tuple[int, int]]:
    """(stop, start) of every block column."""
    for start in range(0, dim, block):
        yield min(start + block, dim), start


def symmetrize_(total: SquareMatrix) -> SquareMatrix:
    """Copy the upper triangle over the lower one, in place."""
    upper = total.triu(1)
    return total.triu_().add_(upper.T)


_OVERSAMPLING = 8
"""Columns that the subspace of a low-rank approximation has more than it keeps."""
_POWER_ITERATIONS = 2
"""Of the subspace; each brings its error nearer to the smallest possible one."""


def low_rank_factors(
    matrices: Float[Tensor, "num rows cols"], rank: int
) -> tuple[Float[Tensor, "num rows rank"], Float[Tensor, "num cols rank"]]:
    """Approximate each matrix by one of at most this rank, M ≈ L Rᵀ, one of the two orthonormal.

    The best one (Eckart and Young) where the rank is at least a quarter of the narrower side; below
    that, the best one within a subspace that a few products with the matrix find, starting from
    the same random numbers for each. That takes products of ``rank`` columns in place of an
    eigendecomposition, and its error is at most 1.01 times the smallest possible one (a test, on
    flat and falling spectra).

    Args:
        matrices: the matrices to approximate.
        rank: columns to keep, capped at min(rows, cols).

    Returns:
        (L, R) in the dtype of ``matrices``.

    Raises:
        ValueError: if ``rank`` is not positive.

    Source: Halko, Martinsson and Tropp 2011 (arXiv 0909.4061), algorithm 4.4.
    """
    if rank < 1:
        raise ValueError(f"expected a rank of at least 1, got {rank}")
    _, rows, cols = matrices.shape
    if rows < cols:
        right, left = low_rank_factors(matrices.mT, rank)
        return left, right
    if cols <= max(4 * rank, rank + _OVERSAMPLING):
        return _leading_part(matrices, min(rank, cols))
    generator = torch.Generator().manual_seed(0)
    start = torch.randn(cols, rank + _OVERSAMPLING, generator=generator, dtype=torch.float64)
    basis = torch.linalg.qr(matrices @ start.to(matrices)).Q
    for _ in range(_POWER_ITERATIONS):
        basis = torch.linalg.qr(matrices @ torch.linalg.qr(matrices.mT @ basis).Q).Q
    # M ≈ B (Bᵀ M), of which the second factor is small.
    right, left = _leading_part(matrices.mT @ basis, rank)
    return basis @ left, right


def _leading_part(
    matrices: Float[Tensor, "num rows cols"], rank: int
) -> tuple[Float[Tensor, "num rows rank"], Float[Tensor, "num cols rank"]]:
    """The best approximation, by the Gram matrix of the columns.

    With V the leading eigenvectors of MᵀM, computed in float64, L = M V and R = V: exact at full
    rank, and much cheaper than a singular value decomposition of a tall matrix.
    """
    wide = matrices.to(torch.float64)
    _, vectors = torch.linalg.eigh(wide.mT @ wide)
    leading = vectors[..., -rank:]
    return (wide @ leading).to(matrices.dtype), leading.to(matrices.dtype)


def conjugate_gradients(
    product: Callable[[Vector], Vector],
    target: Vector,
    *,
    tolerance: float = 1e-8,
    max_iterations: int = 1000,
) -> Vector:
    """Solve A x = b for symmetric positive definite A, by products with A alone.

    Args:
        product: x ↦ A x.
        target: b [dim].
        tolerance: stop where ‖b − A x‖ ≤ tolerance · ‖b‖.
        max_iterations: products at the most.

    Returns:
        x, in the dtype of ``target``.

    Raises:
        CurvatureError: if A is found not to be positive definite, or the solution is not reached.
    """
    solution, residual = torch.zeros_like(target), target.clone()
    direction, norm = residual.clone(), residual @ residual
    goal = tolerance**2 * norm
    for _ in range(max_iterations):
        if norm <= goal:
            return solution
        image = product(direction)
        curvature = direction @ image
        if not curvature > 0:
            raise CurvatureError(
                "conjugate gradients: expected a positive definite matrix, found a direction of "
                f"curvature {float(curvature):.3g}; raise the damping"
            )
        rate = norm / curvature
        solution += rate * direction
        residual -= rate * image
        previous, norm = norm, residual @ residual
        direction = residual + norm / previous * direction
    if norm <= goal:
        return solution
    raise CurvatureError(
        f"conjugate gradients: expected a relative residual of {tolerance:.3g} within "
        f"{max_iterations} products, got {float((norm / (target @ target)).sqrt()):.3g}; raise the "
        "damping, the tolerance or max_iterations"
    )
