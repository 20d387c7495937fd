"""Stored runs in, one summary a protocol and data set out."""

import json
from collections.abc import Hashable, Mapping, Sequence
from dataclasses import dataclass
from functools import reduce
from operator import add
from typing import Any

import numpy as np
import pandas as pd

from samrobust.report.compare import Group, compare
from samrobust.seeding import keyed_generator
from samrobust.store import Run
from samrobust.types import DatasetInfo, RunManifest

N_RESAMPLES = 2000
"""Bootstrap samples; each end of an interval then varies by about 1.5 % of its width."""
INTERVAL = (0.025, 0.975)
"""Quantiles of the bootstrap samples: a 95 % percentile interval."""
STATISTICS = {"iou": "miou", "boundary-iou": "mbiou", "stability": "msf"}
"""Metric -> column of its mean; a metric from a plug-in keeps its name."""
SPREADS = ("iou_std", "iou_var")
MEASURED = "measured"
"""Source of the rows that are ours; a published row names its paper."""

_WEIGHTS_AT_ONCE = 2**24  # numbers, 128 MiB
_ENDS = ("", "_low", "_high")
_NAMES = ("segmenter", "source", "is_control", "frame", "condition")
_COUNTS = ("n_images", "n_objects", "n_trials")


@dataclass(frozen=True)
class Section:
    """The summary of one protocol on one data set (or on the mean of a group of data sets).

    Attributes:
        protocol: its name.
        version: of the protocol.
        dataset: key of the data set, or "four-hq (mean of 4)".
        limit: the N of `--limit N`, None where all images are taken.
        trials: the T of `--trials T`, None where the protocol decides.
        marks: what a reader must know: limit, trials, missing images, selection, frame.
        conditions: as in the manifest, in protocol order: name, degradation, parameters, level.
        rows: one a segmenter and condition: `segmenter`, `source` ("measured" or a paper),
            `is_control`, `frame`, `condition`, `level`, `n_images`, `n_objects`, `n_trials`, then
            `miou`, `mbiou`, `msf`, `iou_std`, `iou_var` and the metrics of plug-ins, each with the
            ends of its 95 % interval in `..._low` and `..._high`. Fractions; NaN where there is
            none: the spread of one trial, the interval of one image or of a published value.
    """

    protocol: str
    version: int
    dataset: str
    limit: int | None
    trials: int | None
    marks: tuple[str, ...]
    conditions: tuple[Mapping[str, Any], ...]
    rows: pd.DataFrame

    @property
    def title(self) -> str:
        """Return protocol, data set and marks in one line."""
        return f"{self.protocol} v{self.version} on {self.dataset}: {'; '.join(self.marks)}"

    @property
    def statistics(self) -> list[str]:
        """Return the columns of `rows` that hold statistics, without those of their intervals."""
        ends = [name for name in self.rows if str(name).endswith("_low")]
        return [str(name).removesuffix("_low") for name in ends]


@dataclass(frozen=True)
class _Measured:
    """What was measured on one data set; cells are (statistic, segmenter, condition)."""

    manifest: RunManifest
    estimates: "pd.Series[float]"
    resampled: pd.DataFrame  # resamples x cells
    segmenters: dict[str, dict[str, Any]]
    n_images: int
    n_objects: int
    n_samples: int
    n_failed: int


