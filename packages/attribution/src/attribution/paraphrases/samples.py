"""Single-turn instruction samples with their paraphrases: reading, choosing and writing them."""

import json
import re
import shutil
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any, Literal

import numpy as np

from attribution.errors import AttributionError
from attribution.gradient_similarity.store import replacing

Column = Literal["messages", "paraphrased_messages", "model_generated_messages"]
Setting = Literal["paraphrased", "model-generated"]
QUERY_COLUMNS: dict[Setting, Column] = {
    "paraphrased": "paraphrased_messages",
    "model-generated": "model_generated_messages",
}
_JSON_SUFFIXES = (".jsonl", ".json")


@dataclass(frozen=True)
class Turn:
    """One question and its answer.

    Attributes:
        user: what is asked.
        assistant: what is answered.
    """

    user: str
    assistant: str

    def messages(self) -> list[dict[str, str]]:
        """The two messages, as data sets and chat templates have them."""
        return [
            {"role": "user", "content": self.user},
            {"role": "assistant", "content": self.assistant},
        ]


@dataclass(frozen=True)
class Sample:
    """A training sample and what was made of it.

    Attributes:
        id: its number, unique in the data set.
        turns: by column; ``messages`` is always there.
    """

    id: int
    turns: Mapping[Column, Turn]

    @property
    def original(self) -> Turn:
        """The sample as it was trained on."""
        return self.turns["messages"]

    def row(self) -> dict[str, Any]:
        """As a row of a data set."""
        return {"id": self.id} | {name: turn.messages() for name, turn in self.turns.items()}


def read_samples(source: str, *, required: Sequence[Column] = ("messages",)) -> list[Sample]:
    """Read samples, in the order of their numeric ids.

    Args:
        source: a JSONL file, a folder that ``datasets`` saved, or a Hugging Face id, of which the
            split ``train`` is read. Rows have ``id`` (an integer, or its digits), ``messages``
            (a user's message and the assistant's) and possibly the other columns.
        required: columns that every row must have.

    Raises:
        AttributionError: on a missing or unreadable source, a row that is no sample, an id that
            repeats or a column that is missing; names the row.
    """
    path = Path(source)
    if path.suffix in _JSON_SUFFIXES or path.is_file():
        rows = _read_jsonl(path)
    else:
        rows = _read_data_set(source)
    samples: dict[int, Sample] = {}
    for where, row in rows:
        sample = _sample(row, f"{source}: {where}", required)
        if sample.id in samples:
            raise AttributionError(f"{source}: {where}: the id {sample.id} repeats")
        samples[sample.id] = sample
    if not samples:
        raise AttributionError(f"{source}: no samples")
    return [samples[key] for key in sorted(samples)]


def choose_samples(samples: Sequence[Sample], size: int | None, *, seed: int) -> list[Sample]:
    """A random choice without replacement, in the order given; all where ``size`` is None.

    Raises:
        AttributionError: if there are not so many samples, none is asked for, or the seed is
            negative.
    """
    if size is None:
        return list(samples)
    if seed < 0:
        raise AttributionError(f"expected a seed of at least 0, got {seed}")
    if not 1 <= size <= len(samples):
        raise AttributionError(
            f"expected a sample size between 1 and {len(samples)}, the number of samples, "
            f"got {size}"
        )
    places = np.random.default_rng(seed).choice(len(samples), size=size, replace=False)
    return [samples[place] for place in sorted(places.tolist())]


