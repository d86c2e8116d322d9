"""Tokenizers, tiny models and function tokens."""

import json

import pytest
import torch
from hops.errors import HopsError
from hops.functions import make_registry
from hops.models import build_tiny_model, load_model, load_tokenizer, train_tokenizer
from hops.tokens import (
    MAPPING_FILE,
    add_function_tokens,
    add_tokens,
    check_function_tokens,
    input_rows,
    new_rows,
    output_rows,
)
from hops.writers.ordinary import write_distractors
from tokenizers import Tokenizer, normalizers, pre_tokenizers
from tokenizers.models import BPE
from tokenizers.trainers import BpeTrainer
from transformers import (
    AddedToken,
    LlamaConfig,
    LlamaForCausalLM,
    LlamaTokenizer,
    Olmo2Config,
    Olmo2ForCausalLM,
)

REGISTRY = make_registry(3)
TEXTS = [doc.text for doc in write_distractors(60, seed=0)]


@pytest.fixture
def tokenizer():
    return train_tokenizer(TEXTS, vocab_size=400)


def tiny(architecture: str, rows: int, *, tied: bool):
    config_class, model_class = {
        "olmo2": (Olmo2Config, Olmo2ForCausalLM),
        "llama": (LlamaConfig, LlamaForCausalLM),
    }[architecture]
    sizes = {"hidden_size": 32, "intermediate_size": 48, "num_hidden_layers": 1}
    heads = {"num_attention_heads": 2, "num_key_value_heads": 2, "pad_token_id": 1}
    torch.manual_seed(0)
    return model_class(config_class(vocab_size=rows, tie_word_embeddings=tied, **sizes, **heads))


@pytest.mark.parametrize("split_numbers", [False, True])
def test_the_tokenizer_gives_every_text_back(split_numbers):
    tokenizer = train_tokenizer(TEXTS, vocab_size=400, split_numbers=split_numbers)
    for text in [*TEXTS, "ü ∘ 🙂\n\t x", " 5", "  5  "]:
        ids = tokenizer.encode(text, add_special_tokens=False)
        assert tokenizer.decode(ids) == text
    assert tokenizer.eos_token_id is not None
    assert tokenizer.pad_token_id not in (None, tokenizer.eos_token_id)
    num_tokens = len(tokenizer.encode(" 217", add_special_tokens=False))
    assert num_tokens == 4 if split_numbers else num_tokens <= 4


def test_no_merge_is_spent_on_function_names():
    tokenizer = train_tokenizer(["<GN>(1) <GN>(2)"] * 50, vocab_size=300, function_names=["<GN>"])
    assert not any("GN" in token for token in tokenizer.get_vocab())


@pytest.mark.parametrize("name", ["tiny-olmo2", "tiny-llama"])
def test_tiny_models_are_real_architectures_fixed_by_their_seed(name, tokenizer):
    before = torch.get_rng_state()
    model = build_tiny_model(name, tokenizer, hidden_size=32, num_layers=2, seed=1)
    assert torch.equal(torch.get_rng_state(), before)
    assert model.config.model_type == name.removeprefix("tiny-")
    again = build_tiny_model(name, tokenizer, hidden_size=32, num_layers=2, seed=1)
    other = build_tiny_model(name, tokenizer, hidden_size=32, num_layers=2, seed=2)
    assert all(
        torch.equal(a, b) for a, b in zip(model.parameters(), again.parameters(), strict=True)
    )
    assert not torch.equal(input_rows(model), input_rows(other))


