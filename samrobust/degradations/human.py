"""Boxes as far from the tight one as people draw them, and how human a box's error is.

The boxes that 50 people drew of 500 objects (BREPS, AAAI 2026) have a complete-IoU loss to the
tight box that is Gamma distributed: the fit of its released code (docs/sources/peers.md 5.2).
"""

import math
from collections.abc import Mapping
from dataclasses import dataclass
from functools import cache
from typing import Any, ClassVar

import numpy as np
import numpy.typing as npt
from scipy import special

from samrobust.degradations import DEGRADATION_ENTRIES
from samrobust.geometry import clip_box, mask_to_box
from samrobust.seeding import keyed_generator
from samrobust.types import Degradation, Floats, Mask, Prompt, PromptKind

SHAPE, SCALE = 1.7891956, 0.1210484
"""Of the Gamma distribution of losses, over all ten data sets and both devices of BREPS."""
MOST = 99.0
"""Percentile at which the distribution is cut off; a loss of 0.755."""
LEAST_SIDE = 0.05
"""Of the tight box's, what a side keeps at least."""
_FARTHEST, _STEPS = 8.0, 26
"""Step in sides at which every direction has a higher loss than any of people's, and halvings of it
by which the loss is met to 1e-6."""
_OBJECTS = 99
"""Made-up objects over which the percentile of a condition is the median."""
_ASPECT = 0.5
"""Standard deviation of the logarithm of their aspect ratio (docs/sources/robustness.md, C.3)."""


@dataclass(frozen=True)
class HumanBox:
    """A box that is as far from the tight one as people's boxes are, in a random direction.

    Its complete-IoU loss (Zheng et al. 2020) is drawn from people's distribution, cut off at its
    99th percentile, or is that of a percentile. The four sides move by l u w and l u h, with u
    uniform on the unit sphere of four dimensions, and l the step at which the loss is met. Then the
    box is clipped to the image, which can only lessen the loss. Differs from BREPS' sampler: no
    direction is preferred (docs/sources/peers.md 5.2 assumes that boxes are rather too large).

    Attributes:
        percentile: of people's losses, above 0 and at most 99; None for the distribution itself.
    """

    family: ClassVar[str] = "human-box"
    gives: ClassVar[frozenset[PromptKind]] = frozenset({"box"})
    is_random: ClassVar[bool] = True
    percentile: float | None = None

    def __post_init__(self) -> None:
        if self.percentile is not None and not 0 < self.percentile <= MOST:
            raise ValueError(
                f"percentile must be above 0 and at most {MOST:g}, got {self.percentile}"
            )

    def __call__(self, mask: Mask, rng: np.random.Generator) -> Prompt:
        """Return the box; always draws one uniform and four normal numbers."""
        drawn = MOST * rng.random()
        percentile = drawn if self.percentile is None else self.percentile
        height, width = mask.shape
        box = human_boxes(mask_to_box(mask), (height, width), np.array([percentile]), rng)[0]
        return Prompt(box=box)


def human_boxes(
    tight: Floats,
    size_hw: tuple[int, int],
    percentiles: Floats,
    rng: np.random.Generator,
) -> npt.NDArray[np.float32]:
    """Return (N, 4) boxes at percentiles of people's losses from a box, in random directions.

    Args:
        tight: (4,) xyxy, inclusive last pixels.
        size_hw: of the image.
        percentiles: (N,), above 0 and at most 99.
        rng: the source of four normal numbers a box.
    """
    losses = human_loss(percentiles)
    u = rng.standard_normal((len(losses), 4))
    u /= np.linalg.norm(u, axis=1, keepdims=True)
    corners = np.concatenate([tight[:2], tight[2:] + 1])  # of the pixels' area
    sides = np.tile(corners[2:] - corners[:2], 2)
    moves = u * np.array([-1, -1, 1, 1]) * sides  # outwards where u > 0
    shrinking = np.minimum(u[:, :2] + u[:, 2:], 0).min(axis=1)
    last = (1 - LEAST_SIDE) / np.maximum(-shrinking, 1e-9)
    low, high = np.zeros(len(losses)), np.minimum(last, _FARTHEST)
    for _ in range(_STEPS):
        middle = (low + high) / 2
        is_short = ciou_loss(corners + middle[:, None] * moves, corners) < losses
        low, high = np.where(is_short, middle, low), np.where(is_short, high, middle)
    found = corners + high[:, None] * moves
    found[:, 2:] -= 1
    least_wh = np.minimum(tight[2:] - tight[:2], 1)
    return np.stack([clip_box(box, size_hw, least_wh=least_wh) for box in found])


