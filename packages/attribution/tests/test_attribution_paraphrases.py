"""Samples, chat encoding, candidates, checks and writers of paraphrases."""

import json
import re
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from attribution.errors import AttributionError
from attribution.paraphrases import (
    CachedWriter,
    CandidateRule,
    LocalWriter,
    Sample,
    Turn,
    choose_candidates,
    choose_samples,
    encode_prompt,
    encode_turn,
    paraphrase,
    paraphrase_problems,
    prompt_text,
    read_samples,
    response_text,
    write_samples,
)
from datasets import Dataset, DatasetDict
from hypothesis import given, settings
from hypothesis import strategies as st
from tokenizers import Tokenizer, decoders, pre_tokenizers
from tokenizers.models import BPE
from tokenizers.trainers import BpeTrainer
from transformers import PreTrainedTokenizerFast

TEMPLATES = {
    "none": None,
    "olmo": "{{ eos_token }}{% for m in messages %}{% if m.role == 'user' %}<|user|>\n"
    "{{ m.content }}\n{% else %}<|assistant|>\n{{ m.content }}{{ eos_token }}{% endif %}"
    "{% endfor %}{% if add_generation_prompt %}<|assistant|>\n{% endif %}",
    "chatml": "{% for m in messages %}<|im_start|>{{ m.role }}\n{{ m.content }}<|im_end|>\n"
    "{% endfor %}{% if add_generation_prompt %}<|im_start|>assistant\n{% endif %}",
}
TURN = Turn("What is two and two?", "It is four.")


def make_tokenizer(template: str | None) -> PreTrainedTokenizerFast:
    tokenizer = Tokenizer(BPE())
    tokenizer.pre_tokenizer = pre_tokenizers.ByteLevel(add_prefix_space=False)
    tokenizer.decoder = decoders.ByteLevel()
    special = ["<eos>", "<pad>", "<|im_start|>", "<|im_end|>", "<|user|>", "<|assistant|>"]
    trainer = BpeTrainer(
        vocab_size=330,
        special_tokens=special,
        initial_alphabet=sorted(pre_tokenizers.ByteLevel.alphabet()),
        show_progress=False,
    )
    tokenizer.train_from_iterator(["User: it is four. Assistant: It is four", TURN.user], trainer)
    made = PreTrainedTokenizerFast(tokenizer_object=tokenizer, eos_token="<eos>", pad_token="<pad>")
    made.chat_template = template
    return made


@pytest.fixture(scope="module", params=list(TEMPLATES))
def tokenizer(request: pytest.FixtureRequest) -> PreTrainedTokenizerFast:
    return make_tokenizer(TEMPLATES[request.param])


@settings(deadline=None, max_examples=30)
@given(user=st.text(min_size=1), assistant=st.text(min_size=1))
def test_labels_are_the_response_and_nothing_but_it(
    tokenizer: PreTrainedTokenizerFast, user: str, assistant: str
) -> None:
    turn = Turn(user, assistant)
    encoded = encode_turn(tokenizer, turn, 5, max_length=10_000)
    prompt = encode_prompt(tokenizer, user)
    assert encoded.input_ids[: len(prompt)] == tuple(prompt)
    assert set(encoded.labels[: len(prompt)]) == {-100}
    assert encoded.labels[len(prompt) :] == encoded.input_ids[len(prompt) :]
    assert tokenizer.decode(prompt) == prompt_text(tokenizer, user)
    assert tokenizer.decode(encoded.labels[len(prompt) :]) == response_text(tokenizer, turn)
    assert assistant in response_text(tokenizer, turn)


@pytest.mark.parametrize(
    ("name", "last_of_prompt", "response"),
    [
        ("none", "User: What is two and two?\nAssistant:", " It is four.<eos>"),
        ("olmo", "<eos><|user|>\nWhat is two and two?\n<|assistant|>\n", "It is four.<eos>"),
        (
            "chatml",
            "<|im_start|>user\nWhat is two and two?<|im_end|>\n<|im_start|>assistant\n",
            "It is four.<|im_end|>",  # without the new line that the template adds
        ),
    ],
)
def test_the_border_of_prompt_and_response_is_where_the_template_says(
    name: str, last_of_prompt: str, response: str
) -> None:
    own = make_tokenizer(TEMPLATES[name])
    encoded = encode_turn(own, TURN, 0, max_length=1000)
    labelled = [place for place, label in enumerate(encoded.labels) if label != -100]
    assert labelled == list(range(labelled[0], len(encoded.input_ids)))
    assert own.decode(encoded.input_ids[: labelled[0]]) == last_of_prompt
    assert own.decode(encoded.input_ids[labelled[0] :]) == response
    end = "<|im_end|>" if name == "chatml" else "<eos>"
    assert encoded.input_ids[-1] == own.convert_tokens_to_ids(end)
    assert encoded.num_labels == len(labelled)
    assert encoded.key == 0


