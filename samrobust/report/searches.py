"""How bad the worst plausible prompts are, and how plausible those are that break a mask."""

from collections.abc import Iterator, Sequence
from typing import TYPE_CHECKING, Any

import numpy as np
import pandas as pd

from samrobust.report.columns import Statistic
from samrobust.report.layout import Spread, Table, records, table_of_rows
from samrobust.report.statistics import INTERVAL, bootstrap_weights
from samrobust.runs.store import Run, read_searches

if TYPE_CHECKING:
    from samrobust.report.summary import Section

VALUES = ("worst", "exact", "best", "broken", "breaks_at")
"""Statistics of a search; each has the ends of its interval in `..._low` and `..._high`."""
COLUMNS = (
    *("segmenter", "condition", "percentile", "n_objects", "n_asked"),
    *(f"{name}{end}" for name in VALUES for end in ("", "_low", "_high")),
)


def search_rows(
    runs: Sequence[Run], segmenters: Sequence[str], objects: pd.DataFrame
) -> pd.DataFrame:
    """Return what the searches of runs found, one row per segmenter, search and object.

    Columns: `segmenter`, those of `samrobust.runs.store.SEARCHES`, and `limit`, the human
    percentile up to which was searched.

    Args:
        runs: of one section.
        segmenters: their labels.
        objects: `sample_id` and `instance_id` of those that all runs have.

    Raises:
        RunError: a file of a run cannot be read.
    """
    key = ["sample_id", "instance_id"]
    tables = []
    for run, segmenter in zip(runs, segmenters, strict=False):  # a group of data sets has no runs
        found = read_searches(run.folder).merge(objects[key], on=key)
        limits = {
            row["name"]: float(row["parameters"].get("percentile", np.nan))
            for row in run.manifest.protocol["conditions"]
            if row["name"] in {*found["condition"]}
        }
        tables.append(found.assign(segmenter=segmenter, limit=found["condition"].map(limits)))
    if not tables:
        return pd.DataFrame(columns=["segmenter", "condition", "limit"])
    return pd.concat(tables, ignore_index=True)


def search_table(rows: pd.DataFrame, *, key: str) -> pd.DataFrame:
    """Return `Section.searches`.

    Args:
        rows: of `search_rows`.
        key: of the bootstrap: the same images for all segmenters.
    """
    found: list[dict[str, Any]] = []
    for (segmenter, condition), group in rows.groupby(["segmenter", "condition"], sort=False):
        limit = float(group["limit"].iloc[0])
        values = group[["worst", "exact", "best"]].assign(
            broken=group["breaks_at"].notna().astype(np.float64),
            breaks_at=group["breaks_at"].fillna(limit) / 100,
            n=1.0,
        )
        sums = values.groupby(group["sample_id"]).sum()[[*VALUES, "n"]].to_numpy(np.float64)
        total = sums.sum(axis=0, keepdims=True)
        resampled = [weights @ sums for weights in bootstrap_weights(len(sums), key=key)]
        samples = np.concatenate(resampled) if resampled else np.full_like(total, np.nan)
        ends = np.quantile(samples[:, :-1] / samples[:, -1:], INTERVAL, axis=0)
        row: dict[str, Any] = {
            "segmenter": segmenter,
            "condition": condition,
            "percentile": limit,
            "n_objects": len(group),
            "n_asked": int(group["n_asked"].max()),
        }
        for place, name in enumerate(VALUES):
            row[name] = total[0, place] / total[0, -1]
            row[f"{name}_low"], row[f"{name}_high"] = ends[:, place]
        found.append(row)
    return pd.DataFrame(found, columns=list(COLUMNS))


_SEARCHED = (
    Statistic("worst", "worst", "%", higher_is_better=True),
    Statistic("exact", "exact", "%", higher_is_better=True),
    Statistic("best", "best", "%", higher_is_better=True),
    Statistic("broken", "broken", "%", higher_is_better=False),
    Statistic("breaks_at", "breaks at", "%", higher_is_better=True),
)


def search_tables(section: "Section", spread: Spread, *, where: str) -> Iterator[Table]:
    """Yield what searches for the worst prompts found, where there are any."""
    found = records(section.searches)
    if not found:
        return
    first = found[0]
    about = (
        f"mIoU in percent of the worst, the exact and the best of {first['n_asked']} prompts that "
        f"each segmenter was asked for each of {first['n_objects']} objects, all below the human "
        f"percentile {first['percentile']:g}; {where} the 95 % interval, bootstrap over images. "
        "The search goes where this segmenter is weak: only its start is the same for all. Broken: "
        "objects with a prompt of IoU below 0.5. Breaks at: mean over objects of the lowest human "
        f"percentile of such a prompt, {first['percentile']:g} where none was found."
    )
    title = f"{section.title}; worst plausible prompts"
    names = {"segmenter": "segmenter", "search": "condition"}
    yield table_of_rows(title, found, names, _SEARCHED, spread, about)
