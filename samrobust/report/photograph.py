"""The picture of one photograph, one box, its degradations and the masks."""

from collections.abc import Sequence
from pathlib import Path

import matplotlib as mpl
import numpy as np
from matplotlib.axes import Axes
from matplotlib.colors import to_rgb
from matplotlib.figure import Figure

from samrobust.evaluation.single_image import Answers
from samrobust.report.plots import STYLE, save_figure
from samrobust.types import Floats, Image

MASK, BOX = "#D55E00", "#FFFFFF"
PANEL_INCHES = 1.7
MARGIN = 0.2
"""Around all boxes, in the longer side of what they cover."""
STRONGEST = 0.65
"""Opacity of a pixel that is in the masks of all trials."""


def draw_answers(image: Image, box: Floats, found: Sequence[Answers], path: Path) -> None:
    """Draw a row a segmenter and a column a condition.

    A pixel is the more orange the more trials have it in their mask. White are the prompts.

    Args:
        image: (H, W, 3) uint8.
        box: (4,) xyxy, the box that was degraded.
        found: of all segmenters and conditions, at least one.
        path: of the picture; its ending says of what kind.

    Raises:
        RunError: it cannot be written.
    """
    segmenters = list(dict.fromkeys(each.segmenter for each in found))
    conditions = list(dict.fromkeys(each.condition for each in found))
    x0, y0, x1, y1 = _window(image, box, found)
    aspect = (y1 - y0) / (x1 - x0)
    size = (
        PANEL_INCHES * len(conditions) + 0.25,
        (PANEL_INCHES * min(max(aspect, 0.4), 2.0) + 0.3) * len(segmenters) + 0.35,
    )
    with mpl.rc_context(STYLE):
        figure = Figure(figsize=size, layout="constrained")
        grid = figure.subplots(len(segmenters), len(conditions), squeeze=False)
        for each in found:
            row, column = segmenters.index(each.segmenter), conditions.index(each.condition)
            axes = grid[row, column]
            _draw(axes, image, each)
            axes.set(xlim=(x0 - 0.5, x1 + 0.5), ylim=(y1 + 0.5, y0 - 0.5))
            axes.set_title(_title(each, with_condition=row == 0), fontsize=7)
            if column == 0:
                axes.set_ylabel(each.segmenter, fontsize=8)
        text = "white: prompts; orange: mask, stronger where more trials agree"
        figure.supxlabel(text, fontsize=7, color="#444444")
        save_figure(figure, path)


def _draw(axes: Axes, image: Image, each: Answers) -> None:
    share = each.masks.mean(axis=0)
    overlay = np.empty((*share.shape, 4))
    overlay[..., :3] = to_rgb(MASK)
    overlay[..., 3] = STRONGEST * share
    axes.imshow(image)
    axes.imshow(overlay)
    width = 1.2 if len(each.boxes) == 1 else 0.6
    for x0, y0, x1, y1 in each.boxes:
        x, y = [x0, x1, x1, x0, x0], [y0, y0, y1, y1, y0]
        axes.plot(x, y, color="black", linewidth=width + 0.8, alpha=0.4)
        axes.plot(x, y, color=BOX, linewidth=width)
    axes.grid(visible=False)
    axes.set(xticks=[], yticks=[])
    axes.spines[:].set_visible(False)


def _title(each: Answers, *, with_condition: bool) -> str:
    """Return how far the masks agree with that of the exact box."""
    lines = [each.condition] if with_condition else []
    if len(each.agreement) > 1:
        mean, lowest = 100 * each.agreement.mean(), 100 * each.agreement.min()
        lines.append(f"agrees {mean:.0f} %, least {lowest:.0f} %")
    else:
        lines.append(f"agrees {100 * each.agreement[0]:.0f} %")
    return "\n".join(lines)


def _window(image: Image, box: Floats, found: Sequence[Answers]) -> tuple[float, ...]:
    """Return the first and last x and y that are shown: about all boxes, inside the image."""
    boxes = np.concatenate([box[None], *(each.boxes for each in found)])
    low, high = boxes[:, :2].min(axis=0), boxes[:, 2:].max(axis=0)
    margin = MARGIN * (high - low).max() + 4
    last = np.array(image.shape[1::-1]) - 1
    low, high = np.maximum(low - margin, 0), np.minimum(high + margin, last)
    return (*low.tolist(), *high.tolist())
