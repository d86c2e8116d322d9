"""How much does EK-FAC cost, beside one plain training pass and beside kronfluence?

    uv run --group peers experiments/bench_ekfac.py
    uv run --group peers experiments/bench_ekfac.py --preset large

A small OLMo-2, randomly initialised, in float32; the MLP maps are tracked. Every stage is timed in
memory, without disk: covariances, eigendecompositions (float64), corrected eigenvalues, and scores
of all training examples against all queries (query gradients, their preconditioning and the pass
over the training examples together). The Fisher is the true one, with sampled labels.

The unit is one plain pass over the same examples: forward and backward with weight gradients, in
random order, batches of 8 padded to their longest. All three go without an attention mask in the
model (under causal attention no real position sees padding on the right), which is the faster way
for each. Rounds of plain pass, our stages, plain pass, kronfluence's stages alternate; medians are
reported. kronfluence gets the settings that were fastest for each of its stages in a trial:
batch size, data sorted by length or not, batched or iterative Lambda; all queries are
accumulated, so that it passes over the training examples once. Peak memory is that of a process
of its own for each system, above what it was once the model was built.

Expected: each stage of ours is faster than kronfluence's, and scores of both differ by less than
1e-3 of their norm: they fit the same Fisher, down to the sampled labels. About 10 minutes on two
idle CPU cores; without kronfluence, about 4.
"""

import gc
import importlib.util
import json
import os
import platform
import resource
import statistics
import tempfile
import time
import warnings
from collections.abc import Callable, Iterator, Sequence
from concurrent.futures import ProcessPoolExecutor
from contextlib import contextmanager
from dataclasses import asdict, dataclass, replace
from functools import partial
from multiprocessing import get_context
from pathlib import Path
from typing import Any, Literal, Protocol

import torch
import tyro
from if_query.batching import make_batches
from if_query.models import LanguageModelLoss, select_maps
from math_utils.capture import frozen
from math_utils.curvature import (
    Covariances,
    CovarianceSums,
    CurvatureFactors,
    Damping,
    Eigenbasis,
    EigenvalueSums,
    assemble,
    backward_pass,
    collect_queries,
    decompose,
    score_batch,
)
from math_utils.language_modeling import TokenBatch, sample_labels
from rich.console import Console
from rich.table import Table
from torch import Tensor
from tqdm import tqdm
from transformers import AutoModelForCausalLM, Olmo2Config

STAGES = ("covariances", "eigendecompositions", "corrected eigenvalues", "scores")
PRESETS = {"small": (4, 256), "large": (8, 512)}
"""Layers and width."""
VOCABULARY = 2048
NUM_HEADS = 4
PLAIN_BATCH = 8
HOW_TO_INSTALL = (
    "kronfluence is not installed; to compare: uv run --group peers experiments/bench_ekfac.py"
)


@dataclass(frozen=True)
class Config:
    """Time and peak memory of every stage of EK-FAC influence."""

    preset: Literal["small", "large"] = "small"
    """4 layers of width 256, or 8 of width 512; MLPs 4 times as wide."""
    num_layers: int | None = None
    """Layers, in place of the preset's."""
    width: int | None = None
    """Width of the model, in place of the preset's; that of its MLPs is 4 times as much."""
    num_examples: int = 256
    """Training examples, which are also what curvature is fitted on."""
    num_queries: int = 24
    """Queries."""
    min_length: int = 16
    """Lengths are uniformly random from here."""
    max_length: int = 128
    """Lengths are uniformly random up to here."""
    max_tokens: int = 1024
    """Our token budget per batch, padding counted."""
    peer: bool = True
    """Compare with kronfluence where it is installed."""
    peer_batch_sizes: tuple[int, ...] = (8, 16, 32)
    """Batch sizes that kronfluence's trial goes through."""
    repeats: int = 3
    """Rounds; medians over them are reported."""
    threads: int = 2
    """CPU threads of torch."""
    device: Literal["cpu", "cuda"] | None = None
    """CUDA where there is one, otherwise the CPU."""
    seed: int = 0
    """Of weights, lengths, tokens and sampled labels."""
    output: Path = Path("results/bench_ekfac.json")
    """Where to write the rows."""


class System(Protocol):
    """One implementation; each stage uses the results of those before it."""

    def run(self, stage: str) -> Any:
        """Do one stage and keep its result; scores [query, train] are returned."""


