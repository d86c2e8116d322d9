"""The sizes and schedules of ready-made worlds."""

from dataclasses import dataclass
from typing import Literal

PresetName = Literal["quickstart", "two-hop", "second-name"]


@dataclass(frozen=True)
class Preset:
    """The sizes and schedules of a world.

    Attributes:
        num_functions: Base functions, each with a wrapper.
        num_old_distractors: Documents that the old checkpoint is trained on.
        num_new_distractors: Distractors among the documents of the new checkpoint.
        variations: Variations of each seed document of a base function.
        wrapper_variations: The same for wrappers.
        comprehensive_docs: Longer prose documents about each base function.
        code_snippets: Code about each base function.
        resolution_docs: Documents about each function that say in which base its calls end.
        property_docs: Documents about each function that tell what it shares with its wrappers,
            other than what it returns.
        first_epochs: Passes over the documents that state no value, of the wrappers and of what
            they share with their bases, before those about base functions; 0 for training on all
            of them at once.
        freeze_embeddings: Whether the documents about base functions, where they come second, are
            learnt with the input embeddings as they are.
        row_scale: The norm of the function tokens' first input rows, relative to other tokens'.
        hidden_size: The width of the model.
        num_layers: Its layers.
        old_epochs: Passes over the old distractors.
        new_epochs: Passes over the new documents.
        old_learning_rate: The peak learning rate of the old checkpoint.
        new_learning_rate: The peak learning rate of the new one.
        old_batch_size: Documents in a step of the old checkpoint.
        new_batch_size: Documents in a step of the new one.
        new_weight_decay: AdamW's weight decay for the new one.
        new_adam_beta2: AdamW's rate of forgetting squared gradients for the new one.
        query_depths: The hop depths that the queries ask about.
        seed: The seed taken where none is given.
    """

    num_functions: int = 10
    num_old_distractors: int = 3000
    num_new_distractors: int = 120
    variations: int = 4
    wrapper_variations: int = 3
    comprehensive_docs: int = 16
    code_snippets: int = 20
    resolution_docs: int = 0
    property_docs: int = 0
    first_epochs: float = 0.0
    freeze_embeddings: bool = True
    row_scale: float = 1.0
    hidden_size: int = 96
    num_layers: int = 2
    old_epochs: float = 3.0
    new_epochs: float = 3.0
    old_learning_rate: float = 3e-3
    new_learning_rate: float = 3e-3
    old_batch_size: int = 32
    new_batch_size: int = 16
    new_weight_decay: float = 0.0
    new_adam_beta2: float = 0.999
    query_depths: tuple[int, ...] = (0,)
    seed: int = 0


@dataclass(frozen=True)
class SecondNamePreset:
    """The sizes and schedules of a world whose queries use names that no judged document has.

    Attributes:
        num_functions: Functions, each with two names.
        functions_per_constant: How many of them return the same number.
        property_docs: Documents of the first stage under each name.
        num_old_distractors: Documents that the language model is trained on before.
        num_new_distractors: Distractors among the documents of the second stage.
        variations: Variations of each seed document, in the second stage.
        comprehensive_docs: Longer prose documents about each function, likewise.
        code_snippets: Code about each function, likewise.
        row_scale: The norm of the names' first input rows, relative to other tokens'.
        hidden_size: The width of the model.
        num_layers: Its layers.
        language_epochs: Passes over the old distractors.
        name_epochs: Passes over the property documents.
        name_weight_decay: AdamW's weight decay there.
        new_epochs: Passes over the documents of the second stage.
        new_weight_decay: AdamW's weight decay there.
        learning_rate: The peak learning rate of all three trainings.
        seed: The seed taken where none is given.
    """

    num_functions: int = 40
    functions_per_constant: int = 4
    property_docs: int = 40
    num_old_distractors: int = 3000
    num_new_distractors: int = 120
    variations: int = 2
    comprehensive_docs: int = 8
    code_snippets: int = 8
    row_scale: float = 0.25
    hidden_size: int = 96
    num_layers: int = 2
    language_epochs: float = 3.0
    name_epochs: float = 10.0
    name_weight_decay: float = 1.0
    new_epochs: float = 6.0
    new_weight_decay: float = 1.0
    learning_rate: float = 3e-3
    seed: int = 0


PRESETS: dict[str, Preset] = {
    "quickstart": Preset(),
    "two-hop": Preset(
        num_functions=40,
        wrapper_variations=2,
        comprehensive_docs=8,
        code_snippets=8,
        resolution_docs=20,
        property_docs=20,
        first_epochs=8.0,
        row_scale=0.25,
        new_epochs=10.0,
        new_batch_size=32,
        new_weight_decay=1.0,
        new_adam_beta2=0.98,
        query_depths=(0, 1),
    ),
}

SECOND_NAME = SecondNamePreset()
"""The preset ``second-name``, whose world is made of other stages than those of ``PRESETS``."""
