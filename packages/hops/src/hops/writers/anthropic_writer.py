"""The writer that asks a model of Anthropic, with the SDK of the extra ``hops[anthropic]``.

Texts are asked for in rounds: all that are missing at once, several at a time, then again those
whose text breaks a rule, with the reason.  Within a round the texts are checked in their order,
so that a run which is taken up again asks for exactly what the first one had no reply to.  The
SDK itself retries what is throttled or fails, after the pause that ``Retry-After`` asks for or
one that doubles.
"""

import asyncio
import os
import sys
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Never

from tqdm import tqdm

from hops.errors import HopsError
from hops.writers.model_prompts import SYSTEM, make_prompt
from hops.writers.orders import Order
from hops.writers.reply_cache import Reply, ReplyCache, reply_key
from hops.writers.rules import broken_rule

if TYPE_CHECKING:
    from anthropic import AsyncAnthropic

KEY_VARIABLE = "ANTHROPIC_API_KEY"
MAX_TOKENS = 400
NUM_ROUNDS = 5
_CHARACTERS_PER_TOKEN = 3.5
_EXPECTED_OUTPUT_TOKENS = 110


@dataclass(frozen=True)
class ModelOptions:
    """Whom to ask, and how much it may cost.

    Attributes:
        model: The model's id.
        cache: The JSONL file that keeps the replies.
        input_price: US dollars for a million tokens of prompts.
        output_price: US dollars for a million tokens of replies.
        max_cost: US dollars that the replies of this data set may cost, kept ones included.
        concurrency: Requests under way at a time.
        num_retries: How often the SDK tries a request again that was throttled or failed.
    """

    model: str
    cache: Path
    input_price: float
    output_price: float
    max_cost: float
    concurrency: int = 8
    num_retries: int = 8

    def cost(self, input_tokens: int, output_tokens: int) -> float:
        """US dollars for some tokens."""
        return (self.input_price * input_tokens + self.output_price * output_tokens) / 1e6


def write_texts(orders: Sequence[Order], options: ModelOptions, *, seed: int) -> list[str]:
    """Have a model write one text for each order, all different and within the rules.

    Args:
        orders: The documents.
        options: Whom to ask, and how much it may cost.
        seed: Varies the prompts; another seed asks anew.

    Returns:
        The texts, in the order of the orders.

    Raises:
        HopsError: The package or the key is missing, the estimate or the cost goes beyond
            ``max_cost``, the service refuses or fails for good, or texts break the rules again
            and again.  Replies that came are kept, and the same call goes on with them.
    """
    if options.concurrency < 1 or not options.max_cost > 0:
        raise HopsError("The concurrency and the largest cost must be positive.")
    if options.input_price < 0 or options.output_price < 0:
        raise HopsError("Prices must not be negative.")
    return _Run(orders, options, seed).texts()


@dataclass(frozen=True)
class _Attempt:
    """How often an order's text was refused, and why the last time."""

    num_refused: int = 0
    complaint: str | None = None


