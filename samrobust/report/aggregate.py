"""Stored runs in, one summary a protocol and data set out."""

import json
from collections.abc import Hashable, Mapping, Sequence
from dataclasses import dataclass
from functools import cached_property
from pathlib import Path
from typing import Any

import pandas as pd

from samrobust.gates import Precision
from samrobust.origins import origin
from samrobust.records import RunManifest
from samrobust.report.arrays import OF_METRIC, ScoreArrays
from samrobust.report.differences import INTERVAL, paired_differences
from samrobust.report.estimates import IN_CLASSES, Measured, mean_of, measure
from samrobust.report.groups import Group, comparable_groups
from samrobust.store import Run
from samrobust.types import DatasetInfo, SegmenterInfo

OF_TRIALS = ("iou_std", "iou_var", "iou_var_between", "iou_low", "iou_failed", "iou_fell")
"""What is known of IoU over trials besides its mean."""
LOWER_IS_BETTER = frozenset({"iou_std", "iou_var", "iou_failed", "iou_fell"})
MEASURED = "measured"
"""Source of the rows that are ours; a published row names its paper."""

_ENDS = ("", "_low", "_high")
_NAMES = ("segmenter", "source", "is_control", "frame", "in_domain", "condition")
_COUNTS = ("n_images", "n_objects", "n_trials")


@dataclass(frozen=True)
class Section:
    """The summary of one protocol on one data set (or on the mean of a group of data sets).

    Statistics are fractions: `miou`, `mbiou`, `msf` are means over objects of means over trials;
    `iou_std`, `iou_var` means over objects of those over an object's trials; `iou_var_between` the
    component of variance between objects; `iou_low` the mean of the lowest 10 % of all trials;
    `iou_failed` the share of trials below IoU 0.5; `iou_fell` the share of trials that lose more
    than 0.05 IoU against the condition with one point less; then the metrics of plug-ins.

    Attributes:
        protocol: its name.
        version: of the protocol.
        dataset: key of the data set, or "four-hq (mean of 4)".
        limit: the N of `--limit N`, None where all images are taken.
        trials: the T of `--trials T`, None where the protocol decides.
        marks: what a reader must know: limit, trials, missing images, selection, frame.
        conditions: as in the manifest, in protocol order: name, degradation, parameters, level.
        rows: one a segmenter and condition: `segmenter`, `source` ("measured" or a paper),
            `is_control`, `frame`, `in_domain` (collections that the images are of and that the
            segmenter was trained on, "" for none), `condition`, `level`, `n_images`, `n_objects`,
            `n_trials`, then the statistics, each with the ends of its 95 % interval in `..._low`
            and `..._high`. NaN where there is none: the spread of one trial, the interval of one
            image or of a published value.
        differences: one a statistic, condition and pair of segmenters, on identical prompts:
            `statistic`, `condition`, `segmenter`, `other`, `difference` (segmenter - other), its
            95 % interval in `low` and `high`, `p` of the sign-flip test, `p_holm` corrected over
            the pairs of one statistic and condition, `is_tie`.
        breakdown: one a segmenter, condition and class of objects: `segmenter`, `condition`, `kind`
            ("size" or "thinness"), `class`, `n_objects`, `miou` and `mbiou` with their intervals;
            empty where no run says what its objects are.
        runs: the manifests of all runs, in the order of `segmenters` for each data set.
        segmenters: labels of all runs, in order.
        folders: of the runs, in order; none for a group.
        precisions: what is known of the runs that are not in float32.
        arrays: the single scores; None for a group.
    """

    protocol: str
    version: int
    dataset: str
    limit: int | None
    trials: int | None
    marks: tuple[str, ...]
    conditions: tuple[Mapping[str, Any], ...]
    rows: pd.DataFrame
    differences: pd.DataFrame
    breakdown: pd.DataFrame
    runs: tuple[RunManifest, ...]
    segmenters: tuple[str, ...]
    folders: tuple[Path, ...]
    precisions: tuple[Precision, ...]
    arrays: ScoreArrays | None

    @property
    def title(self) -> str:
        """Return protocol, data set and marks in one line."""
        return f"{self.protocol} v{self.version} on {self.dataset}: {'; '.join(self.marks)}"

    @property
    def measured(self) -> pd.DataFrame:
        """Return the rows that are ours."""
        return self.rows[self.rows["source"] == MEASURED]

    @property
    def statistics(self) -> list[str]:
        """Return the columns of `rows` that hold statistics, without those of their intervals."""
        ends = [name for name in self.rows if f"{name}_high" in self.rows]
        return [str(name) for name in ends]

    @cached_property
    def best(self) -> frozenset[tuple[str, str, str]]:
        """Return the (statistic, segmenter, condition) that beat every other without a tie."""
        found = set()
        for (statistic, condition), pairs in self.differences.groupby(["statistic", "condition"]):
            won: dict[str, int] = {}
            clear = pairs[~pairs["is_tie"]]
            names = zip(clear["segmenter"], clear["other"], strict=True)
            for (one, other), gain in zip(names, clear["difference"].to_numpy(), strict=True):
                winner = one if (gain > 0) != (statistic in LOWER_IS_BETTER) else other
                won[winner] = won.get(winner, 0) + 1
            others = len({*pairs["segmenter"], *pairs["other"]}) - 1
            found |= {
                (str(statistic), name, str(condition)) for name, n in won.items() if n == others
            }
        return frozenset(found)


