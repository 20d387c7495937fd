"""The two ways in which an image reaches a SAM and its logits come back as masks."""

from dataclasses import dataclass
from functools import lru_cache

import numpy as np
import numpy.typing as npt
import torch
from PIL import Image as PillowImage
from segment_anything.utils.transforms import ResizeLongestSide
from torch import Tensor
from torch.nn import functional

from samrobust.types import Floats, Frame, Image

MASK_THRESHOLD = 0.0
"""Of logits, in both sources: what is above belongs to the mask."""
PIXELS_AT_ONCE = 2**26
"""Logits that a GPU enlarges at once: 256 MiB, so that masks of huge photographs fit in memory."""
PIXELS_WIDE = 256
"""Strips of a mask that a CPU enlarges one by one: few positions reach each, and some are empty."""


class InputFrame:
    """How images become the square input of an encoder, and logits become masks.

    "longest-side" keeps the aspect and pads at the bottom and right, as segment_anything's
    `SamPredictor`. "squash" does not keep it, as sam-hq's published evaluation
    (docs/sources/hq-sam.md 1.3 and 1.4).

    Args:
        name: of the frame.
        side: of the input, in pixels (1024).
    """

    def __init__(self, name: Frame, side: int) -> None:
        self.name = name
        self.side = side

    def to_input(self, image: Image) -> Tensor:
        """Return the (3, h, w) uint8 image that is then normalised and padded to the square.

        "longest-side" resizes with PIL's antialiased bilinear filter. Differs: a panorama of which
        no row would be left keeps one; SAM's own predictor fails. "squash" is bilinear without
        antialias, and cut to whole numbers.

        Args:
            image: (H, W, 3) uint8 RGB.
        """
        if self.name == "longest-side":
            height, width = image.shape[:2]
            sides = ResizeLongestSide.get_preprocess_shape(height, width, self.side)
            size = (max(1, sides[1]), max(1, sides[0]))
            picture = PillowImage.fromarray(image).resize(size, PillowImage.Resampling.BILINEAR)
            return _channels_first(np.array(picture))
        pixels = _channels_first(image)[None].float()
        return _resize(pixels, (self.side, self.side))[0].to(torch.uint8)

    def to_masks(
        self,
        logits: Tensor,
        *,
        input_hw: tuple[int, int],
        size_hw: tuple[int, int],
        threshold: float = MASK_THRESHOLD,
    ) -> Tensor:
        """Return masks (N, M, H, W) bool at the original size.

        "longest-side" enlarges to the square, crops the padding and resizes to the original;
        "squash" resizes once. A CPU enlarges only what can be above the threshold, by the same
        weights. Differs there: by the rounding of a sum in another order.

        Args:
            logits: (N, M, 4h, 4w) float32 of one image.
            input_hw: the size of what `to_input` returned.
            size_hw: the image's own size (H, W).
            threshold: logits above it belong to the mask.
        """
        flat = logits.detach().flatten(0, 1)
        masks = flat.new_zeros((len(flat), *size_hw), dtype=torch.bool)
        if flat.device.type == "cpu":
            rows, columns = (
                _axis(logits.shape[2 + axis], self._square(), input_hw[axis], size_hw[axis])
                for axis in (0, 1)
            )
            for mask, values in zip(masks, flat - threshold, strict=True):
                _enlarge(values, rows, columns, out=mask)
        else:
            at_once = max(1, PIXELS_AT_ONCE // max(self.side**2, size_hw[0] * size_hw[1]))
            for start in range(0, len(flat), at_once):
                part = slice(start, start + at_once)
                square = flat[part, None]
                if side := self._square():
                    square = _resize(square, (side, side))[..., : input_hw[0], : input_hw[1]]
                torch.gt(_resize(square, size_hw)[:, 0], threshold, out=masks[part])
        return masks.view(*logits.shape[:2], *size_hw)

    def _square(self) -> int:
        """Return the side of the square to which logits are enlarged first, 0 for none."""
        return self.side if self.name == "longest-side" else 0


@dataclass(frozen=True)
class _Axis:
    """How positions of a grid become pixels along one axis.

    Attributes:
        weights: (P, n) float32, of n positions for each of P pixels.
        first: (P,), the first position that has a weight.
        last: (P,), the last one.
    """

    weights: Tensor
    first: npt.NDArray[np.intp]
    last: npt.NDArray[np.intp]

    def reach(self, occupied: Tensor) -> tuple[slice, slice]:
        """Return the pixels that occupied positions reach, and all positions that reach those.

        Args:
            occupied: (n,) bool, of which one is set.
        """
        places = np.flatnonzero(occupied.numpy())
        start = int(np.searchsorted(self.last, places[0]))
        stop = int(np.searchsorted(self.first, places[-1], side="right"))
        if start == stop:  # shrunk so far that no pixel has a weight of it
            return slice(0, 0), slice(0, 0)
        return slice(start, stop), self.positions(slice(start, stop))

    def positions(self, pixels: slice) -> slice:
        """Return all positions that reach some pixels, of which there is one."""
        return slice(self.first[pixels.start], self.last[pixels.stop - 1] + 1)


@lru_cache(maxsize=8)
def _axis(n: int, square: int, kept: int, pixels: int) -> _Axis:
    """Return the axis of n positions that are enlarged to a square's side, cropped and resized."""
    grid = torch.eye(n)[None, None]
    if square:
        grid = _resize(grid, (square, n))[..., :kept, :]
    weights = _resize(grid, (pixels, n))[0, 0]
    has_weight = weights.numpy() != 0
    return _Axis(weights, has_weight.argmax(1), n - 1 - has_weight[:, ::-1].argmax(1))


def _enlarge(logits: Tensor, rows: _Axis, columns: _Axis, *, out: Tensor) -> None:
    """Set the pixels (H, W) bool whose logit is above 0; the others are not looked at.

    A pixel's logit is a mean of those of positions near it, so it is not above 0 where none is.
    """
    above = logits > 0
    if not above.any():
        return
    all_x, _ = columns.reach(above.any(0))
    for start in range(all_x.start, all_x.stop, PIXELS_WIDE):
        x = slice(start, min(start + PIXELS_WIDE, all_x.stop))
        from_x = columns.positions(x)
        occupied = above[:, from_x].any(1)
        if occupied.any():
            y, from_y = rows.reach(occupied)
            of_rows = rows.weights[y, from_y] @ logits[from_y, from_x]
            torch.gt(of_rows @ columns.weights[x, from_x].mT, 0, out=out[y, x])


def input_scale(size_hw: tuple[int, int], input_hw: tuple[int, int]) -> Floats:
    """Return (2,) float64: what xy in pixels of the original image are multiplied by."""
    return np.array([input_hw[1] / size_hw[1], input_hw[0] / size_hw[0]])


def quality_or_nan(quality: Tensor, logits: Tensor) -> Tensor:
    """Return quality (N, M), NaN where a logit is not finite: masks of bool would hide it.

    Args:
        quality: (N, M) float32.
        logits: (N, M, h, w) float32, of the same masks.
    """
    return quality.masked_fill(~logits.isfinite().flatten(2).all(dim=2), torch.nan)


def _channels_first(image: Image) -> Tensor:
    return torch.from_numpy(np.array(image)).permute(2, 0, 1).contiguous()


def _resize(pixels: Tensor, size_hw: tuple[int, int]) -> Tensor:
    return functional.interpolate(pixels, size_hw, mode="bilinear", align_corners=False)
