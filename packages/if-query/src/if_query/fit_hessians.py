"""The command fit-hessians: the curvature of a model on a data set, once, for every query.

    fit-hessians --model M --hessian-dataset D --output-dir O

Stages: covariances of layer inputs and output gradients, their eigenbases, and the corrected
eigenvalues. Each is saved when it ends, and long ones at intervals; the same command goes on
where a killed one stopped and ends at the same bits.
"""

import time
from collections.abc import Sequence
from dataclasses import replace
from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Any, Literal

from pydantic import ConfigDict, Field, PositiveInt
from pydantic.dataclasses import dataclass

from if_query.command_line import Gigabytes, SaveInterval, describe_arguments, parse
from if_query.errors import InputError, command_errors

if TYPE_CHECKING:
    from if_query.factors import Stage
    from if_query.fit_stages import Fit


@dataclass(frozen=True, config=ConfigDict(extra="forbid"))
class FitHessiansConfig:
    """Fit the curvature (Fisher information) of a causal language model on a data set.

    Statistics of the linear maps' inputs and output gradients are gathered over the data set, and
    factors are written that run-query preconditions gradients with. A fit that was interrupted
    goes on when the same command is given again.
    """

    model: str
    """Hugging Face id or local folder of the model."""
    hessian_dataset: Path
    """Folder written by datasets.save_to_disk, or a .jsonl or .parquet file, with input_ids and
    optionally attention_mask and labels; tokenize-text makes one from a text file."""
    output_dir: Path
    """Folder to write the factors to."""
    revision: str | None = None
    """Branch, tag or commit of the model on the hub."""
    strategy: Literal["ekfac", "kfac", "diagonal", "identity"] = "ekfac"
    """The approximation of the Fisher information; identity fits nothing."""
    factor_batch_size: PositiveInt = 8
    """Memory for the covariances, as a number of the longest sequences: batches are filled with
    sequences of like length up to this many times the longest one's tokens."""
    lambda_batch_size: PositiveInt | None = None
    """The same for the corrected eigenvalues; by default that of the covariances, whose pass then
    shortens this one (see --replay-memory-gb)."""
    max_tokens_per_batch: PositiveInt | None = None
    """Tokens per batch, padding counted, in place of both batch sizes."""
    layer_stride: PositiveInt = 1
    """Track the layers whose number is a multiple of this."""
    modules: str = "mlp"
    """Linear maps to track: mlp, attention, all (of the decoder layers), or a regular expression
    searched for in module names."""
    covariance_share: Annotated[float, Field(gt=0, le=1)] = 1.0
    """Share of the examples, chosen by their content, that covariances and so eigenbases are made
    from; corrected eigenvalues still see all of them. Other numbers (at 0.25 scores correlated 0.99
    with the exact ones, experiments/bench_ekfac.py) for less time, above all where the data are too
    many for --replay-memory-gb: nothing is kept then."""
    max_examples: PositiveInt | None = None
    """Use only the first examples of the data set."""
    empirical_fisher: bool = False
    """Take the labels of the data instead of labels sampled from the model's predictions."""
    seed: int = 0
    """Seed of the sampled labels; each example draws by its own content."""
    dtype: Literal["float32", "float16", "bfloat16"] = "bfloat16"
    """Precision the model runs in."""
    covariance_dtype: Literal["float32", "float64"] = "float32"
    """Precision of the sums of statistics."""
    eigen_dtype: Literal["float32", "float64"] = "float64"
    """Precision of the eigendecompositions; damping divides by small eigenvalues, which float32
    gets wrong. In float32 they take half as long; scores correlated 1.000 with the exact ones
    (experiments/bench_ekfac.py, whose small model has no large activations)."""
    device: str | None = None
    """Device to run on; CUDA where there is one."""
    device_map: str | None = None
    """Spread the model over devices by accelerate, for example auto."""
    plan: bool = False
    """Print the expected peak memory, disk and time of every stage, measured on a few batches, and
    do nothing else."""
    plan_modules: bool = False
    """The same, and map by map."""
    memory_gb: Gigabytes | None = None
    """Memory that may be used on the device, in 10⁹ bytes, the model included; by default what is
    free. Where the statistics of all maps do not fit, the maps go in groups."""
    module_partitions: PositiveInt | None = None
    """Fit the maps in this many groups, each with its own passes over the data: less memory, the
    same bits. By default as few as fit into memory."""
    replay_memory_gb: Annotated[float, Field(ge=0, le=1e9)] | None = None
    """Memory on the device, in 10⁹ bytes, in which the covariances keep what the corrected
    eigenvalues need of each batch, so that these need not run the whole model again: two vectors of
    the model's width per token and MLP. Less time, the same bits; 0 keeps nothing. By default a
    quarter of what is free, or what --memory-gb leaves."""
    save_interval: SaveInterval = 600.0
    """Seconds between saves of unfinished sums."""
    resume: bool = True
    """Go on with, or keep, what the same arguments left in the output folder."""
    overwrite: bool = False
    """Remove factors that are already in the output folder."""


