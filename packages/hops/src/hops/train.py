"""Training with the Hugging Face Trainer, from documents to ``final_model/``.

The output folder holds ``training_config.json``, ``data_order.json`` (line numbers in the order
of training), ``checkpoint-N/``, ``checkpoint_evaluation_summary.json``, ``loss_history.json`` and
``final_model/``.  A run that was killed continues from its last whole checkpoint when it is
started again with the same arguments, and ends with the same weights; a finished run is not
repeated.  Under ``torchrun`` step ``s`` of ``P`` processes takes the ``P`` batches from
``s · P`` on of that order, as one process with ``P`` times the batch size would.
"""

import logging
import math
import os
import shutil
import tempfile
from collections.abc import Collection, Sequence
from dataclasses import dataclass
from functools import partial
from pathlib import Path
from typing import Any

import torch
from pydantic import TypeAdapter
from transformers import (
    PreTrainedModel,
    PreTrainedTokenizerFast,
    PrinterCallback,
    ProgressCallback,
    Trainer,
    TrainerCallback,
    TrainingArguments,
)
from transformers.trainer_utils import IntervalStrategy

from hops.documents import Document, read_documents, registry_of, told_wrappers
from hops.errors import HopsError
from hops.files import read_json, replaced_folder, sha256_of, write_json
from hops.functions import Registry
from hops.models import TINY_MODELS, build_tiny_model, load_model, load_tokenizer, train_tokenizer
from hops.tokens import add_function_tokens
from hops.training_callbacks import (
    WHOLE_MARK,
    CheckpointEvaluation,
    ProgressBar,
    read_summary,
)
from hops.training_config import LOSS_FILE, SUMMARY_FILE, TrainConfig
from hops.training_data import (
    collate,
    encode_documents,
    num_trained,
    select_documents,
    training_order,
)

CONFIG_FILE = "training_config.json"
ORDER_FILE = "data_order.json"
FINAL_MODEL = "final_model"

logger = logging.getLogger(__name__)


@dataclass(frozen=True)
class TrainResult:
    """Where a training run left its model, and what was measured along the way.

    Attributes:
        final_model: The folder of the trained model and its tokenizer.
        checkpoints: The entries of ``checkpoint_evaluation_summary.json``.
    """

    final_model: Path
    checkpoints: tuple[dict[str, Any], ...]


def train(config: TrainConfig, *, callbacks: Sequence[TrainerCallback] = ()) -> TrainResult:
    """Train as ``config`` says, or continue, or return what is finished.

    Args:
        config: The run.
        callbacks: Further Trainer callbacks.

    Returns:
        The final model and the evaluations.

    Raises:
        HopsError: An argument or file is unusable, the model lacks a function token, or the
            output folder holds a run with other arguments.
    """
    config.check()
    chosen = select_documents(config.dataset_path, config.hop_depth, skip_direct=config.skip_direct)
    lines, documents = [line for line, _ in chosen], [document for _, document in chosen]
    registry = registry_of(read_documents(config.seed_path)) if config.seed_path else None
    output_dir = config.output_dir
    arguments = _training_arguments(config, len(documents))
    record = _record(config, len(documents), arguments.world_size)
    known = _is_known(config, record)
    if known and (output_dir / FINAL_MODEL).is_dir():
        return TrainResult(output_dir / FINAL_MODEL, tuple(read_summary(output_dir)))
    tokenizer, model = _prepare_model(config, documents, registry)
    # The first process makes the folder ready while the others wait; they only look.
    with arguments.main_process_first(local=False):
        if arguments.process_index == 0:
            if not known:
                _start_afresh(output_dir, record)
            _remove_unfinished_checkpoints(output_dir)
        done = max(map(_step_of, _checkpoints(output_dir)), default=0)
    batch_size = config.batch_size * arguments.world_size
    met = _in_training_order(config, documents, tokenizer, batch_size)
    if arguments.world_size > 1:  # every process gets whole batches; the log says what filled up
        met += met[: -len(met) % batch_size]
    examples = [{"input_ids": ids} for _, ids in met]
    trainer = _make_trainer(config, arguments, model, tokenizer, examples)
    if trainer.is_world_process_zero():
        write_json(output_dir / ORDER_FILE, [lines[index] for index, _ in met])
    trainer.add_callback(
        CheckpointEvaluation(
            output_dir, tokenizer, registry, told_wrappers(documents), config.prompt_format, done
        )
    )
    for callback in callbacks:
        trainer.add_callback(callback)
    trainer.train(resume_from_checkpoint=str(output_dir / f"checkpoint-{done}") if done else None)
    with arguments.main_process_first(local=False):
        if trainer.is_world_process_zero():
            with replaced_folder(output_dir / FINAL_MODEL) as folder:
                model.save_pretrained(folder)
                tokenizer.save_pretrained(folder)
    return TrainResult(output_dir / FINAL_MODEL, tuple(read_summary(output_dir)))


