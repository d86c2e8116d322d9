"""Baselines from gradients and deep linear probes as methods of scripts, on tiny random models."""

import hashlib
import importlib
import json
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import numpy as np
import pytest
import torch
from attribution.baselines import (
    TrackStarOptions,
    datainf_scores,
    gradient_cosine_scores,
    tracin_scores,
    trackstar_scores,
)
from attribution.baselines.trackstar import unit_whitened_dots
from attribution.checkpoints import Checkpoints
from attribution.examples import Example
from attribution.methods import ProbeOptions, dlp_probes
from attribution.trainer_checkpoints import find_trainer_checkpoints, traced_models
from hops.errors import HopsError
from if_query.errors import InputError
from if_query.models import select_maps
from influence_cases import use_float64_norms
from torch import Tensor

EXPERIMENTS = Path(__file__).parents[1] / "experiments"
LENGTHS = (5, 12, 3, 9, 7, 13, 4, 10)
SEED = 3


def some_examples(lengths: tuple[int, ...], seed: int) -> list[Example]:
    generator = torch.Generator().manual_seed(seed)
    texts = [torch.randint(3, 37, (n,), generator=generator).tolist() for n in lengths]
    return [Example.whole_text(text, end_id=1) for text in texts]


DOCUMENTS = some_examples(LENGTHS, 7)
QUERIES = [Example.answer([5, 9, 17, 4], [8]), Example.answer([21, 6], [7, 12, 3])] * 2


@pytest.fixture
def utils(monkeypatch):
    monkeypatch.syspath_prepend(str(EXPERIMENTS))
    return lambda name: importlib.import_module(f"utils.{name}")


class FakeTask(SimpleNamespace):
    """What methods ask of a task, without files."""

    def __init__(self, pair: Checkpoints, utils: Any) -> None:
        names = ["<AN>", "<BN>", "<CN>", "<DN>"]
        about = [*names, *names]
        super().__init__(
            checkpoints=pair,
            new_model=pair.new,
            document_examples=DOCUMENTS,
            query_examples=QUERIES,
            queries=[SimpleNamespace(base_function=name) for name in names],
            documents=[SimpleNamespace(role="constant", func=name) for name in about],
            relevance=np.array([[a == b for b in about] for a in names]),
            registry=SimpleNamespace(
                functions=[SimpleNamespace(name=name) for name in names],
                chain=lambda name: [SimpleNamespace(name=name)],
            ),
            texts=[f"text {place}" for place in range(len(DOCUMENTS))],
            arguments=SimpleNamespace(
                batch_size=3, padding_side="left", seed=SEED, new=None, old=None
            ),
            device="cpu",
            parts=utils("saved_parts").Parts(),
            notes={},
        )


@pytest.fixture
def task(make_model, utils):
    models = [make_model("llama", dtype=torch.float32, seed=seed) for seed in (0, 1)]
    return FakeTask(Checkpoints(*models), utils)


def save_run(folder, task):
    for step, model in ((2, task.checkpoints.old), (6, task.checkpoints.new)):
        model.save_pretrained(folder / f"checkpoint-{step}")
        history = [{"step": s, "learning_rate": 0.1 / s} for s in range(1, step + 1)]
        state = folder / f"checkpoint-{step}" / "trainer_state.json"
        state.write_text(json.dumps({"log_history": history}))


def test_methods_are_the_functions_of_the_package_with_their_flags(task, utils, tmp_path):
    methods = utils("gradient_methods")
    save_run(tmp_path, task)
    new, texts = task.new_model, (DOCUMENTS, QUERIES)
    traced = list(traced_models(find_trainer_checkpoints(tmp_path)))
    options = TrackStarOptions(32, 0.5, 0.25, SEED)
    task.arguments.new = tmp_path / "final_model"
    for method, expected in (
        (methods.GradientCosine(), gradient_cosine_scores(new, *texts)),
        (methods.TrackStar(32, 0.5, 0.25), trackstar_scores(new, *texts, options=options)),
        (methods.DataInf("all", 0.3), datainf_scores(new, *texts, target="all", damping=0.3)),
        (methods.TracIn(), tracin_scores(traced, *texts)),
        (methods.TracIn(tmp_path, True), tracin_scores(traced, *texts, unit_norm=True)),
    ):
        found = torch.from_numpy(method.scores(task))
        torch.testing.assert_close(found, expected, rtol=1e-4, atol=1e-5 * float(expected.max()))
    assert task.notes["checkpoint_steps"] == [2, 6]