def test_a_response_that_is_cut_off_whole_is_refused_by_number() -> None:
    own = make_tokenizer(None)
    length = len(encode_prompt(own, TURN.user))
    assert encode_turn(own, TURN, 3, max_length=length + 1).num_labels == 1
    with pytest.raises(AttributionError, match="sample 3: no token of its answer"):
        encode_turn(own, TURN, 3, max_length=length)


def test_a_template_that_rewrites_the_prompt_is_refused() -> None:
    own = make_tokenizer("{% if add_generation_prompt %}a{% else %}b{% endif %}{{ messages[0] }}")
    with pytest.raises(AttributionError, match="differently from its prompt"):
        encode_turn(own, TURN, 3, max_length=100)


# Samples ------------------------------------------------------------------------------------------


def row(key: Any, **columns: Turn) -> dict[str, Any]:
    return {"id": key, "messages": TURN.messages()} | {n: t.messages() for n, t in columns.items()}


def write_lines(path: Path, rows: list[Any]) -> str:
    path.write_text("".join(json.dumps(one) + "\n" for one in rows))
    return str(path)


def test_samples_survive_jsonl_and_a_data_set_folder(tmp_path: Path) -> None:
    other = Turn("Sum of 2 and 2? Ünï", "Four\nof course")
    samples = [
        Sample(2, {"messages": TURN, "paraphrased_messages": other}),
        Sample(10, {"messages": other, "paraphrased_messages": TURN}),
    ]
    for name in ("some.jsonl", "folder"):
        write_samples(tmp_path / name, samples[::-1])
        assert read_samples(str(tmp_path / name)) == samples
    with pytest.raises(AttributionError, match="already exists"):
        write_samples(tmp_path / "folder", samples)
    assert sorted(p.name for p in tmp_path.iterdir()) == ["folder", "some.jsonl"]
    DatasetDict({"train": Dataset.from_list([one.row() for one in samples])}).save_to_disk(
        str(tmp_path / "split")
    )
    assert read_samples(str(tmp_path / "split")) == samples


def test_ids_are_numbers_or_their_digits_and_come_out_in_their_order(tmp_path: Path) -> None:
    path = write_lines(tmp_path / "d.jsonl", [row("10"), row(9), row("007")])
    assert [one.id for one in read_samples(path)] == [7, 9, 10]


@pytest.mark.parametrize(
    ("rows", "message"),
    [
        ([row(1), row(2), row("1")], "line 3: the id 1 repeats"),
        ([{"messages": TURN.messages()}], "line 1: no column id"),
        ([row("a")], "line 1: expected a whole number as id, got 'a'"),
        ([row(-1)], "expected a whole number as id, got -1"),
        ([row(True)], "expected a whole number as id, got True"),
        ([row(1.5)], "expected a whole number as id, got 1.5"),
        ([{"id": 1}], "line 1: no column messages"),
        ([[1]], "line 1: expected an object, got list"),
        ([{"id": 1, "messages": TURN.messages()[::-1]}], "got the roles"),
        ([{"id": 1, "messages": TURN.messages() * 2}], "got the roles"),
        ([{"id": 1, "messages": "text"}], "line 1: messages: expected a user's message"),
        ([], "no samples"),
    ],
)
def test_rows_that_are_no_samples_are_refused_by_line(
    tmp_path: Path, rows: list[Any], message: str
) -> None:
    path = write_lines(tmp_path / "d.jsonl", rows)
    with pytest.raises(AttributionError, match=re.escape(message)):
        read_samples(path)


def test_missing_sources_bad_lines_and_missing_columns_are_named(tmp_path: Path) -> None:
    with pytest.raises(AttributionError, match="no such file"):
        read_samples(str(tmp_path / "missing.jsonl"))
    with pytest.raises(AttributionError, match="no such file or folder"):
        read_samples(str(tmp_path / "missing"))
    (tmp_path / "bad.jsonl").write_text(json.dumps(row(1)) + "\n{oops\n")
    with pytest.raises(AttributionError, match="line 2: not JSON"):
        read_samples(str(tmp_path / "bad.jsonl"))
    (tmp_path / "empty").mkdir()
    with pytest.raises(AttributionError, match="no data set could be loaded"):
        read_samples(str(tmp_path / "empty"))
    path = write_lines(tmp_path / "d.jsonl", [row(1, paraphrased_messages=TURN)])
    assert read_samples(path, required=("messages", "paraphrased_messages"))
    with pytest.raises(AttributionError, match="no column model_generated_messages; make it with"):
        read_samples(path, required=("messages", "model_generated_messages"))


def test_a_choice_of_samples_repeats_with_its_seed() -> None:
    samples = [Sample(key, {"messages": TURN}) for key in range(0, 60, 3)]
    chosen = choose_samples(samples, 7, seed=1)
    ids = [one.id for one in chosen]
    assert len(set(ids)) == 7
    assert ids == sorted(ids)
    assert chosen == choose_samples(samples, 7, seed=1)
    assert chosen != choose_samples(samples, 7, seed=2)
    assert choose_samples(samples, None, seed=1) == samples
    for size in (0, 21):
        with pytest.raises(AttributionError, match="between 1 and 20"):
            choose_samples(samples, size, seed=1)


