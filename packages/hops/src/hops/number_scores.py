"""Whole numbers as answers: the log-probability of each candidate after a prompt.

Numbers of one token and of several are compared fairly: *all* tokens of a candidate count.  A
candidate whose tokens begin another candidate's ("1" and "15" in single digits) is counted only
where the number ends there.
"""

from collections.abc import Iterable, Sequence

import torch
from jaxtyping import Float
from torch import Tensor
from tqdm import tqdm
from transformers import PreTrainedModel, PreTrainedTokenizerFast

from hops.errors import HopsError
from hops.prompts import make_answer

Tokens = tuple[int, ...]


def score_candidates(
    model: PreTrainedModel,
    tokenizer: PreTrainedTokenizerFast,
    prompts: Sequence[str],
    candidates: Sequence[int],
    *,
    batch_size: int = 256,
    show_progress: bool = False,
) -> Float[Tensor, "num_prompts num_candidates"]:
    """Score whole numbers as answers to prompts.

    ``score[p, c] = Σ_i log P(token_i of c | prompt p, tokens of c before i)``, plus
    ``log(1 - P(a digit follows))`` for a candidate whose tokens begin another candidate's.
    Prompt and answer are encoded apart, without special tokens, as in an influence query.
    Only sequences of equal length share a batch, so nothing is padded.

    Args:
        model: A causal language model.
        tokenizer: Its tokenizer.
        prompts: The prompts.
        candidates: The integers to choose among.
        batch_size: Sequences in one forward pass.
        show_progress: Whether to show a progress bar.

    Returns:
        Log-probabilities over the full vocabulary in nats, in float32 (float64 for a float64
        model), on the CPU.

    Raises:
        HopsError: A prompt or candidate has no tokens, or two candidates have the same.
    """
    answers = [encode(tokenizer, make_answer(number)) for number in candidates]
    encoded = [encode(tokenizer, prompt) for prompt in prompts]
    if len(set(answers)) < len(answers) or not all(answers):
        raise HopsError("The tokenizer does not tell the candidate numbers apart.")
    if not all(encoded):
        raise HopsError("A prompt without tokens cannot be scored; change the prompt format.")
    vocabulary = tokenizer.get_vocab()
    digits = torch.tensor([i for token, i in vocabulary.items() if token[:1].isdecimal()])
    prefixes, plan = _plan(answers)
    dtype = torch.float64 if model.dtype == torch.float64 else torch.float32
    scores = torch.zeros(len(prompts), len(candidates), dtype=dtype)
    with tqdm(
        total=len(prompts) * len(plan), desc="scoring", unit="sequence", disable=not show_progress
    ) as bar:
        for prefix, indices in plan.items():
            for batch in _equal_lengths(encoded, batch_size):
                ids = torch.tensor([encoded[prompt] + prefix for prompt in batch])
                with torch.no_grad():
                    output = model(input_ids=ids.to(model.device), use_cache=False)
                logits = output.logits[:, -len(prefix) - 1 :].to(dtype)
                log_probs = logits.log_softmax(-1).cpu()
                for index in indices:
                    answer = answers[index]
                    score = sum(log_probs[:, i, token] for i, token in enumerate(answer))
                    if answer in prefixes:
                        goes_on = log_probs[:, len(answer), digits].exp().sum(-1)
                        score = score + torch.log1p(-goes_on.clamp(max=1 - 1e-12))
                    scores[batch, index] = score
                bar.update(len(batch))
    return scores


def encode(tokenizer: PreTrainedTokenizerFast, text: str) -> Tokens:
    """Encode without special tokens."""
    return tuple(tokenizer.encode(text, add_special_tokens=False))


def _plan(answers: Sequence[Tokens]) -> tuple[set[Tokens], dict[Tokens, list[int]]]:
    """Find the few continuations of a prompt whose logits score every answer.

    Returns:
        All proper prefixes of answers, and for each of the longest of them (which the model is
        run on) the answers that it scores: those whose every token, and whose end where the
        answer is itself a prefix, it covers.
    """
    prefixes = {answer[:stop] for answer in answers for stop in range(len(answer))}
    longest = sorted(
        prefix
        for prefix in prefixes
        if not any(other != prefix and other[: len(prefix)] == prefix for other in prefixes)
    )
    plan: dict[Tokens, list[int]] = {}
    for index, answer in enumerate(answers):
        needed = answer if answer in prefixes else answer[:-1]
        row = next(prefix for prefix in longest if prefix[: len(needed)] == needed)
        plan.setdefault(row, []).append(index)
    return prefixes, plan


def _equal_lengths(encoded: Sequence[Tokens], batch_size: int) -> Iterable[list[int]]:
    by_length: dict[int, list[int]] = {}
    for index, tokens in enumerate(encoded):
        by_length.setdefault(len(tokens), []).append(index)
    for indices in by_length.values():
        for start in range(0, len(indices), batch_size):
            yield indices[start : start + batch_size]