def main(config: Config) -> None:
    """Measure, print the table, write the rows."""
    console = Console()
    config = replace(config, device=config.device or _default_device())
    has_peer = config.peer and importlib.util.find_spec("kronfluence") is not None
    # Child processes first: a child's peak memory starts at what its parent holds.
    settings = _in_child(choose_peer_settings, config) if has_peer else None
    builders: dict[str, Callable[[Config], System]] = {"ours": Ours}
    if settings is not None:
        builders["kronfluence"] = partial(Kronfluence, settings=settings)
    peaks = {name: _in_child(peak_memory, config, build) for name, build in builders.items()}

    torch.set_num_threads(config.threads)
    times, scores, rates = measure(config, builders)
    rows = summarize(times, peaks)
    console.print(render(rows, config))
    console.print(
        f"one plain pass: {statistics.median(times['plain']['pass']):.2f} s; float32 matrix "
        f"products: {statistics.median(rates) / 1e9:.0f} GFLOP/s on {_machine(config)}"
    )
    if settings is not None:
        console.print(f"kronfluence's settings: {settings.describe()}")
        difference = (scores["ours"] - scores["kronfluence"]).norm() / scores["ours"].norm()
        console.print(f"relative difference of the scores: {float(difference):.1e}")
    elif config.peer:
        console.print(HOW_TO_INSTALL)
    _write(
        config.output,
        {
            "config": {**asdict(config), "output": str(config.output)},
            "machine": _machine(config),
            "matmul_gflops": statistics.median(rates) / 1e9,
            "peer_settings": None if settings is None else asdict(settings),
            "rows": rows,
        },
    )
    console.print(f"rows: {config.output}")


def measure(
    config: Config, builders: dict[str, Callable[[Config], System]]
) -> tuple[dict[str, dict[str, list[float]]], dict[str, Tensor], list[float]]:
    """Interleaved rounds.

    Returns:
        ({system: {stage: seconds per round}}, the scores of each system, matrix product rates in
        FLOP/s). The plain pass is the system "plain" with one stage, run before each other system.
    """
    plain_model, systems = build_model(config), {n: build(config) for n, build in builders.items()}
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
                plain.append(_timed(config, lambda: plain_pass(plain_model, plain_batches))[0])
                found[name] = {}
                for stage in STAGES:
                    run = partial(systems[name].run, stage)
                    found[name][stage], result = _timed(config, run)
                scores[name] = result
            if round_number:
                rates.append(rate)
                times["plain"]["pass"].append(statistics.mean(plain))
                for name, stages in found.items():
                    for stage, seconds in stages.items():
                        times[name][stage].append(seconds)
    return times, scores, rates


def summarize(
    times: dict[str, dict[str, list[float]]], peaks: dict[str, float]
) -> list[dict[str, Any]]:
    """One row per stage (and their total) with median seconds and multiples of each system."""
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
    if "kronfluence" in peaks:
        for row in rows:
            unit = "mib" if row["stage"] == "peak memory" else "seconds"
            row["ratio"] = row[f"kronfluence_{unit}"] / row[f"ours_{unit}"]
    return rows


def render(rows: Sequence[dict[str, Any]], config: Config) -> Table:
    """The rows as a table for the screen."""
    layers, width = _sizes(config)
    table = Table(
        title=f"EK-FAC, OLMo-2 {layers}×{width}, {config.num_examples} examples of "
        f"{config.min_length} to {config.max_length} tokens, {config.num_queries} queries"
    )
    systems = ("ours", "kronfluence") if "ratio" in rows[0] else ("ours",)
    table.add_column("stage")
    for name in systems:
        table.add_column(f"{name}: s", justify="right")
        table.add_column("× plain", justify="right")
    if len(systems) > 1:
        table.add_column("ratio", justify="right")
    for row in rows:
        cells = [row["stage"]]
        for name in systems:
            if row["stage"] == "peak memory":
                cells += [f"{row[f'{name}_mib']:,.0f} MiB", ""]
            else:
                cells += [f"{row[f'{name}_seconds']:.2f}", f"{row[f'{name}_multiple']:.2f}"]
        table.add_row(*cells, *([f"{row['ratio']:.2f}"] if len(systems) > 1 else []))
    return table


# Model and data


def build_model(config: Config) -> Any:
    """The same weights at every call."""
    layers, width = _sizes(config)
    with torch.random.fork_rng():
        torch.manual_seed(config.seed)
        model = AutoModelForCausalLM.from_config(
            Olmo2Config(
                vocab_size=VOCABULARY,
                hidden_size=width,
                intermediate_size=4 * width,
                num_hidden_layers=layers,
                num_attention_heads=NUM_HEADS,
                max_position_embeddings=config.max_length,
                eos_token_id=1,
            ),
            dtype=torch.float32,
        )
    return model.to(config.device).eval()


