"""Gradients and their inner products against autograd on the concatenated gradient, in float64."""

import json
import os
import subprocess
import sys
import time
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from attribution.errors import AttributionError
from attribution.gradient_similarity import (
    EncodedExample,
    ExampleGradients,
    FlatLayout,
    GradientProjection,
    GradientStore,
    Representation,
    Similarities,
    TensorProjection,
    Work,
    data_fingerprint,
    dots_by_tensor,
    gradient_similarities,
    model_fingerprint,
    store_originals,
    tensor_seed,
)
from attribution.gradient_similarity.results import cosines_of
from transformers import AutoModelForCausalLM, GPT2Config, LlamaConfig, Olmo2Config, Qwen3Config

VOCAB = 31
_SIZES: dict[str, Any] = {
    "vocab_size": VOCAB,
    "hidden_size": 12,
    "intermediate_size": 20,
    "num_hidden_layers": 2,
    "num_attention_heads": 2,
    "max_position_embeddings": 64,
    "pad_token_id": 0,
    "bos_token_id": 0,
    "eos_token_id": 0,
}
CONFIGS = {
    "olmo2": Olmo2Config(**_SIZES),
    "llama, tied": LlamaConfig(**_SIZES, num_key_value_heads=1, tie_word_embeddings=True),
    "qwen3": Qwen3Config(**_SIZES, num_key_value_heads=1, head_dim=8),
    "gpt2": GPT2Config(vocab_size=VOCAB, n_embd=12, n_layer=2, n_head=2, n_positions=64),
}


def build(name: str, dtype: torch.dtype = torch.float64) -> Any:
    with torch.random.fork_rng():
        torch.manual_seed(0)
        model = AutoModelForCausalLM.from_config(CONFIGS[name], dtype=torch.float32)
        for parameter in model.parameters():
            parameter.data = 0.3 * torch.randn_like(parameter)
    return model.to(dtype).eval()


@pytest.fixture(scope="module", params=list(CONFIGS))
def model(request: pytest.FixtureRequest) -> Any:
    return build(request.param)


def examples(count: int, seed: int, first_key: int = 0) -> list[EncodedExample]:
    generator = np.random.default_rng(seed)
    made = []
    for key in range(first_key, first_key + count):
        length = int(generator.integers(4, 15))
        ids = generator.integers(1, VOCAB, size=length).tolist()
        prompt = int(generator.integers(1, length - 1))
        made.append(EncodedExample(tuple(ids), (-100,) * prompt + tuple(ids[prompt:]), key))
    return made


def autograd(model: Any, example: EncodedExample) -> dict[str, torch.Tensor]:
    """The gradient by .backward() of log-probabilities that are gathered one by one."""
    model.zero_grad()
    logits = model(torch.tensor([example.input_ids])).logits[0]
    loss = sum(
        -torch.log_softmax(logits[place - 1], dim=0)[label]
        for place, label in enumerate(example.labels)
        if label != -100
    )
    loss.backward()
    found = {name: p.grad.clone().flatten() for name, p in model.named_parameters()}
    model.zero_grad()
    return found


def test_the_whole_gradients_cosine_is_autograds_on_the_concatenated_gradient(model: Any) -> None:
    queries, originals = examples(2, 1), examples(3, 2)
    candidates = [[2, 0], [0, 1, 2]]
    (found,) = gradient_similarities(ExampleGradients(model), queries, originals, candidates)
    whole = found.cosines()
    by_tensor = found.cosines_by_tensor()
    some = np.arange(len(found.tensors)) % 3 == 1
    subset = found.cosines(some)
    # A float64 Hugging Face model computes RMSNorm's statistics in float32.
    tolerance = 1e-6
    pair = 0
    for place, others in enumerate(candidates):
        a = autograd(model, queries[place])
        for other in others:
            b = autograd(model, originals[other])
            expected = torch.cosine_similarity(
                torch.cat(list(a.values())), torch.cat(list(b.values())), dim=0
            )
            assert whole[pair] == pytest.approx(float(expected), abs=tolerance)
            for index, name in enumerate(found.tensors):
                assert found.dots[pair, index] == pytest.approx(
                    float(a[name] @ b[name]), rel=tolerance, abs=tolerance
                )
                own = torch.cosine_similarity(a[name], b[name], dim=0)
                assert by_tensor[pair, index] == pytest.approx(float(own), abs=tolerance)
            names = [name for name, chosen in zip(found.tensors, some, strict=True) if chosen]
            expected = torch.cosine_similarity(
                torch.cat([a[n] for n in names]), torch.cat([b[n] for n in names]), dim=0
            )
            assert subset[pair] == pytest.approx(float(expected), abs=tolerance)
            assert np.array_equal(subset, found.cosines(found.tensors_named(names)))
            pair += 1
    assert found.pairs.tolist() == [[0, 2], [0, 0], [1, 0], [1, 1], [1, 2]]