@pytest.mark.parametrize("architecture", ["olmo2", "llama"])
@pytest.mark.parametrize("tied", [False, True])
@pytest.mark.parametrize("padding", [0, 3, 64])
def test_new_rows_have_the_median_norm_and_old_rows_stay(architecture, tied, padding, tokenizer):
    num_old = len(tokenizer)
    model = tiny(architecture, num_old + padding, tied=tied)
    old_input = input_rows(model)[:num_old].clone()
    old_output = output_rows(model)[:num_old].clone()
    mapping = add_function_tokens(model, tokenizer, REGISTRY, seed=7)
    assert list(mapping) == list(REGISTRY.names)
    assert list(mapping.values()) == list(range(num_old, num_old + 6))
    assert input_rows(model).shape[0] == max(num_old + padding, num_old + 6)
    assert model.config.vocab_size == input_rows(model).shape[0]
    assert torch.equal(input_rows(model)[:num_old], old_input)
    assert torch.equal(output_rows(model)[:num_old], old_output)
    assert (input_rows(model) is output_rows(model)) is tied
    for rows, old in ((input_rows(model), old_input), (output_rows(model), old_output)):
        new = rows[num_old : num_old + 6]
        expected = old.norm(dim=1).median().expand(6)
        torch.testing.assert_close(new.norm(dim=1), expected, rtol=1e-5, atol=0)
        assert torch.unique(new, dim=0).shape[0] == 6
    if not tied:
        assert not torch.equal(input_rows(model)[num_old:], output_rows(model)[num_old:])
    assert check_function_tokens(model, tokenizer, REGISTRY).ok


def test_new_rows_are_truncated_normal():
    old = torch.randn(50, 4000) * 3
    rows = new_rows(old, 3, torch.Generator().manual_seed(0))
    scale = rows.std(dim=1, keepdim=True) / 0.8796  # the deviation of a normal cut at two sigma
    assert ((rows / scale).abs().max(dim=1).values < 2.1).all()
    assert ((rows / scale).abs().max(dim=1).values > 1.9).all()


def test_names_that_are_tokens_already_keep_their_rows(tokenizer):
    model = tiny("olmo2", len(tokenizer), tied=False)
    first = add_function_tokens(model, tokenizer, make_registry(1), seed=0)
    kept = input_rows(model)[list(first.values())].clone()
    second = add_function_tokens(model, tokenizer, REGISTRY, seed=1)
    assert {name: second[name] for name in first} == first
    assert torch.equal(input_rows(model)[list(first.values())], kept)


def test_a_saved_model_with_function_tokens_generates_after_reloading(tmp_path, tokenizer):
    model = build_tiny_model("tiny-olmo2", tokenizer, hidden_size=32, num_layers=1)
    model.save_pretrained(tmp_path / "plain")
    tokenizer.save_pretrained(tmp_path / "plain")
    mapping = add_tokens(tmp_path / "plain", tmp_path / "extended", REGISTRY, seed=3)
    assert json.loads((tmp_path / "extended" / MAPPING_FILE).read_text()) == mapping
    assert not list(tmp_path.rglob("*.bin"))
    reloaded, again = load_tokenizer(tmp_path / "extended"), load_model(tmp_path / "extended")
    assert check_function_tokens(again, reloaded, REGISTRY).ok
    ids = reloaded("<GN>(17) returns", return_tensors="pt", add_special_tokens=False)["input_ids"]
    assert ids[0, 0] == mapping["<GN>"]
    produced = again.generate(ids, max_new_tokens=3, do_sample=False)
    assert produced.shape[1] > ids.shape[1]


def test_the_check_finds_what_is_wrong(tokenizer):
    model = tiny("olmo2", len(tokenizer), tied=False)
    missing = check_function_tokens(model, tokenizer, REGISTRY)
    assert len(missing.problems) == 6
    assert "add-tokens" in missing.problems[0]
    mapping = add_function_tokens(model, tokenizer, REGISTRY)
    with torch.no_grad():
        input_rows(model)[mapping["<GN>"]] *= 100
        input_rows(model)[mapping["<JN>"]] = float("nan")
    report = check_function_tokens(model, tokenizer, REGISTRY)
    assert [problem.split()[0] for problem in report.problems] == ["<GN>", "<JN>"]
    assert not report.ok


@pytest.mark.parametrize("tied", [False, True])
def test_the_check_looks_at_output_rows_of_their_own(tied, tokenizer):
    model = tiny("llama", len(tokenizer) + 64, tied=tied)
    mapping = add_function_tokens(model, tokenizer, REGISTRY)
    report = check_function_tokens(model, tokenizer, REGISTRY)
    assert report.ok
    assert list(report.output_norms) == ([] if tied else list(mapping))
    with torch.no_grad():
        output_rows(model)[mapping["<JN>"]] = 0
    problems = check_function_tokens(model, tokenizer, REGISTRY).problems
    assert len(problems) == 1
    assert ("an embedding" if tied else "an output row") in problems[0]


