"""Curvature health: what the factors cover, how their eigenvalues lie, what to be wary of.

Damping of λ per unit weight takes the direction of an eigenvalue Λ with the weight Λ / (Λ + λ);
the sum of these over a map's directions is its effective number of directions.
"""

from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
from jaxtyping import Float, Float32
from safetensors import SafetensorError, safe_open

from if_query.errors import InputError
from if_query.report.shown import significant
from if_query.run_query import digest_of
from if_query.whole_files import read_metadata

MOST_VALUES = 4_000_000
"""Eigenvalues read per map; of a larger one evenly spaced rows are read, and the page says so."""
NUM_POINTS = 48
_FITTED_FACTS = (
    "model", "model_class", "dataset", "num_examples", "num_tokens", "num_label_tokens",
    "num_unlabelled_examples", "strategy", "fisher", "seed", "dtype", "covariance_dtype",
    "eigen_dtype", "covariance_share", "layer_stride", "tracked_share", "untracked_expert_share",
    "versions",
)  # fmt: skip


@dataclass(frozen=True, eq=False)
class Factors:
    """A factors folder, checked to be the one that results were computed with.

    Attributes:
        folder: where it lies.
        metadata: what fit-hessians wrote.
        complaint: why they are not certainly the same factors, or None.
    """

    folder: Path
    metadata: dict[str, Any]
    complaint: str | None


def find_factors(results: dict[str, Any], folder: Path | None) -> Factors | None:
    """The factors of some results.

    Args:
        results: their metadata.
        folder: where the user says the factors are; by default where they were when the query
            ran, and None is returned if there are none now.

    Raises:
        InputError: if the folder named by the user has no complete factors, or others.
    """
    recorded = folder is None
    place = Path(results["factors"]) if folder is None else folder
    if recorded and not (place / "metadata.json").is_file():
        return None
    if not place.is_dir():
        raise InputError(f"{place}: no such factors folder")
    metadata = read_metadata(place)
    if metadata is None or "checksums" not in metadata:
        raise InputError(f"{place}: no factors here; expected a folder that fit-hessians wrote")
    complaint = _difference(results, metadata)
    if complaint is not None and not recorded:
        raise InputError(f"{place}: {complaint}; pass the factors folder of these results")
    return Factors(place, metadata, complaint)


def _difference(results: dict[str, Any], fitted: dict[str, Any]) -> str | None:
    if fitted.get("status") != "complete":
        return "the factors are incomplete"
    if digest_of(fitted["checksums"], fitted.get("strategy")) == results.get("factors_digest"):
        return None
    if fitted.get("model_fingerprint") != results.get("model_fingerprint"):
        return (
            f"these are factors of another model ({fitted.get('model')}, the results are of "
            f"{results.get('model')})"
        )
    return "these factors are not those that the results were computed with"


def describe_health(results: dict[str, Any], factors: Factors | None) -> dict[str, Any]:
    """What the page on curvature shows.

    Args:
        results: metadata of the results.
        factors: None where they were not found; the page says how to name them.

    Raises:
        InputError: if a file of the factors is missing or not readable.
    """
    if factors is None or factors.complaint is not None:
        reason = "none" if factors is None else str(factors.complaint)
        return {"found": False, "reason": reason, "warnings": result_warnings(results)}
    fitted = factors.metadata
    damping = results["result_arguments"]
    modules = [
        describe_module(
            name,
            _read_eigenvalues(factors.folder / "eigenvalues" / f"{name}.safetensors"),
            shape,
            damping["damping"],
            relative=damping["damping_kind"] == "relative",
        )
        for name, shape in fitted["tracked_modules"].items()
        if fitted["strategy"] != "identity"
    ]
    return {
        "found": True,
        "facts": {name: fitted[name] for name in _FITTED_FACTS if name in fitted},
        "modules": modules,
        "warnings": result_warnings(results) + factor_warnings(fitted, modules),
    }


