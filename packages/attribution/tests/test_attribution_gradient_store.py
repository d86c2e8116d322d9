"""The store of gradients: every original once, the same bits after a kill, and what is refused."""

import json
import os
import time
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from attribution.errors import AttributionError
from attribution.gradient_similarity import (
    EncodedExample,
    ExampleGradients,
    FlatLayout,
    GradientProjection,
    GradientStore,
    Representation,
    Similarities,
    Work,
    data_fingerprint,
    gradient_similarities,
    model_fingerprint,
    store_originals,
)

Build = Callable[..., Any]
Encode = Callable[..., list[EncodedExample]]


def equal(a: Similarities, b: Similarities) -> bool:
    return (a.query_ids, a.original_ids, a.tensors) == (
        b.query_ids,
        b.original_ids,
        b.tensors,
    ) and all(
        np.array_equal(getattr(a, name), getattr(b, name))
        for name in ("pairs", "dots", "query_squared_norms", "original_squared_norms")
    )


def test_stores_blocks_and_partitions_change_no_bit_and_originals_are_computed_once(
    tmp_path: Path, build: Build, encode: Encode
) -> None:
    queries, originals = encode(5, 1), encode(6, 2)
    candidates = [[place, (place + 1) % 6, 5 - place] for place in range(5)]
    candidates = [list(dict.fromkeys(some)) for some in candidates]
    gradients = ExampleGradients(build("olmo2", torch.float32))

    def run(places: range, at_once: int, folder: Path | None) -> tuple[list[Similarities], Work]:
        work = Work()
        projection = GradientProjection(gradients.layout, 0.1, 0)
        stores: list[GradientStore | None] = [None, None]
        if folder is not None:
            stores = [
                GradientStore(folder / "full", gradients.layout, {}),
                GradientStore(folder / "some", projection.layout, {}),
            ]
        found = gradient_similarities(
            gradients,
            [queries[place] for place in places],
            originals,
            [candidates[place] for place in places],
            [Representation(None, stores[0]), Representation(projection, stores[1])],
            queries_at_once=at_once,
            work=work,
        )
        return found, work

    plain, work = run(range(5), 1, None)
    asked = sum(map(len, candidates))
    assert (work.query_gradients, work.original_gradients) == (5, asked)
    blocked, work = run(range(5), 5, None)
    needed = len({one for some in candidates for one in some})
    assert (work.query_gradients, work.original_gradients) == (5, needed)
    assert work.projections == 5 + needed
    stored, work = run(range(5), 2, tmp_path)
    assert work.original_gradients == needed
    again, work = run(range(5), 1, tmp_path)
    assert (work.query_gradients, work.original_gradients) == (5, 0)
    for other in (blocked, stored, again):
        assert all(equal(a, b) for a, b in zip(plain, other, strict=True))
    part, work = run(range(2, 4), 2, tmp_path)
    assert work.original_gradients == 0
    for whole, one in zip(plain, part, strict=True):
        chosen = np.isin(whole.pairs[:, 0], [2, 3])
        assert np.array_equal(one.dots, whole.dots[chosen])
        assert np.array_equal(one.cosines(), whole.cosines()[chosen])
        assert np.array_equal(one.query_squared_norms, whole.query_squared_norms[2:4])


def test_a_killed_run_leaves_whole_gradients_and_the_next_one_computes_the_others(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, build: Build, encode: Encode
) -> None:
    gradients, originals = ExampleGradients(build("olmo2", torch.float32)), encode(4, 2)
    store = GradientStore(tmp_path, gradients.layout, {"model": "m"})
    write = np.save

    def dies(file: Any, array: Any, **options: Any) -> None:
        if len(list(tmp_path.glob("*.npy"))) == 2:
            file.write(b"half of it")
            raise KeyboardInterrupt
        write(file, array, **options)

    monkeypatch.setattr(np, "save", dies)
    with pytest.raises(KeyboardInterrupt):
        store_originals(gradients, originals, [Representation(None, store)])
    monkeypatch.undo()
    assert sorted(p.name for p in tmp_path.iterdir()) == [
        "manifest.json",
        "original_0.npy",
        "original_1.npy",
    ]
    work = Work()
    store_originals(gradients, originals, [Representation(None, store)], work=work)
    assert work.original_gradients == 2
    assert torch.equal(store.read(3), gradients(originals[3]))


