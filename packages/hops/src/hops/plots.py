"""Figures of a HOPS model: what it answers, and how it came to.

Both read the JSON files that the commands left, so a figure can be drawn again without a model.
"""

import io
from collections.abc import Sequence
from pathlib import Path
from typing import TYPE_CHECKING, Any, TypeVar

from pydantic import BaseModel, ConfigDict, ValidationError

from hops.errors import HopsError
from hops.files import read_json, write_bytes
from hops.training_config import LOSS_FILE, SUMMARY_FILE

if TYPE_CHECKING:
    from matplotlib.axes import Axes
    from matplotlib.figure import Figure


Model = TypeVar("Model", bound=BaseModel)

_COLOURS = ("#3b528b", "#b5367a", "#2a788e", "#d1782c", "#5a5a5a")
_ROW_HEIGHT, _MAX_ROWS = 0.17, 50


class _Statistics(BaseModel):
    """The part of a summary that is drawn."""

    model_config = ConfigDict(extra="ignore")

    accuracy: float
    accuracy_low: float
    accuracy_high: float


class _FunctionStatistics(_Statistics):
    name: str
    hop_depth: int
    mean_probability: float
    is_told: bool = False


class _Evaluation(BaseModel):
    chance: float
    depths: dict[int, _Statistics]
    told: dict[int, _Statistics] = {}
    functions: list[_FunctionStatistics]


class _Checkpoint(BaseModel):
    step: int
    chance: float | None = None
    depths: dict[int, _Statistics] = {}
    told: dict[int, _Statistics] = {}


class _Loss(BaseModel):
    step: int
    loss: float


def plot_evaluation(evaluation: Path, output: Path) -> None:
    """Draw the accuracy of each function, a panel for each hop depth.

    Args:
        evaluation: What ``hops logit-eval`` wrote.
        output: The image; its suffix (.png, .svg, .pdf) is the format.

    Raises:
        HopsError: The file is no evaluation, or the image cannot be written.
    """
    found = _read(evaluation, _Evaluation)
    # A group of many functions goes on in further columns instead of a figure metres high.
    columns = []
    for (depth, is_told), whole in _groups(found):
        rows = [f for f in found.functions if (f.hop_depth, f.is_told) == (depth, is_told)]
        columns += [
            (depth, is_told, whole, rows[start : start + _MAX_ROWS])
            for start in range(0, len(rows), _MAX_ROWS)
        ]
    if not columns:
        raise HopsError(f"{evaluation}: no function to plot.")
    num_rows = max(len(functions) for *_, functions in columns)
    figure = _figure(max(5.0, 0.4 + 2.6 * len(columns)), 1.4 + _ROW_HEIGHT * num_rows)
    axes = figure.subplots(1, len(columns), squeeze=False)[0]
    for axis, (depth, is_told, whole, functions) in zip(axes, columns, strict=True):
        _draw_functions(axis, functions, found.chance, _COLOURS[depth % len(_COLOURS)])
        axis.set_ylim(num_rows - 0.5, -0.5)
        axis.set_title(
            f"{_group_name(depth, is_told)}\naccuracy {whole.accuracy:.2f} "
            f"[{whole.accuracy_low:.2f}, {whole.accuracy_high:.2f}]",
            fontsize=8,
        )
    figure.legend(
        *axes[0].get_legend_handles_labels(), loc="outside lower center", fontsize=7,
        frameon=False, ncols=3,
    )  # fmt: skip
    _save(figure, output)


def _draw_functions(
    axis: "Axes", functions: Sequence[_FunctionStatistics], chance: float, colour: str
) -> None:
    places = list(range(len(functions)))
    axis.axvline(chance, color="0.5", linestyle=":", linewidth=1, label="chance")
    axis.hlines(
        places,
        [one.accuracy_low for one in functions],
        [one.accuracy_high for one in functions],
        color=colour,
        linewidth=1,
    )
    axis.plot(
        [one.accuracy for one in functions], places, "o", color=colour, markersize=4,
        label="accuracy, 95 % interval over inputs",
    )  # fmt: skip
    axis.plot(
        [one.mean_probability for one in functions], places, "|", color="black", markersize=7,
        label="probability of the constant",
    )  # fmt: skip
    axis.set_yticks(places, [one.name for one in functions], fontsize=7)
    axis.set_xlim(-0.03, 1.03)
    axis.tick_params(axis="x", labelsize=8)
    axis.grid(axis="x", color="0.92")
    axis.set_axisbelow(True)
    axis.set_xlabel("share of inputs", fontsize=8)


