"""A plan as a person reads it: a table of stages, what was assumed, and the maps one by one."""

from collections.abc import Sequence
from dataclasses import dataclass, field


@dataclass(frozen=True)
class StagePlan:
    """What one stage will take.

    Attributes:
        name: the stage.
        host: peak of the process in main memory, bytes.
        device: peak on accelerators, bytes; 0 on the CPU.
        disk: the most that is on disk in the output folder while the stage runs, bytes.
        seconds: how long it takes.
    """

    name: str
    host: int
    device: int
    disk: int
    seconds: float


@dataclass(frozen=True)
class ModulePlan:
    """What one linear map takes.

    Attributes:
        name: the map.
        d_in: width of its inputs, bias included.
        d_out: width of its outputs.
        memory: of its statistics, stage by stage, bytes.
        disk: of its files when all is done, bytes.
        seconds: of the work that is its own; None where only passes over the data are.
    """

    name: str
    d_in: int
    d_out: int
    memory: dict[str, int]
    disk: int
    seconds: float | None


@dataclass(frozen=True)
class Plan:
    """What a command will take.

    Attributes:
        stages: in order.
        disk_left: bytes in the output folder at the end.
        notes: what was chosen and assumed, a line each.
        modules: map by map.
    """

    stages: Sequence[StagePlan]
    disk_left: int
    notes: Sequence[str] = field(default_factory=list)
    modules: Sequence[ModulePlan] = field(default_factory=list)

    @property
    def total(self) -> StagePlan:
        """The greatest memory and disk of any stage, and the time of all."""
        return StagePlan(
            "in all",
            max(one.host for one in self.stages),
            max(one.device for one in self.stages),
            max(one.disk for one in self.stages),
            sum(one.seconds for one in self.stages),
        )

    def describe(self, *, modules: bool = False) -> list[str]:
        """The plan as lines of text.

        Args:
            modules: name every map too.
        """
        on_device = any(one.device for one in self.stages)
        header = ["stage", "host memory", *(["device memory"] if on_device else []), "disk", "time"]
        rows = [header]
        for one in (*self.stages, self.total):
            device = [gigabytes(one.device)] if on_device else []
            sizes = [gigabytes(one.host), *device, gigabytes(one.disk)]
            rows.append([one.name, *sizes, duration(one.seconds)])
        lines = _aligned(rows)
        lines.append(f"left on disk at the end: {gigabytes(self.disk_left)}")
        lines += [f"- {note}" for note in self.notes]
        if modules:
            parts = list(self.modules[0].memory)
            rows = [["linear map", "d_in × d_out", *parts, "disk", "time"]]
            for own in self.modules:
                seconds = "" if own.seconds is None else duration(own.seconds)
                sizes = [gigabytes(own.memory[part]) for part in parts]
                shape = f"{own.d_in} × {own.d_out}"
                rows.append([own.name, shape, *sizes, gigabytes(own.disk), seconds])
            lines += _aligned(rows)
        return lines


def gigabytes(size: int | float) -> str:
    """Bytes as decimal gigabytes, to four digits."""
    return f"{size / 1e9:.4g} GB"


def duration(seconds: int | float) -> str:
    """Seconds, minutes or hours, whichever reads best."""
    for unit, length in (("h", 3600.0), ("min", 60.0)):
        if seconds >= 2 * length:
            return f"{seconds / length:.1f} {unit}"
    return f"{seconds:.2g} s" if seconds < 10 else f"{seconds:.0f} s"


def _aligned(rows: Sequence[Sequence[str]]) -> list[str]:
    widths = [max(map(len, column)) for column in zip(*rows, strict=True)]
    return [
        "  ".join(
            cell.ljust(width) if place == 0 else cell.rjust(width)
            for place, (cell, width) in enumerate(zip(row, widths, strict=True))
        ).rstrip()
        for row in rows
    ]