def make_sequences(config: Config, *, queries: bool = False) -> list[list[int]]:
    """Random tokens of uniformly random lengths."""
    generator = torch.Generator().manual_seed(config.seed + queries)
    count = config.num_queries if queries else config.num_examples
    bounds = (config.min_length, config.max_length + 1)
    lengths = torch.randint(*bounds, (count,), generator=generator).tolist()
    return [torch.randint(3, VOCABULARY, (n,), generator=generator).tolist() for n in lengths]


def collate_rows(sequences: Sequence[Sequence[int]], rows: Sequence[int]) -> TokenBatch:
    """Some of the sequences, every token of them a label."""
    chosen = [sequences[row] for row in rows]
    return TokenBatch.collate(chosen, chosen, rows)


def collate_in_order(config: Config, batch_size: int) -> list[TokenBatch]:
    """The training examples in their own, random order."""
    sequences, rows = make_sequences(config), range(config.num_examples)
    return [
        collate_rows(sequences, rows[first : first + batch_size]).to(_device(config))
        for first in range(0, len(rows), batch_size)
    ]


def plain_pass(model: Any, batches: Sequence[TokenBatch]) -> None:
    """What an epoch of training costs without the optimizer."""
    for batch in batches:
        model.zero_grad(set_to_none=True)
        summed_loss(model, batch.input_ids, batch.label_positions()).backward()
    model.zero_grad(set_to_none=True)


def summed_loss(
    model: Any, input_ids: Tensor, predicts: Tensor, sampled: tuple[Tensor, int] | None = None
) -> Tensor:
    """Summed next-token cross-entropy where a position predicts a label.

    Labels are the tokens, or those that our :func:`sample_labels` draws for (keys, seed), so that
    both systems fit the same Fisher. (torch.multinomial takes 6 times as long on a CPU.)
    """
    logits = model(input_ids=input_ids, use_cache=False).logits[predicts]
    if sampled is None:
        targets = input_ids[:, 1:][predicts[:, :-1]]
    else:
        keys, seed = sampled
        targets = sample_labels(logits, predicts.nonzero()[:, 0], keys, seed=seed)
    return torch.nn.functional.cross_entropy(logits, targets, reduction="sum")


# The two systems


class Ours:
    """The stages of math_utils.curvature, on batches made by if_query."""

    def __init__(self, config: Config) -> None:
        self._model = build_model(config)
        self._maps = select_maps(self._model).maps
        self._sampled = LanguageModelLoss("sampled", seed=config.seed)
        self._train, self._rows = self._plan(config, queries=False)
        self._queries, self._query_rows = self._plan(config, queries=True)
        self._covariances: dict[str, Covariances]
        self._bases: dict[str, Eigenbasis]
        self._factors: CurvatureFactors

    def _plan(self, config: Config, *, queries: bool) -> tuple[list[TokenBatch], list[int]]:
        sequences = make_sequences(config, queries=queries)
        plan = make_batches([len(ids) for ids in sequences], max_tokens=config.max_tokens)
        batches = [collate_rows(sequences, rows).to(_device(config)) for rows in plan]
        return batches, [row for rows in plan for row in rows]

    def run(self, stage: str) -> Any:
        """Do one stage and keep its result; scores [query, train] are returned."""
        with frozen(self._model):
            if stage == "covariances":
                self._covariances = self._pass(CovarianceSums(self._maps)).finish()
            elif stage == "eigendecompositions":
                self._bases = dict(decompose(self._covariances.items()))
            elif stage == "corrected eigenvalues":
                sums = self._pass(EigenvalueSums(self._maps, self._bases))
                self._factors = assemble("ekfac", self._bases, sums.finish(len(self._rows)))
            else:
                return self._score()
        return None

    def _pass(self, sums: Any) -> Any:
        for batch in self._train:
            backward_pass(self._model, self._maps, batch, self._sampled, sums.add)
        return sums

    def _score(self) -> Tensor:
        loss = LanguageModelLoss()
        queries, _ = collect_queries(
            self._model, self._maps, self._queries, loss, self._factors, Damping()
        )
        scores = [
            score_batch(self._model, self._maps, batch, loss, queries).total
            for batch in self._train
        ]
        together = torch.empty(len(self._query_rows), len(self._rows))
        together[torch.tensor(self._query_rows)[:, None], torch.tensor(self._rows)] = torch.cat(
            scores, dim=1
        )
        return together


@dataclass(frozen=True)
class PeerSetting:
    """How one stage of kronfluence runs."""

    batch_size: int
    by_length: bool
    iterative: bool = False


