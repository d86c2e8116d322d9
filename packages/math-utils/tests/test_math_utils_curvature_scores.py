"""Scores and self-influence against products of dense gradients, in float64."""

import pytest
import torch
from curvature_cases import DOUBLE, EXACT, GROUPS, fit
from math_utils.capture import frozen
from math_utils.curvature import (
    CurvatureFactors,
    Damping,
    MapFactors,
    Queries,
    bases_to_keep,
    collect_gradients,
    collect_queries,
    precondition_all,
    score_batch,
    self_influence,
)


def reference_scores(problem, factors, damping):
    """Σ_maps ⟨(F + λI)⁻¹ G_q, G_t⟩ from autograd's gradients; every example is a query too."""
    gradients = problem.naive_gradients()
    preconditioned = precondition_all(gradients, factors, damping)
    return {
        name: preconditioned[name].flatten(1) @ gradients[name].flatten(1).T for name in gradients
    }


@pytest.mark.parametrize("strategy", ["identity", "diagonal", "kfac", "ekfac"])
@pytest.mark.parametrize("rank", [None, 2])
def test_queries_preconditioned_as_they_come_equal_those_preconditioned_afterwards(
    problem, loss, strategy, rank
):
    factors, rows = fit(problem, loss, strategy), problem.all_rows()
    order = list(reversed(rows))
    with frozen(problem.model):
        found, losses = collect_queries(
            problem.model,
            problem.maps,
            problem.batches(rows[:2], rows[2:]),
            loss,
            factors,
            Damping(),
            rank=rank,
            order=order,
            dtype=DOUBLE,
        )
        gradients, expected_losses = collect_gradients(
            problem.model, problem.maps, problem.batches(rows), loss, dtype=DOUBLE
        )
    expected = Queries.stack(precondition_all(gradients, factors, Damping()), rank)
    torch.testing.assert_close(losses, expected_losses.flip(0), **EXACT)
    for name in problem.maps:
        if rank is None:
            torch.testing.assert_close(found.whole[name], expected.whole[name].flip(0), **EXACT)
        else:
            (left, right), (other_left, other_right) = found.low_rank[name], expected.low_rank[name]
            torch.testing.assert_close(
                left @ right.mT, (other_left @ other_right.mT).flip(0), **EXACT
            )


def scored(problem, loss, factors, damping, groups, *, rank=None, **kwargs):
    gradients, _ = collect_gradients(
        problem.model, problem.maps, problem.batches(problem.all_rows()), loss, dtype=DOUBLE
    )
    queries = Queries.stack(precondition_all(gradients, factors, damping), rank)
    with frozen(problem.model):
        return [
            score_batch(problem.model, problem.maps, batch, loss, queries, dtype=DOUBLE, **kwargs)
            for batch in problem.batches(*groups)
        ]


@pytest.mark.parametrize("strategy", ["identity", "diagonal", "kfac", "ekfac"])
@pytest.mark.parametrize("rank", [None, 6])
def test_scores_equal_the_reference_whole_and_in_full_rank(problem, loss, strategy, rank):
    problem.model.eval()
    factors = fit(problem, loss, strategy)
    expected = sum(reference_scores(problem, factors, Damping()).values())
    found = scored(problem, loss, factors, Damping(), GROUPS, rank=rank)
    torch.testing.assert_close(
        torch.cat([f.total for f in found], 1), expected, rtol=1e-8, atol=1e-8
    )


@pytest.mark.parametrize("strategy", ["identity", "diagonal", "kfac", "ekfac"])
@pytest.mark.parametrize("rank", [None, 6])
@pytest.mark.parametrize("sides", [(True, True), (True, False), (False, True)])
def test_scores_are_those_of_queries_that_stay_in_the_eigenbasis(
    problem, loss, strategy, rank, sides
):
    problem.model.eval()
    factors = fit(problem, loss, strategy)
    keep_inputs, keep_outputs = sides
    bases = {
        name: (
            one.input_basis if keep_inputs else None,
            one.output_basis if keep_outputs else None,
        )
        for name, one in factors.maps.items()
    }
    arguments = (problem.model, problem.maps)
    with frozen(problem.model):
        queries, _ = collect_queries(
            *arguments,
            problem.batches(problem.all_rows()),
            loss,
            factors,
            Damping(),
            rank=rank,
            bases=bases,
            dtype=DOUBLE,
        )
        found = [
            score_batch(*arguments, batch, loss, queries, dtype=DOUBLE, per_token=True)
            for batch in problem.batches(*GROUPS)
        ]
        whole = [
            score_batch(*arguments, batch, loss, queries, dtype=DOUBLE)
            for batch in problem.batches(*GROUPS)
        ]
    expected = sum(reference_scores(problem, factors, Damping()).values())
    for scores in (found, whole):
        total = torch.cat([one.total for one in scores], 1)
        torch.testing.assert_close(total, expected, rtol=1e-8, atol=1e-8)
    plain = scored(problem, loss, factors, Damping(), GROUPS, per_token=True)
    for one, other in zip(found, plain, strict=True):
        for part, expected_part in zip(one.per_token, other.per_token, strict=True):
            torch.testing.assert_close(part, expected_part, rtol=1e-8, atol=1e-8)


