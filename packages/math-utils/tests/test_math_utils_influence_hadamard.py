"""The randomised Hadamard transform against scipy's matrix, and what it promises of norms."""

import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from math_utils.errors import InfluenceError
from math_utils.influence import hadamard
from math_utils.influence.hadamard import RandomizedHadamardTransform, hadamard_transform
from scipy.linalg import hadamard as scipy_hadamard

DOUBLE = torch.float64


def normal(*shape, seed=0, dtype=DOUBLE):
    return torch.randn(shape, generator=torch.Generator().manual_seed(seed), dtype=dtype)


@pytest.mark.parametrize("log_dim", range(10))
@pytest.mark.parametrize("log_radix", [None, 1, 3, 8])
def test_the_transform_equals_scipys_matrix(log_dim, log_radix):
    vectors = normal(3, 1 << log_dim)
    expected = vectors @ torch.tensor(scipy_hadamard(1 << log_dim), dtype=DOUBLE)
    found = hadamard_transform(vectors, log_radix=log_radix)
    torch.testing.assert_close(found, expected, rtol=1e-12, atol=1e-12)


@pytest.mark.parametrize("segment", [16, 2, 0])
def test_a_projection_equals_its_matrices_whatever_the_segments(monkeypatch, segment):
    """Defect: a projection without the factor √(padded / output)."""
    monkeypatch.setattr(hadamard, "_LOG_SEGMENT", segment)
    transform = RandomizedHadamardTransform(21, 7, seed=4)
    vectors = normal(5, 21)
    H = torch.tensor(scipy_hadamard(32), dtype=DOUBLE) / 32**0.5
    chosen = torch.nn.functional.pad(vectors * transform._signs, (0, 11)) @ H
    expected = (32 / 7) ** 0.5 * chosen[:, transform._rows]
    torch.testing.assert_close(transform.project(vectors), expected, rtol=1e-12, atol=1e-12)


@settings(max_examples=25, deadline=None)
@given(dim=st.integers(1, 200), seed=st.integers(0, 2**40))
def test_with_all_rows_it_is_a_rotation(dim, seed):
    padded = 1 << (dim - 1).bit_length()
    transform = RandomizedHadamardTransform(dim, padded, seed=seed)
    image = transform.project(torch.eye(dim, dtype=DOUBLE))
    torch.testing.assert_close(image @ image.T, torch.eye(dim, dtype=DOUBLE))


def test_squared_norms_are_preserved_in_expectation():
    vector = normal(100)
    squares = torch.stack(
        [
            RandomizedHadamardTransform(100, 16, seed=seed).project(vector).square().sum()
            for seed in range(400)
        ]
    )
    error = squares.std() / len(squares) ** 0.5
    assert abs(squares.mean() - vector.square().sum()) < 4 * error


def test_rows_are_drawn_without_replacement_and_evenly():
    counts = torch.zeros(64)
    for seed in range(600):
        rows = hadamard._draw(64, 8, torch.Generator().manual_seed(seed))
        assert len(rows.unique()) == 8
        counts[rows] += 1
    expected = 600 * 8 / 64
    # Binomial, 600 draws of probability 1/8: a standard deviation of 8.1 around 75.
    assert (counts - expected).abs().max() < 4 * 8.1


def test_chunks_shapes_and_dtypes_change_nothing(monkeypatch):
    transform = RandomizedHadamardTransform(3000, 40, seed=1)
    vectors = normal(2, 3, 3000)
    expected = transform.project(vectors)
    assert expected.shape == (2, 3, 40)
    for first in range(2):
        for second in range(3):
            own = transform.project(vectors[first, second])
            torch.testing.assert_close(own, expected[first, second], rtol=1e-12, atol=1e-12)
    monkeypatch.setitem(hadamard._CHUNK_ELEMENTS, "cpu", 1)
    torch.testing.assert_close(transform.project(vectors), expected, rtol=1e-12, atol=1e-12)
    for dtype, tolerance in ((torch.float32, 1e-5), (torch.bfloat16, 2e-2), (torch.float16, 2e-3)):
        found = transform.project(vectors.to(dtype))
        assert found.dtype == dtype
        assert (found.double() - expected).norm() < tolerance * expected.norm()


def test_it_is_linear_and_made_by_its_seed():
    transform = RandomizedHadamardTransform(70, 20, seed=9)
    a, b = normal(70), normal(70, seed=1)
    together = transform.project(2 * a - b)
    torch.testing.assert_close(together, 2 * transform.project(a) - transform.project(b))
    again, other = (RandomizedHadamardTransform(70, 20, seed=s).project(a) for s in (9, 10))
    assert torch.equal(again, transform.project(a))
    assert not torch.equal(other, again)


def test_projecting_touches_no_global_random_state():
    before = torch.random.get_rng_state()
    RandomizedHadamardTransform(1000, 20).project(normal(1000))
    assert torch.equal(torch.random.get_rng_state(), before)


def test_a_million_dimensions_keep_a_known_inner_product():
    """A unit vector's image is a row of signs over √output, whatever its place."""
    dim = (1 << 22) - 5
    transform = RandomizedHadamardTransform(dim, 512, seed=2)
    for place in (0, 70_000, dim - 1):
        vector = torch.zeros(dim)
        vector[place] = 3.0
        image = transform.project(vector)
        parity = torch.tensor([bin(int(row) & place).count("1") % 2 for row in transform._rows])
        signs = (1 - 2 * parity) * int(transform._signs[place])
        torch.testing.assert_close(image, 3.0 * signs / 512**0.5)


def test_dimensions_out_of_range_are_said():
    with pytest.raises(InfluenceError, match=r"output_dim between 1 and 32.*got 33"):
        RandomizedHadamardTransform(20, 33)
    with pytest.raises(InfluenceError, match="output_dim between 1 and 32"):
        RandomizedHadamardTransform(20, 0)
    for dim in (0, (1 << 30) + 1):
        with pytest.raises(InfluenceError, match=r"input_dim between 1 and 2\^30"):
            RandomizedHadamardTransform(dim, 1)
    with pytest.raises(InfluenceError, match=r"expected vectors \[..., 20\], got \[2, 21\]"):
        RandomizedHadamardTransform(20, 4).project(torch.ones(2, 21))
    with pytest.raises(InfluenceError, match="power of two"):
        hadamard_transform(torch.ones(1, 6))
