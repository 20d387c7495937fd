"""Box prompts: exact, noisy, shifted and scaled."""

import math
from dataclasses import dataclass
from typing import ClassVar

import numpy as np

from samrobust.geometry import box_sides, clip_box, mask_to_box
from samrobust.types import Floats, Mask, Prompt, PromptKind


@dataclass(frozen=True)
class ExactBox:
    """The first and last column and row of the mask, inclusive."""

    family: ClassVar[str] = "exact-box"
    gives: ClassVar[frozenset[PromptKind]] = frozenset({"box"})
    is_random: ClassVar[bool] = False

    def __call__(self, mask: Mask, rng: np.random.Generator) -> Prompt:  # noqa: ARG002
        """Return the box of `mask`; `rng` is not used."""
        return Prompt(box=mask_to_box(mask).astype(np.float32))


@dataclass(frozen=True)
class BoxNoise:
    """The exact box with noise on its centre and sides, independent per axis.

    The centre moves by U(-1, 1) * shift * side / 2, each side changes by U(-1, 1) * scale * side.
    Source: DN-DETR's box noise as in sam-hq `train/utils/misc.py:box_noise`, which the published
    tables use (docs/sources/hq-sam.md 2.1). Differs: clipped to the image, not to 1024; at least
    one pixel wide if the exact box is; shift and scale are separate parameters.

    Attributes:
        shift: maximum shift of the centre, in half sides, >= 0.
        scale: maximum change of the sides, as a fraction, >= 0.
    """

    family: ClassVar[str] = "box-noise"
    gives: ClassVar[frozenset[PromptKind]] = frozenset({"box"})
    shift: float
    scale: float

    def __post_init__(self) -> None:
        _at_least_zero("shift", self.shift)
        _at_least_zero("scale", self.scale)

    @property
    def is_random(self) -> bool:
        """Return whether there is any noise."""
        return self.shift > 0 or self.scale > 0

    def __call__(self, mask: Mask, rng: np.random.Generator) -> Prompt:
        """Return the noisy box of `mask`; always draws four uniform numbers."""
        noise = rng.random(4) * 2 - 1  # centre x, centre y, width, height
        exact = mask_to_box(mask)
        sides = box_sides(exact)
        centre = (exact[:2] + exact[2:]) / 2 + noise[:2] * self.shift * sides / 2
        extent = np.maximum(exact[2:] - exact[:2] + noise[2:] * self.scale * sides, 0)
        return _clipped(centre, extent, exact, mask)


@dataclass(frozen=True)
class BoxShift:
    """The exact box moved in a random direction, then clipped to the image.

    The step (dx / width, dy / height) has length `amount` and a uniform angle.

    Attributes:
        amount: length of the step in sides of the box, >= 0.
    """

    family: ClassVar[str] = "box-shift"
    gives: ClassVar[frozenset[PromptKind]] = frozenset({"box"})
    amount: float

    def __post_init__(self) -> None:
        _at_least_zero("amount", self.amount)

    @property
    def is_random(self) -> bool:
        """Return whether the box moves."""
        return self.amount > 0

    def __call__(self, mask: Mask, rng: np.random.Generator) -> Prompt:
        """Return the shifted box of `mask`; draws one uniform number, for the angle."""
        angle = 2 * math.pi * rng.random()
        exact = mask_to_box(mask)
        step = self.amount * box_sides(exact) * np.array([math.cos(angle), math.sin(angle)])
        return _clipped((exact[:2] + exact[2:]) / 2 + step, exact[2:] - exact[:2], exact, mask)


@dataclass(frozen=True)
class BoxScale:
    """The exact box scaled about its centre, then clipped to the image.

    Attributes:
        factor: of both sides, > 0; 1 is the exact box.
    """

    family: ClassVar[str] = "box-scale"
    gives: ClassVar[frozenset[PromptKind]] = frozenset({"box"})
    is_random: ClassVar[bool] = False
    factor: float

    def __post_init__(self) -> None:
        if not (math.isfinite(self.factor) and self.factor > 0):
            raise ValueError(f"factor must be a finite number above 0, got {self.factor}")

    def __call__(self, mask: Mask, rng: np.random.Generator) -> Prompt:  # noqa: ARG002
        """Return the scaled box of `mask`; `rng` is not used."""
        exact = mask_to_box(mask)
        extent = exact[2:] - exact[:2] + (self.factor - 1) * box_sides(exact)
        return _clipped((exact[:2] + exact[2:]) / 2, np.maximum(extent, 0), exact, mask)


def _clipped(centre: Floats, extent: Floats, exact: Floats, mask: Mask) -> Prompt:
    """Return the box clipped to the image, at least one pixel wide and high if the exact box is."""
    height, width = mask.shape
    box = np.concatenate([centre - extent / 2, centre + extent / 2])
    least_wh = np.minimum(exact[2:] - exact[:2], 1)
    return Prompt(box=clip_box(box, (height, width), least_wh=least_wh))


def _at_least_zero(name: str, value: float) -> None:
    if not (math.isfinite(value) and value >= 0):
        raise ValueError(f"{name} must be a finite number of at least 0, got {value}")
