"""What the training loop asks of a model."""

from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any, Protocol

from torch import Tensor, nn

from samrobust.interfaces import EncoderDtype, Segmenter
from samrobust.training.examples import Example
from samrobust.training.recipe import Phase


@dataclass(frozen=True)
class TraineeOptions:
    """What a trainable model is made with, besides the recipe.

    Attributes:
        device: to train on ("cpu", "cuda:1").
        dtype: of the image encoder.
        base: name of the segmenter that it starts from, "" for the model's own default.
        variant: of the base, "" for its default.
        checkpoint: weights file of the base, None for its default; of the model itself, to go on
            from, where it is trained whole.
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
        """Return the part that learns; parameters that do not require a gradient stay."""
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
        """Return the model as it is now, for judging; it may change with the next step."""
        ...

    def save(self, path: Path) -> None:
        """Write what it has learned, whole or not at all."""
        ...
