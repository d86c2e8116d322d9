"""Tables of bench_ekfac.py."""

import statistics
from collections.abc import Mapping, Sequence
from typing import Any

from utils.ekfac_arithmetic import plain_pass, stage_arithmetic
from utils.ekfac_model import STAGES, Config, shapes_of, sizes_of, workloads_of
from utils.report_table import ReportTable

PLAIN = "plain pass"


def summarize(
    times: Mapping[str, Mapping[str, Sequence[float]]], peaks: Mapping[str, float]
) -> list[dict[str, Any]]:
    """One row per stage (and their total) with median seconds and multiples of each system.

    Ratios are a peer's seconds (or peak memory) over ours, so above 1 where ours needs less.
    """
    plain = times["plain"]["pass"]
    rows: list[dict[str, Any]] = []
    for stage in (*STAGES, "total"):
        row: dict[str, Any] = {"stage": stage}
        for name in peaks:
            each = times[name]
            seconds = (
                each[stage]
                if stage != "total"
                else [sum(one) for one in zip(*each.values(), strict=True)]
            )
            multiples = [s / p for s, p in zip(seconds, plain, strict=True)]
            row[f"{name}_seconds"] = statistics.median(seconds)
            row[f"{name}_multiple"] = statistics.median(multiples)
            row[f"{name}_multiple_range"] = [min(multiples), max(multiples)]
        rows.append(row)
    rows.append({"stage": "peak memory"} | {f"{n}_mib": peak for n, peak in peaks.items()})
    for row in rows:
        unit = "mib" if row["stage"] == "peak memory" else "seconds"
        for peer in set(peaks) - {"ours"}:
            row[f"{peer}_ratio"] = row[f"{peer}_{unit}"] / row[f"ours_{unit}"]
    return rows


def stages_table(rows: Sequence[dict[str, Any]], systems: Sequence[str], config: Config) -> Any:
    """What each stage takes, ours first."""
    layers, width = sizes_of(config)
    columns = ["stage"]
    for name in systems:
        columns += [f"{name}: s", "× plain"]
    columns += [f"{peer} / ours" for peer in systems[1:]]
    cells = []
    for row in rows:
        line = [row["stage"]]
        for name in systems:
            if row["stage"] == "peak memory":
                line += [f"{row[f'{name}_mib']:,.0f} MiB", ""]
            else:
                line += [f"{row[f'{name}_seconds']:.2f}", f"{row[f'{name}_multiple']:.2f}"]
        cells.append([*line, *(f"{row[f'{peer}_ratio']:.2f}" for peer in systems[1:])])
    return ReportTable(
        f"EK-FAC, OLMo-2 {layers}×{width}, {config.num_examples} examples of {config.min_length} "
        f"to {config.max_length} tokens, {config.num_queries} queries, float32",
        columns,
        cells,
    )


def efficiency_rows(
    rows: Sequence[dict[str, Any]], config: Config, plain_seconds: float, rate: float
) -> list[dict[str, Any]]:
    """The arithmetic of every stage of ours, its floor and how near to it the stage comes.

    Args:
        rows: what :func:`summarize` gave.
        config: the sizes.
        plain_seconds: of one plain pass.
        rate: float32 operations per second of matrix products here.

    Floors are those of corrected eigenvalues that replay every batch, unless nothing is kept: where
    there is room for some batches only, the floor is too low.

    Returns:
        Per stage and, below it, per part: ``flop`` counted, ``floor`` = flop / rate / seconds of a
        plain pass, and for stages ``efficiency`` = flop / (seconds · rate), with the real training
        tokens per second where the stage goes over them.
    """
    model, (train, queries) = shapes_of(config), workloads_of(config)
    seconds = {row["stage"]: row["ours_seconds"] for row in rows if "ours_seconds" in row}
    seconds[PLAIN] = plain_seconds
    stages = stage_arithmetic(model, train, queries, replays=config.replay_bytes != 0)
    whole = {stage: sum(parts.values()) for stage, parts in stages.items()}
    counted = {PLAIN: plain_pass(model, train), **whole, "total": sum(whole.values())}
    found = []
    for stage, flop in counted.items():
        found.append(
            {
                "stage": stage,
                "flop": flop,
                "floor": flop / rate / plain_seconds,
                "seconds": seconds[stage],
                "efficiency": flop / (seconds[stage] * rate),
                "tokens_per_second": (
                    None if stage == "eigendecompositions" else train.num_tokens / seconds[stage]
                ),
            }
        )
        parts = stages.get(stage, {})
        if len(parts) > 1:
            found += [
                {"stage": stage, "part": part, "flop": n, "floor": n / rate / plain_seconds}
                for part, n in parts.items()
            ]
    return found


def efficiency_table(rows: Sequence[dict[str, Any]], padding: float) -> ReportTable:
    """Counted arithmetic against the machine's rate.

    Args:
        rows: what :func:`efficiency_rows` gave.
        padding: share of the positions of the plain pass's batches that are padding.
    """
    cells = []
    for row in rows:
        if "part" in row:
            cells.append(
                [f"· {row['part']}", f"{row['flop'] / 1e9:.1f}", f"{row['floor']:.2f}", "", "", ""]
            )
        else:
            tokens = row["tokens_per_second"]
            cells.append(
                [
                    row["stage"],
                    f"{row['flop'] / 1e9:.1f}",
                    f"{row['floor']:.2f}",
                    f"{row['seconds']:.2f}",
                    f"{row['efficiency']:.0%}",
                    "" if tokens is None else f"{tokens:,.0f}",
                ]
            )
    return ReportTable(
        "Arithmetic of each stage of ours, at this machine's rate of float32 matrix products "
        f"({padding:.0%} of the plain pass's positions are padding, which is not counted)",
        ("stage", "GFLOP", "floor, × plain", "ours: s", "efficiency", "tokens/s"),
        cells,
    )