@dataclass(frozen=True)
class PeerSettings:
    """How each stage of kronfluence that passes over data runs."""

    covariances: PeerSetting
    lambdas: PeerSetting
    scores: PeerSetting

    def describe(self) -> str:
        """For a person."""
        stages = {"covariances": self.covariances, "lambdas": self.lambdas, "scores": self.scores}
        return "; ".join(
            f"{stage}: batches of {one.batch_size}"
            + (", sorted by length" if one.by_length else ", in random order")
            + (", iterative" if one.iterative else "")
            for stage, one in stages.items()
        )


class Kronfluence:
    """The loops of kronfluence, below its layer that writes files."""

    def __init__(self, config: Config, settings: PeerSettings) -> None:
        from kronfluence.analyzer import prepare_model
        from kronfluence.utils.state import State

        warnings.filterwarnings("ignore", ".*GradScaler.*", FutureWarning)
        self.settings = settings
        self._config = config
        self._state = State(cpu=config.device == "cpu")
        model = build_model(config)
        self._task = _peer_task(list(select_maps(model).maps), config.seed)
        self._model = prepare_model(model, self._task)
        self._covariances: Any = None
        self._eigen: Any = None
        self._lambdas: Any = None

    def run(self, stage: str) -> Any:
        """Do one stage and keep its result; scores [query, train] are returned."""
        from kronfluence.arguments import FactorArguments
        from kronfluence.factor.covariance import fit_covariance_matrices_with_loader
        from kronfluence.factor.eigen import (
            fit_lambda_matrices_with_loader,
            perform_eigendecomposition,
        )

        common = {"model": self._model, "state": self._state, "disable_tqdm": True}
        arguments = FactorArguments(strategy="ekfac")
        if stage == "covariances":
            loader, _ = self._loader(self.settings.covariances)
            _, self._covariances = fit_covariance_matrices_with_loader(
                **common, task=self._task, loader=loader, factor_args=arguments
            )
        elif stage == "eigendecompositions":
            self._eigen = perform_eigendecomposition(
                self._covariances, factor_args=arguments, **common
            )
        elif stage == "corrected eigenvalues":
            setting = self.settings.lambdas
            loader, _ = self._loader(setting)
            arguments.use_iterative_lambda_aggregation = setting.iterative
            _, self._lambdas = fit_lambda_matrices_with_loader(
                **common,
                task=self._task,
                loader=loader,
                factor_args=arguments,
                eigen_factors=self._eigen,
            )
        else:
            return self._score(common, arguments)
        return None

    def _score(self, common: dict[str, Any], arguments: Any) -> Tensor:
        from kronfluence.arguments import ScoreArguments
        from kronfluence.score.pairwise import compute_pairwise_scores_with_loaders

        setting = self.settings.scores
        train, rows = self._loader(setting)
        queries, query_rows = self._loader(setting, queries=True)
        scores = compute_pairwise_scores_with_loaders(
            **common,
            loaded_factors={**self._eigen, **self._lambdas},
            task=self._task,
            query_loader=queries,
            per_device_query_batch_size=setting.batch_size,
            train_loader=train,
            score_args=ScoreArguments(
                damping_factor=None, query_gradient_accumulation_steps=len(queries)
            ),
            factor_args=arguments,
            tracked_module_names=None,
        )["all_modules"]
        together = torch.empty_like(scores)
        together[torch.tensor(query_rows)[:, None], torch.tensor(rows)] = scores
        return together

    def _loader(self, setting: PeerSetting, *, queries: bool = False) -> tuple[Any, list[int]]:
        sequences = make_sequences(self._config, queries=queries)
        rows = list(range(len(sequences)))
        if setting.by_length:
            rows.sort(key=lambda row: -len(sequences[row]))

        def collate(chosen: list[int]) -> dict[str, Tensor]:
            batch = collate_rows(sequences, chosen)
            return {
                "input_ids": batch.input_ids,
                "mask": batch.attention_mask,
                "predicts": batch.label_positions(),
                "keys": batch.example_keys,
            }

        loader = torch.utils.data.DataLoader(
            rows,  # type: ignore[arg-type]
            batch_size=setting.batch_size,
            collate_fn=collate,
        )
        return loader, rows


