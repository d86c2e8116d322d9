"""`paraphrase_dataset.py` by its command line, and the paraphrases that are shipped."""

import http.server
import json
import sys
import threading
from pathlib import Path

import numpy as np
import pytest
from attribution.baselines import bm25_scores
from attribution.baselines.words import words
from attribution.paraphrases import paraphrase_problems, read_samples
from paraphrase_cases import IDS, refused, turn, write

SHIPPED = Path(__file__).parents[1] / "experiments" / "data" / "paraphrases.jsonl"


def test_answers_end_where_the_models_positions_do(
    paraphrase_scripts, make_model_folder, tmp_path, capsys
):
    rows = [{"id": key, "messages": turn("a", "b"), "paraphrased_messages": turn(question, "c")}
            for key, question in enumerate(["What is it?", "it " * 20])]  # fmt: skip
    data, output = write(tmp_path / "data.jsonl", rows), tmp_path / "out.jsonl"
    flags = f"--model {make_model_folder('gpt2')} --dataset {data} --output {output}".split()
    flags += ["--dataset-type", "model-generated", "--max-new-tokens", "1000"]
    paraphrase_scripts.dataset(flags)
    assert "wrote" in capsys.readouterr().out
    replies = (tmp_path / "out.replies.jsonl").read_bytes()
    assert len(replies.splitlines()) == 2
    paraphrase_scripts.dataset([*flags, "--overwrite"])
    assert (tmp_path / "out.replies.jsonl").read_bytes() == replies  # no answer is asked for twice
    rows[1]["paraphrased_messages"] = turn("it " * 90, "c")
    write(data, rows)
    refused(
        capsys,
        lambda: paraphrase_scripts.dataset([*flags, "--overwrite"]),
        "leaves no room for an answer",
    )


def test_both_columns_are_made_by_a_local_model(
    paraphrase_scripts, paraphrase_data, make_model_folder, tmp_path, capsys
):
    output = tmp_path / "made" / "out.jsonl"
    flags = f"--dataset {paraphrase_data} --output {output} "
    flags += f"--model {make_model_folder()} --max-new-tokens 8"
    paraphrase_scripts.dataset(flags.split())
    made = read_samples(str(output), required=("paraphrased_messages", "model_generated_messages"))
    shown = capsys.readouterr().out
    assert f"wrote {len(made)} samples" in shown
    assert len(made) + shown.count("left out: sample") == 8
    for sample in made:
        paraphrased = sample.turns["paraphrased_messages"]
        assert paraphrase_problems(sample.original, paraphrased) == []
        assert sample.turns["model_generated_messages"].user == paraphrased.user
    refused(capsys, lambda: paraphrase_scripts.dataset(flags.split()), "already exists")
    replies = (tmp_path / "made" / "out.replies.jsonl").read_text()
    paraphrase_scripts.dataset([*flags.split(), "--overwrite"])
    assert (tmp_path / "made" / "out.replies.jsonl").read_text() == replies
    folder = tmp_path / "folder"
    paraphrase_scripts.dataset(
        f"--dataset-type model-generated --dataset {output} --output {folder} "
        f"--model {make_model_folder()} --max-new-tokens 8".split()
    )
    assert read_samples(str(folder)) == made


def test_answers_need_paraphrases_first_and_a_model(
    paraphrase_scripts, tmp_path, make_model_folder, capsys
):
    plain = [{"id": 1, "messages": turn("a", "b")}]
    data = write(tmp_path / "plain.jsonl", plain)
    flags = f"--dataset-type model-generated --dataset {data} --output {tmp_path / 'o.jsonl'}"
    refused(
        capsys,
        lambda: paraphrase_scripts.dataset([*flags.split(), "--model", str(make_model_folder())]),
        "no column paraphrased_messages",
        "--dataset-type paraphrased",
    )
    refused(capsys, lambda: paraphrase_scripts.dataset(flags.split()), "needs --model")
    assert not (tmp_path / "o.jsonl").exists()


class Claude(http.server.BaseHTTPRequestHandler):
    """Answers like Anthropic's service; a request about rivers gets the same text back."""

    status = 200
    requests: list[dict] = []  # noqa: RUF012

    def do_POST(self):
        asked = json.loads(self.rfile.read(int(self.headers["content-length"])))
        text = asked["messages"][0]["content"].rpartition("\n\n")[2]
        type(self).requests.append({**asked, "path": self.path, "sent": str(self.headers)})
        reply = text if "rivers" in text else f"In other words: {text.split()[-1]}"
        body = {"id": "m", "type": "message", "role": "assistant", "model": asked["model"],
                "content": [{"type": "text", "text": reply}], "stop_reason": "end_turn",
                "stop_sequence": None,
                "usage": {"input_tokens": 1, "output_tokens": 1}}  # fmt: skip
        if self.status != 200:
            body = {"type": "error", "error": {"type": "invalid_request_error", "message": "no"}}
        content = json.dumps(body).encode()
        self.send_response(self.status)
        self.send_header("content-type", "application/json")
        self.send_header("content-length", str(len(content)))
        self.end_headers()
        self.wfile.write(content)

    def log_message(self, *_):
        pass


