"""What the plan of run-query adds up, and how it chooses its memory, beside trials given here."""

from dataclasses import replace

import pytest
from if_query import query_memory, run_query
from if_query.device_memory import Memory
from if_query.factors import FactorStore
from if_query.plan import query_plan
from if_query.plan.query_trials import QueryTrials
from if_query_commands import query
from math_utils.curvature import collect_queries
from plan_cases import HELD, LOADED, RATE, bytes_of, trial

PASSES = {
    "queries": trial(700_000, 1.0, 2.0, 3.0),
    "scores": trial(600_000, 10.0, 20.0),
    "self-influence": trial(500_000, 100.0, 200.0),
}


class GivenTrials(QueryTrials):
    """In place of what a few batches took."""

    queries, self_influence = PASSES["queries"], PASSES["self-influence"]
    peak = Memory(700_000)

    def __init__(self, run, strategy):
        self.asked_for: list[int] = []

    def scores(self, num_queries):
        self.asked_for.append(num_queries)
        return PASSES["scores"]


@pytest.fixture
def planned_query(make_model_folder, fitted, pair_files, tmp_path, monkeypatch):
    """({stage: plan}, the run, its store) of run-query with further flags."""
    for name, value in {
        "QueryTrials": GivenTrials,
        "peak_memory": lambda: LOADED,
        "held_memory": lambda: HELD,
        "storage_rate": lambda: RATE,
    }.items():
        monkeypatch.setattr(query_plan, name, value)

    def plan(**more):
        config = run_query.RunQueryConfig(
            model=str(make_model_folder()), factors_dir=fitted, train_json=pair_files[0],
            query_json=pair_files[1], output_dir=tmp_path / "o", dtype="float32", device="cpu",
            **more,
        )  # fmt: skip
        run, store = run_query.prepare(config)
        found = query_plan.plan_query(run, store, loading_seconds=0.5)
        return {one.name: one for one in found.stages}, found, run, store

    return plan


def factor_sizes(store: FactorStore) -> dict[str, int]:
    return {
        name: bytes_of([one.input_basis, one.output_basis, one.eigenvalues])
        for name, one in store.read_factors().maps.items()
    }


def query_gradients(run, store, rank=None) -> int:
    """Bytes of one query, as it is gathered."""
    from if_query.models import LanguageModelLoss
    from if_query.passes import load_batches

    (batch,) = load_batches(run.model, run.queries.dataset, [[0]])
    found, _ = collect_queries(
        run.model, run.tracked.maps, [batch], LanguageModelLoss(), store.read_factors(),
        run.damping, rank=rank,
    )  # fmt: skip
    return bytes_of(found.whole.values()) + bytes_of(
        part for pair in found.low_rank.values() for part in pair
    )


@pytest.mark.parametrize("rank", [None, 3, 99])
def test_every_stage_of_a_query_run_counts_what_it_keeps(planned_query, rank):
    stages, _, run, store = planned_query(
        self_influence=True, per_module_scores=True, per_token_scores=True, query_rank=rank
    )
    factors = sum(factor_sizes(store).values())
    kept = factors + query_gradients(run, store, rank) * len(run.queries.pairs)
    arrays = run.open_arrays()
    mapped = bytes_of(
        [arrays.scores, arrays.module_scores, arrays.token_scores, arrays.self_influence]
    )
    assert {name: one.host for name, one in stages.items()} == {
        "loading": LOADED.host,
        "queries": PASSES["queries"].peak.host + kept + mapped,
        "scores": PASSES["scores"].peak.host + kept + mapped,
        "self-influence": PASSES["self-influence"].peak.host + factors + mapped,
        "tables": HELD.host + factors + mapped,
    }
    assert [one.device for one in stages.values()] == [0] * 5
    assert [one.disk for one in stages.values()][:4] == [0, mapped, mapped, mapped]
    seconds = [one.seconds for one in stages.values()]
    assert seconds[:4] == pytest.approx([0.5, 6.0 + factors / RATE, 30.0, 300.0])


def test_on_an_accelerator_statistics_are_there_and_scores_in_main_memory(
    planned_query, monkeypatch
):
    monkeypatch.setattr(query_plan, "is_host", lambda devices: False)
    for one in PASSES.values():
        monkeypatch.setattr(one.peak, "device", one.peak.host + 5)
    stages, _, run, store = planned_query()
    kept = sum(factor_sizes(store).values())
    kept += query_gradients(run, store) * len(run.queries.pairs)
    mapped = 4 * len(run.queries.pairs) * len(run.train.pairs)
    for name in ("queries", "scores"):
        assert stages[name].device == PASSES[name].peak.host + 5 + kept
        assert stages[name].host == PASSES[name].peak.host + mapped


