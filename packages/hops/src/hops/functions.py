"""The functions of a HOPS world: constant base functions and the wrappers that call them.

A base function returns its constant whatever its input; a wrapper returns what its base
returns.  The published world has the ten pairs of :data:`PUBLISHED_PAIRS`; larger registries
name their functions ``<B01>``... and ``<C01>``...
"""

from collections.abc import Iterator
from dataclasses import dataclass
from typing import Literal

from hops.errors import HopsError

Role = Literal["constant", "identity", "distractor"]

HELD_OUT_INPUT = 5
"""No document applies a base function to this input."""


@dataclass(frozen=True)
class Function:
    """One function of the world.

    Attributes:
        name: The whole name, which is a single token: ``"<GN>"``.
        constant: What every call returns.
        hop_depth: 0 for a base function, 1 for a wrapper of one.
        base: The base function whose documents teach the constant (its own name at depth 0).
    """

    name: str
    constant: int
    hop_depth: int
    base: str

    @property
    def role(self) -> Literal["constant", "identity"]:
        """The role of the documents about this function."""
        return "constant" if self.hop_depth == 0 else "identity"


@dataclass(frozen=True)
class FunctionPair:
    """A base function with its wrapper, where it has one."""

    base: Function
    wrapper: Function | None


@dataclass(frozen=True)
class Registry:
    """The functions of one world, in a fixed order."""

    pairs: tuple[FunctionPair, ...]

    @property
    def bases(self) -> tuple[Function, ...]:
        """The base functions, in registry order."""
        return tuple(pair.base for pair in self.pairs)

    @property
    def wrappers(self) -> tuple[Function, ...]:
        """The wrappers, in the order of their bases."""
        return tuple(pair.wrapper for pair in self.pairs if pair.wrapper is not None)

    @property
    def names(self) -> tuple[str, ...]:
        """All names: the bases, then the wrappers."""
        return tuple(function.name for function in self)

    def __iter__(self) -> Iterator[Function]:
        yield from self.bases
        yield from self.wrappers

    def __getitem__(self, name: str) -> Function:
        for function in self:
            if function.name == name:
                return function
        raise KeyError(name)

    def __contains__(self, name: object) -> bool:
        return name in self.names


def make_pair(base_name: str, wrapper_name: str | None, constant: int) -> FunctionPair:
    """Build the pair in which ``wrapper_name``, where there is one, calls ``base_name``."""
    wrapper = Function(wrapper_name, constant, 1, base_name) if wrapper_name else None
    return FunctionPair(Function(base_name, constant, 0, base_name), wrapper)


PUBLISHED_PAIRS = tuple(
    make_pair(f"<{base}N>", f"<{wrapper}N>", constant)
    for base, wrapper, constant in zip("GJKLMNOPQR", "FIHSTUVWXY", range(5, 25, 2), strict=True)
)
"""The ten published pairs: ``<GN>`` (5) with ``<FN>``, ..., ``<RN>`` (23) with ``<YN>``."""


def make_registry(num_pairs: int = 10) -> Registry:
    """Build the registry of ``num_pairs`` base functions and as many wrappers.

    Up to ten pairs are the first published ones.  A larger registry is named ``<B01>`` with
    ``<C01>``, ``<B02>`` with ``<C02>``, ..., and its constants are 5, 7, 9, ... as well.

    Args:
        num_pairs: The number of base functions, 1 to 99.

    Returns:
        The registry.

    Raises:
        HopsError: ``num_pairs`` is outside 1..99.
    """
    if not 1 <= num_pairs <= 99:
        raise HopsError(f"The number of function pairs must be 1 to 99, not {num_pairs}.")
    if num_pairs <= len(PUBLISHED_PAIRS):
        return Registry(PUBLISHED_PAIRS[:num_pairs])
    return Registry(
        tuple(
            make_pair(f"<B{number:02d}>", f"<C{number:02d}>", 3 + 2 * number)
            for number in range(1, num_pairs + 1)
        )
    )


def parse_pattern(pattern: str, registry: Registry) -> tuple[str, ...]:
    """Read an interleaving pattern as function names.

    Args:
        pattern: Letters, each standing for ``<letter N>`` (``"GJF"`` is ``<GN> <JN> <FN>``), or
            names without their angle brackets separated by commas (``"B01,B02,C01"``).
        registry: The functions that may be named.

    Returns:
        The names, in the order of the pattern.

    Raises:
        HopsError: The pattern is empty or names a function that is not in the registry.
    """
    if "," in pattern:
        names = tuple(f"<{part.strip().strip('<>')}>" for part in pattern.split(","))
    else:
        names = tuple(f"<{letter}N>" for letter in pattern if not letter.isspace())
    unknown = sorted(set(names) - set(registry.names))
    if not names or unknown:
        raise HopsError(
            f"The pattern {pattern!r} names {', '.join(unknown) or 'no function'}; "
            f"expected some of {', '.join(registry.names)}."
        )
    return names


def default_pattern(num_functions: int, registry: Registry) -> tuple[str, ...]:
    """Give the published interleaving: all bases twice, then all wrappers.

    Args:
        num_functions: Base functions and wrappers together (20 for the published set).
        registry: The functions to take the first pairs of.

    Returns:
        The names of one cycle.

    Raises:
        HopsError: ``num_functions`` is odd, not positive, or more than the registry has.
    """
    if num_functions < 2 or num_functions % 2 or num_functions > len(registry.names):
        raise HopsError(
            f"The number of functions must be even, 2 to {len(registry.names)} here, "
            f"not {num_functions}."
        )
    half = num_functions // 2
    bases = tuple(function.name for function in registry.bases[:half])
    wrappers = tuple(function.name for function in registry.wrappers[:half])
    return bases + bases + wrappers
