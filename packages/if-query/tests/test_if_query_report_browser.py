"""The report in a real Chromium: offline, by pointer and by keyboard, and for a screen reader.

uv run pytest -m browser
"""

import csv
import json
import shutil
import time
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any
from urllib.parse import quote

import pytest
from if_query import influence_report

pytestmark = pytest.mark.browser
NAMES = ("chromium", "chromium-browser", "google-chrome", "chrome")
FLAGS = (
    "--headless", "--no-sandbox", "--disable-gpu", "--disable-quic", "--no-first-run",
    "--disable-background-networking", "--disable-component-update", "--disable-sync",
)  # fmt: skip
ROUTES = ("", "#/map", "#/curvature", "#/reading", "#/query/query_1", "#/pair/query_1/{best}")
FULL: dict[str, Any] = {"per_token": True, "per_module": True, "own_influence": True}


@pytest.fixture(scope="module")
def chromium() -> Iterator[Any]:
    from playwright.sync_api import sync_playwright

    path = next(filter(None, map(shutil.which, NAMES)), None)
    if path is None:
        pytest.fail("needs Chromium: apt-get install chromium, or .ci/run, which does it")
    with sync_playwright() as playwright:
        browser = playwright.chromium.launch(executable_path=path, args=list(FLAGS))
        yield browser
        browser.close()


@pytest.fixture
def open_report(chromium: Any) -> Iterator[Callable[..., Any]]:
    """Open a report offline; at the end, nothing was fetched and no error was printed."""
    requests: list[str] = []
    complaints: list[str] = []
    contexts: list[Any] = []

    def go(page_file: Path, route: str = "", *, width: int = 1600, scheme: str = "light") -> Any:
        context = chromium.new_context(
            viewport={"width": width, "height": 900}, color_scheme=scheme, offline=True
        )
        contexts.append(context)
        context.on("request", lambda request: requests.append(request.url))
        page = context.new_page()
        page.set_default_timeout(20_000)
        page.on("console", lambda message: complaints.append(message.text))
        page.on("pageerror", lambda error: complaints.append(str(error)))
        page.on("dialog", lambda dialog: complaints.append(f"dialog: {dialog.message}"))
        page.goto(page_file.resolve().as_uri() + route)
        page.wait_for_selector("h1")
        return page

    yield go
    for context in contexts:
        context.close()
    assert complaints == []
    assert requests
    assert [url for url in requests if not url.startswith(("file:", "blob:", "data:"))] == []


@pytest.fixture
def full_report(make_results: Callable[..., Path]) -> Path:
    folder = make_results(train=80, queries=30, **FULL)
    influence_report.main([str(folder)])
    return folder / "report.html"


def rows_of(folder: Path, query: str) -> list[dict[str, str]]:
    """The rows of a query in influences.csv, the highest score first."""
    with (folder / "influences.csv").open(newline="") as file:
        rows = [row for row in csv.DictReader(file) if row["query_id"] == query]
    return sorted(rows, key=lambda row: -float(row["influence_score"]))


def number(text: str) -> float:
    return float(text.replace("−", "-").replace("+", ""))


def test_a_reader_searches_opens_a_query_and_finds_the_highest_score_first(
    open_report, full_report
):
    page = open_report(full_report)
    assert page.locator("tbody tr").count() == 25
    page.get_by_label("Search id and text").fill("QUERY_17")
    assert page.locator("tbody tr").count() == 1
    assert "1 of 30 queries found" in page.inner_text("[role=status] >> nth=0")
    page.get_by_role("link", name="query_17", exact=True).click()
    page.wait_for_selector("h1:has-text('query_17')")
    rows = rows_of(full_report.parent, "query_17")
    for side, expected in (("#most-helpful", rows[0]), ("#most-harmful", rows[-1])):
        first = page.locator(f"{side} tbody tr").first
        assert first.get_attribute("data-train") == expected["train_id"]
        shown = number(first.locator(".score > span").first.inner_text())
        assert shown == pytest.approx(float(expected["influence_score"]), rel=1e-3)
    assert page.locator("#most-helpful tbody tr").first.locator("td").first.inner_text() == "1"
    assert page.evaluate("document.activeElement.tagName") == "H1"
    page.locator("#most-helpful").get_by_role("button", name="Next").click()
    ranks = page.locator("#most-helpful tbody tr td:first-child").all_inner_texts()
    assert ranks == [str(rank) for rank in range(11, 21)]
    page.go_back()
    assert page.get_by_label("Search id and text").input_value() == "QUERY_17"


def test_queries_are_sorted_by_loss_and_by_spread(open_report, full_report):
    page = open_report(full_report)
    for column, place in (("Loss", 2), ("Spread", 3)):
        head = page.get_by_role("columnheader", name=column)
        head.get_by_role("button").click()
        assert head.get_attribute("aria-sort") == "descending"
        cells = page.locator(f"tbody tr td:nth-child({place + 1})").all_inner_texts()
        values = [number(cell) for cell in cells]
        assert values == sorted(values, reverse=True)
        head.get_by_role("button").press("Enter")
        assert head.get_attribute("aria-sort") == "ascending"


