"""The real commands on tiny models of real architectures: what they write, and that it is right."""

import json

import numpy as np
import pyarrow.parquet as pq
import pytest
import safetensors.torch
import torch
from if_query.batching import collate
from if_query.datasets import TokenDataset, load_token_dataset
from if_query.encoding import encode_pair
from if_query.models import LanguageModelLoss, load_model, load_tokenizer, select_maps
from if_query_commands import fit, query, rows_of
from math_utils.capture import frozen
from math_utils.curvature import (
    CurvatureConfig,
    Damping,
    collect_gradients,
    fit_curvature,
    precondition_all,
)


def reference_scores(folder, data, files, strategy, labels, *, eos=True) -> np.ndarray:
    """Scores by the in-memory functions in float64, one example per batch."""
    model = load_model(str(folder), dtype="float32", device="cpu").double()
    maps = select_maps(model).maps
    dataset = load_token_dataset(data, vocab_size=10_000)
    batches = [collate(dataset, [row], dataset.keys) for row in range(len(dataset))]
    factors = fit_curvature(
        model,
        maps,
        batches,
        LanguageModelLoss(labels),
        CurvatureConfig(strategy=strategy, covariance_dtype=torch.float64),
    )
    tokenizer = load_tokenizer(str(folder))
    gradients = []
    for path, own_eos in zip(files, (True, eos), strict=True):
        examples = TokenDataset.from_examples(
            [
                encode_pair(tokenizer, p["prompt"], p["completion"], 512, eos=own_eos)
                for p in json.loads(path.read_text())
            ]
        )
        with frozen(model):
            gradients.append(
                collect_gradients(
                    model,
                    maps,
                    [collate(examples, [row], examples.keys) for row in range(len(examples))],
                    LanguageModelLoss(),
                    dtype=torch.float64,
                )[0]
            )
    train, queries = gradients
    preconditioned = precondition_all(queries, factors, Damping())
    return sum(preconditioned[n].flatten(1) @ train[n].flatten(1).T for n in maps).numpy()


@pytest.mark.parametrize(
    ("architecture", "strategy", "empirical", "eos"),
    [
        ("olmo2", "ekfac", False, True),
        ("olmo2", "ekfac", False, False),
        ("llama", "kfac", True, True),
        ("gpt2", "ekfac", True, True),
        ("gpt_neox", "diagonal", False, True),
        ("qwen3", "identity", False, True),
    ],
)
def test_the_commands_give_the_scores_of_the_definition(
    make_model_folder, token_data, pair_files, tmp_path, architecture, strategy, empirical, eos
):
    model = make_model_folder(architecture)
    more = ["--strategy", strategy] + ["--empirical-fisher"] * empirical
    factors = fit(model, token_data, tmp_path / "factors", *more)
    results = query(
        model, factors, pair_files, tmp_path / "results", *["--no-query-eos"] * (not eos)
    )
    labels = "given" if empirical else "sampled"
    expected = reference_scores(model, token_data, pair_files, strategy, labels, eos=eos)
    found = np.load(results / "scores.npy")
    scale = np.abs(expected).max()
    np.testing.assert_allclose(found, expected, rtol=2e-4, atol=2e-4 * scale)
    written = [float(row["influence_score"]) for row in rows_of(results / "influences.csv")]
    np.testing.assert_array_equal(np.float32(written).reshape(found.shape), found)


def test_the_tables_have_the_columns_and_order_of_the_spec(
    make_model_folder, fitted, pair_files, tmp_path
):
    results = query(make_model_folder(), fitted, pair_files, tmp_path / "results")
    queries, train = rows_of(results / "query.csv"), rows_of(results / "train.csv")
    assert list(queries[0]) == ["query_id", "prompt", "completion", "loss", "score"]
    assert [row["score"] for row in queries] == ["", "3"]
    assert list(train[0]) == ["train_id", "prompt", "completion", "topic"]
    assert [row["train_id"] for row in train] == [f"t{n}" for n in range(6)]
    assert train[1]["prompt"] == ""
    influences = rows_of(results / "influences.csv")
    assert list(influences[0]) == ["query_id", "train_id", "influence_score"]
    assert [(r["query_id"], r["train_id"]) for r in influences] == [
        (f"q{q}", f"t{t}") for q in range(2) for t in range(6)
    ]
    model = load_model(str(make_model_folder()), dtype="float32", device="cpu")
    tokenizer = load_tokenizer(str(make_model_folder()))
    prompt = tokenizer.encode("The capital of Peru is", add_special_tokens=False)
    ids = prompt + tokenizer.encode(" Lima", add_special_tokens=False) + [tokenizer.eos_token_id]
    with torch.no_grad():
        logp = model(input_ids=torch.tensor([ids])).logits[0].log_softmax(-1)
    loss = -sum(float(logp[t - 1, ids[t]]) for t in range(len(prompt), len(ids)))
    assert float(queries[0]["loss"]) == pytest.approx(loss, rel=1e-4)
    metadata = json.loads((results / "metadata.json").read_text())
    assert metadata["status"] == "complete"
    assert not (results / ".partial").exists()