def summarise(runs: Sequence[Run]) -> list[Section]:
    """Return one section a group of comparable runs, and one a complete group of data sets.

    Intervals are 95 % bootstrap percentiles over images, an image with all its objects and trials,
    the same images for all segmenters. A group of data sets is averaged unweighted.

    Raises:
        RunError: runs that cannot be compared.
    """
    sections: list[Section] = []
    seen: dict[str, dict[str, Measured]] = {}
    groups = comparable_groups(runs)
    for group in groups:
        measured = measure(group)
        manifest, dataset = measured.manifest, measured.manifest.dataset
        name = _dataset_name(dataset, groups)
        sections.append(_section(measured, name, published={dataset.name, dataset.key}))
        settings = [manifest.protocol, manifest.constants, manifest.limit, manifest.trials]
        like = seen.setdefault(json.dumps(settings, sort_keys=True), {})
        like[dataset.name] = measured
        if dataset.name in dataset.group_members and like.keys() >= set(dataset.group_members):
            mean = mean_of([like[name] for name in dataset.group_members])
            title = f"{dataset.group} (mean of {len(dataset.group_members)})"
            if mean.segmenters:
                sections.append(_section(mean, title, published={dataset.group}))
    return sections


def _dataset_name(dataset: DatasetInfo, groups: Sequence[Group]) -> str:
    """Return a data set's label, with its fingerprint where others of that label have another."""
    others = [group.runs[0].manifest.dataset for group in groups]
    alike = {other.fingerprint for other in others if other.label == dataset.label}
    return dataset.label if len(alike) == 1 else f"{dataset.label} ({dataset.fingerprint[:8]})"


def _section(measured: Measured, dataset: str, *, published: set[str]) -> Section:
    manifest = measured.manifest
    conditions = tuple(manifest.protocol["conditions"])
    place = {condition["name"]: index for index, condition in enumerate(conditions)}
    reported = [row for row in manifest.reported if row["dataset"] in published]
    rows = [*_measured_rows(measured), *_published_rows(reported)]
    rows.sort(key=lambda row: place[row["condition"]])  # stable: published ones stay last
    levels = [conditions[place[row["condition"]]]["level"] for row in rows]
    others = [metric for metric in manifest.protocol["metrics"] if metric not in OF_METRIC]
    statistics = [*OF_METRIC.values(), *OF_TRIALS, *others]
    columns = [f"{statistic}{end}" for statistic in statistics for end in _ENDS]
    table = pd.DataFrame(rows, columns=[*_NAMES, *_COUNTS, *columns])
    table.insert(len(_NAMES), "level", pd.Series(levels, dtype="float64"))
    return Section(
        protocol=manifest.protocol["name"],
        version=manifest.protocol["version"],
        dataset=dataset,
        limit=manifest.limit,
        trials=manifest.trials,
        marks=_marks(measured),
        conditions=conditions,
        rows=table.astype(dict.fromkeys(_COUNTS, "Int64") | dict.fromkeys(columns, "float64")),
        differences=paired_differences(measured),
        breakdown=_breakdown(measured),
        runs=tuple(measured.manifests),
        segmenters=tuple(measured.segmenters),
        folders=tuple(measured.folders),
        precisions=tuple(measured.precisions),
        arrays=measured.arrays,
    )


