"""Augment images with crops, colours and pasted objects; draw masks without images."""

import math
from collections.abc import Sequence
from functools import partial

import cv2
import numpy as np
import numpy.typing as npt

from samrobust.training.recipe import Augmentation
from samrobust.types import Floats, Image, Instance, Mask, Sample

ASPECT = 0.25
"""Standard deviation of the logarithm of a crop's aspect ratio, relative to the image's."""
PASTED_SIDES = (0.1, 0.6)
"""Long side of a pasted object, as a fraction of the image's longer side (log-uniform)."""
MIN_VISIBLE = 0.3
"""Minimum fraction of a pasted object's sides that is inside the image."""
ELLIPSE_AXES = (0.06, 1.0)
"""Axes of drawn ellipses, as a fraction of the image's side (log-uniform)."""
Window = tuple[slice, slice]


def random_window(rng: np.random.Generator, size_hw: tuple[int, int], min_side: float) -> Window:
    """Return the rows and columns of a crop, uniform in position and size.

    Args:
        rng: the source of randomness.
        size_hw: of the image.
        min_side: side of the smallest crop, as a fraction of the image's.
    """
    side = rng.uniform(min_side, 1)
    stretch = math.exp(rng.normal(0, ASPECT))
    wanted = (size_hw[0] * side * stretch, size_hw[1] * side / stretch)
    window = []
    for size, extent in zip(size_hw, wanted, strict=True):
        length = min(size, max(1, round(extent)))
        start = int(rng.integers(size - length, endpoint=True))
        window.append(slice(start, start + length))
    return window[0], window[1]


def random_colours(rng: np.random.Generator, image: Image, how: Augmentation) -> Image:
    """Return (H, W, 3) uint8, an image with random contrast, brightness and colour balance."""
    pixels: Floats = image.astype(np.float32)
    if rng.random() < how.grey:
        pixels = np.repeat(pixels.mean(axis=2, keepdims=True), 3, axis=2)
    mean = pixels.mean()
    contrast, brightness = 1 + how.colour * rng.uniform(-1, 1, 2)
    channels = 1 + how.colour / 2 * rng.uniform(-1, 1, 3)
    pixels = ((pixels - mean) * contrast + mean * brightness) * channels
    return np.clip(pixels, 0, 255).astype(np.uint8)


def paste_object(
    rng: np.random.Generator, image: Image, masks: Sequence[Mask], source: Image, mask: Mask
) -> tuple[Image, list[Mask]]:
    """Return an image with an object of another image pasted in front, and its masks.

    The object is pasted at a random position and size (Ghiasi et al. 2021, "Simple copy-paste is a
    strong data augmentation method for instance segmentation").

    Args:
        rng: the source of randomness.
        image: (H, W, 3) uint8; not changed.
        masks: (H, W) bool, of its objects; not changed.
        source: (h, w, 3) uint8, the image of the object.
        mask: (h, w) bool, of the object; not empty.

    Returns:
        The image, and the mask of the pasted object before the visible parts of the other masks,
        which may be empty.
    """
    rows, columns = (np.flatnonzero(mask.any(axis=axis)) for axis in (1, 0))
    window = slice(rows[0], rows[-1] + 1), slice(columns[0], columns[-1] + 1)
    step = -1 if rng.random() < 0.5 else 1
    cut = source[window][:, ::step], mask[window].astype(np.float32)[:, ::step]
    side = max(image.shape[:2]) * math.exp(rng.uniform(*np.log(PASTED_SIDES)))
    scale = side / max(cut[1].shape)
    size_hw = [max(1, round(scale * extent)) for extent in cut[1].shape]
    how = cv2.INTER_AREA if scale < 1 else cv2.INTER_LINEAR
    cutout, alpha = (cv2.resize(array, size_hw[::-1], interpolation=how) for array in cut)
    to, of = zip(*map(partial(_random_overlap, rng), size_hw, image.shape), strict=True)
    pasted = image.astype(np.float32)
    pasted[to] += alpha[of][..., None] * (cutout[of] - pasted[to])
    covered = np.zeros(image.shape[:2], np.bool_)
    covered[to] = alpha[of] > 0.5
    return pasted.astype(np.uint8), [covered, *(other & ~covered for other in masks)]


def shrink_mask(
    mask: Mask, size_hw: tuple[int, int], side: int, *, stride: int
) -> npt.NDArray[np.float32]:
    """Return (side, side) float32, a mask in the grid of a decoder's logits.

    Each position is the fraction of its area that is foreground: logits that are trained on it, not
    on whether it is the larger part, tell after enlarging where between two positions a border is.

    Args:
        mask: (H, W) bool.
        size_hw: of the image in the encoder's input, without padding.
        side: of the grid.
        stride: pixels of the encoder's input per position of the grid.
    """
    resized = cv2.resize(mask.astype(np.float32), size_hw[::-1], interpolation=cv2.INTER_AREA)
    square = np.zeros((stride * side, stride * side), np.float32)
    square[: size_hw[0], : size_hw[1]] = resized
    return np.asarray(cv2.resize(square, (side, side), interpolation=cv2.INTER_AREA), np.float32)


def draw_ellipses(rng: np.random.Generator, count: int, side: int) -> Sample:
    """Return a black square image with axis-aligned ellipses at independent random positions."""
    y, x = np.indices((side, side))
    instances: list[Instance] = []
    while len(instances) < count:
        low, high = map(math.log, ELLIPSE_AXES)
        radii = side / 2 * np.exp(rng.uniform(low, high, 2))
        centre = rng.uniform(0, side, 2)
        mask = np.hypot((x - centre[0]) / radii[0], (y - centre[1]) / radii[1]) < 1
        if mask.sum() >= math.pi:  # skip radii below a pixel
            instances.append(Instance(str(len(instances)), mask))
    return Sample("ellipses", np.zeros((side, side, 3), np.uint8), instances)


def _random_overlap(rng: np.random.Generator, length: int, extent: int) -> Window:
    """Return where an object of some length lies in an extent, and which part of it is visible."""
    visible = min(length, extent, max(1, round(MIN_VISIBLE * length)))
    start = int(rng.integers(visible - length, extent - visible, endpoint=True))
    first, last = max(0, start), min(extent, start + length)
    return slice(first, last), slice(first - start, last - start)
