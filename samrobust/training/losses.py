"""Losses of masks and predicted qualities, with rounds of corrective points."""

from collections import defaultdict
from collections.abc import Iterable
from typing import Protocol

import numpy as np
import torch
from torch import Tensor
from torch.nn import functional

from samrobust.degradations.clicks import Click
from samrobust.seeding import keyed_generator
from samrobust.segmenters.sam import SamEmbedding
from samrobust.segmenters.sam_decoder import ALL_MASKS, SINGLE
from samrobust.training.examples import Example
from samrobust.training.recipe import LossWeights, Recipe
from samrobust.types import BACKGROUND, FOREGROUND, PromptBatch

OVERSAMPLING = 3
"""Random candidates per point at which masks are compared."""
UNCERTAIN_FRACTION = 0.75
"""Of the points, the fraction at which the mask is least certain."""
FOREGROUND_FRACTION = 0.5
"""Of a position's area: above it the position counts as foreground where a yes or no is needed."""
SMOOTH = 1.0
"""Pixels added to both sides of the Dice ratio, so that empty masks have a gradient."""


class PromptDecoder(Protocol):
    """A segmenter that returns logits, as `samrobust.segmenters.sam.Sam` does."""

    def logits(
        self, embedding: SamEmbedding, prompts: PromptBatch, *, masks: range = SINGLE
    ) -> tuple[Tensor, Tensor]:
        """Return logits (N, M, 4h, 4w) and quality (N, M) of M of the decoder's four masks."""
        ...


def example_losses(
    segmenter: PromptDecoder, embedded: Iterable[tuple[Example, SamEmbedding]], recipe: Recipe
) -> dict[str, Tensor]:
    """Return the mean losses of all prompts, of several rounds in steps with corrections.

    Args:
        segmenter: the segmenter that is trained.
        embedded: examples of one step with their embeddings.
        recipe: losses, corrections and the random seed.
    """
    masks = ALL_MASKS if recipe.loss.candidate or recipe.loss.quality else SINGLE
    of_prompts: dict[str, list[Tensor]] = defaultdict(list)
    for example, embedding in embedded:
        targets = example.targets.to(embedding.features.device)
        points_rng = keyed_generator("points", recipe.seed, *example.key)
        correct_rng = keyed_generator("correct", recipe.seed, *example.key)
        n_corrections = count_corrections(recipe, example.key[0])
        click = None if recipe.clicks is None else recipe.clicks.click()
        for prompts in example.prompts:
            for left in range(n_corrections, -1, -1):
                logits, quality = segmenter.logits(embedding, prompts, masks=masks)
                losses = prompt_losses(logits, quality, targets, recipe.loss, points_rng)
                for name, loss in losses.items():
                    of_prompts[name].append(loss.mean())
                if left:
                    answer = logits[:, 0].detach()
                    prompts = with_corrections(example, prompts, answer, correct_rng, click)
    return {name: torch.stack(losses).mean() for name, losses in of_prompts.items()}


def prompt_losses(
    logits: Tensor,
    quality: Tensor,
    targets: Tensor,
    weights: LossWeights,
    rng: np.random.Generator,
) -> dict[str, Tensor]:
    """Return the losses (N,) of N prompts by name; those without weight are left out.

    "single" is the loss of the single mask. "candidate" is that of the best of the three
    candidates, so that they specialise (Kirillov et al. 2023, sec. 3 and app. A). "quality" is the
    squared error of the predicted IoU of all four. Differs: the best candidate is that of the
    lowest Dice loss, and is trained on all kinds of prompts, not only on single points.

    Args:
        logits: (N, 4, H, W), the single mask first; (N, 1, H, W) if neither candidates nor
            qualities have a weight.
        quality: (N, 4) or (N, 1).
        targets: (N, H, W), in [0, 1].
        weights: of the losses.
        rng: of the points at which masks are compared, if not all positions are.
    """
    wanted = targets.to(logits.dtype)[:, None]  # N x 1 x H x W
    compared = {"single": logits[:, :1]}
    if weights.candidate:
        with torch.no_grad():
            best = 1 + dice_loss(logits[:, 1:], wanted).argmin(dim=1)
        rows = torch.arange(len(logits), device=logits.device)
        compared["candidate"] = logits[rows, best][:, None]
    masks = torch.cat(list(compared.values()), dim=1)
    wanted = wanted.expand_as(masks)
    if weights.sampled:
        masks, wanted = _at_uncertain_points(masks, wanted, weights.sampled, rng)
    losses = dict(zip(compared, mask_loss(masks, wanted, weights).unbind(dim=1), strict=True))
    if weights.candidate:
        losses["candidate"] = weights.candidate * losses["candidate"]
    if weights.quality:
        true = _ious(logits, targets > FOREGROUND_FRACTION)
        squared = functional.mse_loss(quality, true, reduction="none").mean(dim=1)
        losses["quality"] = weights.quality * squared
    return losses


def mask_loss(logits: Tensor, targets: Tensor, weights: LossWeights) -> Tensor:
    """Return (...), the weighted sum of pixel loss and Dice loss, of logits (..., H, W)."""
    pixels = pixel_loss(logits, targets, gamma=weights.focal_gamma)
    return weights.cross_entropy * pixels + weights.dice * dice_loss(logits, targets)


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


