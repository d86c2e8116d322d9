"""Accuracies, groups, greedy selection, and files of results that are combined."""

import json
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from attribution.errors import AttributionError
from attribution.gradient_similarity import (
    Similarities,
    greedy_selection,
    ranks_first,
    split_queries,
    tensor_groups,
)
from attribution.gradient_similarity.analysis import (
    analyze_tensors,
    chance_accuracy,
    ranking_accuracy,
)
from attribution.gradient_similarity.result_files import (
    combine_parts,
    find_parts,
    part_path,
    read_results,
    results_as_json,
    similarities_of,
    write_results,
)

NAMES = (
    "model.embed_tokens.weight",
    "model.layers.0.mlp.up_proj.weight",
    "model.layers.1.mlp.up_proj.weight",
    "model.layers.10.self_attn.q_proj.weight",
)


def vectors(count: int, seed: int, dim: int = 5) -> np.ndarray:
    """[example, tensor, dim]: made-up gradients."""
    return np.random.default_rng(seed).normal(size=(count, len(NAMES), dim))


def similarities_between(queries: np.ndarray, originals: np.ndarray) -> Similarities:
    """All against all, ids in steps of two."""
    pairs = [(q, o) for q in range(len(queries)) for o in range(len(originals))]
    return Similarities(
        tensors=NAMES,
        query_ids=tuple(range(0, 2 * len(queries), 2)),
        original_ids=tuple(range(0, 2 * len(originals), 2)),
        pairs=np.array(pairs),
        dots=np.array([(queries[q] * originals[o]).sum(axis=1) for q, o in pairs]),
        query_squared_norms=(queries**2).sum(axis=2),
        original_squared_norms=(originals**2).sum(axis=2),
    )


def naive_accuracy(queries: np.ndarray, originals: np.ndarray, chosen: list[int]) -> float:
    hits = 0
    for place, query in enumerate(queries):
        a = query[chosen].ravel()
        cosines = [
            float(a @ b[chosen].ravel() / np.linalg.norm(a) / np.linalg.norm(b[chosen]))
            for b in originals
        ]
        others = cosines[:place] + cosines[place + 1 :]
        hits += cosines[place] > max(others)
    return hits / len(queries)


def study(num: int = 40, noise: float = 2.0) -> tuple[np.ndarray, np.ndarray]:
    originals = vectors(num, 1)
    scale = np.array([1e3, noise, 0.5, noise])[None, :, None]  # the third tensor is the best
    return originals + scale * vectors(num, 2), originals


def test_a_tie_is_not_first_and_a_missing_original_is_a_miss() -> None:
    hits = ranks_first(
        np.array([2.0, 1.0, 1.0, 1.0, 0.5, 3.0, -1.0]),
        np.array([0, 0, 1, 1, 2, 2, 3]),
        np.array([True, False, True, False, False, False, True]),
        4,
    )
    assert hits.tolist() == [True, False, False, True]


def test_accuracies_are_those_of_cosines_of_concatenated_vectors() -> None:
    queries, originals = study()
    result = analyze_tensors(similarities_between(queries, originals))
    whole = naive_accuracy(queries, originals, [0, 1, 2, 3])
    assert result["full_gradient"]["mean"] == pytest.approx(whole)
    for place, name in enumerate(NAMES):
        expected = naive_accuracy(queries, originals, [place])
        assert result["by_tensor"][name]["mean"] == pytest.approx(expected)
    mlp = naive_accuracy(queries, originals, [1, 2])
    assert result["by_component_type"]["mlp.up_proj.weight"]["mean"] == pytest.approx(mlp)
    assert result["by_layer"]["10"]["mean"] == result["by_tensor"][NAMES[3]]["mean"]
    assert list(result["by_layer"]) == ["outside layers", "0", "1", "10"]
    assert result["best_tensor"]["tensor"] == NAMES[2]
    assert 0 < whole < result["best_tensor"]["held_out"]
    low, mean, high = (result["full_gradient"][key] for key in ("low", "mean", "high"))
    assert low <= mean <= high


def test_tensors_are_grouped_by_type_and_layer() -> None:
    types, layers = tensor_groups([*NAMES, "lm_head.weight", "transformer.h.10.ln_1.bias"])
    assert types["mlp.up_proj.weight"] == [NAMES[1], NAMES[2]]
    assert types["lm_head.weight"] == ["lm_head.weight"]
    assert layers["10"] == [NAMES[3], "transformer.h.10.ln_1.bias"]
    assert layers["outside layers"] == [NAMES[0], "lm_head.weight"]


def test_greedy_selection_is_the_naive_search_and_reports_on_queries_it_did_not_see() -> None:
    queries, originals = study()
    chosen_by = split_queries(40, seed=3)
    assert chosen_by.sum() == 20
    steps = greedy_selection(similarities_between(queries, originals), chosen_by, num_steps=9)
    assert len(steps) == len(NAMES)
    assert len({step.tensor for step in steps}) == len(NAMES)

    def accuracy_on(mask: np.ndarray, tensors: list[int]) -> float:
        hits = [
            naive_hit(queries[place], originals, place, tensors) for place in np.flatnonzero(mask)
        ]
        return float(np.mean(hits))

    taken: list[int] = []
    for step in steps:
        place = NAMES.index(step.tensor)
        best = max(
            accuracy_on(chosen_by, [*taken, other]) for other in range(4) if other not in taken
        )
        taken.append(place)
        assert step.selected_on == pytest.approx(best)
        assert step.selected_on == pytest.approx(accuracy_on(chosen_by, taken))
        assert step.held_out == pytest.approx(accuracy_on(~chosen_by, taken))