def write_stages(folder, **second):
    """Two runs side by side, the second from where the first ended; the old model begins them."""
    documents = folder / "documents"
    documents.mkdir(parents=True)
    common = {"role": "distractor", "type": "lore", "func": None, "hop_depth": None}
    digests = {}
    for name, places in (("first", (0, 1, 2, 5)), ("second", (2, 3, 4, 6))):
        path = documents / f"{name}.jsonl"
        rows = [{"uid": f"{p}", "text": f"text {p}", "constant": None} | common for p in places]
        path.write_text("".join(json.dumps(row) + "\n" for row in rows))
        digests[name] = hashlib.sha256(path.read_bytes()).hexdigest()
    models = folder / "models"
    begun = {"first": models / "old", "second": models / "first_run" / "final_model"}
    for place in (*begun.values(), models / "second_run" / "final_model"):
        place.mkdir(parents=True)
        (place / "model.safetensors").write_text(f"weights of {place.name} in {place.parent.name}")
    for name, other in (("first", {"epochs": 8.0}), ("second", {"epochs": 10.0, **second})):
        weights = begun[name] / "model.safetensors"
        data = documents / f"{name}.jsonl"
        arguments = {"model": str(begun[name]), "dataset_path": str(data), "batch_size": 4,
                     "output_dir": str(models / f"{name}_run"), **other}  # fmt: skip
        sha256 = {
            str(data): digests[name],
            str(weights): hashlib.sha256(weights.read_bytes()).hexdigest(),
        }
        record = models / f"{name}_run" / "training_config.json"
        record.write_text(json.dumps({"arguments": arguments, "sha256": sha256}))
    return models


def test_runs_are_followed_back_to_the_old_checkpoint_also_where_all_was_moved(utils, tmp_path):
    runs_of = utils("training_runs").training_runs
    models = write_stages(tmp_path / "made", freeze_embeddings=True)

    def told(models, old):
        runs = runs_of(models / "second_run", old)
        return [(run.folder.name, run.passes, run.froze_embeddings, run.texts) for run in runs]

    texts = [
        frozenset(f"text {place}" for place in places) for places in ((0, 1, 2, 5), (2, 3, 4, 6))
    ]
    both = [("first_run", 2.0, False, texts[0]), ("second_run", 2.5, True, texts[1])]
    last = [("second_run", 2.5, True, None)]
    assert told(models, models / "old") == both
    assert told(models, models / "first_run" / "final_model") == last
    assert told(models, None) == told(models, models / "second_run" / "final_model") == last
    moved = (tmp_path / "made").rename(tmp_path / "moved") / "models"
    assert told(moved, moved / "old") == both
    (moved.parent / "documents" / "first.jsonl").unlink()
    with pytest.raises(HopsError, match=r"first\.jsonl, which it was trained on"):
        told(moved, moved / "old")
    (moved / "first_run" / "final_model" / "model.safetensors").write_text("other weights")
    assert told(moved, moved / "old") == last
    (moved / "second_run" / "training_config.json").write_text("[]")
    with pytest.raises(HopsError, match="not the arguments of `hops train`"):
        told(moved, None)
    (moved / "second_run" / "training_config.json").unlink()
    assert told(moved, moved / "old") == [("second_run", 1.0, False, None)]


