"""Boxes as far from the tight one as people draw them, and how human a box's error is.

The boxes that 50 people drew of 500 objects (BREPS, AAAI 2026) have a complete-IoU loss to the
tight box that is Gamma distributed: the fit of its released code (docs/sources/peers.md 5.2).
"""

import math
from collections.abc import Sequence
from dataclasses import dataclass
from functools import cache
from typing import ClassVar

import numpy as np
import numpy.typing as npt
from scipy import special

from samrobust.geometry import clip_box, mask_to_box
from samrobust.seeding import keyed_generator
from samrobust.types import Degradation, Floats, Mask, Prompt, PromptKind, Recording

SHAPE, SCALE = 1.7891956, 0.1210484
"""Of the Gamma distribution of losses, over all ten data sets and both devices of BREPS."""
MOST = 99.0
"""Percentile at which the distribution is cut off; a loss of 0.755."""
LEAST_SIDE = 0.05
"""Of the tight box's, what a side keeps at least."""
_FARTHEST = 8.0
"""Step in sides at which every direction has a higher loss than any of people's."""
_HALVINGS = 26
"""Of the farthest step, by which the loss is met to 1e-6."""
_DIRECTIONS = 64
"""Drawn until one can be gone far enough inside the image."""
_OBJECTS = 299
"""Made-up objects over which the percentile of a condition is the median."""
_ASPECT = 0.5
"""Standard deviation of the logarithm of their aspect ratio (docs/sources/robustness.md, C.3)."""
_ENDS = np.array([0, 0, 1, 1])
"""From the last pixels of a box to the end of their area."""


@dataclass(frozen=True)
class HumanBox:
    """A box that is as far from the tight one as people's boxes are, in a random direction.

    Its complete-IoU loss (Zheng et al. 2020) is drawn from people's distribution, cut off at its
    99th percentile, or is that of a percentile. The sides move outwards by l u w and l u h, with u
    uniform on the unit sphere of four dimensions, until the loss is met; what leaves the image is
    clipped first. Directions in which the loss of the 99th percentile cannot be met are drawn
    again; where none of 64 meets it, as for an object that fills a tiny image, the one that goes
    farthest is taken. Differs from the sampler of docs/sources/peers.md 5.2, which assumes that
    boxes are rather too large: no direction is preferred.

    Attributes:
        percentile: of the distribution, above 0 and at most 99; None to draw from it.
        shape: of the Gamma distribution.
        scale: of the Gamma distribution.
    """

    family: ClassVar[str] = "human-box"
    gives: ClassVar[frozenset[PromptKind]] = frozenset({"box"})
    is_random: ClassVar[bool] = True
    percentile: float | None = None
    shape: float = SHAPE
    scale: float = SCALE

    def __post_init__(self) -> None:
        if self.percentile is not None and not 0 < self.percentile <= MOST:
            raise ValueError(
                f"percentile must be above 0 and at most {MOST:g}, got {self.percentile}"
            )
        if not (self.shape > 0 and self.scale > 0 and self._loss(MOST) <= 1):
            raise ValueError(
                "shape and scale must be above 0, and the loss at the 99th percentile at most 1, "
                f"got {self.shape} and {self.scale}"
            )

    @property
    def median_loss(self) -> float:
        """Return the loss of the median box."""
        return self._loss(MOST / 2 if self.percentile is None else self.percentile)

    def __call__(self, mask: Mask, rng: np.random.Generator) -> Prompt:
        """Return the box; draws one uniform number, and four normal ones a direction."""
        drawn = MOST * rng.random()
        loss = self._loss(drawn if self.percentile is None else self.percentile)
        tight, size_hw = mask_to_box(mask), (mask.shape[0], mask.shape[1])
        ray = _Ray(tight, size_hw, _direction(rng))
        for _ in range(_DIRECTIONS - 1):
            if ray.reach >= self._loss(MOST):
                break
            ray = max(ray, _Ray(tight, size_hw, _direction(rng)), key=lambda ray: ray.reach)
        box = np.array(ray.box_of(loss)) - _ENDS
        return Prompt(box=clip_box(box, size_hw, least_wh=np.minimum(tight[2:] - tight[:2], 1)))

    def _loss(self, percentile: float) -> float:
        return self.scale * float(special.gammaincinv(self.shape, percentile / 100))


def _direction(rng: np.random.Generator) -> Floats:
    """Return (4,) a uniform direction: of the left, upper, right and lower side, outwards."""
    u = rng.standard_normal(4)
    unit: Floats = u / np.linalg.norm(u)
    return unit


