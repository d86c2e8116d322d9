"""Forward-mode embeddings against finite differences, on five architectures, in float64."""

import pytest
import torch
from influence_cases import ARCHITECTURES, make_batch, make_loader, use_float64_norms
from math_utils.causal_lm import token_batch
from math_utils.errors import InfluenceError
from math_utils.influence import JVPEmbeddingConfig, JVPEmbeddingExtractor


def plain(num_blocks=2, num_tangents=2, projection_dim=None, seed=0):
    return JVPEmbeddingConfig(num_blocks, num_tangents, projection_dim, seed)


@pytest.mark.parametrize("architecture", ARCHITECTURES)
@pytest.mark.parametrize("num_blocks", [1, 3])
def test_an_embedding_is_the_directional_derivative(
    make_model, sequences, architecture, num_blocks
):
    """Defect: a "JVP" that computes none. The differences use sdpa attention, which is float64
    throughout; eager attention takes its softmax in float32, hence the tolerance."""
    model = make_model(architecture)
    use_float64_norms(model)
    extractor = JVPEmbeddingExtractor(model, plain(num_blocks))
    batch = make_batch(sequences, [0, 2, 3], side="left")
    found = extractor.compute_batch_embeddings(batch)
    tokens = token_batch(batch)
    values = dict(model.named_parameters())
    step, parts = 1e-5, []
    assert model.config._attn_implementation == "sdpa"
    with torch.no_grad():
        for direction in extractor.directions():
            assert set(direction) == set(extractor.parameter_names)
            ends = [
                extractor.hidden_states(
                    tokens, {n: values[n] + sign * step * u for n, u in direction.items()}
                )
                for sign in (1, -1)
            ]
            parts.append((ends[0] - ends[1]) / (2 * step))
    expected = torch.cat(parts, dim=1)
    assert float(expected.norm()) > 1
    assert float((found - expected).norm() / expected.norm()) < 1e-5
    assert found.shape == (3, extractor.embedding_dim)


@pytest.mark.parametrize("architecture", ["llama", "gpt2"])
def test_the_hidden_state_is_that_after_block_k_at_the_last_real_token(
    make_model, sequences, architecture
):
    model = make_model(architecture)
    extractor = JVPEmbeddingExtractor(model, plain(num_blocks=2))
    ids = torch.tensor([sequences[3]])
    with torch.no_grad():
        states = model(input_ids=ids, output_hidden_states=True).hidden_states[2][:, -1]
        own = extractor.hidden_states(token_batch(make_batch(sequences, [3])), {})
    torch.testing.assert_close(own, states)


def test_only_the_first_blocks_are_run_and_perturbed(make_model, sequences):
    model = make_model("olmo2")
    ran = []
    for number, block in enumerate(model.model.layers):
        block.register_forward_pre_hook(lambda m, args, number=number: ran.append(number))
    model.lm_head.register_forward_pre_hook(lambda m, args: ran.append("head"))
    extractor = JVPEmbeddingExtractor(model, plain(num_blocks=2, num_tangents=1))
    ran.clear()
    extractor.compute_batch_embeddings(make_batch(sequences, [0]))
    assert ran == [0, 1]
    assert {name.split(".")[1] for name in extractor.parameter_names} == {"embed_tokens", "layers"}
    assert {n.split(".")[2] for n in extractor.parameter_names if "layers" in n} == {"0", "1"}


@pytest.mark.parametrize("architecture", ["olmo2", "gpt2"])
def test_batches_order_and_padding_change_nothing(make_model, sequences, architecture):
    model = make_model(architecture)
    every = JVPEmbeddingExtractor(model, plain()).compute_embeddings(
        make_loader(sequences, [range(7)])
    )
    again = JVPEmbeddingExtractor(model, plain())
    loader = make_loader(sequences, [[6], [3, 0]], side="left", pad=9, prompt=4)
    torch.testing.assert_close(
        again.compute_embeddings(loader), every[[6, 3, 0]], rtol=1e-4, atol=1e-5
    )
    other = JVPEmbeddingExtractor(model, plain(seed=1)).compute_embeddings(loader)
    assert not torch.allclose(other, every[[6, 3, 0]], rtol=0.1)


def test_a_projection_is_that_of_the_concatenated_tangents(make_model, sequences):
    model = make_model("qwen3")
    batch = make_batch(sequences, [0, 1])
    whole = JVPEmbeddingExtractor(model, plain(num_tangents=3)).compute_batch_embeddings(batch)
    projected = JVPEmbeddingExtractor(model, plain(num_tangents=3, projection_dim=8))
    assert whole.shape == (2, 36)
    found = projected.compute_batch_embeddings(batch)
    torch.testing.assert_close(found, projected.projection.project(whole))
    assert projected.embedding_dim == 8


@pytest.mark.parametrize("fails", [False, True])
def test_attention_and_model_are_as_before_after_an_exception_too(make_model, sequences, fails):
    model = make_model("llama").train()
    before = [(p.requires_grad, p.grad, p._version) for p in model.parameters()]
    values = {name: p.clone() for name, p in model.named_parameters()}
    extractor = JVPEmbeddingExtractor(model, plain())
    if fails:

        def break_off(module, arguments):
            raise RuntimeError("broken")

        handle = model.model.layers[1].register_forward_pre_hook(break_off)
        with pytest.raises(RuntimeError, match="broken"):
            extractor.compute_batch_embeddings(make_batch(sequences, [0]))
        handle.remove()
    else:
        extractor.compute_batch_embeddings(make_batch(sequences, [0]))
    assert model.config._attn_implementation == "sdpa"
    assert before == [(p.requires_grad, p.grad, p._version) for p in model.parameters()]
    assert all(torch.equal(values[name], p) for name, p in model.named_parameters())
    assert all(m.training and not m._forward_hooks for m in model.modules())


def test_what_the_model_lacks_is_said(make_model):
    with pytest.raises(
        InfluenceError, match=r"num_blocks of at most 3, the length of model.layers"
    ):
        JVPEmbeddingExtractor(make_model("olmo2"), plain(num_blocks=4))
    with pytest.raises(InfluenceError, match="output_dim between 1 and 32"):
        JVPEmbeddingExtractor(make_model("olmo2"), plain(projection_dim=33))
    bare = torch.nn.Sequential(torch.nn.Embedding(9, 4), torch.nn.Linear(4, 9))
    with pytest.raises(InfluenceError, match=r"looked for a non-empty torch.nn.ModuleList"):
        JVPEmbeddingExtractor(bare, plain())
