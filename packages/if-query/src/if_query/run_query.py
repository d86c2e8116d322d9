"""The command run-query: which training examples made the model say that?

    run-query --model M --factors-dir F --train-json T --query-json Q --output-dir O

For every query q and training example t, score[q, t] = g_qᵀ (F + λI)⁻¹ g_t: positive is helpful,
in nats per unit weight of one training example. The factors folder is only read.
"""

import time
from collections.abc import Sequence
from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Any, Literal

from pydantic import ConfigDict, Field, PositiveInt
from pydantic.dataclasses import dataclass

from if_query.command_line import Gigabytes, SaveInterval, describe_arguments, parse
from if_query.errors import InputError, command_errors

if TYPE_CHECKING:
    from if_query.factors import FactorStore
    from if_query.pairs import Pair
    from if_query.query_pass import Examples, Run


@dataclass(frozen=True, config=ConfigDict(extra="forbid"))
class RunQueryConfig:
    """Score training examples by their influence on queries.

    Reads factors that fit-hessians wrote, and writes query.csv, train.csv, influences.csv,
    scores.npy (the same scores as a matrix [query, train]) and metadata.json. A positive score
    is helpful: training more on that example lowers the query's loss.
    """

    model: str
    """Hugging Face id or local folder of the model that the factors were fitted on."""
    factors_dir: Path
    """Folder that fit-hessians wrote; several runs may read it at the same time."""
    train_json: Path
    """Training examples: a JSON list (or JSONL) of objects with pair_id, prompt, completion."""
    query_json: Path
    """Queries, in the same form."""
    output_dir: Path
    """Folder to write the results to."""
    revision: str | None = None
    """Branch, tag or commit of the model on the hub."""
    per_token_scores: bool = False
    """Also write what each token of a training example contributes to its score."""
    per_module_scores: bool = False
    """Also write the score of every tracked linear map."""
    self_influence: bool = False
    """Also write the influence of each training example on itself, as a column of train.csv."""
    score_batch_size: PositiveInt = 8
    """Sets --query-batch-size and --train-batch-size."""
    query_batch_size: PositiveInt | None = None
    """Memory for passes over queries, as a number of the longest ones."""
    train_batch_size: PositiveInt | None = None
    """The same for training examples; shorter ones are batched under the same token budget."""
    damping: Annotated[float, Field(ge=0, allow_inf_nan=False)] = 0.1
    """Strength of the damping of the curvature."""
    damping_kind: Literal["relative", "absolute"] = "relative"
    """Relative adds this many times the mean eigenvalue of each linear map; absolute adds it."""
    query_rank: PositiveInt | None = None
    """Keep query gradients in this rank (per linear map): less memory, other numbers. At 32 of 256
    scores correlated 0.97 with the exact ones, and 0.83 at 8
    (experiments/bench_ekfac.py)."""
    query_eos: bool = True
    """Score the end-of-sequence token after a query's completion. Turn it off to ask about the
    completion alone, where training texts would go on after it: an end that the model does not
    expect has a large gradient of its own, which drowns the completion's."""
    query_memory_gb: Gigabytes | None = None
    """Memory for query gradients; queries that do not fit go in blocks, each with a pass over the
    training examples. By default 40 % of what is free."""
    memory_gb: Gigabytes | None = None
    """Memory that may be used on the device, in 10⁹ bytes, the model included; by default what is
    free. Factors that do not fit are read from disk map by map, and queries go in blocks."""
    plan: bool = False
    """Print the expected peak memory, disk and time of every stage, measured on a few batches, and
    do nothing else."""
    plan_modules: bool = False
    """The same, and map by map."""
    top_k: PositiveInt | None = None
    """Keep only this many best and worst training examples per query in influences.csv, best
    first; scores.npy keeps all."""
    format: Literal["csv", "parquet"] = "csv"
    """Format of the tables."""
    dtype: Literal["float32", "float16", "bfloat16"] = "bfloat16"
    """Precision the model runs in."""
    max_length: PositiveInt = 512
    """Longest example in tokens; prompts are cut from the left."""
    allow_mismatch: bool = False
    """Go on where model and factors differ, with a warning."""
    seed: int = 0
    """Recorded with the results; nothing in a query run is random."""
    device: str | None = None
    """Device to run on; CUDA where there is one."""
    device_map: str | None = None
    """Spread the model over devices by accelerate, for example auto."""
    save_interval: SaveInterval = 600.0
    """Seconds between saves of unfinished scores."""
    report: bool = False
    """Also write report.html, which shows the results in a browser, into the output folder."""
    resume: bool = True
    """Go on with, or keep, what the same arguments left in the output folder."""
    overwrite: bool = False
    """Remove results that are already in the output folder."""


