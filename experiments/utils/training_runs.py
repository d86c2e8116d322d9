"""The runs of `hops train` that led from one checkpoint to another, and what each of them read."""

from dataclasses import dataclass
from pathlib import Path

from hops.errors import HopsError
from hops.files import read_json, sha256_of
from hops.training_config import TrainConfig
from pydantic import TypeAdapter, ValidationError

CONFIG = "training_config.json"
WEIGHTS = "model.safetensors"


@dataclass(frozen=True)
class TrainingRun:
    """One run.

    Attributes:
        folder: of its checkpoints.
        config: its arguments; None where no file tells them.
        texts: the documents that it read; None where that is not known.
    """

    folder: Path
    config: TrainConfig | None = None
    texts: frozenset[str] | None = None

    @property
    def passes(self) -> float:
        """Passes over its documents per document in a step: what a learning rate stands for."""
        return 1.0 if self.config is None else self.config.epochs / self.config.batch_size

    @property
    def froze_embeddings(self) -> bool:
        """Whether its steps left the input embeddings as they were."""
        return self.config is not None and self.config.freeze_embeddings


def training_runs(last: Path, old_model: Path | None) -> tuple[TrainingRun, ...]:
    """The runs from the old checkpoint to the last one's final model, the first first.

    A run that began with the final model of another is followed by it, until one began with the old
    checkpoint. All must lie side by side, as `hops world` lays them; checkpoints and documents are
    known by content, so that the whole can be moved. Without an old checkpoint, or where no run
    began with it, the last run stands alone.

    Args:
        last: the folder of the last run.
        old_model: where to stop.

    Raises:
        HopsError: ``training_config.json`` is not that of `hops train`, or what one of several
            runs read is not there.
    """
    if not (last / CONFIG).is_file():
        return (TrainingRun(last),)
    begun = None if old_model is None else _digest(old_model / WEIGHTS)
    folders = [last]
    while True:
        config, digests = read_record(folders[0] / CONFIG)
        model = Path(config.model)
        start = digests.get(str(model / WEIGHTS))
        if start is not None and start == begun:
            break
        before = folders[0].with_name(model.parent.name)
        known = (before / CONFIG).is_file() and before not in folders
        if begun is None or not known or _digest(before / model.name / WEIGHTS) != start:
            folders = [last]
            break
        folders.insert(0, before)
    if len(folders) == 1:
        return (TrainingRun(last, read_record(last / CONFIG)[0]),)
    return tuple(_with_texts(folder) for folder in folders)


def read_record(path: Path) -> tuple[TrainConfig, dict[str, str]]:
    """The arguments of a run, and SHA-256 of the files that it read, by the paths of that time.

    Raises:
        HopsError: the file holds something else.
    """
    try:
        record = read_json(path)
        training = TypeAdapter(TrainConfig).validate_python(record["arguments"])
        digests = TypeAdapter(dict[str, str]).validate_python(record["sha256"])
    except (KeyError, TypeError, ValidationError) as error:
        raise HopsError(f"{path}: not the arguments of `hops train`.") from error
    return training, digests


def _with_texts(folder: Path) -> TrainingRun:
    from hops.training_data import select_documents

    config, digests = read_record(folder / CONFIG)
    read = config.dataset_path
    places = (read, folder.parent.with_name(read.parent.name) / read.name)
    for path in places:
        if _digest(path) == digests.get(str(read)):
            chosen = select_documents(path, config.hop_depth, skip_direct=config.skip_direct)
            return TrainingRun(folder, config, frozenset(one.text for _, one in chosen))
    raise HopsError(
        f"{folder}: {read.name}, which it was trained on, is neither at {places[0]} nor at "
        f"{places[1]}."
    )


def _digest(path: Path) -> str | None:
    return sha256_of(path) if path.is_file() else None
