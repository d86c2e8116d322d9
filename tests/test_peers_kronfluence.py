"""Our factors and scores against those of kronfluence 1.0.1, empirical Fisher on both sides.

What kronfluence divides by what, read from its source, and the constant factors that follow.
With T positions and N examples in the data, padding left out of both:

- covariances (``module/tracker/factor.py``, ``factor/eigen.py``): sums Σ a aᵀ and Σ δ δᵀ are saved
  beside their counts, T each if the task gives an attention mask, and divided when they are
  decomposed. Ours are averages over the same T: factor 1.
- corrected eigenvalues (``factor/config.py``, ``Ekfac.prepare``): sums of squared gradients of
  single examples, divided by the number of examples N, as ours: factor 1. So EK-FAC and the
  diagonal speak of the Fisher per example in both libraries, and nothing has to be converted.
- the eigenvalues of K-FAC (``Kfac.prepare``) are λ_S λ_Aᵀ there, the Fisher per *position*, and
  (T/N) λ_S λ_Aᵀ here, per example. Relative damping scales with them, so the inverse, and every
  score, is N/T times theirs.
- damping: ``damping_factor=None`` is 0.1 times the mean of those eigenvalues, as our default. The
  identity has none in either.
- sign: scores are g_qᵀ (F+λI)⁻¹ g_t in both, of the gradients of two losses when the measurement
  is the query's loss: the minus of "up-weighting changes the optimum by −H⁻¹g" is left out, so a
  positive score is helpful in both.

The loss has to be a sum over tokens there too; the labels are given ones, so nothing is sampled.
kronfluence 1.0.1 works with torch 2.15 and transformers 5 as it is.
"""

from copy import deepcopy
from dataclasses import dataclass
from typing import Any

import pytest
import torch
from if_query.models import LanguageModelLoss, select_maps
from math_utils.capture import frozen
from math_utils.curvature import (
    CovarianceSums,
    CurvatureConfig,
    CurvatureFactors,
    Damping,
    Queries,
    backward_pass,
    collect_gradients,
    fit_curvature,
    precondition_all,
    score_batch,
)
from math_utils.language_modeling import TokenBatch
from math_utils.linear_maps import LinearMap
from torch import Tensor

pytest.importorskip("kronfluence", reason="needs the dependency group: uv run --group peers")

from kronfluence.analyzer import Analyzer, prepare_model
from kronfluence.arguments import FactorArguments, ScoreArguments
from kronfluence.task import Task
from kronfluence.utils.dataset import DataLoaderKwargs

pytestmark = [
    pytest.mark.peers,
    pytest.mark.filterwarnings("ignore:.*GradScaler.*:FutureWarning:kronfluence"),
]

ARCHITECTURES = ["olmo2", "llama", "gpt_neox"]
AGREE = 1e-3
"""Largest relative error of a score, in float32; scores that cancel to less than a hundredth of
the largest may be off by 1e-5 of the largest, which is what rounding leaves."""
NORM_AGREE = 1e-4
"""Largest relative error of a whole matrix in norm; measured: up to 3e-6."""

LENGTHS = (5, 12, 3, 9, 7, 13, 4, 10, 6, 8, 11, 2, 13, 9, 5, 12)
NUM_PROMPT_TOKENS = 2
QUERY_LENGTHS = (6, 11, 3, 8)
PAD = 2


class SummedLoss(Task):
    """Summed next-token cross-entropy of the labelled positions, padded on the right."""

    def __init__(self, tracked: list[str]) -> None:
        self._tracked = tracked

    def compute_train_loss(self, batch: Any, model: Any, sample: bool = False) -> Tensor:
        assert not sample, "the empirical Fisher takes the labels of the data"
        logits = model(input_ids=batch["ids"], attention_mask=batch["mask"]).logits
        return torch.nn.functional.cross_entropy(
            logits[:, :-1].flatten(0, 1), batch["labels"][:, 1:].flatten(), reduction="sum"
        )

    def compute_measurement(self, batch: Any, model: Any) -> Tensor:
        return self.compute_train_loss(batch, model)

    def get_influence_tracked_modules(self) -> list[str]:
        return self._tracked

    def get_attention_mask(self, batch: Any) -> Tensor:
        return batch["mask"]


@dataclass
class Problem:
    model: Any
    maps: dict[str, LinearMap]
    train: list[TokenBatch]
    queries: TokenBatch

    @property
    def num_positions(self) -> int:
        return sum(LENGTHS)

    @property
    def num_examples(self) -> int:
        return len(LENGTHS)


def some_sequences(lengths: tuple[int, ...], seed: int) -> list[list[int]]:
    generator = torch.Generator().manual_seed(seed)
    return [torch.randint(3, 37, (n,), generator=generator).tolist() for n in lengths]