def test_a_deep_link_opens_a_pair_and_a_wrong_one_says_so(open_report, full_report):
    best = rows_of(full_report.parent, "query_3")[0]
    page = open_report(full_report, f"#/pair/query_3/{best['train_id']}")
    assert page.inner_text("h1") == f"{best['train_id']} → query_3"
    assert "1 of 80" in page.inner_text("main")
    layers = page.locator("table[aria-label='Contributions by layer'] tbody tr")
    total = sum(
        number(text) for text in layers.locator(".score > span:first-child").all_inner_texts()
    )
    assert total == pytest.approx(float(best["influence_score"]), rel=1e-2)
    page.locator("select").select_option("map")
    assert page.locator("table[aria-label='Contributions by map'] tbody tr").count() == 4
    for wrong in ("#/query/nobody", "#/pair/query_3/nobody", "#/nowhere"):
        page.evaluate(f"window.location.hash = {json.dumps(wrong)}")
        page.wait_for_selector("h1:has-text('Not in this report')")


def test_tokens_tell_their_number_on_hover_and_by_the_keyboard(open_report, full_report):
    best = rows_of(full_report.parent, "query_3")[0]
    values = json.loads(best["per_token_scores"])
    page = open_report(full_report, f"#/pair/query_3/{best['train_id']}")
    tokens = page.locator(".tokens .token")
    assert tokens.count() == len(values)
    tip = page.get_by_role("tooltip")
    for place, move in ((2, "hover"), (0, "focus"), (1, "ArrowRight")):
        if move == "ArrowRight":
            page.keyboard.press(move)
        else:
            getattr(tokens.nth(place), move)()
        assert tip.is_visible()
        shown = tip.inner_text().rpartition("” ")[2].split()[0]
        assert number(shown) == pytest.approx(values[place], rel=1e-2, abs=1e-3)
        assert tokens.nth(place).get_attribute("aria-label") == tip.inner_text()
    signs = {tokens.nth(place).get_attribute("class") for place in range(len(values))}
    assert {"token strong-plus", "token strong-minus"} <= signs


def test_dark_mode_is_toggled_and_follows_the_system(open_report, full_report):
    background = "getComputedStyle(document.body).backgroundColor"
    page = open_report(full_report)
    light = page.evaluate(background)
    button = page.get_by_role("button", name="Dark")
    assert button.get_attribute("aria-pressed") == "false"
    button.click()
    dark = page.evaluate(background)
    assert dark != light
    assert button.get_attribute("aria-pressed") == "true"
    page.reload()
    assert page.evaluate(background) == dark
    assert open_report(full_report, scheme="dark").evaluate(background) == dark


def test_the_heat_map_is_read_by_the_keyboard(open_report, full_report):
    page = open_report(full_report, "#/map")
    canvas = page.locator("canvas")
    canvas.focus()
    for key in ("ArrowRight", "ArrowRight", "ArrowDown"):
        canvas.press(key)
    read = page.inner_text("#readout")
    query, train = read.split(":")[0].split(" × ")
    row = next(r for r in rows_of(full_report.parent, query) if r["train_id"] == train)
    shown = number(read.split(": score ")[1].split()[0])
    assert shown == pytest.approx(float(row["influence_score"]), rel=1e-3)
    page.get_by_label("Divide by").check()
    assert page.locator("canvas").count() == 1
    page.locator("canvas").press("ArrowRight")
    assert "√ self-influence" in page.inner_text("#readout")
    page.locator("canvas").press("Enter")
    page.wait_for_selector("h1:has-text('→')")


def test_what_is_shown_is_downloaded_as_csv(open_report, full_report, tmp_path):
    page = open_report(full_report, "#/query/query_3")
    with page.expect_download() as download:
        page.get_by_role("button", name="Download these rows as CSV").click()
    download.value.save_as(tmp_path / "rows.csv")
    with (tmp_path / "rows.csv").open(newline="", encoding="utf-8") as file:
        rows = list(csv.DictReader(file))
    expected = rows_of(full_report.parent, "query_3")
    assert [row["train_id"] for row in rows[:25]] == [row["train_id"] for row in expected[:25]]
    assert [float(row["influence_score"]) for row in rows[:25]] == [
        float(row["influence_score"]) for row in expected[:25]
    ]


@pytest.mark.parametrize("width", [380, 1600])
def test_hostile_text_is_shown_and_does_nothing(open_report, hostile_results, hostile_texts, width):
    influence_report.main([str(hostile_results), "--title", "<b>'\"</title>\0"])
    page = open_report(hostile_results / "report.html", width=width)
    ids = page.locator("tbody th a").all()
    assert len(ids) == len(hostile_texts)
    hrefs = [one.get_attribute("href") for one in ids]
    for name, href in zip(hostile_texts, hrefs, strict=True):
        page.evaluate("hash => { window.location.hash = hash; }", href)
        assert page.evaluate("document.documentElement.scrollWidth <= window.innerWidth"), name
        page.wait_for_function("hash => document.querySelector('#most-helpful')", arg=href)
        text = hostile_texts[name]
        found = page.evaluate("document.querySelector('.completion').textContent")
        if text.isprintable():
            assert found == text[: len(found)]
            assert len(found) >= min(len(text), 100)
        else:
            assert not {"\0", "\u202e", "\u2067"} & set(found)
        pair = page.locator("#most-helpful tbody tr a").first.get_attribute("href")
        page.evaluate("hash => { window.location.hash = hash; }", pair)
        page.wait_for_selector("section[aria-label='By token']")
    assert page.evaluate("window.broken") is None
    assert page.locator("b, img, script:not(#data)").count() == 1
    assert page.evaluate("document.documentElement.scrollWidth <= window.innerWidth")


