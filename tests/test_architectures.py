"""Capture, loss and curvature on the real architectures, against autograd in float64."""

import pytest
import torch
from if_query.errors import InputError
from if_query.models import LanguageModelLoss, fingerprint, label_logits, select_maps
from math_utils import head_loss
from math_utils.capture import frozen
from math_utils.curvature import (
    CovarianceSums,
    CurvatureConfig,
    EigenvalueSums,
    ReplayedPasses,
    backward_pass,
    collect_gradients,
    fit_curvature,
)
from math_utils.language_modeling import TokenBatch
from transformers import AutoModelForCausalLM, Gemma2Config

ARCHITECTURES = ["olmo2", "llama", "qwen3", "gpt_neox", "gpt2"]
CLOSE = {"rtol": 1e-8, "atol": 1e-10}


def collate(sequences, rows, side="right", prompt=0):
    ids = [sequences[row] for row in rows]
    labels = [[-100] * min(prompt, len(one)) + one[prompt:] for one in ids]
    return TokenBatch.collate(ids, labels, rows, padding_side=side, pad_id=2)


def matrix_gradient(linear_map):
    """Autograd's gradient of a map as [d_out, d_in], Conv1D transposed, bias last."""
    (module,) = linear_map.modules
    weight = module.weight.grad
    if not isinstance(module, torch.nn.Linear):
        weight = weight.T
    if linear_map.has_bias:
        weight = torch.cat([weight, module.bias.grad[:, None]], dim=1)
    return weight.clone()


def naive_gradients(model, maps, sequences, prompt):
    """One example at a time, through the model's own loss where that is defined."""
    gradients = {name: [] for name in maps}
    for parameter in model.parameters():
        parameter.requires_grad_(True)
    for ids in sequences:
        model.zero_grad()
        row = torch.tensor([ids])
        logits = model(input_ids=row).logits[0]
        log_probabilities = logits.log_softmax(-1)
        loss = -sum(
            log_probabilities[t, ids[t + 1]] for t in range(len(ids) - 1) if t + 1 >= prompt
        )
        loss.backward()
        for name, one in maps.items():
            gradients[name].append(matrix_gradient(one))
    model.zero_grad(set_to_none=True)
    return {name: torch.stack(each) for name, each in gradients.items()}


@pytest.mark.parametrize("architecture", ARCHITECTURES)
@pytest.mark.parametrize("modules", ["mlp", "attention"])
def test_captured_gradients_equal_autograd(make_model, sequences, architecture, modules):
    model = make_model(architecture)
    maps = select_maps(model, modules).maps
    chosen = [0, 2, 3, 5]  # long enough for a prompt of three tokens
    expected = naive_gradients(model, maps, [sequences[row] for row in chosen], prompt=3)
    for side in ("right", "left"):
        for groups in ([chosen], [[0], [2, 3, 5]]):
            batches = [collate(sequences, rows, side, prompt=3) for rows in groups]
            with frozen(model):
                found, _ = collect_gradients(
                    model, maps, batches, LanguageModelLoss(), dtype=torch.float64
                )
            for name in maps:
                torch.testing.assert_close(found[name], expected[name], **CLOSE)


@pytest.mark.parametrize("architecture", ARCHITECTURES)
@pytest.mark.parametrize("side", ["right", "left"])
@pytest.mark.parametrize("labels", ["given", "sampled"])
def test_the_loss_in_chunks_is_that_of_all_logits(
    make_model, sequences, monkeypatch, architecture, side, labels
):
    monkeypatch.setattr(head_loss, "_FEWEST_POSITIONS", 7)
    monkeypatch.setattr(head_loss, "_CHUNK_ELEMENTS", {"cpu": 1})
    model = make_model(architecture)
    maps = select_maps(model, "all").maps
    batch = collate(sequences, [0, 2, 3, 5], side, prompt=3)
    in_chunks = LanguageModelLoss.for_model(model, labels, seed=4)
    assert in_chunks.in_chunks
    found = {}
    with frozen(model):
        for loss in (in_chunks, LanguageModelLoss(labels, seed=4)):
            pairs = {}

            def keep(pair, pairs=pairs):
                pairs[pair.name] = pair.output_gradients

            losses = backward_pass(model, maps, batch, loss, keep, dtype=torch.float64)
            found[loss] = losses, pairs
    (losses, pairs), (expected_losses, expected_pairs) = found.values()
    torch.testing.assert_close(losses, expected_losses, rtol=1e-12, atol=1e-12)
    assert set(pairs) == set(expected_pairs) == set(maps)
    for name, gradients in pairs.items():
        torch.testing.assert_close(gradients, expected_pairs[name], **CLOSE)


