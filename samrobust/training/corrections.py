"""Corrective points: where a first answer was wrong, the next prompt says so."""

import numpy as np
from torch import Tensor

from samrobust.seeding import keyed_generator
from samrobust.training.examples import Example
from samrobust.training.recipe import Recipe
from samrobust.types import BACKGROUND, FOREGROUND, PromptBatch


def is_corrected(recipe: Recipe, step: int) -> bool:
    """Return whether the prompts of a step get a second round."""
    draw = keyed_generator("correct", recipe.seed, step).random()
    return bool(draw < recipe.corrections)


def with_corrections(
    example: Example, prompts: PromptBatch, logits: Tensor, rng: np.random.Generator
) -> PromptBatch:
    """Return prompts of an example, each with one more point.

    The point is uniform over the wrong positions of the mask and labelled by the target; where
    nothing is wrong it is uniform over the object (Kirillov et al. 2023, app. A).

    Args:
        example: its targets and frame.
        prompts: of it.
        logits: (N, 4h', 4w'), the answers to the prompts.
        rng: the source of randomness.
    """
    stride = example.stride
    height, width = (-(-extent // stride) for extent in example.input_size_hw)  # without padding
    targets = example.targets[:, :height, :width].numpy()
    wrong = (logits[:, :height, :width] > 0).cpu().numpy() != targets
    points, labels = [], []
    for target, errors in zip(targets, wrong, strict=True):
        candidates = np.flatnonzero(errors if errors.any() else target)
        if len(candidates) == 0:  # an object so thin that nothing of it is left in the grid
            candidates = np.arange(target.size)
        y, x = divmod(int(rng.choice(candidates)), width)
        points.append([[x, y]])
        labels.append([FOREGROUND if target[y, x] else BACKGROUND])
    scale = np.array(example.size_hw[::-1]) / np.array(example.input_size_hw[::-1])
    xy = stride * (np.array(points) + 0.5) * scale - 0.5
    xy = np.clip(xy, 0, np.array(example.size_hw[::-1]) - 1)
    return PromptBatch(
        prompts.boxes,
        np.concatenate([prompts.points, xy.astype(np.float32)], axis=1),
        np.concatenate([prompts.labels, np.array(labels, np.int32)], axis=1),
    )
