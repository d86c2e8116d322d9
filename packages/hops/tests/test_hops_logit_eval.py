"""The logit evaluation against a naive loop, for numbers of one token and of several."""

import math
from types import SimpleNamespace

import pytest
import torch
from hops.errors import HopsError
from hops.functions import make_registry
from hops.logit_eval import (
    candidate_numbers,
    evaluate_logits,
    wilson_interval,
)
from hops.models import build_tiny_model, train_tokenizer
from hops.number_scores import score_candidates
from hops.prompts import make_prompt
from hops.tokens import add_function_tokens
from hops.writers.ordinary import write_distractors
from scipy.stats import binomtest

REGISTRY = make_registry(10)
LARGE = make_registry(52)  # constants up to 107, so that "10" begins "100"
TEXTS = [doc.text for doc in write_distractors(120, seed=0)]


def world(*, split_numbers: bool, vocab_size: int = 500, registry=REGISTRY):
    tokenizer = train_tokenizer(TEXTS, vocab_size=vocab_size, split_numbers=split_numbers)
    model = build_tiny_model("tiny-olmo2", tokenizer, hidden_size=32, num_layers=2, seed=0)
    add_function_tokens(model, tokenizer, registry)
    return model.double().eval(), tokenizer


def naive_score(model, tokenizer, prompt: str, number: int, candidates: list[int]) -> float:
    """One candidate at a time, one token at a time."""

    def encode(text):
        return tokenizer.encode(text, add_special_tokens=False)

    def next_log_probs(ids):
        with torch.no_grad():
            return model(input_ids=torch.tensor([ids])).logits[0, -1].log_softmax(-1)

    ids, answer = encode(prompt), encode(f" {number}")
    score = 0.0
    for token in answer:
        score += float(next_log_probs(ids)[token])
        ids = [*ids, token]
    others = [encode(f" {other}") for other in candidates if other != number]
    if any(other[: len(answer)] == answer for other in others):
        digits = [i for token, i in tokenizer.get_vocab().items() if token[0] in "0123456789"]
        score += math.log1p(-sum(math.exp(float(next_log_probs(ids)[i])) for i in digits))
    return score


@pytest.mark.parametrize("split_numbers", [False, True])
@pytest.mark.parametrize("registry", [REGISTRY, LARGE], ids=["two digits", "three digits"])
def test_whole_numbers_are_scored_as_by_a_naive_loop(split_numbers, registry):
    model, tokenizer = world(split_numbers=split_numbers, registry=registry)
    candidates = candidate_numbers(registry)
    lengths = {len(tokenizer.encode(f" {n}", add_special_tokens=False)) for n in candidates}
    assert len(lengths) > 1  # otherwise nothing of interest is compared
    prompts = [
        make_prompt("{func}({input}) returns", registry.bases[i], value)
        for i, value in ((0, 5), (1, 17), (2, 1234))
    ]
    scores = score_candidates(model, tokenizer, prompts, candidates)
    chosen = [*range(12), len(candidates) - 1, candidates.index(10)]
    for row, prompt in enumerate(prompts):
        for column in chosen:
            expected = naive_score(model, tokenizer, prompt, candidates[column], candidates)
            assert float(scores[row, column]) == pytest.approx(expected, abs=1e-10)


def test_batches_do_not_change_the_scores():
    model, tokenizer = world(split_numbers=True)
    prompts = [f"<GN>({value}) returns" for value in (1, 22, 333, 4, 55, 6666, 7)]
    candidates = candidate_numbers(REGISTRY)
    whole = score_candidates(model, tokenizer, prompts, candidates, batch_size=256)
    single = score_candidates(model, tokenizer, prompts, candidates, batch_size=1)
    backwards = score_candidates(model, tokenizer, prompts[::-1], candidates, batch_size=2)
    torch.testing.assert_close(whole, single, rtol=0, atol=1e-11)
    torch.testing.assert_close(whole, backwards.flip(0), rtol=0, atol=1e-11)


def test_the_probabilities_of_all_whole_numbers_are_disjoint():
    """Numbers of any length that end where they end cannot have more than all the mass."""
    model, tokenizer = world(split_numbers=True)
    scores = score_candidates(model, tokenizer, ["<GN>(17) returns"], list(range(1000)))
    # Three-digit numbers are no prefix of a candidate; all others end, so all are disjoint.
    assert float(scores.exp().sum()) <= 1.0


