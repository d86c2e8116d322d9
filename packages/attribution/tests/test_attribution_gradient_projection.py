"""Random projections of gradients: what they keep, and that they are the same everywhere."""

import subprocess
import sys
from collections.abc import Callable
from typing import Any

import numpy as np
import pytest
import torch
from attribution.errors import AttributionError
from attribution.gradient_similarity import (
    EncodedExample,
    ExampleGradients,
    GradientProjection,
    TensorProjection,
    tensor_seed,
)

Build = Callable[..., Any]
Encode = Callable[..., list[EncodedExample]]


@pytest.mark.parametrize("width", [37, 70_000])
def test_projections_preserve_inner_products_in_expectation(width: int) -> None:
    """The mean over seeds is within four standard errors of the truth, and not by being vague."""
    generator = torch.Generator().manual_seed(1)
    x, y = torch.randn(2, width, generator=generator)
    y = 0.6 * x + 0.8 * y
    num_seeds = 400 if width < 1000 else 60
    dots, norms = [], []
    for seed in range(num_seeds):
        project = TensorProjection("a.weight", width, 0.1, seed)
        dots.append(float(project(x) @ project(y)))
        norms.append(float(project(x) @ project(x)))
    for found, truth in ((dots, float(x @ y)), (norms, float(x @ x))):
        error = np.std(found, ddof=1) / num_seeds**0.5
        assert abs(np.mean(found) - truth) < 4 * error
        assert error < 0.05 * float(x @ x)
        # A Gaussian projection has variance (‖x‖²‖y‖² + ⟨x,y⟩²)/k; sampling rows of an
        # orthogonal matrix has less.
        assert np.std(found) < 1.3 * (2 / project.projected_width) ** 0.5 * float(x @ x)


def test_the_rows_of_an_embedding_are_spread_over_all_columns() -> None:
    """All mass in 2,048 neighbouring entries of 262,144: still an error as of even mass."""
    width = 1 << 18
    x = torch.zeros(width)
    x[4096 : 4096 + 2048] = 1.0
    found = []
    for seed in range(40):
        project = TensorProjection("embed", width, 0.02, seed)
        found.append(float(project(x).square().sum()) / 2048)
    assert np.std(found) < 1.5 * (2 / project.projected_width) ** 0.5
    assert abs(np.mean(found) - 1) < 4 * np.std(found) / 40**0.5


def test_errors_of_the_columns_are_uncorrelated() -> None:
    """Columns with the same content: with shared signs their errors would add up, not average."""
    width = 4 << 16
    column = torch.randn(1 << 16, generator=torch.Generator().manual_seed(0))
    x = column.repeat_interleave(4)
    found = []
    for seed in range(40):
        project = TensorProjection("w", width, 0.01, seed)
        found.append(float(project(x).square().sum() / x.square().sum()))
    assert np.std(found) < 1.5 * (2 / project.projected_width) ** 0.5


def test_a_projection_has_the_width_asked_for_and_names_draw_differently() -> None:
    one = TensorProjection("a", 1000, 0.05, 0)
    assert one.projected_width == 50
    assert TensorProjection("a", 5, 0.01, 0).projected_width == 1
    x = torch.randn(1000, generator=torch.Generator().manual_seed(0))
    assert torch.equal(one(x), TensorProjection("a", 1000, 0.05, 0)(x))
    assert not torch.equal(one(x), TensorProjection("b", 1000, 0.05, 0)(x))
    assert not torch.equal(one(x), TensorProjection("a", 1000, 0.05, 1)(x))
    for fraction in (0.0, -0.1, 1.01):
        with pytest.raises(AttributionError, match=r"projection fraction in \(0, 1\]"):
            TensorProjection("a", 10, fraction, 0)


def test_projections_draw_from_seeds_that_are_the_same_in_every_process() -> None:
    """Python's own hashes of texts are others in each; the numbers are from another process."""
    assert tensor_seed("a", 42) == 790_303_321
    assert tensor_seed("model.layers.0.mlp.up_proj.weight", 7) == 1_421_630_619
    torch.manual_seed(77)
    state = torch.random.get_rng_state()
    x = torch.arange(3000.0)
    y = TensorProjection("a", 3000, 0.01, 42)(x)
    assert torch.equal(state, torch.random.get_rng_state())
    torch.manual_seed(78)
    assert torch.equal(TensorProjection("a", 3000, 0.01, 42)(x), y)


@pytest.mark.slow  # another process imports torch once more
def test_projections_are_the_same_in_another_process_and_draw_from_no_global_state() -> None:
    code = (
        "import torch\n"
        "from attribution.gradient_similarity import TensorProjection, tensor_seed\n"
        "torch.manual_seed(5)\n"
        "x = torch.arange(3000.0) / 3000 - 0.4\n"
        "y = TensorProjection('model.layers.0.mlp.up_proj.weight', 3000, 0.01, 42)(x)\n"
        "print(tensor_seed('a', 42), y.numpy().tobytes().hex())\n"
    )
    torch.manual_seed(77)
    state = torch.random.get_rng_state()
    x = torch.arange(3000.0) / 3000 - 0.4
    y = TensorProjection("model.layers.0.mlp.up_proj.weight", 3000, 0.01, 42)(x)
    assert torch.equal(state, torch.random.get_rng_state())
    done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=True)
    assert done.stdout.split() == [str(tensor_seed("a", 42)), y.numpy().tobytes().hex()]


def test_a_projected_gradient_is_each_tensors_projection(build: Build, encode: Encode) -> None:
    gradients = ExampleGradients(build("olmo2"))
    flat = gradients(encode(1, 0)[0])
    project = GradientProjection(gradients.layout, 0.2, 3)
    projected = dict(project.layout.parts(project(flat)))
    assert set(projected) == set(gradients.layout.widths)
    for name, values in gradients.layout.parts(flat):
        own = TensorProjection(name, len(values), 0.2, 3)(values)
        torch.testing.assert_close(projected[name], own, rtol=0, atol=0)
    assert project.layout.dtype == torch.float64