def test_tied_parameters_count_once() -> None:
    tied = build("llama, tied")
    layout = ExampleGradients(tied).layout
    assert sum(layout.widths.values()) == sum(p.numel() for p in tied.parameters())
    assert "lm_head.weight" not in layout.widths
    assert "model.embed_tokens.weight" in layout.widths


def test_a_gradient_is_similar_to_itself_and_squared_norms_are_its_own_dots(model: Any) -> None:
    same = examples(3, 4)
    (found,) = gradient_similarities(ExampleGradients(model), same, same, [[0, 1], [1], [2]])
    true = found.is_true_pair()
    assert true.tolist() == [True, False, True, True]
    np.testing.assert_allclose(found.cosines()[true], 1.0, rtol=1e-12)
    assert np.array_equal(found.dots[true], found.query_squared_norms)
    assert np.array_equal(found.query_squared_norms, found.original_squared_norms)
    assert (np.abs(found.cosines()) <= 1 + 1e-12).all()


def test_the_model_is_left_as_it_was(model: Any) -> None:
    model.train()
    before = {name: p.detach().clone() for name, p in model.named_parameters()}
    ExampleGradients(model)(examples(1, 3)[0])
    with pytest.raises(AttributionError, match="example 7: expected as many labels"):
        ExampleGradients(model)(EncodedExample((1, 2), (1, -100), 7))
    assert all(module.training for module in model.modules())
    assert all(p.grad is None for p in model.parameters())
    assert all(torch.equal(before[name], p) for name, p in model.named_parameters())
    model.eval()


def test_dropout_has_no_effect() -> None:
    noisy = build("gpt2").train()
    gradients = ExampleGradients(noisy)
    example = examples(1, 0)[0]
    assert torch.equal(gradients(example), gradients(example))


def test_frozen_parameters_are_left_out_and_a_wholly_frozen_model_is_refused() -> None:
    frozen = build("olmo2")
    frozen.model.embed_tokens.requires_grad_(False)
    assert "model.embed_tokens.weight" not in ExampleGradients(frozen).layout.widths
    frozen.requires_grad_(False)
    with pytest.raises(AttributionError, match="no parameter"):
        ExampleGradients(frozen)


def test_a_gradient_that_is_not_finite_names_the_example_and_the_tensor() -> None:
    broken = build("olmo2")
    with torch.no_grad():
        broken.model.embed_tokens.weight[5] = float("nan")
    with pytest.raises(AttributionError, match=r"example 4: the gradient of .* is not finite"):
        ExampleGradients(broken)(EncodedExample((3, 5, 6), (3, 5, 6), 4))


def test_prompts_carry_no_loss_but_matter_and_the_first_label_is_never_predicted() -> None:
    gradients = ExampleGradients(build("olmo2"))
    one = gradients(EncodedExample((3, 4, 5), (-100, -100, 5)))
    assert torch.equal(one, gradients(EncodedExample((3, 4, 5), (-100, -100, 5))))
    assert not torch.allclose(one, gradients(EncodedExample((6, 4, 5), (-100, -100, 5))))
    whole = gradients(EncodedExample((3, 4, 5), (3, 4, 5)))
    assert torch.equal(whole, gradients(EncodedExample((3, 4, 5), (-100, 4, 5))))


def test_dots_of_long_tensors_are_summed_over_all_their_runs() -> None:
    layout = FlatLayout({"long": (1 << 17) + 5, "short": 3}, torch.float64)
    generator = torch.Generator().manual_seed(0)
    a, b = (torch.zeros(layout.size, dtype=torch.float64) for _ in range(2))
    for vector in (a, b):
        for _, part in layout.parts(vector):
            part.copy_(torch.randn(len(part), generator=generator, dtype=torch.float64))
    expected = [
        float(x @ y) for (_, x), (_, y) in zip(layout.parts(a), layout.parts(b), strict=True)
    ]
    np.testing.assert_allclose(dots_by_tensor(a, b, layout).numpy(), expected, rtol=1e-12)
    assert layout.size > sum(layout.widths.values())


