"""Test an adapter before a run: its masks follow the prompts, repeat, and leave inputs alone.

Faults that this finds have been published: point and box prompts of SAM 3.1 that the wrong decoder
ignored, and boxes that a library changed in place, so that the second call with the same tensor
gave another mask (docs/sources/robustness.md D, rows 11 and 13).
"""

from collections.abc import Iterable
from typing import Any

import numpy as np
import torch
from torch import Tensor

from samrobust.errors import SegmenterError
from samrobust.evaluation.predictor import check_finite
from samrobust.seeding import keyed_generator
from samrobust.segmenters import ROWS
from samrobust.types import Image, KnowsSamples, Prompt, PromptBatch, PromptKind, Segmenter

_SIZE_HW = (96, 128)
_BOXES = ((10, 14, 44, 56), (78, 8, 117, 38), (54, 58, 104, 88))
"""Of the three objects of the test image, xyxy."""
_FOREGROUND = np.ones(1, np.int32)
_SUBJECTS: dict[PromptKind, str] = {"box": "boxes", "points": "points"}


def needs_self_test(segmenter: Segmenter[Any]) -> bool:
    """Return whether the code that predicts is not of this package and takes any image."""
    if isinstance(segmenter, KnowsSamples):
        return False
    row = ROWS.get(segmenter.info.name)
    return row is None or row.is_foreign


@torch.inference_mode()
def check_adapter(segmenter: Segmenter[Any], kinds: Iterable[PromptKind]) -> None:
    """Check a segmenter with three prompts of each kind, on one image.

    The image shows three discs; the prompts are their boxes, or their centres.

    Args:
        segmenter: to be tested.
        kinds: of prompt that it accepts.

    Raises:
        SegmenterError: its masks are of another shape or type than they must be, are the same for
            all three prompts, differ when the same prompts come again, or its code has changed the
            image or the prompts.
    """
    image = _test_image()
    given = image.copy()
    (embedding,) = segmenter.encode([given])
    if not np.array_equal(given, image):
        raise _failure(segmenter, "encode changes the image that it is given")
    for kind in sorted(kinds):
        prompts, untouched = _prompts(kind), _prompts(kind)
        first = _masks(segmenter, embedding, prompts)
        again = _masks(segmenter, embedding, prompts)
        if not _equal(prompts, untouched):
            raise _failure(segmenter, f"predict changes the {_SUBJECTS[kind]} that it is given")
        if not torch.equal(first, again):
            raise _failure(
                segmenter, f"the same {_SUBJECTS[kind]} give other masks the second time"
            )
        if all(torch.equal(first[0], mask) for mask in first[1:]):
            what = "is the same" if first.any() else "is empty"
            raise _failure(
                segmenter, f"the mask does not move with the {_SUBJECTS[kind]}: it {what} for three"
            )


def _masks(segmenter: Segmenter[Any], embedding: object, prompts: PromptBatch) -> Tensor:
    """Return (3, M, H, W) masks, checked for shape and type, that later calls cannot change."""
    prediction = segmenter.predict(embedding, prompts)
    masks = prediction.masks
    if masks.dtype != torch.bool or (len(masks), *masks.shape[2:]) != (len(prompts), *_SIZE_HW):
        raise _failure(
            segmenter,
            f"masks must be bool of shape ({len(prompts)}, M, {_SIZE_HW[0]}, {_SIZE_HW[1]}), got "
            f"{str(masks.dtype).removeprefix('torch.')} of shape {tuple(masks.shape)}",
        )
    check_finite(segmenter.info, [prediction.quality.isfinite().all()])
    return masks.clone()


def _test_image() -> Image:
    """Return three bright discs on a dark ground, with a little noise, (H, W, 3) uint8."""
    rows, columns = np.indices(_SIZE_HW)
    image = keyed_generator("self-test").normal(60, 6, (*_SIZE_HW, 3))
    colours = ((230, 180, 60), (90, 220, 120), (120, 150, 240))
    for (x0, y0, x1, y1), colour in zip(_BOXES, colours, strict=True):
        x, y = (2 * columns - x0 - x1) / (x1 - x0), (2 * rows - y0 - y1) / (y1 - y0)
        image[x**2 + y**2 <= 1] = colour
    return image.clip(0, 255).astype(np.uint8)


def _prompts(kind: PromptKind) -> PromptBatch:
    boxes = np.array(_BOXES, np.float32)
    if kind == "box":
        return PromptBatch.stack([Prompt(box=box) for box in boxes])
    centres = (boxes[:, :2] + boxes[:, 2:]) / 2
    return PromptBatch.stack([Prompt(points=xy[None], labels=_FOREGROUND) for xy in centres])


def _equal(one: PromptBatch, other: PromptBatch) -> bool:
    pairs = ((one.boxes, other.boxes), (one.points, other.points), (one.labels, other.labels))
    return all(np.array_equal(mine, theirs) for mine, theirs in pairs)  # type: ignore[arg-type]


def _failure(segmenter: Segmenter[Any], reason: str) -> SegmenterError:
    return SegmenterError(
        f"{segmenter.info.label}: self-test: {reason}; --no-self-test runs it all the same"
    )
