"""The functions of a HOPS world: constant base functions and the chains of wrappers above them.

A base function returns its constant whatever its input; a wrapper returns what the function one
level below it returns, and so the constant of the base at the bottom of its chain.  The
published world has the ten chains ``<FN>`` → ``<GN>``, ...; generated ones name their functions
``<B01>``, ``<C01>`` (which calls ``<B01>``), ``<D01>`` (which calls ``<C01>``), ...
"""

from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from functools import cached_property
from itertools import accumulate
from typing import Literal

from hops.errors import HopsError

Role = Literal["constant", "identity", "distractor"]

HELD_OUT_INPUT = 5
"""No document applies a base function to this input."""

MAX_FUNCTIONS, MAX_HOPS = 99, 24
"""The largest generated world: names have two digits, and a letter from B to Z for the depth."""


@dataclass(frozen=True)
class Function:
    """One function of the world.

    Attributes:
        name: The whole name, which is a single token: ``"<GN>"``.
        constant: What every call returns.
        hop_depth: 0 for a base function, 1 for a wrapper of one, 2 for a wrapper of that, ...
        base: The base function whose documents teach the constant (its own name at depth 0).
        calls: The function one level below, which a wrapper calls; None for a base function.
    """

    name: str
    constant: int
    hop_depth: int
    base: str
    calls: str | None = None

    @property
    def role(self) -> Literal["constant", "identity"]:
        """The role of the documents about this function."""
        return "constant" if self.hop_depth == 0 else "identity"

    def wrapped(self, name: str) -> "Function":
        """The wrapper of this function that is called ``name``."""
        return Function(name, self.constant, self.hop_depth + 1, self.base, self.name)


@dataclass(frozen=True)
class Registry:
    """The functions of one world, in depth order: all bases, all their wrappers, and so on.

    Build it with :meth:`of`, which puts the functions in that order.

    Attributes:
        functions: Every function; what a wrapper calls stands before it.
    """

    functions: tuple[Function, ...]

    @classmethod
    def of(cls, functions: Sequence[Function]) -> "Registry":
        """Put functions in depth order; within a depth, in the order of what they call.

        Raises:
            HopsError: A name occurs twice, or a wrapper calls a function that is not there, is
                not one level below it, or returns something else.
        """
        ordered: list[Function] = []
        place: dict[str | None, int] = {None: 0}
        for depth in sorted({function.hop_depth for function in functions}):
            here = [function for function in functions if function.hop_depth == depth]
            for function in here:
                _check_call(function, ordered)
            for function in sorted(here, key=lambda one: place[one.calls]):
                if function.name in place:
                    raise HopsError(f"Two functions are called {function.name}.")
                place[function.name] = len(place)
                ordered.append(function)
        return cls(tuple(ordered))

    @property
    def bases(self) -> tuple[Function, ...]:
        """The base functions, in registry order."""
        return self.at_depth(0)

    @property
    def wrappers(self) -> tuple[Function, ...]:
        """The wrappers of every depth, in depth order."""
        return tuple(function for function in self.functions if function.hop_depth > 0)

    @property
    def names(self) -> tuple[str, ...]:
        """All names, in depth order."""
        return tuple(function.name for function in self.functions)

    @property
    def max_hops(self) -> int:
        """The depth of the deepest wrapper; 0 where there are only base functions."""
        return max((function.hop_depth for function in self.functions), default=0)

    def at_depth(self, hop_depth: int) -> tuple[Function, ...]:
        """The functions of one depth, in registry order."""
        return tuple(function for function in self.functions if function.hop_depth == hop_depth)

    def chain(self, name: str) -> tuple[Function, ...]:
        """The functions whose documents teach the answer of one: itself, what it calls, ...

        Args:
            name: A function of the registry.

        Returns:
            The function, the one it calls, and so on down to its base.
        """
        function = self[name]
        return (function, *(self.chain(function.calls) if function.calls else ()))

    @cached_property
    def _by_name(self) -> dict[str, Function]:
        return {function.name: function for function in self.functions}

    def __iter__(self) -> Iterator[Function]:
        return iter(self.functions)

    def __getitem__(self, name: str) -> Function:
        return self._by_name[name]

    def __contains__(self, name: object) -> bool:
        return name in self._by_name


def _check_call(function: Function, below: Sequence[Function]) -> None:
    if function.hop_depth == 0:
        if function.calls is not None or function.base != function.name:
            raise HopsError(f"{function.name} is a base function and so calls no other.")
        return
    called = next((one for one in below if one.name == function.calls), None)
    if called is None or called.wrapped(function.name) != function:
        raise HopsError(
            f"{function.name} is a wrapper of depth {function.hop_depth} and so must call a "
            f"function of depth {function.hop_depth - 1} with its constant and base, "
            f"not {called or function.calls}."
        )


