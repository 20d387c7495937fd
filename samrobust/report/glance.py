"""A protocol at a glance: one number a segmenter, and what it loses against the exact prompt."""

from collections.abc import Mapping, Sequence
from typing import Any

import numpy as np
import pandas as pd

from samrobust.report.columns import statistic_of
from samrobust.report.statistics import INTERVAL

EXACT = "exact-box"
"""The degradation that leaves the prompt as it is."""
BEST = ("best-box", "best-box-by-gradient", "best-point")
"""Searches that take the best prompt: neither degraded nor exact."""
VALUES = ("exact", "mean", "drop", "relative")
"""Columns with values; each has the ends of its interval in `..._low` and `..._high`."""
COLUMNS = (
    "segmenter",
    "statistic",
    "n_conditions",
    *(f"{name}{end}" for name in VALUES for end in ("", "_low", "_high")),
)


def glance_of(
    estimates: "pd.Series[float]",
    resampled: pd.DataFrame,
    *,
    segmenters: Sequence[str],
    conditions: Sequence[Mapping[str, Any]],
    statistics: Sequence[str],
) -> pd.DataFrame:
    """Return `Section.glance`: the mean over degraded conditions, and the drop to it.

    The mean is unweighted, over the conditions but the exact prompt and the best one in which
    all segmenters have a score; of the first statistic that has any. Empty for conversations, whose
    prompts get better.

    Args:
        estimates: of cells (statistic, segmenter, condition).
        resampled: bootstrap samples x cells.
        segmenters: labels, in the order of the rows.
        conditions: of the protocol.
        statistics: means of metrics, the most telling first.
    """
    if any(row.get("turn") for row in conditions):
        return pd.DataFrame(columns=list(COLUMNS))
    cells = set(estimates.index)

    def shared(statistic: str, *, exact: bool) -> list[str]:
        return [
            row["name"]
            for row in conditions
            if (row["degradation"] == EXACT) == exact
            and row["degradation"] not in BEST
            and all((statistic, label, row["name"]) in cells for label in segmenters)
        ]

    for statistic in statistics:
        degraded, exact = (shared(statistic, exact=is_exact) for is_exact in (False, True))
        if degraded:
            break
    else:
        return pd.DataFrame(columns=list(COLUMNS))
    sign = 1 if statistic_of(statistic).higher_is_better else -1
    together = pd.concat([estimates.to_frame().T, resampled], ignore_index=True)
    rows = []
    for label in segmenters:
        mean, whole = (
            together[[(statistic, label, name) for name in names]].mean(axis=1).to_numpy()
            if names
            else np.full(len(together), np.nan)
            for names in (degraded, exact[:1])
        )
        drop = sign * (whole - mean)
        relative = np.divide(drop, whole, out=np.full(len(drop), np.nan), where=whole != 0)
        row: dict[str, Any] = {
            "segmenter": label,
            "statistic": statistic,
            "n_conditions": len(degraded),
        }
        for name, values in zip(VALUES, (whole, mean, drop, relative), strict=True):
            row[name] = values[0]
            row[f"{name}_low"], row[f"{name}_high"] = np.quantile(values[1:], INTERVAL)
        rows.append(row)
    return pd.DataFrame(rows, columns=list(COLUMNS))
