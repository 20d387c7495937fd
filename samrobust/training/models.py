"""The interface of a model that can be trained, and the models that the suite trains, by name."""

from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any, Protocol

from torch import Tensor, nn

from samrobust.errors import RecipeError, TrainingError
from samrobust.registry import Entry, Registry
from samrobust.training.examples import Example
from samrobust.training.recipe import Phase, Recipe
from samrobust.types import EncoderDtype, Segmenter


@dataclass(frozen=True)
class TraineeOptions:
    """What a trainable model is made with, besides the recipe.

    Attributes:
        device: to train on ("cpu", "cuda:1").
        dtype: of the image encoder.
        base: name of the segmenter that it starts from, "" for the model's own default.
        variant: of the base, "" for its default.
        checkpoint: weights file of the base, None for its default; where a model is trained
            whole, its own weights to start from.
    """

    device: str = "cpu"
    dtype: EncoderDtype = "float32"
    base: str = ""
    variant: str = ""
    checkpoint: Path | None = None


class Trainee(Protocol):
    """A model that can be trained; it needs these members and no base class."""

    @property
    def learned(self) -> nn.Module:
        """Return the part that learns; parameters that require no gradient stay as they are."""
        ...

    def rate_of(self, parameter: str) -> float:
        """Return the factor of the learning rate of a parameter of what learns, by its name."""
        ...

    @property
    def side(self) -> int:
        """Return the pixels of its square input where a phase names none."""
        ...

    @property
    def stride(self) -> int:
        """Return the pixels of its input that are one position of its masks."""
        ...

    @property
    def start(self) -> str:
        """Return what it starts from, as name and hash; "" where the recipe's seed says it."""
        ...

    def losses(self, examples: Sequence[Example], phase: Phase) -> dict[str, Tensor]:
        """Return scalars by name, whose sum is minimised: means over the examples' prompts.

        Args:
            examples: this process's share of a step.
            phase: that the step belongs to.
        """
        ...

    def segmenter(self) -> Segmenter[Any]:
        """Return the model as it is now, for validation; it may change with the next step."""
        ...

    def save(self, path: Path) -> None:
        """Write what it has learned, atomically."""
        ...


TRAINEES: Registry[Callable[[Recipe, TraineeOptions], Trainee]] = Registry(
    "trainable model",
    {
        "sam-nano": Entry("samrobust.training.sam_nano:NanoTrainee", "a small SAM, all of it"),
        "stable-sam": Entry(
            "samrobust.training.adapters:stable_sam", "DSP and DRP in the decoder of a frozen SAM"
        ),
        "hq-sam": Entry(
            "samrobust.training.adapters:hq_sam", "a token and a finer feature beside a frozen SAM"
        ),
        "decoder-tuned": Entry(
            "samrobust.training.adapters:decoder_tuned", "the whole mask decoder of a SAM"
        ),
        "lora-tuned": Entry(
            "samrobust.training.adapters:lora_tuned", "low-rank updates in a SAM's mask decoder"
        ),
        "token-tuned": Entry("samrobust.training.adapters:token_tuned", "the mask tokens of a SAM"),
    },
    group="samrobust.trainees",
)
DEFAULT_RECIPES: Mapping[str, str] = {
    **{name: name for name in ("sam-nano", "hq-sam")},
    **dict.fromkeys(("stable-sam", "decoder-tuned", "lora-tuned", "token-tuned"), "robust"),
}
"""The packaged recipe of each built-in model where none is named."""


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