def _peer_task(tracked: list[str], seed: int) -> Any:
    from kronfluence.task import Task

    class SummedLoss(Task):
        """Summed cross-entropy; labels drawn from the model where kronfluence asks for it."""

        def compute_train_loss(self, batch: Any, model: Any, sample: bool = False) -> Tensor:
            sampled = (batch["keys"], seed) if sample else None
            return summed_loss(model, batch["input_ids"], batch["predicts"], sampled)

        def compute_measurement(self, batch: Any, model: Any) -> Tensor:
            return summed_loss(model, batch["input_ids"], batch["predicts"])

        def get_influence_tracked_modules(self) -> list[str]:
            return tracked

        def get_attention_mask(self, batch: Any) -> Tensor:
            mask: Tensor = batch["mask"]
            return mask

    return SummedLoss()


def choose_peer_settings(config: Config) -> PeerSettings:
    """The fastest setting of each stage of kronfluence, on a quarter of the examples."""
    torch.set_num_threads(config.threads)
    quarter = replace(config, num_examples=max(1, config.num_examples // 4))
    first = PeerSetting(config.peer_batch_sizes[0], by_length=True)
    system = Kronfluence(quarter, PeerSettings(first, first, first))
    candidates = [
        PeerSetting(size, by_length)
        for size in config.peer_batch_sizes
        for by_length in (False, True)
    ]
    fields = {"covariances": "covariances", "corrected eigenvalues": "lambdas", "scores": "scores"}
    with quick_garbage_collection():
        for stage in STAGES:
            system.run(stage)
        for stage, field in tqdm(fields.items(), desc="settings of kronfluence"):

            def seconds_of(trial: PeerSetting, stage: str = stage, field: str = field) -> float:
                system.settings = replace(system.settings, **{field: trial})
                return _timed(quarter, partial(system.run, stage))[0]

            best = min(candidates, key=seconds_of)
            if field == "lambdas":
                best = min((best, replace(best, iterative=True)), key=seconds_of)
            system.settings = replace(system.settings, **{field: best})
    return system.settings


# Measuring


def peak_memory(config: Config, build: Callable[[Config], System]) -> float:
    """Peak memory of all stages in MiB, above what is there once the model is built."""
    torch.set_num_threads(config.threads)
    system = build(config)
    before = _peak_bytes(config)
    for stage in STAGES:
        system.run(stage)
    return (_peak_bytes(config) - before) / 2**20


def _peak_bytes(config: Config) -> float:
    if config.device == "cuda":
        return float(torch.cuda.max_memory_allocated())
    # Kibibytes on Linux, bytes on macOS.
    unit = 1 if platform.system() == "Darwin" else 1024
    return float(resource.getrusage(resource.RUSAGE_SELF).ru_maxrss) * unit


@contextmanager
def quick_garbage_collection() -> Iterator[None]:
    """Leave what exists out of garbage collection, which kronfluence asks for many times.

    Otherwise its time would depend on how many modules happen to be imported here.
    """
    gc.collect()
    gc.freeze()
    try:
        yield
    finally:
        gc.unfreeze()


def matmul_rate(config: Config, size: int = 1024) -> float:
    """Float32 operations per second of square matrix products."""
    left, right = (torch.randn(size, size, device=config.device) for _ in range(2))
    repeats = 200 if config.device == "cuda" else 10

    def products() -> None:
        for _ in range(repeats):
            torch.mm(left, right)

    products()
    return 2 * size**3 * repeats / _timed(config, products)[0]


def _timed(config: Config, run: Callable[[], Any]) -> tuple[float, Any]:
    _wait(config)
    start = time.perf_counter()
    result = run()
    _wait(config)
    return time.perf_counter() - start, result


def _wait(config: Config) -> None:
    if config.device == "cuda":
        torch.cuda.synchronize()


def _in_child(function: Callable[..., Any], *arguments: Any) -> Any:
    with ProcessPoolExecutor(max_workers=1, mp_context=get_context("spawn")) as pool:
        return pool.submit(function, *arguments).result()


def _default_device() -> Literal["cpu", "cuda"]:
    return "cuda" if torch.cuda.is_available() else "cpu"


def _device(config: Config) -> torch.device:
    return torch.device(config.device or "cpu")


def _sizes(config: Config) -> tuple[int, int]:
    layers, width = PRESETS[config.preset]
    return config.num_layers or layers, config.width or width


def _machine(config: Config) -> str:
    if config.device == "cuda":
        return str(torch.cuda.get_device_name())
    return f"{config.threads} CPU threads, torch {torch.__version__}"


def _write(path: Path, content: dict[str, Any]) -> None:
    path.parent.mkdir(parents=True, exist_ok=True)
    with tempfile.NamedTemporaryFile("w", dir=path.parent, delete=False) as file:
        json.dump(content, file, indent=2)
    os.replace(file.name, path)


if __name__ == "__main__":
    main(tyro.cli(Config))