@pytest.mark.parametrize("cap", [30.0, None])
def test_a_model_that_caps_its_logits_takes_them_all_at_once(cap):
    config = Gemma2Config(
        vocab_size=40,
        hidden_size=16,
        intermediate_size=32,
        num_hidden_layers=1,
        num_attention_heads=2,
        num_key_value_heads=2,
        head_dim=8,
        final_logit_softcapping=cap,
    )
    with torch.random.fork_rng():
        torch.manual_seed(0)
        model = AutoModelForCausalLM.from_config(config, dtype=torch.bfloat16).eval()
    assert LanguageModelLoss.for_model(model).in_chunks is (cap is None)


@pytest.mark.parametrize("architecture", ARCHITECTURES)
@pytest.mark.parametrize("side", ["right", "left"])
def test_replayed_parts_of_a_model_give_the_same_bits(make_model, sequences, architecture, side):
    model = make_model(architecture)
    maps = select_maps(model, "all").maps
    passes = ReplayedPasses(model, maps, LanguageModelLoss("sampled"), max_bytes=1 << 30)
    batch = collate(sequences, [0, 2, 3, 5], side, prompt=3)
    runs, found = [], []
    model.get_input_embeddings().register_forward_hook(lambda *call: runs.append(1))
    with frozen(model):
        for _ in range(2):
            pairs = {}
            passes.run("a", maps, batch, lambda pair, pairs=pairs: pairs.update({pair.name: pair}))
            found.append(pairs)
    assert len(runs) == 1
    assert set(found[0]) == set(found[1]) == set(maps)
    for name, first in found[0].items():
        assert torch.equal(found[1][name].inputs, first.inputs)
        assert torch.equal(found[1][name].output_gradients, first.output_gradients)
        assert first.output_gradients.any()


@pytest.mark.parametrize("architecture", [*ARCHITECTURES, "olmoe"])
def test_the_loss_is_the_models_own_and_does_not_depend_on_padding(
    make_model, sequences, architecture
):
    model, objective = make_model(architecture), LanguageModelLoss()
    with torch.no_grad():
        together = objective(model, collate(sequences, list(range(7))))
        left = objective(model, collate(sequences, list(range(7)), "left"))
        for row, ids in enumerate(sequences):
            tokens = torch.tensor([ids])
            own = model(input_ids=tokens, labels=tokens).loss.double() * (len(ids) - 1)
            torch.testing.assert_close(together[row], own, rtol=1e-6, atol=1e-6)
    torch.testing.assert_close(together, left, **CLOSE)


def test_logits_are_computed_at_labelled_positions_only(make_model, sequences):
    model = make_model("olmo2")
    seen = []
    handle = model.lm_head.register_forward_hook(lambda m, args, out: seen.append(out.shape))
    batch = collate(sequences, [2, 3], prompt=4)
    with torch.no_grad():
        chosen = label_logits(model, batch)
        every = model(input_ids=batch.input_ids, attention_mask=batch.attention_mask.long()).logits
    handle.remove()
    assert seen[0][:2] == (1, (9 - 4) + (13 - 4))
    torch.testing.assert_close(chosen, every[batch.label_positions()], **CLOSE)


