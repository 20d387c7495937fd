"""Losses of masks and predicted qualities, with rounds of corrective points."""

from collections import defaultdict
from collections.abc import Iterable, Iterator, Sequence
from dataclasses import dataclass, replace
from typing import Protocol

import numpy as np
import torch
from torch import Tensor
from torch.nn import functional

from samrobust.degradations.clicks import Click
from samrobust.metrics.overlap import dice_loss
from samrobust.seeding import keyed_generator
from samrobust.segmenters.device import to_device
from samrobust.segmenters.sam import SamEmbedding, one_per_prompt
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


class PromptDecoder(Protocol):
    """A segmenter that returns logits, as `samrobust.segmenters.sam.Sam` does."""

    def embed_prompts(self, embedding: SamEmbedding, prompts: PromptBatch) -> Tensor:
        """Return (N, P, C), the tokens of prompts of an image."""
        ...

    def decode(
        self, embedding: SamEmbedding, tokens: Tensor, *, masks: range = SINGLE
    ) -> tuple[Tensor, Tensor]:
        """Return logits (N, M, 4h, 4w) and quality (N, M) of M of the decoder's four masks.

        Args:
            embedding: of the prompts' image, or of an image for each of them.
            tokens: (N, P, C).
            masks: the M wanted.
        """
        ...


def example_losses(
    segmenter: PromptDecoder, embedded: Iterable[tuple[Example, SamEmbedding]], recipe: Recipe
) -> dict[str, Tensor]:
    """Return the mean losses of all prompts, of several rounds in steps with corrections.

    Prompts of as many tokens are decoded together, whatever their images and kinds. All kinds of
    all examples count alike.

    Args:
        segmenter: the segmenter that is trained.
        embedded: examples of one step with their embeddings.
        recipe: losses, corrections and the random seed.
    """
    masks = ALL_MASKS if recipe.loss.candidate or recipe.loss.quality else SINGLE
    asked = [kind for pair in embedded for kind in _kinds_of(*pair, recipe)]
    n_rounds = 1 + count_corrections(recipe, asked[0].example.key[0])
    of_groups: dict[str, list[Tensor]] = defaultdict(list)
    for turn in range(n_rounds):
        answers: dict[int, Tensor] = {}
        for group, tokens in _by_tokens(segmenter, asked):
            kinds = [asked[place] for place in group]
            counts = [len(kind.prompts) for kind in kinds]
            embedding = one_per_prompt([kind.embedding for kind in kinds], counts)
            logits, quality = segmenter.decode(embedding, tokens, masks=masks)
            targets = to_device(torch.cat([kind.example.targets for kind in kinds]), logits.device)
            points = None
            if recipe.loss.sampled:
                drawn = [kind.points[turn].expand(len(kind.prompts), -1, -1) for kind in kinds]
                points = to_device(torch.cat(drawn), logits.device)
            shares = [1 / (n * len(asked) * n_rounds) for n in counts for _ in range(n)]
            share = to_device(torch.tensor(shares), logits.device)
            losses = prompt_losses(logits, quality, targets, recipe.loss, points)
            for name, loss in losses.items():
                of_groups[name].append(share @ loss)
            answers.update(zip(group, torch.split(logits[:, 0].detach(), counts), strict=True))
        if turn + 1 < n_rounds:
            asked = [kind.corrected(answers[place]) for place, kind in enumerate(asked)]
    return {name: torch.stack(losses).sum() for name, losses in of_groups.items()}


@dataclass(frozen=True)
class _Asked:
    """The prompts of one kind of an example.

    Attributes:
        example: the example.
        embedding: of its image.
        prompts: N prompts.
        points: (Q, 2) each, the random positions of `draw_points` of each round; empty where masks
            are compared at all positions.
        rng: of the points that correct.
        click: where these are placed, see `with_corrections`.
    """

    example: Example
    embedding: SamEmbedding
    prompts: PromptBatch
    points: Sequence[Tensor]
    rng: np.random.Generator
    click: Click | None

    def corrected(self, logits: Tensor) -> "_Asked":
        """Return it with a point more for each prompt, which was answered with logits (N, H, W)."""
        prompts = with_corrections(self.example, self.prompts, logits, self.rng, self.click)
        return replace(self, prompts=prompts)


