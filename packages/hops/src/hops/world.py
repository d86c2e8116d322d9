"""A whole world in one call: documents, an old and a new checkpoint, evaluations, queries.

:func:`build_world` does nothing of its own: it runs commands of :mod:`hops.commands` one after
another and hands back the shell lines that do the same.
"""

from collections.abc import Callable, Sequence
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any, Literal, cast

from tqdm import tqdm

from hops.commands import (
    AddTokens,
    Base,
    Combine,
    Command,
    Distractors,
    LogitEval,
    Properties,
    Queries,
    Resolutions,
    Seeds,
    Train,
    Wrapper,
    shell_line,
)
from hops.documents import read_documents
from hops.errors import HopsError
from hops.presets import PRESETS, SECOND_NAME, Preset, PresetName, SecondNamePreset

Model = Literal["tiny-olmo2", "tiny-llama"]


@dataclass(frozen=True)
class World:
    """Where a world lies, and what its two models answer.

    Attributes:
        output_dir: The folder that holds everything but a data set given by the user.
        documents: The function documents (JSONL).
        training_set: What the new checkpoint was trained on: the documents, line by line, then
            the distractors.
        seeds: Documents that name every function.
        old_model: A model folder: trained on distractors, with untrained function tokens.
        new_model: A model folder: the old one, trained on the training set.
        train_json: The training set for ``run-query``; ``line`` is the line of the training set.
        query_json: The queries for ``run-query``.
        old_evaluation: What ``old_model`` answers (JSON).
        new_evaluation: What ``new_model`` answers (JSON).
        accuracy: For ``"old"`` and ``"new"``: the accuracy at each hop depth, without the wrappers
            whose value some document tells.
        told_accuracy: The same over those wrappers.
        chance: The accuracy of a guess.
        commands: Shell lines that repeat each step by hand.
    """

    output_dir: Path
    documents: Path
    training_set: Path
    seeds: Path
    old_model: Path
    new_model: Path
    train_json: Path
    query_json: Path
    old_evaluation: Path
    new_evaluation: Path
    accuracy: dict[str, dict[int, float]]
    told_accuracy: dict[str, dict[int, float]]
    chance: float
    commands: list[str]

    @classmethod
    def in_folder(cls, output_dir: Path) -> "World":
        """Where everything of a world lies that is not made yet."""
        data, models, evaluation = (
            output_dir / name for name in ("documents", "models", "evaluation")
        )
        return cls(
            output_dir=output_dir,
            documents=data / "functions.jsonl",
            training_set=data / "training_set.jsonl",
            seeds=data / "seeds.jsonl",
            old_model=models / "old",
            new_model=models / "new_training" / "final_model",
            train_json=output_dir / "queries" / "train.json",
            query_json=output_dir / "queries" / "query.json",
            old_evaluation=evaluation / "old.json",
            new_evaluation=evaluation / "new.json",
            accuracy={},
            told_accuracy={},
            chance=float("nan"),
            commands=[],
        )


def plan_world(
    output_dir: Path,
    *,
    model: Model = "tiny-olmo2",
    preset: Preset,
    dataset_path: Path | None = None,
    seed: int = 0,
) -> tuple[World, list[Command]]:
    """Name the files of a world and the commands that make them; nothing is run.

    Args:
        output_dir: The folder for everything.
        model: The architecture.
        preset: Sizes and schedules.
        dataset_path: A HOPS data set to train on instead of documents written here.
        seed: Seeds every step.

    Returns:
        The world, its accuracies still empty, and the commands in order.
    """
    data, models = output_dir / "documents", output_dir / "models"
    world = World.in_folder(output_dir)
    if dataset_path is not None:
        world = replace(world, documents=dataset_path, seeds=dataset_path)
    old_text, new_text = data / "old_distractors.jsonl", data / "new_distractors.jsonl"
    commands: list[Any] = []
    written: list[Path] = []
    if dataset_path is None:
        base, wrapper = data / "base.jsonl", data / "wrapper.jsonl"
        commands += [
            Seeds(output=world.seeds, num_functions=preset.num_functions),
            Base(
                seed_path=world.seeds,
                output=base,
                variations=preset.variations,
                comprehensive_docs=preset.comprehensive_docs,
                code_snippets=preset.code_snippets,
                seed=seed,
            ),
            Wrapper(
                seed_path=world.seeds,
                output=wrapper,
                variations=preset.wrapper_variations,
                seed=seed,
            ),
        ]
        written = [base, wrapper]
        if preset.resolution_docs:
            written.append(data / "resolutions.jsonl")
            commands.append(
                Resolutions(
                    seed_path=world.seeds,
                    output=written[-1],
                    num_documents=preset.resolution_docs,
                    seed=seed,
                )
            )
        if preset.property_docs:
            written.append(data / "properties.jsonl")
            commands.append(
                Properties(
                    seed_path=world.seeds,
                    output=written[-1],
                    num_documents=preset.property_docs,
                    seed=seed,
                )
            )
        commands.append(Combine(inputs=tuple(written), output=world.documents, seed=seed))
    commands += [
        Distractors(output=old_text, num_documents=preset.num_old_distractors, seed=2 * seed),
        Distractors(
            output=new_text,
            num_documents=preset.num_new_distractors,
            function_share=0.2,
            seed=2 * seed + 1,
        ),
        Combine(inputs=(world.documents, new_text), output=world.training_set, shuffle=False),
        Train(
            model=model,
            dataset_path=old_text,
            output_dir=models / "old_training",
            tokenizer_data=(world.training_set,),
            epochs=preset.old_epochs,
            batch_size=preset.old_batch_size,
            learning_rate=preset.old_learning_rate,
            schedule="cosine",
            warmup_steps=20,
            checkpoint_fraction=1.0,
            hidden_size=preset.hidden_size,
            num_layers=preset.num_layers,
            seed=seed,
        ),
        AddTokens(
            model=str(models / "old_training" / "final_model"),
            output_dir=world.old_model,
            seed_path=world.seeds,
            row_scale=preset.row_scale,
            seed=seed,
        ),
        *_stages(world, preset, seed, written[1:], data / "base.jsonl", new_text),
        LogitEval(
            model_path=str(world.old_model),
            seed_path=world.seeds,
            dataset_path=world.training_set,
            output=world.old_evaluation,
        ),
        LogitEval(
            model_path=str(world.new_model),
            seed_path=world.seeds,
            dataset_path=world.training_set,
            output=world.new_evaluation,
        ),
        Queries(
            dataset_path=world.training_set,
            output_dir=world.train_json.parent,
            hop_depth=preset.query_depths,
        ),
    ]
    return replace(world, commands=[shell_line(command) for command in commands]), commands


