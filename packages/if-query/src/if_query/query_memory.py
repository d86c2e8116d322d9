"""What a query run keeps in memory: all factors or one map's, and how many queries at a time."""

from dataclasses import dataclass, replace

import torch
from math_utils.curvature import CurvatureFactors, share_equal_bases

from if_query.device_memory import free_memory
from if_query.errors import InputError
from if_query.factors import FactorStore
from if_query.factors_on_disk import FactorsOnDisk
from if_query.plan.query_trials import QueryTrials
from if_query.plan.report import gigabytes
from if_query.plan.sizes import factor_bytes, query_bytes
from if_query.query_pass import Run

SHARE_FOR_FACTORS = 0.5
"""Of free memory; factors that take more are read from disk map by map."""

SHARE_FOR_QUERIES = 0.4
"""Of what is free beside the factors, where --query-memory-gb and --memory-gb say nothing; a few
more copies of some query gradients are alive while they are preconditioned."""


@dataclass(frozen=True)
class QueryMemory:
    """What is kept in memory.

    Attributes:
        factors: bytes of factors that are kept: those of all maps, or of the largest as it is read.
        factors_on_disk: whether each map's are read when they are needed.
        per_query: bytes of one query's preconditioned gradients.
        queries_at_once: how many of these are kept.
        lines: what was chosen other than all at once, for a person.
    """

    factors: int
    factors_on_disk: bool
    per_query: int
    queries_at_once: int
    lines: list[str]


def choose_memory(run: Run, store: FactorStore, trials: QueryTrials) -> QueryMemory:
    """Fit factors and queries into memory.

    Args:
        run: with no factors in memory yet.
        store: the factors.
        trials: a few batches, which are only run where ``--memory-gb`` states a memory.

    Raises:
        InputError: if one query by itself does not fit into a stated memory.
    """
    config, num_queries = run.config, len(run.queries.pairs)
    maps, devices = run.tracked.maps.values(), list(run.tracked.devices().values())
    itemsize = getattr(torch, store.metadata["covariance_dtype"]).itemsize
    sizes = [factor_bytes(store.strategy, one) for one in maps]
    largest_file = max(factor_bytes(store.strategy, one, itemsize) for one in maps)
    per_query = sum(query_bytes(one, config.query_rank) for one in maps)
    if config.memory_gb is None:
        room = float(free_memory(devices))
    else:
        room = config.memory_gb * 1e9 - trials.peak.on(devices)
    on_disk = sum(sizes) > SHARE_FOR_FACTORS * room
    factors = 2 * largest_file + max(sizes) if on_disk else sum(sizes)
    lines = []
    if on_disk:
        lines.append(
            f"factors take {gigabytes(sum(sizes))} of {gigabytes(max(room, 0))} that are free, so "
            "they are read from disk map by map"
        )
    left = room - factors
    memory = left * (SHARE_FOR_QUERIES if config.memory_gb is None else 1.0)
    if config.query_memory_gb is not None:
        asked = config.query_memory_gb * 1e9
        memory = asked if config.memory_gb is None else min(asked, left)
    if config.memory_gb is not None and left < per_query:
        needed = config.memory_gb * 1e9 - left + per_query
        raise InputError(
            f"--memory-gb {config.memory_gb:g}: one query at a time needs {gigabytes(needed)}; "
            "allow more, lower the batch sizes, or give --query-rank"
        )
    at_once = max(1, min(num_queries, int(memory // per_query)))
    if at_once < num_queries:
        lines.append(
            f"query gradients take {gigabytes(per_query)} each, so {at_once} of {num_queries} "
            "queries are held at a time"
        )
    return QueryMemory(factors, on_disk, per_query, at_once, lines)


def place_factors(run: Run, store: FactorStore, memory: QueryMemory) -> Run:
    """The run with its factors where they were chosen to be, in float32, every file checked.

    Raises:
        InputError: if a file is missing, truncated or altered.
    """
    devices = run.tracked.devices()
    if memory.factors_on_disk:
        store.check_maps(run.tracked.maps)
        factors = CurvatureFactors(store.strategy, FactorsOnDisk(store, devices))
    else:
        # Map by map: main memory need not hold those of an accelerator.
        placed = share_equal_bases(
            (name, store.read_map_factors(name).to(device, torch.float32))
            for name, device in devices.items()
        )
        factors = CurvatureFactors(store.strategy, placed)
    return replace(run, factors=factors, queries_at_once=memory.queries_at_once)
