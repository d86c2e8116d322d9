"""A world of a few documents, quick to train on, for the scripts over retrained models."""

from pathlib import Path

from forks import Done, Fork, script
from hops.files import sha256_of
from hops.presets import Preset
from method_script_cases import EXPERIMENTS

LDS, LEADERBOARD = EXPERIMENTS / "lds.py", EXPERIMENTS / "leaderboard.py"
TINY = Preset(
    num_functions=2,
    num_old_distractors=24,
    num_new_distractors=4,
    variations=0,
    wrapper_variations=0,
    comprehensive_docs=4,
    code_snippets=4,
    hidden_size=32,
    num_layers=1,
    old_epochs=1.0,
    new_epochs=1.0,
)


def contents(folder: Path) -> dict[str, str]:
    """Digests of the retrained models that a bank keeps, by file."""
    return {path.name: sha256_of(path) for path in (folder / "models").iterdir()}


def run(path: Path, *flags: object) -> Done:
    """A script as `uv run` would call it, in a process of its own."""
    return Fork(script(path, *flags)).wait()
