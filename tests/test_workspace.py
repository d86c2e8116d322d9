"""The workspace: members stand alone, the documents tell the truth, queries/test_query works."""

import json
import os
import re
import shutil
import subprocess
import sys
import tomllib
from functools import cache
from importlib.metadata import entry_points
from pathlib import Path

import pytest
from forks import Fork, script
from if_query import fit_hessians, run_query
from if_query.pairs import load_pairs

ROOT = Path(__file__).parents[1]
MEMBERS = sorted(path.parent.name for path in ROOT.glob("packages/*/pyproject.toml"))


def test_the_top_level_is_the_one_of_the_design():
    listed = subprocess.run(
        ["git", "ls-files"], cwd=ROOT, capture_output=True, text=True, check=True
    ).stdout.split()
    names = {name.split("/")[0] for name in listed if not name.startswith(".")}
    assert names == {
        "pyproject.toml", "uv.lock", "README.md", "CLAUDE.md",
        "packages", "experiments", "queries", "tests",
    }  # fmt: skip
    assert MEMBERS == ["attribution", "data-handler", "hops", "if-query", "math-utils"]


@pytest.fixture(scope="module")
def environment_folder(tmp_path_factory) -> Path:
    return tmp_path_factory.mktemp("environment") / "venv"


@pytest.mark.parametrize("member", MEMBERS)
def test_a_member_installs_and_imports_alone_from_outside_the_repository(
    member, environment_folder, tmp_path
):
    """Installed without its siblings (but those it depends on), from what uv has cached."""
    # One environment after the other in one place: what was compiled of torch is there already,
    # and `uv sync` removes what the member before had and this one does not ask for.
    uv = os.environ.get("UV") or shutil.which("uv")
    assert uv, "uv is needed to install a member"
    environment = {**os.environ, "UV_PROJECT_ENVIRONMENT": str(environment_folder)}
    environment.pop("VIRTUAL_ENV", None)
    environment.pop("PYTHONDONTWRITEBYTECODE", None)
    subprocess.run(
        [uv, *f"sync --locked --offline --no-dev --no-editable --package {member}".split()],
        cwd=ROOT,
        env=environment,
        check=True,
    )
    python = environment_folder / "bin" / "python"
    name = member.replace("-", "_")
    code = (
        "import importlib, pkgutil, sys\n"
        f"package = importlib.import_module({name!r})\n"
        "found = pkgutil.walk_packages(package.__path__, package.__name__ + '.')\n"
        "names = [one.name for one in found]\n"
        "for one in names: importlib.import_module(one)\n"
        f"print(package.__file__, len(names))"
    )
    outside = {"cwd": tmp_path, "env": environment, "capture_output": True, "text": True}
    done = subprocess.run([python, "-c", code], **outside)
    assert done.returncode == 0, done.stderr
    assert str(environment_folder) in done.stdout
    others = {one.replace("-", "_") for one in MEMBERS} - {name} - dependencies(member)
    for other in others:
        found = subprocess.run([python, "-c", f"import {other}"], **outside)
        assert found.returncode != 0, f"{member} brings {other} along"


def dependencies(member: str) -> set[str]:
    metadata = tomllib.loads((ROOT / "packages" / member / "pyproject.toml").read_text())
    declared = {re.split(r"[<>=\[ ]", one)[0] for one in metadata["project"]["dependencies"]}
    return {one.replace("-", "_") for one in declared & set(MEMBERS)}


def commands_in(document: Path) -> list[str]:
    """``uv run …`` lines of the code blocks, continuation lines joined."""
    blocks = re.findall(r"```(?:bash|sh)\n(.*?)```", document.read_text(), flags=re.DOTALL)
    text = "\n".join(blocks).replace("\\\n", " ")
    return [
        " ".join(line.split()) for line in text.splitlines() if line.strip().startswith("uv run")
    ]


