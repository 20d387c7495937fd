"""Recipes as one training has them: its model, its data, its length."""

import dataclasses
import math
from collections.abc import Sequence

from samrobust.errors import RecipeError
from samrobust.training.recipe import DataSource, Recipe

LONGEST = 1e6
"""Times that a recipe can be made longer."""
HELD_OUT = 0.01
"""Share of the images of a data set that a recipe does not name, which are judged: of HQSeg-44K
some 440."""


def lengthened(recipe: Recipe, factor: float) -> Recipe:
    """Return a recipe with `factor` times the length of every phase, warm-ups as they are.

    Raises:
        RecipeError: the factor is not a number above 0, or larger than `LONGEST`.
    """
    if not 0 < factor <= LONGEST:
        raise RecipeError(
            f"a recipe can be made longer by a factor above 0, got {factor}; at most {LONGEST:g}"
        )
    phases = tuple(
        dataclasses.replace(phase, steps=max(1, round(factor * phase.steps)))
        if phase.steps
        else dataclasses.replace(phase, epochs=factor * phase.epochs)
        for phase in recipe.phases
    )
    return dataclasses.replace(recipe, phases=phases)


def counted(recipe: Recipe, n_images: int) -> Recipe:
    """Return a recipe whose phases say how many steps they are long, where they said epochs.

    Args:
        recipe: the recipe.
        n_images: that it learns from.
    """
    phases = tuple(
        dataclasses.replace(
            phase, steps=math.ceil(phase.epochs * n_images / phase.images), epochs=0.0
        )
        if phase.epochs
        else phase
        for phase in recipe.phases
    )
    return dataclasses.replace(recipe, phases=phases)


def with_data(recipe: Recipe, datasets: Sequence[str], split: str, *, in_root: bool) -> Recipe:
    """Return a recipe that learns from some data sets, all their images alike, and from no other.

    Args:
        recipe: the recipe.
        datasets: as registered.
        split: part of each, "" for its default.
        in_root: whether they lie in the folder that is given with the command.
    """
    folder = "." if in_root else ""
    rows = [
        DataSource(dataset, 1.0, folder, split, held_out=HELD_OUT, per_image=True)
        for dataset in datasets
    ]
    return dataclasses.replace(recipe, data=tuple(rows))


def recipe_for(recipe: Recipe, model: str) -> Recipe:
    """Return a recipe as it is for one model, with that model's learning rates.

    Raises:
        RecipeError: it does not train that model.
    """
    if model not in recipe.models:
        trained = ", ".join(recipe.models)
        raise RecipeError(f"recipe '{recipe.name}' trains {trained}, not {model}")
    rate = recipe.rates.get(model, 1.0)
    phases = tuple(
        dataclasses.replace(
            phase,
            learning_rate=rate * phase.learning_rate,
            last_learning_rate=rate * phase.last_learning_rate,
        )
        for phase in recipe.phases
    )
    return dataclasses.replace(recipe, models=(model,), phases=phases, rates={})
