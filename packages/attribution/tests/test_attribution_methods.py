"""The methods between two checkpoints: their formulas, and the laws that all of them obey."""

import itertools
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
import torch
from attribution.activations import state_changes
from attribution.checkpoints import Checkpoints
from attribution.decoder import logit_margins
from attribution.errors import AttributionError
from attribution.examples import Example
from attribution.gradients import state_gradients
from attribution.integrated_gradients import integrated_state_gradients
from attribution.methods import (
    PatchOptions,
    attr_weighted_change,
    causal_patching,
    dh_similarity,
    grad_similarity,
    largest_dimensions,
    patching_scores,
    weighted_changes,
)
from attribution.pooling import SpanPooling
from attribution.scoring import ScoreOptions
from attribution.vectors import VectorOptions
from tokenizers import Tokenizer
from tokenizers.models import WordLevel
from tokenizers.pre_tokenizers import Whitespace
from torch import Tensor
from torch.nn.functional import cosine_similarity
from transformers import PreTrainedModel, PreTrainedTokenizerFast

ARCHITECTURES = ["olmo2", "llama", "qwen3", "gpt_neox", "gpt2"]
LAST, HIDDEN = 3, 12
CLOSE = {"rtol": 1e-9, "atol": 1e-10}
QUERIES = [Example.answer([5, 9, 17, 4], [8]), Example.answer([21, 6], [7, 12, 3])]


def integrated(*args: Any, **options: Any) -> Tensor:
    return attr_weighted_change(*args, num_steps=2, **options)


def patched(*args: Any, scoring: None = None, **options: Any) -> Tensor:
    return causal_patching(*args, patch=PatchOptions(20.0, "text"), **options)


METHODS: dict[str, Callable[..., Tensor]] = {
    "dh": dh_similarity,
    "grad": grad_similarity,
    "attr": attr_weighted_change,
    "attr-ig": integrated,
    "patch": patched,
}


@pytest.mark.parametrize(
    ("method", "pooling"), [*((name, "last") for name in METHODS), ("dh", "text"), ("attr", "text")]
)
def test_scores_permute_with_the_documents_and_do_not_depend_on_batches_or_padding(
    make_checkpoints: Callable[..., Checkpoints],
    examples: list[Example],
    method: str,
    pooling: SpanPooling,
) -> None:
    pair = make_checkpoints("llama")

    def run(documents: list[Example], queries: list[Example], *batches: Any) -> Tensor:
        vectors = VectorOptions(None, pooling, *batches)
        return METHODS[method](pair, documents, queries, vectors=vectors)

    scores = run(examples, QUERIES)
    assert scores.shape == (len(QUERIES), len(examples))
    assert scores.std(dim=1).min() > 1e-3
    for batches in ((1, "right"), (4, "left")):
        torch.testing.assert_close(run(examples, QUERIES, *batches), scores, **CLOSE)
    order = [3, 0, 5, 2, 4, 1]
    permuted = run([examples[index] for index in order], QUERIES)
    torch.testing.assert_close(permuted, scores[:, order], **CLOSE)
    torch.testing.assert_close(run(examples, QUERIES[1:]), scores[1:], **CLOSE)
    torch.testing.assert_close(run(examples[2:4], QUERIES), scores[:, 2:4], **CLOSE)


