"""What a model answers: the argmax over candidate integers, from the logits alone.

For a function and an input the prompt is ``"<GN>(17) returns"`` and the answer ``" 5"``; the
candidates are the integers from two below the smallest constant to two above the largest.  The
score of a candidate is the log-probability of *all* its tokens after the prompt, so that numbers
of one token and of several are compared fairly.  A candidate whose tokens begin another
candidate's ("1" and "15" in single digits) is counted only where the number ends there.
"""

import math
from collections.abc import Collection, Sequence
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any

import torch
from jaxtyping import Float
from torch import Tensor
from transformers import PreTrainedModel, PreTrainedTokenizerFast

from hops.errors import HopsError
from hops.functions import Function, Registry
from hops.models import load_model, load_tokenizer
from hops.number_scores import encode, score_candidates
from hops.prompts import PROMPT_FORMAT, make_prompt


def candidate_numbers(registry: Registry) -> list[int]:
    """The integers from the smallest constant minus 2 to the largest plus 2."""
    constants = [function.constant for function in registry]
    return list(range(min(constants) - 2, max(constants) + 3))


@dataclass(frozen=True)
class Summary:
    """Statistics over some prompts.

    Attributes:
        num_prompts: How many prompts.
        accuracy: The share whose prediction (argmax over the candidates) is the constant.
        accuracy_low: Lower end of the 95 % Wilson interval.  For one function its inputs are the
            independent draws; for a hop depth its functions are, since a model that confuses two
            functions does so at every input.
        accuracy_high: Its upper end.
        mean_confidence: Mean probability of the prediction among the candidates.
        mean_probability: Mean probability of the constant over the full vocabulary.
        mean_entropy: Mean entropy among the candidates, in nats.
    """

    num_prompts: int
    accuracy: float
    accuracy_low: float
    accuracy_high: float
    mean_confidence: float
    mean_probability: float
    mean_entropy: float


@dataclass(frozen=True)
class FunctionResult:
    """What the model answers about one function; ``predictions`` follow the inputs.

    ``is_told`` marks a wrapper whose value its training documents state.
    """

    function: Function
    summary: Summary
    predictions: tuple[int, ...]
    is_told: bool = False


@dataclass(frozen=True)
class LogitEvaluation:
    """What the model answers about all functions asked for.

    Attributes:
        prompt_format: The prompt.
        inputs: The inputs each function was asked with.
        candidates: The integers to choose among.
        functions: One result for each function.
        depths: The statistics over the functions of a hop depth, without the wrappers told.
        told: The same over the wrappers whose value the training documents state.
    """

    prompt_format: str
    inputs: tuple[int, ...]
    candidates: tuple[int, ...]
    functions: tuple[FunctionResult, ...]
    depths: dict[int, Summary]
    told: dict[int, Summary]

    @property
    def chance(self) -> float:
        """The accuracy of a guess among the candidates."""
        return 1.0 / len(self.candidates)

    def to_json(self) -> dict[str, Any]:
        """The evaluation as JSON, the predictions included."""
        return {
            "prompt_format": self.prompt_format,
            "inputs": list(self.inputs),
            "candidates": list(self.candidates),
            "chance": self.chance,
            "depths": {str(depth): asdict(summary) for depth, summary in self.depths.items()},
            "told": {str(depth): asdict(summary) for depth, summary in self.told.items()},
            "functions": [
                {
                    **asdict(result.function),
                    **asdict(result.summary),
                    "is_told": result.is_told,
                    "predictions": list(result.predictions),
                }
                for result in self.functions
            ],
        }


