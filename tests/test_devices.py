"""What the engine gives on any device: the numbers of plain autograd, and those of the CPU.

    uv run pytest -m gpu -n0

runs what needs CUDA; all else of the same laws runs on the CPU by default.
"""

from pathlib import Path

import numpy as np
import pytest
import torch
from device_cases import DEVICES, needs_cuda, reference_scores
from if_query import query_memory
from if_query.models import LanguageModelLoss, select_maps
from if_query_commands import fit, metadata_of, query, rows_of
from math_utils.capture import frozen
from math_utils.curvature import (
    Covariances,
    CovarianceSums,
    Damping,
    EigenvalueSums,
    backward_pass,
    collect_queries,
    decompose,
    fit_curvature,
    score_batch,
    self_influence,
)
from math_utils.language_modeling import TokenBatch, sample_labels

QUERIES = 2
"""Sequences that are queries; the others are training examples."""


def batches_of(sequences, device) -> list[TokenBatch]:
    """Two batches, both padded."""
    half = (len(sequences) + 1) // 2
    parts = [sequences[:half], sequences[half:]]
    keys = [range(half), range(half, len(sequences))]
    return [
        TokenBatch.collate(ids, ids, own).to(device) for ids, own in zip(parts, keys, strict=True)
    ]


def engine_scores(model, sequences, device, dtype=torch.float32):
    """(scores [query, train], self-influence [train]) by the engine on a device."""
    model = model.to(device, dtype)
    maps, loss = select_maps(model).maps, LanguageModelLoss()
    train = batches_of(sequences[QUERIES:], device)
    factors = fit_curvature(model, maps, train, loss)
    for one in factors.maps.values():
        assert {one.input_basis.device.type, one.eigenvalues.device.type} == {device}
    with frozen(model):
        asked = batches_of(sequences[:QUERIES], device)
        queries, _ = collect_queries(model, maps, asked, loss, factors, Damping())
        scores = [score_batch(model, maps, batch, loss, queries).total for batch in train]
        own = [self_influence(model, maps, one, loss, factors, Damping()) for one in train]
    return torch.cat(scores, dim=1), torch.cat(own)


@pytest.fixture(scope="module")
def many_sequences():
    """More positions than any map is wide, so that no eigenvalue is zero."""
    generator = torch.Generator().manual_seed(7)
    return [
        torch.randint(3, 37, (4 + number % 9,), generator=generator).tolist()
        for number in range(18)
    ]


@pytest.fixture(scope="module")
def references(make_model, many_sequences):
    found = {}

    def reference(architecture):
        if architecture not in found:
            model = make_model(architecture)
            train, asked = many_sequences[QUERIES:], many_sequences[:QUERIES]
            both = reference_scores(model, train, [*asked, *train])
            found[architecture] = both[:QUERIES], both[QUERIES:].diagonal()
        return found[architecture]

    return reference


@pytest.mark.parametrize("architecture", ["olmo2", "llama"])
@pytest.mark.parametrize("device", DEVICES)
def test_scores_in_float32_are_those_of_autograd_in_float64(
    make_model, many_sequences, references, architecture, device
):
    expected, expected_own = references(architecture)
    found, own = engine_scores(make_model(architecture), many_sequences, device)
    for one, other in ((found, expected), (own, expected_own)):
        assert one.device.type == "cpu"
        assert float((one - other).abs().max() / other.abs().max()) < 1e-3


@pytest.mark.parametrize("architecture", ["olmo2", "llama"])
@pytest.mark.parametrize("device", DEVICES)
def test_scores_of_a_model_in_bfloat16_correlate_with_those_in_float64(
    make_model, many_sequences, references, architecture, device
):
    expected, expected_own = references(architecture)
    model = make_model(architecture)
    found, own = engine_scores(model, many_sequences, device, torch.bfloat16)
    for one, other in ((found, expected), (own, expected_own)):
        pairs = torch.stack([one.double().flatten(), other.flatten()])
        assert float(torch.corrcoef(pairs)[0, 1]) > 0.99


