"""Arguments that paraphrase_similarity.py and paraphrase_slurm.py share; loads no torch."""

from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import fields
from pathlib import Path
from typing import Literal

from attribution.errors import AttributionError
from if_query.errors import InputError, command_errors
from pydantic import ConfigDict
from pydantic.dataclasses import dataclass

SHIPPED_DATA = Path(__file__).parents[1] / "data" / "paraphrases.jsonl"


@dataclass(frozen=True, config=ConfigDict(extra="forbid"))
class SimilarityConfig:
    """Does the gradient of a paraphrase find the sample that it paraphrases?

    Other commands of this script: `originals` computes the cached gradients of the originals in
    [partition-start, partition-end); `combine` merges the parts under --output-dir; `analyze` gives
    accuracies and plots of what is there.
    """

    model: str
    """A Hugging Face id or a local folder."""
    dataset: str = str(SHIPPED_DATA)
    """JSONL file, folder that `datasets` saved, or Hugging Face id."""
    setting: Literal["paraphrased", "model-generated"] = "paraphrased"
    """Queries: both sides rewritten, or the model's own answer to the rewritten question."""
    computation_type: Literal["gradient-similarity", "dot-product"] = "gradient-similarity"
    """One cosine of whole gradients, or inner products by parameter, which `analyze` splits up."""
    use_random_projection: bool = False
    """Compare random projections of the gradients."""
    projection_fraction: tuple[float, ...] = (0.01, 0.05)
    """Share of each parameter's entries that a projection keeps, in (0, 1]; one file for each."""
    partition_start: int | None = None
    """First query id of this partition."""
    partition_end: int | None = None
    """The query id after the last one of this partition."""
    candidates: str = "bm25:5"
    """`bm25:N`, the N best originals by the user's message, or `all`."""
    force_original: bool = True
    """Put the true original among the BM25 candidates where it is not."""
    sample_size: int | None = None
    """Use so many samples, chosen at random; all by default."""
    seed: int = 42
    """Seed of the choice of samples and of the projections."""
    device: str | None = None
    """Where the model runs; CUDA where there is one by default."""
    max_length: int = 2048
    """Tokens of a conversation that are kept."""
    output_dir: Path = Path("results/paraphrase")
    """Folder of results; the cache lies in it too unless --cache-dir says otherwise."""
    cache_dir: Path | None = None
    """Folder of the originals' gradients."""
    cache_gb: float = 100.0
    """Gradients of originals are cached if all of them take at most so many gigabytes."""
    query_memory_gb: float = 4.0
    """Memory for the gradients of queries that are compared together."""
    overwrite: bool = False
    """Replace results that other arguments made."""

    def check(self) -> None:
        """Say what is out of range, before a model is loaded.

        Raises:
            InputError: a value is out of range.
        """
        from attribution.gradient_similarity import check_fraction
        from attribution.paraphrases import CandidateRule

        CandidateRule.parse(self.candidates)
        for fraction in self.projection_fraction:
            check_fraction(fraction)
        if len(set(self.projection_fraction)) < len(self.projection_fraction):
            raise InputError("--projection-fraction: a fraction repeats")
        if not self.projection_fraction:
            raise InputError("--projection-fraction: expected at least one fraction")
        start, end = self.partition_start, self.partition_end
        if (start is None) != (end is None):
            raise InputError("expected both --partition-start and --partition-end, or neither")
        if start is not None and end is not None and not 0 <= start < end:
            raise InputError(
                "expected 0 <= --partition-start < --partition-end, "
                f"got {start} and {end}: no query lies between them"
            )
        if self.max_length < 2 or self.cache_gb < 0 or self.query_memory_gb <= 0:
            raise InputError(
                "expected --max-length of at least 2, --cache-gb of at least 0 and a positive "
                "--query-memory-gb"
            )

    def fractions(self) -> tuple[float | None, ...]:
        """What is compared: None for whole gradients, or the projections' fractions."""
        return self.projection_fraction if self.use_random_projection else (None,)

    def result_path(self, fraction: float | None) -> Path:
        """The file of results for all queries."""
        projected = "" if fraction is None else f"_projected_{fraction}"
        candidates = self.candidates.replace(":", "-")
        if candidates != "all" and not self.force_original:
            candidates += "-unforced"
        name = f"{self.computation_type}{projected}_{candidates}.json"
        return self.output_dir / self.setting / name

    def flags(self, **changes: object) -> list[str]:
        """The command-line flags that stand for what differs from the defaults."""
        words: list[str] = []
        for one in fields(SimilarityConfig):
            value = changes.get(one.name, getattr(self, one.name))
            if value is None or value == one.default:
                continue
            flag = f"--{one.name.replace('_', '-')}"
            if isinstance(value, bool):
                words.append(flag if value else f"--no-{flag[2:]}")
            else:
                several = value if isinstance(value, tuple) else (value,)
                words += [flag, *map(str, several)]
        return words


@contextmanager
def one_line_errors() -> Iterator[None]:
    """What a user causes is one line on stderr and exit status 2."""
    with command_errors():
        try:
            yield
        except AttributionError as error:
            raise InputError(str(error)) from error