@pytest.fixture
def claude(monkeypatch):
    class Own(Claude):
        requests: list[dict] = []  # noqa: RUF012

    server = http.server.ThreadingHTTPServer(("127.0.0.1", 0), Own)
    threading.Thread(target=server.serve_forever, daemon=True).start()
    monkeypatch.setenv("ANTHROPIC_BASE_URL", f"http://127.0.0.1:{server.server_port}")
    monkeypatch.setenv("ANTHROPIC_API_KEY", "key-of-a-test")
    monkeypatch.setenv("NO_PROXY", "127.0.0.1")
    yield Own
    server.shutdown()
    server.server_close()


CLAUDE = "--dataset-type paraphrased --writer anthropic --writer-model claude-of-a-test"


def test_claude_rewrites_through_the_sdk_and_failed_checks_are_listed(
    paraphrase_scripts, paraphrase_data, tmp_path, capsys, claude
):
    output = tmp_path / "out.jsonl"
    flags = f"{CLAUDE} --dataset {paraphrase_data} --output {output} --max-new-tokens 50".split()
    paraphrase_scripts.dataset(flags)
    shown = capsys.readouterr().out
    assert "left out: sample 3: user: identical; assistant: identical" in shown
    assert "wrote 7 samples" in shown
    made = read_samples(str(output), required=("paraphrased_messages",))
    assert [one.id for one in made] == [key for key in IDS if key != 3]
    assert made[0].turns["paraphrased_messages"].user == "In other words: bread?"
    assert len(claude.requests) == 16
    first = claude.requests[0]
    assert first["path"] == "/v1/messages"
    assert "key-of-a-test" in first["sent"]  # in which header depends on the SDK
    assert (first["model"], first["max_tokens"]) == ("claude-of-a-test", 50)
    paraphrase_scripts.dataset([*flags, "--overwrite"])
    assert len(claude.requests) == 16  # every reply was kept


def test_an_error_of_the_service_a_missing_key_or_package_is_one_line(
    paraphrase_scripts, paraphrase_data, tmp_path, capsys, claude, monkeypatch
):
    flags = f"{CLAUDE} --dataset {paraphrase_data} --output {tmp_path / 'out.jsonl'}".split()
    claude.status = 400
    refused(capsys, lambda: paraphrase_scripts.dataset(flags), "claude-of-a-test", "400")
    refused(
        capsys, lambda: paraphrase_scripts.dataset(flags[:4] + flags[6:]), "needs --writer-model"
    )
    monkeypatch.delenv("ANTHROPIC_API_KEY")
    refused(capsys, lambda: paraphrase_scripts.dataset(flags), "ANTHROPIC_API_KEY")
    monkeypatch.setitem(sys.modules, "anthropic", None)
    refused(capsys, lambda: paraphrase_scripts.dataset(flags), "install attribution[anthropic]")
    assert not (tmp_path / "out.jsonl").exists()


def test_the_shipped_paraphrases_share_few_words_with_their_originals():
    rows = read_samples(str(SHIPPED), required=("paraphrased_messages",))
    assert len(rows) >= 60
    common = {word for row in rows for word in words(row.original.assistant)}
    counts = {word: sum(word in words(row.original.assistant) for row in rows) for word in common}
    frequent = {word for word, count in counts.items() if count > len(rows) / 6}
    shares = {"user": [], "assistant": []}
    for row in rows:
        paraphrase = row.turns["paraphrased_messages"]
        assert paraphrase_problems(row.original, paraphrase) == [], row.id
        for side, own in shares.items():
            a, b = (set(words(getattr(one, side))) - frequent for one in (row.original, paraphrase))
            own.append(len(a & b) / len(a | b))
    # Measured: 0.11 and 0.05 of the words of both sides together.
    assert np.mean(shares["user"]) < 0.2
    assert np.mean(shares["assistant"]) < 0.1
    scores = bm25_scores(
        [row.turns["paraphrased_messages"].user for row in rows],
        [row.original.user for row in rows],
    )
    first = [row.argmax() == place and (row == row.max()).sum() == 1
             for place, row in enumerate(scores)]  # fmt: skip
    assert 0.2 < np.mean(first) < 0.6  # 0.39: better than chance, far from easy