class _Run:
    """The rounds of one call of :func:`write_texts`."""

    def __init__(self, orders: Sequence[Order], options: ModelOptions, seed: int) -> None:
        self._orders, self._options, self._seed = orders, options, seed
        self._cache = ReplyCache(options.cache)
        self._spent = 0.0
        self._counted: set[str] = set()
        self._announced = False

    def texts(self) -> list[str]:
        texts: dict[int, str] = {}
        waiting = dict.fromkeys(range(len(self._orders)), _Attempt())
        for _ in range(NUM_ROUNDS):
            # Without a reply the same is asked again, so that a later run finds what came of it.
            for index, reply in self._round(waiting).items():
                problem = self._problem(index, reply, texts)
                if problem is None:
                    texts[index] = reply.text.strip()
                    del waiting[index]
                else:
                    waiting[index] = _Attempt(waiting[index].num_refused + 1, problem)
            if not waiting:
                return [texts[index] for index in range(len(self._orders))]
        index, attempt = next(iter(waiting.items()))
        raise HopsError(
            f"{self._options.model}: {len(waiting)} of {len(self._orders)} texts were refused "
            f"{NUM_ROUNDS} times; the first, a {self._orders[index].kind} about "
            f"{self._orders[index].function.name}, because "
            f"{attempt.complaint or 'what came was no message'}."
        )

    def _problem(self, index: int, reply: Reply, texts: dict[int, str]) -> str | None:
        """What is wrong with a reply; ``texts`` are those taken so far."""
        if not reply.is_whole:
            return "it was too long"
        text = reply.text.strip()
        problem = broken_rule(text, self._orders[index])
        if problem is None and text in texts.values():
            return "it is equal to another document"
        return problem

    def _round(self, waiting: "dict[int, _Attempt]") -> dict[int, Reply]:
        """Get a reply for each order left, from the cache or from the model; some may fail."""
        options = self._options
        prompts = {
            index: make_prompt(self._orders[index], index, self._seed, attempt.complaint)
            for index, attempt in waiting.items()
        }
        keys = {
            index: reply_key(options.model, self._seed, SYSTEM, prompt, waiting[index].num_refused)
            for index, prompt in prompts.items()
        }
        missing = {i: p for i, p in prompts.items() if self._cache.get(keys[i]) is None}
        for key in keys.values():
            self._count(self._cache.get(key))
        if missing:
            self._announce(missing)
            asyncio.run(self._ask_all(missing, keys))
        found = {index: self._cache.get(key) for index, key in keys.items()}
        return {index: reply for index, reply in found.items() if reply is not None}

    def _announce(self, missing: dict[int, str]) -> None:
        """Print the estimate before the first request, and refuse what is too dear."""
        if self._announced:
            return
        self._announced = True
        options = self._options
        characters = sum(len(SYSTEM) + len(prompt) for prompt in missing.values())
        tokens = round(characters / _CHARACTERS_PER_TOKEN)
        expected = options.cost(tokens, _EXPECTED_OUTPUT_TOKENS * len(missing))
        highest = options.cost(tokens, MAX_TOKENS * len(missing))
        print(
            f"{options.model}: {len(missing)} requests, {len(self._orders) - len(missing)} replies "
            f"are in {options.cache}; about ${expected:.2f}, at most ${highest:.2f} if every reply "
            f"is as long as permitted, and more where texts are asked for again; "
            f"${self._spent:.2f} spent before; the limit is ${options.max_cost:.2f}",
            file=sys.stderr,
        )
        if self._spent + expected > options.max_cost:
            raise HopsError(
                f"The replies would cost about ${self._spent + expected:.2f}, more than "
                f"--max-cost {options.max_cost:g}; raise it or ask for fewer documents."
            )

    def _count(self, reply: Reply | None) -> None:
        if reply is not None and reply.key not in self._counted:
            self._counted.add(reply.key)
            self._spent += self._options.cost(reply.input_tokens, reply.output_tokens)

    async def _ask_all(self, prompts: dict[int, str], keys: dict[int, str]) -> None:
        import anthropic

        try:
            async with _client(self._options) as client:
                turns = asyncio.Semaphore(self._options.concurrency)
                with tqdm(total=len(prompts), desc="asking the model", unit="reply") as progress:
                    async with asyncio.TaskGroup() as group:
                        for index, prompt in prompts.items():
                            ask = self._ask(client, turns, prompt, keys[index], progress)
                            group.create_task(ask)
        except ExceptionGroup as errors:
            error = errors.exceptions[0]
            if isinstance(error, anthropic.AnthropicError):
                raise HopsError(self._explained(error)) from None
            raise error from None

    async def _ask(
        self,
        client: "AsyncAnthropic",
        turns: asyncio.Semaphore,
        prompt: str,
        key: str,
        progress: "tqdm[Never]",
    ) -> None:
        options = self._options
        async with turns:
            if self._spent >= options.max_cost:
                raise HopsError(
                    f"The replies have cost ${self._spent:.2f}, which reaches --max-cost "
                    f"{options.max_cost:g}; they are kept in {options.cache}."
                )
            try:
                message = await client.messages.create(
                    model=options.model,
                    max_tokens=MAX_TOKENS,
                    system=SYSTEM,
                    messages=[{"role": "user", "content": prompt}],
                )
                reply = Reply(
                    key=key,
                    model=options.model,
                    seed=self._seed,
                    text="".join(part.text for part in message.content if part.type == "text"),
                    is_whole=message.stop_reason == "end_turn",
                    input_tokens=int(message.usage.input_tokens),
                    output_tokens=int(message.usage.output_tokens),
                )
            except (AttributeError, TypeError, ValueError):
                return  # what came is no message; the next round asks again
        self._cache.add(reply)
        self._count(reply)
        progress.update()

    def _explained(self, error: Exception) -> str:
        """One line about an error of the SDK, without the key."""
        key = os.environ.get(KEY_VARIABLE, "")
        said = " ".join(str(error).split())[:300].rstrip(".")
        said = said.replace(key, "***") if key else said
        status = getattr(error, "status_code", None)
        if status in (401, 403):
            said = f"the key in {KEY_VARIABLE} was refused ({said})"
        return (
            f"{self._options.model}: {said}. Replies so far are kept in {self._options.cache}; "
            "the same command goes on with them."
        )


def _client(options: ModelOptions) -> "AsyncAnthropic":
    """Make the SDK's client; the key comes from the environment and goes nowhere else."""
    from anthropic import AsyncAnthropic

    return AsyncAnthropic(api_key=os.environ[KEY_VARIABLE], max_retries=options.num_retries)


def check_ready() -> None:
    """Say what is missing before any work.

    Raises:
        HopsError: The package is not installed, or there is no key.
    """
    try:
        import anthropic  # noqa: F401
    except ImportError as error:
        raise HopsError(
            "--writer anthropic needs the package anthropic: install hops with its extra, "
            "hops[anthropic]."
        ) from error
    if not os.environ.get(KEY_VARIABLE):
        raise HopsError(f"--writer anthropic needs a key in the environment: set {KEY_VARIABLE}.")
