"""K-FAC and EK-FAC against the dense Fisher of tiny networks, in float64."""

import pytest
import torch
from curvature_cases import DOUBLE, EXACT, GROUPS, config, fit
from hypothesis import given, settings
from hypothesis import strategies as st
from math_utils.capture import frozen
from math_utils.curvature import (
    CovarianceSums,
    CurvatureConfig,
    CurvatureFactors,
    Damping,
    EigenvalueSums,
    MapFactors,
    backward_pass,
    decompose,
    fit_curvature,
    precondition,
    precondition_all,
)
from math_utils.language_modeling import TokenBatch
from math_utils.linear_maps import find_linear_maps
from torch import nn


def recompose(factors: MapFactors) -> torch.Tensor:
    """The dense matrix that acts on row-major vec(G), from bases and eigenvalues."""
    basis = torch.kron(factors.output_basis, factors.input_basis)
    return basis @ torch.diag(factors.eigenvalues.flatten()) @ basis.T


def covariances(problem, loss, groups):
    sums = CovarianceSums(problem.maps, DOUBLE)
    with frozen(problem.model):
        for batch in problem.batches(*groups):
            backward_pass(problem.model, problem.maps, batch, loss, sums.add, dtype=DOUBLE)
    return sums.finish()


def test_covariances_equal_naive_loops(problem, loss):
    recorded = {name: ([], []) for name in problem.maps}
    model = problem.model.eval()
    for row in problem.all_rows():
        handles, outputs = [], []
        for name, one in problem.maps.items():

            def hook(module, args, out, name=name, one=one, outputs=outputs):
                a = args[0][0].detach()
                if one.has_bias:
                    a = torch.cat([a, torch.ones(len(a), 1, dtype=DOUBLE)], dim=1)
                recorded[name][0].append(a)
                outputs.append((name, out))

            handles.append(one.modules[0].register_forward_hook(hook))
        value = loss(model, problem.batch([row])).sum()
        for (name, _), gradient in zip(
            outputs, torch.autograd.grad(value, [out for _, out in outputs]), strict=True
        ):
            recorded[name][1].append(gradient[0])
        for handle in handles:
            handle.remove()
    found = covariances(problem, loss, [[0, 1, 2], [3, 4], [5, 6, 7]])
    for name, (inputs, gradients) in recorded.items():
        a, d = torch.cat(inputs), torch.cat(gradients)
        count = len(a)
        assert found[name].num_positions == count
        expected_a = sum(torch.outer(x, x) for x in a) / count
        expected_d = sum(torch.outer(x, x) for x in d) / count
        torch.testing.assert_close(found[name].inputs, expected_a, **EXACT)
        torch.testing.assert_close(found[name].output_gradients, expected_d, **EXACT)


@pytest.fixture(scope="module")
def fitted_once(make_problem, loss):
    problem = make_problem()
    fitted = fit(problem, loss, "ekfac").maps
    return problem, loss, {name: recompose(factors) for name, factors in fitted.items()}


@settings(deadline=None, max_examples=15)
@given(data=st.data())
def test_results_do_not_depend_on_how_examples_are_batched(data, fitted_once):
    problem, loss, expected = fitted_once
    order = data.draw(st.permutations(problem.all_rows()))
    cuts = sorted(data.draw(st.sets(st.integers(1, 7), max_size=4)))
    groups = [order[a:b] for a, b in zip([0, *cuts], [*cuts, 8], strict=True)]
    found = fit(problem, loss, "ekfac", groups)
    for name, factors in found.maps.items():
        # Eigenvectors are determined up to sign, so the matrices themselves are compared.
        torch.testing.assert_close(recompose(factors), expected[name], rtol=1e-7, atol=1e-9)


def test_corrected_eigenvalues_are_the_diagonal_of_the_fisher_in_the_eigenbasis(problem, loss):
    fisher = problem.naive_fisher()
    for name, factors in fit(problem, loss, "ekfac").maps.items():
        basis = torch.kron(factors.output_basis, factors.input_basis)
        diagonal = (basis.T @ fisher[name] @ basis).diagonal().reshape(factors.eigenvalues.shape)
        torch.testing.assert_close(factors.eigenvalues, diagonal, **EXACT)


def test_diagonal_is_the_diagonal_of_the_fisher_in_the_weights_own_basis(problem, loss):
    fisher = problem.naive_fisher()
    for name, factors in fit(problem, loss, "diagonal").maps.items():
        expected = fisher[name].diagonal().reshape(factors.eigenvalues.shape)
        torch.testing.assert_close(factors.eigenvalues, expected, **EXACT)