def test_similarities_are_cosines_of_the_vectors_they_name(
    make_checkpoints: Callable[..., Checkpoints], examples: list[Example]
) -> None:
    pair = make_checkpoints()
    vectors = VectorOptions((1, 3), "span")

    def cosines(of: Callable[[list[Example]], Tensor]) -> Tensor:
        queries, documents = of(QUERIES), of(examples)
        return cosine_similarity(queries[:, :, None], documents[:, None], dim=-1).mean(dim=0)

    def change(some: list[Example]) -> Tensor:
        return state_changes(pair, some, vectors).values

    def gradient(some: list[Example]) -> Tensor:
        return state_gradients(pair.new, some, vectors, objective="margin").values

    options: dict[str, Any] = {"vectors": vectors}
    margin = {**options, "objective": "margin"}
    for found, expected in (
        (dh_similarity(pair, examples, QUERIES, **options), cosines(change)),
        (grad_similarity(pair, examples, QUERIES, **margin), cosines(gradient)),
        (
            attr_weighted_change(pair, examples, QUERIES, **margin),
            cosines(lambda some: change(some) * gradient(some)),
        ),
        (
            attr_weighted_change(pair, examples, QUERIES, **margin, num_steps=3),
            cosines(
                lambda some: (
                    integrated_state_gradients(
                        pair, some, vectors, num_steps=3, objective="margin"
                    ).values
                )
            ),
        ),
    ):
        torch.testing.assert_close(found, expected, **CLOSE)


def test_a_weighted_change_is_change_times_gradient_and_so_what_the_move_did_to_the_loss(
    make_checkpoints: Callable[..., Checkpoints], examples: list[Example]
) -> None:
    """Its sign: negative where moving a dimension from old to new lowered the loss."""
    old, options = make_checkpoints().old, VectorOptions((3,), "last", progress=False)
    near = make_checkpoints().old
    with torch.no_grad():
        near.base_model.norm.weight.mul_(1 + 1e-6)  # the last layer moves a little, and it alone
    pair = Checkpoints(old, near)
    some = [one for one in examples if one.span[1] - one.span[0] == 1]
    weighted = weighted_changes(pair, some, options).values
    change = state_changes(pair, some, options).values
    assert torch.equal(weighted, change * state_gradients(near, some, options).values)
    with torch.no_grad():
        losses = [
            torch.stack(
                [
                    -model(torch.tensor([one.token_ids]))
                    .logits[0, one.span[0] - 1]
                    .log_softmax(dim=0)[one.token_ids[one.span[0]]]
                    for one in some
                ]
            )
            for model in (old, near)
        ]
    torch.testing.assert_close(weighted[0].sum(dim=1), losses[1] - losses[0], rtol=1e-4, atol=1e-12)


@pytest.mark.parametrize("method", ["dh", "attr", "attr-ig", "patch"])
def test_a_checkpoint_has_not_changed_from_itself_and_no_score_is_nan(
    make_checkpoints: Callable[..., Checkpoints], examples: list[Example], method: str
) -> None:
    model = make_checkpoints().old
    same = Checkpoints(model, model)
    assert (state_changes(same, examples).values == 0).all()
    with pytest.raises(AttributionError, match=r"example 0, layer 1: its .* is zero and has no"):
        METHODS[method](same, examples, QUERIES)
    if method == "patch":
        masks = torch.ones(3, 1, HIDDEN, dtype=torch.bool)
        with pytest.raises(
            AttributionError, match="query 0: both checkpoints have the same margin"
        ):
            patching_scores(same, masks, QUERIES, (1, 2, 3))
    else:
        dots = METHODS[method](same, examples, QUERIES, scoring=ScoreOptions("dot"))
        assert (dots == 0).all()


def margin_of(model: PreTrainedModel, query: Example) -> float:
    """The margin of the answer, one position after the other."""
    with torch.no_grad():
        logits = model(torch.tensor([query.token_ids])).logits[0]
    total = 0.0
    for place in range(*query.span):
        row, target = logits[place - 1].tolist(), query.token_ids[place]
        total += row.pop(target) - max(row)
    return total


def naive_patch(
    pair: Checkpoints, query: Example, layer: int, mask: Tensor, span: SpanPooling
) -> float:
    """The old model with some dimensions written in by hand; below the last layer."""
    start, stop = query.span
    places = {
        "last": [stop - 2],
        "span": list(range(start - 1, stop - 1)),
        "text": list(range(stop - 1)),
    }[span]
    with torch.no_grad():
        ids = torch.tensor([query.token_ids])
        new = pair.new(ids, output_hidden_states=True).hidden_states[layer]
    decoder: Any = pair.old.base_model
    block = (decoder.h if hasattr(decoder, "h") else decoder.layers)[layer - 1]

    def write(module: Any, args: Any, output: Tensor) -> Tensor:
        output = output.clone()
        for place in places:
            output[0, place, mask] = new[0, place, mask]
        return output

    handle = block.register_forward_hook(write)
    try:
        return margin_of(pair.old, query)
    finally:
        handle.remove()