def labels_of(ids: list[int]) -> list[int]:
    """Longer sequences have a prompt, which carries no label of its own."""
    prompt = NUM_PROMPT_TOKENS if len(ids) > 4 else 0
    return [-100] * prompt + ids[prompt:]


def collate(sequences: list[list[int]]) -> TokenBatch:
    labels = [labels_of(ids) for ids in sequences]
    return TokenBatch.collate(sequences, labels, range(len(sequences)), pad_id=PAD)


def collate_for_kronfluence(sequences: list[list[int]]) -> dict[str, Tensor]:
    batch = collate(sequences)
    return {
        "ids": batch.input_ids,
        "mask": batch.attention_mask.long(),
        "labels": batch.labels,
    }


def make_problem(model: Any) -> Problem:
    sequences = some_sequences(LENGTHS, seed=7)
    # Other batches than kronfluence gets: neither may depend on them.
    train = [collate(sequences[:6]), collate(sequences[6:])]
    queries = collate(some_sequences(QUERY_LENGTHS, seed=8))
    return Problem(model, select_maps(model, "mlp").maps, train, queries)


@pytest.fixture(scope="module", params=ARCHITECTURES)
def problem(request, make_model) -> Problem:
    return make_problem(make_model(request.param, dtype=torch.float32))


def run_kronfluence(problem: Problem, folder, strategy: str) -> tuple[Analyzer, Tensor]:
    """Fit and score with kronfluence on a copy of the model; (analyzer, scores)."""
    task = SummedLoss(list(problem.maps))
    analyzer = Analyzer(
        analysis_name="peer",
        model=prepare_model(deepcopy(problem.model), task),
        task=task,
        cpu=True,
        disable_tqdm=True,
        output_dir=str(folder),
    )
    analyzer.set_dataloader_kwargs(DataLoaderKwargs(collate_fn=collate_for_kronfluence))
    train = some_sequences(LENGTHS, seed=7)
    analyzer.fit_all_factors(
        factors_name=strategy,
        dataset=train,
        per_device_batch_size=3,
        factor_args=FactorArguments(strategy=strategy, use_empirical_fisher=True),
    )
    analyzer.compute_pairwise_scores(
        scores_name=strategy,
        factors_name=strategy,
        query_dataset=some_sequences(QUERY_LENGTHS, seed=8),
        train_dataset=train,
        per_device_query_batch_size=3,
        per_device_train_batch_size=5,
        score_args=ScoreArguments(damping_factor=None),
    )
    return analyzer, analyzer.load_pairwise_scores(strategy)["all_modules"]


def fit(problem: Problem, strategy: str) -> CurvatureFactors:
    config = CurvatureConfig(strategy=strategy)
    return fit_curvature(problem.model, problem.maps, problem.train, LanguageModelLoss(), config)


def our_scores(problem: Problem, factors: CurvatureFactors) -> Tensor:
    loss = LanguageModelLoss()
    with frozen(problem.model):
        gradients, _ = collect_gradients(problem.model, problem.maps, [problem.queries], loss)
        queries = Queries.stack(precondition_all(gradients, factors, Damping()), None)
        parts = [
            score_batch(problem.model, problem.maps, batch, loss, queries).total
            for batch in problem.train
        ]
    return torch.cat(parts, dim=1)


def our_covariances(problem: Problem):
    sums = CovarianceSums(problem.maps)
    with frozen(problem.model):
        for batch in problem.train:
            backward_pass(problem.model, problem.maps, batch, LanguageModelLoss(), sums.add)
    return sums.finish()


def relative_error(found: Tensor, expected: Tensor) -> float:
    return float((found - expected).norm() / expected.norm())


def fisher(output_basis: Tensor, eigenvalues: Tensor, input_basis: Tensor) -> Tensor:
    """Q diag(Λ) Qᵀ in full: does not depend on signs or on the order of equal eigenvalues."""
    basis = torch.kron(output_basis.double(), input_basis.double())
    return (basis * eigenvalues.double().flatten()) @ basis.T


@pytest.mark.parametrize("strategy", ["identity", "diagonal", "kfac", "ekfac"])
def test_scores_agree(problem, tmp_path, strategy):
    _, theirs = run_kronfluence(problem, tmp_path, strategy)
    per_example = problem.num_positions / problem.num_examples if strategy == "kfac" else 1.0
    ours = our_scores(problem, fit(problem, strategy))
    assert ours.shape == theirs.shape == (len(QUERY_LENGTHS), problem.num_examples)
    assert relative_error(per_example * ours, theirs) < NORM_AGREE
    smallest = 0.01 * float(theirs.abs().max())
    torch.testing.assert_close(per_example * ours, theirs, rtol=AGREE, atol=AGREE * smallest)