def test_kfac_is_the_kronecker_product_on_the_scale_of_one_example(problem, loss):
    found = covariances(problem, loss, [problem.all_rows()])
    for name, factors in fit(problem, loss, "kfac").maps.items():
        per_example = found[name].num_positions / 8
        expected = per_example * torch.kron(found[name].output_gradients, found[name].inputs)
        torch.testing.assert_close(recompose(factors), expected, rtol=1e-8, atol=1e-10)


def test_ekfac_is_nearer_to_the_fisher_than_kfac_for_every_map(problem, loss):
    fisher = problem.naive_fisher()
    kfac, ekfac = fit(problem, loss, "kfac").maps, fit(problem, loss, "ekfac").maps
    for name in problem.maps:
        errors = [(recompose(f[name]) - fisher[name]).norm() for f in (kfac, ekfac)]
        assert errors[1] < errors[0]


def test_kfac_and_ekfac_are_exact_for_one_position_and_independent_factors():
    """Every input meets every output gradient once, so that E[aaᵀ ⊗ δδᵀ] = E[aaᵀ] ⊗ E[δδᵀ]."""
    generator = torch.Generator().manual_seed(3)
    points = torch.randn(5, 3, generator=generator, dtype=DOUBLE)
    targets = torch.randn(4, 2, generator=generator, dtype=DOUBLE)
    inputs = points.repeat_interleave(4, dim=0)[:, None]
    directions = targets.repeat(5, 1)[:, None]
    model = nn.Sequential(nn.Linear(3, 2, bias=False)).double()
    ids = torch.zeros(20, 1, dtype=torch.long)
    batch = TokenBatch(ids, torch.ones_like(ids, dtype=torch.bool), ids, torch.arange(20))
    maps = find_linear_maps(model, lambda name: True)

    def objective(module, batch):
        return (module(inputs) * directions).sum(dim=(1, 2))

    gradients = torch.einsum("nto,nti->noi", directions, inputs).flatten(1)
    fisher = gradients.T @ gradients / 20
    for strategy in ("kfac", "ekfac"):
        factors = fit_curvature(model, maps, [batch], objective, config(strategy))
        torch.testing.assert_close(recompose(factors.maps["0"]), fisher, **EXACT)


@pytest.mark.parametrize("strategy", ["diagonal", "kfac", "ekfac"])
@pytest.mark.parametrize("damping", [Damping(), Damping(0.03, "absolute")])
def test_the_inverse_product_equals_the_dense_solve(problem, loss, strategy, damping):
    gradients = problem.naive_gradients()
    for name, factors in fit(problem, loss, strategy).maps.items():
        if strategy == "diagonal":
            dense = torch.diag(factors.eigenvalues.flatten())
        else:
            dense = recompose(factors)
        scale = factors.eigenvalues.mean() if damping.kind == "relative" else 1.0
        damped = dense + damping.value * scale * torch.eye(len(dense), dtype=DOUBLE)
        expected = torch.linalg.solve(damped, gradients[name].flatten(1).T).T
        found = precondition(gradients[name], factors, damping)
        torch.testing.assert_close(found.flatten(1), expected, rtol=1e-8, atol=1e-8)
        # H⁻¹ H = I, to close the circle.
        torch.testing.assert_close(
            found.flatten(1) @ damped, gradients[name].flatten(1), rtol=1e-8, atol=1e-8
        )


def test_factors_go_to_tensors_and_back(problem, loss):
    for strategy in ("identity", "diagonal", "kfac", "ekfac"):
        factors = fit(problem, loss, strategy)
        again = CurvatureFactors.from_tensors(strategy, list(problem.maps), factors.to_tensors())
        assert list(again.maps) == list(factors.maps)
        for name, one in factors.to_tensors().items():
            assert torch.equal(again.to_tensors()[name], one)


def test_incomplete_or_misshapen_factors_are_refused_by_name(problem, loss):
    tensors = fit(problem, loss, "ekfac").to_tensors()
    names = list(problem.maps)
    lacking = {key: value for key, value in tensors.items() if key != "up.eigenvalues"}
    with pytest.raises(ValueError, match=r"lack up\.eigenvalues"):
        CurvatureFactors.from_tensors("ekfac", names, lacking)
    with pytest.raises(ValueError, match=r"hold other\.eigenvalues"):
        CurvatureFactors.from_tensors(
            "ekfac", names, {**tensors, "other.eigenvalues": tensors["up.eigenvalues"]}
        )
    swapped = {**tensors, "up.eigenvalues": tensors["up.eigenvalues"].T}
    with pytest.raises(ValueError, match="up: expected bases"):
        CurvatureFactors.from_tensors("ekfac", names, swapped)


