"""What the training loop asks of a model."""

from collections.abc import Sequence
from pathlib import Path
from typing import Any, Protocol

from torch import Tensor, nn

from samrobust.interfaces import Segmenter
from samrobust.training.examples import Example
from samrobust.training.recipe import Phase


class Trainee(Protocol):
    """A model that can be trained; it needs these members and no base class."""

    @property
    def learned(self) -> nn.Module:
        """Return the part that learns; parameters that do not require a gradient stay."""
        ...

    @property
    def side(self) -> int:
        """Return the pixels of its square input where a phase names none."""
        ...

    def losses(self, examples: Sequence[Example], phase: Phase) -> dict[str, Tensor]:
        """Return scalars by name, whose sum is minimised: means over the examples' prompts.

        Args:
            examples: this process's share of a step.
            phase: that the step belongs to.
        """
        ...

    def segmenter(self) -> Segmenter[Any]:
        """Return the model as it is now, for judging."""
        ...

    def save(self, path: Path) -> None:
        """Write what it has learned, whole or not at all."""
        ...