def sentencepiece_like(kind: str):
    """Trained as Llama 2's was: a mark for spaces, bytes to fall back on, and ``<unk>``."""
    special = ["<unk>", "<s>", "</s>"]
    alphabet = [f"<0x{byte:02X}>" for byte in range(256)]
    trained = Tokenizer(BPE(unk_token="<unk>", byte_fallback=True, fuse_unk=True))
    trained.pre_tokenizer = pre_tokenizers.Metaspace(prepend_scheme="first", split=False)
    trainer = BpeTrainer(vocab_size=600, special_tokens=special + alphabet, show_progress=False)
    trained.train_from_iterator(TEXTS, trainer)
    model = json.loads(trained.to_str())["model"]
    tokenizer = LlamaTokenizer(vocab=model["vocab"], merges=[tuple(m) for m in model["merges"]])
    if kind == "legacy":
        backend = tokenizer.backend_tokenizer
        backend.normalizer = normalizers.Sequence(
            [normalizers.Prepend("▁"), normalizers.Replace(" ", "▁")]
        )
        backend.pre_tokenizer = None
    return tokenizer


@pytest.mark.parametrize("tied", [False, True])
@pytest.mark.parametrize("padding", [0, 64])
def test_a_tokenizer_with_byte_fallback_gets_whole_tokens_and_survives_saving(
    tied, padding, tmp_path
):
    tokenizer = sentencepiece_like("as today")
    assert tokenizer.decode(tokenizer.encode("ü 🙂", add_special_tokens=False)) == "ü 🙂"
    model = tiny("llama", len(tokenizer) + padding, tied=tied)
    model.save_pretrained(tmp_path / "plain")
    tokenizer.save_pretrained(tmp_path / "plain")
    assert len(check_function_tokens(model, tokenizer, REGISTRY).problems) == 6
    mapping = add_tokens(tmp_path / "plain", tmp_path / "extended", REGISTRY)
    again, reloaded = load_model(tmp_path / "extended"), load_tokenizer(tmp_path / "extended")
    assert check_function_tokens(again, reloaded, REGISTRY).ok
    assert len(input_rows(again)) == max(len(tokenizer) + padding, len(tokenizer) + 6)
    ids = reloaded.encode("max(<GN>(3), 4)", add_special_tokens=False)
    assert ids.count(mapping["<GN>"]) == 1
    assert again.generate(torch.tensor([ids]), max_new_tokens=3).shape[1] > len(ids)


def test_a_tokenizer_that_changes_texts_with_names_is_refused():
    """Old conversions of Llama 2 put a space after every added token."""
    tokenizer = sentencepiece_like("legacy")
    model = tiny("llama", len(tokenizer), tied=False)
    add_function_tokens(model, tokenizer, REGISTRY)
    report = check_function_tokens(model, tokenizer, REGISTRY)
    assert not report.ok
    assert "does not survive" in report.problems[0]
    for text in ("max(<GN>(3), 4)", "<GN>(3)"):  # whole at least, wherever it stands
        assert tokenizer.encode(text, add_special_tokens=False).count(report.ids["<GN>"]) == 1


def test_a_name_that_is_whole_after_a_space_only_is_reported():
    """The text comes back as it was, yet the name in it was cut into pieces."""
    tokenizer = sentencepiece_like("legacy")
    names = list(REGISTRY.names)
    tokenizer.add_tokens([AddedToken(name, normalized=True, special=False) for name in names])
    text = "max(<GN>(3), 4)"
    assert tokenizer.decode(tokenizer.encode(text, add_special_tokens=False)) == text
    model = tiny("llama", len(tokenizer), tied=False)
    assert any(text in one for one in check_function_tokens(model, tokenizer, REGISTRY).problems)


@pytest.mark.parametrize("model", ["/no/such/folder", "./nothing", "nothing", "."])
def test_a_missing_model_is_named(model, tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    with pytest.raises(HopsError, match="model"):
        load_model(model)
