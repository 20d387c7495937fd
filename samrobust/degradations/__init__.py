"""The registry of degradations, which make prompts from masks: built-ins and those of plug-ins."""

from collections.abc import Mapping
from dataclasses import dataclass, field

from samrobust.registry import Entry, Registry
from samrobust.types import Degradation


@dataclass(frozen=True)
class DegradationEntry(Entry):
    """A built-in degradation.

    Attributes:
        axes: what figures write at an axis, by the parameters that are the level of a condition,
            comma-separated.
    """

    axes: Mapping[str, str] = field(default_factory=dict)


DEGRADATION_ENTRIES = {
    "exact-box": DegradationEntry(
        "samrobust.degradations.boxes:ExactBox",
        "box of the first and last column and row of the mask; no parameters",
    ),
    "box-noise": DegradationEntry(
        "samrobust.degradations.boxes:BoxNoise",
        "box with noise on centre and sides; shift, scale",
        axes={
            "shift, scale": "box noise (fraction of side)",
            "shift": "centre noise (fraction of side)",
            "scale": "side noise (fraction of side)",
        },
    ),
    "box-shift": DegradationEntry(
        "samrobust.degradations.boxes:BoxShift",
        "box moved by a fraction of its sides in a random direction; amount",
        axes={"amount": "box shift (fraction of side)"},
    ),
    "box-scale": DegradationEntry(
        "samrobust.degradations.boxes:BoxScale",
        "box scaled about its centre; factor",
        axes={"factor": "scale of the box"},
    ),
    "human-box": DegradationEntry(
        "samrobust.degradations.human:HumanBox",
        "box as far from the tight one as people's are; percentile, shape, scale",
        axes={"percentile": "error of the box (human percentile)"},
    ),
    "random-points": DegradationEntry(
        "samrobust.degradations.points:RandomPoints",
        "points drawn uniformly from the mask; count, background",
        axes={"count": "points"},
    ),
    "centre-point": DegradationEntry(
        "samrobust.degradations.points:CentrePoint",
        "the mask's pixel farthest from the outside; background",
    ),
    "border-points": DegradationEntry(
        "samrobust.degradations.points:BorderPoints",
        "points inside the mask near its contour; count, band, background",
        axes={"count": "points near the border"},
    ),
    "part-box": DegradationEntry(
        "samrobust.degradations.parts:PartBox",
        "exact box of a random part of the object; side",
        axes={"side": "part (fraction of side)"},
    ),
    "part-points": DegradationEntry(
        "samrobust.degradations.parts:PartPoints",
        "points drawn uniformly from a random part of the object; count, side",
        axes={"count": "points on a part"},
    ),
}
DEGRADATIONS: Registry[type[Degradation]] = Registry(
    "degradation", DEGRADATION_ENTRIES, group="samrobust.degradations"
)
