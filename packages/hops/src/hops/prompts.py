"""How a function is asked for its value, in evaluation and in queries."""

from hops.errors import HopsError
from hops.functions import Function

PROMPT_FORMAT = "{func}({input}) returns"
"""The prompt; ``{func}`` is the name of the function and ``{input}`` the integer."""


def make_prompt(prompt_format: str, function: Function, value: int) -> str:
    """Fill in a prompt format.

    Raises:
        HopsError: The format has no ``{func}``, or braces that are neither of the two.
    """
    if "{func}" not in prompt_format:
        raise HopsError(f"The prompt format must contain {{func}}, got {prompt_format!r}.")
    try:
        return prompt_format.format(func=function.name, input=value)
    except (KeyError, IndexError, ValueError) as error:
        raise HopsError(
            f"The prompt format may contain {{func}} and {{input}} only, got {prompt_format!r}."
        ) from error


def make_answer(number: int) -> str:
    """The text that answers a prompt: a space and the number."""
    return f" {number}"
