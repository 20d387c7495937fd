"""What was measured on one data set: estimates, their bootstrap samples, what images contribute."""

from collections.abc import Sequence
from dataclasses import dataclass, replace
from functools import reduce
from operator import add
from pathlib import Path
from typing import Any

import numpy as np
import pandas as pd
from scipy import sparse

from samrobust.gates import Precision, precision_of
from samrobust.records import RunManifest
from samrobust.report.arrays import ScoreArrays, object_statistics, point_ladders, score_arrays
from samrobust.report.breakdown import classes_of
from samrobust.report.groups import Group
from samrobust.report.resampling import N_RESAMPLES, Tail, bootstrap_weights
from samrobust.types import Floats

IN_CLASSES = ("miou", "mbiou")
"""Statistics that are broken down by classes of objects."""
_CELL = ("statistic", "segmenter", "condition")
_CLASS = ("kind", "class", *_CELL)
_SQUARE = "iou squared"


@dataclass(frozen=True)
class Measured:
    """What was measured on one data set, or on a group of them.

    Attributes:
        manifests: of the runs, in the order of `segmenters`.
        folders: of the runs, likewise; none for a group.
        segmenters: their labels.
        estimates: of cells (statistic, segmenter, condition).
        resampled: resamples x cells; NaN where there is one image.
        contributions: images x those cells that are means over objects, which are their sums.
        in_classes: as `estimates`, of cells (kind, class, statistic, segmenter, condition).
        resampled_in_classes: as `resampled`, of these.
        class_sizes: (kind, class) -> objects.
        n_images: with scores.
        n_objects: of them.
        n_samples: images that the runs are over.
        n_failed: images that could not be evaluated.
        precisions: of the runs that are not in float32.
        arrays: the scores; none for a group.
    """

    manifests: Sequence[RunManifest]
    folders: Sequence[Path]
    segmenters: Sequence[str]
    estimates: "pd.Series[float]"
    resampled: pd.DataFrame
    contributions: pd.DataFrame
    in_classes: "pd.Series[float]"
    resampled_in_classes: pd.DataFrame
    class_sizes: "pd.Series[Any]"
    n_images: int
    n_objects: int
    n_samples: int
    n_failed: int
    precisions: Sequence[Precision]
    arrays: ScoreArrays | None

    @property
    def manifest(self) -> RunManifest:
        """Return the newest of the manifests."""
        return max(self.manifests, key=lambda manifest: manifest.created)


def measure(group: Group) -> Measured:
    """Return what was measured on the data set of a group of runs."""
    arrays = score_arrays(group)
    manifests = [run.manifest for run in group.runs]
    per_object = object_statistics(arrays, point_ladders(manifests[0].protocol["conditions"]))
    classes = classes_of(arrays.objects)
    columns: dict[Any, Floats] = {**per_object}
    for (statistic, *cell), values in per_object.items():
        if statistic == "miou":
            columns[_SQUARE, *cell] = values**2
        if statistic in IN_CLASSES:
            for kind_and_class, chosen in classes.items():
                columns[*kind_and_class, statistic, *cell] = np.where(chosen, values, np.nan)
    columns = {key: values for key, values in columns.items() if not np.isnan(values).all()}
    sums, counts = _image_sums(np.stack(list(columns.values()), axis=1), arrays)
    tails = _tails(arrays)
    ratios = _Ratios(list(columns), sums, counts, tails, _most_trials(arrays))
    newest = max(manifests, key=lambda manifest: manifest.created)
    n_classes = pd.Series({key: int(chosen.sum()) for key, chosen in classes.items()}, dtype=int)
    estimates, in_classes = ratios.split(ratios.estimate()[None])
    resampled, resampled_in_classes = ratios.split(ratios.resample(key=newest.dataset.key))
    return Measured(
        manifests=manifests,
        folders=[run.folder for run in group.runs],
        segmenters=arrays.segmenters,
        estimates=estimates.iloc[0],
        resampled=resampled,
        contributions=_frame(list(per_object), sums[:, : len(per_object)], _CELL)
        / counts[:, : len(per_object)].sum(axis=0),
        in_classes=in_classes.iloc[0],
        resampled_in_classes=resampled_in_classes,
        class_sizes=n_classes,
        n_images=len(arrays.images),
        n_objects=len(arrays.objects),
        n_samples=newest.n_samples,
        n_failed=max(len(run.failures) for run in group.runs),
        precisions=[
            found
            for run, label in zip(group.runs, group.labels, strict=True)
            if (found := precision_of(run, label)) is not None
        ],
        arrays=arrays,
    )


def mean_of(parts: Sequence[Measured]) -> Measured:
    """Return the unweighted mean of data sets, for the segmenters that all of them have."""
    first = parts[0]
    labels = [name for name in first.segmenters if all(name in part.segmenters for part in parts)]
    cells = [cell for cell in first.estimates.index if cell[1] in labels]
    linear = [cell for cell in first.contributions.columns.tolist() if cell[1] in labels]
    classed = [
        cell
        for cell in first.in_classes.index
        if cell[3] in labels and all(cell in part.in_classes.index for part in parts)
    ]
    scaled = [part.contributions[linear] / len(parts) for part in parts]
    return replace(
        first,
        manifests=[
            manifest
            for part in parts
            for name, manifest in zip(part.segmenters, part.manifests, strict=True)
            if name in labels
        ],
        folders=[],
        segmenters=labels,
        estimates=reduce(add, [part.estimates[cells] for part in parts]) / len(parts),
        resampled=reduce(add, [part.resampled[cells] for part in parts]) / len(parts),
        contributions=pd.concat(scaled, ignore_index=True),
        in_classes=reduce(add, [part.in_classes[classed] for part in parts]) / len(parts),
        resampled_in_classes=reduce(add, [part.resampled_in_classes[classed] for part in parts])
        / len(parts),
        class_sizes=reduce(add, [part.class_sizes for part in parts]).dropna().astype(int),
        n_images=sum(part.n_images for part in parts),
        n_objects=sum(part.n_objects for part in parts),
        n_samples=sum(part.n_samples for part in parts),
        n_failed=sum(part.n_failed for part in parts),
        precisions=[each for part in parts for each in part.precisions if each.segmenter in labels],
        arrays=None,
    )


