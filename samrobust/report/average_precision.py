"""Average precision of the masks of a detector's boxes, and their IoU against the boxes' error.

Data sets with LVIS's annotations have its federated rules (Gupta et al. 2019): of an image,
a category is judged only where it is annotated or known to be absent, and where not all of its
objects are annotated, detections that match none do not count.
"""

import contextlib
import io
from collections.abc import Iterable, Iterator, Mapping, Sequence, Set
from functools import partial
from typing import TYPE_CHECKING, Any

import cv2
import numpy as np
import numpy.typing as npt
import pandas as pd
from pycocotools import mask as coco
from pycocotools.coco import COCO
from pycocotools.cocoeval import COCOeval

from samrobust.degradations.human import human_percentile
from samrobust.metrics.overlap import boundary_width
from samrobust.report.coco_results import detection_results, image_id, segmentation, sizes_of
from samrobust.report.columns import NO_VALUE, PRECISIONS
from samrobust.report.layout import Spread, Table, records, with_spread
from samrobust.report.scores import ObjectScores, iou_of_trials
from samrobust.report.statistics import INTERVAL, bootstrap_weights
from samrobust.runs.manifest import has_detections
from samrobust.runs.store import Run, read_detections, read_raters
from samrobust.types import Floats

if TYPE_CHECKING:
    from samrobust.report.summary import Section

ERRORS = {"p0-25": 25.0, "p25-50": 50.0, "p50-75": 75.0, "p75-90": 90.0, "p90-100": np.inf}
"""Class of a box -> the human percentile that its error stays below."""
_ENDS = ("", "_low", "_high")
_SIZES = "small", "medium", "large"
_FREQUENCIES = {"r": "ap_rare", "c": "ap_common", "f": "ap_frequent"}
MAX_DETECTIONS, MAX_DETECTIONS_LVIS = 100, 300
"""Of the highest scores: in COCO per image and category, in LVIS per image."""


def average_precisions(detections: pd.DataFrame, targets: pd.DataFrame) -> dict[str, float]:
    """Return the average precision of masks, and that of their boundaries, in [0, 1].

    It is that of pycocotools, or for LVIS's annotations that of the package lvis: over IoU .5 to
    .95, at most 100 detections per image and category (LVIS: 300 per image), by the detector's
    scores; NaN for a size or frequency of which there is no object. Of a pair of masks the boundary
    precision takes the lower of IoU and boundary IoU (Cheng et al. 2021, sec. 5).

    Args:
        detections: columns as in `samrobust.runs.store.DETECTIONS`.
        targets: columns as in `samrobust.runs.store.TARGETS`; the images are theirs.

    Raises:
        RunError: a mask does not fit its image.
    """
    frequencies = targets.groupby("category_id")["frequency"].first()  # by id, ascending
    is_lvis = bool((frequencies != "").any())
    if is_lvis:
        best = detections.sort_values("score", ascending=False, kind="stable")
        detections = best.groupby("sample_id").head(MAX_DETECTIONS_LVIS)
    sizes = sizes_of(targets)
    annotations = [
        {
            "image_id": image_id(row["sample_id"]),
            "category_id": int(row["category_id"]),
            "area": float(row["area"]),
            "iscrowd": int(row["is_crowd"]),
            "segmentation": segmentation(row["counts"], [row["height"], row["width"]]),
        }
        for row in targets.to_dict("records")
    ]
    results = [
        {**row, "area": float(coco.area(row["segmentation"])), "iscrowd": 0}
        for row in detection_results(detections, sizes)
    ]
    if is_lvis:
        judged = {(row["image_id"], row["category_id"]) for row in annotations}
        judged |= _pairs(targets, "negatives")
        results = [row for row in results if (row["image_id"], row["category_id"]) in judged]
        results = [row for row in results if row["area"]]  # lvis has no masks without pixels
    truth, found = (_indexed(rows, sizes, frequencies.index) for rows in (annotations, results))
    evaluations = _Evaluation(truth, found, "segm"), _BoundaryEval(truth, found, "segm")
    for evaluation in evaluations:
        evaluation.not_exhaustive = _pairs(targets, "not_exhaustive")
        evaluation.params.maxDets = [MAX_DETECTIONS_LVIS if is_lvis else MAX_DETECTIONS]
    precision, at_boundary = map(_precision, evaluations)
    of_all = precision[..., 0]
    return {
        "ap": _mean(of_all),
        "ap_50": _mean(of_all[0]),
        "ap_75": _mean(of_all[5]),
        **{f"ap_{size}": _mean(precision[..., n]) for n, size in enumerate(_SIZES, start=1)},
        "boundary_ap": _mean(at_boundary[..., 0]),
        **{
            column: _mean(of_all[:, :, (frequencies == letter).to_numpy()])
            for letter, column in _FREQUENCIES.items()
        },
    }


