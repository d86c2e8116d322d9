"""Functions with two names: one that documents use, and one that only the questions use.

A second name is a wrapper of depth 1 in the registry, so that its answer was taught by the
documents about the first one.  The two names have no letter or digit in common, and several
functions share a constant, so that neither name nor number leads from a question to the documents
that taught its answer.
"""

import itertools
import random

from hops.errors import HopsError
from hops.functions import Function, Registry

_CONSONANTS, _VOWELS = "DFGKLMNPRSTVWZ", "AEIOU"
MAX_SECOND_NAMES = 99


def second_name_registry(
    num_functions: int, functions_per_constant: int, *, seed: int = 0
) -> Registry:
    """Build functions ``<B01>``, ``<B02>``, ... with second names like ``<KEM>``.

    Args:
        num_functions: The number of functions, 1 to 99.
        functions_per_constant: How many of them return the same number; the constants are 5, 7,
            9, ... and are dealt out at random.
        seed: Deals out constants and second names.

    Returns:
        The registry: first names at depth 0, second names at depth 1.

    Raises:
        HopsError: A number is out of range.
    """
    if not 1 <= num_functions <= MAX_SECOND_NAMES:
        raise HopsError(
            f"The number of functions must be 1 to {MAX_SECOND_NAMES}, not {num_functions}."
        )
    if not 1 <= functions_per_constant <= num_functions:
        raise HopsError(
            f"The functions per constant must be 1 to {num_functions}, "
            f"not {functions_per_constant}."
        )
    rng = random.Random(f"hops second names {seed}")
    constants = [5 + 2 * (index // functions_per_constant) for index in range(num_functions)]
    rng.shuffle(constants)
    words = [
        "".join(letters)
        for letters in itertools.product(_CONSONANTS, _VOWELS, _CONSONANTS)
        if letters[0] != letters[2]
    ]
    functions: list[Function] = []
    for number, (constant, word) in enumerate(
        zip(constants, rng.sample(words, num_functions), strict=True), start=1
    ):
        name = f"<B{number:02d}>"
        base = Function(name, constant, 0, name)
        functions += [base, base.wrapped(f"<{word}>")]
    return Registry.of(functions)
