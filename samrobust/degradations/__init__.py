"""The registry of degradations, which make prompts from masks: built-ins and those of plug-ins."""

from samrobust.registry import Entry, Registry
from samrobust.types import Degradation

DEGRADATIONS: Registry[type[Degradation]] = Registry(
    "degradation",
    {
        "exact-box": Entry(
            "samrobust.degradations.boxes:ExactBox",
            "box of the first and last column and row of the mask; no parameters",
        ),
        "box-noise": Entry(
            "samrobust.degradations.boxes:BoxNoise",
            "box with noise on centre and sides; shift, scale",
        ),
        "box-shift": Entry(
            "samrobust.degradations.boxes:BoxShift",
            "box moved by a fraction of its sides in a random direction; amount",
        ),
        "box-scale": Entry(
            "samrobust.degradations.boxes:BoxScale",
            "box scaled about its centre; factor",
        ),
        "random-points": Entry(
            "samrobust.degradations.points:RandomPoints",
            "points drawn uniformly from the mask; count, background",
        ),
        "centre-point": Entry(
            "samrobust.degradations.points:CentrePoint",
            "the mask's pixel farthest from the outside; background",
        ),
        "border-points": Entry(
            "samrobust.degradations.points:BorderPoints",
            "points inside the mask near its contour; count, band, background",
        ),
        "part-box": Entry(
            "samrobust.degradations.parts:PartBox",
            "exact box of a random part of the object; side",
        ),
        "part-points": Entry(
            "samrobust.degradations.parts:PartPoints",
            "points drawn uniformly from a random part of the object; count, side",
        ),
    },
    group="samrobust.degradations",
)