PUBLISHED = Registry.of(
    [
        function
        for letter, wrapper, constant in zip(
            "GJKLMNOPQR", "FIHSTUVWXY", range(5, 25, 2), strict=True
        )
        for base in [Function(f"<{letter}N>", constant, 0, f"<{letter}N>")]
        for function in (base, base.wrapped(f"<{wrapper}N>"))
    ]
)
"""The published world: ``<GN>`` (5) with ``<FN>``, ..., ``<RN>`` (23) with ``<YN>``."""


def make_registry(num_functions: int = 10, max_hops: int = 1) -> Registry:
    """Build a world of ``num_functions`` base functions with ``max_hops`` wrappers above each.

    Up to ten bases with at most one wrapper each are the first published ones.  A larger or
    deeper world is named ``<B01>``, ``<C01>``, ``<D01>``, ..., ``<B02>``, ..., and its constants
    are 5, 7, 9, ... as well.

    Args:
        num_functions: The number of base functions, 1 to 99.
        max_hops: The number of wrappers above each base function, 0 to 24.

    Returns:
        The registry.

    Raises:
        HopsError: A number is out of range.
    """
    if not 1 <= num_functions <= MAX_FUNCTIONS:
        raise HopsError(
            f"The number of base functions must be 1 to {MAX_FUNCTIONS}, not {num_functions}."
        )
    if not 0 <= max_hops <= MAX_HOPS:
        raise HopsError(f"The largest hop depth must be 0 to {MAX_HOPS}, not {max_hops}.")
    if num_functions <= len(PUBLISHED.bases) and max_hops <= 1:
        bases = {function.name for function in PUBLISHED.bases[:num_functions]}
        kept = [one for one in PUBLISHED if one.base in bases and one.hop_depth <= max_hops]
        return Registry.of(kept)
    functions: list[Function] = []
    for number in range(1, num_functions + 1):
        name = f"<B{number:02d}>"
        functions.append(Function(name, 3 + 2 * number, 0, name))
        for depth in range(1, max_hops + 1):
            functions.append(functions[-1].wrapped(f"<{chr(ord('B') + depth)}{number:02d}>"))
    return Registry.of(functions)


def function_name(word: str) -> str:
    """Read a name as typed: ``<GN>``, ``GN`` and ``G`` are ``<GN>``, ``B01`` is ``<B01>``."""
    bare = word.strip().strip("<>")
    return f"<{bare}N>" if len(bare) == 1 else f"<{bare}>"


def parse_pattern(pattern: str, registry: Registry) -> tuple[str, ...]:
    """Read an interleaving pattern as function names.

    Args:
        pattern: Letters, each standing for ``<letter N>`` (``"GJF"`` is ``<GN> <JN> <FN>``), or
            names separated by commas (``"B01,B02,C01"``).
        registry: The functions that may be named.

    Returns:
        The names, in the order of the pattern.

    Raises:
        HopsError: The pattern is empty or names a function that is not in the registry.
    """
    letters = "".join(pattern.split())
    words = pattern.split(",") if "," in pattern or "<" in pattern else list(letters)
    names = tuple(function_name(word) for word in words)
    unknown = sorted(set(names) - set(registry.names))
    if not names or unknown:
        raise HopsError(
            f"The pattern {pattern!r} names {', '.join(unknown) or 'no function'}; "
            f"expected some of {', '.join(registry.names)}."
        )
    return names


def default_pattern(num_hops: int | None, registry: Registry) -> tuple[str, ...]:
    """Give the published interleaving: all bases twice, then the wrappers depth by depth.

    Args:
        num_hops: Base functions and wrappers together (20 for the published set); None for all
            of the registry.  The first bases take part, each with all its wrappers.
        registry: The functions.

    Returns:
        The names of one cycle.

    Raises:
        HopsError: No number of bases comes with their wrappers to ``num_hops``, or there are no
            functions.
    """
    sizes = [sum(one.base == base.name for one in registry) for base in registry.bases]
    totals = list(accumulate(sizes))
    if not totals:
        raise HopsError("There is no function to interleave.")
    if num_hops is None:
        num_hops = totals[-1]
    if num_hops not in totals:
        raise HopsError(
            f"{num_hops} functions are not some bases with all their wrappers: "
            f"expected {', '.join(map(str, totals[:3]))}{', ...' * (len(totals) > 3)} "
            f"up to {totals[-1]}."
        )
    taken = {base.name for base in registry.bases[: totals.index(num_hops) + 1]}
    chosen = [function for function in registry if function.base in taken]
    bases = tuple(function.name for function in chosen if function.hop_depth == 0)
    return bases + tuple(function.name for function in chosen)
