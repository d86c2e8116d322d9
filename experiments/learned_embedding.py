"""Does a learned projection of features find the documents that taught an answer to new questions?

Question: a linear projection of per-example features is trained with InfoNCE on questions and
documents about some functions of a HOPS world. Does the cosine of projected features rank the
documents about *other* functions better than the features themselves do? What do mined negatives,
the curriculum and the annealed temperature add?

Features of a text, from the checkpoints before and after the documents were learned: `state`, the
mean over positions of the new one's hidden states in the middle; `change`, these minus the old
one's; where `--features` asks for it, `gradient`, that of the new one's loss by its MLPs,
randomly projected.

Each seed splits the functions. The documents ranked are those about the held-out functions and
their wrappers, and distractors that training did not see; those about the function asked are
relevant. A projection starts from the identity, on the features or on whitened ones (by the
training documents), whichever is better unlearned on validation functions, a quarter of the
training ones. Each method chooses its learning rate by mAP on these and is then trained on all
training functions; held-out functions choose nothing.

Command:   uv run experiments/learned_embedding.py
Result:    tables on the screen, rows.csv, metrics.json and learned_embedding.png in
           results/learned_embedding/; the numbers are in packages/math-utils/README.md
Run time:  4 minutes on a CPU core that other work shares, 1.5 of them for the world, once

    --smoke                                         seconds, numbers that mean nothing
    --output-dir DIR  --seeds N  --functions N  --features state change gradient
"""

import csv
import os
from collections.abc import Sequence
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any, Literal

from hops.errors import HopsError
from if_query.command_line import parse
from if_query.errors import InputError, command_errors

Feature = Literal["state", "change", "gradient"]


@dataclass(frozen=True)
class Config:
    """One world, several splits of its functions, several ways to learn."""

    output_dir: Path = Path("results/learned_embedding")
    """Folder for everything; a world that is there is not built again."""
    functions: int = 40
    """Base functions of the world, each with a wrapper; 10 to 99."""
    seeds: int = 5
    """Splits of the functions into training and held-out ones; at least 2, for intervals."""
    held_out: float = 0.4
    """The share of functions that is held out."""
    features: tuple[Feature, ...] = ("state", "change")
    """What is projected."""
    steps: int = 100
    """Optimizer steps of each training; one anchor per training function in each."""
    learning_rates: tuple[float, ...] = (3e-4, 1e-3, 3e-3)
    """Of AdamW; each method chooses one on validation functions."""
    smoke: bool = False
    """Ten functions, hardly trained, and two seeds: shows that everything runs."""


def main(config: Config) -> None:
    """Build the world, learn and score every method on every split; print, write and draw."""
    check(config)
    if config.smoke:
        config = Config(config.output_dir, 10, 2, config.held_out, config.features, 5, (1e-3,))
        world_sizes = {"num_old_distractors": 40, "old_epochs": 1.0, "new_epochs": 0.2}
        world_sizes |= {"num_new_distractors": 20, "hidden_size": 32}
    else:
        world_sizes = {"num_old_distractors": 2000, "old_epochs": 2.0, "new_epochs": 5.0}
        world_sizes |= {"num_new_distractors": 150}
    if "OMP_NUM_THREADS" not in os.environ:
        import torch

        torch.set_num_threads(1)
    from hops.presets import Preset
    from hops.world import build_world
    from rich.console import Console
    from tqdm import tqdm
    from utils.learned_embedding_report import result_table
    from utils.learned_embedding_texts import read_texts
    from utils.learned_embedding_training import study

    counts = {"variations": 2, "wrapper_variations": 1, "comprehensive_docs": 6, "code_snippets": 8}
    preset = Preset(num_functions=config.functions, **counts, **world_sizes)  # type: ignore[arg-type]
    world = build_world(config.output_dir / "world", preset=preset)
    console = Console()
    accuracy = {name: depths[0] for name, depths in world.accuracy.items()}
    console.print(
        f"accuracy on base functions: old checkpoint {accuracy['old']:.2f}, "
        f"new {accuracy['new']:.2f} (chance {world.chance:.2f})"
    )
    texts = read_texts(world, config.features)
    rows: list[dict[str, Any]] = []
    jobs = [(seed, feature) for seed in range(config.seeds) for feature in config.features]
    for seed, feature in tqdm(jobs, desc="splits and features"):
        rows += study(
            texts,
            feature,
            seed,
            held_out=config.held_out,
            learning_rates=config.learning_rates,
            steps=config.steps,
        )
    for feature in config.features:
        console.print(result_table(rows, feature, config.seeds))
    write(config, rows, accuracy)
    console.print(f"all files are under {config.output_dir}")


def check(config: Config) -> None:
    """Refuse sizes that leave no split or no interval."""
    if not 10 <= config.functions <= 99:
        raise InputError(f"--functions: expected 10 to 99, got {config.functions}")
    if config.seeds < 2:
        raise InputError(f"--seeds: expected at least 2, for intervals, got {config.seeds}")
    if not 0.1 <= config.held_out <= 0.6:
        raise InputError(f"--held-out: expected a share from 0.1 to 0.6, got {config.held_out}")
    if config.steps < 1:
        raise InputError(f"--steps: expected at least 1, got {config.steps}")
    if not config.features:
        raise InputError("--features: expected at least one, got none")
    if not config.learning_rates or any(not 0 < rate < 1 for rate in config.learning_rates):
        raise InputError(
            f"--learning-rates: expected rates between 0 and 1, got {config.learning_rates}"
        )


def write(config: Config, rows: list[dict[str, Any]], accuracy: dict[str, float]) -> None:
    """The rows, their summary and the figure."""
    from if_query.whole_files import replacing, write_json
    from utils.learned_embedding_report import draw, summary

    with (
        replacing(config.output_dir / "rows.csv") as temporary,
        temporary.open("w", newline="") as file,
    ):
        writer = csv.DictWriter(file, list(rows[0]))
        writer.writeheader()
        writer.writerows(rows)
    settings = {**asdict(config), "output_dir": str(config.output_dir)}
    summaries = {feature: summary(rows, feature) for feature in config.features}
    write_json(
        config.output_dir / "metrics.json",
        {"config": settings, "accuracy": accuracy, "mean_low_high": summaries},
    )
    with replacing(config.output_dir / "learned_embedding.png") as temporary:
        draw(temporary, rows, config.features)


def command(args: Sequence[str] | None = None) -> None:
    """Run the study as the arguments say; what a user causes is one line on stderr."""
    about = (__doc__ or "").partition("\n\nCommand:")[0]
    with command_errors():
        try:
            main(parse(Config, program="learned_embedding.py", args=args, description=about))
        except HopsError as error:
            raise InputError(str(error)) from error


if __name__ == "__main__":
    command()
