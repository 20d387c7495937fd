"""Corrupted images crossed with degraded prompts: means, what is left, and their interaction."""

from collections.abc import Mapping, Sequence
from typing import Any

import numpy as np
import pandas as pd

from samrobust.report.glance import EXACT
from samrobust.report.statistics import INTERVAL
from samrobust.types import Floats

ALL = "all"
"""In place of a corruption: the unweighted mean over all of them."""
VALUES = ("value", "relative", "interaction")
"""Columns with values; each has the ends of its interval in `..._low` and `..._high`."""
COLUMNS = (
    "segmenter",
    "statistic",
    "corruption",
    "severity",
    "condition",
    *(f"{name}{end}" for name in VALUES for end in ("", "_low", "_high")),
)


def corruptions_of(
    estimates: "pd.Series[float]",
    resampled: pd.DataFrame,
    *,
    segmenters: Sequence[str],
    conditions: Sequence[Mapping[str, Any]],
    statistics: Sequence[str],
) -> pd.DataFrame:
    """Return `Section.corruptions`, of the first statistic that has scores on corrupted images.

    With m(c, p) the mean under corruption c and prompt p, 0 for the image as it is stored and for
    the exact box: the value is m(c, p), what is left of the clean image's relative to it is
    m(c, p) / m(0, p), and the interaction m(c, p) - m(c, 0) - m(0, p) + m(0, 0): below 0 where both
    together cost more than the sum of what each costs alone.

    Args:
        estimates: of cells (statistic, segmenter, condition).
        resampled: bootstrap samples x cells.
        segmenters: labels, in the order of the rows.
        conditions: of the protocol, those on corrupted images among them.
        statistics: means of metrics, the most telling first.
    """
    prompts = [row["name"] for row in conditions if "image" not in row]
    exact = next((row["name"] for row in conditions if row["degradation"] == EXACT), "")
    crossed = [row for row in conditions if "image" in row]
    statistic = next(
        (
            name
            for name in statistics
            if any(
                (name, label, row["name"]) in estimates for label in segmenters for row in crossed
            )
        ),
        "",
    )
    if not statistic:
        return pd.DataFrame(columns=list(COLUMNS))
    together = pd.concat([estimates.to_frame().T, resampled], ignore_index=True)
    images = {row["image"]["name"]: row["image"] for row in crossed}
    rows = []
    for label in segmenters:

        def mean(names: Sequence[str], label: str = label) -> Floats:
            """Return the mean over conditions, the estimate first, then resampled; or NaN."""
            cells = [(statistic, label, name) for name in names]
            if not cells or any(cell not in together for cell in cells):
                return np.full(len(together), np.nan)
            means: Floats = together[cells].to_numpy().mean(axis=1)
            return means

        for (corruption, severity), chosen in _selections(images).items():
            for prompt in prompts:
                value, clean = mean([f"{image}/{prompt}" for image in chosen]), mean([prompt])
                whole = mean([exact]) if exact else np.full(len(together), np.nan)
                of_exact = mean([f"{image}/{exact}" for image in chosen])
                interaction = np.full(len(together), np.nan)
                if prompt != exact:
                    interaction = value - of_exact - clean + whole
                relative = np.divide(
                    value, clean, out=np.full(len(together), np.nan), where=clean != 0
                )
                row: dict[str, Any] = dict(
                    zip(COLUMNS, (label, statistic, corruption, severity, prompt), strict=False)
                )
                for name, found in zip(VALUES, (value, relative, interaction), strict=True):
                    row[name] = found[0]
                    row[f"{name}_low"], row[f"{name}_high"] = np.quantile(found[1:], INTERVAL)
                rows.append(row)
    return pd.DataFrame(rows, columns=list(COLUMNS)).dropna(subset="value", ignore_index=True)


def _selections(images: Mapping[str, Mapping[str, Any]]) -> dict[tuple[str, float], list[str]]:
    """Return (corruption, severity) -> names of images; `ALL`, and NaN for all severities."""
    kinds = list(dict.fromkeys(image["corruption"] for image in images.values()))
    levels = sorted({float(image["level"]) for image in images.values()})
    return {
        (kind, level): names
        for kind in (ALL, *kinds)
        for level in (*levels, np.nan)
        if (
            names := [
                name
                for name, image in images.items()
                if kind in (ALL, image["corruption"])
                and (np.isnan(level) or image["level"] == level)
            ]
        )
    }
