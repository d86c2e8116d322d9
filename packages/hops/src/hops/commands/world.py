"""The command that runs the others: a whole world from a preset."""

from pathlib import Path
from typing import ClassVar, Literal

from pydantic import ConfigDict
from pydantic.dataclasses import dataclass

from hops.presets import PresetName


@dataclass(frozen=True, config=ConfigDict(extra="forbid"))
class MakeWorld:
    """Make a whole world: documents, old and new checkpoint, evaluations, queries."""

    name: ClassVar[str] = "world"
    output_dir: Path
    """The folder for everything."""
    preset: PresetName = "quickstart"
    """quickstart: base functions are learnt, in a minute or two on two cores. two-hop: most
    wrappers are learnt too, whose value no document tells, in some ten (two_hop.md beside the
    README of hops). second-name: queries use names that no document
    of the training set has (second_name.md there)."""
    model: Literal["tiny-olmo2", "tiny-llama"] = "tiny-olmo2"
    """The architecture."""
    seed: int | None = None
    """Seeds every step; the preset's own by default."""

    def run(self) -> object:
        """Run the commands one after another, naming each; print what the models answer."""
        from hops.world import build_world  # it imports the commands

        world = build_world(
            self.output_dir,
            model=self.model,
            preset=self.preset,
            seed=self.seed,
            on_command=print,
        )
        for group, accuracy in (("", world.accuracy), (", value told", world.told_accuracy)):
            for depth in accuracy["new"]:
                print(
                    f"depth {depth}{group}: accuracy {accuracy['old'][depth]:.3f} before, "
                    f"{accuracy['new'][depth]:.3f} after, chance {world.chance:.3f}"
                )
        return world