def _pairs(targets: pd.DataFrame, column: str) -> set[tuple[int, int]]:
    """Return pairs of image and category of a column that lists categories of images."""
    images = targets.drop_duplicates("sample_id")
    return {
        (image_id(name), int(category))
        for name, categories in zip(images["sample_id"], images[column], strict=True)
        for category in categories
    }


def _indexed(
    rows: Sequence[Mapping[str, Any]], sizes: Mapping[str, Sequence[int]], categories: Iterable[int]
) -> COCO:
    """Return annotations, or detections, as pycocotools has them."""
    table = COCO()
    table.dataset = {
        "images": [
            {"id": image_id(name), "height": int(size[0]), "width": int(size[1])}
            for name, size in sizes.items()
        ],
        "categories": [{"id": int(each)} for each in categories],
        "annotations": [{**row, "id": n} for n, row in enumerate(rows, 1)],  # 0 means unmatched
    }
    with contextlib.redirect_stdout(io.StringIO()):  # they print what they do
        table.createIndex()
    return table


def _precision(evaluation: COCOeval) -> Floats:
    """Return (IoU, recall, category, area) precision, -1 where a category has no object.

    A category is evaluated in the images that have it: LVIS has too many pairs of both for memory.
    """
    found = []
    truth, detected = evaluation.cocoGt, evaluation.cocoDt
    with contextlib.redirect_stdout(io.StringIO()):
        for category in truth.cats:
            images = {*truth.catToImgs[category], *detected.catToImgs[category]}
            evaluation.params.imgIds, evaluation.params.catIds = sorted(images), [category]
            evaluation.evaluate()
            evaluation.accumulate()
            found.append(evaluation.eval["precision"][..., 0])
    return np.concatenate(found, axis=2)


def _mean(precision: Floats) -> float:
    there = precision[precision > -1]
    return float(there.mean()) if there.size else np.nan


class _Evaluation(COCOeval):  # type: ignore[misc]
    """COCO's evaluation, without false alarms in images where not all objects are annotated."""

    not_exhaustive: Set[tuple[int, int]] = frozenset()
    """Pairs of image and category."""

    def evaluateImg(self, imgId: int, catId: int, aRng: Any, maxDet: int) -> Any:  # noqa: ANN401, N802, N803
        """Return which detections of a category match in an image, and which do not count."""
        result = super().evaluateImg(imgId, catId, aRng, maxDet)
        if (imgId, catId) in self.not_exhaustive:
            result["dtIgnore"] |= result["dtMatches"] == 0
        return result


class _BoundaryEval(_Evaluation):
    """COCO's evaluation with the lower of IoU and boundary IoU."""

    def computeIoU(self, imgId: int, catId: int) -> Any:  # noqa: ANN401, N802, N803
        """Return the IoU of each detection, by score, with each annotation."""
        ious = super().computeIoU(imgId, catId)
        if len(ious) == 0:
            return ious
        truth, found = self._gts[imgId, catId], self._dts[imgId, catId]
        order = np.argsort([-row["score"] for row in found], kind="mergesort")
        found = [found[place] for place in order[: self.params.maxDets[-1]]]
        bands = coco.iou(
            [_band(row["segmentation"]) for row in found],
            [_band(row["segmentation"]) for row in truth],
            [int(row["iscrowd"]) for row in truth],
        )
        return np.minimum(ious, bands)


def _band(segmentation: Mapping[str, Any]) -> Any:  # noqa: ANN401
    """Return the run lengths of the inner boundary band of a mask; see `boundary_iou`."""
    pixels: npt.NDArray[np.uint8] = coco.decode(segmentation)
    width = boundary_width(*pixels.shape)
    inner = cv2.erode(
        pixels,
        np.ones((3, 3), np.uint8),
        iterations=width,
        borderType=cv2.BORDER_CONSTANT,
        borderValue=0,
    )
    return coco.encode(np.asfortranarray(pixels - inner))


def precision_table(stored: Sequence[Run], labels: Sequence[str]) -> pd.DataFrame:
    """Return `Section.average_precision`.

    Raises:
        RunError: a file of a run cannot be read, or a mask does not fit its image.
    """
    names = ["segmenter", "n_images", "n_detections", *(each.column for each in PRECISIONS)]
    tables = {
        label: read_detections(run.folder)
        for label, run in zip(labels, stored, strict=False)
        if has_detections(run.manifest)
    }
    shared = [set(targets["sample_id"]) for _, targets in tables.values()]
    images = set.intersection(*shared) if shared else set()
    rows = []
    for label, (detections, targets) in tables.items():
        found, truth = (each[each["sample_id"].isin(images)] for each in (detections, targets))
        if len(truth):
            precisions = average_precisions(found, truth)
            counts = {"n_images": len(images), "n_detections": len(found)}
            rows.append({"segmenter": label, **counts, **precisions})
    table = pd.DataFrame(rows, columns=names)
    of_lvis = [*_FREQUENCIES.values()]
    return table.drop(columns=of_lvis) if table[of_lvis].isna().all(axis=None) else table


