"""The models that the suite trains, by name."""

from collections.abc import Callable

import torch

from samrobust.errors import TrainingError
from samrobust.interfaces import EncoderDtype
from samrobust.registry import Entry, Registry
from samrobust.training.recipe import Recipe
from samrobust.training.trainee import Trainee

TRAINEES: Registry[Callable[[Recipe, torch.device, torch.dtype], Trainee]] = Registry(
    "trainable model",
    {
        "sam-nano": Entry(
            "samrobust.training.sam_nano:NanoTrainee", "a small SAM, trained from nothing"
        ),
    },
    group="samrobust.trainees",
)


def build_trainee(recipe: Recipe, device: str, dtype: EncoderDtype) -> Trainee:
    """Return what a recipe trains, with its first weights.

    Raises:
        UnknownNameError: the recipe's model is not one that can be trained.
        TrainingError: the dtype is float16, whose gradients vanish without a scale.
    """
    if dtype == "float16":
        raise TrainingError("training in float16 is not offered; allowed: float32, bfloat16")
    build = TRAINEES.load(recipe.model)
    return build(recipe, torch.device(device), getattr(torch, dtype))