def test_per_token_per_module_and_self_influence_agree_with_the_scores(
    make_model_folder, fitted, pair_files, tmp_path
):
    model = make_model_folder()
    results = query(
        model,
        fitted,
        pair_files,
        tmp_path / "results",
        "--per-token-scores",
        "--per-module-scores",
        "--self-influence",
    )
    rows = rows_of(results / "influences.csv")
    tokens = [json.loads(line) for line in (results / "train_tokens.jsonl").open()]
    by_id = {row["train_id"]: row["tokens"] for row in tokens}
    for row, by_module in zip(rows, rows_of(results / "module_scores.csv"), strict=True):
        contributions = json.loads(row["per_token_scores"])
        assert len(contributions) == len(by_id[row["train_id"]])
        score = float(row["influence_score"])
        assert sum(contributions) == pytest.approx(score, rel=1e-3, abs=1e-4)
        assert (by_module.pop("query_id"), by_module.pop("train_id")) == (
            row["query_id"],
            row["train_id"],
        )
        assert len(by_module) == 9
        assert sum(map(float, by_module.values())) == pytest.approx(score, rel=1e-3, abs=1e-4)
    assert "".join(by_id["t0"]) == "The capital of France is Paris.<eos>"
    # The training examples as their own queries: the diagonal is the self-influence.
    square = query(model, fitted, (pair_files[0], pair_files[0]), tmp_path / "square")
    own = [float(row["self_influence"]) for row in rows_of(results / "train.csv")]
    np.testing.assert_allclose(np.load(square / "scores.npy").diagonal(), own, rtol=1e-4)


def test_results_do_not_depend_on_batches_blocks_or_full_rank(
    make_model_folder, fitted, pair_files, tmp_path
):
    model = make_model_folder()
    plain = np.load(query(model, fitted, pair_files, tmp_path / "plain") / "scores.npy")
    for name, more in {
        "batches": ["--score-batch-size", "1"],
        "blocks": ["--query-memory-gb", "1e-9", "--self-influence"],
        "rank": ["--query-rank", "21"],
    }.items():
        other = np.load(query(model, fitted, pair_files, tmp_path / name, *more) / "scores.npy")
        np.testing.assert_allclose(other, plain, rtol=1e-4, atol=1e-4 * np.abs(plain).max())


def test_top_k_keeps_the_best_and_the_worst_and_the_matrix_keeps_all(
    make_model_folder, fitted, pair_files, tmp_path
):
    results = query(make_model_folder(), fitted, pair_files, tmp_path / "results", "--top-k", "2")
    scores = np.load(results / "scores.npy")
    assert scores.shape == (2, 6)
    rows = rows_of(results / "influences.csv")
    assert len(rows) == 2 * 4
    order = np.argsort(-scores[0])
    expected = [f"t{t}" for t in [*order[:2], *order[-2:]]]
    assert [row["train_id"] for row in rows[:4]] == expected


def test_parquet_holds_what_csv_holds(make_model_folder, fitted, pair_files, tmp_path):
    arguments = make_model_folder(), fitted, pair_files
    parquet = query(*arguments, tmp_path / "parquet", "--format", "parquet", "--per-token-scores")
    plain = query(*arguments, tmp_path / "csv", "--per-token-scores")
    for name in ("query", "train", "influences"):
        table, rows = pq.read_table(parquet / f"{name}.parquet"), rows_of(plain / f"{name}.csv")
        assert table.column_names == list(rows[0])
        assert table.num_rows == len(rows)
    table = pq.read_table(parquet / "influences.parquet").to_pylist()
    assert [r["per_token_scores"] for r in table] == [
        pytest.approx(json.loads(r["per_token_scores"]), rel=1e-6, abs=1e-9)
        for r in rows_of(plain / "influences.csv")
    ]


