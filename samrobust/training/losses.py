"""Losses of masks and of predicted qualities."""

import torch
from torch import Tensor
from torch.nn import functional

from samrobust.training.recipe import LossWeights

SMOOTH = 1.0
"""Pixels added to both sides of the Dice ratio, so that empty masks have a gradient."""


def dice_loss(logits: Tensor, targets: Tensor) -> Tensor:
    """Return (...), 1 - the Dice coefficient of soft masks (Milletari et al. 2016, plain sums).

    Args:
        logits: (..., H, W).
        targets: (..., H, W), in [0, 1].
    """
    soft = logits.sigmoid()
    both = (soft * targets).sum(dim=(-2, -1))
    each = soft.sum(dim=(-2, -1)) + targets.sum(dim=(-2, -1))
    return 1 - (2 * both + SMOOTH) / (each + SMOOTH)


def pixel_loss(logits: Tensor, targets: Tensor, *, gamma: float = 0.0) -> Tensor:
    """Return (...), the mean focal loss of pixels (Lin et al. 2017), without its alpha.

    Args:
        logits: (..., H, W).
        targets: (..., H, W), in [0, 1].
        gamma: 0 is plain binary cross-entropy.
    """
    losses = functional.binary_cross_entropy_with_logits(logits, targets, reduction="none")
    if gamma:
        losses = losses * (1 - torch.exp(-losses)) ** gamma
    return losses.mean(dim=(-2, -1))


def mask_loss(logits: Tensor, targets: Tensor, weights: LossWeights) -> Tensor:
    """Return (...), the weighted sum of pixel and Dice loss."""
    pixels = pixel_loss(logits, targets, gamma=weights.focal_gamma)
    return weights.cross_entropy * pixels + weights.dice * dice_loss(logits, targets)


def prompt_losses(
    logits: Tensor, quality: Tensor, targets: Tensor, weights: LossWeights
) -> dict[str, Tensor]:
    """Return the losses (N) of N prompts: of the single mask, the best candidate and the quality.

    The single mask learns from every prompt. Of the three candidates only the one nearest to the
    target does, so that they come to differ (Kirillov et al. 2023, sec. 3 and app. A; there,
    nearest by loss, and a candidate is chosen for prompts of one point alone). Predicted qualities
    learn the IoU that their masks have.

    Args:
        logits: (N, 4, H, W), the single mask first.
        quality: (N, 4).
        targets: (N, H, W) bool.
        weights: of the sum.
    """
    wanted = targets.to(logits.dtype)
    with torch.no_grad():
        best = 1 + dice_loss(logits[:, 1:], wanted[:, None]).argmin(dim=1)
        found = logits > 0
        both = (found & targets[:, None]).sum(dim=(-2, -1))
        either = (found | targets[:, None]).sum(dim=(-2, -1))
        iou = torch.where(either > 0, both / either.clamp(min=1), 1.0)
    rows = torch.arange(len(logits), device=logits.device)
    chosen = torch.stack([logits[:, 0], logits[rows, best]], dim=1)  # N x 2 x H x W
    single, candidate = mask_loss(chosen, wanted[:, None].expand_as(chosen), weights).unbind(dim=1)
    squared = functional.mse_loss(quality, iou, reduction="none").mean(dim=1)
    return {"single": single, "candidate": candidate, "quality": weights.quality * squared}