@pytest.mark.parametrize("architecture", ["olmo2", "gpt2"])
@pytest.mark.parametrize("labels", ["given", "sampled"])
def test_factors_do_not_depend_on_batches_order_or_padding(
    make_model, sequences, architecture, labels
):
    model = make_model(architecture)
    maps = select_maps(model).maps
    objective = LanguageModelLoss(labels, seed=3)
    config = CurvatureConfig(covariance_dtype=torch.float64)
    results = []
    # Sequence 1, of two tokens, has no label behind a prompt of two.
    for groups, side in (
        ([[0, 1, 2, 3, 4, 5, 6]], "right"),
        ([[6], [3, 5, 1], [2, 0, 4]], "left"),
        ([[row] for row in (3, 1, 4, 0, 5, 2, 6)], "right"),
    ):
        batches = [collate(sequences, rows, side, prompt=2) for rows in groups]
        factors = fit_curvature(model, maps, batches, objective, config).maps
        results.append(
            {
                name: torch.einsum(
                    "ai,bj,ij,ci,dj->abcd",
                    f.output_basis,
                    f.input_basis,
                    f.eigenvalues,
                    f.output_basis,
                    f.input_basis,
                )
                for name, f in factors.items()
                if name.endswith(("0.mlp.down_proj", "0.mlp.c_proj"))
            }
        )
    assert results[0]
    for other in results[1:]:
        for name, matrix in results[0].items():
            scale = float(matrix.abs().max())
            torch.testing.assert_close(other[name], matrix, rtol=0, atol=1e-8 * scale)


def test_prompt_positions_enter_the_covariance_of_inputs(make_model, sequences):
    model = make_model("olmo2")
    maps = select_maps(model).maps
    sums = CovarianceSums(maps, torch.float64)
    with frozen(model):
        backward_pass(
            model,
            maps,
            collate(sequences, [2, 3], prompt=4),
            LanguageModelLoss(),
            sums.add,
            dtype=torch.float64,
        )
    assert {c.num_positions for c in sums.finish().values()} == {9 + 13}


@pytest.mark.parametrize("dtype", [torch.bfloat16, torch.float16])
def test_low_precision_statistics_are_summed_in_float32(make_model, sequences, dtype):
    """Sums in float32 equal sums in float64 of the same low-precision tensors to 1e-5."""
    model = make_model("olmo2", dtype=dtype)
    maps = select_maps(model).maps
    sums = {wide: CovarianceSums(maps, wide) for wide in (torch.float32, torch.float64)}
    squares = {wide: EigenvalueSums(maps, None, wide) for wide in sums}
    with frozen(model):
        for _ in range(20):
            for wide in sums:
                for each in (sums[wide], squares[wide]):
                    backward_pass(
                        model,
                        maps,
                        collate(sequences, [0, 2, 3]),
                        LanguageModelLoss(),
                        each.add,
                        dtype=wide,
                    )
    narrow, wide = (sums[each].finish() for each in sums)
    for name, one in narrow.items():
        for part in ("inputs", "output_gradients"):
            expected = getattr(wide[name], part)
            error = (getattr(one, part).double() - expected).norm() / expected.norm()
            assert float(error) < 1e-5
    narrow, wide = (squares[each].finish(60) for each in squares)
    for name, one in narrow.items():
        assert float((one.double() - wide[name]).norm() / wide[name].norm()) < 1e-5


def test_sampled_labels_ignore_what_the_data_say_but_keep_its_positions(make_model, sequences):
    model = make_model("llama")
    batch = collate(sequences, [3], prompt=6)
    other = TokenBatch(
        batch.input_ids,
        batch.attention_mask,
        torch.where(batch.labels >= 0, (batch.labels + 1) % 37, batch.labels),
        batch.example_keys,
    )
    sampled = LanguageModelLoss("sampled", seed=1)
    with torch.no_grad():
        assert torch.equal(sampled(model, batch), sampled(model, other))
        assert not torch.equal(LanguageModelLoss()(model, batch), LanguageModelLoss()(model, other))


