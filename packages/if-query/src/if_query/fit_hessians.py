"""The command fit-hessians: the curvature of a model on a data set, once, for every query.

    fit-hessians --model M --hessian-dataset D --output-dir O

Stages: covariances of layer inputs and output gradients, their eigenbases, and the corrected
eigenvalues. Each is saved when it ends, and long ones at intervals; the same command goes on
where a killed one stopped and ends at the same bits.
"""

import time
from collections.abc import Callable, Sequence
from dataclasses import dataclass as stdlib_dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Any, Literal

from pydantic import ConfigDict, PositiveInt
from pydantic.dataclasses import dataclass

from if_query.command_line import describe_arguments, parse
from if_query.errors import command_errors

if TYPE_CHECKING:
    from math_utils.curvature import CovarianceSums, CurvatureConfig, EigenvalueSums

    from if_query.datasets import TokenDataset
    from if_query.factors import FactorStore, Stage
    from if_query.models import LanguageModelLoss, Tracked


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
    lambda_batch_size: PositiveInt = 4
    """The same for the corrected eigenvalues."""
    max_tokens_per_batch: PositiveInt | None = None
    """Tokens per batch, padding counted, in place of both batch sizes."""
    layer_stride: PositiveInt = 1
    """Track the layers whose number is a multiple of this."""
    modules: str = "mlp"
    """Linear maps to track: mlp, attention, all (of the decoder layers), or a regular expression
    searched for in module names."""
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
    gets wrong."""
    device: str | None = None
    """Device to run on; CUDA where there is one."""
    device_map: str | None = None
    """Spread the model over devices by accelerate, for example auto."""
    save_interval: float = 600.0
    """Seconds between saves of unfinished sums."""
    resume: bool = True
    """Go on with, or keep, what the same arguments left in the output folder."""
    overwrite: bool = False
    """Remove factors that are already in the output folder."""


RESULT_FIELDS = (
    "model_fingerprint",
    "dataset_fingerprint",
    "strategy",
    "fisher",
    "tracked_modules",
    "dtype",
    "covariance_dtype",
    "eigen_dtype",
    "seed",
    "token_budgets",
)
"""What must agree for a fit to be taken up: everything that its bits depend on."""


@stdlib_dataclass(frozen=True, eq=False)
class Fit:
    """One fit under way: what every stage needs."""

    model: Any
    dataset: "TokenDataset"
    tracked: "Tracked"
    objective: "LanguageModelLoss"
    curvature: "CurvatureConfig"
    store: "FactorStore"
    save_interval: float
    budgets: dict[str, int]


def fit_hessians(config: FitHessiansConfig) -> Path:
    """Fit and store the curvature; the library form of the command.

    Args:
        config: the command's flags.

    Returns:
        The factors folder.

    Raises:
        InputError: on bad input; nothing is written where it can be known beforehand.
        OSError: if a file could not be written; no partial file is left.
    """
    from if_query.factors import FactorStore, check_agrees, clear_folder, prepare_folder

    earlier = prepare_folder(config.output_dir, overwrite=config.overwrite, resume=config.resume)
    fit, metadata = _prepare(config)
    for line in fit.tracked.describe():
        print(line)
    if unlabelled := fit.dataset.unlabelled:
        print(
            f"warning: {len(unlabelled)} examples have no label token and add nothing "
            f"(rows {', '.join(map(str, unlabelled[:5]))}{', …' if len(unlabelled) > 5 else ''})"
        )
    if earlier is not None:
        check_agrees(earlier, metadata, config.output_dir, list(RESULT_FIELDS))
        fit.store.metadata = earlier
        if earlier["status"] == "complete":
            print(f"{config.output_dir}: these factors are complete already; nothing to do")
            return config.output_dir
        print(f"{config.output_dir}: going on with an interrupted fit")
    else:
        clear_folder(config.output_dir)
        fit.store.metadata = metadata
        fit.store.save_metadata()
    run_stages(fit)
    # Read back once as run-query will.
    FactorStore.open(config.output_dir)
    return config.output_dir


def _prepare(config: FitHessiansConfig) -> tuple[Fit, dict[str, Any]]:
    """Read and check everything, and say in metadata what the fit will be."""
    import torch
    from math_utils.curvature import CurvatureConfig

    from if_query.datasets import load_token_dataset
    from if_query.factors import FORMAT, STAGES, FactorStore, versions
    from if_query.models import (
        LanguageModelLoss,
        fingerprint,
        load_model,
        select_maps,
        vocabulary_size,
    )
    from if_query.passes import loss_scale_of

    dataset = load_token_dataset(
        config.hessian_dataset,
        vocab_size=vocabulary_size(config.model, revision=config.revision),
        max_examples=config.max_examples,
    )
    model = load_model(
        config.model,
        revision=config.revision,
        dtype=config.dtype,
        device=config.device,
        device_map=config.device_map,
    )
    tracked = select_maps(model, config.modules, config.layer_stride)
    longest = int(dataset.lengths.max())
    budgets = {
        "covariances": config.max_tokens_per_batch or config.factor_batch_size * longest,
        "eigenvalues": config.max_tokens_per_batch or config.lambda_batch_size * longest,
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
        "versions": versions(),
        "arguments": describe_arguments(config),
        "checksums": {},
    }
    fit = Fit(
        model=model,
        dataset=dataset,
        tracked=tracked,
        objective=LanguageModelLoss("given" if config.empirical_fisher else "sampled", config.seed),
        curvature=CurvatureConfig(
            strategy=config.strategy,
            covariance_dtype=getattr(torch, config.covariance_dtype),
            eigen_dtype=getattr(torch, config.eigen_dtype),
            loss_scale=loss_scale_of(config.dtype),
        ),
        store=FactorStore(config.output_dir),
        save_interval=config.save_interval,
        budgets=budgets,
    )
    return fit, metadata


def run_stages(fit: Fit) -> None:
    """Run the stages that are not done yet, in order."""
    from if_query.factors import STAGES
    from if_query.passes import curvature_errors

    stages: dict[Stage, Callable[[Fit], None]] = {
        "covariances": fit_covariances,
        "eigenbases": decompose_covariances,
        "eigenvalues": fit_eigenvalues,
    }
    with curvature_errors(fit.dataset, lambda row: f"row {row} of the data set"):
        for stage in STAGES[fit.curvature.strategy]:
            if not fit.store.is_done(stage):
                stages[stage](fit)


def fit_covariances(fit: Fit) -> None:
    """Stage 1: A = (1/T) Σ a aᵀ and S = (1/T) Σ δ δᵀ of every map."""
    from math_utils.curvature import CovarianceSums

    sums = CovarianceSums(fit.tracked.maps, fit.curvature.covariance_dtype)
    accumulate(fit, "covariances", sums)
    checksums, num_positions = {}, {}
    for name, one in sums.finish().items():
        checksums[name] = fit.store.write_map(
            "covariances",
            name,
            {"inputs": one.inputs, "output_gradients": one.output_gradients},
        )
        num_positions[name] = one.num_positions
    fit.store.finish_stage("covariances", checksums, num_positions=num_positions)


def decompose_covariances(fit: Fit) -> None:
    """Stage 2: eigenbases, map by map; those of an interrupted stage are kept."""
    from math_utils.curvature import decompose
    from tqdm import tqdm

    store, names = fit.store, list(fit.tracked.maps)
    kept = {name: store.read_finished_eigenbasis(name) for name in names}
    checksums = {name: checksum for name, checksum in kept.items() if checksum is not None}
    waiting = [name for name in names if name not in checksums]
    covariances = ((name, store.read_covariances(name)) for name in waiting)
    with tqdm(total=len(names), initial=len(checksums), desc="eigenbases", unit="map") as bar:
        for name, basis in decompose(covariances, dtype=fit.curvature.eigen_dtype):
            checksums[name] = store.write_map(
                "eigenbases",
                name,
                {
                    "input_basis": basis.input_basis,
                    "output_basis": basis.output_basis,
                    "input_values": basis.input_values,
                    "output_values": basis.output_values,
                },
            )
            bar.update()
    store.finish_stage("eigenbases", checksums)


def fit_eigenvalues(fit: Fit) -> None:
    """Stage 3: Λ in the eigenbases (ekfac), by products (kfac), or in the weights' own basis."""
    from math_utils.curvature import EigenvalueSums, kfac_eigenvalues, share_equal_bases

    store, maps, num_examples = fit.store, fit.tracked.maps, len(fit.dataset)
    devices = fit.tracked.devices()
    bases = None
    if fit.curvature.strategy != "diagonal":
        bases = share_equal_bases(
            (name, store.read_eigenbasis(name).to(devices[name])) for name in maps
        )
    if fit.curvature.strategy == "kfac" and bases is not None:
        eigenvalues = {name: kfac_eigenvalues(one, num_examples) for name, one in bases.items()}
    else:
        sums = EigenvalueSums(maps, bases, fit.curvature.covariance_dtype)
        accumulate(fit, "eigenvalues", sums)
        eigenvalues = sums.finish(num_examples)
    checksums = {
        name: store.write_map("eigenvalues", name, {"eigenvalues": values})
        for name, values in eigenvalues.items()
    }
    store.finish_stage("eigenvalues", checksums)