@pytest.mark.parametrize("device", DEVICES)
def test_sampled_labels_are_the_same_draw_but_for_probabilities_on_a_border(device):
    """From logits in float32 on a device, and from the same in float64 on the CPU."""
    generator = torch.Generator().manual_seed(0)
    num_examples, num_labels, vocabulary = 40, 50, 1000
    logits = 3 * torch.randn(num_examples * num_labels, vocabulary, generator=generator)
    rows = torch.arange(num_examples).repeat_interleave(num_labels)
    keys = 31 * torch.arange(num_examples)
    expected = sample_labels(logits.double(), rows, keys, seed=5)
    found = sample_labels(logits.to(device), rows.to(device), keys.to(device), seed=5)
    assert found.device.type == device
    assert float((found.cpu() == expected).double().mean()) > 0.999
    other = sample_labels(logits.to(device), rows.to(device), keys.to(device), seed=6)
    assert float((other.cpu() == expected).double().mean()) < 0.5


@pytest.mark.parametrize("device", DEVICES)
def test_the_running_sums_go_to_disk_and_back_to_their_device(make_model, many_sequences, device):
    """What is taken up again ends where an undisturbed pass ends."""
    model = make_model("olmo2").to(device, torch.float32)
    maps, loss = select_maps(model).maps, LanguageModelLoss()
    devices = {name: one.modules[0].weight.device for name, one in maps.items()}
    train = batches_of(many_sequences, device)

    def run(make, interrupted):
        sums = make()
        with frozen(model):
            for batch in train:
                if interrupted:
                    state = {name: tensor.cpu() for name, tensor in sums.state().items()}
                    sums = make()
                    sums.load(state, devices)
                backward_pass(model, maps, batch, loss, sums.add)
        return sums

    whole, parts = (run(lambda: CovarianceSums(maps), flag).finish() for flag in (False, True))
    bases = dict(decompose(whole.items()))
    for name, one in whole.items():
        assert one.inputs.device == bases[name].input_basis.device == devices[name]
        torch.testing.assert_close(parts[name].inputs, one.inputs)
        torch.testing.assert_close(parts[name].output_gradients, one.output_gradients)
        assert parts[name].num_positions == one.num_positions
    squares, again = (
        run(lambda: EigenvalueSums(maps, bases), flag).finish(18) for flag in (False, True)
    )
    for name, values in squares.items():
        assert values.device == devices[name]
        torch.testing.assert_close(again[name], values)


@pytest.mark.parametrize("device", DEVICES)
def test_a_gradient_that_is_not_finite_is_named_on_any_device(make_model, sequences, device):
    """Where what a check found is read later, the pair is still in no sum."""
    model = make_model("olmo2").to(device, torch.float32)
    maps, loss = select_maps(model).maps, LanguageModelLoss()
    ids = [one for one in sequences if len(one) >= 5]
    batch = TokenBatch.collate(ids, ids, range(10, 10 + len(ids))).to(device)
    bad = "model.layers.1.mlp.down_proj"

    class Spoil(torch.autograd.Function):
        @staticmethod
        def forward(ctx, x):
            return x.clone()

        @staticmethod
        def backward(ctx, gradient):
            spoilt = gradient.clone()
            spoilt[2, 1] = float("nan")
            return spoilt

    handle = model.get_submodule("model.layers.1.mlp").register_forward_hook(
        lambda module, args, output: Spoil.apply(output)
    )
    seen = []
    with (
        frozen(model),
        pytest.raises(ValueError, match=f"output gradient of {bad} is not finite for example 12;"),
    ):
        backward_pass(model, maps, batch, loss, lambda pair: seen.append(pair.name))
    handle.remove()
    assert sorted(seen) == sorted(name for name in maps if "layers.2" in name)


# The commands


