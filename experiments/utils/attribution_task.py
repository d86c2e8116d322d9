"""What a method of attribution is asked: documents, queries, the truth, and two checkpoints.

Everything that scripts share about the input is here; loads torch only when a model is needed.
"""

import json
from dataclasses import dataclass, field, replace
from functools import cached_property
from pathlib import Path
from typing import Any, Literal

import numpy as np
from hops.documents import Document, read_documents, registry_of
from hops.functions import Registry
from hops.prompts import PROMPT_FORMAT
from hops.queries import QUERY_INPUTS, taught
from if_query.errors import InputError
from jaxtyping import Bool
from pydantic import ConfigDict
from pydantic.dataclasses import dataclass as checked_dataclass
from utils.saved_parts import Parts
from utils.task_queries import TaskQuery, queries_about, read_queries

DType = Literal["float32", "float64", "bfloat16", "float16"]


@checked_dataclass(frozen=True, config=ConfigDict(extra="forbid"))
class TaskArguments:
    """The flags that every method's script has."""

    dataset: Path
    """HOPS documents (JSONL)."""
    old: str | None = None
    """The checkpoint before the training in question: a local folder or a Hugging Face id."""
    new: str | None = None
    """The checkpoint after it."""
    queries: Path | None = None
    """Queries to ask instead of those about the documents' functions: a `query.json` of `hops
    queries`, or JSONL of the same objects."""
    hop_depths: tuple[int, ...] = (0, 1)
    """Ask about the functions of these depths: 0 base functions, 1 their wrappers."""
    inputs: tuple[int, ...] = QUERY_INPUTS
    """Ask for the value at these inputs."""
    prompt_format: str = PROMPT_FORMAT
    """The prompt, with {func} and {input}."""
    batch_size: int = 16
    """Texts in one forward pass."""
    padding_side: Literal["right", "left"] = "right"
    """Where shorter texts are padded; of no effect on the scores beyond rounding."""
    dtype: DType = "float32"
    """Precision of the models; gradients and changes of states need float32 or float64."""
    device: str | None = None
    """Where the models run; CUDA where there is one by default."""
    seed: int = 0
    """Seed of whatever is random: random scores, the split of queries, bootstrap intervals."""

    def check(self) -> None:
        """Say what is out of range, before anything is read.

        Raises:
            InputError: a value is out of range.
        """
        if self.batch_size < 1:
            raise InputError(f"--batch-size: expected at least 1, got {self.batch_size}")
        if self.seed < 0:
            raise InputError(f"--seed: expected at least 0, got {self.seed}")