class _Ratios:
    """Columns that are sums over images divided by counts of objects, and what follows of them."""

    def __init__(
        self,
        columns: Sequence[Any],
        sums: Floats,
        counts: Floats,
        tails: dict[tuple[str, str, str], Tail],
        n_trials: dict[str, int],
    ) -> None:
        self._columns = list(columns)
        self._sums, self._counts = sums, counts
        self._tails = tails
        self._n_trials = n_trials

    def estimate(self) -> Floats:
        ratios = self._sums.sum(axis=0) / self._counts.sum(axis=0)
        return np.concatenate([ratios, [tail.mean for tail in self._tails.values()]])

    def resample(self, *, key: str) -> Floats:
        """Return (R, columns) bootstrap samples; NaN where there is one image."""
        found = np.full((N_RESAMPLES, len(self._columns) + len(self._tails)), np.nan)
        start = 0
        for weights in bootstrap_weights(len(self._sums), key=key):
            rows = slice(start, start + len(weights))
            with np.errstate(invalid="ignore"):  # no object of a class in a sample
                ratios = (weights @ self._sums) / (weights @ self._counts)
            by_image = np.ascontiguousarray(weights.T)
            tails = [tail.means(by_image) for tail in self._tails.values()]
            found[rows] = np.concatenate([ratios, *(tail[:, None] for tail in tails)], axis=1)
            start += len(weights)
        return found

    def split(self, values: Floats) -> tuple[pd.DataFrame, pd.DataFrame]:
        """Return (rows, columns) values as cells and as cells in classes, variances derived."""
        keys = [*self._columns, *self._tails]
        plain = [place for place, key in enumerate(keys) if len(key) == len(_CELL)]
        classed = [place for place, key in enumerate(keys) if len(key) == len(_CLASS)]
        cells = _frame([keys[place] for place in plain], values[:, plain], _CELL)
        in_classes = _frame([keys[place] for place in classed], values[:, classed], _CLASS)
        return self._with_variances(cells), in_classes

    def _with_variances(self, cells: pd.DataFrame) -> pd.DataFrame:
        """Return the cells with the variance between objects instead of the squares.

        The components of a one-way analysis of variance: the variance of the objects' means (n - 1)
        less what the trials' variance adds to it.
        """
        squares = [cell for cell in cells.columns.tolist() if cell[0] == _SQUARE]
        n_objects = dict(zip(self._columns, self._counts.sum(axis=0), strict=True))
        derived: dict[Any, pd.Series[float]] = {}
        for cell in squares:
            where = list(cell[1:])
            n, trials = n_objects[cell], self._n_trials[where[1]]
            if n > 1 and trials > 1:
                of_means = (cells[cell] - cells["miou", *where] ** 2) * n / (n - 1)
                derived["iou_var_between", *where] = of_means - cells["iou_var", *where] / trials
        frame = pd.DataFrame(derived, index=cells.index)
        frame.columns = _index(list(derived), _CELL)
        return pd.concat([cells.drop(columns=squares), frame], axis=1)


def _image_sums(columns: Floats, arrays: ScoreArrays) -> tuple[Floats, Floats]:
    """Return (I, D) sums over, and numbers of, the objects of each image, of (O, D) columns."""
    n_objects, n_images = len(arrays.objects), len(arrays.images)
    where = (arrays.objects["image"].to_numpy(), np.arange(n_objects))
    member = sparse.csr_matrix((np.ones(n_objects), where), (n_images, n_objects))
    there = ~np.isnan(columns)
    return member @ np.where(there, columns, 0), member @ there.astype(np.float64)


def _tails(arrays: ScoreArrays) -> dict[tuple[str, str, str], Tail]:
    found: dict[tuple[str, str, str], Tail] = {}
    if "iou" not in arrays.scores:
        return found
    owners = arrays.objects["image"].to_numpy()
    for s, segmenter in enumerate(arrays.segmenters):
        for c, condition in enumerate(arrays.conditions):
            trials = arrays.scores["iou"][s, c].astype(np.float64)
            there = ~np.isnan(trials)
            if there.any():
                owner = np.broadcast_to(owners[:, None], trials.shape)[there]
                found["iou_low", segmenter, condition] = Tail(
                    trials[there], owner, n_images=len(arrays.images)
                )
    return found


def _most_trials(arrays: ScoreArrays) -> dict[str, int]:
    """Return the trials of each condition that have an IoU."""
    if "iou" not in arrays.scores:
        return {}
    n_trials = (~np.isnan(arrays.scores["iou"])).sum(axis=3).max(axis=(0, 2))
    return dict(zip(arrays.conditions, n_trials.tolist(), strict=True))


def _frame(keys: Sequence[Any], values: Floats, names: Sequence[str]) -> pd.DataFrame:
    return pd.DataFrame(values, columns=_index(keys, names))


def _index(keys: Sequence[Any], names: Sequence[str]) -> pd.MultiIndex:
    if not keys:
        return pd.MultiIndex.from_arrays([[] for _ in names], names=list(names))
    return pd.MultiIndex.from_tuples(list(keys), names=list(names))