def human_percentile(boxes: Floats, tight: Floats) -> Floats:
    """Return (N,) in [0, 100]: the share of people's boxes that are nearer to the tight one.

    Args:
        boxes: (N, 4) xyxy, inclusive last pixels.
        tight: (4,) or (N, 4) likewise.
    """
    ends = np.array([0, 0, 1, 1])
    loss = ciou_loss(np.asarray(boxes, np.float64) + ends, np.asarray(tight, np.float64) + ends)
    percentile: Floats = 100 * special.gammainc(SHAPE, loss / SCALE)
    return percentile


def human_loss(percentile: Floats) -> Floats:
    """Return the complete-IoU losses of percentiles of people's boxes."""
    loss: Floats = SCALE * special.gammaincinv(SHAPE, np.asarray(percentile) / 100)
    return loss


def ciou_loss(boxes: Floats, other: Floats) -> Floats:
    """Return (N,) in [0, 3): 1 - IoU, plus the distance of centres, plus that of aspect ratios.

    Complete IoU (Zheng et al. 2020, "Distance-IoU loss", eq. 7 to 11).

    Args:
        boxes: (N, 4) corners x0, y0, x1, y1 of an area.
        other: (4,) or (N, 4) likewise, not empty.
    """
    (low, high), (other_low, other_high) = (np.split(each, 2, axis=-1) for each in (boxes, other))
    side, others = high - low, other_high - other_low
    both = np.maximum(np.minimum(high, other_high) - np.maximum(low, other_low), 0).prod(axis=-1)
    iou = both / (side.prod(axis=-1) + others.prod(axis=-1) - both)
    hull = np.maximum(high, other_high) - np.minimum(low, other_low)
    apart = (low + high - other_low - other_high) / 2
    distance = (apart**2).sum(axis=-1) / (hull**2).sum(axis=-1)
    angle = np.arctan2(side[..., 0], side[..., 1]) - np.arctan2(others[..., 0], others[..., 1])
    aspect = (2 * angle / math.pi) ** 2
    weight = aspect / np.maximum(1 - iou + aspect, 1e-12)
    loss: Floats = 1 - iou + distance + weight * aspect
    return loss


def percentile_of_condition(degradation: str, parameters: Mapping[str, Any]) -> float | None:
    """Return the human percentile of the median box of a condition; None where it gives no box.

    The median is over 99 made-up objects, rectangles far from the image's border, of which each is
    given one box: the same for everybody.

    Args:
        degradation: as registered; None is returned for those of plug-ins.
        parameters: of it.
    """
    if degradation not in DEGRADATION_ENTRIES:
        return None
    return _median(degradation, tuple(sorted(parameters.items())))


@cache
def _median(name: str, parameters: tuple[tuple[str, Any], ...]) -> float | None:
    degradation: Degradation = DEGRADATION_ENTRIES[name].load()(**dict(parameters))
    if degradation.gives != {"box"}:
        return None
    boxes, tight = [], []
    for number, mask in enumerate(_rectangles()):
        box = degradation(mask, keyed_generator("human-percentile", name, number)).box
        if box is not None:
            boxes.append(box)
            tight.append(mask_to_box(mask))
    return float(np.median(human_percentile(np.array(boxes), np.array(tight))))


@cache
def _rectangles() -> tuple[Mask, ...]:
    """Return the masks of the made-up objects: a third of each side, in the middle."""
    masks = []
    for number in range(_OBJECTS):
        logarithm = _ASPECT * keyed_generator("human-percentile", number).standard_normal()
        width, height = (round(40 * math.exp(sign * logarithm / 2)) for sign in (1, -1))
        mask = np.zeros((3 * height, 3 * width), np.bool_)
        mask[height : 2 * height, width : 2 * width] = True
        masks.append(mask)
    return tuple(masks)
