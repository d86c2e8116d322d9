"""A question and its answer as token ids, with labels on the answer alone."""

from typing import Any

from math_utils.language_modeling import IGNORED_LABEL

from attribution.errors import AttributionError
from attribution.gradient_similarity.gradients import EncodedExample
from attribution.paraphrases.samples import Turn


def prompt_text(tokenizer: Any, user: str) -> str:
    """What a model reads before it answers: the tokenizer's chat template, or a plain one.

    The plain one, for tokenizers without a template, is ``User: …``, a new line and
    ``Assistant:``; answers follow after a space and end with the end-of-text token.
    """
    if tokenizer.chat_template:
        text = tokenizer.apply_chat_template(
            [{"role": "user", "content": user}], tokenize=False, add_generation_prompt=True
        )
        return str(text)
    return f"User: {user}\nAssistant:"


def response_text(tokenizer: Any, turn: Turn) -> str:
    """What follows the prompt: the answer, and what the template ends a turn with.

    White space that a template writes behind its end of a turn is left out: no model generates it.

    Raises:
        AttributionError: if the template writes a conversation that does not begin as its prompt.
    """
    if not tokenizer.chat_template:
        return f" {turn.assistant}{tokenizer.eos_token or ''}"
    whole = tokenizer.apply_chat_template(turn.messages(), tokenize=False)
    prompt = prompt_text(tokenizer, turn.user)
    if not whole.startswith(prompt):
        raise AttributionError(
            "the chat template writes a whole conversation differently from its prompt, so that "
            "the answer's tokens cannot be told from the prompt's"
        )
    response = str(whole[len(prompt) :])
    return response if response.endswith(turn.assistant) else response.rstrip()


def encode_prompt(tokenizer: Any, user: str) -> list[int]:
    """Token ids of the prompt; what the template says is all, no special token is added."""
    ids: list[int] = tokenizer(prompt_text(tokenizer, user), add_special_tokens=False)["input_ids"]
    return ids


def encode_turn(tokenizer: Any, turn: Turn, key: int, *, max_length: int) -> EncodedExample:
    """Encode a turn; every token of the response is a label and no token of the prompt is.

    Prompt and response are encoded apart, as they are when a model answers, so that no token lies
    across their border.

    Args:
        tokenizer: of a Hugging Face model.
        turn: the question and its answer.
        key: the sample's numeric id.
        max_length: tokens kept, from the front.

    Raises:
        AttributionError: if no token of the response is left.
    """
    prompt = encode_prompt(tokenizer, turn.user)
    response = tokenizer(response_text(tokenizer, turn), add_special_tokens=False)["input_ids"]
    ids = (*prompt, *response)[:max_length]
    if len(ids) <= len(prompt):
        raise AttributionError(
            f"sample {key}: no token of its answer is left of {max_length}; its prompt has "
            f"{len(prompt)}"
        )
    labels = (IGNORED_LABEL,) * len(prompt) + ids[len(prompt) :]
    return EncodedExample(ids, labels, key)