def write_samples(path: Path, samples: Iterable[Sample]) -> None:
    """Write JSONL where the name ends in .jsonl or .json, otherwise a folder of ``datasets``.

    The file is the old one or the new one, never half of one; a folder must not exist yet.

    Raises:
        AttributionError: if the folder exists.
    """
    rows = [sample.row() for sample in samples]
    path.parent.mkdir(parents=True, exist_ok=True)
    if path.suffix in _JSON_SUFFIXES:
        with replacing(path) as temporary:
            lines = (json.dumps(row, ensure_ascii=False) + "\n" for row in rows)
            temporary.write_text("".join(lines), encoding="utf-8")
        return
    if path.exists():
        raise AttributionError(f"{path}: already exists; choose another folder")
    from datasets import Dataset

    partial = path.with_name(f".{path.name}.tmp")
    shutil.rmtree(partial, ignore_errors=True)
    Dataset.from_list(rows).save_to_disk(str(partial))
    partial.replace(path)


def _read_jsonl(path: Path) -> list[tuple[str, Any]]:
    try:
        lines = path.read_text(encoding="utf-8").split("\n")
    except FileNotFoundError as error:
        raise AttributionError(f"{path}: no such file") from error
    except (OSError, UnicodeDecodeError) as error:
        raise AttributionError(f"{path}: cannot be read: {error}") from error
    rows = []
    for number, line in enumerate(lines, start=1):
        if not line.strip():
            continue
        try:
            rows.append((f"line {number}", json.loads(line)))
        except ValueError as error:
            raise AttributionError(f"{path}: line {number}: not JSON: {error}") from error
    return rows


def _read_data_set(source: str) -> list[tuple[str, Any]]:
    from datasets import Dataset, DatasetDict, load_dataset, load_from_disk

    local = Path(source).is_dir()
    if not local and not re.fullmatch(r"[\w.-]+/[\w.-]+", source):
        raise AttributionError(f"{source}: no such file or folder, and not a Hugging Face id")
    try:
        found = load_from_disk(source) if local else load_dataset(source)
    except Exception as error:  # whatever the hub, the network or the files are up to
        reason = str(error).strip().split("\n")[0] or type(error).__name__
        raise AttributionError(f"{source}: no data set could be loaded: {reason}") from error
    if isinstance(found, DatasetDict):
        if "train" not in found:
            raise AttributionError(f"{source}: expected a split train, got {', '.join(found)}")
        found = found["train"]
    if not isinstance(found, Dataset):
        raise AttributionError(f"{source}: expected a data set, got {type(found).__name__}")
    return [(f"row {place}", row) for place, row in enumerate(found)]


def _sample(row: Any, where: str, required: Sequence[Column]) -> Sample:
    if not isinstance(row, dict):
        raise AttributionError(f"{where}: expected an object, got {type(row).__name__}")
    if "id" not in row:
        raise AttributionError(f"{where}: no column id")
    number = row["id"]
    if isinstance(number, str) and re.fullmatch(r"[0-9]+", number):
        number = int(number)
    if not isinstance(number, int) or isinstance(number, bool) or number < 0:
        raise AttributionError(f"{where}: expected a whole number as id, got {row['id']!r}")
    columns: list[Column] = ["messages", *QUERY_COLUMNS.values()]
    turns = {name: _turn(row[name], f"{where}: {name}") for name in columns if row.get(name)}
    for name in dict.fromkeys((*required, columns[0])):
        if name not in turns:
            raise AttributionError(f"{where}: no column {name}{_HINTS.get(name, '')}")
    return Sample(number, turns)


_HINTS = {
    "paraphrased_messages": "; make it with paraphrase_dataset.py --dataset-type paraphrased",
    "model_generated_messages": "; make it with paraphrase_dataset.py "
    "--dataset-type model-generated",
}


def _turn(messages: Any, where: str) -> Turn:
    shape = "a user's message and the assistant's answer, each with role and content"
    if not isinstance(messages, list) or not all(isinstance(one, dict) for one in messages):
        raise AttributionError(f"{where}: expected {shape}")
    roles = [one.get("role") for one in messages]
    contents = [one.get("content") for one in messages]
    if roles != ["user", "assistant"] or not all(isinstance(text, str) for text in contents):
        raise AttributionError(f"{where}: expected {shape}, got the roles {roles}")
    return Turn(*contents)
