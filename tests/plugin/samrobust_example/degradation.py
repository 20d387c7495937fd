from dataclasses import dataclass
from typing import ClassVar

import numpy as np

from samrobust.geometry import clip_box, mask_to_box
from samrobust.types import Mask, Prompt, PromptKind


@dataclass(frozen=True)
class LooserBox:
    """A box that is too large by a random number of pixels on each side."""

    most: float  # pixels; a parameter in TOML, as every field

    family: ClassVar[str] = "looser-box"  # conditions of one family share their noise
    gives: ClassVar[frozenset[PromptKind]] = frozenset({"box"})
    is_random: ClassVar[bool] = True

    def __call__(self, mask: Mask, rng: np.random.Generator) -> Prompt:
        outwards = rng.uniform(0, self.most, 4) * [-1, -1, 1, 1]
        height, width = mask.shape
        box = mask_to_box(mask) + outwards
        return Prompt(box=clip_box(box, (height, width), least_wh=np.zeros(2)))