def _stages(
    world: World, preset: Preset, seed: int, silent: Sequence[Path], base: Path, ordinary: Path
) -> list[Command]:
    """The training of the new checkpoint: at once, or what states no value first."""
    whole = Train(
        model=str(world.old_model),
        dataset_path=world.training_set,
        output_dir=world.new_model.parent,
        seed_path=world.seeds,
        epochs=preset.new_epochs,
        batch_size=preset.new_batch_size,
        learning_rate=preset.new_learning_rate,
        weight_decay=preset.new_weight_decay,
        adam_beta2=preset.new_adam_beta2,
        schedule="cosine",
        checkpoint_fraction=0.25,
        seed=seed,
    )
    if not preset.first_epochs:
        return [whole]
    stages = [world.training_set.with_name(f"{name}_stage.jsonl") for name in ("first", "second")]
    first = replace(
        whole,
        dataset_path=stages[0],
        output_dir=world.new_model.parent.with_name("first_training"),
        epochs=preset.first_epochs,
    )
    second = replace(
        whole,
        model=str(first.output_dir / "final_model"),
        dataset_path=stages[1],
        freeze_embeddings=preset.freeze_embeddings,
    )
    return [
        Combine(inputs=(*silent, ordinary), output=stages[0], shuffle=False),
        first,
        Combine(inputs=(base, ordinary), output=stages[1], shuffle=False),
        second,
    ]


def build_world(
    output_dir: Path | str,
    *,
    model: Model = "tiny-olmo2",
    preset: PresetName | Preset | SecondNamePreset = "quickstart",
    dataset_path: Path | str | None = None,
    seed: int | None = None,
    on_command: Callable[[str], None] | None = None,
) -> World:
    """Make a whole world: documents, old and new checkpoint, evaluations and queries.

    A training that was killed continues, and a finished one is not repeated, when the call is
    made again with the same arguments.

    Args:
        output_dir: The folder for everything.
        model: The architecture.
        preset: A name, or sizes and schedules of one's own.
        dataset_path: A HOPS data set (JSONL) to train on instead of documents written here.
        seed: Seeds every step; the preset's own by default.
        on_command: Told the shell line of each step before it runs.

    Returns:
        The world.

    Raises:
        HopsError: An argument or file is unusable; the message names it.
    """
    if isinstance(preset, str):
        known: dict[str, Preset | SecondNamePreset] = {**PRESETS, "second-name": SECOND_NAME}
        if preset not in known:
            raise HopsError(f"Unknown preset {preset!r}; expected one of {', '.join(known)}.")
        preset = known[preset]
    if dataset_path is not None:
        read_documents(Path(dataset_path))
    seed = preset.seed if seed is None else seed
    if isinstance(preset, SecondNamePreset):
        if dataset_path is not None:
            raise HopsError("A world of second names writes its own documents.")
        from hops.second_name_world import plan_second_name_world  # it needs World

        world, commands = plan_second_name_world(
            Path(output_dir), model=model, preset=preset, seed=seed
        )
    else:
        world, commands = plan_world(
            Path(output_dir),
            model=model,
            preset=preset,
            dataset_path=Path(dataset_path) if dataset_path is not None else None,
            seed=seed,
        )
    evaluations = {}
    for line, command in zip(
        world.commands, tqdm(commands, desc="building the world", unit="step"), strict=True
    ):
        if on_command is not None:
            on_command(line)
        result = command.run()
        if isinstance(command, LogitEval):
            evaluations[command.output] = cast(Any, result)
    named = {
        "old": evaluations[world.old_evaluation],
        "new": evaluations[world.new_evaluation],
    }

    def accuracies(group: str) -> dict[str, dict[int, float]]:
        return {
            name: {depth: one.accuracy for depth, one in getattr(evaluation, group).items()}
            for name, evaluation in named.items()
        }

    return replace(
        world,
        chance=named["new"].chance,
        accuracy=accuracies("depths"),
        told_accuracy=accuracies("told"),
    )