def accumulate(fit: Fit, stage: "Stage", sums: "CovarianceSums | EigenvalueSums") -> None:
    """One pass over the data set into running sums, saved at intervals and taken up again.

    The order of the batches is fixed by the data set and the token budget, so that an interrupted
    pass adds the same numbers in the same order. (Several processes would each take a share of
    the batches here, and reduce the sums.)
    """
    from math_utils.capture import frozen
    from math_utils.curvature import backward_pass
    from tqdm import tqdm

    from if_query.batching import make_batches
    from if_query.passes import load_batches

    plan = make_batches(fit.dataset.lengths, max_tokens=fit.budgets[stage])
    num_done, state = fit.store.load_progress(stage)
    sums.load(state, fit.tracked.devices())
    saved_at = time.monotonic()
    done_sequences = sum(map(len, plan[:num_done]))
    with (
        frozen(fit.model),
        tqdm(total=len(fit.dataset), initial=done_sequences, desc=stage, unit="seq") as bar,
    ):
        for batch in load_batches(fit.model, fit.dataset, plan[num_done:]):
            backward_pass(
                fit.model,
                fit.tracked.maps,
                batch,
                fit.objective,
                sums.add,
                dtype=fit.curvature.covariance_dtype,
                loss_scale=fit.curvature.loss_scale,
            )
            num_done += 1
            bar.update(len(batch.input_ids))
            if time.monotonic() - saved_at >= fit.save_interval:
                fit.store.save_progress(stage, num_done, sums.state())
                saved_at = time.monotonic()


@command_errors()
def main(args: Sequence[str] | None = None) -> None:
    """The console command."""
    config = parse(FitHessiansConfig, program="fit-hessians", args=args)
    folder = fit_hessians(config)
    print(f"factors are in {folder}; next: run-query --model {config.model} --factors-dir {folder}")


if __name__ == "__main__":
    main()
