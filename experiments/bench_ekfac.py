"""How much does EK-FAC cost, beside a plain training pass, the arithmetic, kronfluence and bergson?

    uv run --group peers experiments/bench_ekfac.py
    uv run --group peers experiments/bench_ekfac.py --preset large
    uv run --group peers experiments/bench_ekfac.py --preset 1b --option-repeats 0   # on CUDA
    uv run experiments/bench_ekfac.py --no-kronfluence --no-bergson

A small OLMo-2, randomly initialised, in float32; the MLP maps are tracked. Every stage is timed in
memory, without disk (but for what bergson writes, see :mod:`utils.ekfac_bergson`): covariances,
eigendecompositions (float64), corrected eigenvalues, and scores of all training examples against
all queries (query gradients, their preconditioning and the pass over the training examples
together). The Fisher is the true one, with labels sampled in the same way for all.

The unit is one plain pass over the same examples: forward and backward with weight gradients, in
random order, batches of 8 padded to their longest. All go without an attention mask in the model
(under causal attention no real position sees padding on the right), which is the faster way for
each. Rounds of plain pass, our stages, plain pass, a peer's stages alternate; medians are reported.
Each gets the settings that were fastest for its stages in two trials: tokens per batch for us and
for bergson; for kronfluence batch size, data sorted by length or not, batched or iterative Lambda,
with all queries accumulated, so that it passes over the training examples once. Ours keeps in
memory what corrected eigenvalues need, as fit-hessians does (``--replay-bytes 0`` for without).
Peak memory is that of a process of its own for each system, above what it was once the model was
built.

A second table counts the arithmetic of our stages (:mod:`utils.ekfac_arithmetic`) and compares it
with what matrix products reach here, in the same run. A third has the options that change a number,
on a model trained for a short time (:mod:`utils.ekfac_options`): time of the whole job, and
correlation of the scores with the exact ones.

Expected: each stage of ours is faster than the peers', but scores of the small preset, where
kronfluence is as fast. Scores differ from kronfluence's by less than 1e-3 of their norm: it fits
the same Fisher, down to the sampled labels. bergson's covariances leave out the last token of every
sequence, so its scores only correlate with ours.

The tables are also written in Markdown, beside the rows in JSON. About 30 minutes on two idle CPU
cores.
"""

import importlib.util
import statistics
from collections.abc import Callable
from dataclasses import asdict, replace
from functools import partial
from typing import Any

import torch
import tyro
from hops.files import write_json, write_text
from torch import Tensor
from tqdm import tqdm
from utils import ekfac_bergson, ekfac_kronfluence
from utils.ekfac_measuring import (
    default_device,
    in_child,
    machine,
    matmul_rate,
    peak_memory,
    quick_garbage_collection,
    timed,
)
from utils.ekfac_model import (
    STAGES,
    Config,
    System,
    build_model,
    collate_in_order,
    plain_pass,
)
from utils.ekfac_options import (
    NOT_MEASURED,
    correlations,
    measure_options,
    measures_bfloat16,
    options_table,
)
from utils.ekfac_ours import Ours, choose_tokens
from utils.ekfac_report import efficiency_rows, efficiency_table, stages_table, summarize
from utils.report_table import wide_console

PLAIN_BATCH = 8
HOW_TO_INSTALL = "{} is not installed; to compare: uv run --group peers experiments/bench_ekfac.py"
Builders = dict[str, Callable[[Config], System]]


def main(config: Config) -> None:
    """Measure, print the tables, write them and their rows."""
    console = wide_console()
    config = replace(config, device=config.device or default_device())
    # Child processes first: a child's peak memory starts at what its parent holds.
    config = in_child(choose_tokens, config)
    builders, settings, absent = choose_systems(config)
    peaks = {name: in_child(peak_memory, config, build) for name, build in builders.items()}

    torch.set_num_threads(config.threads)
    times, scores, rates = measure(config, builders)
    plain_seconds, rate = statistics.median(times["plain"]["pass"]), statistics.median(rates)
    rows = summarize(times, peaks)
    efficiency = efficiency_rows(rows, config, plain_seconds, rate)
    options = measure_options(config, config.option_repeats) if config.option_repeats else []
    lines = [
        f"One plain pass: {plain_seconds:.2f} s; float32 matrix products: {rate / 1e9:.0f} GFLOP/s "
        f"on {machine(config)}; medians of {config.repeats} rounds.",
        f"Our tokens per batch: {config.fit_tokens} to fit, {config.score_tokens} to score.",
        *(f"{name}'s settings: {chosen.describe()}." for name, chosen in settings.items()),
        *(compare(name, scores) for name in settings),
        *(HOW_TO_INSTALL.format(name) for name in absent),
    ]
    tables = [
        stages_table(rows, list(builders), config),
        efficiency_table(efficiency, padding_of(config)),
    ]
    if options:
        tables.append(options_table(options, config.train_steps))
        if not measures_bfloat16(config):
            lines.append(NOT_MEASURED)
    for table in tables:
        console.print(table.screen())
    for line in lines:
        console.print(line)

    write_json(
        config.output,
        {
            "config": {**asdict(config), "output": str(config.output)},
            "machine": machine(config),
            "plain_seconds": plain_seconds,
            "matmul_gflops": rate / 1e9,
            "peer_settings": {name: asdict(chosen) for name, chosen in settings.items()},
            "rows": rows,
            "efficiency": efficiency,
            "options": [asdict(row) for row in options],
        },
    )
    text = "\n".join([*(table.markdown() for table in tables), *lines])
    write_text(config.output.with_suffix(".md"), text + "\n")
    console.print(f"rows and tables: {config.output}, {config.output.with_suffix('.md').name}")