RESULT_FIELDS = (
    "format",
    "model_fingerprint",
    "dataset_fingerprint",
    "strategy",
    "fisher",
    "tracked_modules",
    "dtype",
    "covariance_dtype",
    "eigen_dtype",
    "covariance_share",
    "seed",
    "token_budgets",
)
"""What must agree for a fit to be taken up: everything that its bits depend on."""


def fit_hessians(config: FitHessiansConfig) -> Path:
    """Fit and store the curvature; the library form of the command.

    Args:
        config: the command's flags.

    Returns:
        The factors folder; with ``--plan`` it is not touched.

    Raises:
        InputError: on bad input; nothing is written where it can be known beforehand.
        OSError: if a file could not be written; no partial file is left.
    """
    from if_query.factors import FactorStore, check_agrees, clear_folder, prepare_folder
    from if_query.fit_stages import run_stages

    if config.plan or config.plan_modules:
        return _print_plan(config)
    earlier = prepare_folder(config.output_dir, overwrite=config.overwrite, resume=config.resume)
    fit, metadata = prepare(config)
    for line in fit.tracked.describe():
        print(line)
    if unlabelled := fit.dataset.unlabelled:
        print(
            f"warning: {len(unlabelled)} examples have no label token and add nothing "
            f"(rows {', '.join(map(str, unlabelled[:5]))}{', …' if len(unlabelled) > 5 else ''})"
        )
    if earlier is not None:
        check_agrees(earlier, metadata, config.output_dir, list(RESULT_FIELDS))
        fit.store.metadata = {"used_token_budgets": {}, **earlier}
        if earlier["status"] == "complete":
            print(f"{config.output_dir}: these factors are complete already; nothing to do")
            return config.output_dir
        print(f"{config.output_dir}: going on with an interrupted fit")
    fit = _in_groups(fit, config)
    if earlier is None:
        clear_folder(config.output_dir)
        fit.store.metadata = metadata
        fit.store.save_metadata()
    run_stages(fit)
    # Read back once as run-query will.
    FactorStore.open(config.output_dir)
    return config.output_dir


def _print_plan(config: FitHessiansConfig) -> Path:
    """Say what the fit would take from its beginning."""
    from if_query.fit_stages import row_errors
    from if_query.plan.fit_plan import plan_fit
    from if_query.plan.room import describe_room

    start = time.perf_counter()
    fit, _ = prepare(config)
    loading = time.perf_counter() - start
    with row_errors(fit):
        plan = plan_fit(
            fit,
            num_groups=config.module_partitions,
            memory_gb=config.memory_gb,
            replay_memory_gb=config.replay_memory_gb,
            loading_seconds=loading,
        )
    for line in (
        *fit.tracked.describe(),
        *plan.describe(modules=config.plan_modules),
        *describe_room(plan, config.output_dir),
    ):
        print(line)
    return config.output_dir


def _in_groups(fit: "Fit", config: FitHessiansConfig) -> "Fit":
    """The fit in groups of maps that fit into memory, and with the room that passes share.

    A line says so where there is more than one group.
    """
    from if_query.fit_stages import row_errors
    from if_query.plan.fit_trials import StageTrial, choose_capacities
    from if_query.plan.replay import choose_replay_bytes

    trials: "dict[Stage, StageTrial]" = {}
    with row_errors(fit):
        capacities, lines = choose_capacities(
            fit, num_groups=config.module_partitions, memory_gb=config.memory_gb, trials=trials
        )
    for line in lines:
        print(line)
    room = choose_replay_bytes(
        fit,
        asked_gb=config.replay_memory_gb,
        memory_gb=config.memory_gb,
        capacities=capacities,
        trials=trials,
    )
    return replace(fit, capacities=capacities, replay_bytes=room)


