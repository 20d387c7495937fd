"""Vary photographs: crops, mirror images, colours."""

import math

import cv2
import numpy as np

from samrobust.training.recipe import Augmentation
from samrobust.types import Floats, Image, Mask

ASPECT = 0.25
"""Standard deviation of the logarithm of how much a crop's aspect differs from the image's."""
Window = tuple[slice, slice]


def random_window(rng: np.random.Generator, size_hw: tuple[int, int], least: float) -> Window:
    """Return the rows and columns of a crop, uniform in place and size.

    Args:
        rng: the source of randomness.
        size_hw: of the image.
        least: side of the smallest crop, as a fraction of the image's.
    """
    side = rng.uniform(least, 1)
    stretch = math.exp(rng.normal(0, ASPECT))
    wanted = (size_hw[0] * side * stretch, size_hw[1] * side / stretch)
    window = []
    for size, extent in zip(size_hw, wanted, strict=True):
        length = min(size, max(1, round(extent)))
        start = int(rng.integers(size - length, endpoint=True))
        window.append(slice(start, start + length))
    return window[0], window[1]


def random_colours(rng: np.random.Generator, image: Image, how: Augmentation) -> Image:
    """Return (H, W, 3) uint8: an image in another light."""
    pixels: Floats = image.astype(np.float32)
    if rng.random() < how.grey:
        pixels = np.repeat(pixels.mean(axis=2, keepdims=True), 3, axis=2)
    mean = pixels.mean()
    contrast, brightness = 1 + how.colour * rng.uniform(-1, 1, 2)
    channels = 1 + how.colour / 2 * rng.uniform(-1, 1, 3)
    pixels = ((pixels - mean) * contrast + mean * brightness) * channels
    return np.clip(pixels, 0, 255).astype(np.uint8)


def shrink_mask(mask: Mask, size_hw: tuple[int, int], side: int) -> Mask:
    """Return the mask in the square grid of a decoder's logits.

    A position is foreground where more than half of it is.

    Args:
        mask: (H, W) bool.
        size_hw: of the image in the encoder's input, before it is padded.
        side: of the grid, half of the input's.
    """
    values = mask.astype(np.uint8) * 255
    resized = cv2.resize(values, size_hw[::-1], interpolation=cv2.INTER_AREA)
    square = np.zeros((2 * side, 2 * side), np.uint8)
    square[: size_hw[0], : size_hw[1]] = resized
    shrunk: Mask = cv2.resize(square, (side, side), interpolation=cv2.INTER_AREA) > 127
    return shrunk
