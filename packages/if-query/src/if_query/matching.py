"""Whether a model and a factors folder belong together."""

from typing import TYPE_CHECKING, Any

from if_query.errors import InputError
from if_query.factors import FactorStore
from if_query.models import Tracked, track

if TYPE_CHECKING:
    from if_query.run_query import RunQueryConfig


def match_factors(
    model: Any, own_fingerprint: str, store: FactorStore, config: "RunQueryConfig"
) -> Tracked:
    """The model's maps that the factors are of, checked against them.

    Raises:
        InputError: if model and factors do not belong together (a warning under
            ``--allow-mismatch``), or the maps have other shapes (always).
    """
    fitted = store.metadata
    problems = []
    if fitted["model_fingerprint"] != own_fingerprint:
        problems.append(
            f"the parameters differ: the factors are of {fitted['model']} "
            f"(fingerprint {fitted['model_fingerprint'][:12]}, {fitted['dtype']}), this is "
            f"{config.model} ({own_fingerprint[:12]}, {config.dtype})"
        )
    if fitted["revision"] != config.revision:
        problems.append(
            f"the factors are of revision {fitted['revision']}, this is {config.revision}"
        )
    if problems and not config.allow_mismatch:
        raise InputError(
            f"{store.folder}: {'; '.join(problems)}; fit factors for this model, or pass "
            "--allow-mismatch"
        )
    for problem in problems:
        print(f"warning: {store.folder}: {problem}")
    tracked = track(model, fitted["tracked_modules"].__contains__)
    for name, shape in fitted["tracked_modules"].items():
        one = tracked.maps.get(name)
        found = None if one is None else [one.d_out, one.d_in]
        if found != [shape["d_out"], shape["d_in"]]:
            raise InputError(
                f"{store.folder}: the factors have {name} as [{shape['d_out']}, {shape['d_in']}], "
                f"the model has {'no such map' if found is None else found}"
            )
    return tracked
