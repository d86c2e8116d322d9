"""Baselines from gradients of parameters: their formulas, their laws, and what one step does."""

import json
from collections.abc import Callable
from copy import deepcopy
from pathlib import Path
from typing import Any

import pytest
import torch
from attribution.baselines import (
    TracedModel,
    TrackStarOptions,
    datainf_scores,
    gradient_cosine_scores,
    tracin_scores,
    trackstar_scores,
)
from attribution.baselines.trackstar import unit_whitened_dots
from attribution.checkpoints import Checkpoints
from attribution.errors import AttributionError
from attribution.examples import Example
from attribution.trainer_checkpoints import find_trainer_checkpoints, traced_models
from torch import Tensor
from transformers import PreTrainedModel

ARCHITECTURES = ["olmo2", "llama", "qwen3", "gpt_neox", "gpt2"]
CLOSE: dict[str, float] = {"rtol": 1e-8, "atol": 1e-10}
QUERIES = [Example.answer([5, 9, 17, 4], [8]), Example.answer([21, 6], [7, 12, 3])]


def tracin_of_two(model: PreTrainedModel, *args: Any, **options: Any) -> Tensor:
    other = deepcopy(model)
    with torch.no_grad():
        for parameter in other.parameters():
            parameter.mul_(0.9)
    pair = [TracedModel(model, 0.5), TracedModel(other, 0.25)]
    return tracin_scores(pair, *args, **options)


def projected(model: PreTrainedModel, *args: Any, **options: Any) -> Tensor:
    # Always one text at a time, so there is nothing to batch.
    return trackstar_scores(model, *args, options=TrackStarOptions(64))


def datainf_all(*args: Any, **options: Any) -> Tensor:
    return datainf_scores(*args, target="all", **options)


METHODS: dict[str, Callable[..., Tensor]] = {
    "cosine": gradient_cosine_scores,
    "tracin": tracin_of_two,
    "trackstar": projected,
    "datainf": datainf_all,
}


def loss_of(model: PreTrainedModel, example: Example) -> Tensor:
    """The summed loss of the targets, one position after the other."""
    logits = model(torch.tensor([example.token_ids])).logits[0]
    places = range(*example.span)
    return -sum(logits[t - 1].log_softmax(dim=-1)[example.token_ids[t]] for t in places)  # type: ignore[return-value]


def naive_gradients(model: PreTrainedModel, some: list[Example]) -> Tensor:
    """Autograd, one example at a time, over the parameters that require a gradient."""
    trained = [one for one in model.parameters() if one.requires_grad]
    rows = [torch.autograd.grad(loss_of(model, one), trained) for one in some]
    return torch.stack([torch.cat([part.flatten() for part in row]) for row in rows])


@pytest.mark.parametrize("architecture", ARCHITECTURES)
def test_cosines_and_tracin_are_those_of_autograd_one_example_at_a_time(
    make_checkpoints: Callable[..., Checkpoints], examples: list[Example], architecture: str
) -> None:
    pair = make_checkpoints(architecture)
    asked, given = (naive_gradients(pair.new, some) for some in (QUERIES, examples))
    dots = asked @ given.T
    norms = asked.norm(dim=1)[:, None] * given.norm(dim=1)
    torch.testing.assert_close(
        gradient_cosine_scores(pair.new, examples, QUERIES), dots / norms, **CLOSE
    )
    (one,) = [TracedModel(pair.new, 3e-3)]
    torch.testing.assert_close(tracin_scores([one], examples, QUERIES), 3e-3 * dots, **CLOSE)
    earlier = naive_gradients(pair.old, QUERIES) @ naive_gradients(pair.old, examples).T
    both = tracin_scores([TracedModel(pair.old, 0.5), one], examples, QUERIES)
    torch.testing.assert_close(both, 0.5 * earlier + 3e-3 * dots, **CLOSE)
    unit = tracin_scores([one], examples, QUERIES, unit_norm=True)
    torch.testing.assert_close(unit, 3e-3 * dots / norms, **CLOSE)