class _Ray:
    """Boxes that leave a tight one in one direction, clipped to the image.

    Args:
        tight: (4,) xyxy, inclusive last pixels.
        size_hw: of the image.
        u: (4,) outward steps in sides of the tight box.
    """

    def __init__(self, tight: Floats, size_hw: tuple[int, int], u: Floats) -> None:
        area = tight + _ENDS
        sides = area[2:] - area[:2]
        moves = u * np.array([-1, -1, 1, 1]) * np.tile(sides, 2)
        last = np.array(size_hw[::-1], np.float64)
        least = np.maximum(LEAST_SIDE * sides, 1 + np.minimum(sides - 1, 1))
        # what must not shrink below: a side, and what the image shows of it on either hand
        room = np.concatenate([sides, last - area[:2], area[2:]]) - np.tile(least, 3)
        grows = np.concatenate([moves[2:] - moves[:2], -moves[:2], moves[2:]])
        ends = np.where(grows < 0, room / np.maximum(-grows, 1e-12), _FARTHEST)
        self._farthest = float(np.clip(ends, 0, _FARTHEST).min())
        self._tight, self._moves, self._last = area.tolist(), moves.tolist(), (*last, *last)
        self.reach = self._loss(self._farthest)

    def box_of(self, loss: float) -> list[float]:
        """Return the box, as the corners of its area, with a loss, or the farthest one."""
        low, high = 0.0, self._farthest
        for _ in range(_HALVINGS if loss < self.reach else 0):
            middle = (low + high) / 2
            low, high = (middle, high) if self._loss(middle) < loss else (low, middle)
        return self._box(high)

    def _box(self, step: float) -> list[float]:
        return [
            min(max(start + step * move, 0.0), last)
            for start, move, last in zip(self._tight, self._moves, self._last, strict=True)
        ]

    def _loss(self, step: float) -> float:
        return ciou_loss(self._box(step), self._tight)


def ciou_loss(box: Sequence[float], other: Sequence[float]) -> float:
    """Return in [0, 3): 1 - IoU, plus the distance of centres, plus that of aspect ratios.

    Complete IoU (Zheng et al. 2020, "Distance-IoU loss", eq. 7 to 11).

    Args:
        box: corners x0, y0, x1, y1 of an area.
        other: likewise, not empty.
    """
    (x0, y0, x1, y1), (u0, v0, u1, v1) = box, other
    both = max(min(x1, u1) - max(x0, u0), 0) * max(min(y1, v1) - max(y0, v0), 0)
    outside = 1 - both / ((x1 - x0) * (y1 - y0) + (u1 - u0) * (v1 - v0) - both)
    apart = ((x0 + x1 - u0 - u1) / 2) ** 2 + ((y0 + y1 - v0 - v1) / 2) ** 2
    hull = (max(x1, u1) - min(x0, u0)) ** 2 + (max(y1, v1) - min(y0, v0)) ** 2
    angle = math.atan2(x1 - x0, y1 - y0) - math.atan2(u1 - u0, v1 - v0)
    aspect = (2 * angle / math.pi) ** 2
    return outside + apart / hull + (aspect**2 / (outside + aspect) if aspect else 0.0)


def box_loss(box: npt.ArrayLike, tight: npt.ArrayLike) -> float:
    """Return the complete-IoU loss of a box to another, xyxy with inclusive last pixels."""
    areas = [np.asarray(xyxy, np.float64) + _ENDS for xyxy in (box, tight)]
    return ciou_loss(areas[0].tolist(), areas[1].tolist())


def human_percentile(loss: float) -> float:
    """Return the share, in percent, of people's boxes that are nearer to the tight one.

    Args:
        loss: complete-IoU loss of a box to the tight one, >= 0.
    """
    return 100 * float(special.gammainc(SHAPE, loss / SCALE))


def median_percentile(degradation: Degradation | Recording) -> float | None:
    """Return the human percentile of the median box of a degradation; None where it draws none.

    The median is over 299 made-up objects, rectangles far from the image's border, of which each is
    given one box: the same for everybody.

    Raises:
        DatasetError: a degradation of a plug-in cannot draw from a rectangle.
    """
    if isinstance(degradation, Recording):
        return None
    key = type(degradation), repr(degradation)
    if key not in _PERCENTILES:
        _PERCENTILES[key] = _percentile(degradation) if degradation.gives == {"box"} else None
    return _PERCENTILES[key]


_PERCENTILES: dict[tuple[type, str], float | None] = {}
"""What is known already: a protocol, its table and its figures ask again."""


def _percentile(degradation: Degradation) -> float:
    if isinstance(degradation, HumanBox):
        return human_percentile(degradation.median_loss)
    losses = [
        box_loss(prompt.box, mask_to_box(mask))
        for number, mask in enumerate(_rectangles())
        if (prompt := degradation(mask, keyed_generator("human-percentile", number))).box
        is not None
    ]
    return human_percentile(float(np.median(losses)))


@cache
def _rectangles() -> tuple[Mask, ...]:
    """Return the masks of the made-up objects, of 200^2 pixels, with room for boxes around them.

    Their aspect ratios are evenly spaced quantiles of a log-normal distribution.
    """
    masks = []
    for quantile in (np.arange(_OBJECTS) + 0.5) / _OBJECTS:
        ratio = math.exp(_ASPECT * special.ndtri(quantile))
        sides = round(200 * math.sqrt(ratio)), round(200 / math.sqrt(ratio))
        mask = np.zeros([2 * side for side in sides], np.bool_)
        mask[sides[0] // 2 :, sides[1] // 2 :][: sides[0], : sides[1]] = True
        mask.setflags(write=False)
        masks.append(mask)
    return tuple(masks)
