"""The registry of metrics: built-ins and those of plug-ins."""

import math
from functools import cache

from samrobust.registry import Entry, Registry
from samrobust.types import Metric

METRICS: Registry[Metric] = Registry(
    "metric",
    {
        "iou": Entry("samrobust.metrics.overlap:IOU", "intersection over union with the target"),
        "boundary-iou": Entry(
            "samrobust.metrics.overlap:BOUNDARY_IOU",
            "IoU of the inner boundary bands, 2 % of the image diagonal wide (Cheng et al. 2021)",
        ),
        "stability": Entry(
            "samrobust.metrics.overlap:STABILITY",
            "mean IoU of an object's masks with their union, over trials; needs no target",
        ),
    },
    group="samrobust.metrics",
)


@cache
def bounds_of(name: str) -> tuple[float, float]:
    """Return the smallest and largest value of a metric; infinite for one that is not installed."""
    return METRICS.load(name).bounds if name in METRICS.names() else (-math.inf, math.inf)
