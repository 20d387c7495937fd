"""The stability factor: how much the masks of one object agree when its prompts differ."""

import operator
from functools import reduce

from torch import Tensor

from samrobust.interfaces import Metric
from samrobust.metrics.bits import pack_masks
from samrobust.metrics.overlap import packed_iou


def stability_factor(masks: Tensor, target: Tensor) -> Tensor:  # noqa: ARG001
    """Return the mean IoU of an object's masks with their union; mSF is its mean over objects.

    Source: Fan et al. 2025 (facts/stable-sam.md, Evaluation). Not SAM's own "stability score",
    which thresholds one logit map at two levels.

    Args:
        masks: (T, H, W) bool, one a trial.
        target: (H, W) bool, not used: stability needs no ground truth.

    Returns:
        (1,) float64 in [0, 1]; 1 where every mask is empty.
    """
    words = pack_masks(masks)
    union = reduce(operator.or_, words)[None]
    return packed_iou(words, union).mean(dim=0, keepdim=True)


STABILITY = Metric("stability", stability_factor, over_trials=True)