def scores_of(folder: Path) -> np.ndarray:
    return np.load(folder / "scores.npy")


def check_close(found: Path, expected: Path) -> None:
    """To float32, relative to the largest score: small ones are differences of large terms."""
    scale = np.abs(scores_of(expected)).max()
    np.testing.assert_allclose(scores_of(found) / scale, scores_of(expected) / scale, atol=1e-3)


@pytest.mark.parametrize("device", DEVICES)
def test_the_commands_give_the_scores_of_the_cpu_in_other_batches_and_wider_sums(
    make_model_folder, token_data, pair_files, tmp_path, device
):
    """Of sampled labels: the Fisher is the same, since every draw is.

    Statistics in float64 are fitted and stored as such; run-query computes in float32.
    """
    model = make_model_folder("llama")
    on_cpu = ["--max-tokens-per-batch", "12", "--covariance-dtype", "float64"]
    expected = query(
        model,
        fit(model, token_data, tmp_path / "cpu factors", *on_cpu),
        pair_files,
        tmp_path / "cpu",
        "--score-batch-size", "2",
    )  # fmt: skip
    factors = fit(model, token_data, tmp_path / "factors", device=device)
    found = query(model, factors, pair_files, tmp_path / "found", device=device)
    assert metadata_of(factors)["arguments"]["device"] == device
    check_close(found, expected)


@pytest.mark.parametrize("device", DEVICES)
def test_maps_in_groups_replayed_passes_factors_on_disk_and_blocks_of_queries_change_nothing(
    make_model_folder, token_data, pair_files, tmp_path, monkeypatch, capsys, device
):
    """All of them at once, against none of them."""
    model, batches = make_model_folder(), ["--max-tokens-per-batch", "24"]
    plain = fit(
        model, token_data, tmp_path / "plain", *batches, "--replay-memory-gb", "0", device=device
    )
    expected = query(
        model, plain, pair_files, tmp_path / "expected", "--self-influence", device=device
    )
    parts = ["--module-partitions", "3", "--replay-memory-gb", "1"]
    factors = fit(model, token_data, tmp_path / "parts", *batches, *parts, device=device)
    capsys.readouterr()
    with monkeypatch.context() as patch:
        patch.setattr(query_memory, "free_memory", lambda devices: 40_000)
        more = ["--self-influence", "--query-memory-gb", "1e-5"]
        found = query(model, factors, pair_files, tmp_path / "found", *more, device=device)
    printed = capsys.readouterr().out
    assert "read from disk map by map" in printed
    assert "1 of 2 queries are held at a time" in printed
    check_close(found, expected)
    own = [
        [float(row["self_influence"]) for row in rows_of(one / "train.csv")]
        for one in (found, expected)
    ]
    np.testing.assert_allclose(own[0], own[1], rtol=1e-3)


# CUDA alone


@pytest.mark.gpu
@needs_cuda
def test_a_batch_that_cuda_has_no_memory_for_is_halved(
    make_model_folder, tmp_path, capsys, monkeypatch
):
    """Halfway between what batches of two sizes take of the device."""
    generator = torch.Generator().manual_seed(3)
    data = tmp_path / "tokens.jsonl"
    ids = torch.randint(3, 250, (512, 60), generator=generator).tolist()
    data.write_text("".join(f'{{"input_ids": {one}}}\n' for one in ids))
    model, more = make_model_folder(), ["--replay-memory-gb", "0", "--strategy", "kfac"]

    def taken(name: str, tokens: int) -> tuple[Path, int]:
        torch.cuda.empty_cache()
        torch.cuda.reset_peak_memory_stats()
        budget = ["--max-tokens-per-batch", str(tokens)]
        folder = fit(model, data, tmp_path / name, *more, *budget, device="cuda")
        return folder, torch.cuda.max_memory_reserved()

    taken("first calls", 60)
    small, least = taken("small", 256 * 60)
    _, most = taken("large", 512 * 60)
    assert most > 1.3 * least
    total = torch.cuda.get_device_properties(0).total_memory
    torch.cuda.empty_cache()
    torch.cuda.set_per_process_memory_fraction((least + most) / 2 / total)
    try:
        found, _ = taken("found", 512 * 60)
    finally:
        torch.cuda.set_per_process_memory_fraction(1.0)
    assert "going on with 15360 tokens per batch" in capsys.readouterr().out
    assert metadata_of(found)["used_token_budgets"] == {"covariances": [30720, 15360]}
    positions = [metadata_of(one)["num_positions"] for one in (found, small)]
    assert positions[0] == positions[1]


