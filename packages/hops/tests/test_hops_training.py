"""Training: order, padding, resuming to the last bit, and what a run refuses."""

import dataclasses
import json
from collections import Counter

import pytest
import torch
from hops.documents import read_documents, write_documents
from hops.errors import HopsError
from hops.files import read_json
from hops.functions import make_registry
from hops.models import load_model, load_tokenizer
from hops.seeds import seed_documents
from hops.tokens import check_tokens
from hops.train import CONFIG_FILE, ORDER_FILE, train, train_in_memory
from hops.training_config import LOSS_FILE, SUMMARY_FILE, TrainConfig
from hops.training_data import collate, encode_documents, training_order
from hops.writers.ordinary import write_distractors
from safetensors.torch import load_file
from transformers import TrainerCallback

REGISTRY = make_registry(2)


class KilledError(Exception):
    pass


class KillAfter(TrainerCallback):
    """Ends the process as a signal would: no tidying up after the given step."""

    def __init__(self, step: int, *, in_save: bool = False):
        self.step, self.in_save = step, in_save

    def on_step_end(self, args, state, control, **_):
        if not self.in_save and state.global_step == self.step:
            raise KilledError

    def on_save(self, args, state, control, **_):
        if self.in_save and state.global_step == self.step:
            raise KilledError


@pytest.fixture
def config(tmp_path):
    documents = [*seed_documents(REGISTRY), *write_distractors(16, seed=0)]
    write_documents(tmp_path / "data.jsonl", documents)
    return TrainConfig(
        model="tiny-olmo2",
        dataset_path=tmp_path / "data.jsonl",
        seed_path=tmp_path / "data.jsonl",
        output_dir=tmp_path / "run",
        batch_size=8,
        epochs=2.0,
        schedule="cosine",
        checkpoint_fraction=0.3,
        hidden_size=32,
        num_layers=1,
        vocab_size=300,
        seed=3,
    )


def weights(folder):
    return load_file(folder / "final_model" / "model.safetensors")


def assert_equal_to_the_last_bit(left, right):
    assert left.keys() == right.keys()
    assert all(torch.equal(left[name], right[name]) for name in left)


@pytest.mark.parametrize(
    ("killer", "checkpoints_left"),
    [(KillAfter(2), 0), (KillAfter(5), 1), (KillAfter(6, in_save=True), 1)],
    ids=["before the first checkpoint", "between checkpoints", "while saving a checkpoint"],
)
def test_a_killed_run_ends_as_an_undisturbed_one(config, tmp_path, killer, checkpoints_left):
    whole = dataclasses.replace(config, output_dir=tmp_path / "whole")
    undisturbed = train(whole)
    # Callbacks given by the caller come last, but a kill within saving must come before the
    # checkpoint is marked as whole: so the mark is taken away again.
    with pytest.raises(KilledError):
        train(config, callbacks=[killer])
    if killer.in_save:
        (config.output_dir / "checkpoint-6" / "hops_checkpoint_is_whole").unlink()
        (config.output_dir / "checkpoint-6" / "model.safetensors").write_bytes(b"half")
    assert len(list(config.output_dir.glob("checkpoint-*/hops_*"))) == checkpoints_left
    assert not (config.output_dir / "final_model").exists()
    resumed = train(config)
    assert_equal_to_the_last_bit(weights(config.output_dir), weights(whole.output_dir))
    assert resumed.checkpoints == undisturbed.checkpoints
    assert [entry["step"] for entry in resumed.checkpoints] == [3, 6, 9, 10]


def test_a_finished_run_is_not_repeated_and_another_is_refused(config, monkeypatch):
    first = train(config)
    changed_at = (config.output_dir / "final_model" / "model.safetensors").stat().st_mtime_ns
    assert train(config) == first
    assert (
        config.output_dir / "final_model" / "model.safetensors"
    ).stat().st_mtime_ns == changed_at
    with pytest.raises(HopsError, match="another arguments"):
        train(dataclasses.replace(config, learning_rate=1e-4))
    before = weights(config.output_dir)
    train(dataclasses.replace(config, learning_rate=1e-4, overwrite=True))
    assert not all(torch.equal(before[k], v) for k, v in weights(config.output_dir).items())
    with config.dataset_path.open("a") as file:
        file.write(config.dataset_path.read_text().splitlines()[0] + "\n")
    with pytest.raises(HopsError, match="num_documents"):
        train(dataclasses.replace(config, learning_rate=1e-4))


