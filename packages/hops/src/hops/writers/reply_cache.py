"""Replies of a language model, kept so that none is paid twice.

A JSONL file, one reply a line, appended to as they arrive: a run that was killed goes on where it
was.  The key of a reply is a hash of everything that was asked.
"""

import hashlib
import json
import os
from dataclasses import asdict, dataclass
from pathlib import Path

from pydantic import TypeAdapter, ValidationError

from hops.errors import HopsError
from hops.files import write_text


@dataclass(frozen=True)
class Reply:
    """One reply.

    Attributes:
        key: What :func:`reply_key` says of the request.
        model: The model that was asked.
        seed: The seed of the run.
        text: The reply.
        is_whole: Whether the model came to an end by itself.
        input_tokens: Tokens of the request that are paid for.
        output_tokens: Tokens of the reply that are paid for.
    """

    key: str
    model: str
    seed: int
    text: str
    is_whole: bool
    input_tokens: int
    output_tokens: int


def reply_key(model: str, seed: int, system: str, prompt: str, num_refused: int) -> str:
    """Hash a request (SHA-256 in hexadecimal); ``num_refused`` replies to it were no use."""
    asked = json.dumps([model, seed, system, prompt, num_refused])
    return hashlib.sha256(asked.encode()).hexdigest()


class ReplyCache:
    """The replies of one file, by key.

    Args:
        path: The file; it need not exist.  A last line that a killed run left unfinished is
            dropped.

    Raises:
        HopsError: The file cannot be read, or another line is no reply.
    """

    def __init__(self, path: Path) -> None:
        self.path = path
        self._replies: dict[str, Reply] = {}
        if not path.exists():
            return
        try:
            content = path.read_bytes()
        except OSError as error:
            raise HopsError(f"{path}: cannot be read ({error.strerror or error}).") from error
        whole, _, torn = content.rpartition(b"\n")
        adapter = TypeAdapter(Reply)
        for number, line in enumerate(whole.split(b"\n") if whole else [], start=1):
            try:
                reply = adapter.validate_json(line)
            except ValidationError as error:
                raise HopsError(
                    f"{path}: line {number} is no reply of an earlier run; name another cache."
                ) from error
            self._replies[reply.key] = reply
        if torn:
            write_text(path, whole.decode() + "\n" if whole else "")

    def get(self, key: str) -> Reply | None:
        """The reply with this key, if it is known."""
        return self._replies.get(key)

    def add(self, reply: Reply) -> None:
        """Keep a reply, on disk before this returns.

        Raises:
            HopsError: The file cannot be written.
        """
        self._replies[reply.key] = reply
        try:
            self.path.parent.mkdir(parents=True, exist_ok=True)
            with self.path.open("ab") as file:
                file.write(json.dumps(asdict(reply)).encode() + b"\n")
                file.flush()
                os.fsync(file.fileno())
        except OSError as error:
            raise HopsError(
                f"{self.path}: cannot be written ({error.strerror or error})."
            ) from error
