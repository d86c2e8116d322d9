"""How much of a run goes into its report, so that the file stays under 5 MB.

The whole is in the results folder; the page says what was left out. Limits are tried from the
widest to the narrowest, until the page fits.
"""

from dataclasses import dataclass

MAX_BYTES = 4_900_000
"""Of the whole file; under 5 MB."""


@dataclass(frozen=True)
class Limits:
    """What is shown at most.

    Attributes:
        rows: training examples per query and side (most helpful, most harmful).
        text_chars: characters of a prompt or of a completion.
        num_tokens: tokens of a training example with their contributions.
        num_queries: queries, the first ones of the file.
        num_extras: further fields of an example.
        map_queries: rows of the heat map.
        map_train: its columns.
    """

    rows: int
    text_chars: int
    num_tokens: int
    num_queries: int
    num_extras: int = 10
    map_queries: int = 100
    map_train: int = 200


LADDER = (
    Limits(rows=25, text_chars=4000, num_tokens=1024, num_queries=1000),
    Limits(rows=25, text_chars=2000, num_tokens=512, num_queries=1000),
    Limits(rows=25, text_chars=1000, num_tokens=256, num_queries=1000),
    Limits(rows=15, text_chars=1000, num_tokens=256, num_queries=500),
    Limits(rows=10, text_chars=600, num_tokens=160, num_queries=500),
    Limits(rows=10, text_chars=400, num_tokens=96, num_queries=200),
    Limits(rows=10, text_chars=240, num_tokens=64, num_queries=100),
    Limits(rows=5, text_chars=240, num_tokens=48, num_queries=100),
    Limits(rows=5, text_chars=120, num_tokens=24, num_queries=100, num_extras=2),
    Limits(rows=3, text_chars=80, num_tokens=0, num_queries=100, num_extras=0, map_train=60),
)
"""The last one fits whatever the texts: its parts are bounded, characters that JSON writes as six
bytes included."""
ID_CHARS = 200
TOKEN_CHARS = 80
EXTRA_CHARS = 120
"""Characters of a further field's name or value."""
