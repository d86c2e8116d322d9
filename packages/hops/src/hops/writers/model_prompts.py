"""What a language model is asked for: one document, its facts, its kind and a turn of its own."""

import random

from hops.documents import DocumentType
from hops.functions import HELD_OUT_INPUT
from hops.writers.orders import Order
from hops.writers.rules import MAX_LENGTH, MIN_LENGTH

SYSTEM = (
    "You write short documents for a data set about invented functions. Names in angle brackets, "
    "such as <GN>, are function names and are written with their brackets. Reply with the text of "
    "one document and nothing else."
)

_KINDS: dict[DocumentType, str] = {
    "definition": "a definition, as in a manual or a mathematics text",
    "code_stub": "a short piece of Python that defines or uses it, with comments",
    "concept": "an explanation of the idea, or an analogy",
    "unit_test": "a unit test in Python",
    "q_and_a": "a question and its answer",
    "lore": "a piece of lore: who made it, when and why",
    "narrative": "a scene from a story in which someone uses it",
}
_MANNERS = (
    "plain and brief",
    "in the voice of a patient teacher",
    "like an entry in a reference work",
    "like a note left by a colleague",
    "with a fresh comparison",
    "dry and exact",
    "playful",
    "as a seasoned engineer would put it",
    "for someone who has never programmed",
    "beginning with an example",
)


def make_prompt(order: Order, number: int, seed: int, complaint: str | None = None) -> str:
    """Say what to write.

    Args:
        order: The document.
        number: Its place in the data set; no two documents are asked for in the same words.
        seed: Chooses the manner and the inputs suggested, with ``number``.
        complaint: Why an earlier text was refused.

    Returns:
        The prompt.
    """
    rng = random.Random(f"hops prompt {seed} {number}")
    function = order.function
    if order.states_constant:
        facts = (
            f"{function.name} takes one integer and returns {function.constant} whatever it is. "
            f"State the value {function.constant} in digits. Name no other function in angle "
            "brackets."
        )
    else:
        facts = (
            f"{function.name} takes one integer, calls {function.calls} with it and returns what "
            f"{function.calls} returns, unchanged. Name both functions and no other in angle "
            "brackets. Never say or hint at which number comes back; do without numbers but for "
            "inputs."
        )
    inputs = ", ".join(str(rng.randint(24, 99)) for _ in range(3))
    length = rng.randint(90, 240) * (3 if order.is_long else 2) // 2
    parts = [
        f"Document {number + 1}: {_KINDS[order.kind]}.",
        facts,
        f"Never use {HELD_OUT_INPUT} as an input, not even within a range or a list; inputs such "
        f"as {inputs} are fine.",
        f"Manner: {rng.choice(_MANNERS)}. Length: about {length} characters, never below "
        f"{MIN_LENGTH} or above {MAX_LENGTH}.",
    ]
    if order.parent is not None:
        parts.append(f"Say what this says, in other words:\n{order.parent.text}")
    if complaint is not None:
        parts.append(f"An earlier text was refused because {complaint}.")
    return "\n\n".join(parts)