def train_in_memory(
    config: TrainConfig, lines: Collection[int]
) -> tuple[PreTrainedModel, PreTrainedTokenizerFast]:
    """Train on some lines of the data set and hand the model back; nothing is written.

    With the lines that ``config`` selects it is the model that :func:`train` ends with, bit by
    bit. There are no checkpoints and no evaluation, which is what many short retrainings need.

    Args:
        config: The run; the output folder is not used, and the model must be a trained one.
        lines: Line numbers (from 0) of the data set; those that ``config`` leaves out stay out.

    Returns:
        The model, in evaluation mode on the CPU or the device it was trained on, and its tokenizer.

    Raises:
        HopsError: An argument or file is unusable, or no document is left.
    """
    config.check()
    if config.model in TINY_MODELS:
        raise HopsError(f"Retraining needs the folder of a trained model, not {config.model}.")
    chosen = select_documents(config.dataset_path, config.hop_depth, skip_direct=config.skip_direct)
    documents = [document for line, document in chosen if line in lines]
    if not documents:
        raise HopsError(f"{config.dataset_path}: no document is left to train on.")
    tokenizer, model = _prepare_model(config, documents, None)
    examples = [
        {"input_ids": ids}
        for _, ids in _in_training_order(config, documents, tokenizer, config.batch_size)
    ]
    with tempfile.TemporaryDirectory() as folder:
        arguments = _training_arguments(config, len(documents))
        arguments.output_dir, arguments.save_strategy = folder, IntervalStrategy.NO
        trainer = _make_trainer(config, arguments, model, tokenizer, examples, show_progress=False)
        trainer.train()
    return model.eval(), tokenizer


def _in_training_order(
    config: TrainConfig,
    documents: Sequence[Document],
    tokenizer: PreTrainedTokenizerFast,
    batch_size: int,
) -> list[tuple[int, list[int]]]:
    """Every document as often and in the order that a run meets it: its index and token ids."""
    encoded = encode_documents(documents, tokenizer, config.max_length)
    order = training_order(
        [len(ids) for ids in encoded],
        epochs=config.epochs,
        batch_size=batch_size,
        shuffle=config.shuffle_training,
        seed=config.seed,
    )
    return [(index, encoded[index]) for index in order]


def _record(config: TrainConfig, num_documents: int, num_processes: int) -> dict[str, Any]:
    """What ``training_config.json`` says: the arguments, and which files they named."""
    arguments = TypeAdapter(TrainConfig).dump_python(config, mode="json")
    del arguments["overwrite"]
    files = [config.dataset_path, *config.tokenizer_data, Path(config.model) / "model.safetensors"]
    return {
        "arguments": arguments,
        "num_documents": num_documents,
        "num_processes": num_processes,
        "sha256": {str(path): sha256_of(path) for path in files if path.is_file()},
    }


def _is_known(config: TrainConfig, record: dict[str, Any]) -> bool:
    """Tell whether the output folder holds this very run, finished or not."""
    path = config.output_dir / CONFIG_FILE
    if config.overwrite or not path.is_file():
        return False
    before = read_json(path)
    if before != record:
        names = [key for key in record if before.get(key) != record[key]]
        raise HopsError(
            f"{config.output_dir}: holds a run with another {', '.join(names)}; "
            "choose another folder or pass --overwrite."
        )
    return True


def _start_afresh(output_dir: Path, record: dict[str, Any]) -> None:
    for path in (output_dir / FINAL_MODEL, *_checkpoints(output_dir)):
        shutil.rmtree(path, ignore_errors=True)
    write_json(output_dir / SUMMARY_FILE, [])
    write_json(output_dir / LOSS_FILE, [])
    write_json(output_dir / CONFIG_FILE, record)


