"""How fast is the randomised Hadamard transform, beside other ways to project?

    uv run experiments/bench_hadamard.py
    uv run experiments/bench_hadamard.py --log-dims 12 16 20 24 --output-dim 8192

Vectors in float32, with as many entries in all whatever their dimension. Times are medians per
entry, beside that of copying the vectors, which is the least that any projection can take:

    ours            RandomizedHadamardTransform.project
    transform       its Walsh-Hadamard transform alone, of the whole vector
    butterfly       the textbook loop over log₂(dim) levels of sums and differences
    matrix          a product with scipy.linalg.hadamard (up to 2¹²: 64 MiB)
    countsketch     each entry, with a random sign, added to one of output_dim sums

The error of inner products is ‖⟨Px, Py⟩ − ⟨x, y⟩‖ over all pairs of 16 unit vectors, beside the
1/√output_dim that a Gaussian projection has; for dense vectors, and for ones with 8 entries, as the
gradients of embeddings have.

Expected: ours several times faster than the butterfly loop, a few times slower than CountSketch,
and 9 to 30 times slower than a copy; the inner products of dense vectors are as good as a Gaussian
projection's. CountSketch keeps those of sparse vectors exactly unless their entries collide. The
command above, on one CPU core, in nanoseconds per entry at 2¹², 2¹⁶, 2²⁰, 2²²: ours 4.1, 5.9, 6.0,
12; butterfly 20, 29, 57, 33; CountSketch 3.7, 3.4, 1.4, 4.2; copy 0.4 to 0.5. Under a minute.
"""

import json
import statistics
import time
from collections.abc import Callable
from dataclasses import asdict, dataclass
from functools import partial
from pathlib import Path
from typing import Any, Literal

import torch
import tyro
from math_utils.influence import RandomizedHadamardTransform, hadamard_transform
from rich.console import Console
from rich.table import Table
from scipy.linalg import hadamard
from torch import Tensor

LARGEST_MATRIX = 12


@dataclass(frozen=True)
class Config:
    """Nanoseconds per entry of ways to project."""

    log_dims: tuple[int, ...] = (10, 12, 16, 20, 22)
    """log₂ of the dimensions."""
    log_entries: int = 22
    """log₂ of the entries projected at once, at the least one vector."""
    output_dim: int = 1024
    """Dimensions of the projection."""
    repeats: int = 5
    """Rounds; medians over them are reported."""
    threads: int = 1
    """CPU threads of torch."""
    device: Literal["cpu", "cuda"] | None = None
    """CUDA where there is one, otherwise the CPU."""
    seed: int = 0
    """Of vectors, signs and rows."""
    output: Path = Path("results/bench_hadamard.json")
    """Rows as JSON."""


