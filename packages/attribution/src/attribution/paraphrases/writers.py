"""Who rewrites texts: a local Hugging Face model, or Claude through Anthropic's SDK."""

import hashlib
import json
import os
from pathlib import Path
from typing import Any, Protocol, runtime_checkable

import torch

from attribution.decoder import num_positions
from attribution.errors import AttributionError
from attribution.modes import evaluation_mode
from attribution.paraphrases.chat import encode_prompt
from attribution.paraphrases.samples import Turn

_USER_REQUEST = (
    "Rewrite the following message so that it asks for the same thing in different words. Keep "
    "its language. Answer with the rewritten message alone.\n\n{text}"
)
_ASSISTANT_REQUEST = (
    "Rewrite the following answer so that it says the same thing in different words, at about the "
    "same length. Keep its language. Answer with the rewritten text alone.\n\n{text}"
)


@runtime_checkable
class Writer(Protocol):
    """Something that answers a request with a text."""

    @property
    def name(self) -> str:
        """What answered, as the cache of replies has it."""
        ...

    def reply(self, request: str) -> str:
        """Answer one request."""
        ...


def paraphrase(writer: Writer, turn: Turn) -> Turn:
    """Have both sides of a turn rewritten, each by a request of its own."""
    return Turn(
        writer.reply(_USER_REQUEST.format(text=turn.user)).strip(),
        writer.reply(_ASSISTANT_REQUEST.format(text=turn.assistant)).strip(),
    )


class LocalWriter:
    """A causal language model that answers greedily.

    Args:
        model: a Hugging Face causal language model.
        tokenizer: its tokenizer; its chat template is used if it has one.
        name: what the cache calls it.
        max_new_tokens: longest answer.
    """

    def __init__(self, model: Any, tokenizer: Any, name: str, *, max_new_tokens: int) -> None:
        self.model, self.tokenizer, self._name = model, tokenizer, name
        self.max_new_tokens = max_new_tokens

    @property
    def name(self) -> str:
        """The model, and how much it may write."""
        return f"{self._name}, greedy, {self.max_new_tokens} tokens"

    def reply(self, request: str) -> str:
        """The greedy answer, without special tokens; it ends where the model's positions do.

        Raises:
            AttributionError: if the request leaves no position for an answer.
        """
        prompt = encode_prompt(self.tokenizer, request)
        limit = num_positions(self.model)
        room = self.max_new_tokens if limit is None else limit - len(prompt)
        if room < 1:
            raise AttributionError(
                f"a request of {len(prompt)} tokens leaves no room for an answer in the model's "
                f"{limit} positions: {request[:40]!r}…"
            )
        ids = torch.tensor([prompt], device=self.model.device)
        end = self.tokenizer.eos_token_id
        pad = self.tokenizer.pad_token_id
        with evaluation_mode(self.model), torch.no_grad():
            written = self.model.generate(
                ids,
                attention_mask=torch.ones_like(ids),
                do_sample=False,
                max_new_tokens=min(room, self.max_new_tokens),
                pad_token_id=end if pad is None else pad,
            )
        text: str = self.tokenizer.decode(written[0, ids.shape[1] :], skip_special_tokens=True)
        return text.strip()


class AnthropicWriter:
    """A Claude model; needs the extra ``attribution[anthropic]`` and a key in ANTHROPIC_API_KEY.

    The SDK itself retries what is worth retrying, and reads ANTHROPIC_BASE_URL.

    Args:
        model: the name of the model.
        max_tokens: longest answer.

    Raises:
        AttributionError: if the SDK or the key is missing.
    """

    def __init__(self, model: str, *, max_tokens: int) -> None:
        try:
            import anthropic
        except ImportError as error:
            raise AttributionError(
                "the writer anthropic needs the package anthropic: "
                "install attribution[anthropic], or take --writer local"
            ) from error
        if not os.environ.get("ANTHROPIC_API_KEY"):
            raise AttributionError("the writer anthropic needs a key in ANTHROPIC_API_KEY")
        self._errors = anthropic.AnthropicError
        self._client = anthropic.Anthropic()
        self.model, self.max_tokens = model, max_tokens

    @property
    def name(self) -> str:
        """The model, and how much it may write."""
        return f"{self.model}, {self.max_tokens} tokens"

    def reply(self, request: str) -> str:
        """The text of the model's answer.

        Raises:
            AttributionError: if the service answers with an error or cannot be reached.
        """
        try:
            answer = self._client.messages.create(
                model=self.model,
                max_tokens=self.max_tokens,
                messages=[{"role": "user", "content": request}],
            )
        except self._errors as error:
            raise AttributionError(f"{self.model}: {str(error).splitlines()[0]}") from error
        return "".join(block.text for block in answer.content if block.type == "text").strip()


class CachedWriter:
    """Another writer's replies, each asked for only once and kept as a line of JSONL.

    A line that a kill cut short is ignored, and its reply asked for again.

    Args:
        writer: who answers what is not there yet.
        path: the file of replies; made if it is missing.
    """

    def __init__(self, writer: Writer, path: Path) -> None:
        self.writer, self.path = writer, path
        self._replies: dict[tuple[str, str], str] = {}
        text = path.read_text(encoding="utf-8") if path.is_file() else ""
        for line in text.splitlines():
            try:
                kept = json.loads(line)
                self._replies[kept["writer"], kept["request_sha256"]] = kept["reply"]
            except (ValueError, KeyError, TypeError):
                continue
        self._ended = not text or text.endswith("\n")

    @property
    def name(self) -> str:
        """The other writer's."""
        return self.writer.name

    def reply(self, request: str) -> str:
        """From the file, or else from the writer."""
        key = self.name, hashlib.sha256(request.encode()).hexdigest()
        if key not in self._replies:
            self._replies[key] = self.writer.reply(request)
            self._append({"writer": key[0], "request_sha256": key[1], "reply": self._replies[key]})
        return self._replies[key]

    def _append(self, kept: dict[str, str]) -> None:
        self.path.parent.mkdir(parents=True, exist_ok=True)
        with self.path.open("a", encoding="utf-8") as file:
            start = "" if self._ended else "\n"
            file.write(f"{start}{json.dumps(kept, ensure_ascii=False)}\n")
        self._ended = True
