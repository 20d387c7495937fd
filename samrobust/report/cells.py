"""What stands in a cell of a table: heads, values, intervals, differences."""

import math
from typing import Any

Row = dict[str, Any]

NAMES = {"miou": "mIoU", "mbiou": "mBIoU", "msf": "mSF", "iou_std": "IoU std"}
"""Statistics of the main table, in percent -> their heads; metrics of plug-ins follow."""
TRIAL_NAMES = {
    "iou_low": "low 10 %",
    "iou_failed": "IoU < 0.5",
    "iou_var_between": "var objects",
    "iou_var": "var trials",
    "iou_fell": "fell",
}
"""Statistics of the table over trials -> their heads; in percent, variances in percent squared."""
VARIANCES = ("iou_var_between", "iou_var")
NONE = "\N{EN DASH}"
"""Stands where there is no value: the spread of one trial, what a paper does not print."""


def head(statistic: str) -> str:
    """Return what stands above a statistic."""
    return {**NAMES, **TRIAL_NAMES}.get(statistic, statistic)


def factor(statistic: str) -> float:
    """Return what a statistic is multiplied with to be shown: 100 for percent."""
    if statistic in VARIANCES:
        return 100.0**2
    return 100.0 if statistic in {**NAMES, **TRIAL_NAMES} else 1.0


def p_text(p: float) -> str:
    """Return a p value with as many digits as there is reason for."""
    return "< 0.001" if p < 0.001 else f"{p:.3f}"


def value_text(row: Row, statistic: str) -> str:
    """Return a statistic of a row as it is shown, a dash where there is none."""
    value = row[statistic]
    return NONE if math.isnan(value) else _number(value, statistic)


def interval_text(row: Row, statistic: str) -> str:
    """Return the interval of a statistic in brackets, nothing where there is none."""
    low, high = row[f"{statistic}_low"], row[f"{statistic}_high"]
    if math.isnan(low):
        return ""
    return f"[{_number(low, statistic)}, {_number(high, statistic)}]"


def half_width(row: Row, statistic: str) -> str:
    """Return half of the interval of a statistic after a sign, nothing where there is none."""
    half = (row[f"{statistic}_high"] - row[f"{statistic}_low"]) / 2
    if math.isnan(half):
        return ""
    return f"±{half:.2g}" if factor(statistic) == 1 else f"±{_number(half, statistic)}"


def points(difference: float) -> str:
    """Return a difference of fractions in points, with a sign."""
    return f"{100 * difference:+.2f}"


def _number(value: float, statistic: str) -> str:
    if factor(statistic) == 1:
        return f"{value:.4g}"
    return f"{factor(statistic) * value:.{0 if statistic in VARIANCES else 1}f}"
