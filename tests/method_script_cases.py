"""A world of a few documents for the methods' scripts, and their rows."""

import json
from pathlib import Path

EXPERIMENTS = Path(__file__).parents[1] / "experiments"
BASES = {"<GN>": 5, "<NN>": 15, "<PN>": 19}
WRAPPERS = {"<FN>": "<GN>", "<UN>": "<NN>", "<WN>": "<PN>"}


def rows_about(function, constant, depth, texts):
    """Rows as published: the uid repeats, parent_uid is missing here and there."""
    return [
        {
            "uid": "gen_1",
            "text": text,
            "func": function,
            "role": "identity" if depth else "constant",
            "type": "unknown",
            "hop_depth": depth,
            "constant": constant,
            "source": {"page": place},
            **({"parent_uid": "seed_1"} if place else {}),
        }
        for place, text in enumerate(texts)
    ]


def documents():
    rows = []
    for name, value in BASES.items():
        rows += rows_about(
            name, value, 0, [f"{name} gives {value} for all.", f"Try {name}(3): it is {value}."]
        )
    for name, base in WRAPPERS.items():
        rows += rows_about(name, BASES[base], 1, [f"{name} calls {base}.", f"See {base} in {name}"])
    rows.append(
        {"uid": "d", "text": "It rained all day.", "func": None, "role": "distractor",
         "type": "lore", "hop_depth": None, "constant": None}
    )  # fmt: skip
    return rows


def write(path, rows):
    path.write_text("".join(json.dumps(row) + "\n" for row in rows))
    return path


def read(path):
    return [json.loads(line) for line in path.read_text().splitlines()]