RESULT_FIELDS = (
    "model_fingerprint",
    "factors_digest",
    "train_digest",
    "query_digest",
    "result_arguments",
)
"""What must agree for a run to be taken up or kept."""

_RESULT_ARGUMENTS = (
    "per_token_scores",
    "per_module_scores",
    "self_influence",
    "damping",
    "damping_kind",
    "query_rank",
    "query_eos",
    "top_k",
    "format",
    "dtype",
    "max_length",
)


def run_query(config: RunQueryConfig) -> Path:
    """Score and write the tables; the library form of the command.

    Args:
        config: the command's flags.

    Returns:
        The results folder.

    Raises:
        InputError: on bad input; nothing is written where it can be known beforehand.
        OSError: if a file could not be written; no partial table is left.
    """
    from if_query.factors import check_agrees, clear_folder, prepare_folder
    from if_query.plan.query_trials import QueryTrials
    from if_query.query_memory import choose_memory, place_factors
    from if_query.query_pass import score_all
    from if_query.results import write_results
    from if_query.whole_files import write_json

    if config.plan or config.plan_modules:
        return _print_plan(config)
    earlier = prepare_folder(config.output_dir, overwrite=config.overwrite, resume=config.resume)
    run, store = prepare(config)
    if earlier is not None:
        check_agrees(earlier, run.metadata, config.output_dir, list(RESULT_FIELDS))
        if earlier["status"] == "complete":
            print(f"{config.output_dir}: these results are complete already; nothing to do")
            _report(config)
            return config.output_dir
        print(f"{config.output_dir}: going on with an interrupted run")
    memory = choose_memory(run, store, QueryTrials(run, store.strategy))
    for line in memory.lines:
        print(line)
    run = place_factors(run, store, memory)
    if earlier is None:
        clear_folder(config.output_dir)
    write_json(config.output_dir / "metadata.json", {**run.metadata, "status": "running"})
    arrays, losses = score_all(run)
    write_results(run, arrays, losses)
    write_json(config.output_dir / "metadata.json", {**run.metadata, "status": "complete"})
    arrays.remove()
    _report(config)
    return config.output_dir


def _report(config: RunQueryConfig) -> None:
    """Write the page that shows the results, where it was asked for."""
    if not config.report:
        return
    from if_query.influence_report import InfluenceReportConfig, write_report

    page = write_report(InfluenceReportConfig(config.output_dir, factors_dir=config.factors_dir))
    print(f"the report is {page}: open it in a browser, it needs no network")


def _print_plan(config: RunQueryConfig) -> Path:
    """Say what the run would take from its beginning."""
    from if_query.plan.query_plan import plan_query
    from if_query.plan.room import describe_room

    start = time.perf_counter()
    run, store = prepare(config)
    plan = plan_query(run, store, loading_seconds=time.perf_counter() - start)
    lines = plan.describe(modules=config.plan_modules)
    for line in (*lines, *describe_room(plan, config.output_dir)):
        print(line)
    return config.output_dir