def test_an_example_without_labels_has_loss_and_gradient_zero(make_model, sequences):
    model = make_model("olmo2")
    maps = select_maps(model).maps
    unlabelled = collate(sequences, [2, 3], prompt=50)
    mixed = TokenBatch.collate([sequences[2], sequences[3]], [[-100] * 9, sequences[3]], [2, 3])
    for batch in (unlabelled, mixed):
        with frozen(model):
            gradients, losses = collect_gradients(
                model, maps, [batch], LanguageModelLoss(), dtype=torch.float64
            )
        assert float(losses[0]) == 0
        assert all(float(one[0].abs().max()) == 0 for one in gradients.values())
    assert float(losses[1]) > 0


def test_activation_checkpointing_changes_nothing(make_model, sequences):
    model = make_model("olmo2")
    maps = select_maps(model).maps
    batch = collate(sequences, [2, 3])
    with frozen(model):
        plain, _ = collect_gradients(model, maps, [batch], LanguageModelLoss())
    model.gradient_checkpointing_enable()
    model.train()
    with frozen(model):
        other, _ = collect_gradients(model, maps, [batch], LanguageModelLoss())
    assert model.training
    assert all(torch.equal(plain[name], other[name]) for name in maps)


EXPECTED_NAMES = {
    "olmo2": "model.layers.{}.mlp.{{gate,up,down}}_proj",
    "gpt_neox": "gpt_neox.layers.{}.mlp.dense_{{h_to_4h,4h_to_h}}",
    "gpt2": "transformer.h.{}.mlp.{{c_fc,c_proj}}",
}


@pytest.mark.parametrize("architecture", EXPECTED_NAMES)
def test_the_mlp_maps_are_found_and_strided(make_model, architecture):
    head, choices = EXPECTED_NAMES[architecture].format("{}").replace("}}", "}").split("{", 2)[0::2]
    options, tail = (
        choices.rstrip("}").split("}") if not choices.endswith("}") else (choices.rstrip("}"), "")
    )
    middle = EXPECTED_NAMES[architecture].split("{}")[1].split("{{")[0]
    expected = [
        f"{head}{layer}{middle}{option}{tail}" for layer in (0, 2) for option in options.split(",")
    ]
    assert list(select_maps(make_model(architecture), "mlp", 2).maps) == expected


def test_all_selects_every_linear_map_of_the_layers_and_not_the_head(make_model):
    names = list(select_maps(make_model("llama"), "all").maps)
    assert len(names) == 3 * 7
    assert "lm_head" not in names


def test_routed_experts_are_named_with_their_share_and_never_skipped_in_silence(make_model):
    model = make_model("olmoe")
    with pytest.raises(InputError, match=r"selects no linear map .*% of all parameters are routed"):
        select_maps(model, "mlp")
    tracked = select_maps(model, "attention")
    total = sum(p.numel() for p in model.parameters())
    experts = sum(p.numel() for n, p in model.named_parameters() if "experts" in n)
    assert tracked.untracked_expert_share == pytest.approx(experts / total)
    assert "model.layers.0.mlp.experts.gate_up_proj" in tracked.untracked_experts
    assert any("routed experts and not tracked" in line for line in tracked.describe())


def test_nothing_selected_and_bad_expressions_are_errors(make_model):
    with pytest.raises(InputError, match="selects no linear map of Olmo2ForCausalLM"):
        select_maps(make_model("olmo2"), "nowhere")
    with pytest.raises(InputError, match="not a regular expression"):
        select_maps(make_model("olmo2"), "(")


def test_the_fingerprint_tells_models_apart_but_not_their_dtypes(make_model):
    model = make_model("olmo2", dtype=torch.float32)
    first = fingerprint(model)
    assert fingerprint(make_model("olmo2", dtype=torch.bfloat16)) == first
    assert fingerprint(make_model("olmo2", dtype=torch.float32, seed=1)) != first
    with torch.no_grad():
        model.model.layers[1].mlp.up_proj.weight[0, 0] += 0.5
    assert fingerprint(model) != first
