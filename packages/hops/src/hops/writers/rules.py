"""What every written text must keep to, whoever writes it.

The offline writer keeps these rules by construction; the replies of a language model are checked
with :func:`broken_rule` and asked for again.
"""

import re

from hops.functions import HELD_OUT_INPUT
from hops.leaks import applied_functions
from hops.numerals import mentions_number, numerals_in
from hops.writers.orders import Order

MIN_LENGTH, MAX_LENGTH = 50, 545
"""The shortest and the longest text of the published set, in characters."""


def broken_rule(text: str, order: Order) -> str | None:
    """Say which rule a text breaks.

    Args:
        text: The text.
        order: What was ordered.

    Returns:
        One sentence, which can be shown to the writer; None if the text is as ordered.
    """
    function = order.function
    if not MIN_LENGTH <= len(text) <= MAX_LENGTH:
        return f"it has {len(text)} characters, not {MIN_LENGTH} to {MAX_LENGTH}"
    allowed = {function.name}
    if not order.states_constant and function.calls is not None:
        allowed.add(function.calls)
    named = set(re.findall(r"<\w+>", text))
    if named != allowed:
        wrong = ", ".join(sorted(named ^ allowed))
        return f"it must name {' and '.join(sorted(allowed))} and no other function: {wrong}"
    if order.states_constant:
        if not mentions_number(text, function.constant):
            return f"it does not state the value {function.constant}"
    elif any(one.value == function.constant for one in numerals_in(text)):
        return f"it uses the number {function.constant}, which it must not"
    if applied_functions(text, HELD_OUT_INPUT):
        return f"it calls a function with the input {HELD_OUT_INPUT}, itself or in a loop"
    return None