def summarise(runs: Sequence[Run]) -> list[Section]:
    """Return one section a group of comparable runs, and one a complete group of data sets.

    mIoU is the mean over objects of the mean over trials; IoU std and variance are means over
    objects of those over trials (n - 1 in the denominator); mSF is the mean over objects. Intervals
    are 95 % bootstrap percentiles over images, an image with all its objects and trials, the same
    images for all segmenters. A group of data sets is averaged unweighted.

    Raises:
        RunError: runs that cannot be compared.
    """
    sections: list[Section] = []
    seen: dict[str, dict[str, _Measured]] = {}
    groups = compare(runs)
    for group in groups:
        measured = _measure(group)
        manifest, dataset = measured.manifest, measured.manifest.dataset
        name = _dataset_name(dataset, groups)
        sections.append(_section(measured, name, published={dataset.name, dataset.key}))
        settings = [manifest.protocol, manifest.constants, manifest.limit, manifest.trials]
        like = seen.setdefault(json.dumps(settings, sort_keys=True), {})
        like[dataset.name] = measured
        if dataset.name in dataset.group_members and like.keys() >= set(dataset.group_members):
            mean = _mean([like[name] for name in dataset.group_members])
            title = f"{dataset.group} (mean of {len(dataset.group_members)})"
            if mean.segmenters:
                sections.append(_section(mean, title, published={dataset.group}))
    return sections


def _dataset_name(dataset: DatasetInfo, groups: Sequence[Group]) -> str:
    """Return a data set's label, with its fingerprint where others of that label have another."""
    others = [group.runs[0].manifest.dataset for group in groups]
    alike = {other.fingerprint for other in others if other.label == dataset.label}
    return dataset.label if len(alike) == 1 else f"{dataset.label} ({dataset.fingerprint[:8]})"


def _measure(group: Group) -> _Measured:
    newest = max((run.manifest for run in group.runs), key=lambda manifest: manifest.created)
    sums, counts = _image_sums(group.scores)
    return _Measured(
        manifest=newest,
        estimates=sums.sum() / counts.sum(),
        resampled=_resample(sums, counts, dataset=newest.dataset.key),
        segmenters={
            label: {
                "is_control": run.manifest.segmenter.is_control,
                "frame": run.manifest.segmenter.frame or "",
            }
            for label, run in zip(group.labels, group.runs, strict=True)
        },
        n_images=len(sums),
        n_objects=int(group.scores["object"].nunique()),
        n_samples=newest.n_samples,
        n_failed=max(len(run.failures) for run in group.runs),
    )


def _image_sums(scores: pd.DataFrame) -> tuple[pd.DataFrame, pd.DataFrame]:
    """Return sums over, and numbers of, the objects of each image.

    One row an image, in order of its id; columns (statistic, segmenter, condition).
    """
    keys = ["metric", "segmenter", "condition", "sample_id", "object"]
    trials = scores.groupby(keys, observed=True)["value"].agg(["mean", "var"])  # n - 1
    metrics = trials.index.unique("metric")
    parts = {STATISTICS.get(metric, metric): trials["mean"][metric] for metric in metrics}
    if "iou" in metrics:
        variances = trials["var"]["iou"]
        parts |= {"iou_std": variances**0.5, "iou_var": variances}
    objects = pd.concat(parts, names=["statistic"]).rename("value").dropna().reset_index()
    columns = ["statistic", "segmenter", "condition"]
    objects = objects.astype(dict.fromkeys(columns, "str"))
    sums = objects.pivot_table("value", "sample_id", columns, aggfunc="sum", observed=True)
    counts = objects.pivot_table("value", "sample_id", columns, aggfunc="count", observed=True)
    return sums, counts


