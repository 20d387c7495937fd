"""The two ways in which an image reaches a SAM and its logits come back as masks."""

import numpy as np
import torch
from PIL import Image as PillowImage
from segment_anything.utils.transforms import ResizeLongestSide
from torch import Tensor
from torch.nn import functional

from samrobust.types import Floats, Frame, Image

MASK_THRESHOLD = 0.0
"""Of logits, in both sources: what is above belongs to the mask."""
PIXELS_AT_ONCE = {"cpu": 2**22, "cuda": 2**26}
"""Logits enlarged at once: 16 MiB of float32, so that masks of huge photographs fit in memory; on a
GPU, which wants large operations, 256 MiB."""


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
        "squash" resizes once.

        Args:
            logits: (N, M, 4h, 4w) float32 of one image.
            input_hw: the size of what `to_input` returned.
            size_hw: the image's own size (H, W).
            threshold: logits above it belong to the mask.
        """
        masks = logits.new_empty((*logits.shape[:2], *size_hw), dtype=torch.bool)
        most = PIXELS_AT_ONCE.get(logits.device.type, PIXELS_AT_ONCE["cpu"])
        at_once = max(1, most // max(self.side**2, size_hw[0] * size_hw[1]))
        parts = torch.split(logits.detach().flatten(0, 1)[:, None], at_once)
        parts_masks = torch.split(masks.flatten(0, 1)[:, None], at_once)
        for part, part_masks in zip(parts, parts_masks, strict=True):
            square = part
            if self.name == "longest-side":
                square = _resize(part, (self.side, self.side))[..., : input_hw[0], : input_hw[1]]
            torch.gt(_resize(square, size_hw), threshold, out=part_masks)
        return masks


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