def test_an_oracle_is_right_everywhere_and_a_constant_guess_once():
    registry = make_registry(2)  # constants 5 and 7, candidates 3 to 9
    tokenizer = train_tokenizer([" 3 4 5 6 7 8 9"] * 9, vocab_size=300)
    tokenizer.add_tokens(list(registry.names))
    answer = {
        f.name: tokenizer.encode(f" {f.constant}", add_special_tokens=False) for f in registry
    }
    assert all(len(tokens) == 1 for tokens in answer.values())

    def oracle(answers):
        """A model that gives the first token of ``answers(function)`` the logit 5, others 0."""
        model = build_tiny_model("tiny-olmo2", tokenizer, hidden_size=32, num_layers=1).double()

        def forward(input_ids, use_cache):
            logits = torch.zeros(*input_ids.shape, len(tokenizer), dtype=torch.float64)
            for row, ids in enumerate(input_ids.tolist()):
                logits[row, :, answers(tokenizer.decode(ids[:1]))[0]] = 5.0
            return SimpleNamespace(logits=logits)

        model.forward = forward
        return model

    sure = evaluate_logits(oracle(answer.get), tokenizer, registry, inputs=range(1, 11))
    assert all(result.summary.accuracy == 1.0 for result in sure.functions)
    size, num_candidates = len(tokenizer), 7
    summary = sure.depths[0]
    assert summary.mean_probability == pytest.approx(math.exp(5) / (math.exp(5) + size - 1))
    confidence = math.exp(5) / (math.exp(5) + num_candidates - 1)
    assert summary.mean_confidence == pytest.approx(confidence)
    rest = (1 - confidence) / (num_candidates - 1)
    entropy = -confidence * math.log(confidence) - (num_candidates - 1) * rest * math.log(rest)
    assert summary.mean_entropy == pytest.approx(entropy)

    always_seven = evaluate_logits(
        oracle(lambda _: answer["<JN>"]), tokenizer, registry, inputs=range(1, 11)
    )
    by_name = {result.function.name: result for result in always_seven.functions}
    assert by_name["<GN>"].summary.accuracy == 0.0
    assert set(by_name["<GN>"].predictions) == {7}
    assert by_name["<JN>"].summary.accuracy == 1.0
    assert always_seven.depths[0].accuracy == 0.5
    assert always_seven.depths[0].accuracy_low == pytest.approx(wilson_interval(0.5, 2)[0])


def test_depths_and_model_state_are_respected():
    model, tokenizer = world(split_numbers=False)
    model.train()
    evaluation = evaluate_logits(model, tokenizer, REGISTRY, depths=(1,), inputs=(5,))
    assert model.training
    assert set(evaluation.depths) == {1}
    assert [r.function for r in evaluation.functions] == list(REGISTRY.wrappers)
    assert evaluation.chance == pytest.approx(1 / 23)
    assert evaluation.to_json()["candidates"] == list(range(3, 26))


def test_wrappers_whose_value_was_told_are_counted_apart():
    model, tokenizer = world(split_numbers=False)
    told = {"<FN>", "<IN>", "<YN>"}
    whole = evaluate_logits(model, tokenizer, REGISTRY, inputs=(5, 17))
    apart = evaluate_logits(model, tokenizer, REGISTRY, inputs=(5, 17), told=told)
    assert {r.function.name for r in apart.functions if r.is_told} == told
    assert [r.summary for r in apart.functions] == [r.summary for r in whole.functions]
    assert whole.told == {}
    assert apart.depths[0] == whole.depths[0]
    assert (apart.depths[1].num_prompts, apart.told[1].num_prompts) == (14, 6)
    assert set(apart.told) == {1}
    for field in ("accuracy", "mean_probability", "mean_entropy"):
        parts = 14 * getattr(apart.depths[1], field) + 6 * getattr(apart.told[1], field)
        assert parts / 20 == pytest.approx(getattr(whole.depths[1], field), abs=1e-12)
    assert apart.to_json()["told"]["1"]["num_prompts"] == 6


def test_what_cannot_be_evaluated_is_refused():
    model, tokenizer = world(split_numbers=False)
    with pytest.raises(HopsError, match=r"<B01>.*add-tokens"):
        evaluate_logits(model, tokenizer, make_registry(11))
    with pytest.raises(HopsError, match="Nothing"):
        evaluate_logits(model, tokenizer, REGISTRY, depths=(4,))
    with pytest.raises(HopsError, match=r"must contain \{func\}"):
        evaluate_logits(model, tokenizer, REGISTRY, prompt_format="what?")
    with pytest.raises(HopsError, match="only"):
        evaluate_logits(model, tokenizer, REGISTRY, prompt_format="{func} {other}")


@pytest.mark.parametrize(("right", "draws"), [(0, 10), (3, 10), (10, 10), (95, 100)])
def test_the_interval_is_wilsons(right, draws):
    expected = binomtest(right, draws).proportion_ci(method="wilson")
    low, high = wilson_interval(right / draws, draws)
    assert low == pytest.approx(expected.low, abs=1e-12)
    assert high == pytest.approx(expected.high, abs=1e-12)
