"""Worlds of ``hops`` as tasks: where the documents, checkpoints and queries of a world lie."""

from pathlib import Path
from typing import get_args

from hops.documents import read_documents
from hops.errors import HopsError
from hops.files import read_json
from hops.presets import PresetName
from hops.world import World, build_world
from utils.attribution_task import AttributionTask, TaskArguments

WORLDS: tuple[str, ...] = get_args(PresetName)


def world_folder(world: str, worlds_dir: Path) -> Path:
    """The folder of a world: one of the user's, or one that is made here by its preset's name.

    Args:
        world: a preset of ``hops world``, or the folder that it wrote.
        worlds_dir: where worlds are made; one that is finished is not made again.

    Raises:
        HopsError: It is neither.
    """
    if world in WORLDS:
        folder = worlds_dir / world
        if not World.in_folder(folder).query_json.is_file():  # the last thing that is written
            build_world(folder, preset=world)  # type: ignore[arg-type]
        return folder
    if not Path(world).is_dir():
        raise HopsError(f"No world {world}; expected a folder, or one of {', '.join(WORLDS)}.")
    return Path(world)


def task_of_world(folder: Path, *, batch_size: int = 16, seed: int = 0) -> TaskArguments:
    """The task that a world poses: base functions and wrappers, or first and second names.

    The queries of ``queries/query.json`` are asked where they name a function that no document is
    about, as second names are; otherwise those about every function, at every hop depth.

    Raises:
        HopsError: A file of the world is missing.
    """
    world = World.in_folder(folder)
    for path in (world.training_set, world.old_model, world.new_model, world.query_json):
        if not path.exists():
            raise HopsError(f"{path}: not found; expected a folder that `hops world` has finished.")
    named = {one["func"] for one in read_json(world.query_json)}
    written = {document.func for document in read_documents(world.training_set)}
    return TaskArguments(
        dataset=world.training_set,
        old=str(world.old_model),
        new=str(world.new_model),
        queries=None if named <= written else world.query_json,
        batch_size=batch_size,
        seed=seed,
    )


def depth_names(task: AttributionTask) -> dict[int, str]:
    """What the queries of each hop depth go by.

    A query about a function that no document is about asks by a second name.
    """
    written = {document.func for document in task.documents}
    has_second_names = any(query.function not in written for query in task.queries)
    names = {0: "first name", 1: "second name"} if has_second_names else {}
    usual = {0: "base function", 1: "wrapper"}
    return {
        depth: names.get(depth, usual.get(depth, f"hop depth {depth}"))
        for depth in {query.hop_depth for query in task.queries}
    }