@pytest.mark.parametrize("method", list(METHODS))
def test_scores_permute_with_the_documents_and_do_not_depend_on_batches_or_padding(
    make_checkpoints: Callable[..., Checkpoints], examples: list[Example], method: str
) -> None:
    model = make_checkpoints("llama").new
    before = {name: value.clone() for name, value in model.state_dict().items()}

    def run(some: list[Example], asked: list[Example], **options: Any) -> Tensor:
        return METHODS[method](model, some, asked, **options)

    scores = run(examples, QUERIES)
    assert scores.shape == (len(QUERIES), len(examples))
    assert (scores.std(dim=1) > 1e-3 * scores.abs().max()).all()
    sides: list[dict[str, Any]] = [{"batch_size": 1}, {"batch_size": 4}]
    if method == "datainf":
        sides.append({"batch_size": 4, "padding_side": "left"})
    for options in sides:
        torch.testing.assert_close(run(examples, QUERIES, **options), scores, **CLOSE)
    order = [3, 0, 5, 2, 4, 1]
    permuted = run([examples[index] for index in order], QUERIES)
    torch.testing.assert_close(permuted, scores[:, order], **CLOSE)
    torch.testing.assert_close(run(examples, QUERIES[1:]), scores[1:], **CLOSE)
    for name, value in model.state_dict().items():
        assert torch.equal(value, before[name])
    assert all(parameter.grad is None for parameter in model.parameters())
    assert not model.training


@pytest.mark.parametrize("architecture", ["olmo2", "gpt2"])
def test_tracin_predicts_what_one_small_step_on_a_document_does_to_a_query(
    make_checkpoints: Callable[..., Checkpoints], examples: list[Example], architecture: str
) -> None:
    model = make_checkpoints(architecture).new
    rate = 1e-7
    scores = tracin_scores([TracedModel(model, rate)], examples, QUERIES)
    for place, document in enumerate(examples):
        stepped = deepcopy(model)
        parameters = list(stepped.parameters())
        slopes = torch.autograd.grad(loss_of(stepped, document), parameters)
        with torch.no_grad():
            for parameter, slope in zip(parameters, slopes, strict=True):
                parameter -= rate * slope
            lowered = [loss_of(model, one) - loss_of(stepped, one) for one in QUERIES]
        # What a second-order term leaves: about rate · curvature, relative to the size of a step.
        torch.testing.assert_close(
            torch.stack(lowered), scores[:, place], rtol=1e-3, atol=1e-4 * float(scores.abs().max())
        )


@pytest.mark.parametrize(("damping", "share"), [(0.1, 0.0), (1e-4, 0.0), (0.3, 0.6), (0.3, 1.0)])
def test_trackstar_without_projection_is_its_formula_with_dense_matrices(
    make_checkpoints: Callable[..., Checkpoints],
    examples: list[Example],
    damping: float,
    share: float,
) -> None:
    model = make_checkpoints("olmo2").new
    for name, parameter in model.named_parameters():  # few enough for dense squares
        parameter.requires_grad_(
            "layers.1" in name and name.endswith(("q_proj.weight", "up_proj.weight"))
        )
    options = TrackStarOptions(None, damping, share)
    found = trackstar_scores(model, examples, QUERIES, options=options)
    asked, given = (naive_gradients(model, some) for some in (QUERIES, examples))
    widths = [12 * 12, 20 * 12]
    assert asked.shape[1] == sum(widths)
    whitened: list[list[Tensor]] = [[], []]
    for own_asked, own_given in zip(asked.split(widths, 1), given.split(widths, 1), strict=True):
        moment = (1 - share) * own_given.T @ own_given / len(given)
        moment += share * own_asked.T @ own_asked / len(asked)
        damped = moment + damping * moment.trace() / len(moment) * torch.eye(len(moment))
        values, vectors = torch.linalg.eigh(damped)
        root = vectors @ torch.diag(values**-0.5) @ vectors.T
        whitened[0].append(own_asked @ root)
        whitened[1].append(own_given @ root)
    asked, given = (torch.cat(parts, dim=1) for parts in whitened)
    expected = (asked @ given.T) / (asked.norm(dim=1)[:, None] * given.norm(dim=1))
    torch.testing.assert_close(found, expected, rtol=1e-7, atol=1e-9)


