"""The commands that make a world without the names: see ``second_name.md`` beside the README.

First stage: a language model learns that every function has two names, from a dozen properties
told in the same words under either, and from sentences that say so.  That is the old checkpoint.
Second stage: documents that use the first names alone state what the functions return.  The
queries use the second names.
"""

from dataclasses import replace
from pathlib import Path
from typing import Any

from hops.commands import (
    AddTokens,
    Base,
    Combine,
    Command,
    Distractors,
    LogitEval,
    Queries,
    SecondNames,
    Train,
    shell_line,
)
from hops.presets import SecondNamePreset
from hops.world import Model, World


def plan_second_name_world(
    output_dir: Path, *, model: Model, preset: SecondNamePreset, seed: int
) -> tuple[World, list[Command]]:
    """Name the files of a world and the commands that make them; nothing is run.

    Args:
        output_dir: The folder for everything.
        model: The architecture.
        preset: Sizes and schedules.
        seed: Seeds every step.

    Returns:
        The world, its accuracies still empty, and the commands in order. Depth 0 of its accuracies
        is of the first names, depth 1 of the second.
    """
    data, models = output_dir / "documents", output_dir / "models"
    world = World.in_folder(output_dir)
    properties, old_text = data / "properties.jsonl", data / "old_distractors.jsonl"
    new_text, named = data / "new_distractors.jsonl", models / "named"
    training = Train(
        model=model,
        dataset_path=old_text,
        output_dir=models / "language_training",
        tokenizer_data=(properties, world.training_set),
        epochs=preset.language_epochs,
        batch_size=32,
        learning_rate=preset.learning_rate,
        schedule="cosine",
        warmup_steps=20,
        checkpoint_fraction=1.0,
        hidden_size=preset.hidden_size,
        num_layers=preset.num_layers,
        seed=seed,
    )
    naming = replace(
        training,
        model=str(named),
        dataset_path=properties,
        output_dir=models / "name_training",
        seed_path=world.seeds,
        tokenizer_data=(),
        epochs=preset.name_epochs,
        weight_decay=preset.name_weight_decay,
        adam_beta2=0.98,
    )
    commands: list[Any] = [
        SecondNames(
            seed_path=world.seeds,
            output=properties,
            num_functions=preset.num_functions,
            functions_per_constant=preset.functions_per_constant,
            num_documents=preset.property_docs,
            seed=seed,
        ),
        Base(
            seed_path=world.seeds,
            output=world.documents,
            variations=preset.variations,
            comprehensive_docs=preset.comprehensive_docs,
            code_snippets=preset.code_snippets,
            seed=seed,
        ),
        Distractors(output=old_text, num_documents=preset.num_old_distractors, seed=2 * seed),
        Distractors(
            output=new_text,
            num_documents=preset.num_new_distractors,
            function_share=0.2,
            seed=2 * seed + 1,
        ),
        Combine(inputs=(world.documents, new_text), output=world.training_set, shuffle=False),
        training,
        AddTokens(
            model=str(training.output_dir / "final_model"),
            output_dir=named,
            seed_path=world.seeds,
            row_scale=preset.row_scale,
            seed=seed,
        ),
        naming,
        # Nothing is added: the old checkpoint is copied to where every world has it.
        AddTokens(
            model=str(naming.output_dir / "final_model"),
            output_dir=world.old_model,
            seed_path=world.seeds,
        ),
        replace(
            training,
            model=str(world.old_model),
            dataset_path=world.training_set,
            output_dir=world.new_model.parent,
            seed_path=world.seeds,
            tokenizer_data=(),
            epochs=preset.new_epochs,
            warmup_steps=0,
            checkpoint_fraction=0.25,
            weight_decay=preset.new_weight_decay,
            freeze_embeddings=True,
        ),
        *(
            LogitEval(model_path=str(path), seed_path=world.seeds, output=output)
            for path, output in (
                (world.old_model, world.old_evaluation),
                (world.new_model, world.new_evaluation),
            )
        ),
        Queries(
            dataset_path=world.training_set,
            output_dir=world.train_json.parent,
            seed_path=world.seeds,
            hop_depth=(0, 1),
        ),
    ]
    return replace(world, commands=[shell_line(command) for command in commands]), commands