@pytest.mark.parametrize("rank", [None, 2])
def test_a_side_stays_in_the_eigenbasis_where_the_rows_of_training_are_fewer(problem, loss, rank):
    factors = fit(problem, loss, "ekfac")
    for name, one in problem.maps.items():
        for side, other_width in ((0, one.d_out), (1, one.d_in)):
            rotated_back = 3 * (min(rank, one.d_in, one.d_out) if rank else other_width)
            for rows, is_kept in ((rotated_back - 1, True), (rotated_back, False)):
                kept = bases_to_keep(factors, num_queries=3, num_rows=rows, rank=rank)
                own = (factors.maps[name].input_basis, factors.maps[name].output_basis)[side]
                assert kept[name][side] is (own if is_kept else None)
    assert not bases_to_keep(fit(problem, loss, "diagonal"), num_queries=3, num_rows=0)


def test_scores_are_symmetric(problem, loss):
    problem.model.eval()
    factors = fit(problem, loss, "ekfac")
    total = torch.cat([f.total for f in scored(problem, loss, factors, Damping(), GROUPS)], 1)
    torch.testing.assert_close(total, total.T, rtol=1e-8, atol=1e-8)


@pytest.mark.parametrize("rank", [None, 2])
def test_per_token_and_per_module_scores_sum_to_the_score(problem, loss, rank):
    problem.model.eval()
    factors = fit(problem, loss, "ekfac")
    found = scored(
        problem, loss, factors, Damping(), GROUPS, rank=rank, per_token=True, per_module=True
    )
    for group, scores in zip(GROUPS, found, strict=True):
        assert [part.shape[1] for part in scores.per_token] == [
            len(problem.sequences[row]) for row in group
        ]
        by_token = torch.stack([part.sum(dim=1) for part in scores.per_token], dim=1)
        torch.testing.assert_close(by_token, scores.total, **EXACT)
        assert list(scores.per_module) == list(problem.maps)
        torch.testing.assert_close(sum(scores.per_module.values()), scores.total, **EXACT)


@pytest.mark.parametrize("name", ["down", "inner"])
def test_per_token_scores_are_the_terms_of_the_sum_over_positions(problem, loss, name):
    """The reference: one backward pass per example, positions one by one; ``inner`` runs twice."""
    problem.maps = {name: problem.maps[name]}
    problem.model.eval()
    factors = CurvatureFactors("identity", {name: MapFactors()})
    (found,) = scored(problem, loss, factors, Damping(), [[2]], per_token=True)
    seen = []

    def hook(module, args, out):
        seen.append((args[0][0].detach(), out))

    handle = getattr(problem.model, name).register_forward_hook(hook)
    total = loss(problem.model, problem.batch([2])).sum()
    deltas = torch.autograd.grad(total, [out for _, out in seen])
    handle.remove()
    assert len(deltas) == (2 if name == "inner" else 1)
    queries = problem.naive_gradients()[name]
    for position in range(len(problem.sequences[2])):
        term = sum(
            torch.outer(delta[0, position], torch.cat([inputs[position], torch.ones(1)]))
            for (inputs, _), delta in zip(seen, deltas, strict=True)
        )
        expected = (queries * term).sum(dim=(1, 2))
        torch.testing.assert_close(found.per_token[0][:, position], expected, **EXACT)


@pytest.mark.parametrize("strategy", ["identity", "diagonal", "kfac", "ekfac"])
def test_self_influence_is_the_diagonal_of_the_pairwise_matrix(problem, loss, strategy):
    problem.model.eval()
    factors = fit(problem, loss, strategy)
    pairwise = sum(reference_scores(problem, factors, Damping()).values())
    with frozen(problem.model):
        found = torch.cat(
            [
                self_influence(
                    problem.model, problem.maps, batch, loss, factors, Damping(), dtype=DOUBLE
                )
                for batch in problem.batches(*GROUPS)
            ]
        )
    torch.testing.assert_close(found, pairwise.diagonal(), rtol=1e-8, atol=1e-8)


def test_low_rank_queries_get_nearer_as_the_rank_grows(problem, loss):
    problem.model.eval()
    factors = fit(problem, loss, "ekfac")
    exact = torch.cat([f.total for f in scored(problem, loss, factors, Damping(), GROUPS)], 1)
    errors = []
    for rank in (1, 3, 6):
        found = scored(problem, loss, factors, Damping(), GROUPS, rank=rank)
        errors.append(float((torch.cat([f.total for f in found], 1) - exact).norm()))
    assert errors[0] > errors[1] > errors[2]
    assert errors[2] < 1e-10 * float(exact.norm())
