"""Eigendecompositions in stacks, as on an accelerator, against those side by side."""

import pytest
import torch
from math_utils.curvature import Covariances, decompose
from math_utils.curvature.decomposition import COPIES, matrices_per_stack, waiting_bytes
from math_utils.errors import CurvatureError
from math_utils.linalg import stacked_eigendecompositions, symmetric_eigendecomposition

WIDTHS = [(5, 3), (5, 7), (3, 5), (5, 3), (6, 3), (5, 3), (7, 7), (5, 6)]
ONE_OF_FIVE = COPIES * 8 * 5**2
PLENTY = 1 << 30


def covariance(width, seed, dtype=torch.float32):
    generator = torch.Generator().manual_seed(seed)
    rows = torch.randn(2 * width, width, generator=generator, dtype=torch.float64)
    return (rows.T @ rows / len(rows)).to(dtype)


def made(widths=WIDTHS, dtype=torch.float32):
    """Maps with these (d_in, d_out); the second reads what the first reads."""
    found = [
        (f"map {number}", Covariances(
            covariance(d_in, number - (number == 1), dtype),
            covariance(d_out, 100 + number, dtype),
            10 + number,
        ))
        for number, (d_in, d_out) in enumerate(widths)
    ]  # fmt: skip
    assert found[0][1].inputs.equal(found[1][1].inputs)
    return found


@pytest.fixture
def calls(monkeypatch):
    """Fills with the shape of every call of the library."""
    real, shapes = torch.linalg.eigh, []

    def eigh(matrices):
        shapes.append(tuple(matrices.shape))
        return real(matrices)

    monkeypatch.setattr(torch.linalg, "eigh", eigh)
    return shapes


@pytest.mark.parametrize("stack_bytes", [1, 2 * ONE_OF_FIVE, 3 * ONE_OF_FIVE, PLENTY])
@pytest.mark.parametrize("dtype", [torch.float32, torch.float64])
@pytest.mark.parametrize("stored", [torch.float32, torch.float64])
def test_stacks_give_the_bases_of_decompositions_side_by_side_in_the_same_order(
    stack_bytes, dtype, stored
):
    """To rounding, and up to the signs of eigenvectors: alignment alone changes bits."""
    is_wide = dtype == stored == torch.float64
    near = {"rtol": 1e-9, "atol": 1e-9} if is_wide else {"rtol": 1e-4, "atol": 1e-4}
    expected = list(decompose(made(dtype=stored), dtype=dtype))
    found = list(decompose(made(dtype=stored), dtype=dtype, stack_bytes=stack_bytes))
    assert [name for name, _ in found] == [name for name, _ in made()]
    assert found[0][1].input_basis is found[1][1].input_basis
    for (_, one), (_, other), (_, given) in zip(found, expected, made(), strict=True):
        assert one.num_positions == given.num_positions
        for side in ("input", "output"):
            values, vectors = getattr(one, f"{side}_values"), getattr(one, f"{side}_basis")
            assert values.dtype == vectors.dtype == stored
            torch.testing.assert_close(values, getattr(other, f"{side}_values"), **near)
            cosines = (vectors.T @ getattr(other, f"{side}_basis")).abs()
            torch.testing.assert_close(cosines, torch.eye(len(cosines), dtype=stored), **near)
            # What is kept of one map keeps no other.
            assert vectors.untyped_storage().nbytes() == vectors.nbytes
            assert values.untyped_storage().nbytes() == values.nbytes


def test_matrices_of_one_width_go_together_as_many_as_a_stack_holds(calls):
    list(decompose(made(), stack_bytes=PLENTY))
    by_width = {shape[-1]: shape for shape in calls}
    # Inputs: 5 (shared by two), 3, 5, 6, 5, 7, 5. Gradients: 3, 7, 5, 3, 3, 3, 7, 6.
    assert by_width == {5: (5, 5, 5), 3: (5, 3, 3), 6: (2, 6, 6), 7: (3, 7, 7)}
    assert len(calls) == 4
    calls.clear()
    assert matrices_per_stack(5, torch.float64, 2 * ONE_OF_FIVE) == 2
    assert matrices_per_stack(5, torch.float64, 2 * ONE_OF_FIVE - 1) == 1
    assert matrices_per_stack(5, torch.float32, 2 * ONE_OF_FIVE) == 4
    list(decompose(made([(5, 5)] * 4), stack_bytes=2 * ONE_OF_FIVE))
    assert calls == [(2, 5, 5)] * 3 + [(5, 5)]
    calls.clear()
    list(decompose(made(), stack_bytes=1))
    assert all(len(shape) == 2 for shape in calls)
    calls.clear()
    list(decompose(made()))
    assert all(len(shape) == 2 for shape in calls)


