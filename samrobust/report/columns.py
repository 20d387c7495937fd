"""The statistics of a report: how each is called, in which unit it is shown and which way is up."""

import math
from dataclasses import dataclass
from functools import cache
from typing import Literal

from samrobust.metrics import METRICS, load_metric
from samrobust.protocol import CLICK_METRICS, NOC_AT

COLUMNS = {"iou": "miou", "boundary-iou": "mbiou", "stability": "msf"}
"""Metric -> the column of its mean, as CSV files and exports name it; others keep their name."""
NO_VALUE = "\N{EN DASH}"
"""Stands where there is no value: the spread of one trial, what a paper does not print."""


@dataclass(frozen=True)
class Statistic:
    """One column of a report.

    Attributes:
        column: its name in data frames and files; values there are in the unit of the metric,
            fractions in [0, 1].
        label: what stands above it.
        unit: "%" for fractions shown in percent, "%^2" for their variances, "clicks" for means of
            numbers of clicks, "" for other numbers.
        higher_is_better: whether the segmenter with the higher value is the better one.
    """

    column: str
    label: str
    unit: Literal["%", "%^2", "clicks", ""]
    higher_is_better: bool

    @property
    def factor(self) -> float:
        """Return what a value is multiplied by to be shown."""
        return {"%": 100.0, "%^2": 100.0**2, "clicks": 1.0, "": 1.0}[self.unit]

    @property
    def axis(self) -> str:
        """Return the label with the unit."""
        return f"{self.label} ({self.unit})" if self.unit else self.label

    def text(self, value: float, *, sign: str = "") -> str:
        """Return a value as it is shown, a dash where there is none.

        Args:
            value: in the unit of the data frames.
            sign: "+" to show the sign of positive values too.
        """
        if math.isnan(value):
            return NO_VALUE
        digits = {"%": ".1f", "%^2": ".0f", "clicks": ".2f", "": ".4g"}[self.unit]
        return f"{self.factor * value:{sign}{digits}}"


OF_TRIALS = {
    statistic.column: statistic
    for statistic in (
        Statistic("iou_std", "IoU std", "%", higher_is_better=False),
        Statistic("iou_var", "var trials", "%^2", higher_is_better=False),
        Statistic("iou_var_between", "var objects", "%^2", higher_is_better=True),
        Statistic("iou_low", "low 10 %", "%", higher_is_better=True),
        Statistic("iou_failed", "IoU < 0.5", "%", higher_is_better=False),
        Statistic("iou_fell", "fell", "%", higher_is_better=False),
    )
}
"""What is known of IoU over trials besides its mean."""
OF_THRESHOLDS = {
    "threshold_share": Statistic("threshold_share", "threshold's", "%", higher_is_better=False)
}
"""What is known of IoU over trials where it is measured at several thresholds."""
OF_CLICKS = {
    statistic.column: statistic
    for statistic in (
        *(Statistic(f"noc_{at}", f"NoC@{at}", "clicks", higher_is_better=False) for at in NOC_AT),
        *(Statistic(f"nof_{at}", f"NoF@{at}", "%", higher_is_better=False) for at in NOC_AT),
        Statistic("click_auc", "AuC", "%", higher_is_better=True),
        Statistic("click_fell", "worse", "%", higher_is_better=False),
    )
}
"""What is known of IoU over the clicks of a conversation, in the row of its last click."""
SPREADS = OF_TRIALS | OF_THRESHOLDS | OF_CLICKS
PRECISIONS = (
    Statistic("ap", "AP", "%", higher_is_better=True),
    Statistic("ap_50", "AP50", "%", higher_is_better=True),
    Statistic("ap_75", "AP75", "%", higher_is_better=True),
    Statistic("ap_small", "AP S", "%", higher_is_better=True),
    Statistic("ap_medium", "AP M", "%", higher_is_better=True),
    Statistic("ap_large", "AP L", "%", higher_is_better=True),
    Statistic("boundary_ap", "boundary AP", "%", higher_is_better=True),
    Statistic("ap_rare", "AP r", "%", higher_is_better=True),
    Statistic("ap_common", "AP c", "%", higher_is_better=True),
    Statistic("ap_frequent", "AP f", "%", higher_is_better=True),
)
"""The first six in the order of pycocotools' own summary; the last three are LVIS's."""
DETAILS = ("iou_low", "iou_failed", "iou_var_between", "iou_var", "iou_fell", "threshold_share")
"""Columns of the table over trials; all others are in the main table."""


@cache
def statistic_of(column: str) -> Statistic:
    """Return the statistic of a column; the name alone is known of a metric not installed."""
    if column in SPREADS:
        return SPREADS[column]
    name = {mean: metric for metric, mean in COLUMNS.items()}.get(column, column)
    if name not in METRICS.names():
        return Statistic(column, column, "", higher_is_better=True)
    metric = load_metric(name)
    return Statistic(column, metric.label or column, metric.unit, metric.higher_is_better)


def column_of(metric: str) -> str:
    """Return the column of the mean of a metric, or of what is known of conversations."""
    return metric.replace("-", "_") if metric in CLICK_METRICS else COLUMNS.get(metric, metric)
