"""The masks of runs as results of COCO's format."""

from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

import msgspec
import pandas as pd

from samrobust.datasets.coco import check_runs, run_lengths
from samrobust.errors import RunError
from samrobust.registry import known
from samrobust.runs.manifest import TARGET_TRIAL, has_detections
from samrobust.runs.store import (
    Run,
    read_detections,
    read_masks,
    read_photographs,
    read_quality,
)

Results = list[dict[str, Any]]
"""Of COCO's format: `image_id`, `category_id`, `segmentation` and `score` each."""


class _Category(msgspec.Struct):
    id: int
    name: str


class _Annotations(msgspec.Struct):
    """What is read of an annotation file."""

    categories: list[_Category]


def results_of(
    run: Run, condition: str = "", *, trial: int = 0, annotations: Path | None = None
) -> Results:
    """Return the masks of a run as results of COCO's format.

    Args:
        run: one with a detector's boxes, whose masks are returned all, with the detector's scores;
            or one with kept masks, with the segmenter's estimate of their IoU as scores, 1 where it
            has none.
        condition: of kept masks, "" for the first.
        trial: of kept masks.
        annotations: file that numbers the categories of kept masks.

    Raises:
        UnknownNameError: the run has no such condition.
        RunError: the run has no such masks, or a category has no number.
    """
    if has_detections(run.manifest):
        detections, targets = read_detections(run.folder)
        return detection_results(detections, sizes_of(targets))
    names = [str(row["name"]) for row in run.manifest.protocol["conditions"]]
    condition = known(condition or names[0], names, kind="condition")
    masks = read_masks(run.folder)
    masks = masks[(masks["condition"] == condition) & (masks["trial"] == trial)]
    if trial == TARGET_TRIAL or masks.empty:
        raise RunError(
            f"{run.folder}: keeps no masks of condition '{condition}', trial {trial}; evaluate "
            "with --keep-masks all"
        )
    if annotations is None:
        raise RunError(f"{run.folder}: --annotations must name a file that numbers the categories")
    numbers = _category_ids(annotations)
    key = ["sample_id", "instance_id"]
    said = read_quality(run.folder).astype(dict.fromkeys((*key, "condition"), "str"))
    masks = masks.merge(said, how="left", on=[*key, "condition", "trial"])
    masks = masks.merge(run.objects[[*key, "category"]], on=key, validate="m:1")
    unknown = sorted(set(masks["category"]) - numbers.keys())
    if unknown:
        raise RunError(f"{annotations}: has no category '{unknown[0]}', of {run.folder}")
    has_estimates = bool(masks["quality"].fillna(0).any())
    masks["score"] = masks["quality"].fillna(1.0) if has_estimates else 1.0
    masks["category_id"] = masks["category"].map(numbers)
    photographs = read_photographs(run.folder)
    sides = zip(photographs["height"], photographs["width"], strict=True)
    return detection_results(masks, dict(zip(photographs["sample_id"], sides, strict=True)))


def _category_ids(annotations: Path) -> dict[str, int]:
    try:
        table = msgspec.json.decode(annotations.read_bytes(), type=_Annotations)
    except OSError as error:
        raise RunError(f"{annotations}: cannot be read: {error.strerror}") from error
    except msgspec.DecodeError as error:
        raise RunError(f"{annotations}: has no categories of COCO's format: {error}") from error
    return {category.name: category.id for category in table.categories}


def detection_results(rows: pd.DataFrame, sizes: Mapping[str, Sequence[int]]) -> Results:
    """Return masks as results of COCO's format.

    Args:
        rows: `sample_id`, `category_id`, `score` and `counts`, COCO's compressed run lengths.
        sizes: image -> height and width.

    Raises:
        RunError: a mask does not fit its image, or the id of an image is no number.
    """
    return [
        {
            "image_id": image_id(row["sample_id"]),
            "category_id": int(row["category_id"]),
            "segmentation": segmentation(row["counts"], sizes[row["sample_id"]]),
            "score": float(row["score"]),
        }
        for row in rows.to_dict("records")
    ]


def segmentation(counts: bytes, size_hw: Sequence[int]) -> dict[str, Any]:
    """Return a mask as COCO's format writes it.

    Raises:
        RunError: it does not fit its image.
    """
    height, width = (int(side) for side in size_hw)
    try:
        check_runs(run_lengths(counts), (height, width))
    except ValueError as error:
        raise RunError(f"a stored mask of {width}x{height} is broken: {error}") from error
    return {"size": [height, width], "counts": counts.decode("ascii")}


def image_id(sample_id: str) -> int:
    """Return the id of an image as a number.

    Raises:
        RunError: it is none.
    """
    if not (sample_id.isascii() and sample_id.isdigit()):
        raise RunError(f"image '{sample_id}': results of COCO's format need ids that are numbers")
    return int(sample_id)


def sizes_of(targets: pd.DataFrame) -> dict[str, tuple[int, int]]:
    """Return the height and width of each image of `samrobust.runs.store.TARGETS`."""
    sides = zip(targets["height"], targets["width"], strict=True)
    return dict(zip(targets["sample_id"], sides, strict=True))
