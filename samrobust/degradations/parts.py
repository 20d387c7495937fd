"""Ambiguous prompts: a box or points on a part of the object, as a wheel of a car.

Stable-SAM trains for robustness to such prompts (docs/sources/stable-sam.md, "Robust training
strategy"). Differs: how a part is chosen.
"""

from dataclasses import dataclass
from typing import ClassVar

import numpy as np

from samrobust.degradations.points import check_count
from samrobust.geometry import flat_to_points, foreground_pixels, mask_to_box
from samrobust.seeding import uniform_indices
from samrobust.types import FOREGROUND, Mask, Prompt, PromptKind


@dataclass(frozen=True)
class PartBox:
    """The exact box of a part of the object.

    The part is the object inside a window. The window has the aspect ratio of the object's box,
    lies inside that box, and contains a uniformly drawn pixel of the object.

    Attributes:
        side: of the window, as a fraction of the object's box, in (0, 1].
    """

    family: ClassVar[str] = "part-box"
    gives: ClassVar[frozenset[PromptKind]] = frozenset({"box"})
    side: float

    def __post_init__(self) -> None:
        _check_side(self.side)

    @property
    def is_random(self) -> bool:
        """Return whether the window is smaller than the object's box."""
        return self.side < 1

    def __call__(self, mask: Mask, rng: np.random.Generator) -> Prompt:
        """Return the box of a part of `mask`."""
        return Prompt(box=mask_to_box(_draw_part(mask, self.side, rng)).astype(np.float32))


@dataclass(frozen=True)
class PartPoints:
    """Points drawn uniformly from a part of the object, which is drawn as for `PartBox`.

    Nested: the first k points of a trial are the same trial's k-point prompt.

    Attributes:
        count: of points, >= 1.
        side: of the window, as a fraction of the object's box, in (0, 1].
    """

    family: ClassVar[str] = "part-points"
    gives: ClassVar[frozenset[PromptKind]] = frozenset({"points"})
    is_random: ClassVar[bool] = True
    count: int
    side: float

    def __post_init__(self) -> None:
        _check_side(self.side)
        check_count("count", self.count, least=1)

    def __call__(self, mask: Mask, rng: np.random.Generator) -> Prompt:
        """Return `count` foreground points in a part of `mask`."""
        pixels = foreground_pixels(_draw_part(mask, self.side, rng))
        chosen = pixels[uniform_indices(rng, len(pixels), self.count)]
        labels = np.full(self.count, FOREGROUND, np.int32)
        return Prompt(points=flat_to_points(chosen, mask.shape[1]), labels=labels)


def _draw_part(mask: Mask, side: float, rng: np.random.Generator) -> Mask:
    """Return (H, W) bool, the mask inside a random window; `side` is as for `PartBox`."""
    pixels = foreground_pixels(mask)
    anchor_yx = np.divmod(pixels[uniform_indices(rng, len(pixels), 1)[0]], mask.shape[1])
    x0, y0, x1, y1 = mask_to_box(mask).astype(int)
    part = np.zeros_like(mask)
    window = []
    for anchor, first, last in zip(anchor_yx, (y0, x0), (y1, x1), strict=True):
        length = max(1, round(side * (last - first + 1)))
        lowest = max(first, anchor - length + 1)
        start = int(rng.integers(lowest, min(anchor, last - length + 1), endpoint=True))
        window.append(slice(start, start + length))
    rows, columns = window
    part[rows, columns] = mask[rows, columns]
    return part


def _check_side(side: float) -> None:
    if not 0 < side <= 1:
        raise ValueError(f"side must be in (0, 1], got {side}")