@pytest.mark.parametrize("architecture", ARCHITECTURES)
def test_all_dimensions_of_the_last_layer_are_the_new_model_and_none_the_old(
    make_checkpoints: Callable[..., Checkpoints], architecture: str
) -> None:
    pair = make_checkpoints(architecture)
    masks = torch.stack([torch.ones(LAST, HIDDEN), torch.zeros(LAST, HIDDEN)], dim=1).bool()
    for span in ("span", "text"):
        scores = patching_scores(pair, masks, QUERIES, (1, 2, 3), PatchOptions(span=span))
        torch.testing.assert_close(scores[2, :, 0], torch.ones(2).double(), rtol=0, atol=1e-12)
        torch.testing.assert_close(scores[:, :, 1], torch.zeros(3, 2).double(), rtol=0, atol=1e-9)
        assert ((scores[:2, :, 0] - 1).abs() > 1e-3).all()  # upper blocks are still the old ones
    # The unit of the score: the change of the margin, of models that are run as they come.
    half = torch.arange(HIDDEN) < HIDDEN // 2
    shares = patching_scores(pair, half.repeat(1, 1, 1), QUERIES, (3,))[0, :, 0]
    for query, share in zip(QUERIES, shares, strict=True):
        with torch.no_grad():
            ids = torch.tensor([query.token_ids])
            states = [model.base_model(ids).last_hidden_state[0] for model in (pair.new, pair.old)]
        heads = [model.get_output_embeddings().weight for model in (pair.new, pair.old)]
        mixed = (
            states[0][:, half] @ heads[0][:, half].T + states[1][:, ~half] @ heads[1][:, ~half].T
        )
        rows = mixed[query.span[0] - 1 : query.span[1] - 1]
        targets = torch.tensor(query.token_ids[query.span[0] : query.span[1]])
        old, new = margin_of(pair.old, query), margin_of(pair.new, query)
        mixed_margin = float(logit_margins(rows, targets).detach().sum())
        expected = (mixed_margin - old) / (new - old)
        assert float(share) == pytest.approx(expected, rel=1e-8)
    # Where the answer's last token is predicted alone, what predicts the others stays old.
    last_only = patching_scores(pair, masks[2:], QUERIES, (3,), PatchOptions(span="last"))[0, :, 0]
    for query, share in zip(QUERIES, last_only, strict=True):
        final = Example(query.token_ids, (query.span[1] - 1, query.span[1]))
        whole, part = (
            margin_of(pair.new, one) - margin_of(pair.old, one) for one in (query, final)
        )
        assert float(share) == pytest.approx(part / whole, rel=1e-8)


@pytest.mark.parametrize(
    ("architecture", "span"),
    [*((name, "text") for name in ARCHITECTURES), ("olmo2", "span"), ("gpt2", "last")],
)
def test_patched_models_are_those_with_the_dimensions_written_in_by_hand(
    make_checkpoints: Callable[..., Checkpoints], architecture: str, span: SpanPooling
) -> None:
    pair = make_checkpoints(architecture)
    generator = torch.Generator().manual_seed(2)
    masks = torch.rand(2, 5, HIDDEN, generator=generator) < 0.4
    masks[:, 4] = masks[:, 1]  # the same set twice, which is run once
    results = [
        patching_scores(pair, masks, QUERIES, (2, 1), PatchOptions(50.0, span, size))
        for size in (1, 3, 64)
    ]
    for other in results[1:]:
        torch.testing.assert_close(other, results[0], **CLOSE)
    for (index, layer), (row, query), mask in itertools.product(
        enumerate((2, 1)), enumerate(QUERIES), range(5)
    ):
        old, new = margin_of(pair.old, query), margin_of(pair.new, query)
        value = naive_patch(pair, query, layer, masks[index, mask], span)
        expected = (value - old) / (new - old)
        assert float(results[0][index, row, mask]) == pytest.approx(expected, rel=1e-8, abs=1e-9)


