"""Clicks that correct an answer, as simulated users of interactive segmentation place them."""

import math
from collections.abc import Sequence
from dataclasses import dataclass
from typing import ClassVar

import cv2
import numpy as np
import numpy.typing as npt

from samrobust.geometry import flat_to_points, mask_to_box
from samrobust.types import BACKGROUND, FOREGROUND, ClickPolicy, Floats, Mask, Prompt, PromptKind

N_GROUPS = 10
MAX_GAMMA = 100.0
"""Of the exponent: larger ones overflow, and are `deepest` anyway."""


@dataclass(frozen=True)
class Click:
    """A click into the larger of the two error regions: of missing, or of surplus, pixels.

    The depth of a pixel is its Euclidean distance to the nearest pixel outside of its region; the
    image border counts as outside. The larger region has the deeper deepest pixel; in a tie it is
    that of the surplus pixels (RITM, docs/sources/peers.md 1.3). Pixels that were clicked before
    are excluded. As a degradation it is the first click, where all of the object is missing.

    - "deepest": the deepest pixel; of several, the first in row-major order.
    - "sampled": a random pixel of the region, with probability in proportion to depth ** gamma.
    - "groups": likewise, but only from a tenth of that probability: with all pixels in order of
      their probability, group 1 has the least likely ones and group 10 the likeliest (RClicks,
      docs/sources/peers.md 1.2).

    Differs: RClicks' probabilities are those of a learned model of people. A pixel at which two
    groups meet may be drawn in both.

    Attributes:
        policy: "deepest", "sampled" or "groups".
        gamma: exponent of the depth, >= 0; not for "deepest".
        group: from 1 to 10 for "groups", else 0.
    """

    family: ClassVar[str] = "click"
    gives: ClassVar[frozenset[PromptKind]] = frozenset({"points"})
    policy: ClickPolicy = "deepest"
    gamma: float = 1.0
    group: int = 0

    def __post_init__(self) -> None:
        if not (math.isfinite(self.gamma) and 0 <= self.gamma <= MAX_GAMMA):
            raise ValueError(f"gamma must be a number from 0 to {MAX_GAMMA:g}, got {self.gamma}")
        if self.policy == "deepest" and self.gamma != 1:
            raise ValueError(f"policy 'deepest' has no gamma, got {self.gamma}")
        if self.policy == "groups" and not 1 <= self.group <= N_GROUPS:
            raise ValueError(
                f"policy 'groups' needs a group from 1 to {N_GROUPS}, got {self.group}"
            )
        if self.policy != "groups" and self.group:
            raise ValueError(f"policy '{self.policy}' has no group, got {self.group}")

    @property
    def is_random(self) -> bool:
        """Return whether two trials can differ."""
        return self.policy != "deepest"

    def __call__(self, mask: Mask, rng: np.random.Generator) -> Prompt:
        """Return the first click."""
        place = self._place(_Depth(mask, ()), rng)
        return Prompt(
            points=flat_to_points([place], mask.shape[1]), labels=np.array([FOREGROUND], np.int32)
        )

    def correct(
        self,
        target: Mask,
        answer: Mask,
        clicked: Sequence[int] | npt.NDArray[np.int64],
        rng: np.random.Generator,
    ) -> tuple[int, int] | None:
        """Return the flat index (y * W + x) and label of the next click.

        None where there is nothing to correct: the answer is the target, or all pixels in which it
        differs were clicked before. Differs: RITM then clicks the first pixel of the image.

        Args:
            target: (H, W) bool.
            answer: (H, W) bool.
            clicked: flat indices of the clicks so far.
            rng: the source of randomness, not used by "deepest".
        """
        missing = _Depth(target & ~answer, clicked)
        surplus = _Depth(answer & ~target, clicked)
        depth, label = (
            (missing, FOREGROUND) if missing.most > surplus.most else (surplus, BACKGROUND)
        )
        return (self._place(depth, rng), label) if depth.most > 0 else None

    def _place(self, depth: "_Depth", rng: np.random.Generator) -> int:
        if self.policy == "deepest":
            return depth.flat(int(depth.window.argmax()))
        weights = np.where(depth.window > 0, depth.window / depth.most, 0.0).ravel()
        weights[weights > 0] **= self.gamma
        share, places = rng.random(), np.arange(weights.size)
        if self.policy == "groups":
            share = (self.group - 1 + share) / N_GROUPS
            places = np.argsort(weights, kind="stable")
        mass = np.cumsum(weights[places])
        chosen = int(np.searchsorted(mass, share * mass[-1], side="right"))
        return depth.flat(int(places[chosen]))


class _Depth:
    """The depth of each pixel of a region, in the window around it.

    Attributes:
        window: (h, w), 0 outside of the region and where a click was.
        most: the largest depth, 0 for a region without a pixel that can be clicked.
    """

    def __init__(self, region: Mask, clicked: Sequence[int] | npt.NDArray[np.int64]) -> None:
        self._width = int(region.shape[1])
        self._corner_yx: tuple[int, int] = (0, 0)
        self.window: Floats = np.zeros((1, 1))
        if region.any():
            x0, y0, x1, y1 = mask_to_box(region).astype(int).tolist()
            framed = np.pad(region[y0 : y1 + 1, x0 : x1 + 1].astype(np.uint8), 1)
            self._corner_yx = (y0, x0)
            depth = cv2.distanceTransform(framed, cv2.DIST_L2, cv2.DIST_MASK_PRECISE)
            self.window = depth[1:-1, 1:-1].astype(np.float64)
            y, x = np.divmod(np.asarray(clicked, np.int64), self._width)
            inside = (y >= y0) & (y <= y1) & (x >= x0) & (x <= x1)
            self.window[y[inside] - y0, x[inside] - x0] = 0
        self.most = float(self.window.max())

    def flat(self, place: int) -> int:
        """Return the flat index in the image of one in the window."""
        y, x = divmod(place, int(self.window.shape[1]))
        return (y + self._corner_yx[0]) * self._width + x + self._corner_yx[1]
