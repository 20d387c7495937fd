"""One photograph and one box: the masks that segmenters predict for its degradations."""

from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np
import torch
from torch import Tensor

from samrobust.degradations.boxes import ExactBox
from samrobust.errors import SegmenterError
from samrobust.evaluation.loop import check_can_run
from samrobust.evaluation.predictor import check_finite
from samrobust.evaluation.prompts import draw_prompts
from samrobust.geometry import clip_box
from samrobust.metrics.overlap import iou
from samrobust.types import (
    EvalProtocol,
    Floats,
    Image,
    Instance,
    Mask,
    PromptBatch,
    Sample,
    Segmenter,
)

PROMPTS_AT_ONCE = 16
KEY = "show"
"""Stands for a data set in the key of every prompt: the same box has the same degradations."""


@dataclass(frozen=True)
class Answers:
    """What a segmenter makes of the prompts of one condition.

    Attributes:
        segmenter: its label.
        condition: of the protocol.
        boxes: (T, 4) xyxy.
        masks: (T, H, W) bool.
        agreement: (T,) IoU of each mask with the one that the box itself gives.
    """

    segmenter: str
    condition: str
    boxes: Floats
    masks: Mask
    agreement: Floats


def box_sample(image: Image, box: Floats) -> Sample:
    """Return an image with one object: the whole box, from which degraded boxes are drawn.

    Args:
        image: (H, W, 3) uint8.
        box: (4,) xyxy with inclusive last pixels.

    Raises:
        SegmenterError: the box is inverted, or outside of the image.
    """
    height, width = image.shape[:2]
    x0, y0, x1, y1 = clip_box(box, (height, width), least_wh=np.zeros(2)).round().astype(int)
    is_outside = box[0] > width - 1 or box[1] > height - 1 or box[2] < 0 or box[3] < 0
    if is_outside or box[0] > box[2] or box[1] > box[3]:
        raise SegmenterError(
            f"the box {', '.join(f'{value:g}' for value in box)} is not inside an image of "
            f"{width}x{height}; wanted are x0, y0, x1, y1 with x0 <= x1 and y0 <= y1"
        )
    mask = np.zeros((height, width), np.bool_)
    mask[y0 : y1 + 1, x0 : x1 + 1] = True
    return Sample("photograph", image, [Instance("box", mask)])


@torch.inference_mode()
def answers(
    segmenters: Sequence[Segmenter[Any]], sample: Sample, protocol: EvalProtocol
) -> Iterator[Answers]:
    """Yield what each segmenter makes of each condition, conditions in the order of the protocol.

    Args:
        segmenters: at least one.
        sample: from `box_sample`.
        protocol: of boxes.

    Raises:
        SegmenterError: the protocol does not give boxes alone, a segmenter does not take them, or
            an answer is not finite.
    """
    for condition in protocol.conditions:
        if condition.degradation.gives != {"box"}:
            given = " and ".join(sorted(condition.degradation.gives))
            raise SegmenterError(
                f"protocol {protocol.name}: condition '{condition.name}' gives {given}; "
                "here it is a box that is degraded"
            )
    draws = draw_prompts(sample, KEY, protocol)
    exact = ExactBox()(sample.instances[0].mask, np.random.default_rng())
    for segmenter in segmenters:
        check_can_run(segmenter.info, protocol)
        (embedding,) = segmenter.encode([sample.image])
        own = _masks(segmenter, embedding, PromptBatch.stack([exact]))[0]
        for each in draws:
            masks = _masks(segmenter, embedding, each.prompts)
            yield Answers(
                segmenter.info.label,
                each.condition.name,
                np.asarray(each.prompts.boxes, np.float64),
                masks.numpy(force=True),
                iou(masks, own).numpy(force=True),
            )


def _masks(segmenter: Segmenter[Any], embedding: object, prompts: PromptBatch) -> Tensor:
    """Return the (N, H, W) single masks of prompts."""
    starts = range(0, len(prompts), PROMPTS_AT_ONCE)
    batches = [prompts[start : start + PROMPTS_AT_ONCE] for start in starts]
    found = [segmenter.predict(embedding, batch) for batch in batches]
    check_finite(segmenter.info, [each.quality.isfinite().all() for each in found])
    return torch.cat([each.masks[:, 0] for each in found])