def test_sums_taken_up_again_end_at_the_same_bits(problem, loss):
    """Both kinds of running sums, stopped after each batch and continued from their tensors."""

    def run(make, interrupted):
        sums = make()
        with frozen(problem.model):
            for batch in problem.batches(*GROUPS):
                if interrupted:
                    state = {key: value.clone() for key, value in sums.state().items()}
                    sums = make()
                    sums.load(state)
                backward_pass(problem.model, problem.maps, batch, loss, sums.add, dtype=DOUBLE)
        return sums

    def new_covariances():
        return CovarianceSums(problem.maps, DOUBLE)

    whole, parts = (run(new_covariances, flag).finish() for flag in (False, True))
    for name in whole:
        assert torch.equal(whole[name].inputs, parts[name].inputs)
        assert torch.equal(whole[name].output_gradients, parts[name].output_gradients)
        assert whole[name].num_positions == parts[name].num_positions
    bases = dict(decompose(whole.items()))

    def new_eigenvalues():
        return EigenvalueSums(problem.maps, bases, DOUBLE)

    whole, parts = (run(new_eigenvalues, flag).finish(8) for flag in (False, True))
    for name in whole:
        assert torch.equal(whole[name], parts[name])


def test_draining_gives_the_bits_of_finishing_and_gives_the_sums_up(problem, loss):
    covariances = CovarianceSums(problem.maps, DOUBLE)
    squares = EigenvalueSums(problem.maps, None, DOUBLE)
    with frozen(problem.model):
        for batch in problem.batches(*GROUPS):
            for sums in (covariances, squares):
                backward_pass(problem.model, problem.maps, batch, loss, sums.add, dtype=DOUBLE)
    kept, kept_squares = covariances.finish(), squares.finish(8)
    assert covariances.state()
    for name, one in covariances.drain():
        assert torch.equal(one.inputs, kept[name].inputs)
        assert torch.equal(one.output_gradients, kept[name].output_gradients)
        assert one.num_positions == kept[name].num_positions
    for name, values in squares.drain(8):
        assert torch.equal(values, kept_squares[name])
    assert not covariances.state()
    assert not squares.state()


def test_factors_do_not_depend_on_the_loss_scale(problem, loss):
    plain, scaled = (
        fit_curvature(
            problem.model,
            problem.maps,
            problem.batches(problem.all_rows()),
            loss,
            CurvatureConfig(covariance_dtype=DOUBLE, loss_scale=scale),
        )
        for scale in (1.0, 256.0)
    )
    for name in plain.maps:
        torch.testing.assert_close(
            recompose(plain.maps[name]), recompose(scaled.maps[name]), rtol=1e-8, atol=1e-10
        )


def test_a_singular_curvature_without_damping_is_an_error_that_says_what_to_do():
    factors = CurvatureFactors("diagonal", {"up": MapFactors(eigenvalues=torch.eye(6, 4))})
    gradients = {"up": torch.ones(1, 6, 4)}
    with pytest.raises(ValueError, match=r"up: the smallest damped eigenvalue is 0, .*larger"):
        precondition_all(gradients, factors, Damping(0.0))


def test_bad_settings_are_refused():
    unchecked = CurvatureConfig()
    object.__setattr__(unchecked, "strategy", "fisher")  # past the type checker of the tests
    with pytest.raises(ValueError, match="strategy among identity, diagonal, kfac, ekfac"):
        unchecked.__post_init__()
    with pytest.raises(ValueError, match="covariance_dtype"):
        CurvatureConfig(covariance_dtype=torch.bfloat16)
    with pytest.raises(ValueError, match="not negative"):
        Damping(-0.1)


def test_no_maps_no_examples_and_silent_maps_are_errors(problem, loss):
    batches = problem.batches([0, 1])
    with pytest.raises(ValueError, match="at least one linear map"):
        fit_curvature(problem.model, {}, batches, loss)
    with pytest.raises(ValueError, match="at least one example"):
        fit_curvature(problem.model, problem.maps, [], loss)
    problem.model.spare = nn.Linear(2, 2).double()
    maps = find_linear_maps(problem.model, lambda name: name in ("up", "spare"))
    with pytest.raises(ValueError, match=r"spare .*never ran"):
        fit_curvature(problem.model, maps, batches, loss)
