"""The models that the suite trains, by name."""

from collections.abc import Callable, Mapping

from samrobust.errors import RecipeError, TrainingError
from samrobust.registry import Entry, Registry
from samrobust.training.recipe import Recipe
from samrobust.training.trainee import Trainee, TraineeOptions

TRAINEES: Registry[Callable[[Recipe, TraineeOptions], Trainee]] = Registry(
    "trainable model",
    {
        "sam-nano": Entry("samrobust.training.sam_nano:NanoTrainee", "a small SAM, all of it"),
        "stable-sam": Entry(
            "samrobust.training.tuned:stable_sam", "DSP and DRP in the decoder of a frozen SAM"
        ),
        "hq-sam": Entry(
            "samrobust.training.tuned:hq_sam", "a token and a finer feature beside a frozen SAM"
        ),
        "decoder-tuned": Entry(
            "samrobust.training.tuned:decoder_tuned", "the whole mask decoder of a SAM"
        ),
        "lora-tuned": Entry(
            "samrobust.training.tuned:lora_tuned", "low-rank updates in the mask decoder of a SAM"
        ),
        "token-tuned": Entry("samrobust.training.tuned:token_tuned", "the mask tokens of a SAM"),
    },
    group="samrobust.trainees",
)
DEFAULT_RECIPES: Mapping[str, str] = {
    "sam-nano": "sam-nano",
    "stable-sam": "robust",
    "hq-sam": "hq-sam",
    "decoder-tuned": "robust",
    "lora-tuned": "robust",
    "token-tuned": "robust",
}
"""The packaged recipe by which each of the built-in models is trained where none is named."""


def default_recipe(model: str) -> str:
    """Return the name of the recipe for a model where none is named.

    Raises:
        UnknownNameError: no trainable model has that name.
        RecipeError: it is a plug-in's, and there is none.
    """
    TRAINEES.summary(model)
    if model not in DEFAULT_RECIPES:
        raise RecipeError(f"{model} has no recipe of its own: name one with --recipe")
    return DEFAULT_RECIPES[model]


def build_trainee(recipe: Recipe, options: TraineeOptions) -> Trainee:
    """Return what a recipe trains, as it starts.

    Args:
        recipe: of one model.
        options: what else it is made with.

    Raises:
        UnknownNameError: the recipe's model is not one that can be trained.
        TrainingError: the dtype is float16, whose gradients vanish without a scale.
    """
    if options.dtype == "float16":
        raise TrainingError("training in float16 is not offered; allowed: float32, bfloat16")
    (model,) = recipe.models
    return TRAINEES.load(model)(recipe, options)