def test_a_zero_gradient_has_cosine_zero_and_scale_does_not_matter() -> None:
    dots, norms = np.array([0.0, 2.0, 2e200]), np.array([0.0, 4.0, 4e200])
    np.testing.assert_allclose(cosines_of(dots, norms, np.array([1.0, 1.0, 1e200])), [0, 1, 1])


# Projections ------------------------------------------------------------------------------------


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


def test_a_projected_gradient_is_each_tensors_projection() -> None:
    gradients = ExampleGradients(build("olmo2"))
    flat = gradients(examples(1, 0)[0])
    project = GradientProjection(gradients.layout, 0.2, 3)
    projected = dict(project.layout.parts(project(flat)))
    assert set(projected) == set(gradients.layout.widths)
    for name, values in gradients.layout.parts(flat):
        own = TensorProjection(name, len(values), 0.2, 3)(values)
        torch.testing.assert_close(projected[name], own, rtol=0, atol=0)
    assert project.layout.dtype == torch.float64


# The store, and how often things are computed ---------------------------------------------------


def small() -> ExampleGradients:
    return ExampleGradients(build("olmo2", torch.float32))


def equal(a: Similarities, b: Similarities) -> bool:
    return (a.query_ids, a.original_ids, a.tensors) == (
        b.query_ids,
        b.original_ids,
        b.tensors,
    ) and all(
        np.array_equal(getattr(a, name), getattr(b, name))
        for name in ("pairs", "dots", "query_squared_norms", "original_squared_norms")
    )


def test_stores_blocks_and_partitions_change_no_bit_and_originals_are_computed_once(
    tmp_path: Path,
) -> None:
    queries, originals = examples(5, 1), examples(6, 2)
    candidates = [[place, (place + 1) % 6, 5 - place] for place in range(5)]
    candidates = [list(dict.fromkeys(some)) for some in candidates]
    gradients = small()

    def run(places: range, at_once: int, folder: Path | None) -> tuple[list[Similarities], Work]:
        work = Work()
        projection = GradientProjection(gradients.layout, 0.1, 0)
        stores: list[GradientStore | None] = [None, None]
        if folder is not None:
            stores = [
                GradientStore(folder / "full", gradients.layout, {}),
                GradientStore(folder / "some", projection.layout, {}),
            ]
        found = gradient_similarities(
            gradients,
            [queries[place] for place in places],
            originals,
            [candidates[place] for place in places],
            [Representation(None, stores[0]), Representation(projection, stores[1])],
            queries_at_once=at_once,
            work=work,
        )
        return found, work

    plain, work = run(range(5), 1, None)
    asked = sum(map(len, candidates))
    assert (work.query_gradients, work.original_gradients) == (5, asked)
    blocked, work = run(range(5), 5, None)
    needed = len({one for some in candidates for one in some})
    assert (work.query_gradients, work.original_gradients) == (5, needed)
    assert work.projections == 5 + needed
    stored, work = run(range(5), 2, tmp_path)
    assert work.original_gradients == needed
    again, work = run(range(5), 1, tmp_path)
    assert (work.query_gradients, work.original_gradients) == (5, 0)
    for other in (blocked, stored, again):
        assert all(equal(a, b) for a, b in zip(plain, other, strict=True))
    part, work = run(range(2, 4), 2, tmp_path)
    assert work.original_gradients == 0
    for whole, one in zip(plain, part, strict=True):
        chosen = np.isin(whole.pairs[:, 0], [2, 3])
        assert np.array_equal(one.dots, whole.dots[chosen])
        assert np.array_equal(one.cosines(), whole.cosines()[chosen])
        assert np.array_equal(one.query_squared_norms, whole.query_squared_norms[2:4])


