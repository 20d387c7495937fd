"""Comparable scores as arrays: segmenters x conditions x objects x trials, and what they are of."""

from collections.abc import Hashable, Mapping, Sequence
from dataclasses import dataclass
from itertools import pairwise
from typing import Any

import numpy as np
import numpy.typing as npt
import pandas as pd

from samrobust.report.groups import Group
from samrobust.types import Floats

OF_METRIC = {"iou": "miou", "boundary-iou": "mbiou", "stability": "msf"}
"""Metric -> statistic that is its mean; a metric from a plug-in keeps its name."""
FAILED_BELOW = 0.5
"""IoU; the share of trials below it is the statistic `iou_failed`."""
NESTED = ("random-points", "border-points", "part-points")
"""Degradations whose first points of a trial are its prompt of fewer points."""
FELL_BY = 0.05
"""IoU that a trial must lose by one more point to count in `iou_fell` (facts/peers.md 5.4)."""


@dataclass(frozen=True)
class ScoreArrays:
    """The scores of a group of runs.

    Attributes:
        segmenters: S labels.
        conditions: C names, in protocol order.
        images: I sample ids, sorted.
        objects: O rows: `sample_id`, `instance_id`, `image` (its place in `images`) and, where a
            run says so, `category`, `area`, `perimeter` (NaN and "" where none does).
        scores: metric -> (S, C, O, T) float32, NaN where there is no score; a metric over trials
            has T = 1.
    """

    segmenters: Sequence[str]
    conditions: Sequence[str]
    images: Sequence[str]
    objects: pd.DataFrame
    scores: Mapping[str, npt.NDArray[np.float32]]


def score_arrays(group: Group) -> ScoreArrays:
    """Return the scores of a group as arrays."""
    known = pd.concat([run.objects for run in group.runs], ignore_index=True)
    known = known.drop_duplicates(["sample_id", "instance_id"])
    key = ["sample_id", "instance_id"]
    objects = group.objects.merge(known, how="left", on=key, validate="1:1")
    objects["category"] = objects["category"].fillna("")
    codes, images = pd.factorize(objects["sample_id"], sort=True)
    objects["image"] = codes
    size = (len(group.labels), len(group.conditions), len(objects))
    scores = {
        metric: np.full((*size, n_trials), np.nan, np.float32)
        for metric, n_trials in _trials_of(group).items()
    }
    for s, run in enumerate(group.runs):
        for rows in group.rows(run):
            for m, metric in enumerate(group.metrics):
                chosen = rows.metric == m
                trial = np.maximum(rows.trial[chosen], 0)
                where = (rows.condition[chosen], rows.object[chosen], trial)
                scores[metric][s][where] = rows.value[chosen]
    return ScoreArrays(group.labels, group.conditions, list(images), objects, scores)


def object_statistics(
    arrays: ScoreArrays, ladders: Sequence[tuple[str, str]]
) -> dict[tuple[str, str, str], Floats]:
    """Return (O,) what each object adds to each mean over objects, NaN where it adds nothing.

    Statistics without any value are left out.

    Keys are (statistic, segmenter, condition). The statistics are the means of metrics over trials,
    and of IoU over trials `iou_std`, `iou_var` (both n - 1), `iou_failed` (share of trials below
    0.5) and `iou_fell` (share of trials that lose more than 0.05 by one more point).

    Args:
        arrays: the scores.
        ladders: conditions and those with the next number of points, whose trials share points.
    """
    found: dict[tuple[str, str, str], Floats] = {}
    for s, segmenter in enumerate(arrays.segmenters):
        for c, condition in enumerate(arrays.conditions):
            for metric, values in arrays.scores.items():
                trials = values[s, c].astype(np.float64)
                n_trials = (~np.isnan(trials)).sum(axis=1)
                if not n_trials.any():
                    continue
                cell = segmenter, condition
                found[OF_METRIC.get(metric, metric), *cell] = _ratio(np.nansum(trials, 1), n_trials)
                if metric == "iou":
                    found |= {(k, *cell): v for k, v in _iou_statistics(trials, n_trials).items()}
    iou = arrays.scores.get("iou")
    for fewer, more in ladders if iou is not None else ():
        for s, segmenter in enumerate(arrays.segmenters):
            pair = (arrays.conditions.index(name) for name in (fewer, more))
            before, after = (iou[s, c].astype(np.float64) for c in pair)  # type: ignore[index]
            both = ~np.isnan(before) & ~np.isnan(after)
            fell = (before - after > FELL_BY).sum(axis=1)
            found["iou_fell", segmenter, more] = _ratio(fell, both.sum(axis=1))
    return {cell: values for cell, values in found.items() if not np.isnan(values).all()}


def point_ladders(conditions: Sequence[Mapping[str, Any]]) -> list[tuple[str, str]]:
    """Return pairs of conditions: one and that with the next number of points of the same kind."""
    kinds: dict[Hashable, list[Mapping[str, Any]]] = {}
    for row in conditions:
        if row["degradation"] in NESTED:
            others = sorted((k, v) for k, v in row["parameters"].items() if k != "count")
            kinds.setdefault((row["degradation"], *others), []).append(row)
    pairs = []
    for rungs in kinds.values():
        rungs.sort(key=lambda row: row["parameters"].get("count", 1))
        pairs += [(fewer["name"], more["name"]) for fewer, more in pairwise(rungs)]
    return pairs


def _trials_of(group: Group) -> dict[str, int]:
    """Return metric -> T; 1 for a metric over trials."""
    last = [run.scores.groupby("metric", observed=True)["trial"].max() for run in group.runs]
    return {
        metric: 1 + max(0, *(int(each.get(metric, 0)) for each in last)) for metric in group.metrics
    }


def _iou_statistics(trials: Floats, n_trials: npt.NDArray[np.int64]) -> dict[str, Floats]:
    means = _ratio(np.nansum(trials, axis=1), n_trials)
    squares = np.nansum((trials - means[:, None]) ** 2, axis=1)
    variance = _ratio(squares, n_trials - 1)
    failed = _ratio((trials < FAILED_BELOW).sum(axis=1), n_trials)
    return {"iou_std": variance**0.5, "iou_var": variance, "iou_failed": failed}


def _ratio(sums: npt.NDArray[Any], counts: npt.NDArray[np.int64]) -> Floats:
    """Return sums / counts as float64, NaN where a count is 0."""
    missing = np.full(len(sums), np.nan)
    ratios: Floats = np.divide(sums.astype(np.float64), counts, out=missing, where=counts > 0)
    return ratios
