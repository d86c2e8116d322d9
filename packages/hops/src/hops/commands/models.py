"""The commands that make and question models; each imports torch only when it runs."""

import dataclasses
import json
from pathlib import Path
from typing import ClassVar

from pydantic import ConfigDict
from pydantic.dataclasses import dataclass

from hops.documents import read_documents, registry_of, told_wrappers
from hops.errors import HopsError
from hops.files import write_json
from hops.functions import Registry, make_registry
from hops.plots import plot_evaluation, plot_training
from hops.prompts import PROMPT_FORMAT
from hops.queries import QUERY_INPUTS, write_queries
from hops.training_config import TrainConfig

_STRICT = ConfigDict(extra="forbid")


def _registry(seed_path: Path | None, num_functions: int, max_hops: int) -> Registry:
    if seed_path:
        return registry_of(read_documents(seed_path))
    return make_registry(num_functions, max_hops)


@dataclass(frozen=True, config=_STRICT)
class AddTokens:
    """Add the function names to a tokenizer and model, one token each."""

    name: ClassVar[str] = "add-tokens"
    model: str
    """The model to extend: a folder or a Hugging Face id."""
    output_dir: Path
    """The new model folder."""
    seed_path: Path | None = None
    """Seed documents that name the functions."""
    num_functions: int = 10
    """Without --seed-path: how many base functions."""
    max_hops: int = 1
    """Without --seed-path: how many wrappers stand above each base function."""
    row_scale: float = 1.0
    """The norm of the new input rows, relative to the median of the old ones."""
    seed: int = 0
    """Seeds the new embedding rows."""

    def run(self) -> dict[str, int]:
        """Write the extended model."""
        registry = _registry(self.seed_path, self.num_functions, self.max_hops)
        if not self.row_scale > 0:
            raise HopsError(f"row_scale must be positive, got {self.row_scale}.")
        from hops.tokens import add_tokens

        mapping = add_tokens(
            self.model, self.output_dir, registry, row_scale=self.row_scale, seed=self.seed
        )
        print(f"{self.output_dir}: {len(mapping)} function tokens")
        return mapping


@dataclass(frozen=True, config=_STRICT)
class CheckTokens:
    """Diagnose the function tokens of a model; exit status 1 if something is wrong."""

    name: ClassVar[str] = "check-tokens"
    model: str
    """The model: a folder or a Hugging Face id."""
    seed_path: Path | None = None
    """Seed documents that name the functions."""
    num_functions: int = 10
    """Without --seed-path: how many base functions."""
    max_hops: int = 1
    """Without --seed-path: how many wrappers stand above each base function."""

    def run(self) -> object:
        """Print the report as JSON."""
        registry = _registry(self.seed_path, self.num_functions, self.max_hops)
        from hops.tokens import check_tokens

        report = check_tokens(self.model, registry)
        print(json.dumps(report.to_json(), indent=2))
        if not report.ok:
            raise SystemExit(1)
        return report


@dataclass(frozen=True, config=_STRICT)
class Train(TrainConfig):
    """Train a model on documents, with an evaluation of its logits at each checkpoint."""

    name: ClassVar[str] = "train"

    def run(self) -> object:
        """Train, continue, or find the run finished."""
        self.check()
        from hops.train import train

        fields = {item.name: getattr(self, item.name) for item in dataclasses.fields(self)}
        result = train(TrainConfig(**fields))
        print(f"{result.final_model}: {len(result.checkpoints)} checkpoints evaluated")
        return result