def test_a_killed_run_leaves_whole_gradients_and_the_next_one_computes_the_others(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    gradients, originals = small(), examples(4, 2)
    store = GradientStore(tmp_path, gradients.layout, {"model": "m"})
    write = np.save

    def dies(file: Any, array: Any, **options: Any) -> None:
        if len(list(tmp_path.glob("*.npy"))) == 2:
            file.write(b"half of it")
            raise KeyboardInterrupt
        write(file, array, **options)

    monkeypatch.setattr(np, "save", dies)
    with pytest.raises(KeyboardInterrupt):
        store_originals(gradients, originals, [Representation(None, store)])
    monkeypatch.undo()
    assert sorted(p.name for p in tmp_path.iterdir()) == [
        "manifest.json",
        "original_0.npy",
        "original_1.npy",
    ]
    work = Work()
    store_originals(gradients, originals, [Representation(None, store)], work=work)
    assert work.original_gradients == 2
    assert torch.equal(store.read(3), gradients(originals[3]))


def test_what_a_killed_process_had_begun_is_removed_once_nobody_writes_to_it(
    tmp_path: Path,
) -> None:
    layout = FlatLayout({"a": 40})
    GradientStore(tmp_path, layout, {}).write(3, layout.new_vector())
    old, new, others = (
        tmp_path / f".{name}.tmp" for name in ("original_7.npy.x", "original_8.npy.y", "note")
    )
    for path, minutes in ((old, 61), (new, 59), (others, 61)):
        path.write_bytes(b"half")
        written = time.time() - 60 * minutes
        os.utime(path, (written, written))
    store = GradientStore(tmp_path, layout, {})
    assert not old.exists()
    assert new.exists()
    assert others.exists()
    assert 3 in store
    os.utime(new, (0, 0))
    store.write(7, layout.new_vector())
    assert new.exists()  # a file replaces what was begun of itself, and nothing else
    store.write(8, layout.new_vector())
    assert not new.exists()


def test_a_store_of_another_model_data_or_layout_is_refused(tmp_path: Path) -> None:
    gradients = small()
    arguments = {"model_fingerprint": "a", "data_fingerprint": "b"}
    GradientStore(tmp_path / "s", gradients.layout, arguments)
    GradientStore(tmp_path / "s", gradients.layout, arguments)
    for other, named in (
        ({**arguments, "model_fingerprint": "x"}, "another model fingerprint"),
        ({**arguments, "data_fingerprint": "x"}, "another data fingerprint"),
    ):
        with pytest.raises(AttributionError, match=named):
            GradientStore(tmp_path / "s", gradients.layout, other)
    with pytest.raises(AttributionError, match="another layout"):
        GradientStore(tmp_path / "s", FlatLayout({"a": 3}), arguments)
    (tmp_path / "other").mkdir()
    (tmp_path / "other" / "original_0.npy").write_bytes(b"")
    with pytest.raises(AttributionError, match=r"no manifest\.json"):
        GradientStore(tmp_path / "other", gradients.layout, arguments)


def test_a_truncated_or_foreign_file_in_a_store_is_refused(tmp_path: Path) -> None:
    store = GradientStore(tmp_path, FlatLayout({"a": 40}), {})
    store.write(3, torch.arange(48.0))
    assert 3 in store
    assert 4 not in store
    path = tmp_path / "original_3.npy"
    path.write_bytes(path.read_bytes()[:-8])
    with pytest.raises(AttributionError, match="not a whole array"):
        store.read(3)
    np.save(path, np.zeros(4, dtype=np.float32))
    with pytest.raises(AttributionError, match="expected 48 values"):
        store.read(3)
    np.save(path, np.array([{"a": 1}], dtype=object))
    with pytest.raises(AttributionError, match="not a whole array"):
        store.read(3)
    (tmp_path / "manifest.json").write_text("{")
    with pytest.raises(AttributionError, match="not readable as JSON"):
        GradientStore(tmp_path, FlatLayout({"a": 40}), {})


def test_fingerprints_see_every_parameter_every_label_and_the_order() -> None:
    one = build("olmo2", torch.float32)
    before = model_fingerprint(one)
    assert before == model_fingerprint(build("olmo2", torch.float32))
    with torch.no_grad():
        one.model.layers[1].mlp.down_proj.weight[3, 7] += 1e-6
    assert model_fingerprint(one) != before
    some = examples(3, 0)
    assert data_fingerprint(some) != data_fingerprint(some[::-1])
    changed = EncodedExample(some[0].input_ids, (-100, *some[0].labels[1:-1], 1), some[0].key)
    assert data_fingerprint(some) != data_fingerprint([changed, *some[1:]])


def test_queries_are_ordered_by_numeric_id_and_manifests_are_json(tmp_path: Path) -> None:
    queries = examples(2, 1, first_key=9)[::-1]
    originals = examples(3, 2, first_key=8)
    (found,) = gradient_similarities(small(), queries, originals, [[2, 0], [1]])
    assert found.query_ids == (9, 10)
    assert found.original_ids == (8, 9, 10)
    assert found.pairs.tolist() == [[0, 1], [1, 2], [1, 0]]
    assert found.is_true_pair().tolist() == [True, True, False]
    GradientStore(tmp_path, FlatLayout({"a": 3}), {"seed": 1})
    assert json.loads((tmp_path / "manifest.json").read_text())["layout"]["widths"] == {"a": 3}
