"""How the plugins of Stable-SAM are made: what a recipe and the header of a file say of them."""

from dataclasses import dataclass
from typing import Any, Literal

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
        ValueError: a value is not allowed.
    """

    layers: tuple[int, ...] = (2,)
    routing: bool = True
    offset_range: float = 0.25
    position: Position = "stays"

    def __post_init__(self) -> None:
        layers: object = self.layers  # a file may hold anything
        if not isinstance(layers, list | tuple) or not _is_ascending(layers):
            raise ValueError(f"layers must be a list of 1, 2, ..., ascending, got {shown(layers)}")
        object.__setattr__(self, "layers", tuple(layers))
        if not 0 < self.offset_range <= 1:
            raise ValueError(f"offset_range must be in (0, 1], got {self.offset_range}")
        if self.position not in ("stays", "moves"):
            raise ValueError(f"position must be 'stays' or 'moves', got {self.position!r}")


def _is_ascending(layers: list[Any] | tuple[Any, ...]) -> bool:
    whole = all(type(layer) is int for layer in layers)
    return whole and len(layers) > 0 and list(layers) == sorted({*layers}) and layers[0] >= 1
