"""Symmetric sums, eigendecompositions and low-rank factors against their definitions."""

import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from math_utils.linalg import (
    add_blocks_,
    add_gram_,
    gram_blocks,
    low_rank_factors,
    symmetric_eigendecomposition,
    symmetrize_,
)


def random(*shape, seed=0):
    generator = torch.Generator().manual_seed(seed)
    return torch.randn(*shape, generator=generator, dtype=torch.float64)


@settings(deadline=None, max_examples=30)
@given(rows=st.integers(1, 9), dim=st.integers(1, 13), block=st.integers(1, 14))
def test_blocked_gram_sums_equal_the_full_product(rows, dim, block):
    first, second = random(rows, dim), random(rows, dim, seed=1)
    total = torch.zeros(dim, dim, dtype=torch.float64)
    add_gram_(total, first, block=block)
    add_gram_(total, second, block=block)
    torch.testing.assert_close(symmetrize_(total), first.T @ first + second.T @ second)
    shared = torch.zeros(2, dim, dim, dtype=torch.float64)
    for rows_of_both in (first, second):
        blocks = gram_blocks(rows_of_both, block=block)
        for one in shared:
            add_blocks_(one, blocks)
    torch.testing.assert_close(symmetrize_(shared[0]), total)
    torch.testing.assert_close(symmetrize_(shared[1]), total)


def test_an_eigendecomposition_recomposes_and_has_no_negative_eigenvalue():
    rows = random(3, 7)
    matrix = rows.T @ rows
    values, vectors = symmetric_eigendecomposition(matrix)
    torch.testing.assert_close(vectors @ torch.diag(values) @ vectors.T, matrix)
    torch.testing.assert_close(vectors.T @ vectors, torch.eye(7, dtype=torch.float64))
    assert (values >= 0).all()
    assert (values.diff() >= 0).all()


def test_the_dtype_of_the_decomposition_is_obeyed():
    """Eigenvalues 1 and 1e-12: float64 finds the small one, float32 cannot."""
    basis, _ = torch.linalg.qr(random(2, 2))
    matrix = basis @ torch.diag(torch.tensor([1.0, 1e-12], dtype=torch.float64)) @ basis.T
    wide, _ = symmetric_eigendecomposition(matrix, dtype=torch.float64)
    narrow, _ = symmetric_eigendecomposition(matrix, dtype=torch.float32)
    assert float(wide[0]) == pytest.approx(1e-12, rel=1e-2, abs=0)
    assert float(narrow[0]) != pytest.approx(1e-12, rel=1e-2, abs=0)


def test_a_matrix_that_is_not_finite_is_named():
    with pytest.raises(ValueError, match="down: covariance: expected finite"):
        symmetric_eigendecomposition(torch.full((2, 2), torch.nan), name="down: covariance")


def test_a_decomposition_that_returns_nan_is_an_error(monkeypatch):
    broken = torch.full((2,), torch.nan), torch.eye(2)
    monkeypatch.setattr(torch.linalg, "eigh", lambda matrix: broken)
    with pytest.raises(ValueError, match="returned NaN"):
        symmetric_eigendecomposition(torch.eye(2))


@pytest.mark.parametrize("shape", [(2, 5, 3), (2, 3, 5), (1, 4, 4)])
def test_low_rank_factors_are_the_best_approximation(shape):
    matrices = random(*shape)
    singular = torch.linalg.svdvals(matrices)
    for rank in (1, 2, 3):
        left, right = low_rank_factors(matrices, rank)
        assert left.shape[-1] == right.shape[-1] == rank
        error = (matrices - left @ right.mT).norm(dim=(1, 2))
        torch.testing.assert_close(error, singular[:, rank:].norm(dim=1), atol=1e-10, rtol=1e-10)
    left, right = low_rank_factors(matrices, 99)
    torch.testing.assert_close(left @ right.mT, matrices)


@pytest.mark.parametrize("power", [0.0, 0.5, 1.0, 2.0])
@pytest.mark.parametrize("rank", [2, 8, 32])
@pytest.mark.parametrize("is_wide", [True, False])
def test_low_rank_factors_of_a_large_matrix_are_nearly_the_best(power, rank, is_wide):
    rows, cols = 300, 200
    singular = torch.arange(1, cols + 1, dtype=torch.float64) ** -power
    left, right = (torch.linalg.qr(random(n, cols, seed=n)).Q for n in (rows, cols))
    matrix = (left * singular) @ right.T
    matrices = torch.stack([matrix, 3 * matrix])
    matrices = (matrices.mT if is_wide else matrices).contiguous()
    own_left, own_right = low_rank_factors(matrices.float(), rank)
    assert own_left.shape == (2, matrices.shape[1], rank)
    assert own_right.shape == (2, matrices.shape[2], rank)
    error = (matrices - own_left.double() @ own_right.double().mT).norm(dim=(1, 2))
    best = singular[rank:].norm() * torch.tensor([1.0, 3.0])
    assert (error < 1.01 * best).all()
    alone = low_rank_factors(matrices[:1].float(), rank)
    torch.testing.assert_close(
        alone[0] @ alone[1].mT, own_left[:1] @ own_right[:1].mT, rtol=0, atol=1e-4 * float(best[0])
    )


def test_a_matrix_of_low_rank_and_one_of_zeros_are_kept_exactly():
    matrix = random(1, 90, 3) @ random(1, 3, 70, seed=1)
    left, right = low_rank_factors(torch.cat([matrix, 0 * matrix]), 4)
    torch.testing.assert_close(left @ right.mT, torch.cat([matrix, 0 * matrix]))


def test_a_rank_below_one_is_refused():
    with pytest.raises(ValueError, match="rank of at least 1"):
        low_rank_factors(random(1, 2, 2), 0)