@pytest.mark.parametrize("scheme", ["light", "dark"])
@pytest.mark.parametrize("width", [380, 1600])
def test_axe_finds_no_fault_and_nothing_is_wider_than_the_window(
    open_report, full_report, width, scheme
):
    from axe_playwright_python.sync_playwright import Axe

    best = rows_of(full_report.parent, "query_1")[0]["train_id"]
    for route in ROUTES:
        page = open_report(full_report, route.format(best=quote(best)), width=width, scheme=scheme)
        found = Axe().run(page)
        faults = [
            (fault["id"], [node["target"] for node in fault["nodes"]][:3])
            for fault in found.response["violations"]
        ]
        assert faults == [], route
        assert len(found.response["passes"]) > 15, "axe did not run"
        assert page.evaluate("document.documentElement.scrollWidth <= window.innerWidth"), route
        assert page.locator("h1").count() == 1
        for landmark in ("banner", "main", "contentinfo"):
            assert page.get_by_role(landmark).count() == 1, route


def test_the_policy_refuses_a_script_that_is_not_the_page_s_own(chromium, full_report):
    page = chromium.new_page()
    page.goto(full_report.as_uri())
    assert page.evaluate("""() => {
        const script = document.createElement("script");
        script.textContent = "window.broken = true";
        document.body.append(script);
        document.body.insertAdjacentHTML("beforeend", "<img src=x onerror='window.broken = true'>");
        return window.broken === undefined;
    }""")
    page.close()


def test_the_tab_key_goes_through_the_page_in_order(open_report, full_report):
    page = open_report(full_report, "#/query/query_1")
    seen = []
    for _ in range(12):
        page.keyboard.press("Tab")
        seen.append(page.evaluate("document.activeElement.textContent.trim()"))
    assert seen[:9] == [
        "Skip to the content", "Queries", "Heat map", "Curvature", "How to read this", "Dark",
        "All queries", "Previous query", "Next query",
    ]  # fmt: skip
    page.keyboard.press("Shift+Tab")
    page.evaluate("document.querySelector('.skip').focus()")
    page.keyboard.press("Enter")
    assert page.evaluate("document.activeElement.id") == "main"
    assert page.inner_text("h1") == "query_1"


def test_a_run_without_parts_says_how_to_get_them(open_report, make_results):
    folder = make_results()
    shutil.rmtree(folder.with_name("results-factors"))
    influence_report.main([str(folder)])
    page = open_report(folder / "report.html", "#/query/query_1")
    assert "--per-token-scores" in page.inner_text("main")
    page.locator("#most-helpful tbody tr a").first.click()
    page.wait_for_selector("h1:has-text('→')")
    assert "--per-module-scores" in page.inner_text("main")
    page.get_by_role("link", name="Heat map").click()
    page.wait_for_selector("canvas")
    assert "--self-influence" in page.inner_text("main")
    assert page.get_by_label("Divide by").is_disabled()
    page.get_by_role("link", name="Curvature").click()
    page.wait_for_selector("#no-factors")
    assert "--factors-dir" in page.inner_text("#no-factors")


def test_the_largest_report_is_under_5_mb_and_loads_within_3_s(open_report, make_results):
    """100 queries × 10,000 training examples of 600 characters, tokens and linear maps included.

    The median of five loads, from the address to the drawn list, is printed with ``-s``.
    """
    folder = make_results(
        train=10_000, queries=100, top_k=25, num_chars=600, num_tokens=128, **FULL
    )
    started = time.monotonic()
    influence_report.main([str(folder)])
    written = time.monotonic() - started
    report = folder / "report.html"
    size = report.stat().st_size
    assert size < 5_000_000
    seconds = []
    for _ in range(5):
        page = open_report(report)
        seconds.append(page.evaluate("performance.now()") / 1000)
        assert page.locator("tbody tr").count() == 25
    assert "10,000 training examples" in page.inner_text("main")
    assert "scores.npy" in page.inner_text("#cap")
    load = sorted(seconds)[2]
    clicked = time.monotonic()
    page.locator("tbody th a").first.click()
    page.wait_for_selector("#most-helpful tbody tr")
    click = time.monotonic() - clicked
    print(
        f"\nlargest report: {size / 1e6:.2f} MB, written in {written:.1f} s, "
        f"loads in {load:.2f} s, a query opens in {click:.2f} s"
    )
    assert load < 3
