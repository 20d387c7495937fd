"""Masks and prompts as the page's gallery draws them: SVG paths, and the view that holds them."""

from collections.abc import Mapping, Sequence
from typing import Any

import cv2
import numpy as np

from samrobust.types import Mask

MARGIN = 0.25
"""Around what a panel shows, in its longer side."""
PANEL_PIXELS = 240
"""Width at which outlines are drawn: finer detail is left out."""
Row = Mapping[Any, Any]
"""A stored mask with its prompt."""


def prompt_marks(
    row: Row,
) -> tuple[tuple[float, ...], tuple[tuple[float, float, int], ...]]:
    """Return the box as x, y, width, height, pixels whole, and the points, pixel centres."""
    box = np.asarray(row["box"], np.float64)
    points = np.asarray(row["points"], np.float64).reshape(-1, 2) + 0.5
    labels = np.asarray(row["labels"], np.int64)
    marks = tuple((float(x), float(y), int(k)) for (x, y), k in zip(points, labels, strict=True))
    if not len(box):
        return (), marks
    x0, y0, x1, y1 = (round(float(value), 1) for value in box)
    return (x0, y0, round(x1 - x0 + 1, 1), round(y1 - y0 + 1, 1)), marks


def view_of(
    masks: Sequence[Mask], prompts: Sequence[Row], size_hw: tuple[int, int]
) -> tuple[float, ...]:
    """Return x, y, width and height of a square about masks and prompts, inside the image."""
    corners: list[tuple[float, float]] = []
    for mask in masks:
        y, x = np.nonzero(mask)
        if len(x):
            corners += [(float(x.min()), float(y.min())), (x.max() + 1.0, y.max() + 1.0)]
    for row in prompts:
        box, points = prompt_marks(row)
        corners += [(box[0], box[1]), (box[0] + box[2], box[1] + box[3])] if box else []
        corners += [(x, y) for x, y, _ in points]
    low, high = np.min(corners, axis=0), np.max(corners, axis=0)
    side = float((high - low).max()) * (1 + 2 * MARGIN) + 4
    centre = (low + high) / 2
    limits = np.array(size_hw[::-1], np.float64)
    extent = np.minimum(side, limits)
    start = np.clip(centre - extent / 2, 0, limits - extent)
    return tuple(round(float(value), 1) for value in (*start, *extent))


def outline_of(mask: Mask, width: float) -> str:
    """Return the SVG path of a mask's contours, for a view of `width` pixels."""
    contours, _ = cv2.findContours(mask.astype(np.uint8), cv2.RETR_CCOMP, cv2.CHAIN_APPROX_NONE)
    tolerance = 0.5 * width / PANEL_PIXELS
    parts = []
    for contour in contours:
        points = cv2.approxPolyDP(contour, tolerance, closed=True)[:, 0] + 0.5
        if len(points) == 1:  # a dot, drawn by its round line ends
            points = np.concatenate([points, points])
        text = " ".join(f"{x:g} {y:g}" for x, y in points)
        parts.append(f"M{text}Z")
    return "".join(parts)
