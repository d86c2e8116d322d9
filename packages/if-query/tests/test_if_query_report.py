"""The report's file: what it holds, that hostile text stays text, its size, and bad input."""

import csv
import html.parser
import json
import re
import subprocess
import sys
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from if_query import influence_report
from if_query.report.encoding import packed, to_script_json
from if_query.report.heat_map import make_heat_map
from if_query.report.page import SCRIPTS, render_page
from if_query.report.shown import select_rows, summarise


def report(folder: Path, *more: str) -> Path:
    output = folder.with_name(f"{folder.name}.html")
    influence_report.main([str(folder), "--output", str(output), *more])
    return output


def payload_of(page: Path) -> dict[str, Any]:
    text = page.read_text(encoding="utf-8")
    found = re.search(r'<script type="application/json" id="data">(.*?)</script>', text, re.DOTALL)
    assert found
    payload: dict[str, Any] = json.loads(found[1])
    return payload


class Tags(html.parser.HTMLParser):
    def __init__(self) -> None:
        super().__init__()
        self.names: list[str] = []
        self.attributes: list[tuple[str, str | None]] = []

    def handle_starttag(self, tag: str, attrs: list[tuple[str, str | None]]) -> None:
        self.names.append(tag)
        self.attributes += attrs


def test_the_rows_of_a_query_are_its_extremes(make_results):
    folder = make_results(train=200)
    payload = payload_of(report(folder))
    scores = np.load(folder / "scores.npy")
    with (folder / "influences.csv").open(newline="") as file:
        rows = list(csv.DictReader(file))
    for query, shown in enumerate(payload["queries"]):
        own = [row for row in rows if row["query_id"] == shown["id"]]
        own.sort(key=lambda row: -float(row["influence_score"]))
        ids = [payload["train"][place]["id"] for place in shown["rows"]["train"]]
        assert ids[:25] == [row["train_id"] for row in own[:25]]
        assert ids[25:] == [row["train_id"] for row in own[:-26:-1]]
        assert shown["rows"]["rank"] == [*range(1, 26), *range(200, 175, -1)]
        found = np.array(shown["rows"]["score"], dtype=np.float32)
        assert set(found) <= set(scores[query])
        assert sum(shown["counts"]) == 200
        assert shown["spread"] == pytest.approx(scores[query].std())


@pytest.mark.parametrize("suffix", ["csv", "parquet"])
def test_parts_add_up_to_the_scores_and_tokens_belong_to_their_example(make_results, suffix):
    folder = make_results(
        per_token=True, per_module=True, own_influence=True, suffix=suffix, top_k=8
    )
    payload = payload_of(report(folder))
    assert payload["counts"]["train"] == 30
    num_parts = 0
    for query in payload["queries"]:
        rows = query["rows"]
        for place, score, tokens, modules in zip(
            rows["train"], rows["score"], rows["tokens"], rows["modules"], strict=True
        ):
            if tokens is None:
                assert modules is None
                continue
            for scale, encoded in (tokens, modules):
                values = unpacked(scale, encoded)
                assert values.sum() == pytest.approx(score, abs=len(values) * scale)
            assert len(payload["train"][place]["tokens"]) == 12
            num_parts += 1
    assert num_parts == 4 * 16  # what --top-k 8 kept
    assert "normalised" in payload["map"]["orders"]


def unpacked(scale: float, encoded: str) -> np.ndarray:
    import base64

    return scale * np.frombuffer(base64.b64decode(encoded), "<i2").astype(np.float64)


def test_packed_numbers_come_back_to_a_65534th_of_the_largest():
    values = np.random.default_rng(0).normal(size=100)
    found = unpacked(*packed(values))
    assert np.abs(found - values).max() <= np.abs(values).max() / 65534 * 1.001
    assert unpacked(*packed(np.zeros(3))).tolist() == [0, 0, 0]


def test_hostile_text_stays_text(hostile_results, hostile_texts):
    page = report(hostile_results, "--title", "</title><script>alert(1)</script>\0")
    tags = Tags()
    tags.feed(page.read_text(encoding="utf-8"))
    assert tags.names.count("script") == 2
    assert not {"img", "iframe", "object", "embed", "base"} & set(tags.names)
    assert not [name for name, _ in tags.attributes if name.startswith("on")]
    payload = payload_of(page)
    limit = payload["counts"]["text_chars"]
    texts = list(hostile_texts.values())
    assert [query["completion"] for query in payload["queries"]] == [t[:limit] for t in texts]
    assert all(len(query["id"]) < 220 for query in payload["queries"])
    assert len({query["id"] for query in payload["queries"]}) == len(texts)
    long = payload["queries"][list(hostile_texts).index("long")]
    assert long["cut"]["completion"] == 100_000
    assert page.stat().st_size < 5_000_000


def test_no_text_can_end_a_script_element_or_be_lost():
    texts = ["</script>", "<!--", "\u2028\u2029", "\0", 'a"b', "\ud800", "😀"]
    encoded = to_script_json(texts)
    assert "<" not in encoded
    assert not {"\u2028", "\u2029", "\0"} & set(encoded)
    assert json.loads(encoded) == [*texts[:5], "\ufffd", "😀"]


