"""Boxes, pixels and distances of one mask, from which degradations draw prompts.

Every trial of every condition needs the same pixels of a mask, so costly results are cached for the
last few read-only masks (`Instance` makes its mask read-only).
"""

import math
from collections.abc import Callable
from functools import lru_cache, wraps
from typing import TypeVar

import numpy as np
import numpy.typing as npt
from scipy import ndimage

from samrobust.types import Floats, Mask

R = TypeVar("R")
Pixels = npt.NDArray[np.int64]
CACHED_MASKS = 2
SMALL_AREA = 32**2
"""Pixels of the original image; COCO calls objects with fewer pixels small."""


def mask_to_box(mask: Mask) -> Floats:
    """Return the (4,) float64 xyxy box of a mask: its first and last column and row, inclusive.

    Args:
        mask: (H, W) bool, not empty.
    """
    x = np.flatnonzero(mask.any(axis=0))
    y = np.flatnonzero(mask.any(axis=1))
    return np.array([x[0], y[0], x[-1], y[-1]], np.float64)


def clip_box(box: Floats, size_hw: tuple[int, int], *, least_wh: Floats) -> npt.NDArray[np.float32]:
    """Return a box clipped to the image, not inverted and of a minimum size.

    Args:
        box: (4,) xyxy in pixels; x1 < x0 stands for a width of 0 about the centre.
        size_hw: of the image.
        least_wh: (2,) minimum x1 - x0 and y1 - y0 in pixels; a box that is smaller after clipping
            grows about its centre and is moved back inside the image.

    Returns:
        (4,) float32 xyxy with 0 <= x0 <= x1 <= W - 1 and 0 <= y0 <= y1 <= H - 1.
    """
    last = np.array(size_hw[::-1], np.float64) - 1
    low = np.clip(box[:2], 0, last)
    high = np.clip(box[2:], 0, last)
    least = np.minimum(least_wh, last)
    short = high - low < least
    start = np.clip((low + high - least) / 2, 0, last - least)
    low, high = np.where(short, start, low), np.where(short, start + least, high)
    return np.concatenate([low, high]).astype(np.float32)


def box_sides(box: Floats) -> Floats:
    """Return (2,) the width x1 - x0 and the height y1 - y0 in pixels, each at least 1.

    As sam-hq `train/utils/misc.py:box_noise` (docs/sources/hq-sam.md 2.1), whose sides are
    differences of inclusive indices. Differs: at least one pixel, so that the boxes of one-pixel
    objects are degraded too.
    """
    return np.maximum(box[2:] - box[:2], 1)


def box_iou(box: Floats, other: Floats) -> float:
    """Return the intersection over union of two boxes (4,) xyxy with inclusive last pixels."""
    sides = np.minimum(box[2:], other[2:]) - np.maximum(box[:2], other[:2]) + 1
    intersection = float(np.prod(np.maximum(sides, 0)))
    areas = sum(float(np.prod(xyxy[2:] - xyxy[:2] + 1)) for xyxy in (box, other))
    return intersection / (areas - intersection)


def foreground_pixels(mask: Mask) -> Pixels:
    """Return the flat indices (y * W + x) of a mask's pixels, ascending."""
    return _foreground(mask)


def border_pixels(mask: Mask, width: float) -> Pixels:
    """Return the flat indices of the mask's pixels at most `width` pixels from its outside.

    The distance of a pixel is measured to the centre of the nearest pixel outside the mask: a
    contour pixel has distance 1. The image border counts as outside.
    """
    return _border(mask, width)


def ring_pixels(mask: Mask, width: float) -> Pixels:
    """Return the flat indices of the pixels outside a mask, at most `width` pixels from it."""
    return _ring(mask, width)


def deepest_pixel(mask: Mask) -> int:
    """Return the flat index of the pixel farthest from the outside; of several, the first.

    The distance is Euclidean; the image border counts as outside.
    """
    return _deepest(mask)


