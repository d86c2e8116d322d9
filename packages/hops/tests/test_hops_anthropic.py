"""The writer that asks a model: the real SDK against a server of our own."""

import json
import subprocess
import sys
import threading
import time
from collections import Counter
from contextlib import suppress
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from pathlib import Path

import pytest
from hops.cli import main
from hops.documents import document_about, read_documents
from hops.functions import make_registry
from hops.seeds import seed_documents
from hops.writers.offline import OfflineWriter
from hops.writers.orders import Order, plan_documents
from hops.writers.reply_cache import Reply, ReplyCache
from hops.writers.rules import broken_rule

pytest.importorskip("anthropic")

KEY = "sk-test-0123456789-secret"
WORLD = make_registry(2)
SEEDS = seed_documents(WORLD)
NUM_BASE = 2 * (6 + 2)  # two functions, six seeds varied once, and two snippets


class Service:
    """Answers as told: ``script`` holds what to do with the first requests, then all are good."""

    def __init__(self):
        self.script: list[str] = []
        self.requests: list[dict] = []
        self.keys: set[str | None] = set()
        self.num_under_way = self.most_under_way = 0
        self.lock = threading.Lock()
        self.together: threading.Barrier | None = None
        self.hang_from = 10**9
        self.killed = threading.Event()
        self.times: list[float] = []
        self.good = offline_text
        service = self

        class Handler(BaseHTTPRequestHandler):
            def do_POST(self):
                # A client that was killed, or gave up, is not there for its answer.
                with suppress(BrokenPipeError, ConnectionResetError):
                    service.answer(self)

            def log_message(self, *_):
                pass

        self.server = ThreadingHTTPServer(("127.0.0.1", 0), Handler)
        self.server.daemon_threads = True
        threading.Thread(target=self.server.serve_forever, args=(0.02,), daemon=True).start()
        self.url = f"http://127.0.0.1:{self.server.server_port}"

    def answer(self, handler):
        body = handler.rfile.read(int(handler.headers["content-length"]))
        request = json.loads(body)
        with self.lock:
            number = len(self.requests)
            self.requests.append(request)
            self.times.append(time.monotonic())
            authorization = (handler.headers.get("authorization") or "").removeprefix("Bearer ")
            self.keys.add(handler.headers.get("x-api-key") or authorization)
            action = self.script[number] if number < len(self.script) else "good"
            self.num_under_way += 1
            self.most_under_way = max(self.most_under_way, self.num_under_way)
        if number >= self.hang_from and not self.killed.wait(timeout=600):
            return
        if self.together is not None:
            self.together.wait(timeout=600)
        with self.lock:
            self.num_under_way -= 1
        if action == "drop":
            handler.close_connection = True
            handler.connection.close()
            return
        status, text = 200, ""
        prompt = request["messages"][0]["content"]
        if action.isdigit():
            status, text = (
                int(action),
                json.dumps({"error": {"type": "x", "message": "no, " + KEY}}),
            )
        elif action == "not json":
            text = "<html>oops"
        elif action == "no message":
            text = json.dumps({"id": "m", "content": None})
        else:
            said = self.good(prompt) if action in ("good", "cut") else action
            text = json.dumps(
                {
                    "id": "m",
                    "type": "message",
                    "role": "assistant",
                    "model": request["model"],
                    "content": [{"type": "text", "text": said}],
                    "stop_reason": "max_tokens" if action == "cut" else "end_turn",
                    "stop_sequence": None,
                    "usage": {"input_tokens": 300, "output_tokens": 100},
                }
            )
        data = text.encode()
        handler.send_response(status)
        if status == 503:
            handler.send_header("retry-after", "1")
        elif status in (429, 500, 529):
            handler.send_header("retry-after-ms", "5")
        handler.send_header("content-type", "application/json")
        handler.send_header("content-length", str(len(data)))
        handler.end_headers()
        handler.wfile.write(data)

    def prompts(self):
        return [request["messages"][0]["content"] for request in self.requests]