def _breakdown(measured: Measured) -> pd.DataFrame:
    """Return one row a segmenter, condition and class of objects."""
    tables = [measured.in_classes, *_ends(measured.resampled_in_classes)]
    rows: dict[Hashable, dict[str, Any]] = {}
    for end, values in zip(_ENDS, tables, strict=True):
        for (kind, name, statistic, *cell), value in zip(values.index, values, strict=True):
            where = dict(zip(("segmenter", "condition"), cell, strict=True))
            n_objects = int(measured.class_sizes[kind, name])
            row = {**where, "kind": kind, "class": name, "n_objects": n_objects}
            key = tuple(row.values())
            rows.setdefault(key, row)[f"{statistic}{end}"] = value
    names = ["segmenter", "condition", "kind", "class", "n_objects"]
    columns = [f"{statistic}{end}" for statistic in IN_CLASSES for end in _ENDS]
    table = pd.DataFrame(list(rows.values()), columns=[*names, *columns])
    return table.astype({"n_objects": "int64"} | dict.fromkeys(columns, "float64"))


def _ends(resampled: pd.DataFrame) -> "list[pd.Series[float]]":
    return [resampled.quantile(end) for end in INTERVAL]


def _measured_rows(measured: Measured) -> list[dict[str, Any]]:
    """Return one row a segmenter and condition, controls first."""
    cells: dict[Hashable, dict[str, float]] = {}
    tables = [measured.estimates, *_ends(measured.resampled)]
    for end, table in zip(_ENDS, tables, strict=True):
        for (statistic, segmenter, condition), value in zip(table.index, table, strict=True):
            cells.setdefault((segmenter, condition), {})[f"{statistic}{end}"] = value
    infos = [
        (label, manifest.segmenter)
        for label, manifest in zip(measured.segmenters, measured.manifests, strict=False)
    ]
    infos.sort(key=lambda pair: not pair[1].is_control)
    return [
        {
            "segmenter": label,
            "source": MEASURED,
            "is_control": segmenter.is_control,
            "frame": segmenter.frame or "",
            "in_domain": _shared_origins(measured, segmenter),
            "condition": condition["name"],
            "n_images": measured.n_images,
            "n_objects": measured.n_objects,
            "n_trials": condition["trials"],
            **cells.get((label, condition["name"]), {}),
        }
        for label, segmenter in infos
        for condition in measured.manifest.protocol["conditions"]
    ]


def _shared_origins(measured: Measured, segmenter: SegmenterInfo) -> str:
    """Return the collections of the data sets that a segmenter has learned from, "" for none."""
    datasets = [run.dataset for run in measured.manifests if run.segmenter == segmenter]
    found = {origin(each.name, each.split, each.folder) for each in datasets}
    return " and ".join(sorted(found & {*segmenter.trained_on}))


def _published_rows(reported: Sequence[Mapping[str, Any]]) -> list[dict[str, Any]]:
    """Return one row a segmenter, source and condition, with all the values known of it."""
    rows: dict[Hashable, dict[str, Any]] = {}
    unknown = {"is_control": False, "frame": "", "in_domain": ""}
    for value in reported:
        names = {key: value[key] for key in ("segmenter", "source", "condition")}
        row = rows.setdefault(tuple(names.values()), {**names, **unknown})
        row[OF_METRIC.get(value["metric"], value["metric"])] = value["value"]
    return list(rows.values())


def _marks(measured: Measured) -> tuple[str, ...]:
    manifest, n_images, n_samples = measured.manifest, measured.n_images, measured.n_samples
    frames = sorted({run.segmenter.frame for run in measured.manifests if run.segmenter.frame})
    marks = {
        f"first {manifest.limit} images": manifest.limit is not None,
        f"{manifest.trials} trials": manifest.trials is not None,
        f"incomplete: {n_images} of {n_samples} images": n_images + measured.n_failed < n_samples,
        f"images that failed: {measured.n_failed}": measured.n_failed > 0,
        f"selection {manifest.protocol['selection']}": True,
        f"frame {', '.join(frames)}": bool(frames),
    }
    return tuple(mark for mark, is_set in marks.items() if is_set)