def error_table(
    stored: Sequence[Run], labels: Sequence[str], scores: Sequence[ObjectScores]
) -> pd.DataFrame:
    """Return `Section.detector_error`.

    Raises:
        RunError: a file of a run cannot be read.
    """
    rows: list[dict[str, Any]] = []
    for run, label, its_scores in zip(stored, labels, scores, strict=False):
        if has_detections(run.manifest):
            rows += [{"segmenter": label, **row} for row in _by_error(run, its_scores)]
    names = ["segmenter", "boxes", "n_boxes", *(f"miou{end}" for end in _ENDS)]
    return pd.DataFrame(rows, columns=names)


def _by_error(run: Run, scores: ObjectScores) -> list[dict[str, Any]]:
    """Return the mean IoU of matched boxes by the human percentile of their error."""
    given = read_raters(run.folder)
    name = str(run.manifest.protocol["conditions"][0]["name"])
    objects = scores.objects.reset_index(names="object")
    given = given.merge(objects, on=["sample_id", "instance_id"], validate="m:1")
    ious = iou_of_trials(run, [name])[name][given["object"], given["trial"]].astype(np.float64)
    percentiles = np.array([human_percentile(loss) for loss in given["loss"]])
    image, n_images = given["image"].to_numpy(), scores.n_images
    weights = [*bootstrap_weights(n_images, key=run.manifest.dataset.key)]
    rows, at_least = [], 0.0
    for boxes, below in ERRORS.items():
        here = (percentiles >= at_least) & (percentiles < below)
        at_least = below
        if not here.any():
            continue
        count = partial(np.bincount, image[here], minlength=n_images)
        sums, counts = count(weights=ious[here]), count()
        row = {"boxes": boxes, "n_boxes": int(here.sum()), "miou": ious[here].mean()}
        if weights:
            with np.errstate(invalid="ignore"):  # no such box in a sample
                means = np.concatenate([(each @ sums) / (each @ counts) for each in weights])
            row["miou_low"], row["miou_high"] = np.nanquantile(means, INTERVAL)
        rows.append(row)
    return rows


def detector_tables(section: "Section", spread: Spread, *, where: str) -> Iterator[Table]:
    """Yield what the masks of a detector's boxes are worth, where prompts are such."""
    precisions = records(section.average_precision)
    if precisions:
        first = precisions[0]
        columns = [each for each in PRECISIONS if each.column in first]
        rows = tuple(
            (row["segmenter"], *(each.text(row[each.column]) for each in columns))
            for row in precisions
        )
        rules = "LVIS" if "ap_rare" in first else "COCO"
        about = (
            f"{rules}'s average precision of masks, in percent, by the detector's scores, over "
            f"{first['n_detections']} detections in {first['n_images']} images: those with an "
            "annotation. Boundary AP: with the lower of IoU and boundary IoU."
        )
        if rules == "LVIS":
            about += " AP r, c, f: of rare, common and frequent categories."
        header = ("segmenter", *(each.label for each in columns))
        title = f"{section.title}; average precision"
        of = tuple((row[0],) for row in rows)
        yield Table(title, header, rows, (about,), n_names=1, segmenters=of)
    errors = section.detector_error
    if len(errors):
        counts = dict(zip(errors["boxes"], errors["n_boxes"], strict=True))
        cells: dict[str, dict[str, str]] = {}
        for row in records(errors):
            cells.setdefault(row["segmenter"], {})[row["boxes"]] = with_spread(row, "miou", spread)
        rows = tuple(
            (label, *(of_label.get(name, NO_VALUE) for name in counts))
            for label, of_label in cells.items()
        )
        boxes = ", ".join(f"{name} ({count})" for name, count in counts.items())
        about = (
            f"mIoU in percent of the boxes that match an object (IoU >= 0.5 with its tight box, "
            f"same category); {where} the 95 % interval. By the human percentile of the box's "
            f"error (boxes): {boxes}."
        )
        title = f"{section.title}; by error of the box"
        of = tuple((row[0],) for row in rows)
        yield Table(title, ("segmenter", *counts), rows, (about,), n_names=1, segmenters=of)