def test_projection_keeps_angles_and_leaves_small_tensors_as_they_are(
    make_checkpoints: Callable[..., Checkpoints], examples: list[Example]
) -> None:
    """With so much damping that nothing is whitened, what is left is a cosine in which every
    tensor has the weight of its gradients' mean square."""
    model = make_checkpoints("olmo2").new

    def run(dim: int | None) -> Tensor:
        options = TrackStarOptions(dim, damping=1e9)
        return trackstar_scores(model, examples, QUERIES, options=options)

    torch.testing.assert_close(run(400), run(None), **CLOSE)  # no tensor is larger
    # 64 dimensions of each of 25 tensors: an error of about (25 · 64)^(-1/2).
    assert (run(64) - run(None)).abs().max() < 0.1
    assert (run(64) - run(None)).abs().max() > 1e-4


def test_trackstar_of_a_text_with_itself_is_one_and_seeds_move_it_little(
    make_checkpoints: Callable[..., Checkpoints], examples: list[Example]
) -> None:
    model = make_checkpoints("llama").new

    def run(dim: int | None, seed: int = 0) -> Tensor:
        options = TrackStarOptions(dim, seed=seed)
        return trackstar_scores(model, examples, examples, options=options)

    whole = run(None)
    torch.testing.assert_close(whole.diagonal(), torch.ones(len(examples)).double(), **CLOSE)
    torch.testing.assert_close(whole, whole.T, **CLOSE)
    narrow, again, other = run(64), run(64), run(64, seed=1)
    assert torch.equal(narrow, again)
    assert not torch.allclose(narrow, other)
    torch.testing.assert_close(narrow.diagonal(), torch.ones(len(examples)).double(), **CLOSE)


def test_trackstar_counts_a_direction_that_all_documents_share_for_little() -> None:
    generator = torch.Generator().manual_seed(0)
    own = torch.randn(40, 30, generator=generator, dtype=torch.float64)
    shared = 30 * torch.nn.functional.normalize(own[:1].clone().roll(7, dims=1))
    documents = own + shared
    plain = torch.nn.functional.normalize(documents)
    whitened = unit_whitened_dots(documents, documents, [30], TrackStarOptions(None, 1e-3))
    others = ~torch.eye(40, dtype=torch.bool)
    assert (plain @ plain.T)[others].mean() > 0.9
    assert whitened[others].abs().mean() < 0.3


def test_datainf_has_the_curvature_of_all_documents(
    make_checkpoints: Callable[..., Checkpoints], examples: list[Example]
) -> None:
    """The closed form against one Sherman-Morrison inverse per document, on one map."""
    model = make_checkpoints("olmo2").new
    for name, parameter in model.named_parameters():
        parameter.requires_grad_(name == "model.layers.1.mlp.up_proj.weight")
    asked, given = (naive_gradients(model, some) for some in (QUERIES, examples))
    damping = 0.1 * given.square().mean()
    eye = torch.eye(given.shape[1], dtype=torch.float64)
    inverse = sum(torch.linalg.inv(torch.outer(g, g) + damping * eye) for g in given) / len(given)
    found = datainf_scores(model, examples, QUERIES, target=r"layers\.1\.mlp\.up_proj$")
    torch.testing.assert_close(found, asked @ inverse @ given.T, rtol=1e-7, atol=1e-9)