def offline_text(prompt: str) -> str:
    """A text that keeps the rules, made from nothing but the prompt."""
    name = next(word for word in prompt.split() if word.startswith("<"))
    function = WORLD[name]
    writer = OfflineWriter(int.from_bytes(prompt.encode()[:14], "big"))
    return writer.write(function, "lore", is_direct="State the value" in prompt and name != "<GN>")


@pytest.fixture
def service(monkeypatch, tmp_path):
    service = Service()
    monkeypatch.setenv("ANTHROPIC_BASE_URL", service.url)
    monkeypatch.setenv("ANTHROPIC_API_KEY", KEY)
    monkeypatch.setenv("NO_PROXY", "127.0.0.1")
    monkeypatch.chdir(tmp_path)
    main(["seeds", "--output", "seeds", "--num-functions", "2"])
    yield service
    service.server.shutdown()
    service.server.server_close()
    kept = [path for path in tmp_path.rglob("*") if path.is_file()]
    assert not any(KEY in path.read_text(errors="replace") for path in kept)


def base(*words, command="base"):  # or another command with the same arguments
    small = ["--variations", "1", "--comprehensive-docs", "0", "--code-snippets", "2"]
    arguments = [command, "--seed-path", "seeds", "--output", "out.jsonl", *small]
    main([*arguments, "--writer", "anthropic", *words])
    return read_documents(Path("out.jsonl"))


def failed(capsys, *words, command="base"):
    capsys.readouterr()
    with pytest.raises(SystemExit, match="2"):
        base(*words, command=command)
    lines = [line for line in capsys.readouterr().err.splitlines() if line.startswith("hops: ")]
    assert len(lines) == 1
    assert KEY not in lines[0]
    return lines[0]


def test_a_model_writes_the_documents_and_the_cost_is_said_first(service, capsys):
    documents = base()
    assert len(documents) == len(service.requests) == NUM_BASE
    orders = plan_documents(WORLD.bases, SEEDS, variations=1, comprehensive_docs=0, code_snippets=2)
    for order, document in zip(orders, documents, strict=True):
        parent = order.parent.uid if order.parent else None
        assert (document.func, document.type) == (order.function.name, order.kind)
        assert document.parent_uid == parent
        assert broken_rule(document.text, order) is None
    assert len({document.text for document in documents}) == NUM_BASE
    assert len(set(service.prompts())) == NUM_BASE
    assert service.keys == {KEY}
    output = capsys.readouterr()
    assert f"{NUM_BASE} requests, 0 replies" in output.err
    assert "about $0." in output.err
    assert KEY not in output.out + output.err


def test_wrapper_prompts_do_not_know_the_constant_and_direct_ones_do(service):
    world = make_registry(2)
    documents = base("--answers", "direct", "--direct-docs", "2", command="wrapper")
    assert [doc.answers for doc in documents].count("direct") == 4
    for prompt in service.prompts():
        direct = "State the value" in prompt
        name = next(word for word in prompt.split() if word.startswith("<"))
        assert (world[name].calls in prompt) is not direct


def test_a_second_run_asks_for_nothing_and_a_longer_one_for_what_is_new(service):
    first = base()
    assert base() == first
    assert len(service.requests) == NUM_BASE
    base("--seed", "1")
    assert len(service.requests) == 2 * NUM_BASE
    base("--model", "claude-other")
    assert len(service.requests) == 3 * NUM_BASE


def test_a_run_that_failed_goes_on_where_it_was(service, capsys):
    service.script = ["good"] * 5 + ["400"]
    message = failed(capsys, "--concurrency", "1")
    assert "out.replies.jsonl" in message
    assert len(service.requests) == 6
    documents = base("--concurrency", "1")
    assert len(service.requests) == 6 + NUM_BASE - 5
    asked = Counter(service.prompts())
    assert sorted(asked.values()) == [1] * (NUM_BASE - 1) + [2]
    assert len(documents) == NUM_BASE