def plot_training(output_dirs: Sequence[Path], output: Path) -> None:
    """Draw the loss and the accuracy at each hop depth along one training run or several.

    Runs follow one another from left to right, as the stages of a curriculum do.

    Args:
        output_dirs: What ``hops train`` wrote, in order.
        output: The image; its suffix (.png, .svg, .pdf) is the format.

    Raises:
        HopsError: A folder holds no training run, or the image cannot be written.
    """
    stages = [
        (_read_list(folder / LOSS_FILE, _Loss), _read_list(folder / SUMMARY_FILE, _Checkpoint))
        for folder in output_dirs
    ]
    empty = [
        str(folder) for folder, (_, points) in zip(output_dirs, stages, strict=True) if not points
    ]
    if empty or not stages:
        raise HopsError(f"{', '.join(empty) or 'No folder'}: no evaluated checkpoint to plot.")
    figure = _figure(7.2, 2.9)
    left, right = figure.subplots(1, 2)
    curves: dict[tuple[int, bool], list[tuple[int, _Statistics]]] = {}
    offset, chance = 0, None
    for number, (losses, points) in enumerate(stages):
        colour = _COLOURS[number % len(_COLOURS)] if len(stages) > 1 else "black"
        left.plot(
            [offset + one.step for one in losses],
            [one.loss for one in losses],
            color=colour,
            linewidth=1.2,
            label=output_dirs[number].name,
        )
        for point in points:
            chance = point.chance if point.chance is not None else chance
            for group, statistics in _groups(point):
                curves.setdefault(group, []).append((offset + point.step, statistics))
        offset += max([one.step for one in losses] + [one.step for one in points])
        if number + 1 < len(stages):
            for axis in (left, right):
                axis.axvline(offset, color="0.8", linewidth=0.8)
    left.set_ylabel("training loss, nats per token", fontsize=8)
    left.set_ylim(bottom=0)
    if len(stages) > 1:
        left.legend(fontsize=7)
    for (depth, is_told), points_at in sorted(curves.items()):
        _draw_accuracy(
            right, points_at, _group_name(depth, is_told), _COLOURS[depth % len(_COLOURS)],
            dashed=is_told,
        )  # fmt: skip
    if chance is not None:
        right.axhline(chance, color="0.5", linestyle=":", linewidth=1, label="chance")
    if curves:
        right.legend(fontsize=7, framealpha=0.9)
    else:
        right.text(0.5, 0.5, "no function was asked", ha="center", transform=right.transAxes)
    right.set_ylim(-0.03, 1.03)
    right.set_ylabel("accuracy, 95 % interval over functions", fontsize=8)
    for axis in (left, right):
        axis.set_xlim(0, offset * 1.02)
        axis.set_xlabel("step", fontsize=8)
        axis.tick_params(labelsize=8)
        axis.spines[["top", "right"]].set_visible(False)
    _save(figure, output)


def _draw_accuracy(
    axis: "Axes",
    points: Sequence[tuple[int, _Statistics]],
    label: str,
    colour: str,
    *,
    dashed: bool,
) -> None:
    steps = [step for step, _ in points]
    axis.fill_between(
        steps,
        [one.accuracy_low for _, one in points],
        [one.accuracy_high for _, one in points],
        color=colour,
        alpha=0.15,
        linewidth=0,
    )
    axis.plot(
        steps, [one.accuracy for _, one in points], "o--" if dashed else "o-", color=colour,
        markersize=3, linewidth=1.2, label=label,
    )  # fmt: skip


def _groups(found: _Evaluation | _Checkpoint) -> list[tuple[tuple[int, bool], _Statistics]]:
    """The statistics by hop depth, those of the wrappers told after the others of a depth."""
    groups = [((depth, False), one) for depth, one in found.depths.items()]
    groups += [((depth, True), one) for depth, one in found.told.items()]
    return sorted(groups, key=lambda group: group[0])


def _group_name(depth: int, is_told: bool) -> str:
    name = "base functions" if depth == 0 else f"wrappers, depth {depth}"
    return f"{name}, value told" if is_told else name


def _figure(width: float, height: float) -> "Figure":
    """A figure of its own: no window, and nothing of matplotlib's global state is touched."""
    from matplotlib.figure import Figure

    return Figure(figsize=(width, height), layout="constrained", dpi=150)


def _save(figure: "Figure", output: Path) -> None:
    """Draw into memory, so that a half-written image never stands in the output's place."""
    known = sorted(figure.canvas.get_supported_filetypes())
    suffix = output.suffix.removeprefix(".").lower()
    if suffix not in known:
        raise HopsError(
            f"{output}: cannot draw {output.suffix or 'a file without suffix'}; "
            f"expected one of {', '.join('.' + name for name in known)}."
        )
    buffer = io.BytesIO()
    figure.savefig(buffer, format=suffix)
    write_bytes(output, buffer.getvalue())


def _read(path: Path, model: type[Model]) -> Model:
    return _validated(path, read_json(path), model)


def _read_list(path: Path, model: type[Model]) -> list[Model]:
    value = read_json(path)
    if not isinstance(value, list):
        raise HopsError(f"{path}: expected a JSON list, got {type(value).__name__}.")
    return [_validated(path, item, model) for item in value]


def _validated(path: Path, value: Any, model: type[Model]) -> Model:
    try:
        return model.model_validate(value)
    except ValidationError as error:
        first = error.errors()[0]
        field = ".".join(str(part) for part in first["loc"]) or "content"
        raise HopsError(f"{path}: {field}: {first['msg']}.") from error
