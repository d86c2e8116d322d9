"""Training in processes of its own: two of them together, and one that is killed."""

import dataclasses
import json
import shlex
from functools import partial

import pytest
import torch
from forks import kill_when, together
from hops.cli import main
from hops.commands import shell_line
from hops.commands.models import Train
from hops.documents import write_documents
from hops.files import read_json
from hops.functions import make_registry
from hops.models import build_tiny_model, train_tokenizer
from hops.seeds import seed_documents
from hops.tokens import add_function_tokens
from hops.training_config import LOSS_FILE, SUMMARY_FILE
from hops.writers.ordinary import write_distractors
from safetensors.torch import load_file


@pytest.fixture
def command(tmp_path):
    registry = make_registry(2)
    documents = [*seed_documents(registry), *write_distractors(19, seed=0)]
    write_documents(tmp_path / "data.jsonl", documents)  # 43: no multiple of a batch
    tokenizer = train_tokenizer((doc.text for doc in documents), vocab_size=300)
    model = build_tiny_model("tiny-olmo2", tokenizer, hidden_size=32, num_layers=1)
    add_function_tokens(model, tokenizer, registry)
    model.save_pretrained(tmp_path / "model")
    tokenizer.save_pretrained(tmp_path / "model")
    return Train(
        model=str(tmp_path / "model"),
        dataset_path=tmp_path / "data.jsonl",
        seed_path=tmp_path / "data.jsonl",
        output_dir=tmp_path / "run",
        batch_size=4,
        checkpoint_fraction=0.5,
    )


def words(command: Train) -> list[str]:
    return shlex.split(shell_line(command))[1:]


def weights(command: Train) -> dict[str, torch.Tensor]:
    return load_file(command.output_dir / "final_model" / "model.safetensors")


def test_two_processes_train_as_one_with_twice_the_batch(command, tmp_path):
    together([partial(main, words(command))] * 2)
    order = read_json(command.output_dir / "data_order.json")
    # 43 documents in steps of 8: the log names the five that filled up the last one.
    assert len(order) == 48
    assert sorted(order[:43]) == list(range(43))
    assert order[43:] == order[:5]
    # One process does not fill up; it is given those five explicitly.
    lines = command.dataset_path.read_text().splitlines()
    single_data = tmp_path / "single.jsonl"
    single_data.write_text("".join(lines[index] + "\n" for index in order))
    alone = dataclasses.replace(
        command,
        dataset_path=single_data,
        output_dir=tmp_path / "alone",
        batch_size=8,
        shuffle_training=False,
    )
    alone.run()
    left, right = weights(command), weights(alone)
    assert left.keys() == right.keys()
    for name, tensor in left.items():
        torch.testing.assert_close(tensor, right[name], rtol=0, atol=2e-5)
    steps = [entry["step"] for entry in read_json(command.output_dir / SUMMARY_FILE)]
    assert steps == [3, 6]
    losses = [
        [entry["loss"] for entry in read_json(run.output_dir / LOSS_FILE)]
        for run in (command, alone)
    ]
    assert losses[0] == pytest.approx(losses[1], abs=1e-3)


def test_a_process_that_is_killed_is_taken_up_again(command, tmp_path):
    """SIGKILL while it trains; the same line again ends with the weights of an undisturbed run."""
    command = dataclasses.replace(command, epochs=2.0, checkpoint_fraction=0.2)
    whole = dataclasses.replace(command, output_dir=tmp_path / "whole")
    kill_when(
        lambda: main(words(command)),
        lambda: any(command.output_dir.glob("checkpoint-*/hops_checkpoint_is_whole")),
    )
    assert any(command.output_dir.glob("checkpoint-*/hops_checkpoint_is_whole"))
    assert not (command.output_dir / "final_model").exists()
    assert len(read_json(command.output_dir / SUMMARY_FILE)) < 5
    for run in (command, whole):
        main(words(run))
    left, right = weights(command), weights(whole)
    assert all(torch.equal(left[name], tensor) for name, tensor in right.items())
    for name in (SUMMARY_FILE, LOSS_FILE, "data_order.json"):
        assert json.loads((command.output_dir / name).read_text()) == json.loads(
            (whole.output_dir / name).read_text()
        )
