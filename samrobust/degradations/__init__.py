"""Prompts made from masks, by name; the built-ins and how others are added."""

from samrobust.registry import Entry, Registry
from samrobust.types import Degradation

DEGRADATIONS: Registry[type[Degradation]] = Registry(
    "degradation",
    {
        "exact-box": Entry(
            "samrobust.degradations.boxes:ExactBox",
            "first and last column and row of the mask; no parameters",
        ),
        "box-noise": Entry(
            "samrobust.degradations.boxes:BoxNoise",
            "centre and sides of the box moved at random; shift, scale",
        ),
        "box-shift": Entry(
            "samrobust.degradations.boxes:BoxShift",
            "the box moved by a fraction of its sides in a random direction; amount",
        ),
        "box-scale": Entry(
            "samrobust.degradations.boxes:BoxScale",
            "the box scaled about its centre; factor",
        ),
        "random-points": Entry(
            "samrobust.degradations.points:RandomPoints",
            "points uniform over the mask, nested in their count; count, background",
        ),
        "centre-point": Entry(
            "samrobust.degradations.points:CentrePoint",
            "the pixel farthest from the outside; background",
        ),
        "border-points": Entry(
            "samrobust.degradations.points:BorderPoints",
            "points inside the object near its contour; count, band, background",
        ),
        "part-box": Entry(
            "samrobust.degradations.parts:PartBox",
            "the exact box of a random part of the object; side",
        ),
        "part-points": Entry(
            "samrobust.degradations.parts:PartPoints",
            "points uniform over a random part of the object; count, side",
        ),
    },
    group="samrobust.degradations",
)