def _resample(sums: pd.DataFrame, counts: pd.DataFrame, *, dataset: str) -> pd.DataFrame:
    """Return the statistics of each bootstrap sample of images; NaN where there is one image."""
    n_images, rng = len(sums), keyed_generator("bootstrap", dataset)
    ratios = np.full((N_RESAMPLES, sums.shape[1]), np.nan)
    step = max(1, _WEIGHTS_AT_ONCE // n_images)
    for start in range(0, N_RESAMPLES if n_images > 1 else 0, step):
        size = min(step, N_RESAMPLES - start)
        times = rng.multinomial(n_images, np.full(n_images, 1 / n_images), size=size)
        weights = times.astype(np.float64)  # resamples x images
        ratios[start : start + size] = (weights @ sums.to_numpy()) / (weights @ counts.to_numpy())
    return pd.DataFrame(ratios, columns=sums.columns)


def _mean(parts: Sequence[_Measured]) -> _Measured:
    """Return the unweighted mean of data sets, for the segmenters that all of them have."""
    first = parts[0]
    labels = [name for name in first.segmenters if all(name in part.segmenters for part in parts)]
    cells = [cell for cell in first.estimates.index if cell[1] in labels]
    return _Measured(
        manifest=first.manifest,
        estimates=reduce(add, [part.estimates[cells] for part in parts]) / len(parts),
        resampled=reduce(add, [part.resampled[cells] for part in parts]) / len(parts),
        segmenters={label: first.segmenters[label] for label in labels},
        n_images=sum(part.n_images for part in parts),
        n_objects=sum(part.n_objects for part in parts),
        n_samples=sum(part.n_samples for part in parts),
        n_failed=sum(part.n_failed for part in parts),
    )


def _section(measured: _Measured, dataset: str, *, published: set[str]) -> Section:
    manifest = measured.manifest
    conditions = tuple(manifest.protocol["conditions"])
    place = {condition["name"]: index for index, condition in enumerate(conditions)}
    reported = [row for row in manifest.reported if row["dataset"] in published]
    rows = [*_measured_rows(measured), *_published_rows(reported)]
    rows.sort(key=lambda row: place[row["condition"]])  # stable: published ones stay last
    levels = [conditions[place[row["condition"]]]["level"] for row in rows]
    others = [metric for metric in manifest.protocol["metrics"] if metric not in STATISTICS]
    statistics = [*STATISTICS.values(), *SPREADS, *others]
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
    )


def _measured_rows(measured: _Measured) -> list[dict[str, Any]]:
    """Return one row a segmenter and condition, controls first."""
    cells: dict[Hashable, dict[str, float]] = {}
    tables = [measured.estimates, *(measured.resampled.quantile(end) for end in INTERVAL)]
    for end, table in zip(_ENDS, tables, strict=True):
        for (statistic, segmenter, condition), value in zip(table.index, table, strict=True):
            cells.setdefault((segmenter, condition), {})[f"{statistic}{end}"] = value
    segmenters = sorted(measured.segmenters.items(), key=lambda pair: not pair[1]["is_control"])
    return [
        {
            "segmenter": label,
            "source": MEASURED,
            **properties,
            "condition": condition["name"],
            "n_images": measured.n_images,
            "n_objects": measured.n_objects,
            "n_trials": condition["trials"],
            **cells.get((label, condition["name"]), {}),
        }
        for label, properties in segmenters
        for condition in measured.manifest.protocol["conditions"]
    ]


def _published_rows(reported: Sequence[Mapping[str, Any]]) -> list[dict[str, Any]]:
    """Return one row a segmenter, source and condition, with all the values known of it."""
    rows: dict[Hashable, dict[str, Any]] = {}
    for value in reported:
        names = {key: value[key] for key in ("segmenter", "source", "condition")}
        row = rows.setdefault(tuple(names.values()), {**names, "is_control": False, "frame": ""})
        row[STATISTICS.get(value["metric"], value["metric"])] = value["value"]
    return list(rows.values())


def _marks(measured: _Measured) -> tuple[str, ...]:
    manifest, n_images, n_samples = measured.manifest, measured.n_images, measured.n_samples
    frames = sorted({row["frame"] for row in measured.segmenters.values() if row["frame"]})
    marks = {
        f"first {manifest.limit} images": manifest.limit is not None,
        f"{manifest.trials} trials": manifest.trials is not None,
        f"incomplete: {n_images} of {n_samples} images": n_images + measured.n_failed < n_samples,
        f"images that failed: {measured.n_failed}": measured.n_failed > 0,
        f"selection {manifest.protocol['selection']}": True,
        f"frame {', '.join(frames)}": bool(frames),
    }
    return tuple(mark for mark, is_set in marks.items() if is_set)
