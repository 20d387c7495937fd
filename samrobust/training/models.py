"""The interface of a trainable model, and the registry of trainable models."""

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
    """Options of a trainable model, besides the recipe.

    Attributes:
        device: to train on ("cpu", "cuda:1").
        dtype: of the image encoder.
        base: name of the frozen SAM, "" for the model's default.
        variant: of the base, "" for its default.
        checkpoint: weights file of the base, None for its default; for a model without a base, the
            weights to start from.
    """

    device: str = "cpu"
    dtype: EncoderDtype = "float32"
    base: str = ""
    variant: str = ""
    checkpoint: Path | None = None


class Trainee(Protocol):
    """A model that can be trained: any object with these members; there is no base class."""

    @property
    def learned(self) -> nn.Module:
        """Return the module that is trained; parameters without gradient do not change."""
        ...

    def rate_of(self, parameter: str) -> float:
        """Return the factor of the learning rate of a parameter of `learned`, given its name."""
        ...

    @property
    def side(self) -> int:
        """Return the side of its square input in pixels, for phases that name none."""
        ...

    @property
    def stride(self) -> int:
        """Return the pixels of its input per position of its logits."""
        ...

    @property
    def start(self) -> str:
        """Return name and hash of the initial weights, "" if only the recipe determines them."""
        ...

    def losses(self, examples: Sequence[Example], phase: Phase) -> dict[str, Tensor]:
        """Return losses by name, scalar means over all prompts; their sum is minimised.

        Args:
            examples: this process's share of a step.
            phase: of the step.
        """
        ...

    def segmenter(self) -> Segmenter[Any]:
        """Return the current model, for validation; the next step may change it."""
        ...

    def save(self, path: Path) -> None:
        """Write the trained weights atomically."""
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
"""The default recipe of each built-in model."""


def default_recipe(model: str) -> str:
    """Return the name of a model's default recipe.

    Raises:
        UnknownNameError: no trainable model has that name.
        RecipeError: it has none, as the models of plug-ins.
    """
    TRAINEES.summary(model)
    if model not in DEFAULT_RECIPES:
        raise RecipeError(f"{model} has no default recipe: name one with --recipe")
    return DEFAULT_RECIPES[model]


def build_trainee(recipe: Recipe, options: TraineeOptions) -> Trainee:
    """Return the model that a recipe trains, with its initial weights.

    Args:
        recipe: of one model.
        options: of the model.

    Raises:
        UnknownNameError: the recipe's model cannot be trained.
        TrainingError: the dtype is float16, whose gradients vanish without loss scaling.
    """
    if options.dtype == "float16":
        raise TrainingError("dtype must be float32 or bfloat16 for training, got float16")
    (model,) = recipe.models
    return TRAINEES.load(model)(recipe, options)