def naive_hit(query: np.ndarray, originals: np.ndarray, place: int, chosen: list[int]) -> bool:
    a = query[chosen].ravel()
    flat = originals[:, chosen].reshape(len(originals), -1)
    cosines = flat @ a / np.linalg.norm(flat, axis=1)
    return bool(cosines[place] > np.delete(cosines, place).max())


def test_halves_differ_by_seed_and_hold_all_queries() -> None:
    assert split_queries(7, seed=0).sum() == 4
    assert not np.array_equal(split_queries(40, seed=0), split_queries(40, seed=1))


def test_rankings_and_chance_are_read_from_scores_by_id() -> None:
    scores = {"3": {"3": 2.0, "4": 1.0}, "4": {"3": 1.0, "4": 1.0}, "9": {"3": 1.0, "4": 0.5}}
    assert ranking_accuracy(scores).mean == pytest.approx(1 / 3)
    assert chance_accuracy(scores) == pytest.approx((0.5 + 0.5 + 0) / 3)


# Files --------------------------------------------------------------------------------------------


def subset_of(similarities: Similarities, ids: list[int]) -> Similarities:
    """What a partition would have measured."""
    s = similarities
    queries = [place for place, one in enumerate(s.query_ids) if one in ids]
    chosen = np.isin(s.pairs[:, 0], queries)
    pairs = s.pairs[chosen] - np.array([queries[0], 0])
    return Similarities(
        s.tensors,
        tuple(s.query_ids[place] for place in queries),
        s.original_ids,
        pairs,
        s.dots[chosen],
        s.query_squared_norms[queries],
        s.original_squared_norms,
    )


@pytest.fixture
def written(tmp_path: Path) -> tuple[Path, dict[str, Any]]:
    """Six queries, ids 0 to 10, in parts [0, 4), [4, 9) and [9, 11); and the whole."""
    s = similarities_between(*study(6))
    bm25 = {query: {original: float(query) for original in s.original_ids} for query in s.query_ids}
    common = {"model": "m", "sample_ids": list(s.query_ids)}
    for start, end in ((0, 4), (4, 9), (9, 11)):
        part = subset_of(s, [one for one in s.query_ids if start <= one < end])
        content = results_as_json(part, "dot-product", bm25)
        arguments = {**common, "partition_start": start, "partition_end": end}
        write_results(
            part_path(tmp_path / "dot.json", start, end), {"arguments": arguments, **content}
        )
    arguments = {**common, "partition_start": None, "partition_end": None}
    return tmp_path, {"arguments": arguments, **results_as_json(s, "dot-product", bm25)}


def test_parts_make_the_whole_in_the_order_of_numeric_ids(
    written: tuple[Path, dict[str, Any]],
) -> None:
    folder, whole = written
    parts = find_parts(folder)
    assert [part.path.name for part in parts] == [
        "dot_part_0_4.json", "dot_part_4_9.json", "dot_part_9_11.json",
    ]  # fmt: skip
    merged = combine_parts(parts)
    assert json.dumps(merged) == json.dumps(whole)
    assert list(merged["values"]) == ["0", "2", "4", "6", "8", "10"]


def test_inner_products_survive_their_file(written: tuple[Path, dict[str, Any]]) -> None:
    folder, whole = written
    write_results(folder / "dot.json", whole)
    read = similarities_of(read_results(folder / "dot.json"))
    original = similarities_between(*study(6))
    for name in ("pairs", "dots", "query_squared_norms", "original_squared_norms"):
        assert np.array_equal(getattr(read, name), getattr(original, name))
    assert (read.tensors, read.query_ids) == (original.tensors, original.query_ids)
    assert len(find_parts(folder)) == 3


def test_a_part_that_is_missing_is_named_wherever_it_is(
    written: tuple[Path, dict[str, Any]],
) -> None:
    parts = find_parts(written[0])
    for lacking, name in ((0, "_part_0_4"), (1, "_part_4_9"), (2, "_part_9_11")):
        some = [part for place, part in enumerate(parts) if place != lacking]
        with pytest.raises(AttributionError, match=rf"dot{name}\.json is missing"):
            combine_parts(some)


def test_parts_that_overlap_differ_or_lie_about_their_queries_are_named(
    written: tuple[Path, dict[str, Any]],
) -> None:
    folder, _ = written
    extra = folder / "dot_part_8_9.json"
    extra.write_text((folder / "dot_part_9_11.json").read_text())
    with pytest.raises(AttributionError, match=r"part_8_9\.json overlaps dot_part_4_9\.json"):
        combine_parts(find_parts(folder))
    extra.unlink()
    last = folder / "dot_part_9_11.json"
    content = json.loads(last.read_text())
    write_results(last, {**content, "arguments": {**content["arguments"], "model": "other"}})
    with pytest.raises(AttributionError, match=r"part_9_11\.json and .* with another model"):
        combine_parts(find_parts(folder))
    write_results(last, {**content, "values": {}})
    with pytest.raises(AttributionError, match=r"part_9_11\.json does not have the queries"):
        combine_parts(find_parts(folder))
    last.write_text("{")
    with pytest.raises(AttributionError, match=r"part_9_11\.json: not readable"):
        combine_parts(find_parts(folder))
    last.write_text("{}")
    with pytest.raises(AttributionError, match="expected arguments, values and bm25"):
        combine_parts(find_parts(folder))


def test_cosines_are_written_for_gradient_similarity() -> None:
    s = similarities_between(*study(3))
    bm25 = {query: dict.fromkeys(s.original_ids, 0.0) for query in s.query_ids}
    content = results_as_json(s, "gradient-similarity", bm25)
    assert set(content) == {"values", "bm25"}
    assert content["values"]["2"]["4"] == s.cosines()[5]