def choose_systems(config: Config) -> tuple[Builders, dict[str, Any], list[str]]:
    """({system: how to build it}, {peer: its fastest settings}, peers that are not installed)."""
    builders: Builders = {"ours": Ours}
    settings: dict[str, Any] = {}
    asked = {"kronfluence": config.kronfluence, "bergson": config.bergson}
    absent = [name for name in asked if asked[name] and importlib.util.find_spec(name) is None]
    if asked["kronfluence"] and "kronfluence" not in absent:
        chosen = in_child(ekfac_kronfluence.choose_settings, config)
        settings["kronfluence"] = chosen
        builders["kronfluence"] = partial(ekfac_kronfluence.Kronfluence, settings=chosen)
    if asked["bergson"] and "bergson" not in absent:
        settings["bergson"] = in_child(ekfac_bergson.choose_settings, config)
        builders["bergson"] = partial(ekfac_bergson.Bergson, settings=settings["bergson"])
    return builders, settings, absent


def compare(peer: str, scores: dict[str, Tensor]) -> str:
    """How a peer's scores stand to ours, in a line."""
    ours, theirs = scores["ours"], scores[peer].to(scores["ours"])
    difference = float((ours - theirs).norm() / ours.norm())
    pearson, spearman = correlations(ours, theirs)
    return (
        f"{peer}'s scores: relative difference {difference:.1e}, correlation with ours "
        f"{pearson:.5f} (Pearson), {spearman:.5f} (Spearman), means over queries."
    )


def padding_of(config: Config) -> float:
    """Share of the positions of the plain pass's batches that are padding."""
    masks = [batch.attention_mask for batch in collate_in_order(config, PLAIN_BATCH)]
    return 1 - sum(int(mask.sum()) for mask in masks) / sum(mask.numel() for mask in masks)


def measure(
    config: Config, builders: Builders
) -> tuple[dict[str, dict[str, list[float]]], dict[str, Tensor], list[float]]:
    """Interleaved rounds.

    Returns:
        ({system: {stage: seconds per round}}, the scores of each system, matrix product rates in
        FLOP/s). The plain pass is the system "plain" with one stage, run before each other system.
    """
    plain_model = build_model(config)
    systems = {name: build(config) for name, build in builders.items()}
    plain_batches = collate_in_order(config, PLAIN_BATCH)
    times: dict[str, dict[str, list[float]]] = {"plain": {"pass": []}}
    times |= {name: {stage: [] for stage in STAGES} for name in systems}
    scores: dict[str, Tensor] = {}
    rates = []
    with quick_garbage_collection():
        # One round more than asked for, not recorded: first calls allocate and compile.
        for round_number in tqdm(range(config.repeats + 1), desc="rounds"):
            order = list(systems) if round_number % 2 else list(systems)[::-1]
            found: dict[str, dict[str, float]] = {}
            plain = []
            rate = matmul_rate(config)
            for name in order:
                plain.append(timed(config, lambda: plain_pass(plain_model, plain_batches))[0])
                found[name] = {}
                for stage in STAGES:
                    run = partial(systems[name].run, stage)
                    found[name][stage], result = timed(config, run)
                scores[name] = result
            if round_number:
                rates.append(rate)
                times["plain"]["pass"].append(statistics.mean(plain))
                for name, stages in found.items():
                    for stage, seconds in stages.items():
                        times[name][stage].append(seconds)
    return times, scores, rates


if __name__ == "__main__":
    main(tyro.cli(Config))