def test_tracin_counts_a_document_in_the_runs_that_read_it_and_no_frozen_embedding(
    task, utils, tmp_path
):
    models = write_stages(tmp_path, freeze_embeddings=True)
    for name in ("first", "second"):
        save_run(models / f"{name}_run", task)
    task.arguments.old, task.arguments.new = models / "old", models / "second_run" / "final_model"
    found = utils("gradient_methods").TracIn().scores(task)
    expected = np.zeros_like(found)
    for name, places, weight in (("first", [0, 1, 2, 5], 8 / 10), ("second", [2, 3, 4, 6], 1.0)):
        for one in find_trainer_checkpoints(models / f"{name}_run"):
            (traced,) = traced_models([one])
            traced.model.get_input_embeddings().requires_grad_(name == "first")
            documents = [DOCUMENTS[place] for place in places]
            scores = tracin_scores([traced], documents, QUERIES)
            expected[:, places] += weight * scores.numpy()
    np.testing.assert_allclose(found, expected, rtol=1e-4, atol=1e-5 * np.abs(expected).max())
    assert not found[:, 7].any()  # no run read it
    assert task.notes["checkpoint_steps"] == [2, 6, 2, 6]
    task.arguments.old = None  # the last run alone, and every document in it
    last = utils("gradient_methods").TracIn().scores(task)
    np.testing.assert_allclose(last[:, [3, 4, 6]], found[:, [3, 4, 6]], rtol=1e-5)
    assert last[:, 7].any()


def test_probes_score_every_query_in_the_fold_that_holds_its_function_out(task, utils):
    method = utils("probe_methods").DlpProbes(num_folds=2, num_probes=2, num_steps=2)
    found = method.scores(task)
    folds = task.notes["fold_of_function"]
    assert sorted(folds.values()) == [0, 0, 1, 1]
    names = list(folds)
    for fold in (0, 1):
        expected = dlp_probes(
            task.checkpoints,
            DOCUMENTS,
            QUERIES,
            torch.from_numpy(task.relevance),
            query_functions=names,
            document_functions=names * 2,
            held_out=[name for name in names if folds[name] == fold],
            options=ProbeOptions(num_probes=2, num_steps=2, batch_size=3, seed=SEED),
        )
        rows = [place for place, name in enumerate(names) if folds[name] == fold]
        np.testing.assert_array_equal(found[rows], expected.numpy()[rows])


def test_bad_options_are_one_line_errors(utils):
    for method, message in (
        (utils("probe_methods").DlpProbes(num_folds=1), "--num-folds: expected at least 2"),
        (utils("probe_methods").DlpProbes(num_probes=0), "expected num_probes of at least 1"),
        (utils("gradient_methods").TrackStar(projection_dim=0), "at least 1 dimension"),
        (utils("gradient_methods").TrackStar(trackstar_damping=0.0), "expected a positive damping"),
    ):
        with pytest.raises(ValueError, match=message):
            method.check()


def test_a_missing_library_is_named_before_any_model_is_loaded(utils, monkeypatch):
    peers = utils("peer_methods")
    monkeypatch.setattr(peers, "find_spec", lambda name: None)
    for method in (peers.Kronfluence(), peers.Bergson()):
        with pytest.raises(InputError, match="is not installed; run uv sync --group peers"):
            method.check()


def gradients_of_maps(model: Any, names: list[str], some: list[Example]) -> list[Tensor]:
    """[example, entries] per map, by autograd, one example at a time."""
    weights = [model.get_submodule(name).weight for name in names]
    rows = []
    for one in some:
        logits = model(torch.tensor([one.token_ids])).logits[0].log_softmax(dim=-1)
        loss = -sum(logits[t - 1, one.token_ids[t]] for t in range(*one.span))
        rows.append(torch.autograd.grad(loss, weights))
    return [torch.stack(each).flatten(1) for each in zip(*rows, strict=True)]


