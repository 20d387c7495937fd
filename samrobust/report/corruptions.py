"""Corrupted images crossed with degraded prompts: means, what is left, and their interaction."""

import math
from collections.abc import Callable, Iterator, Mapping, Sequence
from typing import TYPE_CHECKING, Any

import numpy as np
import pandas as pd

from samrobust.report.columns import NO_VALUE, Statistic, statistic_of
from samrobust.report.glance import EXACT
from samrobust.report.layout import Row, Spread, Table, points, records, with_spread
from samrobust.report.statistics import INTERVAL
from samrobust.types import Floats

if TYPE_CHECKING:
    from samrobust.report.summary import Section

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


_LEFT = Statistic("relative", "left in %", "%", higher_is_better=True)


def corruption_tables(section: "Section", spread: Spread, *, where: str) -> Iterator[Table]:
    """Yield the means over corruptions by severity, then their interaction with prompts."""
    frame = section.corruptions[section.corruptions["corruption"] == ALL]
    if frame.empty:
        return
    unit = statistic_of(str(frame["statistic"].iloc[0]))
    count = section.corruptions["corruption"].nunique() - 1
    over = "the one corruption" if count == 1 else f"the {count} corruptions"
    by_prompt = frame.assign(row=frame["severity"].map(_severity), column=frame["condition"])
    interval = f"{where} the 95 % interval over images"
    yield _crossed_table(
        by_prompt,
        "value",
        lambda row: with_spread(row, "value", spread, unit),
        head=(f"{section.title}; on corrupted images", "severity"),
        about=f"Mean {unit.label} over {over}, by prompt; {interval}.",
    )
    by_severity = frame[frame["interaction"].notna()]
    if len(by_severity):
        names = by_severity["severity"].map(_severity)
        yield _crossed_table(
            by_severity.assign(row=by_severity["condition"], column=names),
            "interaction",
            lambda row: f"{points(row['interaction'])} {spread(row, 'interaction', unit)}".rstrip(),
            head=(f"{section.title}; interaction of corruption and prompt", "condition"),
            about=f"m(c, p) - m(c, 0) - m(0, p) + m(0, 0) in points of {unit.label}, c a "
            "corruption, p a prompt, 0 none and the exact box; below 0 both together cost more "
            f"than the sum of what each costs alone. Mean over {over}, by severity; {interval}.",
        )


def tables_by_corruption(section: "Section", spread: Spread, *, where: str) -> Iterator[Table]:
    """Yield what is left under each corruption, as the mean over its severities."""
    frame = section.corruptions[section.corruptions["severity"].isna()]
    if frame.empty:
        return
    unit = statistic_of(str(frame["statistic"].iloc[0]))
    yield _crossed_table(
        frame.assign(row=frame["corruption"], column=frame["condition"]),
        "relative",
        lambda row: with_spread(row, "relative", spread, _LEFT),
        head=(f"{section.title}; by corruption", "corruption"),
        about=f"{unit.label} in % of that on the images as they are stored, for the same prompts; "
        f"mean over severities; {where} the 95 % interval over images.",
    )


def _crossed_table(
    frame: pd.DataFrame,
    value: str,
    text: Callable[[Row], str],
    *,
    head: tuple[str, str],
    about: str,
) -> Table:
    """Return a table of one row per segmenter and `row`, and one column per `column`."""
    columns = list(frame["column"].unique())
    cells: dict[tuple[str, str], dict[str, str]] = {}
    for row in records(frame.dropna(subset=value)):
        cells.setdefault((row["segmenter"], row["row"]), {})[row["column"]] = text(row)
    rows = [
        (*key, *(found.get(name, NO_VALUE) for name in columns)) for key, found in cells.items()
    ]
    title, second = head
    of = tuple((row[0],) for row in rows)
    return Table(title, ("segmenter", second, *columns), tuple(rows), (about,), segmenters=of)


def _severity(level: float) -> str:
    """Return a severity as a text; "mean" for that over all."""
    return "mean" if math.isnan(level) else f"{level:g}"