def _checkpoints(output_dir: Path) -> list[Path]:
    return [path for path in output_dir.glob("checkpoint-*") if path.name[11:].isdigit()]


def _step_of(checkpoint: Path) -> int:
    return int(checkpoint.name.split("-")[1])


def _remove_unfinished_checkpoints(output_dir: Path) -> None:
    """Keep the checkpoints that were saved and evaluated to the end."""
    for path in _checkpoints(output_dir):
        if not (path / WHOLE_MARK).is_file():
            shutil.rmtree(path)


def _prepare_model(
    config: TrainConfig, documents: Sequence[Document], registry: Registry | None
) -> tuple[PreTrainedTokenizerFast, PreTrainedModel]:
    """Load the model, or build a tiny one with the function tokens of its documents."""
    named = {doc.func for doc in documents if doc.func is not None and doc.role != "distractor"}
    if config.model not in TINY_MODELS:
        tokenizer, model = load_tokenizer(config.model), load_model(config.model, device="cpu")
        split = [
            n for n in sorted(named) if len(tokenizer.encode(n, add_special_tokens=False)) != 1
        ]
        if split:
            raise HopsError(
                f"{config.model}: {', '.join(split)} are not single tokens; "
                "add them with `hops add-tokens`."
            )
        return tokenizer, model
    further = [doc for path in config.tokenizer_data for doc in read_documents(path)]
    every = [*documents, *further]
    tokenizer = train_tokenizer(
        (doc.text for doc in every),
        vocab_size=config.vocab_size,
        function_names=sorted({doc.func for doc in every if doc.func is not None}),
        split_numbers=config.split_numbers,
    )
    model = build_tiny_model(
        config.model,  # type: ignore[arg-type]
        tokenizer,
        hidden_size=config.hidden_size,
        num_layers=config.num_layers,
        seed=config.seed,
    )
    if named:
        world = registry or registry_of(read_documents(config.dataset_path))
        logger.info("adding %d function tokens to %s", len(world.names), config.model)
        add_function_tokens(model, tokenizer, world, seed=config.seed)
    return tokenizer, model


def _training_arguments(config: TrainConfig, num_documents: int) -> TrainingArguments:
    """Set up one pass over the examples of a whole run, in the order they will be given.

    Under ``torchrun`` this also joins the processes.
    """
    num_examples = num_trained(num_documents, config.epochs)
    num_processes = max(1, int(os.environ.get("WORLD_SIZE", "1")))
    num_steps = math.ceil(num_examples / (config.batch_size * num_processes))
    return TrainingArguments(
        output_dir=str(config.output_dir),
        num_train_epochs=1,
        train_sampling_strategy="sequential",
        per_device_train_batch_size=config.batch_size,
        learning_rate=config.learning_rate,
        weight_decay=config.weight_decay,
        adam_beta2=config.adam_beta2,
        lr_scheduler_type=("cosine" if config.schedule == "cosine" else "constant_with_warmup"),
        warmup_steps=config.warmup_steps,
        bf16=config.precision == "bfloat16",
        use_cpu=not torch.cuda.is_available(),
        save_strategy="steps",
        save_steps=max(1, round(config.checkpoint_fraction * num_steps)),
        logging_steps=max(1, num_steps // 50),
        report_to="none",
        disable_tqdm=True,
        remove_unused_columns=False,
        dataloader_pin_memory=False,
        seed=config.seed,
    )


def _make_trainer(
    config: TrainConfig,
    arguments: TrainingArguments,
    model: PreTrainedModel,
    tokenizer: PreTrainedTokenizerFast,
    examples: list[dict[str, list[int]]],
    *,
    show_progress: bool = True,
) -> Trainer:
    """Set the Trainer up to take the examples once, in the order given."""
    if config.freeze_embeddings:
        model.get_input_embeddings().requires_grad_(False)
    pad = tokenizer.pad_token_id if tokenizer.pad_token_id is not None else 0
    trainer = Trainer(
        model=model.train(),
        args=arguments,
        train_dataset=examples,
        data_collator=partial(collate, pad_token_id=pad),
        processing_class=tokenizer,
        callbacks=[ProgressBar(f"training {config.output_dir.name}")] if show_progress else [],
    )
    trainer.remove_callback(PrinterCallback)
    trainer.remove_callback(ProgressCallback)
    return trainer