def _kinds_of(example: Example, embedding: SamEmbedding, recipe: Recipe) -> Iterator[_Asked]:
    """Yield the prompts of an example by kind."""
    points_rng = keyed_generator("points", recipe.seed, *example.key)
    correct_rng = keyed_generator("correct", recipe.seed, *example.key)
    size_hw, side = example.targets.shape[1:], recipe.loss.sampled
    n_rounds = 1 + count_corrections(recipe, example.key[0])
    click = None if recipe.clicks is None else recipe.clicks.click()
    for prompts in example.prompts:
        points = [draw_points(size_hw, side, points_rng) for _ in range(n_rounds if side else 0)]
        yield _Asked(example, embedding, prompts, points, correct_rng, click)


def _by_tokens(
    segmenter: PromptDecoder, asked: Sequence[_Asked]
) -> Iterator[tuple[list[int], Tensor]]:
    """Yield places among the asked with the tokens (N, P, C) of their prompts, group by group."""
    groups: dict[int, dict[int, Tensor]] = defaultdict(dict)
    for place, kind in enumerate(asked):
        tokens = segmenter.embed_prompts(kind.embedding, kind.prompts)
        groups[tokens.shape[1]][place] = tokens
    for group in groups.values():
        yield list(group), torch.cat(list(group.values()))


def prompt_losses(
    logits: Tensor,
    quality: Tensor,
    targets: Tensor,
    weights: LossWeights,
    points: Tensor | None = None,
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
        points: (N, Q, 2), from `draw_points`, for each prompt; None to compare masks at all
            positions.
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
    if points is not None:
        masks, wanted = _at_uncertain_points(masks, wanted, points)
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


def draw_points(size_hw: Sequence[int], side: float, rng: np.random.Generator) -> Tensor:
    """Return (Q, 2) random xy in [-1, 1], of which `uncertain_points` takes some for each mask.

    Args:
        size_hw: of the masks.
        side: P is the square of `side` times the shorter side of the mask.
        rng: the source of randomness.
    """
    n_points = max(4, round((side * min(size_hw)) ** 2))
    n_drawn = OVERSAMPLING * n_points + round((1 - UNCERTAIN_FRACTION) * n_points)
    return torch.from_numpy(rng.uniform(-1, 1, (n_drawn, 2)).astype(np.float32))


@torch.no_grad()
def uncertain_points(logits: Tensor, drawn: Tensor) -> Tensor:
    """Return (N, 1, P, 2), xy in [-1, 1] of the points at which masks are compared.

    Three quarters of the P points are the least certain of 3 P random candidates, a quarter is
    random (Kirillov et al. 2020, PointRend; the numbers are HQ-SAM's, docs/sources/hq-sam.md 4).
    Differs: all masks of an example's prompts of one kind have the same random candidates.

    Args:
        logits: (N, 1, H, W).
        drawn: (N, Q, 2), from `draw_points`: Q is 3 P and a quarter of P, rounded.
    """
    n_points = round(drawn.shape[1] / (OVERSAMPLING + 1 - UNCERTAIN_FRACTION))
    random, candidates = drawn.tensor_split([drawn.shape[1] - OVERSAMPLING * n_points], dim=1)
    values = _at_points(logits, candidates[:, None])[:, 0, 0]
    places = values.abs().topk(n_points - random.shape[1], largest=False).indices
    uncertain = candidates.take_along_dim(places[..., None], dim=1)
    return torch.cat([uncertain, random], dim=1)[:, None]


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


def _at_uncertain_points(masks: Tensor, targets: Tensor, drawn: Tensor) -> tuple[Tensor, Tensor]:
    """Return logits and targets (N, M, 1, P) at points of each mask, of (N, M, H, W)."""
    grids = [tensor.flatten(0, 1)[:, None] for tensor in (masks, targets)]
    points = uncertain_points(grids[0], drawn.repeat_interleave(masks.shape[1], dim=0))
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