def test_blocks_of_queries_are_passes_and_keep_their_own_gradients_alone(planned_query):
    _, _, run, store = planned_query()
    one_query = query_gradients(run, store)
    stages, found, _, _ = planned_query(query_memory_gb=1.5 * one_query / 1e9)
    factors = sum(factor_sizes(store).values())
    mapped = 4 * len(run.queries.pairs) * len(run.train.pairs)
    assert stages["scores"].host == PASSES["scores"].peak.host + factors + one_query + mapped
    assert stages["scores"].seconds == len(run.queries.pairs) * 30.0
    assert "2 blocks of queries, a pass over the training examples each" in found.notes


def test_factors_on_disk_are_read_for_every_batch_that_needs_them(planned_query, monkeypatch):
    monkeypatch.setattr(query_memory, "free_memory", lambda devices: 40_000)
    stages, found, run, store = planned_query(self_influence=True, query_memory_gb=1.0)
    sizes = factor_sizes(store)
    read = sum(sizes.values()) / RATE
    assert stages["queries"].seconds == pytest.approx(6.0 + 3 * read)
    assert stages["self-influence"].seconds == pytest.approx(300.0 + 2 * read)
    mapped = 4 * (len(run.queries.pairs) + 1) * len(run.train.pairs)
    # Of the largest: the file, its tensors, and their copies that are aligned.
    own = PASSES["self-influence"].peak.host + 3 * max(sizes.values()) + mapped
    assert stages["self-influence"].host == own
    assert any("read from disk map by map" in note for note in found.notes)


def test_memory_for_queries_is_what_the_trials_and_the_factors_leave(planned_query):
    _, _, run, store = planned_query()
    one_query, factors = query_gradients(run, store), sum(factor_sizes(store).values())
    trials = GivenTrials(run, store.strategy)

    def chosen(room: float, **more):
        config = replace(run.config, memory_gb=(trials.peak.host + room) / 1e9, **more)
        return query_memory.choose_memory(replace(run, config=config), store, trials)

    plenty = chosen(factors * 2 + 2 * one_query)
    assert (plenty.queries_at_once, plenty.factors_on_disk, plenty.lines) == (2, False, [])
    assert (plenty.factors, plenty.per_query) == (factors, one_query)
    largest = max(factor_sizes(store).values())
    scarce = chosen(3 * largest + 1.5 * one_query)
    assert (scarce.factors_on_disk, scarce.queries_at_once) == (True, 1)
    assert len(scarce.lines) == 2
    with pytest.raises(run_query.InputError, match="one query at a time needs"):
        chosen(3 * largest + 0.9 * one_query)
    needed = trials.peak.host + 3 * largest + one_query
    with pytest.raises(run_query.InputError, match=f"needs {needed / 1e9:.4g} GB"):
        chosen(3 * largest + 0.5 * one_query)
    # Memory for queries alone is within the whole, and one is held whatever it says.
    assert chosen(factors * 2 + 1.5 * one_query, query_memory_gb=1.0).queries_at_once == 2
    assert chosen(3 * largest + 1.5 * one_query, query_memory_gb=1.0).queries_at_once == 1
    assert chosen(factors * 2 + 2 * one_query, query_memory_gb=1e-9).queries_at_once == 1
    # A share of what is free, where nothing is stated.
    free = factors * 2 + 10 * one_query
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(query_memory, "free_memory", lambda devices: free)
        patch.setattr(query_memory, "SHARE_FOR_QUERIES", 1.01 * one_query / (free - factors))
        assert query_memory.choose_memory(run, store, trials).queries_at_once == 1
        assert query_memory.choose_memory(run, store, trials).factors_on_disk is False
        patch.setattr(query_memory, "free_memory", lambda devices: factors * 2 - 1)
        assert query_memory.choose_memory(run, store, trials).factors_on_disk is True


@pytest.mark.parametrize(
    "more",
    [
        {"per_token_scores": True, "per_module_scores": True, "self_influence": True},
        {"per_token_scores": True, "top_k": 1},
        {"format": "parquet", "per_token_scores": True, "per_module_scores": True},
    ],
)
def test_tables_take_about_what_was_foretold(
    planned_query, make_model_folder, fitted, pair_files, tmp_path, more
):
    """Apart from what Parquet writes about columns, which a few rows do not outweigh."""
    stages, found, _, _ = planned_query(**more)
    assert found.disk_left == stages["tables"].disk - stages["scores"].disk
    flags = [
        word
        for name, value in more.items()
        for word in (f"--{name.replace('_', '-')}", *([] if value is True else [str(value)]))
    ]
    folder = query(make_model_folder(), fitted, pair_files, tmp_path / "done", *flags)
    taken = sum(path.stat().st_size for path in folder.iterdir())
    if "format" in more:
        taken -= sum(path.stat().st_size for path in folder.glob("*.parquet"))
        texts = found.disk_left - taken
        assert 0 < texts < found.disk_left / 2
    else:
        assert found.disk_left == pytest.approx(taken, rel=0.25)


def test_of_all_rows_no_more_are_kept_than_there_are(planned_query):
    every, half, one = (planned_query(top_k=count)[1].disk_left for count in (None, 3, 1))
    assert every - half == pytest.approx(0, abs=20)  # the metadata say which
    assert half - one > 2 * 4 * 10  # four of six rows of both queries