@dataclass(frozen=True, config=_STRICT)
class LogitEval:
    """Ask a model for the value of each function at inputs 1 to 100."""

    name: ClassVar[str] = "logit-eval"
    model_path: str
    """The model: a folder or a Hugging Face id."""
    seed_path: Path
    """Seed documents (or any documents) that name the functions."""
    output: Path
    """The JSON file to write; the figure gets the same name with the suffix .png."""
    dataset_path: Path | None = None
    """The training documents: wrappers whose value they state are reported apart, as told."""
    hops: bool = False
    """Evaluate the wrappers."""
    depth0: bool = False
    """Evaluate the base functions. With neither flag, or both, all are evaluated."""
    prompt_format: str = PROMPT_FORMAT
    """The prompt, with {func} and {input}."""
    num_inputs: int = 100
    """The inputs are 1 to this number."""
    batch_size: int = 256
    """Prompts in one forward pass."""

    def run(self) -> object:
        """Write the evaluation and print the accuracy at each depth."""
        registry = registry_of(read_documents(self.seed_path))
        if self.num_inputs < 1 or self.batch_size < 1:
            raise HopsError("num_inputs and batch_size must be positive.")
        depths = None
        if self.hops != self.depth0:
            depths = (0,) if self.depth0 else tuple({f.hop_depth for f in registry.wrappers})
        told = told_wrappers(read_documents(self.dataset_path)) if self.dataset_path else ()
        from hops.logit_eval import evaluate_model

        evaluation = evaluate_model(
            self.model_path,
            registry,
            depths=depths,
            told=told,
            inputs=range(1, self.num_inputs + 1),
            prompt_format=self.prompt_format,
            batch_size=self.batch_size,
        )
        write_json(self.output, evaluation.to_json())
        plot_evaluation(self.output, self.output.with_suffix(".png"))
        for name, summaries in (("", evaluation.depths), (", told", evaluation.told)):
            for depth, summary in summaries.items():
                print(
                    f"{self.model_path}: depth {depth}{name}: accuracy {summary.accuracy:.3f} "
                    f"[{summary.accuracy_low:.3f}, {summary.accuracy_high:.3f}], "
                    f"chance {evaluation.chance:.3f}"
                )
        return evaluation


@dataclass(frozen=True, config=_STRICT)
class Plot:
    """Draw loss and accuracy along training, or the accuracy of each function."""

    name: ClassVar[str] = "plot"
    output: Path
    """The image to write; its suffix (.png, .svg, .pdf) is the format."""
    training: tuple[Path, ...] = ()
    """Output folders of `hops train`; several follow one another, as stages do."""
    evaluation: Path | None = None
    """Instead of --training: a JSON file of `hops logit-eval`."""

    def run(self) -> None:
        """Draw one of the two."""
        if bool(self.training) == (self.evaluation is not None):
            raise HopsError("hops plot needs either --training or --evaluation.")
        if self.evaluation is not None:
            plot_evaluation(self.evaluation, self.output)
        else:
            plot_training(self.training, self.output)
        print(self.output)


@dataclass(frozen=True, config=_STRICT)
class Queries:
    """Write train.json and query.json for run-query."""

    name: ClassVar[str] = "queries"
    dataset_path: Path
    """The training documents."""
    output_dir: Path
    """Gets train.json and query.json."""
    seed_path: Path | None = None
    """Documents that name the functions asked about; by default those of --dataset-path do."""
    model_path: str | None = None
    """The model that --only-correct asks."""
    only_correct: bool = False
    """Keep only queries that the model answers correctly."""
    hop_depth: tuple[int, ...] = (0,)
    """The hop depths to ask about."""
    include_told: bool = False
    """Ask also about wrappers whose value the documents state."""
    inputs: tuple[int, ...] = QUERY_INPUTS
    """The inputs to ask about."""
    prompt_format: str = PROMPT_FORMAT
    """The prompt, with {func} and {input}."""

    def run(self) -> object:
        """Write the two files."""
        documents = read_documents(self.dataset_path)
        registry = registry_of(read_documents(self.seed_path) if self.seed_path else documents)
        files = write_queries(
            documents,
            registry,
            self.output_dir,
            inputs=self.inputs,
            depths=self.hop_depth,
            include_told=self.include_told,
            prompt_format=self.prompt_format,
            model_path=self.model_path,
            only_correct=self.only_correct,
        )
        print(f"{files.train_json}: {files.num_train} documents")
        print(f"{files.query_json}: {files.num_queries} queries")
        return files
