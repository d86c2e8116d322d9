"""What the page "how to read this" says about a run: its facts, its versions, its commands."""

from typing import Any

from if_query.command_line import command_line_of
from if_query.report.health import Factors
from if_query.run_query import RunQueryConfig

_SHOWN_BY_NAME = (
    "damping", "damping_kind", "dtype", "max_length", "query_rank", "top_k", "format",
    "per_token_scores", "per_module_scores", "self_influence",
)  # fmt: skip


def describe_reading(results: dict[str, Any], factors: Factors | None) -> dict[str, Any]:
    """Facts of a run for its readers.

    Args:
        results: metadata of the results.
        factors: what they were computed with, where at hand.
    """
    arguments = results["result_arguments"]
    commands = [command_line_of("run-query", RunQueryConfig, results["arguments"])]
    if factors is not None and factors.complaint is None:
        from if_query.fit_hessians import FitHessiansConfig

        fitted = factors.metadata["arguments"]
        commands.insert(0, command_line_of("fit-hessians", FitHessiansConfig, fitted))
    return {
        "sign": results["sign"],
        "unit": results["unit"],
        "strategy": results["strategy"],
        "fisher": results["fisher"],
        "damping": arguments["damping"],
        "damping_kind": arguments["damping_kind"],
        "model": results["model"],
        "revision": results["revision"],
        "model_fingerprint": results["model_fingerprint"],
        "factors": results["factors"],
        "tracked_share": results["tracked_share"],
        "tracked_modules": results["tracked_modules"],
        "dtype": arguments["dtype"],
        "max_length": arguments["max_length"],
        "query_rank": arguments["query_rank"],
        "top_k": arguments["top_k"],
        "per_token_scores": arguments["per_token_scores"],
        "per_module_scores": arguments["per_module_scores"],
        "self_influence": arguments["self_influence"],
        "other_arguments": {
            name: value for name, value in arguments.items() if name not in _SHOWN_BY_NAME
        },
        "versions": results["versions"],
        "commands": commands,
    }
