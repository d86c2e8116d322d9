"""The plan of run-query."""

import json
from collections.abc import Sequence
from dataclasses import dataclass

import pyarrow as pa
import torch

from if_query.device_memory import Memory, held_memory, is_host, peak_memory
from if_query.factors import FactorStore
from if_query.pairs import Pair
from if_query.plan.query_trials import QueryTrials
from if_query.plan.report import ModulePlan, Plan, StagePlan
from if_query.plan.sizes import factor_bytes, query_bytes
from if_query.plan.trials import storage_rate
from if_query.query_memory import QueryMemory, choose_memory
from if_query.query_pass import Run
from if_query.tables import Format

_CHARACTERS_PER_SCORE = 13
"""Of nine significant digits, with sign, point and leading zeros or exponent, about."""

_PARQUET_BYTES_PER_SCORE = 5
_ROW_SECONDS = 2e-6
"""Of a row of a table, and of a number in it, about."""


def plan_query(run: Run, store: FactorStore, *, loading_seconds: float = 0.0) -> Plan:
    """Plan a query run from the beginning; nothing is written.

    Args:
        run: with no factors in memory.
        store: the factors.
        loading_seconds: what it took to come here.

    Raises:
        InputError: if one query by itself does not fit into a stated memory.
    """
    loaded = peak_memory()
    trials = QueryTrials(run, store.strategy)
    memory = choose_memory(run, store, trials)
    return _QueryPlan(run, store, trials, memory, loaded, loading_seconds).plan()


