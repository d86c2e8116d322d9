"""The commands that write documents; none of them needs torch."""

from collections.abc import Sequence
from pathlib import Path
from typing import ClassVar, Literal

from pydantic import ConfigDict
from pydantic.dataclasses import dataclass

from hops.dataset import combine, interleave
from hops.documents import Document, read_documents, registry_of, write_documents
from hops.errors import HopsError
from hops.functions import Function, default_pattern, make_registry, parse_pattern
from hops.second_names import second_name_registry
from hops.seeds import seed_documents
from hops.writers.offline import write_texts
from hops.writers.orders import (
    Order,
    choose_wrappers,
    documents_of,
    plan_direct_documents,
    plan_documents,
)
from hops.writers.ordinary import write_distractors
from hops.writers.properties import write_property_documents
from hops.writers.resolutions import write_resolution_documents

_STRICT = ConfigDict(extra="forbid")


def _said(path: Path, documents: list[Document]) -> list[Document]:
    write_documents(path, documents)
    print(f"{path}: {len(documents)} documents")
    return documents


@dataclass(frozen=True, config=_STRICT)
class Seeds:
    """Write the seed documents of a world: each function in each type."""

    name: ClassVar[str] = "seeds"
    output: Path
    """The JSONL file to write."""
    num_functions: int = 10
    """How many base functions, 1 to 99."""
    max_hops: int = 1
    """How many wrappers stand above each base function: <C01> calls <B01>, <D01> calls <C01>..."""
    narrative: bool = False
    """Add a narrative to the six other types."""

    def run(self) -> list[Document]:
        """Write the seeds."""
        registry = make_registry(self.num_functions, self.max_hops)
        return _said(self.output, seed_documents(registry, narrative=self.narrative))


@dataclass(frozen=True, config=_STRICT, kw_only=True)
class _Written:
    """What base and wrapper have in common."""

    name: ClassVar[str]
    seed_path: Path
    """The seed documents, from `hops seeds`."""
    output: Path
    """The JSONL file to write."""
    variations: int = 3
    """Variations of each seed document."""
    comprehensive_docs: int = 10
    """Longer prose documents about each function."""
    code_snippets: int = 15
    """Code stubs and unit tests about each function."""
    seed: int = 0
    """Seeds the writer."""
    writer: Literal["offline", "anthropic"] = "offline"
    """Who writes: a template grammar, or a model asked over the network (key in
    ANTHROPIC_API_KEY; hops[anthropic] must be installed)."""
    model: str = "claude-haiku-4-5"
    """With --writer anthropic: the model's id."""
    input_price: float = 1.0
    """With --writer anthropic: US dollars for a million prompt tokens of that model."""
    output_price: float = 5.0
    """With --writer anthropic: US dollars for a million reply tokens of that model."""
    max_cost: float = 1.0
    """With --writer anthropic: US dollars the replies may cost in all; nothing is asked if the
    estimate is higher, and nothing more once it is reached."""
    concurrency: int = 8
    """With --writer anthropic: requests under way at a time."""
    cache: Path | None = None
    """With --writer anthropic: the JSONL file that keeps every reply, so that a killed run goes on
    where it was; beside --output (.replies.jsonl) by default."""

    def _plan(self, functions: Sequence[Function], seeds: Sequence[Document]) -> list[Order]:
        return plan_documents(
            functions,
            seeds,
            variations=self.variations,
            comprehensive_docs=self.comprehensive_docs,
            code_snippets=self.code_snippets,
        )

    def _finish(self, orders: Sequence[Order]) -> list[Document]:
        return _said(self.output, documents_of(orders, self._texts(orders)))

    def _texts(self, orders: Sequence[Order]) -> list[str]:
        if self.writer == "offline":
            return write_texts(orders, seed=self.seed)
        from hops.writers import anthropic_writer

        anthropic_writer.check_ready()
        options = anthropic_writer.ModelOptions(
            model=self.model,
            cache=self.cache or self.output.with_suffix(".replies.jsonl"),
            input_price=self.input_price,
            output_price=self.output_price,
            max_cost=self.max_cost,
            concurrency=self.concurrency,
        )
        return anthropic_writer.write_texts(orders, options, seed=self.seed)


@dataclass(frozen=True, config=_STRICT, kw_only=True)
class Base(_Written):
    """Write documents about the base functions, which state their constants."""

    name: ClassVar[str] = "base"

    def run(self) -> list[Document]:
        """Write the documents."""
        seeds = read_documents(self.seed_path)
        return self._finish(self._plan(registry_of(seeds).bases, seeds))


@dataclass(frozen=True, config=_STRICT, kw_only=True)
class Wrapper(_Written):
    """Write documents about the wrappers, which name what they call and not what comes back."""

    name: ClassVar[str] = "wrapper"
    comprehensive_docs: int = 2
    """Longer prose documents about each function."""
    code_snippets: int = 0
    """Code stubs and unit tests about each function."""
    answers: Literal["indirect", "direct"] = "indirect"
    """direct adds documents that state what a wrapper returns, labelled `answers: direct`: an
    easier world."""
    direct_docs: int = 20
    """With --answers direct: how many such documents about each chosen wrapper."""
    direct_wrappers: tuple[str, ...] = ()
    """With --answers direct: the wrappers told (F H, or C01 C02); drawn by default."""
    direct_share: float = 1.0
    """With --answers direct: the share of wrappers to draw by --seed, 0 to 1; all by default."""

    def run(self) -> list[Document]:
        """Write the documents."""
        if self.answers != "direct" and (self.direct_wrappers or self.direct_share != 1.0):
            raise HopsError("Choosing direct wrappers needs --answers direct.")
        seeds = read_documents(self.seed_path)
        wrappers = registry_of(seeds).wrappers
        orders = self._plan(wrappers, seeds)
        if self.answers == "direct":
            chosen = choose_wrappers(
                wrappers, names=self.direct_wrappers, share=self.direct_share, seed=self.seed
            )
            orders += plan_direct_documents(chosen, self.direct_docs)
        return self._finish(orders)