def test_gradients_that_are_zero_and_unfit_examples_are_named(
    make_checkpoints: Callable[..., Checkpoints], examples: list[Example]
) -> None:
    model = make_checkpoints("olmo2").new
    for method in METHODS.values():
        with pytest.raises(AttributionError, match="expected at least one document, got none"):
            method(model, [], QUERIES)
        with pytest.raises(AttributionError, match="query 0: expected token ids from 0 to 30"):
            method(model, examples, [Example((3, 31), (1, 2))])
    with pytest.raises(AttributionError, match="expected at least one checkpoint"):
        tracin_scores([], examples, QUERIES)
    for rate in (0.0, -1.0, float("inf"), float("nan")):
        with pytest.raises(AttributionError, match="expected a positive learning rate"):
            TracedModel(model, rate)
    for bad in ({"damping": 0.0}, {"query_share": 1.5}, {"query_share": -0.1}):
        with pytest.raises(AttributionError, match="expected"):
            TrackStarOptions(**bad)
    with pytest.raises(AttributionError, match="expected a projection to at least 1 dimension"):
        TrackStarOptions(0)
    for name, parameter in model.named_parameters():
        parameter.requires_grad_("layers.1" in name)
        if "layers.1.post_feedforward" in name or "layers.1.post_attention" in name:
            torch.nn.init.zeros_(parameter)  # nothing inside the block reaches the loss
            parameter.requires_grad_(False)
    with pytest.raises(AttributionError, match="query 0: its gradient is zero"):
        gradient_cosine_scores(model, examples, QUERIES)


def write_run(folder: Path, model: PreTrainedModel, history: list[dict[str, Any]]) -> None:
    for step in (4, 8, 9):
        path = folder / f"checkpoint-{step}"
        model.save_pretrained(path)
        logged = [entry for entry in history if entry["step"] <= step]
        state = {"global_step": step, "log_history": logged}
        (path / "trainer_state.json").write_text(json.dumps(state))


def test_learning_rates_are_the_mean_of_those_logged_since_the_checkpoint_before(
    make_checkpoints: Callable[..., Checkpoints], examples: list[Example], tmp_path: Path
) -> None:
    model = make_checkpoints("llama", torch.float32).new
    rates = {2: 0.4, 4: 0.2, 6: 0.1, 8: 0.3, 9: 0.05}
    history: list[dict[str, Any]] = [
        {"step": step, "learning_rate": rate, "loss": 1.0} for step, rate in rates.items()
    ]
    history.append({"step": 9, "train_runtime": 3.0})
    write_run(tmp_path, model, history)
    (tmp_path / "checkpoint-12").mkdir()  # killed before it was written
    (tmp_path / "checkpoint-best").mkdir()
    found = find_trainer_checkpoints(tmp_path)
    assert [one.step for one in found] == [4, 8, 9]
    assert [one.share for one in found] == pytest.approx([4 / 9, 4 / 9, 1 / 9])
    assert [one.learning_rate for one in found] == pytest.approx([0.3, 0.2, 0.05])
    traced = list(traced_models(found))
    expected = [0.3 * 4 / 9, 0.2 * 4 / 9, 0.05 / 9]
    assert [one.learning_rate for one in traced] == pytest.approx(expected)
    assert all(one.model.dtype == torch.float32 and not one.model.training for one in traced)
    single = tracin_scores([TracedModel(model, 1.0)], examples, QUERIES)
    torch.testing.assert_close(
        tracin_scores(traced_models(found), examples, QUERIES), sum(expected) * single
    )


def test_a_folder_that_is_no_training_run_is_named(
    make_checkpoints: Callable[..., Checkpoints], tmp_path: Path
) -> None:
    with pytest.raises(AttributionError, match="expected folders checkpoint-N"):
        find_trainer_checkpoints(tmp_path)
    write_run(tmp_path, make_checkpoints("llama").new, [{"step": 2, "learning_rate": 0.1}])
    with pytest.raises(AttributionError, match="no learning rate between steps 4 and 8"):
        find_trainer_checkpoints(tmp_path)
    for broken in ("{", "[]", "{}", '{"log_history": [3]}'):
        (tmp_path / "checkpoint-4" / "trainer_state.json").write_text(broken)
        with pytest.raises(AttributionError, match="not the state of a Trainer"):
            find_trainer_checkpoints(tmp_path)