def prepare(config: FitHessiansConfig) -> "tuple[Fit, dict[str, Any]]":
    """Read and check everything, and say in metadata what the fit will be."""
    import torch
    from math_utils.curvature import CurvatureConfig

    from if_query.datasets import load_token_dataset
    from if_query.factors import FORMAT, STAGES, FactorStore, versions
    from if_query.fit_stages import Fit
    from if_query.models import (
        LanguageModelLoss,
        fingerprint,
        load_model,
        select_maps,
        vocabulary_size,
    )
    from if_query.passes import loss_scale_of

    if config.covariance_share < 1 and "covariances" not in STAGES[config.strategy]:
        raise InputError(f"--covariance-share: --strategy {config.strategy} has no covariances")
    dataset = load_token_dataset(
        config.hessian_dataset,
        vocab_size=vocabulary_size(config.model, revision=config.revision),
        max_examples=config.max_examples,
    )
    if STAGES[config.strategy] and len(dataset.unlabelled) == len(dataset):
        raise InputError(
            f"{config.hessian_dataset}: no example has a label token (other than -100, and not the "
            "first of its example), so that there is nothing to fit"
        )
    model = load_model(
        config.model,
        revision=config.revision,
        dtype=config.dtype,
        device=config.device,
        device_map=config.device_map,
    )
    tracked = select_maps(model, config.modules, config.layer_stride)
    head = model.get_output_embeddings()
    for name, one in tracked.maps.items():
        if head in one.modules:
            raise InputError(
                f"--modules {config.modules}: {name} is the output head, which cannot be tracked "
                "(it runs only where a label is predicted); leave it out, for example by "
                "--modules all"
            )
    longest = int(dataset.lengths.max())
    covariance_rows = dataset.share(config.covariance_share)
    budgets = {
        "covariances": config.max_tokens_per_batch or config.factor_batch_size * longest,
        "eigenvalues": config.max_tokens_per_batch
        or (config.lambda_batch_size or config.factor_batch_size) * longest,
    }
    metadata: dict[str, Any] = {
        "format": FORMAT,
        "status": "complete" if not STAGES[config.strategy] else "fitting",
        "strategy": config.strategy,
        "fisher": "empirical" if config.empirical_fisher else "true",
        "unit": "eigenvalues are of the Fisher information averaged per example, in nats² per "
        "unit weight²",
        "model": config.model,
        "revision": config.revision,
        "model_class": type(model).__name__,
        "model_fingerprint": fingerprint(model),
        "dataset": str(config.hessian_dataset),
        "dataset_fingerprint": dataset.fingerprint,
        "num_examples": len(dataset),
        "covariance_share": config.covariance_share,
        "num_covariance_examples": len(covariance_rows),
        "num_unlabelled_examples": len(dataset.unlabelled),
        "num_tokens": dataset.num_tokens,
        "num_label_tokens": int(dataset.num_scored.sum()),
        "tracked_modules": {
            name: {"d_in": one.d_in, "d_out": one.d_out, "has_bias": one.has_bias}
            for name, one in tracked.maps.items()
        },
        "tracked_share": tracked.share,
        "untracked_experts": list(tracked.untracked_experts),
        "untracked_expert_share": tracked.untracked_expert_share,
        "layer_stride": config.layer_stride,
        "dtype": config.dtype,
        "covariance_dtype": config.covariance_dtype,
        "eigen_dtype": config.eigen_dtype,
        "seed": config.seed,
        "token_budgets": budgets,
        "used_token_budgets": {},
        "versions": versions(),
        "arguments": describe_arguments(config),
        "checksums": {},
    }
    fit = Fit(
        model=model,
        dataset=dataset,
        tracked=tracked,
        objective=LanguageModelLoss.for_model(
            model, "given" if config.empirical_fisher else "sampled", config.seed
        ),
        curvature=CurvatureConfig(
            strategy=config.strategy,
            covariance_dtype=getattr(torch, config.covariance_dtype),
            eigen_dtype=getattr(torch, config.eigen_dtype),
            loss_scale=loss_scale_of(config.dtype),
        ),
        store=FactorStore(config.output_dir),
        save_interval=config.save_interval,
        budgets=budgets,
        covariance_rows=covariance_rows,
    )
    return fit, metadata


@command_errors()
def main(args: Sequence[str] | None = None) -> None:
    """The console command."""
    config = parse(FitHessiansConfig, program="fit-hessians", args=args)
    folder = fit_hessians(config)
    if config.plan or config.plan_modules:
        return
    print(f"factors are in {folder}; next: run-query --model {config.model} --factors-dir {folder}")


if __name__ == "__main__":
    main()