@dataclass(frozen=True, eq=False)
class _QueryPlan:
    run: Run
    store: FactorStore
    trials: QueryTrials
    memory: QueryMemory
    loaded: Memory
    loading_seconds: float

    def plan(self) -> Plan:
        run, memory = self.run, self.memory
        num_queries = len(run.queries.pairs)
        num_blocks = -(-num_queries // memory.queries_at_once)
        arrays, tables = self._array_bytes(), self._table_bytes()
        tables += len(json.dumps(run.metadata, indent=2))
        queries, scores = self.trials.queries, self.trials.scores(memory.queries_at_once)
        kept = memory.factors + memory.per_query * memory.queries_at_once
        read = sum(self._factor_bytes()) / storage_rate()
        reads = len(queries.seconds) if memory.factors_on_disk else 1
        loaded, seconds = self.loaded, self.loading_seconds
        stages = [StagePlan("loading", loaded.host, loaded.device, 0, seconds)]
        stages.append(
            self._stage("queries", queries.peak, kept, arrays, queries.seconds.sum() + reads * read)
        )
        stages.append(
            self._stage("scores", scores.peak, kept, arrays, num_blocks * scores.seconds.sum())
        )
        if run.config.self_influence:
            own = self.trials.self_influence
            seconds = own.seconds.sum()
            if memory.factors_on_disk:
                seconds += len(own.seconds) * read
            stages.append(self._stage("self-influence", own.peak, memory.factors, arrays, seconds))
        stages.append(
            self._stage(
                "tables", held_memory(), memory.factors, arrays, self._table_seconds(), tables
            )
        )
        return Plan(stages, tables, self._notes(num_blocks), self._modules())

    def _stage(
        self, name: str, base: Memory, kept: int, arrays: int, seconds: float, tables: int = 0
    ) -> StagePlan:
        """A stage that keeps factors and queries beside what was measured.

        The arrays are files that are mapped into memory, where they count as this process's.
        """
        on_host = is_host(list(self.run.tracked.devices().values()))
        if on_host:
            return StagePlan(name, base.host + arrays + kept, 0, arrays + tables, float(seconds))
        # The file and the tensors of a map on their way to the device; before any batch, unless
        # they are read for each.
        read = 2 * max(self._factor_bytes())
        other = base.host if self.memory.factors_on_disk else held_memory().host
        host = max(base.host, other + read) + arrays
        device = base.device + kept
        return StagePlan(name, host, device, arrays + tables, float(seconds))

    # On disk

    def _array_bytes(self) -> int:
        config, dataset = self.run.config, self.run.train.dataset
        num_queries, num_train = len(self.run.queries.pairs), len(dataset)
        entries = num_queries * num_train
        if config.per_module_scores:
            entries += len(self.run.tracked.maps) * num_queries * num_train
        if config.per_token_scores:
            entries += num_queries * dataset.num_tokens
        return 4 * (entries + (num_train if config.self_influence else 0))

    def _num_rows(self) -> tuple[int, int]:
        """(rows of influences per query, tokens of all training examples in such rows)."""
        config, dataset = self.run.config, self.run.train.dataset
        num_train = len(dataset)
        kept = num_train if config.top_k is None else min(num_train, 2 * config.top_k)
        return kept, dataset.num_tokens * kept // num_train

    def _table_bytes(self) -> int:
        config, run = self.run.config, self.run
        num_queries = len(run.queries.pairs)
        kept, num_tokens = self._num_rows()
        texts = _text_bytes([*run.queries.pairs, *run.train.pairs], config.format)
        matrix = 4 * num_queries * len(run.train.pairs)
        if config.format == "parquet":
            names, score = 1, _PARQUET_BYTES_PER_SCORE
        else:
            longest = [
                sum(len(pair.pair_id.encode()) + 1 for pair in one.pairs) / len(one.pairs)
                for one in (run.queries, run.train)
            ]
            names, score = round(sum(longest)), _CHARACTERS_PER_SCORE + 1
        influences = num_queries * kept * (names + score)
        if config.per_token_scores:
            # A list stands in quotes, with a space after each comma.
            influences += num_queries * num_tokens * (score + (config.format == "csv"))
            texts += 8 * run.train.dataset.num_tokens
        if config.per_module_scores:
            influences += num_queries * kept * (names + score * len(run.tracked.maps))
        return texts + matrix + influences

    def _table_seconds(self) -> float:
        config = self.run.config
        kept, num_tokens = self._num_rows()
        numbers = kept * (1 + config.per_module_scores * len(self.run.tracked.maps))
        numbers += num_tokens * config.per_token_scores
        return _ROW_SECONDS * len(self.run.queries.pairs) * numbers

    # What a person should know

    def _factor_bytes(self) -> list[int]:
        itemsize = getattr(torch, self.store.metadata["covariance_dtype"]).itemsize
        maps = self.run.tracked.maps.values()
        return [factor_bytes(self.store.strategy, one, itemsize) for one in maps]

    def _notes(self, num_blocks: int) -> list[str]:
        notes = list(self.memory.lines)
        if num_blocks > 1:
            notes.append(f"{num_blocks} blocks of queries, a pass over the training examples each")
        notes += [
            "peaks are measured on the longest batch, plus exact sizes of factors and queries",
            "time: batches over the range of lengths, a + b·tokens + c·tokens·length",
            "host memory counts the score matrices, which are files mapped into memory",
            f"numbers in CSV files are taken to have {_CHARACTERS_PER_SCORE} characters",
        ]
        if torch.cuda.is_available():
            notes.append("device memory is that of tensors, without CUDA's own context")
        return notes

    def _modules(self) -> list[ModulePlan]:
        rank = self.run.config.query_rank
        entries = len(self.run.queries.pairs) * len(self.run.train.pairs)
        disk = 4 * entries if self.run.config.per_module_scores else 0
        return [
            ModulePlan(
                name,
                one.d_in,
                one.d_out,
                {"factors": factors, "a query": query_bytes(one, rank)},
                disk,
                None,
            )
            for (name, one), factors in zip(
                self.run.tracked.maps.items(), self._factor_bytes(), strict=True
            )
        ]


def _text_bytes(pairs: Sequence[Pair], table_format: Format) -> int:
    """What ids, texts and further fields of pairs take in a table; Parquet compresses them."""
    rows = "".join(
        ",".join([pair.pair_id, pair.prompt, pair.completion, *map(str, pair.extras.values()), ""])
        for pair in pairs
    ).encode()
    if table_format == "csv":
        return len(rows)
    return len(pa.compress(rows, codec="snappy", asbytes=True))
