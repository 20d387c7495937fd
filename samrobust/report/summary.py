"""Stored runs in, one summary per protocol and data set out."""

import json
from collections.abc import Hashable, Iterable, Mapping, Sequence
from dataclasses import dataclass, replace
from functools import cached_property, reduce
from itertools import combinations, cycle
from operator import add
from typing import TYPE_CHECKING, Any

import numpy as np
import numpy.typing as npt
import pandas as pd

from samrobust.degradations import DEGRADATIONS
from samrobust.degradations.human import human_percentile, median_percentile
from samrobust.errors import RunError
from samrobust.files import errors_at, shown
from samrobust.protocol import RECORDED, build_degradation
from samrobust.provenance import origin
from samrobust.report.average_precision import error_table, precision_table
from samrobust.report.clicks import click_group_table
from samrobust.report.columns import (
    COLUMNS,
    OF_CLICKS,
    OF_THRESHOLDS,
    OF_TRIALS,
    column_of,
    statistic_of,
)
from samrobust.report.corruptions import corruptions_of
from samrobust.report.glance import glance_of
from samrobust.report.precision import Precision, precision_of
from samrobust.report.raters import rater_table
from samrobust.report.scores import Group, ObjectScores, comparable_groups, conversations
from samrobust.report.searches import search_rows, search_table
from samrobust.report.statistics import (
    INTERVAL,
    N_RESAMPLES,
    Tail,
    bootstrap_weights,
    classes_of,
    holm,
    sign_flip_test,
)
from samrobust.runs.manifest import RunManifest
from samrobust.runs.store import Run, read_raters
from samrobust.types import DatasetInfo, Floats, SegmenterInfo

if TYPE_CHECKING:
    from matplotlib.figure import Figure

    from samrobust.report.calibration import Estimates

IN_CLASSES = ("miou", "mbiou")
"""Statistics that are broken down by classes of objects."""
_CELL = ("statistic", "segmenter", "condition")
_CLASS = ("kind", "class", *_CELL)
_SQUARE = "iou squared"
_SHARES = {"threshold_share": ("threshold_squares", "all_squares")}
"""Statistic -> the two sums of squares of which it is the ratio of the means over objects."""
_PARTS = {part for parts in _SHARES.values() for part in parts}


@dataclass(frozen=True)
class Measured:
    """What was measured on one data set, or on a group of them.

    Attributes:
        manifests: of the runs, in the order of `segmenters`.
        stored: the runs, likewise; none for a group.
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
        n_failed: images that could not be evaluated, in any of the runs.
        n_images_left_out: images of which no object can be scored.
        n_objects_left_out: objects of the other images that cannot be scored.
        has_others: whether some run has images that another lacks.
        precisions: of the runs that are not in float32.
        objects: their `sample_id`, `instance_id`, place of their `image` and, where a run says so,
            the other columns of its objects; none for a group.
        scores: of the segmenters by object; none for a group.
    """

    manifests: Sequence[RunManifest]
    stored: Sequence[Run]
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
    n_images_left_out: int
    n_objects_left_out: int
    has_others: bool
    precisions: Sequence[Precision]
    objects: pd.DataFrame
    scores: Sequence[ObjectScores]

    @property
    def manifest(self) -> RunManifest:
        """Return the newest of the manifests."""
        return max(self.manifests, key=lambda manifest: manifest.created)