def test_covariances_and_corrected_eigenvalues_agree(problem, tmp_path):
    analyzer, _ = run_kronfluence(problem, tmp_path, "ekfac")
    sums = analyzer.load_covariance_matrices("ekfac")
    eigen = analyzer.load_eigendecomposition("ekfac")
    lambdas = analyzer.load_lambda_matrices("ekfac")
    covariances, factors = our_covariances(problem), fit(problem, "ekfac").maps
    assert set(sums["activation_covariance"]) == set(problem.maps)
    for name, ours in covariances.items():
        assert int(sums["num_activation_covariance_processed"][name]) == problem.num_positions
        assert int(sums["num_gradient_covariance_processed"][name]) == problem.num_positions
        assert int(lambdas["num_lambda_processed"][name]) == problem.num_examples
        for mine, their in (
            (ours.inputs, "activation_covariance"),
            (ours.output_gradients, "gradient_covariance"),
        ):
            assert relative_error(mine, sums[their][name] / problem.num_positions) < NORM_AGREE
        own = factors[name]
        assert own.eigenvalues is not None
        corrected = lambdas["lambda_matrix"][name] / problem.num_examples
        torch.testing.assert_close(own.eigenvalues.mean(), corrected.mean(), rtol=AGREE, atol=0)
        whole = fisher(
            eigen["gradient_eigenvectors"][name], corrected, eigen["activation_eigenvectors"][name]
        )
        mine = fisher(own.output_basis, own.eigenvalues, own.input_basis)
        assert relative_error(mine, whole) < NORM_AGREE


def test_without_the_attention_mask_the_comparison_fails(make_model, tmp_path, monkeypatch):
    """Padding that enters a covariance shows in counts and scores."""
    problem = make_problem(make_model("olmo2", dtype=torch.float32))
    monkeypatch.setattr(SummedLoss, "get_attention_mask", lambda self, batch: None)
    analyzer, theirs = run_kronfluence(problem, tmp_path, "ekfac")
    counts = analyzer.load_covariance_matrices("ekfac")["num_activation_covariance_processed"]
    assert all(int(count) > problem.num_positions for count in counts.values())
    assert relative_error(our_scores(problem, fit(problem, "ekfac")), theirs) > 100 * NORM_AGREE


def test_scores_of_a_block_that_runs_three_times_are_the_definition(make_model):
    """Every layer is one block, as in ALBERT: its maps run three times in each forward pass.

    Our own claim (kronfluence keeps the score of one use only, ``module/tracker/pairwise_score``):
    with the eigenbases as given, Λ and the scores follow from autograd's gradient of each example.
    """
    model = make_model("olmo2", dtype=torch.float64)
    block = model.model.layers[0]
    for layer in range(1, len(model.model.layers)):
        model.model.layers[layer] = block
    maps = select_maps(model, "mlp").maps
    sequences = some_sequences(LENGTHS[:8], seed=7)
    problem = Problem(model, maps, [collate(sequences)], collate(sequences[:3]))
    loss = LanguageModelLoss()
    config = CurvatureConfig(covariance_dtype=torch.float64)
    factors = fit_curvature(model, maps, problem.train, loss, config)
    with frozen(model):
        gradients, _ = collect_gradients(model, maps, [problem.queries], loss, dtype=torch.float64)
        queries = Queries.stack(precondition_all(gradients, factors, Damping()), None)
        (batch,) = problem.train
        found = score_batch(model, maps, batch, loss, queries, dtype=torch.float64).total

    weights = {name: one.modules[0].weight for name, one in maps.items()}
    expected = torch.zeros(3, 8, dtype=torch.float64)
    each = [
        torch.autograd.grad(loss(model, collate([ids])).sum(), list(weights.values()))
        for ids in sequences
    ]
    for place, name in enumerate(weights):
        own = factors.maps[name]
        rotated = torch.stack([own.output_basis.T @ g[place] @ own.input_basis for g in each])
        corrected = rotated.square().mean(dim=0)
        # RMSNorm computes in float32 whatever the model's dtype: 1e-7 relative is what is left.
        torch.testing.assert_close(own.eigenvalues, corrected, rtol=1e-4, atol=1e-7)
        inverse = 1 / (corrected + 0.1 * corrected.mean())
        expected += torch.einsum("qio,io,tio->qt", rotated[:3], inverse, rotated)
    torch.testing.assert_close(found, expected, rtol=1e-5, atol=1e-5 * float(expected.abs().max()))