def main(config: Config) -> None:
    """Measure, print the table, write the rows."""
    torch.set_num_threads(config.threads)
    console = Console()
    device = config.device or ("cuda" if torch.cuda.is_available() else "cpu")
    generator = torch.Generator().manual_seed(config.seed)
    rows = []
    for log_dim in config.log_dims:
        dim = 1 << log_dim
        num = max(1, (1 << config.log_entries) // dim)
        vectors = torch.randn(num, dim, generator=generator).to(device)
        output_dim = min(config.output_dim, dim)
        ways = make_ways(vectors, output_dim, log_dim, config.seed)
        times: dict[str, list[float]] = {name: [] for name in ways}
        for _ in range(config.repeats + 1):
            for name, way in ways.items():
                times[name].append(timed(partial(way, vectors), device))
        row: dict[str, Any] = {"log_dim": log_dim, "output_dim": output_dim}
        for name, seconds in times.items():  # the first round warms up
            row[name] = statistics.median(seconds[1:]) / vectors.numel() * 1e9
        for kind in ("dense", "sparse"):
            some = make_vectors(kind, dim, generator).to(device)
            for name in ("ours", "countsketch"):
                row[f"{name} error, {kind}"] = inner_product_error(some, ways[name](some))
        rows.append(row)
    print_tables(console, config, rows)
    config.output.parent.mkdir(parents=True, exist_ok=True)
    content = {
        "config": {**asdict(config), "output": str(config.output)},
        "machine": torch.cuda.get_device_name()
        if device == "cuda"
        else f"{config.threads} CPU threads, torch {torch.__version__}",
        "rows": rows,
    }
    config.output.write_text(json.dumps(content, indent=2))
    console.print(f"rows: {config.output}")


def make_ways(
    vectors: Tensor, output_dim: int, log_dim: int, seed: int
) -> dict[str, Callable[[Tensor], Tensor]]:
    """What is timed."""
    dim, device = vectors.shape[1], vectors.device
    generator = torch.Generator().manual_seed(seed)
    buckets = torch.randint(0, output_dim, (dim,), generator=generator).to(device)
    signs = (torch.randint(0, 2, (dim,), generator=generator) * 2 - 1).float().to(device)
    transform = RandomizedHadamardTransform(dim, output_dim, seed=seed)
    ways: dict[str, Callable[[Tensor], Tensor]] = {
        "copy": torch.clone,
        "ours": transform.project,
        "transform": hadamard_transform,
        "butterfly": butterfly,
        "countsketch": lambda x: x.new_zeros(len(x), output_dim).index_add_(1, buckets, x * signs),
    }
    if log_dim <= LARGEST_MATRIX:
        matrix = torch.tensor(hadamard(dim), dtype=torch.float32, device=device)
        ways["matrix"] = lambda x: x @ matrix
    return ways


def butterfly(vectors: Tensor) -> Tensor:
    """The textbook transform: sums and differences, level by level."""
    num, dim = vectors.shape
    width = 1
    while width < dim:
        halves = vectors.view(num, dim // (2 * width), 2, width)
        left, right = halves[:, :, 0], halves[:, :, 1]
        vectors = torch.stack([left + right, left - right], dim=2).view(num, dim)
        width *= 2
    return vectors


def make_vectors(kind: str, dim: int, generator: torch.Generator) -> Tensor:
    """16 unit vectors that point in a common direction in part, so that they are not orthogonal."""
    if kind == "dense":
        vectors = torch.randn(16, dim, generator=generator) + torch.randn(dim, generator=generator)
    else:
        places = torch.randint(0, dim, (8,), generator=generator)
        vectors = torch.zeros(16, dim)
        vectors[:, places] = torch.randn(16, 8, generator=generator) + 1
    unit: Tensor = vectors / vectors.norm(dim=1, keepdim=True)
    return unit


def inner_product_error(vectors: Tensor, projected: Tensor) -> float:
    """Root mean square error of inner products of pairs."""
    upper = torch.triu_indices(16, 16)
    errors = (projected @ projected.T - vectors @ vectors.T)[upper[0], upper[1]]
    return float(errors.square().mean().sqrt())


def timed(function: Callable[[], Tensor], device: str) -> float:
    """Wall-clock seconds."""
    start = time.perf_counter()
    function()
    if device == "cuda":
        torch.cuda.synchronize()
    return time.perf_counter() - start


def print_tables(console: Console, config: Config, rows: list[dict[str, Any]]) -> None:
    """Times and errors."""
    names = ["copy", "ours", "transform", "butterfly", "matrix", "countsketch"]
    table = Table("dimensions", *names, title="nanoseconds per entry")
    for row in rows:
        cells = [f"{row[name]:.2f}" if name in row else "" for name in names]
        table.add_row(f"2^{row['log_dim']}", *cells)
    console.print(table)
    names = [
        f"{name} error, {kind}" for kind in ("dense", "sparse") for name in ("ours", "countsketch")
    ]
    table = Table("dimensions", *names, "1/√output")
    for row in rows:
        cells = [f"{row[name]:.4f}" for name in names]
        table.add_row(f"2^{row['log_dim']}", *cells, f"{row['output_dim'] ** -0.5:.4f}")
    console.print(table)


if __name__ == "__main__":
    main(tyro.cli(Config, description=__doc__))