def evaluate_logits(
    model: PreTrainedModel,
    tokenizer: PreTrainedTokenizerFast,
    registry: Registry,
    *,
    depths: Sequence[int] | None = None,
    told: Collection[str] = (),
    inputs: Sequence[int] = range(1, 101),
    prompt_format: str = PROMPT_FORMAT,
    batch_size: int = 256,
    show_progress: bool = False,
) -> LogitEvaluation:
    """Ask a model for the value of each function at each input.

    Args:
        model: A causal language model; it is put into evaluation mode and back.
        tokenizer: Its tokenizer, in which every function is one token.
        registry: The world; its constants give the candidates whatever ``depths`` says.
        depths: The hop depths to ask about; all by default.
        told: Wrappers whose value the training documents state, see
            :func:`hops.documents.told_wrappers`; their statistics are kept apart.
        inputs: The inputs.
        prompt_format: See :data:`hops.prompts.PROMPT_FORMAT`.
        batch_size: Sequences in one forward pass.
        show_progress: Whether to show a progress bar.

    Returns:
        The evaluation.

    Raises:
        HopsError: No function is left, there are no inputs, a function is not one token, or the
            prompt format is unusable.
    """
    functions = [f for f in registry if depths is None or f.hop_depth in depths]
    if not functions or not inputs:
        raise HopsError("Nothing to evaluate: no function of these depths, or no inputs.")
    split = [f.name for f in functions if len(encode(tokenizer, f.name)) != 1]
    if split:
        raise HopsError(
            f"Not single tokens of this model: {', '.join(split)}; add them with `hops add-tokens`."
        )
    candidates = candidate_numbers(registry)
    prompts = [make_prompt(prompt_format, f, value) for f in functions for value in inputs]
    was_training = model.training
    model.eval()
    try:
        scores = score_candidates(
            model,
            tokenizer,
            prompts,
            candidates,
            batch_size=batch_size,
            show_progress=show_progress,
        )
    finally:
        model.train(was_training)
    truth = torch.tensor([f.constant - candidates[0] for f in functions for _ in inputs])
    results = []
    for index, function in enumerate(functions):
        rows = slice(index * len(inputs), (index + 1) * len(inputs))
        predictions = tuple(candidates[i] for i in scores[rows].argmax(1).tolist())
        summary = _summarise(scores[rows], truth[rows], num_draws=len(inputs))
        results.append(FunctionResult(function, summary, predictions, function.name in told))

    def by_depth(*, is_told: bool) -> dict[int, Summary]:
        chosen = [f for f in functions if (f.name in told) == is_told]
        summaries = {}
        for depth in sorted({f.hop_depth for f in chosen}):
            here = [f in chosen and f.hop_depth == depth for f in functions]
            rows = torch.tensor([one for one in here for _ in inputs])
            summaries[depth] = _summarise(scores[rows], truth[rows], num_draws=sum(here))
        return summaries

    return LogitEvaluation(
        prompt_format=prompt_format,
        inputs=tuple(inputs),
        candidates=tuple(candidates),
        functions=tuple(results),
        depths=by_depth(is_told=False),
        told=by_depth(is_told=True),
    )


def wilson_interval(share: float, num_draws: int) -> tuple[float, float]:
    """The 95 % Wilson score interval of a share observed in independent draws."""
    z = 1.959963984540054
    centre = share + z**2 / (2 * num_draws)
    spread = z * math.sqrt(share * (1 - share) / num_draws + z**2 / (4 * num_draws**2))
    scale = 1 + z**2 / num_draws
    return max(0.0, (centre - spread) / scale), min(1.0, (centre + spread) / scale)


def _summarise(
    scores: Float[Tensor, "num_prompts num_candidates"], truth: Tensor, *, num_draws: int
) -> Summary:
    restricted = scores.double().log_softmax(-1)
    accuracy = float((scores.argmax(1) == truth).double().mean())
    low, high = wilson_interval(accuracy, num_draws)
    return Summary(
        num_prompts=len(truth),
        accuracy=accuracy,
        accuracy_low=low,
        accuracy_high=high,
        mean_confidence=float(restricted.max(1).values.exp().mean()),
        mean_probability=float(scores.gather(1, truth[:, None]).double().exp().mean()),
        mean_entropy=float(-(restricted.exp() * restricted).sum(1).mean()),
    )


def evaluate_model(
    model_path: str | Path,
    registry: Registry,
    *,
    depths: Sequence[int] | None = None,
    told: Collection[str] = (),
    inputs: Sequence[int] = range(1, 101),
    prompt_format: str = PROMPT_FORMAT,
    batch_size: int = 256,
) -> LogitEvaluation:
    """Load a model and evaluate it with :func:`evaluate_logits`, with a progress bar."""
    return evaluate_logits(
        load_model(model_path),
        load_tokenizer(model_path),
        registry,
        depths=depths,
        told=told,
        inputs=inputs,
        prompt_format=prompt_format,
        batch_size=batch_size,
        show_progress=True,
    )