def measure(group: Group) -> Measured:
    """Return what was measured on the data set of a group of runs."""
    manifests = [run.manifest for run in group.runs]
    rows = manifests[0].protocol["conditions"]
    conditions = [row["name"] for row in rows]
    crossed = {row["name"] for row in rows if "image" in row}  # of these, the means alone
    objects = _described_objects(group)
    per_object = _cells(group, conditions)
    means = [cell for cell in per_object if cell[0] not in _PARTS]
    classes = classes_of(objects)
    columns: dict[Any, Floats] = {**per_object}
    for (statistic, *cell), values in per_object.items():
        if cell[1] in crossed:
            continue
        if statistic == "miou":
            columns[_SQUARE, *cell] = values**2
        if statistic in IN_CLASSES:
            for kind_and_class, chosen in classes.items():
                columns[*kind_and_class, statistic, *cell] = np.where(chosen, values, np.nan)
    columns = {key: values for key, values in columns.items() if not np.isnan(values).all()}
    sums, counts = _image_sums(columns.values(), objects["image"].to_numpy())
    tails = {
        ("iou_low", label, conditions[place]): tail
        for label, scores in zip(group.labels, group.scores, strict=True)
        for place, tail in scores.tails.items()
        if conditions[place] not in crossed
    }
    n_trials = np.max([scores.n_trials for scores in group.scores], axis=0).tolist()
    ratios = _Ratios(
        list(columns), sums, counts, tails, dict(zip(conditions, n_trials, strict=True))
    )
    images = set(objects["sample_id"])
    left_out = {name: len(why) for run in group.runs for name, why in run.left_out.items()}
    newest = max(manifests, key=lambda manifest: manifest.created)
    n_classes = pd.Series({key: int(chosen.sum()) for key, chosen in classes.items()}, dtype=int)
    estimates, in_classes = ratios.split(ratios.estimate()[None])
    resampled, resampled_in_classes = ratios.split(ratios.resample(key=newest.dataset.key))
    return Measured(
        manifests=manifests,
        stored=group.runs,
        segmenters=group.labels,
        estimates=estimates.iloc[0],
        resampled=resampled,
        contributions=_frame(list(means), sums[:, : len(means)], _CELL)
        / counts[:, : len(means)].sum(axis=0),
        in_classes=in_classes.iloc[0],
        resampled_in_classes=resampled_in_classes,
        class_sizes=n_classes,
        n_images=group.scores[0].n_images,
        n_objects=len(objects),
        n_samples=newest.n_samples,
        n_failed=len({name for run in group.runs for name in run.failures}),
        n_images_left_out=len(left_out.keys() - images),
        n_objects_left_out=sum(left_out[name] for name in left_out.keys() & images),
        has_others=group.has_others,
        precisions=[
            found
            for run, label in zip(group.runs, group.labels, strict=True)
            if (found := precision_of(run, label)) is not None
        ],
        objects=objects,
        scores=group.scores,
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
        stored=(),
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
        n_images_left_out=sum(part.n_images_left_out for part in parts),
        n_objects_left_out=sum(part.n_objects_left_out for part in parts),
        has_others=any(part.has_others for part in parts),
        precisions=[each for part in parts for each in part.precisions if each.segmenter in labels],
        objects=first.objects.iloc[:0],
        scores=(),
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
        """Return the cells with the variance between objects, and shares, instead of the squares.

        The components of a one-way analysis of variance: the variance of the objects' means (n - 1)
        less what the trials' variance adds to it.
        """
        squares: list[Any] = [cell for cell in cells.columns.tolist() if cell[0] == _SQUARE]
        n_objects = dict(zip(self._columns, self._counts.sum(axis=0), strict=True))
        derived: dict[Any, pd.Series[float]] = {}
        for cell in squares:
            where = list(cell[1:])
            n, trials = n_objects[cell], self._n_trials[where[1]]
            if n > 1 and trials > 1:
                of_means = (cells[cell] - cells["miou", *where] ** 2) * n / (n - 1)
                derived["iou_var_between", *where] = of_means - cells["iou_var", *where] / trials
        for share, (part, whole) in _SHARES.items():
            for cell in [cell for cell in cells.columns.tolist() if cell[0] == whole]:
                where = list(cell[1:])
                derived[share, *where] = cells[part, *where] / cells[cell]
                squares += [(part, *where), cell]
        frame = pd.DataFrame(derived, index=cells.index)
        frame.columns = _index(list(derived), _CELL)
        return pd.concat([cells.drop(columns=squares), frame], axis=1)


def _described_objects(group: Group) -> pd.DataFrame:
    """Return the objects of a group with what any of its runs says of them."""
    key = ["sample_id", "instance_id"]
    known = pd.concat([run.objects for run in group.runs], ignore_index=True).drop_duplicates(key)
    objects = group.scores[0].objects.merge(known, how="left", on=key, validate="1:1")
    objects["category"] = objects["category"].fillna("")
    return objects


def _cells(group: Group, conditions: Sequence[str]) -> dict[tuple[str, str, str], Floats]:
    """Return (statistic, segmenter, condition) -> (O,), without those that no object has."""
    cells = {
        (statistic, label, condition): values[place]
        for label, scores in zip(group.labels, group.scores, strict=True)
        for place, condition in enumerate(conditions)
        for statistic, values in scores.statistics.items()
        if not np.isnan(values[place]).all()
    }
    return dict(sorted(cells.items(), key=lambda cell: _place_of(cell[0][0])))


def _place_of(statistic: str) -> tuple[bool, bool]:
    """Return a key by which parts of shares come last, and before them `iou_fell`."""
    return statistic in _PARTS, statistic == "iou_fell"


def _image_sums(columns: Iterable[Floats], owners: npt.NDArray[np.int64]) -> tuple[Floats, Floats]:
    """Return (I, D) sums over, and numbers of, the objects of each image, of D (O,) columns."""
    there = [~np.isnan(values) for values in columns]
    sums = [
        np.bincount(owners, np.where(scored, values, 0))
        for values, scored in zip(columns, there, strict=True)
    ]
    counts = [np.bincount(owners, scored) for scored in there]
    return np.stack(sums, axis=1), np.stack(counts, axis=1)


def _frame(keys: Sequence[Any], values: Floats, names: Sequence[str]) -> pd.DataFrame:
    return pd.DataFrame(values, columns=_index(keys, names))


def _index(keys: Sequence[Any], names: Sequence[str]) -> pd.MultiIndex:
    if not keys:
        return pd.MultiIndex.from_arrays([[] for _ in names], names=list(names))
    return pd.MultiIndex.from_tuples(list(keys), names=list(names))


SIGNIFICANT = 0.05
"""A difference whose corrected p is not below it is a tie."""


def paired_differences(measured: Measured) -> pd.DataFrame:
    """Return `Section.differences`: those of all pairs of segmenters, on identical prompts."""
    rows = measured.manifest.protocol["conditions"]
    stored = {row["name"] for row in rows if "image" not in row}
    means = [cell for cell in measured.contributions.columns if cell[2] in stored]
    cells = [
        (statistic, condition, one, other)
        for statistic, condition in dict.fromkeys((cell[0], cell[2]) for cell in means)
        for one, other in combinations(measured.segmenters, 2)
        if {(statistic, one, condition), (statistic, other, condition)} <= set(means)
    ]
    table = pd.DataFrame(cells, columns=["statistic", "condition", "segmenter", "other"])
    if table.empty:
        return table.assign(difference=[], low=[], high=[], p=[], p_holm=[], is_tie=[])
    mine = [(statistic, one, condition) for statistic, condition, one, _ in cells]
    theirs = [(statistic, other, condition) for statistic, condition, _, other in cells]

    def less(frame: pd.DataFrame) -> Floats:
        gains: Floats = frame[mine].to_numpy() - frame[theirs].to_numpy()
        return gains

    contributions = less(measured.contributions)
    table["difference"] = contributions.sum(axis=0)
    table["low"], table["high"] = np.quantile(less(measured.resampled), INTERVAL, axis=0)
    table["p"] = sign_flip_test(contributions, key=measured.manifest.dataset.key)
    return corrected(table, ["statistic", "condition"])


def corrected(table: pd.DataFrame, family: list[str]) -> pd.DataFrame:
    """Return differences with `p_holm` and `is_tie`.

    A tie has a corrected p that is not below 0.05, or an interval with 0 in it.

    Args:
        table: with `low`, `high` and `p`.
        family: columns; p is corrected over the rows in which they are alike.
    """
    p_holm = table.groupby(family, sort=False)["p"].transform(lambda p: holm(p.to_numpy()))
    clear = (p_holm < SIGNIFICANT) & ((table["low"] > 0) | (table["high"] < 0))
    return table.assign(p_holm=p_holm, is_tie=~clear)


SHOWN_CLICKS = (1, 3, 5, 10, 20)
"""After which tables show the answers of a conversation, besides the first and the last."""
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
    than 0.05 IoU against the condition with one point less; then the metrics of plug-ins, and
    where IoU is measured at three thresholds of the logits `threshold_share`, the share of the
    variance over trials and thresholds that is between thresholds; and in the row of the last click
    of a conversation `noc_80` to `noc_95` (clicks until that IoU, all of them where it is never
    reached), `nof_80` to `nof_95` (share of objects and trials that never reach it), `click_auc`
    (mean IoU over the clicks) and `click_fell` (share of clicks that lose more than 0.05 IoU).

    Attributes:
        protocol: its name.
        version: of the protocol.
        dataset: key of the data set, or "four-hq (mean of 4)".
        limit: the N of `--limit N`, None where all images are taken.
        trials: the T of `--trials T`, None where the protocol decides.
        marks: what a reader must know: limit, trials, missing images, selection, frame.
        conditions: as in the manifest, in protocol order: name, degradation, parameters, level.
        table: one row per segmenter and condition: `segmenter`, `source` ("measured" or a paper),
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
            ("size", "thinness", "frame-size", "crowding" or "supergroup"), `class`, `n_objects`,
            `miou` and `mbiou` with their intervals; empty where no run says what its objects are.
        glance: one a segmenter, published ones left out: `segmenter`, `statistic` (the first metric
            with scores, as "miou"), `n_conditions` (those but the exact prompt in which all
            segmenters have a score), `exact` (the statistic for the exact prompt, NaN where the
            protocol has none), `mean` (unweighted over these conditions), `drop` (exact - mean,
            the other way round where lower is better) and `relative` (drop / exact), fractions in
            the unit of the statistic, each with the ends of its 95 % interval in `..._low` and
            `..._high`; empty where no condition is degraded.
        corruptions: one a segmenter, corruption ("all" for their mean), severity (NaN for the mean
            over all) and condition, as `samrobust.report.corruptions` computes them; empty where
            no image is corrupted. All else is of images as they are stored.
        runs: the manifests of all runs, in the order of `segmenters` for each data set.
        segmenters: labels of all runs, in order.
        stored: the runs, in order; none for a group.
        precisions: what is known of the runs that are not in float32.
        objects: what the objects are; none for a group.
        scores: of the segmenters by object; none for a group.
        columns: statistics that its tables show, in this order; () for all that have values.
    """

    protocol: str
    version: int
    dataset: str
    limit: int | None
    trials: int | None
    marks: tuple[str, ...]
    conditions: tuple[Mapping[str, Any], ...]
    table: pd.DataFrame
    differences: pd.DataFrame
    breakdown: pd.DataFrame
    glance: pd.DataFrame
    corruptions: pd.DataFrame
    runs: tuple[RunManifest, ...]
    segmenters: tuple[str, ...]
    stored: tuple[Run, ...]
    precisions: tuple[Precision, ...]
    objects: pd.DataFrame
    scores: tuple[ObjectScores, ...]
    columns: tuple[str, ...] = ()

    @property
    def title(self) -> str:
        """Return protocol, data set and marks in one line."""
        return f"{self.protocol} v{self.version} on {self.dataset}: {'; '.join(self.marks)}"

    @cached_property
    def human_percentiles(self) -> dict[str, float]:
        """Return how far off the median box of a condition is, of those that give boxes alone."""
        installed = DEGRADATIONS.names()
        found: dict[str, float | None] = {}
        for row in self.conditions:
            if row.get("turn"):
                continue  # a box that clicks mend is not what the answer goes by
            if row["degradation"] == RECORDED:
                found[str(row["name"])] = self._recorded_percentile(row["name"])
            elif row["degradation"] in installed:
                with errors_at(f"condition {shown(row['name'])}", RunError):
                    degradation = build_degradation(row["degradation"], row["parameters"])
                    found[str(row["name"])] = median_percentile(degradation)
        return {name: value for name, value in found.items() if value is not None}

    @property
    def shown_conditions(self) -> list[str]:
        """Return the conditions that tables show: of a conversation, those of `SHOWN_CLICKS`."""
        talks = conversations(self.conditions)
        ends = {place for talk in talks for place in (talk.places[0], talk.places[-1])}
        return [
            str(row["name"])
            for place, row in enumerate(self.conditions)
            if not row.get("turn") or place in ends or row["turn"]["n_clicks"] in SHOWN_CLICKS
        ]

    @cached_property
    def click_groups(self) -> pd.DataFrame:
        """Return how much likely and unlikely clicks differ; empty without such conversations.

        One row a segmenter: `segmenter`, then with the ends of their 95 % interval in `..._low` and
        `..._high` `noc_90` (mean over the groups of clicks), `dgr` (that of group 1 less that of
        group 10, as a fraction of the latter) and `nsr` (standard deviation over the groups, mean
        over objects, as a fraction of `noc_90`).
        """
        return click_group_table(self.conditions, self.segmenters, self.stored, self.scores)

    def _recorded_percentile(self, condition: str) -> float | None:
        """Return the human percentile of the median recorded box, None where there is none."""
        for run in self.stored:
            raters = read_raters(run.folder)
            losses = raters.loc[raters["condition"] == condition, "loss"].dropna()
            return human_percentile(float(losses.median())) if len(losses) else None
        return None

    @cached_property
    def raters(self) -> pd.DataFrame:
        """Return what raters of recorded prompts differ in; empty for fewer than two.

        One row a segmenter and kind of prompts: `segmenter`, `condition`, `n_raters`, the standard
        deviations of IoU `between` raters and `within` one, `icc` (the share of the variance that
        is between raters), each with the ends of its 95 % interval in `..._low` and `..._high`;
        `agreement` (mean IoU of pairs of masks of different raters) and `local` (that of masks from
        boxes at the 25th human percentile). Fractions.

        Raises:
            RunError: a file of a run cannot be read.
        """
        return rater_table(self.stored, self.segmenters, self.objects, self.table)

    @cached_property
    def search_rows(self) -> pd.DataFrame:
        """Return what searches for the worst prompts found, one row per segmenter and object.

        Columns: `segmenter`, those of `samrobust.runs.manifest.SearchRow`, and `limit`, the human
        percentile up to which was searched; empty without a search.

        Raises:
            RunError: a file of a run cannot be read.
        """
        return search_rows(self.stored, self.segmenters, self.objects)

    @cached_property
    def searches(self) -> pd.DataFrame:
        """Return the means of `search_rows`, one row per segmenter and search.

        Columns: `segmenter`, `condition`, `percentile` (up to which was searched), `n_objects`,
        `n_asked` (prompts per object), then fractions with the ends of their 95 % interval in
        `..._low` and `..._high`: `worst`, `exact` and `best`, the mIoU of these prompts; `broken`,
        the share of objects with a prompt of IoU below 0.5; `breaks_at`, the mean over objects of
        the lowest human percentile of such a prompt, `percentile` where none was found.
        """
        return search_table(self.search_rows, key=self.runs[0].dataset.key)

    @property
    def decodes(self) -> dict[str, int]:
        """Return by segmenter how often a prompt passes its decoder: more than once by remedies."""
        infos = (run.segmenter for run in self.runs)
        names = cycle(self.segmenters)
        return {
            name: int(info.settings.get("decodes", 1))
            for name, info in zip(names, infos, strict=False)
        }

    @property
    def measured(self) -> pd.DataFrame:
        """Return the rows that are ours."""
        return self.table[self.table["source"] == MEASURED]

    @property
    def statistics(self) -> list[str]:
        """Return the columns of `table` that hold statistics, without those of their intervals."""
        ends = [name for name in self.table if f"{name}_high" in self.table]
        return [str(name) for name in ends]

    @property
    def object_table(self) -> pd.DataFrame:
        """Return one row per segmenter, object and condition, with the statistics of its trials.

        Columns: `segmenter`, `condition`, those of `objects`, then the statistics as fractions, NaN
        where there is none. Empty for a group of data sets.
        """
        names = [str(row["name"]) for row in self.conditions]
        tables = [
            self.objects.assign(
                segmenter=label,
                condition=name,
                **{column: values[place] for column, values in scores.statistics.items()},
            )
            for label, scores in zip(self.segmenters, self.scores, strict=False)
            for place, name in enumerate(names)
        ]
        table = pd.concat(tables or [self.objects], ignore_index=True).drop(columns="image")
        first = [name for name in ("segmenter", "condition") if name in table]
        return table[[*first, *table.columns.drop(first)]]

    @cached_property
    def estimates(self) -> "dict[str, dict[str, Estimates]]":
        """Return what each segmenter says of its masks, by condition; read when first used.

        Segmenters without an estimate, and runs that did not store it, are left out.
        """
        from samrobust.report.calibration import estimates_of

        found = {
            label: estimates_of(run, scores)
            for label, run, scores in zip(self.segmenters, self.stored, self.scores, strict=False)
        }
        return {label: each for label, each in found.items() if each}

    @cached_property
    def calibration(self) -> pd.DataFrame:
        """Return what these estimates are worth, one row per segmenter and condition.

        Columns: `segmenter`, `condition`, `n_prompts`, then fractions with the ends of their 95 %
        interval in `..._low` and `..._high`: `bias`, mean of estimate - IoU; `growth`, the bias
        less that of the exact prompt; `mae`; `iou_ece`, and `recalibrated`, the same after isotonic
        regression on other images; `d_ece_50`, `d_ece_75`; `spearman`; `auroc` for IoU of at least
        0.5; `aurc`, `e_aurc`; `iou_at_80`; and of several candidates `gap`, IoU of the best less
        that of the chosen one, and `best_chosen`, the share of prompts in which these are one.
        """
        from samrobust.report.calibration import calibration_of

        return calibration_of(self)

    @cached_property
    def average_precision(self) -> pd.DataFrame:
        """Return the average precision of the masks of a detector's boxes; empty for other prompts.

        One row per segmenter: `segmenter`, `n_images` (that all runs have), `n_detections`, then
        `ap`, `ap_50`, `ap_75`, `ap_small`, `ap_medium`, `ap_large` and `boundary_ap`, fractions;
        with LVIS's annotations `ap_rare`, `ap_common` and `ap_frequent` too.

        Raises:
            RunError: a file of a run cannot be read, or a mask does not fit its image.
        """
        return precision_table(self.stored, self.segmenters)

    @cached_property
    def detector_error(self) -> pd.DataFrame:
        """Return the mean IoU of a detector's boxes by how far they are off; else empty.

        One row per segmenter and class of boxes, of those that match an object: `segmenter`,
        `boxes` (human percentiles of their error: "p0-25"), `n_boxes`, `miou` with the ends of its
        interval in `miou_low` and `miou_high`.

        Raises:
            RunError: a file of a run cannot be read.
        """
        return error_table(self.stored, self.segmenters, self.scores)

    def figures(self) -> "dict[str, Figure]":
        """Return the figures of the section by name, those that would be empty left out.

        The names are "level" (scores against the level), "stability", "objects", "variance",
        "heat", "cost", "broken", "reliability" and "risk"; a section with several ladders of levels
        has a "level-..." for each.
        """
        from samrobust.report.plots import draw_figures

        return draw_figures(self)

    @cached_property
    def best(self) -> frozenset[tuple[str, str, str]]:
        """Return the (statistic, segmenter, condition) that beat every other without a tie."""
        found = set()
        for (statistic, condition), pairs in self.differences.groupby(["statistic", "condition"]):
            won: dict[str, int] = {}
            higher_is_better = statistic_of(str(statistic)).higher_is_better
            clear = pairs[~pairs["is_tie"]]
            names = zip(clear["segmenter"], clear["other"], strict=True)
            for (one, other), gain in zip(names, clear["difference"].to_numpy(), strict=True):
                winner = one if (gain > 0) == higher_is_better else other
                won[winner] = won.get(winner, 0) + 1
            others = len({*pairs["segmenter"], *pairs["other"]}) - 1
            found |= {
                (str(statistic), name, str(condition)) for name, n in won.items() if n == others
            }
        return frozenset(found)


def summarise(runs: Sequence[Run], *, strict: bool = False) -> list[Section]:
    """Return one section a group of comparable runs, and one a complete group of data sets.

    Intervals are 95 % bootstrap percentiles over images, an image with all its objects and trials,
    the same images for all segmenters: those that all runs of the section have. A group of data
    sets is averaged unweighted.

    Args:
        runs: in the order of the segmenters.
        strict: whether an image that one run has and another lacks is an error.

    Raises:
        RunError: runs that cannot be compared.
    """
    sections: list[Section] = []
    seen: dict[str, dict[str, Measured]] = {}
    groups = comparable_groups(runs, strict=strict)
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
    crossed = tuple(manifest.protocol["conditions"])
    conditions = tuple(row for row in crossed if "image" not in row)
    place = {condition["name"]: index for index, condition in enumerate(conditions)}
    reported = [row for row in manifest.reported if row["dataset"] in published]
    rows = [*_measured_rows(measured), *_published_rows(reported)]
    rows.sort(key=lambda row: place[row["condition"]])  # stable: published ones stay last
    levels = [conditions[place[row["condition"]]]["level"] for row in rows]
    others = [metric for metric in manifest.protocol["metrics"] if metric not in COLUMNS]
    statistics = [*COLUMNS.values(), *OF_TRIALS, *others]
    statistics += [
        name for name in {**OF_THRESHOLDS, **OF_CLICKS} if name in measured.estimates.index
    ]
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
        table=table.astype(dict.fromkeys(_COUNTS, "Int64") | dict.fromkeys(columns, "float64")),
        differences=paired_differences(measured),
        breakdown=_breakdown(measured),
        glance=glance_of(
            measured.estimates,
            measured.resampled,
            segmenters=[label for label, _ in _controls_first(measured)],
            conditions=conditions,
            statistics=[*COLUMNS.values(), *others],
        ),
        corruptions=corruptions_of(
            measured.estimates,
            measured.resampled,
            segmenters=[label for label, _ in _controls_first(measured)],
            conditions=crossed,
            statistics=[*COLUMNS.values(), *others],
        ),
        runs=tuple(measured.manifests),
        segmenters=tuple(measured.segmenters),
        stored=tuple(measured.stored),
        precisions=tuple(measured.precisions),
        objects=measured.objects,
        scores=tuple(measured.scores),
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
        for label, segmenter in _controls_first(measured)
        for condition in measured.manifest.protocol["conditions"]
        if "image" not in condition
    ]


def _controls_first(measured: Measured) -> list[tuple[str, SegmenterInfo]]:
    """Return the segmenters with their labels, in the order in which tables show them."""
    infos = [manifest.segmenter for manifest in measured.manifests]
    pairs = zip(measured.segmenters, infos, strict=False)
    return sorted(pairs, key=lambda pair: not pair[1].is_control)


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
        row[column_of(value["metric"])] = value["value"]
    return list(rows.values())


def _marks(measured: Measured) -> tuple[str, ...]:
    manifest, n_images, n_samples = measured.manifest, measured.n_images, measured.n_samples
    frames = sorted({run.segmenter.frame for run in measured.manifests if run.segmenter.frame})
    n_known = n_images + measured.n_failed + measured.n_images_left_out
    is_incomplete = n_known < n_samples and not measured.has_others
    recorded = any(row["degradation"] == RECORDED for row in manifest.protocol["conditions"])
    what = "objects or prompts" if recorded else "objects"
    marks = {
        f"first {manifest.limit} images": manifest.limit is not None,
        f"{manifest.trials} trials": manifest.trials is not None,
        f"incomplete: {n_images} of {n_samples} images": is_incomplete,
        f"images that all runs have: {n_images} of {n_samples}": measured.has_others,
        f"images that failed: {measured.n_failed}": measured.n_failed > 0,
        f"images left out: {measured.n_images_left_out}": measured.n_images_left_out > 0,
        f"{what} left out: {measured.n_objects_left_out}": measured.n_objects_left_out > 0,
        f"selection {manifest.protocol['selection']}": True,
        f"frame {', '.join(frames)}": bool(frames),
    }
    return tuple(mark for mark, is_set in marks.items() if is_set)
