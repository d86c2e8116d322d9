"""The factors folder: what fit-hessians writes and run-query reads.

    metadata.json                     what was fitted, of which model, on which data; checksums
    eigenbases/<map>.safetensors      input_basis, output_basis, input_values, output_values
    eigenvalues/<map>.safetensors     eigenvalues
    covariances/<map>.safetensors     only until the eigenbases are there
    progress/<stage>-<batches>/       running sums of unfinished maps, and schedule.json

A map is done with a stage when metadata.json lists its file with a checksum; a killed fit can be
taken up at its last saved batch and ends at the same bits.
"""

import json
import platform
import shutil
from collections.abc import Iterable, Mapping
from dataclasses import dataclass, field
from importlib.metadata import version
from pathlib import Path
from typing import Any, Literal

from math_utils.curvature import (
    Covariances,
    CurvatureFactors,
    Eigenbasis,
    MapFactors,
    Strategy,
)
from torch import Tensor

from if_query.errors import InputError
from if_query.schedule import BatchSchedule, Part
from if_query.storage import checksum_of, read_tensors, write_tensors
from if_query.whole_files import read_metadata, replacing_folder, write_json

FORMAT = 1
SCHEDULE = "schedule.json"
Stage = Literal["covariances", "eigenbases", "eigenvalues"]

STAGES: dict[Strategy, tuple[Stage, ...]] = {
    "identity": (),
    "diagonal": ("eigenvalues",),
    "kfac": ("covariances", "eigenbases", "eigenvalues"),
    "ekfac": ("covariances", "eigenbases", "eigenvalues"),
}


def versions() -> dict[str, str]:
    """Versions of what determines the numbers."""
    return {
        "python": platform.python_version(),
        **{name: version(name) for name in ("if-query", "math-utils", "torch", "transformers")},
    }


