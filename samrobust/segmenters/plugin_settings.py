"""How the plugins of Stable-SAM are made: what a recipe and the header of a file say of them."""

from dataclasses import dataclass
from typing import Annotated, Literal

from msgspec import Meta

from samrobust.files import shown

Position = Literal["stays", "moves"]


@dataclass(frozen=True)
class PluginSettings:
    """What plugins are made with, all of it ours but the default of `layers` and `routing`.

    Attributes:
        layers: the decoder layers at which they act, counted from 1; one more than there are
            layers is the last attention from tokens to image, after them all. The paper's: 2.
        routing: whether DRP mixes deformed and regular features; without, the deformed ones are
            read alone (the paper's ablation).
        offset_range: how far a sample can move along x or y, in sides of the grid.
        position: whether the positional encoding of a key "stays" that of the place whose sample
            was moved, or "moves" with it.

    Raises:
        ValueError: the layers are not ascending.
    """

    layers: Annotated[tuple[Annotated[int, Meta(ge=1)], ...], Meta(min_length=1)] = (2,)
    routing: bool = True
    offset_range: Annotated[int, Meta(gt=0, le=1)] | Annotated[float, Meta(gt=0, le=1)] = 0.25
    position: Position = "stays"

    def __post_init__(self) -> None:
        if list(self.layers) != sorted(set(self.layers)):
            raise ValueError(f"layers must be ascending, got {shown(list(self.layers))}")
