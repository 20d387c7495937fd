"""Pictures of what happens inside Stable-SAM: where it reads, and how it routes."""

from collections.abc import Sequence
from itertools import cycle
from pathlib import Path

import matplotlib as mpl
import numpy as np
from matplotlib.axes import Axes
from matplotlib.figure import Figure

from samrobust.errors import RunError
from samrobust.evaluation.inspection import MaskReading, ReadingPair, RoutedBoxes
from samrobust.report.plots import COLOURS, DPI, STYLE
from samrobust.types import Floats

TARGET, MASK, PLACE = "#0072B2", "#D55E00", "#F0E442"
PANEL_INCHES = 2.0
LARGEST_DOT = 60.0
"""Area in square points of a dot that stands for `LARGEST_SHARE`; others in proportion."""
LARGEST_SHARE = 0.1
BINS = 10


def draw_readings(pairs: Sequence[ReadingPair], path: Path) -> None:
    """Draw a row per image: for each of its prompts SAM's reading, then Stable-SAM's.

    Args:
        pairs: at least one; those of one image follow each other, each image has as many.
        path: of the picture; its ending says of what kind.

    Raises:
        RunError: it cannot be written.
    """
    n_rows = len({pair.sample_id for pair in pairs})
    n_columns = 2 * len(pairs) // n_rows
    size = (PANEL_INCHES * n_columns, PANEL_INCHES * 0.85 * n_rows)
    with mpl.rc_context(STYLE):
        figure = Figure(figsize=size, layout="constrained")
        panels = iter(figure.subplots(n_rows, n_columns, squeeze=False).flat)
        for pair in pairs:
            for name, reading in (("SAM", pair.sam), ("Stable-SAM", pair.stable)):
                axes = next(panels)
                _draw_reading(axes, pair, reading)
                title = f"{pair.condition}\n{name}: IoU {100 * reading.iou:.0f}"
                axes.set_title(title, fontsize=7)
        _save(figure, path)


def draw_routing(found: RoutedBoxes, path: Path) -> str:
    """Draw each router's weight and the mask's IoU against the box's IoU with the exact box.

    Args:
        found: of at least two boxes.
        path: of the picture; its ending says of what kind.

    Returns:
        The means in tenths of box IoU, as lines of text.

    Raises:
        RunError: it cannot be written.
    """
    with mpl.rc_context(STYLE):
        figure = Figure(figsize=(2.6 * PANEL_INCHES, 1.2 * PANEL_INCHES), layout="constrained")
        left, right = figure.subplots(1, 2, sharex=True)
        for colour, (layer, weights) in zip(cycle(COLOURS), found.weights.items(), strict=False):
            _draw_means(left, found.box_iou, weights, colour, label=f"layer {layer}")
        left.set_ylim(0, 1)
        left.set_ylabel("weight of the deformed features")
        left.legend(frameon=False, loc="upper left")
        _draw_means(right, found.box_iou, 100 * found.mask_iou, MASK, label="")
        right.set_ylabel("IoU of the mask (%)")
        for axes in (left, right):
            axes.set_xlabel("IoU of the box with the exact one")
        _save(figure, path)
    places, ious = _binned(found.box_iou, found.mask_iou)
    means = {layer: _binned(found.box_iou, x)[1] for layer, x in found.weights.items()}
    return "\n".join(
        f"box IoU {place:.2f}  "
        + "".join(f"weight at layer {layer} {mean[row]:.3f}  " for layer, mean in means.items())
        + f"mask IoU {100 * ious[row]:.1f}"
        for row, place in enumerate(places)
    )


def _draw_reading(axes: Axes, pair: ReadingPair, reading: MaskReading) -> None:
    axes.imshow(pair.image, alpha=0.75)
    axes.contour(pair.target, levels=[0.5], colors=TARGET, linewidths=1.0)
    if reading.mask.any():
        axes.contour(reading.mask, levels=[0.5], colors=MASK, linewidths=1.0)
    x0, y0, x1, y1 = pair.box
    axes.plot([x0, x1, x1, x0, x0], [y0, y0, y1, y1, y0], color="white", linewidth=0.8)
    sizes = LARGEST_DOT * reading.shares / LARGEST_SHARE
    x, y = reading.places.T
    axes.scatter(x, y, s=sizes, c=PLACE, alpha=0.6, edgecolors="black", linewidths=0.2)
    height, width = pair.target.shape
    axes.set_xlim(-0.5, width - 0.5)
    axes.set_ylim(height - 0.5, -0.5)
    axes.set_axis_off()


def _draw_means(axes: Axes, x: Floats, values: Floats, colour: str, *, label: str) -> None:
    axes.plot(x, values, ".", markersize=1.5, alpha=0.15, color=colour)
    axes.plot(*_binned(x, values), "o-", color=colour, label=label)


def _binned(x: Floats, values: Floats) -> tuple[Floats, Floats]:
    """Return the means of x and of values in tenths of x, without empty tenths."""
    owner = np.minimum((BINS * x).astype(int), BINS - 1)
    owners = np.unique(owner)
    means = [[array[owner == index].mean() for index in owners] for array in (x, values)]
    return np.array(means[0]), np.array(means[1])


def _save(figure: Figure, path: Path) -> None:
    try:
        figure.savefig(path, dpi=DPI)
    except (OSError, ValueError) as error:
        raise RunError(f"{path}: cannot be written: {error}") from error
