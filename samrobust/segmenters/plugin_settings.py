"""How the plugins of Stable-SAM are made: what a recipe and the header of a file say of them."""

import dataclasses
from dataclasses import dataclass
from typing import Annotated, Any, Literal

from msgspec import Meta

from samrobust.files import shown

Position = Literal["stays", "moves"]
Amplitude = Literal["map", "none"]
Sampled = Literal["projected", "plain"]
Limit = Literal["cell", "unlimited"]
OffsetRange = Annotated[int, Meta(gt=0, le=1)] | Annotated[float, Meta(gt=0, le=1)] | Limit


@dataclass(frozen=True)
class PluginSettings:
    """What plugins are made with: what the paper does not fix (docs/sources/stable-sam.md).

    The paper's are the default of `layers` and `routing`; all other defaults are ours. DAT
    (Xia et al. 2022), whose offset network Stable-SAM has part for part, moves samples by at most
    a position, has no amplitude and moves positions with their samples; its successor DAT++ does
    not bound offsets.

    Attributes:
        layers: the decoder layers at which they act, counted from 1; one more than there are
            layers is the last attention from tokens to image, after them all. The paper's: 2.
        routing: whether DRP mixes deformed and regular features; without, the deformed ones are
            read alone (the paper's ablation).
        offset_range: how far a sample can move along x or y: a number of sides of the grid; "cell",
            one position; or "unlimited", up to the border of the grid.
        position: whether the positional encoding of a key "stays" that of the place whose sample
            was moved, or "moves" with it.
        amplitude: "map", a number per place that its sample is multiplied by, as in modulated
            deformable convolution (Zhu et al. 2019); or "none". That the paper's amplitude is the
            1x1 convolution of what is sampled is a third reading: it is "none" with `samples`
            "projected".
        samples: "projected", x*, the 1x1 convolution of the image tokens, is sampled, as in the
            paper's last figure; "plain", the image tokens themselves, as in its first, and the
            convolution is a part of the offset network alone.
        groups: of channels, each with its own offsets and amplitudes; a divisor of the number of
            channels, for instance the heads of the attention.

    Raises:
        ValueError: the layers are not ascending.
    """

    layers: Annotated[tuple[Annotated[int, Meta(ge=1)], ...], Meta(min_length=1)] = (2,)
    routing: bool = True
    offset_range: OffsetRange = 0.25
    position: Position = "stays"
    amplitude: Amplitude = "map"
    samples: Sampled = "projected"
    groups: Annotated[int, Meta(ge=1)] = 1

    def __post_init__(self) -> None:
        if list(self.layers) != sorted(set(self.layers)):
            raise ValueError(f"layers must be ascending, got {shown(list(self.layers))}")

    @property
    def described(self) -> dict[str, Any]:
        """Return the settings as plain JSON values, by which recipes are hashed and files named.

        Those that version 0.1.0 did not have are left out where they have their default, so that
        what was stored before keeps its hash.
        """
        default = PluginSettings()
        return {
            name: value
            for name, value in dataclasses.asdict(self).items()
            if name in _ALWAYS or value != getattr(default, name)
        }


_ALWAYS = ("layers", "routing", "offset_range", "position")