def _read_eigenvalues(path: Path) -> tuple[Float32[np.ndarray, " value"], bool]:
    """The eigenvalues of one map, and whether they are all of them."""
    if not path.is_file():
        raise InputError(f"{path}: missing; fit the factors again")
    try:
        with safe_open(path, framework="numpy") as file:
            rows = file.get_slice("eigenvalues")
            num_rows, num_columns = rows.get_shape()
            if num_rows * num_columns <= MOST_VALUES:
                return file.get_tensor("eigenvalues").astype(np.float32).ravel(), True
            wanted = np.linspace(0, num_rows - 1, max(1, MOST_VALUES // num_columns)).astype(int)
            parts = [rows[int(row) : int(row) + 1].ravel() for row in wanted]
            return np.concatenate(parts).astype(np.float32), False
    except (SafetensorError, ValueError) as error:
        raise InputError(f"{path}: not a readable safetensors file: {error}") from error


def describe_module(
    name: str,
    read: tuple[Float[np.ndarray, " value"], bool],
    shape: dict[str, Any],
    strength: float,
    *,
    relative: bool,
) -> dict[str, Any]:
    """One map's spectrum and what damping does to it."""
    values = np.sort(read[0].astype(np.float64))[::-1]
    finite = values[np.isfinite(values)]
    mean = float(finite.mean()) if len(finite) else 0.0
    damping = strength * mean if relative else strength
    kept = np.divide(finite, finite + damping, out=np.zeros_like(finite), where=finite > 0)
    # Places spread evenly in the logarithm: the few large eigenvalues are what differs.
    places = np.unique(np.geomspace(1, max(1, len(finite)), NUM_POINTS).astype(int)) - 1
    return {
        "name": name,
        "shape": [shape["d_out"], shape["d_in"]],
        "complete": read[1],
        "places": [significant(100 * (place + 1) / max(1, len(finite)), 4) for place in places],
        "values": [significant(float(finite[place]), 4) for place in places if len(finite)],
        "largest": significant(float(finite[0]) if len(finite) else 0.0, 4),
        "median": significant(float(np.median(finite)) if len(finite) else 0.0, 4),
        "mean": significant(mean, 4),
        "damping": significant(damping, 4),
        "share_below_damping": significant(float((finite < damping).mean()), 4),
        "effective_share": significant(float(kept.mean()), 4),
        "num_negative": int((finite < 0).sum()),
        "num_not_finite": len(values) - len(finite),
    }


def result_warnings(results: dict[str, Any]) -> list[str]:
    """What to be wary of in a query run, whatever its factors."""
    arguments, found = results["result_arguments"], []
    share = results.get("tracked_share")
    if share is not None and share < 0.5:
        found.append(
            f"Only {100 * share:.3g} % of the model's parameters speak in these scores; what the "
            "others learned from an example is not seen."
        )
    if arguments.get("query_rank") is not None:
        found.append(
            f"Query gradients were kept in rank {arguments['query_rank']} per linear map, so the "
            "scores are approximate."
        )
    if arguments.get("dtype") in ("float16", "bfloat16"):
        found.append(
            f"The model ran in {arguments['dtype']}: scores agree with float32 to about two digits."
        )
    if results.get("fisher") == "empirical":
        found.append("The curvature is the empirical Fisher, of the labels given in the data.")
    for kind, name in (("unscored_train", "Training examples"), ("unscored_queries", "Queries")):
        if results.get(kind):
            found.append(f"{name} without a label token, whose scores are 0: {len(results[kind])}.")
    if results.get("arguments", {}).get("allow_mismatch"):
        found.append("The run was allowed to go on where model and factors differ.")
    return found


def factor_warnings(fitted: dict[str, Any], modules: list[dict[str, Any]]) -> list[str]:
    """What to be wary of in fitted factors."""
    found = []
    if fitted.get("untracked_expert_share"):
        found.append(
            f"{100 * fitted['untracked_expert_share']:.3g} % of the parameters are routed experts "
            "that could not be tracked."
        )
    few = [
        name
        for name, count in fitted.get("num_positions", {}).items()
        if count < max(fitted["tracked_modules"][name].values())
    ]
    if few:
        found.append(
            f"{len(few)} of {len(modules)} covariances come from fewer tokens than they have rows, "
            f"{few[0]} among them: fit on more data."
        )
    bad = [one["name"] for one in modules if one["num_negative"] or one["num_not_finite"]]
    if bad:
        found.append(f"Eigenvalues below zero or not finite in {', '.join(bad[:5])}: fit again.")
    empty = [one["name"] for one in modules if one["largest"] <= 0]
    if empty:
        found.append(f"No curvature at all in {', '.join(empty[:5])}: nothing reached these maps.")
    flat = [one["name"] for one in modules if one["largest"] > 0 and one["effective_share"] < 0.001]
    if flat:
        found.append(
            f"In {len(flat)} of {len(modules)} maps damping outweighs the curvature in more than "
            f"99.9 % of directions, {flat[0]} among them: scores there are nearly plain products "
            "of gradients."
        )
    return found