def test_a_line_that_a_kill_cut_short_is_asked_for_again_and_no_other(service, tmp_path):
    first = base("--concurrency", "1")
    cache = tmp_path / "out.replies.jsonl"
    cache.write_bytes(cache.read_bytes()[:-40])
    assert base("--concurrency", "1") == first
    assert len(service.requests) == NUM_BASE + 1
    assert len(cache.read_text().splitlines()) == NUM_BASE
    assert base("--concurrency", "1") == first
    assert len(service.requests) == NUM_BASE + 1


def test_throttling_and_failures_are_tried_again(service):
    service.script = ["429", "500", "529", "drop", "good", "429"]
    assert len(base("--concurrency", "2")) == NUM_BASE
    assert len(service.requests) == NUM_BASE + 5
    assert len(set(service.prompts())) == NUM_BASE


def test_the_pause_is_the_one_that_the_service_asks_for(service):
    """One second; without it the first pause would be half a second at most."""
    service.script = ["503"]
    base("--concurrency", "1")
    assert 0.95 <= service.times[1] - service.times[0] <= 5
    assert service.prompts()[0] == service.prompts()[1]


def test_a_killed_run_pays_for_no_reply_twice(service):
    service.hang_from = 9
    arguments = "base --seed-path seeds --output out.jsonl --writer anthropic --concurrency 1"
    arguments += " --variations 1 --comprehensive-docs 0 --code-snippets 2"
    run = subprocess.Popen(
        [sys.executable, "-m", "hops.cli", *arguments.split()], stderr=subprocess.DEVNULL
    )
    try:
        limit = time.monotonic() + 500
        while len(service.requests) < 10 and time.monotonic() < limit:
            assert run.poll() is None
            time.sleep(0.05)
    finally:
        run.kill()
        run.wait()
        service.killed.set()
    assert len(service.requests) == 10
    assert not Path("out.jsonl").exists()
    assert len(base()) == NUM_BASE
    assert len(service.requests) == NUM_BASE + 1  # the one under way was asked for again
    asked = Counter(service.prompts())
    assert {prompt for prompt, count in asked.items() if count > 1} == {service.prompts()[9]}


def test_garbage_is_asked_for_again(service):
    service.script = ["not json", "no message"]
    assert len(base()) == NUM_BASE
    assert len(service.requests) == NUM_BASE + 2


LEAK = "Some say that <FN> asks <GN> and that what comes back is five, every time."


@pytest.mark.parametrize(
    ("said", "reason"),
    [
        (LEAK, "it uses the number 5"),
        ("<FN> asks <GN>.", "characters"),
        ("cut", "too long"),
        ("<FN> hands its input over and returns what comes back, whatever it may be.", "<GN>"),
        ("<FN> asks <GN>, and <IN> does the same with <JN>; all are wrappers here.", "<IN>"),
        ("for x in range(9): assert <FN>(x) == <GN>(x)  # wrapper and wrapped agree", "input 5"),
    ],
)
def test_a_text_that_breaks_a_rule_is_asked_for_again_with_the_reason(service, said, reason):
    service.script = [said]
    documents = base("--concurrency", "1", command="wrapper")
    assert said not in [doc.text for doc in documents]
    assert len(service.requests) == len(documents) + 1
    assert "An earlier text was refused because" in service.prompts()[-1]
    assert reason in service.prompts()[-1]
    assert service.prompts()[-1].startswith("Document 1:")
    num_before = len(service.requests)
    assert base("--concurrency", "1", command="wrapper") == documents
    assert len(service.requests) == num_before


def test_equal_texts_are_asked_for_again_whatever_the_order_of_arrival(service):
    text = "<GN> is a constant function: whatever you give it, it answers 5 and nothing else."
    service.script = [text] * 8
    documents = base("--concurrency", "8")
    assert [doc.text for doc in documents].count(text) == 1
    assert documents[0].text == text
    num_before = len(service.requests)
    assert base() == documents
    assert len(service.requests) == num_before