def depths(mask: Mask) -> tuple[Floats, tuple[int, int]]:
    """Return the distance of each pixel of the mask's box to the outside, and the box's (y, x).

    The distance is Euclidean, 0 outside of the mask; the image border counts as outside. All pixels
    around the box are outside, so padding it by one pixel suffices.
    """
    x0, y0, x1, y1 = mask_to_box(mask).astype(int)
    framed = np.pad(mask[y0 : y1 + 1, x0 : x1 + 1], 1)
    distance: Floats = ndimage.distance_transform_edt(framed)
    return distance[1:-1, 1:-1], (int(y0), int(x0))


def perimeter(mask: Mask) -> float:
    """Return the length of a mask's contours in pixels, with those of its holes.

    Crofton's formula: pi / 2 times the mean, over the four directions of a pixel grid, of how often
    parallel lines cross the contour times their distance. Within 6 % for any orientation of an edge
    (as scikit-image's `perimeter_crofton` with 4 directions). The image border counts as outside.

    Args:
        mask: (H, W) bool.
    """
    framed = np.pad(mask, 1)
    across = np.count_nonzero(framed[:, 1:] != framed[:, :-1])
    down = np.count_nonzero(framed[1:] != framed[:-1])
    falling = np.count_nonzero(framed[1:, 1:] != framed[:-1, :-1])
    rising = np.count_nonzero(framed[1:, :-1] != framed[:-1, 1:])
    return math.pi / 2 * (across + down + (falling + rising) / math.sqrt(2)) / 4


def flat_to_points(indices: npt.ArrayLike, width: int) -> npt.NDArray[np.float32]:
    """Return (K, 2) float32 xy of flat indices into an image `width` pixels wide."""
    y, x = np.divmod(np.asarray(indices, np.int64), width)
    return np.stack([x, y], axis=-1).astype(np.float32)


class _MaskKey:
    """A cache key for a mask, compared by identity."""

    def __init__(self, mask: Mask) -> None:
        self.mask = mask

    def __hash__(self) -> int:
        return id(self.mask)

    def __eq__(self, other: object) -> bool:
        return isinstance(other, _MaskKey) and self.mask is other.mask


def _cached(fn: Callable[..., R]) -> Callable[..., R]:
    """Cache the last few results of a function of a mask, for read-only masks."""

    @lru_cache(maxsize=CACHED_MASKS)
    def from_cache(key: _MaskKey, *width: float) -> R:
        return fn(key.mask, *width)

    @wraps(fn)
    def wrapper(mask: Mask, *width: float) -> R:
        return fn(mask, *width) if mask.flags.writeable else from_cache(_MaskKey(mask), *width)

    return wrapper


@_cached
def _foreground(mask: Mask) -> Pixels:
    return np.flatnonzero(mask)


@_cached
def _border(mask: Mask, width: float) -> Pixels:
    depth, offset_yx = depths(mask)
    return _to_flat((depth > 0) & (depth <= width), offset_yx, mask.shape[1])


@_cached
def _deepest(mask: Mask) -> int:
    depth, (y0, x0) = depths(mask)
    y, x = divmod(int(depth.argmax()), int(depth.shape[1]))
    return (y + y0) * int(mask.shape[1]) + x + x0


@_cached
def _ring(mask: Mask, width: float) -> Pixels:
    x0, y0, x1, y1 = mask_to_box(mask).astype(int)
    margin = math.ceil(width)
    top, left = max(y0 - margin, 0), max(x0 - margin, 0)
    outside = ~mask[top : y1 + margin + 1, left : x1 + margin + 1]
    distance: Floats = ndimage.distance_transform_edt(outside)
    return _to_flat(outside & (distance <= width), (top, left), mask.shape[1])


def _to_flat(window: Mask, offset_yx: tuple[int, int], width: int) -> Pixels:
    y, x = np.nonzero(window)
    return (y + offset_yx[0]) * width + x + offset_yx[1]
