"""The registry of metrics: built-ins and those of plug-ins."""

import math
from functools import cache

from samrobust.errors import SamrobustError
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
        "iou-at-minus-1": Entry(
            "samrobust.metrics.overlap:IOU_AT_MINUS_1",
            "IoU of the mask of all logits above -1, a larger one; of segmenters that give logits",
        ),
        "iou-at-plus-1": Entry(
            "samrobust.metrics.overlap:IOU_AT_PLUS_1",
            "IoU of the mask of all logits above 1, a smaller one; of segmenters that give logits",
        ),
        "agreement": Entry(
            "samrobust.metrics.overlap:AGREEMENT",
            "mean IoU of pairs of an object's masks, over trials; needs no target",
        ),
    },
    group="samrobust.metrics",
)


def load_metric(name: str) -> Metric:
    """Return a metric by its registered name.

    Raises:
        UnknownNameError: no metric has that name.
        SamrobustError: it goes by another name, under which its scores could not be found again.
    """
    metric = METRICS.load(name)
    if metric.name != name:
        raise SamrobustError(
            f"metric '{name}' calls itself '{metric.name}'; its name must be the registered one"
        )
    return metric


@cache
def bounds_of(name: str) -> tuple[float, float]:
    """Return the smallest and largest value of a metric; infinite for one that is not installed."""
    return load_metric(name).bounds if name in METRICS.names() else (-math.inf, math.inf)
