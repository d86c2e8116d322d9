"""One of two processes that train together on a CPU; run by test_data_handler_tracker.py."""

import json
import os
from pathlib import Path

import torch
from data_handler.influence import InfluenceTracker, MixtureWeightCalculator, WeightedSourceDataset
from math_utils.errors import InfluenceError
from math_utils.influence import MixtureConfig
from transformers import AutoModelForCausalLM, Olmo2Config, Trainer, TrainingArguments


def main(folder: Path) -> None:
    """Train, and write what this process thinks the weights were."""
    torch.manual_seed(0)
    config = Olmo2Config(
        vocab_size=24,
        hidden_size=16,
        intermediate_size=24,
        num_hidden_layers=1,
        num_attention_heads=2,
        initializer_range=0.3,
    )
    model = AutoModelForCausalLM.from_config(config)
    arguments = TrainingArguments(
        str(folder / "out"),
        max_steps=4,
        per_device_train_batch_size=2,
        learning_rate=1e-2,
        use_cpu=True,
        report_to=[],
        disable_tqdm=True,
        save_strategy="no",
    )
    rank = int(os.environ["RANK"])
    sources = {}
    for number, name in enumerate(("zero", "one")):
        generator = torch.Generator().manual_seed(number)
        low = 3 + 6 * number
        ids = torch.randint(low, low + 6, (12, 7), generator=generator)
        sources[name] = [{"input_ids": row, "labels": row} for row in ids]
    # Each process measures with examples of its own: without an agreement, weights would differ.
    loaders = {
        name: torch.utils.data.DataLoader(rows[rank::2], batch_size=3)
        for name, rows in sources.items()
    }
    probes = {"probe": torch.utils.data.DataLoader(sources["one"][:4], batch_size=2)}
    mixture = WeightedSourceDataset(sources, num_samples=64)
    trainer = Trainer(model=model, args=arguments, train_dataset=mixture)
    calculator = MixtureWeightCalculator(
        trainer.model, probes, MixtureConfig(update_interval=2), "datainf"
    )
    tracker = InfluenceTracker(calculator, loaders, mixture)
    tracker.attach(trainer)
    trainer.train()
    state = {**tracker.state_dict(), "sampled_by": mixture.weights}
    # A failure of one process is one of all: otherwise the others would wait for it for ever.
    failing = {**loaders, "one": []} if rank else loaders
    patient = InfluenceTracker(calculator, failing, on_error="warn")
    patient.update_weights()
    state["after_failure"] = patient.state_dict()
    try:
        InfluenceTracker(calculator, failing).update_weights()
    except InfluenceError as error:
        state["stopped"] = "could not be measured" in str(error)
    (folder / f"rank{rank}.json").write_text(json.dumps(state))
    # A process that left while the other still talks to it would abort that one.
    torch.distributed.barrier()
    torch.distributed.destroy_process_group()
