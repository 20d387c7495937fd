"""Draw the learning curve: losses above, validation mIoU below."""

import itertools
import math
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

from matplotlib.axes import Axes
from matplotlib.figure import Figure

from samrobust.training.checkpoints import writing

SIZE_INCHES = (7.0, 5.0)
DPI = 150


def draw_curve(rows: Sequence[Mapping[str, Any]], path: Path) -> None:
    """Draw the rows of a log as a PNG.

    Args:
        rows: as `TrainingFolder.rows` returns them, at least one with a loss.
        path: of the PNG file.

    Raises:
        TrainingError: the file cannot be written.
    """
    figure = Figure(figsize=SIZE_INCHES, layout="constrained")
    above, below = figure.subplots(2, sharex=True)
    _draw_losses(above, [row for row in rows if "total" in row])
    _draw_held_out(below, [row for row in rows if "held_out" in row])
    below.set_xlabel("step")
    with writing(path):
        figure.savefig(path, dpi=DPI)


def _draw_losses(axes: Axes, rows: Sequence[Mapping[str, Any]]) -> None:
    steps = [row["step"] for row in rows]
    names = {name for row in rows for name in row} - {"step", "phase", "total", "seconds_per_step"}
    for name in sorted(names):
        axes.plot(steps, [row.get(name, math.nan) for row in rows], linewidth=0.8, label=name)
    for before, row in itertools.pairwise(rows):
        if row["phase"] != before["phase"]:
            axes.axvline(before["step"], color="#999999", linewidth=0.8)
            axes.annotate(row["phase"], (before["step"], 0.98), xycoords=("data", "axes fraction"))
    axes.set_ylabel("loss")
    axes.legend(frameon=False)


def _draw_held_out(axes: Axes, rows: Sequence[Mapping[str, Any]]) -> None:
    for label in sorted({label for row in rows for label in row["held_out"]}):
        for name, style in (("box", "-"), ("points-3", ":")):
            steps, values, objects = [], [], None
            for row in rows:
                scores = row["held_out"].get(label, {})
                if name not in scores:
                    continue
                if scores.get("objects") != objects:  # no line between different images
                    steps.append(row["step"])
                    values.append(math.nan)
                steps.append(row["step"])
                values.append(100 * scores[name])
                objects = scores.get("objects")
            axes.plot(steps, values, style, marker=".", label=f"{label}, {name}")
    axes.set_ylabel("held-out mIoU (%)")
    if axes.lines:
        axes.legend(frameon=False, fontsize="x-small", loc="upper left", bbox_to_anchor=(1, 1))
