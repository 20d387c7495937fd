"""Paired differences between segmenters, and which of them are ties."""

from itertools import combinations

import numpy as np
import pandas as pd

from samrobust.report.estimates import Measured
from samrobust.report.resampling import holm, sign_flip_test
from samrobust.types import Floats

INTERVAL = (0.025, 0.975)
"""Quantiles of the bootstrap samples: a 95 % percentile interval."""
SIGNIFICANT = 0.05
"""A difference whose corrected p is not below it is a tie."""


def paired_differences(measured: Measured) -> pd.DataFrame:
    """Return `Section.differences`: those of all pairs of segmenters, on identical prompts."""
    means = list(measured.contributions.columns)
    cells = [
        (statistic, condition, one, other)
        for statistic, condition in dict.fromkeys((cell[0], cell[2]) for cell in means)
        for one, other in combinations(measured.segmenters, 2)
        if {(statistic, one, condition), (statistic, other, condition)} <= set(means)
    ]
    table = pd.DataFrame(cells, columns=["statistic", "condition", "segmenter", "other"])
    if table.empty:
        return table.assign(difference=[], low=[], high=[], p=[], p_holm=[], is_tie=[])
    mine = [(statistic, one, condition) for statistic, condition, one, _ in cells]
    theirs = [(statistic, other, condition) for statistic, condition, _, other in cells]

    def less(frame: pd.DataFrame) -> Floats:
        gains: Floats = frame[mine].to_numpy() - frame[theirs].to_numpy()
        return gains

    contributions = less(measured.contributions)
    table["difference"] = contributions.sum(axis=0)
    table["low"], table["high"] = np.quantile(less(measured.resampled), INTERVAL, axis=0)
    table["p"] = sign_flip_test(contributions, key=measured.manifest.dataset.key)
    return corrected(table, ["statistic", "condition"])


def corrected(table: pd.DataFrame, family: list[str]) -> pd.DataFrame:
    """Return differences with `p_holm` and `is_tie`.

    A tie has a corrected p that is not below 0.05, or an interval with 0 in it.

    Args:
        table: with `low`, `high` and `p`.
        family: columns; p is corrected over the rows in which they are alike.
    """
    p_holm = table.groupby(family, sort=False)["p"].transform(lambda p: holm(p.to_numpy()))
    clear = (p_holm < SIGNIFICANT) & ((table["low"] > 0) | (table["high"] < 0))
    return table.assign(p_holm=p_holm, is_tie=~clear)
