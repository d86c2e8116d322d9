"""Results in a notebook: what they hold agrees with the files."""

import csv
import html.parser

import numpy as np
import pytest
from if_query.errors import InputError
from if_query.influence_results import InfluenceResults, percentiles


@pytest.mark.parametrize("suffix", ["csv", "parquet"])
def test_the_top_of_a_query_is_that_of_the_file(make_results, suffix):
    folder = make_results(suffix=suffix, own_influence=True)
    results = InfluenceResults.load(str(folder))
    expected = sorted(range(30), key=lambda row: -results.matrix[2, row])
    top = results.top("query_2", 5)
    assert top["train_id"].tolist() == [f"train_{row}" for row in expected[:5]]
    assert top["influence_score"].tolist() == [results.matrix[2, row] for row in expected[:5]]
    assert top["rank"].tolist() == [1, 2, 3, 4, 5]
    bottom = results.top("query_2", 3, harmful=True)
    assert bottom["train_id"].tolist() == [f"train_{row}" for row in expected[:-4:-1]]
    assert bottom["rank"].tolist() == [30, 29, 28]
    assert len(results.top("query_2", 100)) == 30
    assert results.self_influence is not None
    assert len(results.self_influence) == 30


def test_the_matrix_has_the_ids_of_the_tables(make_results):
    folder = make_results()
    results = InfluenceResults.load(folder)
    table = results.to_pandas()
    with (folder / "influences.csv").open(newline="") as file:
        for row in csv.DictReader(file):
            score = table.loc[row["query_id"], row["train_id"]]
            assert score == pytest.approx(float(row["influence_score"]), rel=1e-7)
    assert results.losses[0] > 0
    assert results.train[3].extras == {"topic": "topic 0"}
    with pytest.raises(ValueError, match="read-only"):
        results.matrix[0, 0] = 1


def test_an_unknown_query_is_named_with_those_alike(make_results):
    results = InfluenceResults.load(make_results())
    with pytest.raises(InputError, match=r"no query 'quary_1'.*'query_1'"):
        results.top("quary_1")


def test_percentiles_count_half_of_equal_scores():
    scores = np.array([0, 1, 1, 2], dtype=np.float32)
    assert percentiles(scores, np.arange(4)).tolist() == [12.5, 50, 50, 87.5]


def test_the_html_of_a_notebook_escapes_what_data_sets_hold(hostile_results):
    page = InfluenceResults.load(hostile_results)._repr_html_()
    names = []
    parser = html.parser.HTMLParser()
    parser.handle_starttag = lambda tag, attributes: names.append((tag, len(attributes)))
    parser.feed(page)
    assert {tag for tag, _ in names} == {"table", "caption", "thead", "tbody", "tr", "th", "td"}
    assert all(count == 0 for tag, count in names if tag != "th")
    assert len(page) < 40_000