DOCUMENTS = ["README.md", "CLAUDE.md", *(f"packages/{member}/README.md" for member in MEMBERS)]
DOCUMENTS += ["experiments/paraphrases.md", "packages/hops/two_hop.md"]
DOCUMENTS += ["experiments/attribution.md", "packages/attribution/ablations.md"]
DOCUMENTS += ["packages/hops/second_name.md", "packages/attribution/leaderboard.md"]
DOCUMENTS += ["packages/attribution/retraining.md", "packages/if-query/scaling.md"]


@cache
def help_of(*words: str) -> str:
    """What a command prints, asked once for all documents."""
    program = words[0]

    def run() -> None:
        sys.argv = [*words, "--help"]
        (command,) = entry_points(group="console_scripts", name=program)
        command.load()()

    if program.endswith(".py"):
        run = script(ROOT / program, "--help", folder=ROOT)
    status, shown, errors = Fork(run).wait()
    assert status == 0, f"{' '.join(words)}: {errors}"
    return shown


@pytest.mark.parametrize("document", DOCUMENTS)
def test_every_flag_in_a_document_is_one_of_its_command(document):
    for line in commands_in(ROOT / document):
        words = line.split("#")[0].split()[2:]
        program = words[0]
        if program in ("pytest", "mypy", "ruff", "lint-imports", "--group"):
            continue
        subcommand = [words[1]] if program == "hops" else []
        shown = help_of(program, *subcommand)
        for flag in (word for word in words if word.startswith("--")):
            assert re.search(rf"{re.escape(flag)}\b", shown), f"{document}: {line}: {flag}"


def test_the_readme_is_short_and_the_links_in_it_lead_somewhere():
    assert len((ROOT / "README.md").read_text().splitlines()) < 150
    assert len((ROOT / "CLAUDE.md").read_text().splitlines()) < 120
    for document in DOCUMENTS:
        text = (ROOT / document).read_text()
        for target in re.findall(r"\]\(([^)#]+)\)", text):
            if not target.startswith("http"):
                assert (ROOT / document).parent.joinpath(target).exists(), f"{document}: {target}"


@pytest.mark.parametrize("architecture", ["olmo2", "llama"])
def test_the_query_that_is_shipped_runs(make_model_folder, token_data, tmp_path, architecture):
    folder = ROOT / "queries" / "test_query"
    train, queries = (load_pairs(folder / name) for name in ("train.json", "query.json"))
    assert {pair.extras["topic"] for pair in train} == {"capitals", "sums", "authors"}
    model = make_model_folder(architecture)
    fit_hessians.main(
        f"--model {model} --hessian-dataset {token_data} --output-dir {tmp_path / 'factors'} "
        "--dtype float32 --device cpu".split()
    )
    run_query.main(
        f"--model {model} --factors-dir {tmp_path / 'factors'} --dtype float32 --device cpu "
        f"--train-json {folder / 'train.json'} --query-json {folder / 'query.json'} "
        f"--output-dir {tmp_path / 'results'}".split()
    )
    metadata = json.loads((tmp_path / "results" / "metadata.json").read_text())
    assert metadata["num_train"] == len(train)
    rows = (tmp_path / "results" / "influences.csv").read_text().splitlines()
    assert len(rows) == 1 + len(train) * len(queries)


def test_no_path_of_a_machine_and_no_registry_is_named_in_the_project():
    listed = subprocess.run(
        ["git", "ls-files", "-z"], cwd=ROOT, capture_output=True, text=True, check=True
    ).stdout.split("\0")
    # Assembled, so that this file does not contain what it looks for.
    unwanted = re.compile("|".join(["/" + "root/", "/" + "home/", "pypi" + r"\.org"]))
    for name in filter(None, listed):
        path = ROOT / name
        if path.suffix in (".png", ".lock") or not path.is_file():
            continue
        assert not unwanted.search(path.read_text(encoding="utf-8")), name