def test_maps_are_not_read_far_ahead_of_those_that_are_done():
    """Stacks of 100 matrices would fill, were it not for the covariances that wait for them."""
    stack_bytes, most = 100 * ONE_OF_FIVE, 0
    of_a_map = 2 * 4 * 5**2
    limit = waiting_bytes(stack_bytes) // of_a_map
    num_maps, num_read = 6 * limit, 0

    def read():
        nonlocal num_read
        for number in range(num_maps):
            num_read += 1
            own = [covariance(5, 2 * number + side) for side in range(2)]
            yield f"{number}", Covariances(*own, 1)

    for done, _ in enumerate(decompose(read(), stack_bytes=stack_bytes)):
        most = max(most, num_read - done)
    assert most == limit + 1
    assert done == num_maps - 1


def done_before_the_error(maps, stack_bytes):
    """(names of the maps that were decomposed, the message of the error that ended it)."""
    done = []
    try:
        for name, _ in decompose(maps, stack_bytes=stack_bytes):
            done.append(name)
    except CurvatureError as error:
        return done, str(error)
    raise AssertionError("expected an error")


@pytest.mark.parametrize("stack_bytes", [1, 2 * ONE_OF_FIVE, PLENTY])
def test_a_covariance_that_is_not_finite_is_named_and_those_before_it_are_given(stack_bytes):
    maps = made([(5, 5)] * 6)
    maps[3][1].output_gradients[2, 1] = torch.inf
    done, message = done_before_the_error(maps, stack_bytes)
    assert done == ["map 0", "map 1", "map 2"]
    assert message.startswith("map 3: covariance of output gradients: expected finite entries")


@pytest.mark.parametrize("stack_bytes", [None, 1, PLENTY])
def test_a_decomposition_that_does_not_converge_is_named(monkeypatch, stack_bytes):
    maps = made([(5, 5)] * 4)
    stubborn, real = maps[2][1].inputs, torch.linalg.eigh

    def eigh(matrices):
        one_by_one = matrices if matrices.ndim == 3 else matrices[None]
        if any(torch.allclose(one.float(), stubborn) for one in one_by_one):
            raise torch.linalg.LinAlgError("linalg.eigh: The algorithm failed to converge")
        return real(matrices)

    monkeypatch.setattr(torch.linalg, "eigh", eigh)
    done, message = done_before_the_error(maps, stack_bytes)
    assert done == ["map 0", "map 1"]
    assert message.startswith("map 2: covariance of inputs: the eigendecomposition in ")
    assert "did not converge" in message


def test_a_stack_that_returns_nan_names_the_matrix(monkeypatch):
    real = torch.linalg.eigh

    def eigh(matrices):
        values, vectors = real(matrices)
        vectors[1, 0, 0] = torch.nan
        return values, vectors

    monkeypatch.setattr(torch.linalg, "eigh", eigh)
    matrices = [covariance(5, seed) for seed in range(3)]
    first, second, third = stacked_eigendecompositions(matrices, ["a", "b", "c"])
    assert isinstance(first, tuple)
    assert isinstance(third, tuple)
    assert str(second).startswith("b: the eigendecomposition in torch.float64 returned NaN")


def test_a_matrix_that_is_not_finite_takes_no_other_of_its_stack_with_it(calls):
    matrices = [covariance(5, seed) for seed in range(4)]
    expected = stacked_eigendecompositions(matrices, "abcd")
    calls.clear()
    matrices[1] = torch.full((5, 5), torch.nan)
    found = stacked_eigendecompositions(matrices, "abcd")
    assert str(found[1]).startswith("b: expected finite")
    for place in (0, 2, 3):
        torch.testing.assert_close(found[place], expected[place])
    assert calls == [(3, 5, 5)]


def test_a_stack_that_memory_is_short_of_goes_matrix_by_matrix(monkeypatch):
    real = torch.linalg.eigh

    def eigh(matrices):
        if matrices.ndim == 3:
            raise torch.OutOfMemoryError("CUDA out of memory. Tried to allocate 2.00 GiB")
        return real(matrices)

    matrices = [covariance(5, seed) for seed in range(3)]
    expected = [symmetric_eigendecomposition(matrix) for matrix in matrices]
    monkeypatch.setattr(torch.linalg, "eigh", eigh)
    for found, one in zip(stacked_eigendecompositions(matrices, "abc"), expected, strict=True):
        assert torch.equal(found[0], one[0])
        assert torch.equal(found[1], one[1])
