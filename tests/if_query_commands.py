"""fit-hessians and run-query as the tests call them, and what they wrote."""

import csv
import json
from pathlib import Path
from typing import Any

from if_query import fit_hessians, run_query


def fit_arguments(
    model: Path, data: Path, folder: Path, *more: str, device: str | None = "cpu"
) -> list[str]:
    arguments = ["--model", model, "--hessian-dataset", data, "--output-dir", folder]
    return [*map(str, arguments), *_in_float32(device), *more]


def fit(model: Path, data: Path, folder: Path, *more: str, device: str | None = "cpu") -> Path:
    fit_hessians.main(fit_arguments(model, data, folder, *more, device=device))
    return folder


def query_arguments(
    model: Path,
    factors: Path,
    files: tuple[Path, Path],
    folder: Path,
    *more: str,
    device: str | None = "cpu",
) -> list[str]:
    arguments = ["--model", model, "--factors-dir", factors, "--output-dir", folder]
    arguments += ["--train-json", files[0], "--query-json", files[1]]
    return [*map(str, arguments), *_in_float32(device), *more]


def query(
    model: Path,
    factors: Path,
    files: tuple[Path, Path],
    folder: Path,
    *more: str,
    device: str | None = "cpu",
) -> Path:
    run_query.main(query_arguments(model, factors, files, folder, *more, device=device))
    return folder


def _in_float32(device: str | None) -> list[str]:
    return ["--dtype", "float32", *(["--device", device] if device else [])]


def bits_of(folder: Path) -> dict[str, bytes]:
    """Every file but metadata.json, which says when and where."""
    return {
        str(path.relative_to(folder)): path.read_bytes()
        for path in sorted(folder.rglob("*"))
        if path.is_file() and path.name != "metadata.json"
    }


def metadata_of(folder: Path) -> dict[str, Any]:
    return json.loads((folder / "metadata.json").read_text())


def rows_of(path: Path) -> list[dict[str, str]]:
    with path.open(newline="", encoding="utf-8") as file:
        return list(csv.DictReader(file))


def write(path: Path, content: object) -> Path:
    """Bytes and text as they are, anything else as JSON."""
    if isinstance(content, bytes):
        path.write_bytes(content)
    else:
        path.write_text(content if isinstance(content, str) else json.dumps(content))
    return path
