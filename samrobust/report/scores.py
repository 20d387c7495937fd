"""Comparable runs in, arrays of scores out: segmenters x conditions x objects x trials."""

from collections.abc import Callable, Hashable, Iterator, Mapping, Sequence
from dataclasses import dataclass
from functools import cached_property
from itertools import pairwise
from typing import Any

import numpy as np
import numpy.typing as npt
import pandas as pd

from samrobust.errors import RunError
from samrobust.runs.store import Run
from samrobust.types import Floats

ROWS_AT_ONCE = 2**22
_KEY = ["sample_id", "instance_id"]
_CODED = (*_KEY, "condition", "metric")
Places = npt.NDArray[np.intp]


@dataclass(frozen=True)
class Rows:
    """Some rows of a run; all fields are as long.

    Attributes:
        condition: places in the protocol's conditions.
        object: places in the objects.
        trial: as stored, -1 for a score over all trials.
        metric: places in the metrics.
        value: as stored.
        prompt: the prompt's hash, as in `Run.scores`.
    """

    condition: Places
    object: Places
    trial: npt.NDArray[np.int32]
    metric: Places
    value: npt.NDArray[np.float32]
    prompt: npt.NDArray[np.uint64]


def objects_of(runs: Sequence[Run]) -> pd.DataFrame:
    """Return the objects that any of the runs has scores of, sorted: `sample_id`, `instance_id`."""
    firsts = [
        run.scores[_KEY].iloc[start : start + ROWS_AT_ONCE].drop_duplicates().astype("str")
        for run in runs
        for start in range(0, len(run.scores), ROWS_AT_ONCE)
    ]
    return pd.concat(firsts).drop_duplicates().sort_values(_KEY, ignore_index=True)


def rows_of(
    run: Run, objects: pd.DataFrame, *, conditions: Sequence[str], metrics: Sequence[str]
) -> Iterator[Rows]:
    """Yield the scores of a run.

    Args:
        run: of objects, conditions and metrics that are all among the given ones.
        objects: as from `objects_of`.
        conditions: names.
        metrics: names.
    """
    images, instances = (pd.Index(objects[name].unique()) for name in _KEY)
    of_objects = images.get_indexer(objects["sample_id"]) * len(instances)
    numbers = pd.Index(of_objects + instances.get_indexer(objects["instance_id"]))
    names = dict(
        zip(_CODED, (images, instances, pd.Index(conditions), pd.Index(metrics)), strict=True)
    )
    place_of = {
        column: index.get_indexer(run.scores[column].cat.categories)
        for column, index in names.items()
    }
    for start in range(0, len(run.scores), ROWS_AT_ONCE):
        block = run.scores.iloc[start : start + ROWS_AT_ONCE]
        image, instance, condition, metric = (
            place_of[column][block[column].cat.codes.to_numpy()] for column in _CODED
        )
        yield Rows(
            condition=condition,
            object=numbers.get_indexer(pd.Index(image * len(instances) + instance)),
            trial=block["trial"].to_numpy(),
            metric=metric,
            value=block["value"].to_numpy(),
            prompt=block["prompt_hash"].to_numpy(),
        )


@dataclass(frozen=True)
class Group:
    """Runs that can be compared: of one protocol, data set, limit and number of trials.

    Attributes:
        runs: in the order in which they were given.
        labels: of their segmenters, all different.
        objects: of all images, as from `objects_of`.
    """

    runs: tuple[Run, ...]
    labels: tuple[str, ...]
    objects: pd.DataFrame

    @property
    def conditions(self) -> list[str]:
        """Return the names of the conditions, in protocol order."""
        return [row["name"] for row in self.runs[0].manifest.protocol["conditions"]]

    @cached_property
    def metrics(self) -> list[str]:
        """Return the names of the metrics that there are scores of, sorted."""
        return sorted({str(name) for run in self.runs for name in run.scores["metric"].unique()})

    def rows(self, run: Run) -> Iterator[Rows]:
        """Yield the scores of one of the runs."""
        names = {"conditions": self.conditions, "metrics": self.metrics}
        return rows_of(run, self.objects, **names)


def comparable_groups(runs: Sequence[Run]) -> list[Group]:
    """Return the runs in groups that can be compared, both in order of first appearance.

    A segmenter label that stands for several checkpoints or settings is made distinct, the same way
    in all groups.

    Raises:
        RunError: a run holds no scores, or two of one protocol, data set, limit and number of
            trials differ in their prompts, images, selection, image frame or protocol file.
    """
    for run in runs:
        if run.scores.empty:
            raise RunError(f"{run.folder}: holds no scores yet; give its command again")
    labels = _told_apart([run.manifest.segmenter.label for run in runs], runs, by=_settings)
    members: dict[Hashable, list[int]] = {}
    for index, run in enumerate(runs):
        manifest = run.manifest
        protocol = manifest.protocol["name"], manifest.protocol["version"]
        images = manifest.dataset.key, manifest.dataset.fingerprint, manifest.limit
        key = (*protocol, *images, manifest.trials)
        members.setdefault(key, []).append(index)
    return [
        _group([runs[index] for index in indices], [labels[index] for index in indices])
        for indices in members.values()
    ]