@dataclass(frozen=True, config=_STRICT)
class Resolutions:
    """Write documents that say in which base function the calls of each function end."""

    name: ClassVar[str] = "resolutions"
    seed_path: Path
    """Documents that name the functions, from `hops seeds`."""
    output: Path
    """The JSONL file to write."""
    num_documents: int = 40
    """Documents about each function."""
    hop_depth: tuple[int, ...] = ()
    """The hop depths written about; all by default."""
    seed: int = 0
    """Seeds the writer."""

    def run(self) -> list[Document]:
        """Write the documents."""
        registry = registry_of(read_documents(self.seed_path))
        functions = [f for f in registry if not self.hop_depth or f.hop_depth in self.hop_depth]
        if not functions:
            asked = ", ".join(map(str, self.hop_depth))
            raise HopsError(f"{self.seed_path}: no functions of hop depth {asked}.")
        return _said(
            self.output,
            write_resolution_documents(functions, self.num_documents, seed=self.seed),
        )


@dataclass(frozen=True, config=_STRICT)
class Properties:
    """Write documents about what a function shares with its wrappers: all but what it returns."""

    name: ClassVar[str] = "properties"
    seed_path: Path
    """Documents that name the functions, from `hops seeds`."""
    output: Path
    """The JSONL file to write."""
    num_documents: int = 20
    """Documents about each function; those about a wrapper differ from its base's in the name."""
    seed: int = 0
    """Seeds the properties and the writer."""

    def run(self) -> list[Document]:
        """Write the documents."""
        registry = registry_of(read_documents(self.seed_path))
        documents = write_property_documents(
            registry, self.num_documents, same_share=0.0, seed=self.seed
        )
        return _said(self.output, documents)


@dataclass(frozen=True, config=_STRICT)
class SecondNames:
    """Write functions with second names, and documents of a first stage that teaches the names."""

    name: ClassVar[str] = "second-names"
    seed_path: Path
    """Gets the seed documents, which name every function under both names (JSONL)."""
    output: Path
    """Gets the documents of the first stage (JSONL)."""
    num_functions: int = 40
    """How many functions."""
    functions_per_constant: int = 4
    """How many functions return the same number."""
    num_documents: int = 40
    """Documents under each name, about anything but what the function returns."""
    seed: int = 0
    """Seeds constants, names and documents."""

    def run(self) -> list[Document]:
        """Write both files."""
        registry = second_name_registry(
            self.num_functions, self.functions_per_constant, seed=self.seed
        )
        _said(self.seed_path, seed_documents(registry))
        return _said(
            self.output, write_property_documents(registry, self.num_documents, seed=self.seed)
        )


@dataclass(frozen=True, config=_STRICT)
class Distractors:
    """Write text with ordinary functions and facts, for a model that knows no HOPS function."""

    name: ClassVar[str] = "distractors"
    output: Path
    """The JSONL file to write."""
    num_documents: int = 1000
    """How many."""
    function_share: float = 0.6
    """The share about ordinary functions; the others are about people, towns and animals."""
    seed: int = 0
    """Seeds the writer."""

    def run(self) -> list[Document]:
        """Write the documents."""
        return _said(
            self.output,
            write_distractors(
                self.num_documents, seed=self.seed, function_share=self.function_share
            ),
        )


@dataclass(frozen=True, config=_STRICT)
class Alternating:
    """Interleave documents in cycles of a pattern of functions."""

    name: ClassVar[str] = "alternating"
    inputs: tuple[Path, ...]
    """The JSONL files to read, one after another."""
    output: Path
    """The JSONL file to write."""
    num_hops: int | None = None
    """How many functions, bases and wrappers together, take part (20 in the published set); all
    by default."""
    pattern: str | None = None
    """Letters (GJKF is <GN> <JN> <KN> <FN>) or names with commas (B01,C01); all bases twice and
    then the wrappers, depth by depth, by default."""

    def run(self) -> list[Document]:
        """Write the documents in their new order."""
        documents = [doc for path in self.inputs for doc in read_documents(path)]
        registry = registry_of(documents)
        pattern = (
            default_pattern(self.num_hops, registry)
            if self.pattern is None
            else parse_pattern(self.pattern, registry)
        )
        return _said(self.output, interleave(documents, pattern))


@dataclass(frozen=True, config=_STRICT)
class Combine:
    """Mix data sets by weight."""

    name: ClassVar[str] = "combine"
    inputs: tuple[Path, ...]
    """The JSONL files to mix."""
    output: Path
    """The JSONL file to write."""
    weights: tuple[float, ...] | None = None
    """One for each file: 0.5 takes a random half, 2 takes every row twice; all 1 by default."""
    seed: int = 0
    """Seeds the draws and the order."""
    shuffle: bool = True
    """Shuffle the mixture; otherwise file follows file."""

    def run(self) -> list[Document]:
        """Write the mixture."""
        sources = [read_documents(path) for path in self.inputs]
        mixture = combine(sources, weights=self.weights, seed=self.seed, shuffle=self.shuffle)
        return _said(self.output, mixture)