def prepare(config: RunQueryConfig) -> "tuple[Run, FactorStore]":
    """Read and check everything but the factors, and say in metadata what the run will be."""
    from math_utils.curvature import CurvatureFactors

    from if_query.factors import FactorStore, versions
    from if_query.matching import match_factors
    from if_query.models import fingerprint, load_model, load_tokenizer
    from if_query.pairs import load_pairs
    from if_query.query_pass import Run

    pairs = {"train": load_pairs(config.train_json), "query": load_pairs(config.query_json)}
    store = FactorStore.open(config.factors_dir)
    tokenizer = load_tokenizer(config.model, revision=config.revision)
    train, queries = (_encode(tokenizer, pairs[kind], config, kind) for kind in ("train", "query"))
    model = load_model(
        config.model,
        revision=config.revision,
        dtype=config.dtype,
        device=config.device,
        device_map=config.device_map,
    )
    own_fingerprint = fingerprint(model)
    tracked = match_factors(model, own_fingerprint, store, config)
    for line in tracked.describe():
        print(line)
    metadata = {
        "strategy": store.strategy,
        "fisher": store.metadata["fisher"],
        "sign": "positive is helpful: training more on the example lowers the query's loss",
        "unit": "nats per unit weight of one training example; the Fisher information is averaged "
        "per example; a loss is summed over the completion",
        "model": config.model,
        "revision": config.revision,
        "model_fingerprint": own_fingerprint,
        "factors": str(config.factors_dir),
        "factors_digest": digest_of(store.metadata["checksums"], store.strategy),
        "train_digest": train.dataset.fingerprint,
        "query_digest": queries.dataset.fingerprint,
        "num_train": len(train.pairs),
        "num_queries": len(queries.pairs),
        "unscored_train": [train.pairs[row].pair_id for row in train.dataset.unlabelled],
        "unscored_queries": [queries.pairs[row].pair_id for row in queries.dataset.unlabelled],
        "tracked_modules": list(tracked.maps),
        "tracked_share": tracked.share,
        "result_arguments": {name: getattr(config, name) for name in _RESULT_ARGUMENTS},
        "versions": versions(),
        "arguments": describe_arguments(config),
    }
    none_yet = CurvatureFactors(store.strategy, {})
    run = Run(config, model, tracked, none_yet, train, queries, metadata, len(queries.pairs))
    return run, store


def _encode(tokenizer: Any, pairs: "list[Pair]", config: RunQueryConfig, kind: str) -> "Examples":
    from if_query.datasets import TokenDataset
    from if_query.encoding import encode_pair
    from if_query.query_pass import Examples

    eos = config.query_eos or kind == "train"
    encoded = [
        encode_pair(tokenizer, pair.prompt, pair.completion, config.max_length, eos=eos)
        for pair in pairs
    ]
    for pair, example in zip(pairs, encoded, strict=True):
        if not example.input_ids:
            raise InputError(
                f"{kind} pair_id {pair.pair_id!r}: its text has no tokens for this tokenizer"
            )
    examples = Examples(pairs, TokenDataset.from_examples(encoded))
    if unscored := examples.dataset.unlabelled:
        names = ", ".join(repr(pairs[row].pair_id) for row in unscored[:5])
        print(
            f"warning: {len(unscored)} {kind} examples have no label token, so that their loss "
            f"and scores are 0: {names}{', …' if len(unscored) > 5 else ''}"
        )
    return examples


def digest_of(*content: object) -> str:
    """A digest of JSON values, for telling inputs apart."""
    import hashlib
    import json

    return hashlib.sha256(json.dumps(content, sort_keys=True).encode()).hexdigest()


@command_errors()
def main(args: Sequence[str] | None = None) -> None:
    """The console command."""
    config = parse(RunQueryConfig, program="run-query", args=args)
    folder = run_query(config)
    if config.plan or config.plan_modules:
        return
    print(f"results are in {folder}: influences.{config.format} has the scores, query-major")


if __name__ == "__main__":
    main()
