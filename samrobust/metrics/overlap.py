"""IoU, boundary IoU and the stability factor, computed exactly on the device of the masks."""

import math
import operator
from collections.abc import Iterator
from contextlib import contextmanager
from contextvars import ContextVar
from functools import reduce
from typing import TYPE_CHECKING

from samrobust.metrics.bits import Words, count_overlap, crop_to_bits, erode_bits, pack_masks
from samrobust.types import Metric

if TYPE_CHECKING:  # a report reads the labels of metrics and runs without torch
    from torch import Tensor

DILATION_RATIO = 0.02
"""Width of the boundary band as a fraction of the image diagonal (Cheng et al. 2021, sec. 4)."""
SMOOTH = 1.0
"""Pixels added to both sides of the Dice ratio, so that empty masks have a gradient."""

_Pair = tuple["Tensor", "Tensor"]
_SHARED: ContextVar[list[tuple[_Pair, tuple[Words, Words]]] | None] = ContextVar(
    "packed", default=None
)
"""Masks and targets that `packing_shared` keeps, with their words."""


@contextmanager
def packing_shared() -> Iterator[None]:
    """Pack masks and targets that several metrics score once; they must not change meanwhile."""
    token = _SHARED.set([])
    try:
        yield
    finally:
        _SHARED.reset(token)


def dice_loss(logits: "Tensor", targets: "Tensor") -> "Tensor":
    """Return (...), 1 - the Dice coefficient of soft masks (Milletari et al. 2016, plain sums).

    Args:
        logits: (..., H, W).
        targets: (..., H, W), in [0, 1].
    """
    soft = logits.sigmoid()
    both = (soft * targets).sum(dim=(-2, -1))
    areas = soft.sum(dim=(-2, -1)) + targets.sum(dim=(-2, -1))
    return 1 - (2 * both + SMOOTH) / (areas + SMOOTH)


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
    return packed_iou(*_packed(masks, target))


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
    bands = (words & ~erode_bits(words, width) for words in _packed(masks, target))
    return packed_iou(*bands)


def packed_iou(words: Words, target: Words) -> "Tensor":
    """Return (T,) float64 IoU of (T, H, n) packed masks with a (1, H, n) packed target.

    The IoU of two empty masks is 1; no other function decides this.
    """
    intersection, union = count_overlap(words, target)
    ratios: Tensor = (intersection.double() / union.clamp(min=1)).where(union > 0, 1.0)
    return ratios


IOU = Metric("iou", iou, label="mIoU", unit="%")
IOU_AT_MINUS_1 = Metric("iou-at-minus-1", iou, label="mIoU at -1", unit="%", threshold=-1.0)
IOU_AT_PLUS_1 = Metric("iou-at-plus-1", iou, label="mIoU at +1", unit="%", threshold=1.0)
BOUNDARY_IOU = Metric("boundary-iou", boundary_iou, label="mBIoU", unit="%")


def stability_factor(masks: "Tensor", target: "Tensor") -> "Tensor":
    """Return the mean IoU of an object's masks with their union; mSF is its mean over objects.

    Source: Fan et al. 2025 (docs/sources/stable-sam.md, Evaluation). It differs from SAM's
    "stability score", which compares one mask at two thresholds of its logits.

    Args:
        masks: (T, H, W) bool, one per trial.
        target: changes nothing, as stability needs no target.

    Returns:
        (1,) float64 in [0, 1]; 1 if all masks are empty.
    """
    words, _ = _packed(masks, target)
    union = words
    while len(union) > 1:  # of halves that may share a mask: few large operations
        middle = (len(union) + 1) // 2
        union = union[:middle] | union[-middle:]
    return packed_iou(words, union).mean(dim=0, keepdim=True)


STABILITY = Metric("stability", stability_factor, over_trials=True, label="mSF", unit="%")


def agreement(masks: "Tensor", target: "Tensor") -> "Tensor":
    """Return the mean IoU of pairs of an object's masks.

    Args:
        masks: (T, H, W) bool, one per trial, T >= 2.
        target: changes nothing, as agreement needs no target.

    Returns:
        (1,) float64 in [0, 1]; the IoU of two empty masks is 1.
    """
    words, _ = _packed(masks, target)
    pairs = [
        packed_iou(words[place + 1 :], words[place : place + 1]) for place in range(len(words) - 1)
    ]
    mean: Tensor = reduce(operator.add, [ious.sum() for ious in pairs])[None]
    return mean / (len(words) * (len(words) - 1) / 2)


AGREEMENT = Metric("agreement", agreement, over_trials=True, label="agreement", unit="%")


def _packed(masks: "Tensor", target: "Tensor") -> tuple[Words, Words]:
    """Return (T, H', n) and (1, H', n) words of masks and target, cropped to what both occupy.

    Rows end in zeros as many as the boundary is wide.
    """
    shared = _SHARED.get()
    for (known_masks, known_target), words in shared or ():
        if known_masks is masks and known_target is target:
            return words
    margin = boundary_width(*target.shape)
    both = pack_masks(masks, margin=margin), pack_masks(target[None], margin=margin)
    words = crop_to_bits(*both, margin)
    if shared is not None:
        shared.append(((masks, target), words))
    return words