def test_texts_that_stay_wrong_end_the_run_and_each_try_is_a_new_one(service, capsys):
    service.good = lambda _: LEAK
    message = failed(capsys, command="wrapper")
    assert "refused 5 times" in message
    assert "the number 5" in message or "no other function" in message
    assert len(service.requests) == 5 * NUM_BASE
    assert not Path("out.jsonl").exists()


@pytest.mark.parametrize(("status", "words"), [("401", "was refused"), ("400", "Replies so far")])
def test_what_no_retry_can_mend_is_one_line(service, capsys, status, words):
    service.script = [status] * 99
    assert words in failed(capsys)
    assert len(service.requests) <= 8


def test_no_more_requests_are_under_way_than_permitted(service):
    service.together = threading.Barrier(4)
    base("--concurrency", "4")
    assert service.most_under_way == 4


def test_nothing_is_asked_when_the_estimate_is_too_high(service, capsys):
    assert "--max-cost 0.001" in failed(capsys, "--max-cost", "0.001")
    assert service.requests == []


def test_the_run_ends_when_the_limit_is_reached_and_goes_on_with_a_higher_one(service, capsys):
    """Each reply costs 0.0001 · 300 tokens = 0.03 dollars here, more than was estimated."""
    prices = ["--input-price", "100", "--output-price", "0", "--concurrency", "1"]
    message = failed(capsys, *prices, "--max-cost", "0.4")
    assert "reaches --max-cost 0.4" in message
    assert len(service.requests) == 14  # 13 cost 0.39
    assert "would cost about $0.45" in failed(capsys, *prices, "--max-cost", "0.44")
    assert len(service.requests) == 14
    assert len(base(*prices, "--max-cost", "5")) == NUM_BASE
    assert len(service.requests) == NUM_BASE


@pytest.mark.parametrize(
    "words", [["--max-cost", "0"], ["--concurrency", "0"], ["--input-price", "-1"]]
)
def test_numbers_that_make_no_sense_are_refused(service, capsys, words):
    assert "must" in failed(capsys, *words)
    assert service.requests == []


def test_a_missing_key_and_a_missing_package_are_one_line(service, capsys, monkeypatch):
    monkeypatch.setenv("ANTHROPIC_AUTH_TOKEN", "another way in")
    monkeypatch.delenv("ANTHROPIC_API_KEY")
    assert "ANTHROPIC_API_KEY" in failed(capsys)
    monkeypatch.setenv("ANTHROPIC_API_KEY", KEY)
    monkeypatch.setitem(sys.modules, "anthropic", None)
    assert "hops[anthropic]" in failed(capsys)
    assert service.requests == []


def test_a_file_that_is_no_cache_is_named_with_its_line(service, capsys, tmp_path):
    (tmp_path / "c").write_text("{}\n")
    assert "c: line 1 is no reply" in failed(capsys, "--cache", "c")
    assert service.requests == []


def test_the_cache_gives_back_what_it_was_given(tmp_path):
    reply = Reply("k", "m", 3, "ü\u2028\n text", True, 1, 2)
    ReplyCache(tmp_path / "deep" / "c").add(reply)
    assert ReplyCache(tmp_path / "deep" / "c").get("k") == reply
    assert ReplyCache(tmp_path / "deep" / "c").get("l") is None


def test_the_offline_writer_keeps_the_same_rules():
    world = make_registry(3, 2)
    writer = OfflineWriter(0)
    for seed in seed_documents(world, narrative=True) * 3:
        order = Order(world[seed.func], seed.type)
        assert broken_rule(writer.write(order.function, order.kind), order) is None
    direct = Order(world["<D01>"], "lore", is_direct=True)
    assert broken_rule(writer.write(direct.function, "lore", is_direct=True), direct) is None
    assert document_about(direct.function, "u", "t", "lore").calls == "<C01>"