def test_a_run_leaves_what_it_promises(config):
    result = train(config)
    documents = read_documents(config.dataset_path)
    assert check_tokens(result.final_model, REGISTRY).ok
    order = read_json(config.output_dir / ORDER_FILE)
    assert Counter(order) == dict.fromkeys(range(len(documents)), 2)
    record = read_json(config.output_dir / CONFIG_FILE)
    assert record["arguments"]["learning_rate"] == config.learning_rate
    assert record["num_documents"] == len(documents)
    summary = read_json(config.output_dir / SUMMARY_FILE)
    assert [entry["step"] for entry in summary] == [3, 6, 9, 10]
    assert summary[-1]["fraction"] == 1.0
    assert set(summary[0]["depths"]) == {"0", "1"}
    assert set(summary[0]["accuracy"]) == set(REGISTRY.names)
    losses = read_json(config.output_dir / LOSS_FILE)
    assert [entry["step"] for entry in losses] == list(range(1, 11))
    assert losses[-1]["loss"] < losses[0]["loss"]
    assert load_model(result.final_model).config.model_type == "olmo2"


def test_a_run_keeps_wrappers_apart_whose_value_its_documents_state(config):
    documents = read_documents(config.dataset_path)
    told = next(doc for doc in documents if doc.func == "<FN>")
    told = told.model_copy(update={"text": "<FN>(8) returns 5, always.", "answers": "direct"})
    write_documents(config.dataset_path, [*documents, told])
    last = train(dataclasses.replace(config, epochs=1.0)).checkpoints[-1]
    assert set(last["told"]) == {"1"}
    assert last["told"]["1"]["num_prompts"] == last["depths"]["1"]["num_prompts"] == 100


def test_training_lowers_the_loss_of_its_documents(config, tmp_path):
    def loss(folder):
        model, tokenizer = load_model(folder), load_tokenizer(folder)
        encoded = encode_documents(read_documents(config.dataset_path), tokenizer, 512)
        batch = collate([{"input_ids": ids} for ids in encoded], tokenizer.pad_token_id)
        with torch.no_grad():
            return float(model(**batch).loss)

    untrained = train(dataclasses.replace(config, learning_rate=1e-12)).final_model
    trained = dataclasses.replace(config, output_dir=tmp_path / "b", learning_rate=1e-2)
    assert loss(train(trained).final_model) < loss(untrained) - 0.5


def test_a_hop_depth_is_selected_by_line(config):
    train(dataclasses.replace(config, hop_depth=(1,), seed_path=None, shuffle_training=False))
    documents = read_documents(config.dataset_path)
    lines = [i for i, doc in enumerate(documents) if doc.hop_depth in (1, None)]
    assert read_json(config.output_dir / ORDER_FILE) == lines * 2


def test_models_without_the_function_tokens_are_refused(config, tmp_path):
    write_documents(tmp_path / "plain.jsonl", write_distractors(16, seed=0))
    plain = train(
        dataclasses.replace(
            config,
            dataset_path=tmp_path / "plain.jsonl",
            seed_path=None,
            output_dir=tmp_path / "plain",
            tokenizer_data=(config.dataset_path,),
        )
    )
    assert read_json(tmp_path / "plain" / SUMMARY_FILE)[0].keys() == {
        "step",
        "fraction",
        "train_loss",
    }
    tokenizer = load_tokenizer(plain.final_model)
    assert len(tokenizer.encode("<GN>", add_special_tokens=False)) > 1
    with pytest.raises(HopsError, match=r"<GN>.*add-tokens"):
        train(dataclasses.replace(config, model=str(plain.final_model)))


@pytest.mark.parametrize(
    "change",
    [
        {"epochs": 0.0},
        {"batch_size": 0},
        {"learning_rate": float("nan")},
        {"checkpoint_fraction": 1.5},
        {"hop_depth": (7,)},
        {"hidden_size": 40},
        {"vocab_size": 100},
    ],
)
def test_arguments_out_of_range_are_refused(config, change):
    if "hop_depth" in change:
        write_documents(config.dataset_path, seed_documents(REGISTRY))
    with pytest.raises(HopsError):
        train(dataclasses.replace(config, **change))