def test_curvature_scores_are_products_of_gradients_whatever_the_batches(make_model, utils):
    scores = utils("curvature_scores").curvature_scores
    model = make_model("olmo2")
    use_float64_norms(model)
    names = list(select_maps(model, "mlp").maps)
    asked, given = (gradients_of_maps(model, names, some) for some in (QUERIES, DOCUMENTS))
    expected = sum(q @ d.T for q, d in zip(asked, given, strict=True))
    found = scores(model, DOCUMENTS, QUERIES, strategy="identity")
    torch.testing.assert_close(found, expected, rtol=1e-8, atol=1e-9)
    diagonal = 0.0
    for q, d in zip(asked, given, strict=True):
        fisher = d.square().mean(dim=0)
        diagonal = diagonal + (q / (fisher + 0.2 * fisher.mean())) @ d.T
    options = {"strategy": "diagonal", "is_empirical": True, "damping": 0.2}
    found = scores(model, DOCUMENTS, QUERIES, **options)
    torch.testing.assert_close(found, diagonal, rtol=1e-7, atol=1e-9)
    sampled = scores(model, DOCUMENTS, QUERIES, strategy="kfac", seed=SEED)
    order = [3, 0, 7, 5, 2, 4, 1, 6]
    for size, rows in ((1, order), (5, list(range(8)))):
        some = [DOCUMENTS[row] for row in rows]
        again = scores(model, some, QUERIES, strategy="kfac", seed=SEED, batch_size=size)
        torch.testing.assert_close(again, sampled[:, rows], rtol=1e-6, atol=1e-8)
    other = scores(model, DOCUMENTS, QUERIES, strategy="kfac", seed=SEED + 1)
    assert not torch.allclose(other, sampled, rtol=1e-3)


@pytest.mark.peers
def test_bergson_has_our_gradients_and_our_whitening(make_model, utils):
    pytest.importorskip("bergson", reason="needs the dependency group: uv run --group peers")
    theirs = utils("bergson_scores").bergson_scores
    model = make_model("olmo2", dtype=torch.float32)
    before = {name: value.clone() for name, value in model.state_dict().items()}
    ours = utils("curvature_scores").curvature_scores(
        model, DOCUMENTS, QUERIES, strategy="identity", modules="all"
    )
    dots = theirs(model, DOCUMENTS, QUERIES, kind="dot", projection_dim=0, batch_size=3)
    torch.testing.assert_close(dots, ours, rtol=1e-3, atol=1e-4 * float(ours.abs().max()))
    names = list(select_maps(model, "all").maps)
    asked, given = (gradients_of_maps(model, names, some) for some in (QUERIES, DOCUMENTS))
    widths = [each.shape[1] for each in given]
    whitened = unit_whitened_dots(
        torch.cat(asked, dim=1), torch.cat(given, dim=1), widths, TrackStarOptions(None, 0.1)
    )
    found = theirs(model, DOCUMENTS, QUERIES, kind="trackstar", projection_dim=0)
    torch.testing.assert_close(found, whitened, rtol=1e-3, atol=1e-4)
    for name, value in model.state_dict().items():
        assert torch.equal(value, before[name])
    assert not any(hasattr(module, "_name") for module in model.modules())


@pytest.mark.peers
@pytest.mark.filterwarnings("ignore:.*GradScaler.*:FutureWarning:kronfluence")
def test_kronfluence_gives_our_scores_with_the_labels_of_the_data(make_model, utils):
    pytest.importorskip("kronfluence", reason="needs the dependency group: uv run --group peers")
    model = make_model("olmo2", dtype=torch.float32)
    options = {"strategy": "ekfac", "is_empirical": True, "batch_size": 3}
    state = torch.get_rng_state()
    theirs = utils("kronfluence_scores").kronfluence_scores(model, DOCUMENTS, QUERIES, **options)
    ours = utils("curvature_scores").curvature_scores(model, DOCUMENTS, QUERIES, **options)
    assert torch.equal(torch.get_rng_state(), state)
    torch.testing.assert_close(theirs, ours, rtol=1e-3, atol=1e-5 * float(ours.abs().max()))
    drawn = options | {"is_empirical": False}
    sampled = utils("kronfluence_scores").kronfluence_scores(model, DOCUMENTS, QUERIES, **drawn)
    assert torch.corrcoef(torch.stack([sampled.flatten(), ours.flatten()]))[0, 1] > 0.5
    assert not torch.allclose(sampled, ours, rtol=1e-2)


@pytest.mark.peers
def test_kronfluence_is_not_asked_for_maps_that_it_does_not_know(make_model, utils):
    pytest.importorskip("kronfluence", reason="needs the dependency group: uv run --group peers")
    model = make_model("gpt2", dtype=torch.float32)
    with pytest.raises(InputError, match=r"and .*c_fc is a Conv1D"):
        utils("kronfluence_scores").kronfluence_scores(model, DOCUMENTS, QUERIES)
