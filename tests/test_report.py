"""The report of a real run: what it shows is what run-query computed."""

import base64
import csv
import json
import re

import numpy as np
import pytest
from if_query import fit_hessians, run_query
from if_query.influence_results import InfluenceResults


def unpacked(packed: list) -> np.ndarray:
    return packed[0] * np.frombuffer(base64.b64decode(packed[1]), "<i2").astype(np.float64)


@pytest.mark.parametrize("suffix", ["csv", "parquet"])
def test_run_query_writes_a_report_of_what_it_computed(
    make_model_folder, token_data, pair_files, tmp_path, suffix, capsys
):
    model, factors, folder = make_model_folder(), tmp_path / "factors", tmp_path / "results"
    fit_hessians.main(
        f"--model {model} --hessian-dataset {token_data} --output-dir {factors} "
        "--dtype float32 --device cpu".split()
    )
    arguments = (
        f"--model {model} --factors-dir {factors} --output-dir {folder} --train-json "
        f"{pair_files[0]} --query-json {pair_files[1]} --dtype float32 --device cpu --report "
        f"--per-token-scores --per-module-scores --self-influence --format {suffix}"
    ).split()
    run_query.main(arguments)
    page = folder / "report.html"
    assert str(page) in capsys.readouterr().out
    content = page.read_text(encoding="utf-8")
    found = re.search(r'id="data">(.*?)</script>', content, re.DOTALL)
    assert found
    payload = json.loads(found[1])
    results = InfluenceResults.load(folder)
    with (folder / "train_tokens.jsonl").open() as file:
        tokens = {row["train_id"]: row["tokens"] for row in map(json.loads, file)}
    assert [query["id"] for query in payload["queries"]] == ["q0", "q1"]
    for query in payload["queries"]:
        rows = query["rows"]
        assert len(rows["train"]) == 6
        order = results.top(query["id"], 6)
        for place, score, per_token, per_module in zip(
            rows["train"], rows["score"], rows["tokens"], rows["modules"], strict=True
        ):
            train = payload["train"][place]
            expected = order.set_index("train_id").loc[train["id"], "influence_score"]
            assert np.float32(score) == expected
            largest = max(np.abs(unpacked(per_token)).max(), np.abs(unpacked(per_module)).max())
            # Float32 sums, and 1/65534 of the largest for each of the packed numbers.
            assert unpacked(per_token).sum() == pytest.approx(score, abs=2e-3 * largest)
            assert unpacked(per_module).sum() == pytest.approx(score, abs=2e-3 * largest)
            assert train["tokens"] == tokens[train["id"]]
            assert train["self"] > 0
    assert payload["health"]["found"]
    assert len(payload["health"]["modules"]) == 9
    assert "--report" in payload["reading"]["commands"][1]
    page.unlink()
    run_query.main(arguments)
    assert page.read_text(encoding="utf-8") == content, "finished results get the same report"


def test_any_text_of_a_pair_survives_to_the_tables_and_the_report(
    make_model_folder, token_data, tmp_path
):
    model, factors, folder = make_model_folder(), tmp_path / "factors", tmp_path / "results"
    fit_hessians.main(
        f"--model {model} --hessian-dataset {token_data} --output-dir {factors} "
        "--strategy identity --dtype float32 --device cpu".split()
    )
    texts = ["a\rb", "\0\u202e", "</script><!--", "a\u2028b", '"quoted", 😀', "x" * 100_000]
    pairs = [{"pair_id": f"{n}", "prompt": "", "completion": text} for n, text in enumerate(texts)]
    path = tmp_path / "pairs.json"
    path.write_text(json.dumps(pairs))
    run_query.main(
        f"--model {model} --factors-dir {factors} --output-dir {folder} --train-json {path} "
        f"--query-json {path} --dtype float32 --device cpu --max-length 48 --report "
        "--per-token-scores".split()
    )
    assert [one.completion for one in InfluenceResults.load(folder).train] == texts
    with (folder / "influences.csv").open(newline="") as file:
        assert len(list(csv.reader(file))) == 1 + len(texts) ** 2
    assert (folder / "report.html").read_text(encoding="utf-8").count("</script>") == 2
