"""A table of texts, and how numbers become texts."""

import math
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from typing import Any

import pandas as pd

from samrobust.report.columns import Statistic, statistic_of

Row = dict[str, Any]
Spread = Callable[..., str]
"""`interval_text` or `half_width`."""


def p_text(p: float) -> str:
    """Return a p value with as many digits as there is reason for."""
    return "< 0.001" if p < 0.001 else f"{p:.3f}"


def value_text(row: Row, statistic: str) -> str:
    """Return a statistic of a row as it is shown, a dash where there is none."""
    return statistic_of(statistic).text(row[statistic])


def interval_text(row: Row, statistic: str, shown_as: Statistic | None = None) -> str:
    """Return the interval of a statistic in brackets, nothing where there is none.

    Args:
        row: with the ends in `..._low` and `..._high`.
        statistic: name of the column.
        shown_as: how it is shown, None for as it is called.
    """
    low, high = row[f"{statistic}_low"], row[f"{statistic}_high"]
    if math.isnan(low):
        return ""
    shown_as = shown_as or statistic_of(statistic)
    return f"[{shown_as.text(low)}, {shown_as.text(high)}]"


def half_width(row: Row, statistic: str, shown_as: Statistic | None = None) -> str:
    """Return half of the interval of a statistic after a sign, nothing where there is none."""
    half = (row[f"{statistic}_high"] - row[f"{statistic}_low"]) / 2
    if math.isnan(half):
        return ""
    shown_as = shown_as or statistic_of(statistic)
    return f"±{shown_as.text(half)}" if shown_as.unit else f"±{half:.2g}"


def with_spread(row: Row, statistic: str, spread: Spread, shown_as: Statistic | None = None) -> str:
    """Return a statistic of a row with its interval, where there are such."""
    value = (shown_as or statistic_of(statistic)).text(row[statistic])
    return f"{value} {spread(row, statistic, shown_as)}".rstrip()


def points(difference: float) -> str:
    """Return a difference of fractions in points, with a sign."""
    return f"{100 * difference:+.2f}"


@dataclass(frozen=True)
class Table:
    """A table of one section, ready to be printed.

    Attributes:
        title: protocol, data set and marks.
        header: one text a column: segmenter, condition, then the statistics that there are.
        rows: as many texts each; metrics in percent, those of plug-ins in their own unit.
        footnotes: what the numbers are, and the sources of published rows.
        bold: (row, column) of the best values, where they are not ties.
        n_names: columns that are names, before those of numbers.
        segmenters: those that each row is about.
        dispensable: columns that may go where there is no room, the first ones first; () for all
            numbers but the first, the last ones first.
    """

    title: str
    header: tuple[str, ...]
    rows: tuple[tuple[str, ...], ...]
    footnotes: tuple[str, ...]
    bold: frozenset[tuple[int, int]] = frozenset()
    n_names: int = 2
    segmenters: tuple[tuple[str, ...], ...] = ()
    dispensable: tuple[int, ...] = ()


def table_of_rows(
    title: str,
    rows: Sequence[Row],
    names: Mapping[str, str],
    statistics: Sequence[Statistic],
    spread: Spread,
    about: str,
) -> Table:
    """Return a table of names, then of statistics with their intervals.

    Args:
        title: of the table.
        rows: with the columns, `segmenter` among them.
        names: what stands above a column of names -> the column.
        statistics: of the other columns.
        spread: how intervals are shown.
        about: the footnote.
    """
    texts = [
        (
            *(row[column] for column in names.values()),
            *(with_spread(row, each.column, spread, each) for each in statistics),
        )
        for row in rows
    ]
    header = (*names, *(each.label for each in statistics))
    of = tuple((row["segmenter"],) for row in rows)
    return Table(title, header, tuple(texts), (about,), n_names=len(names), segmenters=of)


def records(frame: pd.DataFrame) -> list[Row]:
    """Return the rows of a table as dictionaries."""
    return [{str(key): row[key] for key in row} for row in frame.to_dict("records")]