def test_what_a_killed_process_had_begun_is_removed_once_nobody_writes_to_it(
    tmp_path: Path,
) -> None:
    layout = FlatLayout({"a": 40})
    GradientStore(tmp_path, layout, {}).write(3, layout.new_vector())
    old, new, others = (
        tmp_path / f".{name}.tmp" for name in ("original_7.npy.x", "original_8.npy.y", "note")
    )
    for path, minutes in ((old, 61), (new, 59), (others, 61)):
        path.write_bytes(b"half")
        written = time.time() - 60 * minutes
        os.utime(path, (written, written))
    store = GradientStore(tmp_path, layout, {})
    assert not old.exists()
    assert new.exists()
    assert others.exists()
    assert 3 in store
    os.utime(new, (0, 0))
    store.write(7, layout.new_vector())
    assert new.exists()  # a file replaces what was begun of itself, and nothing else
    store.write(8, layout.new_vector())
    assert not new.exists()


def test_a_store_of_another_model_data_or_layout_is_refused(tmp_path: Path, build: Build) -> None:
    gradients = ExampleGradients(build("olmo2", torch.float32))
    arguments = {"model_fingerprint": "a", "data_fingerprint": "b"}
    GradientStore(tmp_path / "s", gradients.layout, arguments)
    GradientStore(tmp_path / "s", gradients.layout, arguments)
    for other, named in (
        ({**arguments, "model_fingerprint": "x"}, "another model fingerprint"),
        ({**arguments, "data_fingerprint": "x"}, "another data fingerprint"),
    ):
        with pytest.raises(AttributionError, match=named):
            GradientStore(tmp_path / "s", gradients.layout, other)
    with pytest.raises(AttributionError, match="another layout"):
        GradientStore(tmp_path / "s", FlatLayout({"a": 3}), arguments)
    (tmp_path / "other").mkdir()
    (tmp_path / "other" / "original_0.npy").write_bytes(b"")
    with pytest.raises(AttributionError, match=r"no manifest\.json"):
        GradientStore(tmp_path / "other", gradients.layout, arguments)


def test_a_truncated_or_foreign_file_in_a_store_is_refused(tmp_path: Path) -> None:
    store = GradientStore(tmp_path, FlatLayout({"a": 40}), {})
    store.write(3, torch.arange(48.0))
    assert 3 in store
    assert 4 not in store
    path = tmp_path / "original_3.npy"
    path.write_bytes(path.read_bytes()[:-8])
    with pytest.raises(AttributionError, match="not a whole array"):
        store.read(3)
    np.save(path, np.zeros(4, dtype=np.float32))
    with pytest.raises(AttributionError, match="expected 48 values"):
        store.read(3)
    np.save(path, np.array([{"a": 1}], dtype=object))
    with pytest.raises(AttributionError, match="not a whole array"):
        store.read(3)
    (tmp_path / "manifest.json").write_text("{")
    with pytest.raises(AttributionError, match="not readable as JSON"):
        GradientStore(tmp_path, FlatLayout({"a": 40}), {})


def test_fingerprints_see_every_parameter_every_label_and_the_order(
    build: Build, encode: Encode
) -> None:
    one = build("olmo2", torch.float32)
    before = model_fingerprint(one)
    assert before == model_fingerprint(build("olmo2", torch.float32))
    with torch.no_grad():
        one.model.layers[1].mlp.down_proj.weight[3, 7] += 1e-6
    assert model_fingerprint(one) != before
    some = encode(3, 0)
    assert data_fingerprint(some) != data_fingerprint(some[::-1])
    changed = EncodedExample(some[0].input_ids, (-100, *some[0].labels[1:-1], 1), some[0].key)
    assert data_fingerprint(some) != data_fingerprint([changed, *some[1:]])


def test_queries_are_ordered_by_numeric_id_and_manifests_are_json(
    tmp_path: Path, build: Build, encode: Encode
) -> None:
    queries = encode(2, 1, first_key=9)[::-1]
    originals = encode(3, 2, first_key=8)
    (found,) = gradient_similarities(
        ExampleGradients(build("olmo2", torch.float32)), queries, originals, [[2, 0], [1]]
    )
    assert found.query_ids == (9, 10)
    assert found.original_ids == (8, 9, 10)
    assert found.pairs.tolist() == [[0, 1], [1, 2], [1, 0]]
    assert found.is_true_pair().tolist() == [True, True, False]
    GradientStore(tmp_path, FlatLayout({"a": 3}), {"seed": 1})
    assert json.loads((tmp_path / "manifest.json").read_text())["layout"]["widths"] == {"a": 3}