def _told_apart(
    labels: Sequence[str], runs: Sequence[Run], *, by: Callable[[Run], dict[str, str]]
) -> list[str]:
    """Return the labels, those that stand there twice with the settings in which they differ."""
    distinct = []
    for label, run in zip(labels, runs, strict=True):
        mine = by(run)
        others = [by(other) for name, other in zip(labels, runs, strict=True) if name == label]
        differs = [key for key in mine if any(other.get(key) != mine[key] for other in others)]
        words = ", ".join(mine[key] for key in differs if mine[key])
        distinct.append(f"{label} ({words})" if words else label)
    return distinct


def _settings(run: Run) -> dict[str, str]:
    segmenter = run.manifest.segmenter
    return {
        "checkpoint": segmenter.checkpoint_sha256[:8],
        "dtype": segmenter.dtype,
        "frame": segmenter.frame or "",
        "multimask": "multimask" if segmenter.multimask else "",
        **{f"={key}": f"{key} {value}" for key, value in segmenter.settings.items()},
    }


def _surroundings(run: Run) -> dict[str, str]:
    versions = {name: f"{name} {version}" for name, version in run.manifest.versions.items()}
    return {"=device": run.manifest.device, **versions}


def _group(runs: Sequence[Run], labels: Sequence[str]) -> Group:
    for run in runs[1:]:
        _check_settings(runs[0], run)
    framed = [run for run in runs if run.manifest.segmenter.frame]
    for run in framed[1:]:
        frames = framed[0].manifest.segmenter.frame, run.manifest.segmenter.frame
        _check_equal(framed[0], run, what="image frames", values=frames)
    labels = _told_apart(labels, runs, by=_surroundings)
    for index, label in enumerate(labels):
        first = labels.index(label)
        if first < index:
            folders = f"{runs[first].folder} and {runs[index].folder}"
            raise RunError(f"{folders}: are of one segmenter with the same settings; name one")
    group = Group(tuple(runs), tuple(labels), objects_of(runs))
    _check_images(group)
    _check_prompts(group)
    return group


def _check_settings(one: Run, other: Run) -> None:
    mine, theirs = one.manifest, other.manifest
    pair = mine.protocol["selection"], theirs.protocol["selection"]
    _check_equal(one, other, what="selections", values=pair)
    keys = [key for key in mine.protocol if mine.protocol[key] != theirs.protocol.get(key)]
    if keys:
        raise RunError(
            f"{one.folder} and {other.folder}: the protocol files differ, in {', '.join(keys)}; "
            "a changed protocol needs another version"
        )
    _check_equal(one, other, what="metric constants", values=(mine.constants, theirs.constants))


def _check_equal(one: Run, other: Run, *, what: str, values: tuple[object, object]) -> None:
    if values[0] != values[1]:
        raise RunError(
            f"{one.folder} and {other.folder}: the {what} differ: {values[0]} and {values[1]}"
        )


def _check_images(group: Group) -> None:
    images = [set(run.scores["sample_id"].unique()) for run in group.runs]
    fullest = max(range(len(images)), key=lambda index: len(images[index]))
    for run, held in zip(group.runs, images, strict=True):
        missing = images[fullest] - held
        if missing:
            raise RunError(
                f"{run.folder}: lacks {len(missing)} of the {len(images[fullest])} images of "
                f"{group.runs[fullest].folder} ({len(missing & run.failures.keys())} failed); "
                "finish it with the same command"
            )


def _check_prompts(group: Group) -> None:
    if len(group.runs) == 1:
        return
    n_trials = max(int(run.scores["trial"].max()) + 1 for run in group.runs)
    expected = _prompts(group, group.runs[0], n_trials)
    for run in group.runs[1:]:
        prompts = _prompts(group, run, n_trials)
        either = np.count_nonzero(expected | prompts)
        both = (expected != 0) & (prompts != 0)
        n_differ = np.count_nonzero(both & (expected != prompts))
        folders = f"{group.runs[0].folder} and {run.folder}"
        if n_differ:
            raise RunError(f"{folders}: the prompts differ, in {n_differ} of {either} rows")
        if np.count_nonzero(both) < either:
            raise RunError(f"{folders}: the same images have other objects, conditions or trials")


def _prompts(group: Group, run: Run, n_trials: int) -> npt.NDArray[np.uint64]:
    """Return (C, O, T + 1), the hash of each prompt, all trials' last; 0 where there is none."""
    shape = len(group.conditions), len(group.objects), n_trials + 1
    found = np.zeros(shape, np.uint64)
    for rows in group.rows(run):
        found[rows.condition, rows.object, rows.trial] = rows.prompt
    return found


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