# Candidates ---------------------------------------------------------------------------------------

SCORES = np.array([[5.0, 4, 3, 2, 1, 0], [0, 9, 9, 9, 1, 0], [1, 1, 1, 1, 1, 1]])


def test_candidates_are_the_best_by_bm25_with_the_true_one_in_the_last_place() -> None:
    forced = choose_candidates(SCORES, [5, 2, 0], CandidateRule(3))
    assert forced == [[0, 1, 5], [1, 2, 3], [0, 1, 2]]
    free = choose_candidates(SCORES, [5, 2, 0], CandidateRule(3, forced=False))
    assert free == [[0, 1, 2], [1, 2, 3], [0, 1, 2]]
    assert choose_candidates(SCORES, [5, 2, 0], CandidateRule(None)) == [list(range(6))] * 3
    assert choose_candidates(SCORES, [5, 2, 0], CandidateRule(9)) == [list(range(6))] * 3


def test_rules_are_read_from_text() -> None:
    assert CandidateRule.parse("bm25:5") == CandidateRule(5)
    assert CandidateRule.parse("all", forced=False) == CandidateRule(None, forced=False)
    for text in ("bm25:1", "bm25:0", "bm25", "bm25:x", "bm25:-5", "tfidf:5", ""):
        with pytest.raises(AttributionError, match="expected candidates all or bm25:N"):
            CandidateRule.parse(text)


# Checks and writers -------------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("user", "assistant", "problems"),
    [
        ("How much is 2 plus 2?", "That makes four.", []),
        (" \n", "That makes four.", ["user: empty"]),
        ("What is TWO, and two", "That makes four.", ["user: identical"]),
        ("How much?", "it is four", ["assistant: identical"]),
        ("Сколько будет два и два?", "Four", ["user: translated"]),
        ("How much?", "二足す二は四です", ["assistant: translated"]),
        ("", "", ["user: empty", "assistant: empty"]),
    ],
)
def test_paraphrases_that_fail_a_check_are_named(
    user: str, assistant: str, problems: list[str]
) -> None:
    assert paraphrase_problems(TURN, Turn(user, assistant)) == problems


@pytest.mark.parametrize(
    "text",
    [
        "La luz azul del sol es dispersada por las moléculas, y por eso el cielo es de ese color.",
        "Das blaue Licht der Sonne wird von den Molekülen gestreut, und der Himmel ist nicht rot.",
        "La lumière bleue est diffusée par les molécules de l'air et le ciel est de cette couleur.",
    ],
)
def test_a_translation_within_one_script_is_seen_by_its_function_words(text: str) -> None:
    before = "The blue light of the sun is scattered by molecules in the air, and so is the sky."
    assert paraphrase_problems(Turn(before, before), Turn(text, "Blue is bent more.")) == [
        "user: translated"
    ]


class Counting:
    name = "counting"

    def __init__(self) -> None:
        self.requests: list[str] = []

    def reply(self, request: str) -> str:
        self.requests.append(request)
        return f" reply {len(self.requests)}\n"


def test_both_sides_are_rewritten_and_replies_are_asked_for_only_once(tmp_path: Path) -> None:
    path, own = tmp_path / "folder" / "replies.jsonl", Counting()
    turn = paraphrase(CachedWriter(own, path), TURN)
    assert turn == Turn("reply 1", "reply 2")
    assert own.requests[0].endswith(TURN.user)
    assert own.requests[1].endswith(TURN.assistant)
    assert paraphrase(CachedWriter(own, path), TURN) == turn
    assert len(own.requests) == 2
    path.write_text(path.read_text()[:-20])  # as a kill would leave it
    again = CachedWriter(own, path)
    assert paraphrase(again, TURN) == Turn("reply 1", "reply 3")
    assert paraphrase(CachedWriter(own, path), TURN) == Turn("reply 1", "reply 3")
    assert len(own.requests) == 3


def test_a_local_writer_answers_greedily_what_follows_the_prompt() -> None:
    import torch
    from transformers import LlamaConfig, LlamaForCausalLM

    own = make_tokenizer(TEMPLATES["chatml"])
    with torch.random.fork_rng():
        torch.manual_seed(0)
        model = LlamaForCausalLM(
            LlamaConfig(
                vocab_size=len(own),
                hidden_size=16,
                intermediate_size=16,
                num_hidden_layers=1,
                num_attention_heads=2,
                num_key_value_heads=2,
                initializer_range=0.5,
                eos_token_id=own.eos_token_id,
                pad_token_id=own.pad_token_id,
            )
        ).train()
    ids = encode_prompt(own, "Two?")
    expected = list(ids)
    with torch.no_grad():
        for _ in range(6):
            expected.append(int(model.eval()(torch.tensor([expected])).logits[0, -1].argmax()))
    model.train()
    writer = LocalWriter(model, own, "m", max_new_tokens=6)
    assert (
        writer.reply("Two?") == own.decode(expected[len(ids) :], skip_special_tokens=True).strip()
    )
    assert model.training
