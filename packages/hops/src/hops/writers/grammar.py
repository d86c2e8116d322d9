"""A seeded text grammar: templates with slots, expanded at random.

``[noun]`` in a template expands to one of the grammar's alternatives for ``noun`` (which may
hold slots of their own), and ``{name}`` is filled from the values given for the document.
Slots with a number, as in ``[arg:1]``, keep their expansion within one document, so that
``[arg:1]`` twice is the same integer twice.
"""

import random
import re
from collections.abc import Callable, Mapping, Sequence

_SLOT = re.compile(r"\[(\w+)(?::(\d+))?\]")

Producer = Callable[[random.Random], str]


class Grammar:
    """Alternatives for each slot name, drawn with a generator that the caller owns."""

    def __init__(
        self,
        rules: Mapping[str, Sequence[str]],
        producers: Mapping[str, Producer] | None = None,
    ) -> None:
        """Check that every slot named anywhere has alternatives.

        Args:
            rules: For each slot, its templates.
            producers: Slots whose text a function makes, such as integers.

        Raises:
            ValueError: A template names a slot that is not defined.
        """
        self._rules = dict(rules)
        self._producers = dict(producers or {})
        for templates in self._rules.values():
            for template in templates:
                for match in _SLOT.finditer(template):
                    if match[1] not in self._rules and match[1] not in self._producers:
                        raise ValueError(f"No alternatives for slot [{match[1]}] in {template!r}.")

    def with_producers(self, producers: Mapping[str, Producer]) -> "Grammar":
        """The same grammar with other functions behind some slots."""
        return Grammar(self._rules, {**self._producers, **producers})

    def templates(self, slot: str) -> Sequence[str]:
        """The alternatives of ``slot``, in their order."""
        return self._rules[slot]

    def expand(self, template: str, values: Mapping[str, str], rng: random.Random) -> str:
        """Expand every slot of ``template``, then fill in ``values``.

        Args:
            template: Text with ``[slots]`` and ``{values}``.
            values: What each ``{value}`` stands for.
            rng: The only source of randomness.

        Returns:
            The finished text.
        """
        remembered: dict[tuple[str, str], str] = {}

        def fill(match: re.Match[str]) -> str:
            slot, number = match[1], match[2]
            if number is None:
                return self._draw(slot, fill, rng)
            key = (slot, number)
            if key not in remembered:
                remembered[key] = self._draw(slot, fill, rng)
            return remembered[key]

        text = _SLOT.sub(fill, template)
        for name, value in values.items():
            text = text.replace("{" + name + "}", value)
        return text

    def _draw(self, slot: str, fill: Callable[[re.Match[str]], str], rng: random.Random) -> str:
        if slot in self._producers:
            return self._producers[slot](rng)
        return _SLOT.sub(fill, rng.choice(self._rules[slot]))