@dataclass
class FactorStore:
    """A factors folder being written or read.

    Attributes:
        folder: where it is.
        metadata: what metadata.json says, or will.
    """

    folder: Path
    metadata: dict[str, Any] = field(default_factory=dict)

    @classmethod
    def open(cls, folder: Path) -> "FactorStore":
        """Open complete factors for reading; nothing is written.

        Raises:
            InputError: if there are none, or they are incomplete or of another format.
        """
        metadata = read_metadata(folder)
        if metadata is None:
            raise InputError(f"{folder}: no factors here (no metadata.json); run fit-hessians")
        if metadata.get("format") != FORMAT:
            raise InputError(
                f"{folder}: factors of format {metadata.get('format')}, this program reads "
                f"{FORMAT}; run fit-hessians again"
            )
        store = cls(folder, metadata)
        if metadata.get("status") != "complete":
            raise InputError(
                f"{folder}: the factors are incomplete; run the same fit-hessians command again "
                "to finish them"
            )
        return store

    @property
    def strategy(self) -> Strategy:
        """The approximation that was fitted."""
        strategy: Strategy = self.metadata["strategy"]
        return strategy

    @property
    def map_names(self) -> list[str]:
        """Names of the tracked maps, in the model's order."""
        return list(self.metadata["tracked_modules"])

    def save_metadata(self) -> None:
        """Write metadata.json."""
        write_json(self.folder / "metadata.json", self.metadata)

    # Stages

    def maps_done(self, stage: Stage) -> set[str]:
        """The maps whose result of a stage is there."""
        return set(self.metadata["checksums"].get(stage, ()))

    def is_done(self, stage: Stage) -> bool:
        """Whether a stage is complete."""
        return self.maps_done(stage) >= set(self.map_names)

    def finish_maps(
        self,
        stage: Stage,
        checksums: Mapping[str, str],
        *,
        num_positions: Mapping[str, int] | None = None,
    ) -> None:
        """Record the results of some maps, and drop what only unfinished ones need.

        Args:
            stage: the stage that they went through.
            checksums: of the files of these maps.
            num_positions: T of each of them, where the stage counted it.
        """
        self.metadata["checksums"].setdefault(stage, {}).update(checksums)
        if num_positions is not None:
            self.metadata.setdefault("num_positions", {}).update(num_positions)
        is_done = self.is_done(stage)
        last = is_done and stage == STAGES[self.strategy][-1]
        if last:
            self.metadata["status"] = "complete"
        self.save_metadata()
        shutil.rmtree(self.folder / "progress", ignore_errors=True)
        if last or (is_done and stage == "eigenbases"):
            shutil.rmtree(self.folder / "covariances", ignore_errors=True)

    def token_budget(self, stage: Stage, asked_for: int) -> int:
        """Tokens per batch: what was asked for, or less where that ran out of memory."""
        used: dict[str, list[int]] = self.metadata["used_token_budgets"]
        return used.get(stage, [asked_for])[-1]

    def shrink_token_budget(self, stage: Stage, asked_for: int, budget: int) -> None:
        """Record that a stage goes on with fewer tokens per batch."""
        used = self.metadata["used_token_budgets"].setdefault(stage, [asked_for])
        used.append(min(budget, used[-1]))
        self.save_metadata()

    def write_map(self, stage: Stage, name: str, tensors: Mapping[str, Tensor]) -> str:
        """Write one map's result of a stage; its checksum."""
        return write_tensors(self._map_file(stage, name), tensors)

    def _map_file(self, stage: Stage, name: str) -> Path:
        return self.folder / stage / f"{name}.safetensors"

    def _read_map(self, stage: Stage, name: str, *, check: bool = True) -> dict[str, Tensor]:
        checksum = self.metadata["checksums"][stage].get(name)
        if checksum is None:
            raise InputError(f"{self.folder}: metadata.json has no checksum of {stage} of {name}")
        return read_tensors(self._map_file(stage, name), checksum if check else None)

    # Results of stages

    def read_covariances(self, name: str) -> Covariances:
        """The covariances of one map, while they are kept."""
        tensors = self._read_map("covariances", name)
        return Covariances(
            tensors["inputs"], tensors["output_gradients"], self._num_positions(name)
        )

    def read_finished_eigenbasis(self, name: str) -> str | None:
        """The checksum of an eigenbasis that an interrupted stage left behind, or None."""
        path = self._map_file("eigenbases", name)
        if not path.is_file():
            return None
        # Whole by its name: it was renamed after it was written.
        return checksum_of(path)

    def read_eigenbasis(self, name: str) -> Eigenbasis:
        """The eigenbasis of one map."""
        return Eigenbasis(
            **self._read_map("eigenbases", name), num_positions=self._num_positions(name)
        )

    def read_factors(self, names: list[str] | None = None) -> CurvatureFactors:
        """The fitted curvature, every file checked against its checksum.

        Args:
            names: which maps; all by default.

        Raises:
            InputError: if a file is missing, truncated or altered.
        """
        chosen = self.map_names if names is None else names
        return CurvatureFactors(
            self.strategy, {name: self.read_map_factors(name) for name in chosen}
        )

    def read_map_factors(self, name: str, *, check: bool = True) -> MapFactors:
        """The factors of one map.

        Args:
            name: the map.
            check: compare its files with their checksums.

        Raises:
            InputError: if a file is missing, truncated or altered.
        """
        parts: dict[str, Tensor] = {}
        if self.strategy in ("kfac", "ekfac"):
            basis = self._read_map("eigenbases", name, check=check)
            parts = {part: basis[part] for part in ("input_basis", "output_basis")}
        if self.strategy != "identity":
            parts.update(self._read_map("eigenvalues", name, check=check))
        return MapFactors(**parts)

    def check_maps(self, names: Iterable[str]) -> None:
        """Compare the files of these maps with their checksums, without keeping them.

        Raises:
            InputError: if a file is missing, truncated or altered.
        """
        for stage in ("eigenbases", "eigenvalues"):
            for name in names if stage in self.metadata["checksums"] else ():
                self._read_map(stage, name)

    def _num_positions(self, name: str) -> int:
        return int(self.metadata["num_positions"][name])

    # Unfinished stages

    def save_progress(
        self, stage: Stage, schedule: BatchSchedule, state: Mapping[str, Tensor]
    ) -> None:
        """Save running sums and how far they are; older ones are dropped."""
        current = self.folder / "progress" / f"{stage}-{schedule.num_batches_done:09d}"
        if current.is_dir():
            return
        by_map: dict[str, dict[str, Tensor]] = {}
        for key, tensor in state.items():
            name, _, part = key.rpartition(".")
            by_map.setdefault(name, {})[part] = tensor
        with replacing_folder(current) as temporary:
            write_json(temporary / SCHEDULE, {"parts": schedule.parts})
            for name, tensors in by_map.items():
                write_tensors(temporary / f"{name}.safetensors", tensors)
        for older in current.parent.iterdir():
            if older != current:
                shutil.rmtree(older)

    def maps_in_progress(self, stage: Stage) -> set[str]:
        """The maps of which there are running sums."""
        folder = self._progress_folder(stage)
        return set() if folder is None else {path.stem for path in folder.glob("*.safetensors")}

    def load_progress(self, stage: Stage) -> tuple[list[Part], dict[str, Tensor]]:
        """(how far the running sums are, these); ([], {}) if there are none."""
        folder = self._progress_folder(stage)
        if folder is None:
            return [], {}
        parts = json.loads((folder / SCHEDULE).read_text())["parts"]
        state = {
            f"{path.stem}.{part}": tensor
            for path in sorted(folder.glob("*.safetensors"))
            for part, tensor in read_tensors(path).items()
        }
        return [tuple(part) for part in parts], state

    def _progress_folder(self, stage: Stage) -> Path | None:
        folders = sorted((self.folder / "progress").glob(f"{stage}-*"))
        return folders[-1] if folders else None


