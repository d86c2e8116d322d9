"""fit-hessians --covariance-share: eigenbases from a part of the data, eigenvalues from all."""

import json
from pathlib import Path

import pytest
import torch
from forks import kill_when
from if_query import fit_hessians
from if_query.batching import collate
from if_query.datasets import load_token_dataset
from if_query.factors import FactorStore
from if_query.models import LanguageModelLoss, load_model, select_maps
from if_query.plan import trials
from if_query_commands import bits_of, fit_arguments
from math_utils.capture import frozen
from math_utils.curvature import EigenvalueSums, backward_pass


def fit(model: Path, data: Path, folder: Path, *more: str) -> FactorStore:
    fit_hessians.main(fit_arguments(model, data, folder, *more))
    return FactorStore.open(folder)


@pytest.fixture
def model(make_model_folder) -> Path:
    return make_model_folder()


@pytest.fixture
def part(token_data, tmp_path) -> tuple[Path, list[int]]:
    """The rows that a share of 0.4 takes, in a file of their own."""
    dataset = load_token_dataset(token_data, vocab_size=10_000)
    rows = dataset.share(0.4).tolist()
    assert len(rows) == round(0.4 * len(dataset))
    path = tmp_path / "part.jsonl"
    examples = [dataset[row] for row in rows]
    path.write_text(
        "".join(
            json.dumps({"input_ids": list(one.input_ids), "labels": list(one.labels)}) + "\n"
            for one in examples
        )
    )
    return path, rows


def test_bases_are_those_of_the_part_and_eigenvalues_those_of_all(
    model, token_data, part, tmp_path
):
    shared = fit(model, token_data, tmp_path / "shared", "--covariance-share", "0.4")
    alone = fit(model, part[0], tmp_path / "alone")
    names = shared.map_names
    bases = {name: shared.read_eigenbasis(name) for name in names}
    for name in names:
        own = alone.read_eigenbasis(name)
        assert torch.equal(bases[name].input_basis, own.input_basis)
        assert torch.equal(bases[name].output_basis, own.output_basis)

    loaded = load_model(str(model), dtype="float32", device="cpu").double()
    maps = select_maps(loaded).maps
    dataset = load_token_dataset(token_data, vocab_size=10_000)
    wide = {
        name: type(basis)(
            basis.input_basis.double(),
            basis.output_basis.double(),
            basis.input_values.double(),
            basis.output_values.double(),
            basis.num_positions,
        )
        for name, basis in bases.items()
    }
    sums = EigenvalueSums(maps, wide, torch.float64)
    with frozen(loaded):
        for row in range(len(dataset)):
            batch = collate(dataset, [row], dataset.keys)
            loss = LanguageModelLoss("sampled")
            backward_pass(loaded, maps, batch, loss, sums.add, dtype=torch.float64)
    expected = sums.finish(len(dataset))
    found = shared.read_factors()
    for name in names:
        scale = float(expected[name].abs().max())
        torch.testing.assert_close(
            found.maps[name].eigenvalues.double(), expected[name], rtol=1e-4, atol=1e-5 * scale
        )


def test_kfac_of_a_share_is_kfac_of_that_part(model, token_data, part, tmp_path):
    more = ["--strategy", "kfac"]
    shared = fit(model, token_data, tmp_path / "shared", *more, "--covariance-share", "0.4")
    alone = fit(model, part[0], tmp_path / "alone", *more)
    found, expected = shared.read_factors(), alone.read_factors()
    for name in shared.map_names:
        assert torch.equal(found.maps[name].eigenvalues, expected.maps[name].eigenvalues)


def test_a_share_does_not_depend_on_the_order_of_rows_and_smaller_ones_are_parts(token_data):
    dataset = load_token_dataset(token_data, vocab_size=10_000)
    turned = type(dataset).from_examples([dataset[row] for row in range(len(dataset))][::-1])
    own = sorted(dataset.keys[dataset.share(0.5)])
    assert own == sorted(turned.keys[turned.share(0.5)])
    assert set(dataset.share(0.2)) <= set(dataset.share(0.5)) < set(dataset.share(1.0))
    assert dataset.share(1.0).tolist() == list(range(len(dataset)))
    assert len(dataset.share(1e-9)) == 1


def test_the_metadata_tell_the_share_and_another_is_refused(model, token_data, tmp_path, capsys):
    store = fit(model, token_data, tmp_path / "factors", "--covariance-share", "0.4")
    count = store.metadata["num_examples"]
    assert store.metadata["covariance_share"] == 0.4
    assert store.metadata["num_covariance_examples"] == round(0.4 * count)
    capsys.readouterr()
    with pytest.raises(SystemExit) as leaving:
        fit(model, token_data, tmp_path / "factors")
    assert leaving.value.code == 2
    assert "covariance_share was 0.4, now 1.0" in capsys.readouterr().err


def test_a_fit_killed_within_its_share_ends_at_the_same_bits(model, token_data, tmp_path):
    more = ["--covariance-share", "0.5", "--max-tokens-per-batch", "12", "--save-interval", "0"]
    fit(model, token_data, tmp_path / "whole", *more)
    folder = tmp_path / "killed"
    arguments = fit_arguments(model, token_data, folder, *more)
    kill_when(
        lambda: fit_hessians.main(arguments),
        lambda: any(folder.glob("progress/covariances-000000002")),
    )
    assert not (folder / "eigenbases").exists()
    fit_hessians.main(arguments)
    assert bits_of(folder) == bits_of(tmp_path / "whole")


def test_a_plan_counts_the_batches_of_the_share(model, token_data, tmp_path, capsys, monkeypatch):
    """Seconds are those of the batches: with equal ones, in proportion to the examples."""
    counted = {}
    real = trials.fit_seconds

    def fit_seconds(sizes, measured, seconds):
        counted.setdefault(sum(count for count, _ in sizes), []).append(len(sizes))
        return real(sizes, measured, seconds)

    monkeypatch.setattr(trials, "fit_seconds", fit_seconds)
    arguments = fit_arguments(model, token_data, tmp_path / "factors")
    fit_hessians.main([*arguments, "--covariance-share", "0.4", "--plan"])
    printed = capsys.readouterr().out
    num_examples = len(load_token_dataset(token_data, vocab_size=10_000))
    assert set(counted) == {round(0.4 * num_examples), num_examples}
    assert "covariances keep" not in printed
    assert not (tmp_path / "factors").exists()


@pytest.mark.parametrize(
    ("more", "line"),
    [
        (["--covariance-share", "0"], "--covariance-share: input should be"),
        (["--covariance-share", "1.5"], "--covariance-share: input should be"),
        (["--covariance-share", "nan"], "--covariance-share: input should be"),
        (["--covariance-share", "0.5", "--strategy", "diagonal"], "diagonal has no covariances"),
    ],
)
def test_a_share_that_is_none_is_one_line(model, token_data, tmp_path, capsys, more, line):
    with pytest.raises(SystemExit) as leaving:
        fit(model, token_data, tmp_path / "factors", *more)
    assert leaving.value.code == 2
    (error,) = [one for one in capsys.readouterr().err.splitlines() if "error" in one]
    assert line in error
    assert not (tmp_path / "factors").exists()