def dice_loss(logits: Tensor, targets: Tensor) -> Tensor:
    """Return (...), 1 - the Dice coefficient of soft masks (Milletari et al. 2016, plain sums).

    Args:
        logits: (..., H, W).
        targets: (..., H, W), in [0, 1].
    """
    soft = logits.sigmoid()
    both = (soft * targets).sum(dim=(-2, -1))
    areas = soft.sum(dim=(-2, -1)) + targets.sum(dim=(-2, -1))
    return 1 - (2 * both + SMOOTH) / (areas + SMOOTH)


def uncertain_points(logits: Tensor, side: float, rng: np.random.Generator) -> Tensor:
    """Return (N, 1, P, 2), xy in [-1, 1] of the points at which masks are compared.

    Three quarters of the P points are the least certain of 3 P random candidates, a quarter is
    random (Kirillov et al. 2020, PointRend; the numbers are HQ-SAM's, docs/sources/hq-sam.md 4).
    Differs: all masks have the same random candidates.

    Args:
        logits: (N, 1, H, W).
        side: P is the square of `side` times the shorter side of the mask.
        rng: the source of randomness.
    """
    n_points = max(4, round((side * min(logits.shape[-2:])) ** 2))
    n_random = round((1 - UNCERTAIN_FRACTION) * n_points)
    drawn = rng.uniform(-1, 1, (OVERSAMPLING * n_points + n_random, 2)).astype(np.float32)
    points = torch.from_numpy(drawn).to(logits.device)
    random, candidates = points[:n_random], points[n_random:]
    with torch.no_grad():
        values = _at_points(logits, candidates.expand(len(logits), 1, -1, -1))[:, 0, 0]
        uncertain = candidates[values.abs().topk(n_points - n_random, largest=False).indices]
    return torch.cat([uncertain, random.expand(len(logits), -1, -1)], dim=1)[:, None]


def count_corrections(recipe: Recipe, step: int) -> int:
    """Return how many more points the prompts of a step get, each with a round of its own."""
    rng = keyed_generator("correct", recipe.seed, step)
    if not rng.random() < recipe.corrections:
        return 0
    return 1 if recipe.clicks is None else int(rng.integers(1, recipe.clicks.most, endpoint=True))


def with_corrections(
    example: Example,
    prompts: PromptBatch,
    logits: Tensor,
    rng: np.random.Generator,
    click: Click | None = None,
) -> PromptBatch:
    """Return the prompts of an example, each with one more point.

    The point is drawn uniformly from the wrong positions of the mask, or from the object if there
    are none, and labelled by the target (Kirillov et al. 2023, app. A); or it is a click into the
    larger of the wrong regions, where there is one that was not clicked before.

    Args:
        example: the example.
        prompts: its prompts of one kind.
        logits: (N, 4h', 4w'), predicted for the prompts.
        rng: the source of randomness.
        click: where points are placed, None for uniformly.
    """
    stride = example.stride
    height, width = (-(-extent // stride) for extent in example.input_size_hw)  # without padding
    targets = example.targets[:, :height, :width].numpy() > FOREGROUND_FRACTION
    answers = (logits[:, :height, :width] > 0).cpu().numpy()
    size_wh, input_wh = np.array(example.size_hw[::-1]), np.array(example.input_size_hw[::-1])
    before = np.floor((prompts.points + 0.5) * (input_wh / size_wh) / stride).astype(int)
    clicked = before[..., 1] * width + before[..., 0]  # N x K
    points, labels = [], []
    for target, answer, its_clicked in zip(targets, answers, clicked, strict=True):
        chosen = click.correct(target, answer, its_clicked, rng) if click is not None else None
        if chosen is not None:
            place = chosen[0]
        else:
            errors = answer != target
            candidates = np.flatnonzero(errors if errors.any() else target)
            if len(candidates) == 0:  # the object is too thin for the grid
                candidates = np.arange(target.size)
            place = int(rng.choice(candidates))
        y, x = divmod(place, width)
        points.append([[x, y]])
        labels.append([FOREGROUND if target[y, x] else BACKGROUND])
    xy = stride * (np.array(points) + 0.5) * (size_wh / input_wh) - 0.5
    xy = np.clip(xy, 0, size_wh - 1)
    return PromptBatch(
        prompts.boxes,
        np.concatenate([prompts.points, xy.astype(np.float32)], axis=1),
        np.concatenate([prompts.labels, np.array(labels, np.int32)], axis=1),
    )


def _at_uncertain_points(
    masks: Tensor, targets: Tensor, side: float, rng: np.random.Generator
) -> tuple[Tensor, Tensor]:
    """Return logits and targets (N, M, 1, P) at points of each mask, of (N, M, H, W)."""
    grids = [tensor.flatten(0, 1)[:, None] for tensor in (masks, targets)]
    points = uncertain_points(grids[0], side, rng)
    logits, wanted = (_at_points(grid, points).view(*masks.shape[:2], 1, -1) for grid in grids)
    return logits, wanted


def _at_points(grid: Tensor, points: Tensor) -> Tensor:
    """Return (N, 1, 1, P), a grid (N, 1, H, W) interpolated bilinearly at points."""
    return functional.grid_sample(grid, points, padding_mode="border", align_corners=False)


@torch.no_grad()
def _ious(logits: Tensor, targets: Tensor) -> Tensor:
    """Return (N, M), the IoU of masks with targets (N, H, W) bool; 1 if both are empty."""
    masks = logits > 0
    intersection = (masks & targets[:, None]).sum(dim=(-2, -1))
    union = (masks | targets[:, None]).sum(dim=(-2, -1))
    return torch.where(union > 0, intersection / union.clamp(min=1), 1.0)