@pytest.mark.gpu
@needs_cuda
def test_the_host_waits_for_no_map_of_a_backward_pass(make_model, many_sequences):
    """From the first pair to the last; torch raises where it would have to wait."""
    model = make_model("olmo2").to("cuda", torch.float32)
    maps, loss = select_maps(model).maps, LanguageModelLoss()
    (batch,) = [TokenBatch.collate(many_sequences, many_sequences, range(18)).to("cuda")]
    covariances = CovarianceSums(maps)
    with frozen(model):
        backward_pass(model, maps, batch, loss, covariances.add)
    squares = EigenvalueSums(maps, dict(decompose(covariances.finish().items())))
    for sums in (covariances, squares):
        count = 0

        def consume(pair, sums=sums):
            nonlocal count
            torch.cuda.set_sync_debug_mode("error")
            sums.add(pair)
            count += 1
            if count == len(maps):
                torch.cuda.set_sync_debug_mode("default")

        try:
            with frozen(model):
                backward_pass(model, maps, batch, loss, consume)
        finally:
            torch.cuda.set_sync_debug_mode("default")
        assert count == len(maps)


@pytest.mark.gpu
@needs_cuda
def test_equal_covariances_on_unlike_devices_are_not_taken_for_one():
    own = [Covariances(torch.eye(3), torch.diag(torch.tensor([1.0, 2.0])), 4) for _ in range(2)]
    maps = [("a", own[0]), ("b", own[1].to(torch.device("cuda")))]
    for (_, one), device in zip(decompose(maps), ("cpu", "cuda"), strict=True):
        assert one.input_basis.device.type == one.output_values.device.type == device


@pytest.mark.gpu
@needs_cuda
def test_stacks_on_cuda_give_the_eigenvalues_and_spaces_of_the_cpu():
    generator = torch.Generator().manual_seed(2)
    rows = torch.randn(12, 2, 90, 40, generator=generator)
    matrices = rows.mT @ rows / 90
    maps = [(f"{n}", Covariances(one[0], one[1], 1)) for n, one in enumerate(matrices)]
    moved = ((name, one.to(torch.device("cuda"))) for name, one in maps)
    for (_, found), (_, expected) in zip(decompose(moved), decompose(maps), strict=True):
        for side in ("input", "output"):
            torch.testing.assert_close(
                getattr(found, f"{side}_values").cpu(), getattr(expected, f"{side}_values")
            )
            basis, other = (getattr(one, f"{side}_basis").cpu() for one in (found, expected))
            torch.testing.assert_close((basis.T @ other).abs(), torch.eye(40), atol=1e-3, rtol=0)


@pytest.mark.gpu
@needs_cuda
def test_a_model_over_two_devices_gives_the_scores_of_one(
    make_model_folder, token_data, pair_files, tmp_path
):
    if torch.cuda.device_count() < 2:
        pytest.skip("needs two CUDA devices")
    model = make_model_folder()
    expected = query(
        model,
        fit(model, token_data, tmp_path / "one", device="cuda"),
        pair_files,
        tmp_path / "expected",
        device="cuda",
    )
    spread = ["--device-map", "balanced"]
    factors = fit(model, token_data, tmp_path / "two", *spread, device=None)
    found = query(model, factors, pair_files, tmp_path / "found", *spread, device=None)
    check_close(found, expected)
