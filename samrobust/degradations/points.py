"""Point prompts: random, at the centre or near the border, optionally with background points."""

import math
from dataclasses import dataclass
from typing import ClassVar

import numpy as np

from samrobust.errors import DatasetError
from samrobust.geometry import (
    Pixels,
    border_pixels,
    deepest_pixel,
    flat_to_points,
    foreground_pixels,
    ring_pixels,
)
from samrobust.seeding import uniform_indices
from samrobust.types import BACKGROUND, FOREGROUND, Mask, Prompt, PromptKind

RING_WIDTH = 0.1
"""Width of the ring of background points, in square roots of the object's area.

As in the training click sampler of RITM (docs/sources/peers.md 1.3)."""
MIN_RING_WIDTH = 1.0
"""Pixels; a narrower ring around a tiny object would have no pixel."""
MIN_BAND_WIDTH = 2.0
"""Pixels; of the band of border points (docs/sources/peers.md 5.4)."""
MAX_POINTS = 1_000
"""Per prompt and label: a decoder's memory grows with the square of the number of points."""


@dataclass(frozen=True)
class RandomPoints:
    """Points drawn uniformly from the mask, without replacement until all pixels are taken.

    Nested: the first k points of a trial are the same trial's k-point prompt. Source: Stable-SAM
    uses 1, 3 and 10 such points (docs/sources/stable-sam.md).

    Attributes:
        count: foreground points, >= 1.
        background: extra points with label 0 in the ring around the object, >= 0.
    """

    family: ClassVar[str] = "random-points"
    gives: ClassVar[frozenset[PromptKind]] = frozenset({"points"})
    is_random: ClassVar[bool] = True
    count: int
    background: int = 0

    def __post_init__(self) -> None:
        check_count("count", self.count, least=1)
        check_count("background", self.background, least=0)

    def __call__(self, mask: Mask, rng: np.random.Generator) -> Prompt:
        """Return `count` foreground points, then `background` background points."""
        return _points(mask, foreground_pixels(mask), self.count, self.background, rng)


@dataclass(frozen=True)
class BorderPoints:
    """Points drawn uniformly from a band of the mask along its contour.

    The band has the pixels within max(2 px, band * sqrt(area)) of the nearest pixel outside
    (docs/sources/peers.md 5.4); the image border counts as outside. Nested: the first k points of a
    trial are the same trial's k-point prompt.

    Attributes:
        count: foreground points, >= 1.
        band: width of the band in square roots of the object's area, > 0.
        background: extra points with label 0 in the ring around the object, >= 0.
    """

    family: ClassVar[str] = "border-points"
    gives: ClassVar[frozenset[PromptKind]] = frozenset({"points"})
    is_random: ClassVar[bool] = True
    count: int
    band: float = 0.05
    background: int = 0

    def __post_init__(self) -> None:
        check_count("count", self.count, least=1)
        check_count("background", self.background, least=0)
        if not (math.isfinite(self.band) and self.band > 0):
            raise ValueError(f"band must be a finite number above 0, got {self.band}")

    def __call__(self, mask: Mask, rng: np.random.Generator) -> Prompt:
        """Return `count` foreground points, then `background` background points."""
        width = max(MIN_BAND_WIDTH, self.band * math.sqrt(np.count_nonzero(mask)))
        return _points(mask, border_pixels(mask, width), self.count, self.background, rng)


@dataclass(frozen=True)
class CentrePoint:
    """The mask's pixel farthest from the outside; of several, the first in row-major order.

    The distance is Euclidean; the image border counts as outside.

    Attributes:
        background: extra points with label 0 in the ring around the object, >= 0.
    """

    family: ClassVar[str] = "centre-point"
    gives: ClassVar[frozenset[PromptKind]] = frozenset({"points"})
    background: int = 0

    def __post_init__(self) -> None:
        check_count("background", self.background, least=0)

    @property
    def is_random(self) -> bool:
        """Return whether there are background points."""
        return self.background > 0

    def __call__(self, mask: Mask, rng: np.random.Generator) -> Prompt:
        """Return the centre point, then `background` background points."""
        deepest = np.array([deepest_pixel(mask)], np.int64)
        return _points(mask, deepest, 1, self.background, rng)


def _points(
    mask: Mask, candidates: Pixels, count: int, background: int, rng: np.random.Generator
) -> Prompt:
    """Draw foreground points from the candidates and background points from the ring.

    Each has its own random stream: the foreground points do not depend on the number of background
    points, nor these on the number of foreground points.
    """
    foreground_rng, background_rng = rng.spawn(2)
    chosen = candidates[uniform_indices(foreground_rng, len(candidates), count)]
    if background:
        ring = _ring(mask)
        drawn = ring[uniform_indices(background_rng, len(ring), background)]
        chosen = np.concatenate([chosen, drawn])
    labels = np.repeat(np.array([FOREGROUND, BACKGROUND], np.int32), [count, background])
    return Prompt(points=flat_to_points(chosen, mask.shape[1]), labels=labels)


def _ring(mask: Mask) -> Pixels:
    width = max(MIN_RING_WIDTH, RING_WIDTH * math.sqrt(np.count_nonzero(mask)))
    ring = ring_pixels(mask, width)
    if len(ring) == 0:
        raise DatasetError("the object fills the image: no pixel is left for background points")
    return ring


def check_count(name: str, value: int, *, least: int) -> None:
    """Raise a ValueError if a number of points is below `least` or above `MAX_POINTS`."""
    if not least <= value <= MAX_POINTS:
        raise ValueError(
            f"{name} must be a whole number of at least {least} and at most {MAX_POINTS}, "
            f"got {value}"
        )