@dataclass(frozen=True, eq=False)
class AttributionTask:
    """Documents to rank, queries to rank them for, and the models to ask; models load on demand.

    Attributes:
        rows: the documents as they were read, all fields, in file order.
        documents: the same, checked.
        queries: what is asked.
        arguments: how the models are loaded and run, and the seed.
        parts: where a method keeps what it has finished, see :class:`utils.saved_parts.Parts`.
        notes: what a method found out on the way, as JSON values, for its metrics.
    """

    rows: tuple[dict[str, Any], ...]
    documents: tuple[Document, ...]
    queries: tuple[TaskQuery, ...]
    arguments: TaskArguments
    parts: Parts = field(default_factory=Parts)
    notes: dict[str, Any] = field(default_factory=dict)

    @classmethod
    def read(cls, arguments: TaskArguments) -> "AttributionTask":
        """Read documents and queries; no model yet.

        Raises:
            InputError, HopsError: a file is unusable, no document is about a function, or a query
                has no document that taught it.
        """
        arguments.check()
        documents = read_documents(arguments.dataset)
        lines = arguments.dataset.read_text(encoding="utf-8").removesuffix("\n").split("\n")
        registry = registry_of(documents)
        if not registry.functions:
            raise InputError(f"{arguments.dataset}: no document is about a function")
        queries = (
            queries_about(
                registry,
                documents,
                inputs=arguments.inputs,
                depths=arguments.hop_depths,
                prompt_format=arguments.prompt_format,
            )
            if arguments.queries is None
            else read_queries(arguments.queries, registry)
        )
        task = cls(tuple(json.loads(line) for line in lines), tuple(documents), queries, arguments)
        task.check_truth()
        return task

    def with_parts(self, parts: Parts) -> "AttributionTask":
        """The same task, whose finished parts are kept elsewhere; models load anew."""
        return replace(self, parts=parts, notes={})

    def check_truth(self) -> None:
        """Refuse a query that no document taught, or every one: its ranking means nothing.

        Raises:
            InputError: naming the first such query.
        """
        num_relevant = self.relevance.sum(axis=1)
        for query, number in zip(self.queries, num_relevant, strict=True):
            if number in (0, len(self.documents)):
                which = "no document is" if number == 0 else "all documents are"
                states = " and states a value" if query.hop_depth == 0 and number == 0 else ""
                raise InputError(
                    f"{query.query_id}: {which} about {' or '.join(query.taught_by)}{states}, "
                    "so that there is nothing to find"
                )

    @cached_property
    def relevance(self) -> Bool[np.ndarray, "query document"]:
        """True where a document taught a query's answer, see :func:`hops.queries.taught`."""
        return np.array(
            [
                [
                    taught(one, taught_by=query.taught_by, hop_depth=query.hop_depth)
                    for one in self.documents
                ]
                for query in self.queries
            ]
        )

    @cached_property
    def states_value(self) -> Bool[np.ndarray, "query document"]:
        """True where a document that taught a query's answer also states it."""
        stated: np.ndarray = self.relevance & np.array([one.states_value for one in self.documents])
        return stated

    @cached_property
    def chains(self) -> np.ndarray:
        """The base function behind each document; "" for a distractor [document]."""
        return np.array(
            [
                "" if one.role == "distractor" or one.func is None else self.registry[one.func].base
                for one in self.documents
            ]
        )

    @cached_property
    def registry(self) -> Registry:
        """The functions that the documents are about."""
        return registry_of(self.documents)

    @property
    def device(self) -> str:
        """Where the models run."""
        from if_query.models import default_device

        return self.arguments.device or default_device()

    @property
    def texts(self) -> list[str]:
        """The documents' texts."""
        return [document.text for document in self.documents]

    @cached_property
    def old_model(self) -> Any:
        """The old checkpoint."""
        return self._load(self.arguments.old, "--old")

    @cached_property
    def new_model(self) -> Any:
        """The new checkpoint."""
        return self._load(self.arguments.new, "--new")

    def load(self, *, old: bool, new: bool) -> None:
        """Load and encode now what would otherwise be loaded on demand, for honest timing."""
        import attribution.baselines  # noqa: F401  (its import takes seconds)

        if new:
            self.query_examples, self.document_examples  # noqa: B018
        if old:
            self.checkpoints  # noqa: B018

    @cached_property
    def checkpoints(self) -> Any:
        """Both as :class:`attribution.checkpoints.Checkpoints`, checked once."""
        from attribution.checkpoints import Checkpoints

        return Checkpoints(self.old_model, self.new_model)

    @cached_property
    def tokenizers(self) -> tuple[Any, Any]:
        """The old checkpoint's and the new one's; twice the latter where there is no old one."""
        from if_query.models import load_tokenizer

        new = load_tokenizer(_given(self.arguments.new, "--new"))
        old = new if self.arguments.old is None else load_tokenizer(self.arguments.old)
        return old, new

    @cached_property
    def document_examples(self) -> list[Any]:
        """The documents as :class:`attribution.examples.Example`, an end token after each."""
        from attribution.examples import encode_documents

        return self._fitting(encode_documents(self.texts, *self.tokenizers), "document")

    @cached_property
    def answer_examples(self) -> list[Any]:
        """The documents with the last place that states an answer as the target.

        What counts are the answers of all queries alike, as their tokens, and nothing of what the
        data set says a document is about. A document that states none keeps its whole text.
        """
        answers = {one.token_ids[slice(*one.span)] for one in self.query_examples}
        return [_at_last_answer(one, answers) for one in self.document_examples]

    @cached_property
    def query_examples(self) -> list[Any]:
        """The queries as :class:`attribution.examples.Example`, the answer being the target."""
        from attribution.examples import encode_queries

        prompts, answers = ([getattr(q, n) for q in self.queries] for n in ("prompt", "answer"))
        return self._fitting(encode_queries(prompts, answers, *self.tokenizers), "query")

    def _load(self, name: str | None, flag: str) -> Any:
        import torch
        from if_query.models import load_model

        dtype = self.arguments.dtype
        loaded = load_model(
            _given(name, flag),
            dtype="float32" if dtype == "float64" else dtype,
            device=self.arguments.device,
        )
        return loaded.to(torch.float64) if dtype == "float64" else loaded

    def _fitting(self, examples: list[Any], what: str) -> list[Any]:
        from attribution.decoder import num_positions

        limit = num_positions(self.new_model)
        unknown = self.tokenizers[1].unk_token_id
        for index, example in enumerate(examples):
            if unknown is not None and unknown in example.token_ids[:-1]:
                raise InputError(
                    f"{what} {index}: the tokenizer of {self.arguments.new} does not know all of "
                    "its text; was `hops add-tokens` run?"
                )
            if limit is not None and len(example.token_ids) > limit:
                raise InputError(
                    f"{what} {index} has {len(example.token_ids)} tokens; "
                    f"{self.arguments.new} takes {limit}"
                )
        return examples


def _at_last_answer(document: Any, answers: set[tuple[int, ...]]) -> Any:
    ids = document.token_ids
    for stop in range(len(ids), 1, -1):
        # The longest, should one answer be the end of another.
        for length in sorted({len(answer) for answer in answers}, reverse=True):
            if stop > length and ids[stop - length : stop] in answers:
                return replace(document, span=(stop - length, stop))
    return document


def _given(name: str | None, flag: str) -> str:
    if name is None:
        raise InputError(f"this method needs a checkpoint: pass {flag}")
    return name
