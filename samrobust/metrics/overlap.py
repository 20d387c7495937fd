"""IoU, boundary IoU and the stability factor, computed exactly on the device of the masks."""

import math
import operator
from functools import reduce
from typing import TYPE_CHECKING

from samrobust.metrics.bits import Words, count_bits, erode_bits, pack_masks
from samrobust.types import Metric

if TYPE_CHECKING:  # a report reads the labels of metrics and runs without torch
    from torch import Tensor

DILATION_RATIO = 0.02
"""Width of the boundary band as a fraction of the image diagonal (Cheng et al. 2021, sec. 4)."""


def boundary_width(height: int, width: int) -> int:
    """Return the width of the boundary band of an image in pixels, at least 1.

    Rounded half to even, as boundary-iou-api does (docs/sources/performance.md 1).
    """
    return max(1, round(DILATION_RATIO * math.hypot(height, width)))


def iou(masks: "Tensor", target: "Tensor") -> "Tensor":
    """Return the intersection over union of each mask with the target.

    Args:
        masks: (T, H, W) bool.
        target: (H, W) bool, on the same device.

    Returns:
        (T,) float64 in [0, 1]; 1 if both are empty, 0 if one is.
    """
    return packed_iou(pack_masks(masks), pack_masks(target[None]))


def boundary_iou(masks: "Tensor", target: "Tensor") -> "Tensor":
    """Return the IoU of the inner boundary bands of each mask and the target.

    The band of a mask has the pixels that `boundary_width` erosions by a 3x3 square remove; the
    image border counts as outside (Cheng et al. 2021, sec. 4; as sam-hq's evaluation,
    docs/sources/hq-sam.md 2).

    Args:
        masks: (T, H, W) bool.
        target: (H, W) bool, on the same device.

    Returns:
        (T,) float64 in [0, 1]; 1 if both bands are empty, 0 if one is.
    """
    width = boundary_width(*target.shape)
    return packed_iou(_bands(masks, width), _bands(target[None], width))


def packed_iou(words: Words, target: Words) -> "Tensor":
    """Return (T,) float64 IoU of (T, H, n) packed masks with a (1, H, n) packed target.

    The IoU of two empty masks is 1; no other function decides this.
    """
    intersection = count_bits(words & target)
    union = count_bits(words) + count_bits(target) - intersection
    ratios: Tensor = (intersection.double() / union.clamp(min=1)).where(union > 0, 1.0)
    return ratios


def _bands(masks: "Tensor", width: int) -> Words:
    words = pack_masks(masks, margin=width)
    return words & ~erode_bits(words, width)


IOU = Metric("iou", iou, label="mIoU", unit="%")
IOU_AT_MINUS_1 = Metric("iou-at-minus-1", iou, label="mIoU at -1", unit="%", threshold=-1.0)
IOU_AT_PLUS_1 = Metric("iou-at-plus-1", iou, label="mIoU at +1", unit="%", threshold=1.0)
BOUNDARY_IOU = Metric("boundary-iou", boundary_iou, label="mBIoU", unit="%")


def stability_factor(masks: "Tensor", target: "Tensor") -> "Tensor":  # noqa: ARG001
    """Return the mean IoU of an object's masks with their union; mSF is its mean over objects.

    Source: Fan et al. 2025 (docs/sources/stable-sam.md, Evaluation). It differs from SAM's
    "stability score", which compares one mask at two thresholds of its logits.

    Args:
        masks: (T, H, W) bool, one per trial.
        target: not used, as stability needs no target.

    Returns:
        (1,) float64 in [0, 1]; 1 if all masks are empty.
    """
    words = pack_masks(masks)
    union = reduce(operator.or_, words)[None]
    return packed_iou(words, union).mean(dim=0, keepdim=True)


STABILITY = Metric("stability", stability_factor, over_trials=True, label="mSF", unit="%")


def agreement(masks: "Tensor", target: "Tensor") -> "Tensor":  # noqa: ARG001
    """Return the mean IoU of pairs of an object's masks.

    Args:
        masks: (T, H, W) bool, one per trial, T >= 2.
        target: not used, as agreement needs no target.

    Returns:
        (1,) float64 in [0, 1]; the IoU of two empty masks is 1.
    """
    words = pack_masks(masks)
    pairs = [
        packed_iou(words[place + 1 :], words[place : place + 1]) for place in range(len(words) - 1)
    ]
    mean: Tensor = reduce(operator.add, [ious.sum() for ious in pairs])[None]
    return mean / (len(words) * (len(words) - 1) / 2)


AGREEMENT = Metric("agreement", agreement, over_trials=True, label="agreement", unit="%")