def test_patching_scores_use_the_documents_largest_dimensions_of_each_layer(
    make_checkpoints: Callable[..., Checkpoints], examples: list[Example]
) -> None:
    pair = make_checkpoints("gpt2")
    vectors, patch = VectorOptions((3, 1), "span"), PatchOptions(25.0, "span")
    change = state_changes(pair, examples, vectors).values
    gradient = state_gradients(pair.new, examples, vectors).values
    weighted = (change * gradient).abs()
    masks = torch.zeros_like(weighted, dtype=torch.bool)
    for layer, document in itertools.product(range(2), range(len(examples))):
        masks[layer, document, weighted[layer, document].argsort()[-3:]] = True
    expected = patching_scores(pair, masks, QUERIES, (3, 1), patch)
    found = causal_patching(pair, examples, QUERIES, vectors=vectors, patch=patch)
    torch.testing.assert_close(found, expected.mean(dim=0))
    last = causal_patching(
        pair, examples, QUERIES, vectors=vectors, patch=patch, aggregation=(1.0, 0.0)
    )
    torch.testing.assert_close(last, expected[0])


def test_the_share_of_dimensions_is_rounded_up_and_ties_go_by_index() -> None:
    values = torch.tensor([[[1.0, -3.0, 2.0, 0.5, 3.0], [0.0, 0.0, 0.0, 0.0, 0.0]]])
    for percentile, chosen in (
        (1e-3, [1]), (20.0, [1]), (21.0, [1, 4]), (60.0, [1, 4, 2]), (100.0, [0, 1, 2, 3, 4]),
    ):  # fmt: skip
        mask = largest_dimensions(values, percentile)
        assert set(mask[0, 0].nonzero().flatten().tolist()) == set(chosen)
        assert mask[0, 1].tolist() == [place < len(chosen) for place in range(5)]
    assert largest_dimensions(torch.randn(1, 1, 1000), 7.0).sum() == 70
    for percentile in (0.0, -1.0, 100.1, float("nan")):
        with pytest.raises(AttributionError, match="expected a percentile"):
            largest_dimensions(values, percentile)


def test_the_readme_runs(make_checkpoints: Callable[..., Checkpoints]) -> None:
    readme = (Path(__file__).parents[1] / "README.md").read_text()
    code = readme.split("```py\n")[1].split("```")[0]
    core = Tokenizer(WordLevel({"<eos>": 0, "the": 1, "river": 2, "5": 3}, unk_token="the"))
    core.pre_tokenizer = Whitespace()
    tokenizer = PreTrainedTokenizerFast(tokenizer_object=core, eos_token="<eos>")
    pair = make_checkpoints("llama", torch.float32)
    names: dict[str, Any] = {
        "old_model": pair.old,
        "new_model": pair.new,
        "old_tokenizer": tokenizer,
        "new_tokenizer": tokenizer,
        "texts": ["the river 5", "5 the", "river"],
        "prompts": ["the river", "5"],
        "answers": ["5", "the river"],
    }
    exec(compile(code, "README.md", "exec"), names)
    assert names["scores"].shape == (2, 3)
    assert names["scores"].isfinite().all()


def test_heads_with_a_bias_and_unfit_queries_are_refused(
    make_checkpoints: Callable[..., Checkpoints], examples: list[Example]
) -> None:
    pair = make_checkpoints("gpt2")
    with pytest.raises(AttributionError, match="query 1: expected token ids"):
        causal_patching(pair, examples, [QUERIES[0], Example((3, 99), (1, 2))])
    pair.old.lm_head.bias = torch.nn.Parameter(torch.zeros(31).double())
    with pytest.raises(AttributionError, match="the head has a bias"):
        causal_patching(pair, examples, QUERIES)
