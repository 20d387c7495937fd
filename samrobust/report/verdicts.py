"""Stored runs beside published values: what was measured, how far off, and whether that is met."""

from collections.abc import Sequence
from dataclasses import dataclass
from typing import Literal

import pandas as pd

from samrobust.expected import Expected
from samrobust.segmenters.published import published_sha256
from samrobust.store import Run

Verdict = Literal["met", "off", "no run"]


@dataclass(frozen=True)
class Verified:
    """One published value with what was measured.

    Attributes:
        expected: the value and what it was measured with.
        measured: the same by stored runs, in [0, 1]; None where a run is missing.
    """

    expected: Expected
    measured: float | None

    @property
    def difference(self) -> float | None:
        """Return measured less published."""
        return None if self.measured is None else self.measured - self.expected.value

    @property
    def verdict(self) -> Verdict:
        """Return whether the value is met within its tolerance."""
        if self.difference is None:
            return "no run"
        return "met" if abs(self.difference) <= self.expected.tolerance else "off"


def verify(rows: Sequence[Expected], runs: Sequence[Run]) -> list[Verified]:
    """Return each published value with what complete runs of the very same setting measured.

    A run over some of the images, with another number of trials, or with weights that are not the
    published ones does not count. Of several runs that do, the newest is taken.
    """
    whole = sorted((run for run in runs if _is_whole(run)), key=lambda run: run.manifest.created)
    return [Verified(row, _measured(row, whole)) for row in rows]


def _is_whole(run: Run) -> bool:
    manifest = run.manifest
    changed = manifest.limit is not None or manifest.trials is not None or manifest.dataset.part
    return not changed and not run.failures and run.n_missing == 0


def _measured(row: Expected, runs: Sequence[Run]) -> float | None:
    values = []
    for member in row.members:
        fitting = [run for run in runs if _fits(run, row, member)]
        if not fitting:
            return None
        values.append(_mean(fitting[-1].scores, row))
    return sum(values) / len(values)


def _fits(run: Run, row: Expected, dataset: str) -> bool:
    manifest, segmenter = run.manifest, run.manifest.segmenter
    published = published_sha256(row.segmenter, row.variant)
    return (
        (manifest.protocol["name"], manifest.protocol["selection"])
        == (row.protocol_name, row.selection)
        and (manifest.dataset.name, segmenter.name) == (dataset, row.segmenter)
        and (not row.split or manifest.dataset.split == row.split)
        and (not row.variant or segmenter.variant == row.variant)
        and segmenter.frame in (None, row.frame)
        and segmenter.settings.get("output", "") == row.output
        and published in ("", segmenter.checkpoint_sha256)
    )


def _mean(scores: pd.DataFrame, row: Expected) -> float:
    """Return the mean over objects of the mean over trials."""
    chosen = (scores["condition"] == row.condition) & (scores["metric"] == row.metric)
    values = scores[chosen].astype({"value": "float64"})
    objects = values.groupby(["sample_id", "instance_id"], observed=True)
    return float(objects["value"].mean().mean())