@pytest.mark.parametrize("shuffle", [False, True])
def test_each_epoch_is_a_permutation(shuffle):
    lengths = [(7 * i) % 50 + 1 for i in range(40)]
    order = training_order(lengths, epochs=2.5, batch_size=8, shuffle=shuffle, seed=0)
    assert len(order) == 100
    counts = Counter(order)
    assert set(counts) == set(range(40))
    assert set(counts.values()) == {2, 3}
    assert order == training_order(lengths, epochs=2.5, batch_size=8, shuffle=shuffle, seed=0)
    if not shuffle:
        assert order == [*range(40), *range(40), *range(20)]


def test_shuffled_batches_hold_documents_of_like_length():
    lengths = [(7 * i) % 50 + 1 for i in range(640)]
    order = training_order(lengths, epochs=1.0, batch_size=8, shuffle=True, seed=0)

    def padding(sequence):
        batches = [[lengths[i] for i in sequence[k : k + 8]] for k in range(0, 640, 8)]
        return sum(8 * max(batch) - sum(batch) for batch in batches)

    assert padding(order) < padding(range(640)) / 2


def test_padding_has_no_attention_and_no_label():
    batch = collate([{"input_ids": [5, 6, 7]}, {"input_ids": [8]}], pad_token_id=1)
    assert batch["input_ids"].tolist() == [[5, 6, 7], [8, 1, 1]]
    assert batch["attention_mask"].tolist() == [[1, 1, 1], [1, 0, 0]]
    assert batch["labels"].tolist() == [[5, 6, 7], [8, -100, -100]]


def test_a_document_ends_with_eos_even_when_it_is_cut(config):
    tokenizer = load_tokenizer(train(config).final_model)
    documents = read_documents(config.dataset_path)
    for ids in encode_documents(documents, tokenizer, 12):
        assert len(ids) <= 12
        assert ids[-1] == tokenizer.eos_token_id
    whole = encode_documents(documents, tokenizer, 512)
    assert tokenizer.decode(whole[0][:-1]) == documents[0].text
    assert json.dumps(whole)  # plain integers


@pytest.fixture
def second_run(config, tmp_path):
    """A run that starts from a trained model, as retraining needs."""
    train(config)
    return dataclasses.replace(
        config, model=str(config.output_dir / "final_model"), output_dir=tmp_path / "second"
    )


def test_training_in_memory_on_all_lines_gives_the_same_bits_and_writes_nothing(
    second_run, tmp_path
):
    lines = range(len(read_documents(second_run.dataset_path)))
    model, _ = train_in_memory(second_run, lines)
    assert not second_run.output_dir.exists()
    train(second_run)
    saved = weights(second_run.output_dir)
    trained = {name: value for name, value in model.state_dict().items() if name in saved}
    assert not model.training
    assert_equal_to_the_last_bit(trained, saved)


def test_training_in_memory_takes_the_lines_asked_for(second_run, tmp_path):
    documents = read_documents(second_run.dataset_path)
    part = tmp_path / "part.jsonl"
    write_documents(part, [documents[line] for line in (1, 4, 5, 17)])
    expected, _ = train_in_memory(dataclasses.replace(second_run, dataset_path=part), range(4))
    found, _ = train_in_memory(second_run, {17, 4, 5, 1})
    assert_equal_to_the_last_bit(found.state_dict(), expected.state_dict())
    with pytest.raises(HopsError, match="no document is left"):
        train_in_memory(second_run, {999})
    with pytest.raises(HopsError, match="trained model"):
        train_in_memory(dataclasses.replace(second_run, model="tiny-olmo2"), {1})


def test_frozen_embeddings_keep_their_bits_and_the_rest_is_trained(second_run):
    frozen = dataclasses.replace(second_run, freeze_embeddings=True)
    before = load_model(second_run.model).state_dict()
    model, _ = train_in_memory(frozen, range(16))
    after = model.state_dict()
    same = {name for name in before if torch.equal(before[name], after[name])}
    assert same == {"model.embed_tokens.weight"}