def test_scripts_cannot_end_their_own_element_and_fetch_nothing():
    page = render_page({"title": "t"})
    assert page.count("</script>") == 2
    script = page.rpartition("<script>")[2]
    for word in (
        "innerHTML",
        "outerHTML",
        "insertAdjacent",
        "fetch(",
        "XMLHttp",
        "eval(",
        "import(",
    ):
        assert word not in script, word
    assert re.findall(r"https?://[^\"']+", script) == ["http://www.w3.org/2000/svg"]
    assets = Path(influence_report.__file__).parent / "report" / "assets"
    assert {path.name for path in assets.glob("*.js")} == set(SCRIPTS)


@pytest.mark.parametrize("own_influence", [False, True])
def test_the_heat_map_holds_each_chosen_example_once_and_like_rows_together(
    make_results, own_influence
):
    from if_query.influence_results import InfluenceResults

    folder = make_results(queries=6, train=40, own_influence=own_influence)
    scores = np.load(folder / "scores.npy")
    scores[[1, 3, 5]] = 3 * scores[[0, 2, 4]]
    scores[:, 7] = 0
    np.save(folder / "scores.npy", scores)
    heat_map = make_heat_map(InfluenceResults.load(folder), 6, 20)
    assert len(set(heat_map.train)) == 20
    np.testing.assert_array_equal(heat_map.scores, scores[:, heat_map.train])
    largest = [int(np.abs(row).argmax()) for row in scores]
    assert set(largest) <= set(heat_map.train)
    assert ("normalised" in heat_map.orders) == own_influence
    rows, columns = heat_map.orders["raw"]
    assert sorted(columns) == list(range(20))
    assert {frozenset(rows[place : place + 2]) for place in (0, 2, 4)} == {
        frozenset(pair) for pair in ((0, 1), (2, 3), (4, 5))
    }


def test_scores_that_are_all_equal_have_a_distribution_too():
    scores = np.zeros(5, dtype=np.float32)
    assert summarise(scores)["counts"] == [5]
    shown = select_rows(scores, 25)
    assert shown.helpful == [0, 1, 2]
    assert shown.harmful == [4, 3]
    assert shown.percentiles == [50.0] * 5
    assert select_rows(scores[:1], 25).harmful == []


def test_the_page_names_command_versions_and_what_was_not_computed(make_results):
    folder = make_results()
    reading = payload_of(report(folder))["reading"]
    assert reading["commands"][-1].startswith("uv run run-query --model models/tiny --factors-dir ")
    assert "--train-json 'train set.json'" in reading["commands"][-1]
    assert reading["commands"][0].startswith("uv run fit-hessians --model models/tiny")
    assert reading["versions"]["if-query"] == "0.1.0"
    assert (reading["per_token_scores"], reading["per_module_scores"]) == (False, False)


def test_factors_that_were_moved_or_refitted_are_not_shown(make_results, make_factors):
    folder = make_results()
    recorded = folder.with_name("results-factors")
    assert payload_of(report(folder))["health"]["found"]
    recorded.rename(recorded.with_name("elsewhere"))
    assert payload_of(report(folder))["health"]["reason"] == "none"
    moved = payload_of(report(folder, "--factors-dir", str(recorded.with_name("elsewhere"))))
    assert len(moved["health"]["modules"]) == 4
    make_factors("results-factors", strategy="kfac")
    assert "not those" in payload_of(report(folder))["health"]["reason"]


def test_the_same_results_give_the_same_bytes_and_an_older_report_is_replaced(make_results):
    folder = make_results(per_token=True)
    first = report(folder).read_bytes()
    assert report(folder).read_bytes() == first
    assert not list(folder.parent.glob(".*tmp"))


def test_figures_are_written_as_svg_and_png(make_results, tmp_path):
    pairs = [{"pair_id": f"${n}^ </svg>\0", "prompt": "", "completion": "x"} for n in range(9)]
    folder = make_results(train=pairs)
    report(folder, "--figures", str(tmp_path / "figures"))
    names = {path.name for path in (tmp_path / "figures").iterdir()}
    plots = ("heat_map", "distributions", "extremes", "spectra")
    assert names == {f"{plot}.{suffix}" for plot in plots for suffix in ("svg", "png")}
    assert (tmp_path / "figures" / "spectra.png").read_bytes().startswith(b"\x89PNG")
    assert "$0^ &lt;/svg&gt;" in (tmp_path / "figures" / "extremes.svg").read_text()


def test_help_is_fast_and_a_report_needs_no_torch(make_results):
    folder = make_results()
    code = (
        "import sys\nfrom if_query import influence_report\n"
        f"influence_report.main([{str(folder)!r}])\n"
        "assert not {'torch', 'transformers', 'matplotlib', 'pandas'} & set(sys.modules)\n"
    )
    done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True)
    assert done.returncode == 0, done.stderr
    assert (folder / "report.html").is_file()
