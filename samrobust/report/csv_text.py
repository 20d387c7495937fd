"""Summaries as CSV, for programs: one number a cell."""

from collections.abc import Sequence

import pandas as pd

from samrobust.report.aggregate import Section


def to_csv(sections: Sequence[Section]) -> str:
    """Return all rows of all sections, one number a cell, fractions with 6 significant digits.

    Columns: protocol, version, dataset, marks, then those of `Section.rows`; an empty cell where
    there is no value.
    """
    return _joined_csv(sections, [section.rows for section in sections])


def differences_csv(sections: Sequence[Section]) -> str:
    """Return all paired differences; columns as `to_csv`, then `Section.differences`."""
    return _joined_csv(sections, [section.differences for section in sections])


def breakdown_csv(sections: Sequence[Section]) -> str:
    """Return the scores of all classes of objects; columns as `to_csv`, `Section.breakdown`."""
    return _joined_csv(sections, [section.breakdown for section in sections])


def _joined_csv(sections: Sequence[Section], frames: Sequence[pd.DataFrame]) -> str:
    tables = []
    for section, frame in zip(sections, frames, strict=True):
        table = frame.copy()
        table.insert(0, "protocol", section.protocol)
        table.insert(1, "version", section.version)
        table.insert(2, "dataset", section.dataset)
        table.insert(3, "marks", "; ".join(section.marks))
        tables.append(table)
    joined = pd.concat(tables, ignore_index=True) if tables else pd.DataFrame()
    return joined.to_csv(index=False, float_format="%.6g", lineterminator="\n")