def test_a_field_that_collides_with_a_column_is_renamed_and_not_lost(
    make_model_folder, fitted, pair_files, tmp_path
):
    pairs = [
        {"pair_id": "a", "prompt": "x", "completion": " y", "loss": "mine", "query_id": 7,
         "extra_loss": "also mine", "nested": {"é": [1, None]}},
    ]  # fmt: skip
    path = tmp_path / "query.json"
    path.write_text(json.dumps(pairs))
    results = query(make_model_folder(), fitted, (pair_files[0], path), tmp_path / "results")
    (row,) = rows_of(results / "query.csv")
    assert row["extra_extra_loss"] == "mine"
    assert row["extra_loss"] == "also mine"
    assert row["extra_query_id"] == "7"
    assert row["query_id"] == "a"
    assert float(row["loss"]) > 0
    assert row["nested"] == '{"é": [1, null]}'


def test_a_tokenizer_without_end_or_pad_token_works(
    make_model_folder, token_data, pair_files, tmp_path
):
    model = make_model_folder("llama", eos=False)
    factors = fit(model, token_data, tmp_path / "factors", "--strategy", "diagonal")
    results = query(model, factors, pair_files, tmp_path / "results")
    assert np.isfinite(np.load(results / "scores.npy")).all()


def test_the_metadata_says_what_was_fitted(fitted, token_data):
    metadata = json.loads((fitted / "metadata.json").read_text())
    dataset = load_token_dataset(token_data, vocab_size=10_000)
    assert metadata["status"] == "complete"
    assert metadata["fisher"] == "true"
    assert metadata["strategy"] == "ekfac"
    assert metadata["num_examples"] == 14
    assert metadata["num_tokens"] == dataset.num_tokens
    assert metadata["dataset_fingerprint"] == dataset.fingerprint
    assert next(iter(metadata["tracked_modules"])) == "model.layers.0.mlp.gate_proj"
    assert set(metadata["num_positions"].values()) == {dataset.num_tokens}
    assert 0 < metadata["tracked_share"] < 1
    assert metadata["arguments"]["dtype"] == "float32"
    assert {"torch", "transformers", "if-query"} <= set(metadata["versions"])
    assert sorted(path.name for path in fitted.iterdir()) == [
        "eigenbases", "eigenvalues", "metadata.json",
    ]  # fmt: skip


def test_layer_stride_and_modules_choose_what_is_tracked(make_model_folder, token_data, tmp_path):
    folder = fit(
        make_model_folder(),
        token_data,
        tmp_path / "factors",
        "--strategy",
        "identity",
        "--layer-stride",
        "2",
        "--modules",
        "attention",
    )
    names = list(json.loads((folder / "metadata.json").read_text())["tracked_modules"])
    assert len(names) == 2 * 4
    assert {name.split(".")[2] for name in names} == {"0", "2"}


def test_low_precision_models_stay_near_float32(make_model_folder, token_data, tmp_path):
    """Bounds: relative error of Λ (Frobenius) below 10 % in bfloat16 and 2 % in float16
    (measured: 6.5 % and 1.1 %).

    This is the rounding of the model's own arithmetic (bfloat16 has 8 bits); that sums of its
    statistics add nothing to it is tested in test_architectures.
    """
    model = make_model_folder(std=0.1)
    norms = {}
    for dtype in ("float32", "bfloat16", "float16"):
        folder = tmp_path / dtype
        fit(model, token_data, folder, "--dtype", dtype, "--strategy", "diagonal",
            "--empirical-fisher")  # fmt: skip
        norms[dtype] = torch.cat(
            [
                safetensors.torch.load_file(path)["eigenvalues"].flatten()
                for path in sorted((folder / "eigenvalues").iterdir())
            ]
        )
    reference = norms["float32"].norm()
    assert (norms["bfloat16"] - norms["float32"]).norm() < 0.1 * reference
    assert (norms["float16"] - norms["float32"]).norm() < 0.02 * reference