def check_agrees(
    found: Mapping[str, Any], wanted: Mapping[str, Any], folder: Path, keys: list[str]
) -> None:
    """Check that a folder's metadata say the same as this run's in some fields.

    Raises:
        InputError: naming the first fields that differ, with both values.
    """
    differing = [key for key in keys if found.get(key) != wanted.get(key)]
    if differing:
        parts = [
            f"{key} was {_shortly(found.get(key))}, now {_shortly(wanted.get(key))}"
            for key in differing[:3]
        ]
        raise InputError(
            f"{folder} holds results of other arguments ({'; '.join(parts)}); "
            "choose another folder, or --overwrite"
        )


def _shortly(value: object) -> str:
    text = repr(value)
    return text if len(text) <= 40 else f"{text[:40]}…"


def prepare_folder(folder: Path, *, overwrite: bool, resume: bool) -> dict[str, Any] | None:
    """Look at an output folder before anything is written there.

    Args:
        folder: the folder; may not exist yet.
        overwrite: remove results that are there. Only a folder with a metadata.json is removed.
        resume: allow a folder that holds results already.

    Returns:
        The metadata that are there, to be resumed; None for a fresh start.

    Raises:
        InputError: if the folder holds something else, or results that may not be resumed.
    """
    if folder.exists() and not folder.is_dir():
        raise InputError(f"{folder}: expected a folder, found a file")
    metadata = read_metadata(folder) if not overwrite else None
    if metadata is None:
        occupied = folder.is_dir() and any(folder.iterdir())
        if occupied and not (overwrite and (folder / "metadata.json").is_file()):
            raise InputError(
                f"{folder}: the folder is not empty and holds no results of this command; "
                "choose another one"
            )
        return None
    if not resume:
        raise InputError(f"{folder}: holds results already; choose another folder, or --overwrite")
    return metadata


def clear_folder(folder: Path) -> None:
    """Remove results that are to be overwritten, metadata first so that no half is left valid."""
    (folder / "metadata.json").unlink(missing_ok=True)
    if folder.is_dir():
        shutil.rmtree(folder)
