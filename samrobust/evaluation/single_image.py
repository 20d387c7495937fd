"""Predict the masks of one photograph for a box and its degradations."""

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
from samrobust.metrics.overlap import iou
from samrobust.protocol import check_drawn
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

BATCH_SIZE = 16
"""Prompts per forward pass."""
KEY = "show"
"""In place of a data set in the key of every prompt: the same box has the same degradations."""
SAMPLE_ID = "photograph"
"""In place of the image's own."""


@dataclass(frozen=True)
class Answers:
    """The masks of a segmenter for one condition.

    Attributes:
        segmenter: label of the segmenter.
        condition: name of the condition.
        boxes: (T, 4) xyxy.
        masks: (T, H, W) bool.
        agreement: (T,) IoU of each mask with the mask of the box that is not degraded.
    """

    segmenter: str
    condition: str
    boxes: Floats
    masks: Mask
    agreement: Floats


def box_sample(image: Image, box: Floats) -> Sample:
    """Return an image whose one object fills the box, so that boxes can be drawn from its mask.

    Args:
        image: (H, W, 3) uint8.
        box: (4,) xyxy with inclusive last pixels.

    Raises:
        SegmenterError: the box is inverted, or reaches outside the image.
    """
    height, width = image.shape[:2]
    x0, y0, x1, y1 = box.round()
    if not (0 <= x0 <= x1 < width and 0 <= y0 <= y1 < height):
        raise SegmenterError(
            f"the box {', '.join(f'{value:g}' for value in box)} is not inside an image of "
            f"{width}x{height}; it must be x0, y0, x1, y1 with 0 <= x0 <= x1 <= {width - 1} and "
            f"0 <= y0 <= y1 <= {height - 1}"
        )
    mask = np.zeros((height, width), np.bool_)
    mask[int(y0) : int(y1) + 1, int(x0) : int(x1) + 1] = True
    return Sample(SAMPLE_ID, image, [Instance("box", mask)])


@torch.inference_mode()
def answers(
    segmenters: Sequence[Segmenter[Any]], sample: Sample, protocol: EvalProtocol
) -> Iterator[Answers]:
    """Yield the masks of each segmenter for each condition, in the order of the protocol.

    Args:
        segmenters: at least one.
        sample: from `box_sample`.
        protocol: of boxes.

    Raises:
        SegmenterError: the protocol has other prompts than boxes, a segmenter does not accept them,
            or a prediction is not finite.
        ProtocolError: a condition searches for its prompt.
    """
    check_drawn(protocol)
    for condition in protocol.conditions:
        if condition.gives != {"box"}:
            kinds = " and ".join(sorted(condition.gives))
            raise SegmenterError(
                f"protocol {protocol.name}: condition '{condition.name}' gives {kinds}; "
                "only protocols of boxes can be shown"
            )
    draws = draw_prompts(sample, KEY, protocol)
    exact = ExactBox()(sample.instances[0].mask, np.random.default_rng())
    for segmenter in segmenters:
        check_can_run(segmenter, protocol)
        (embedding,) = segmenter.encode([sample.image])
        exact_mask = _masks(segmenter, embedding, PromptBatch.stack([exact]))[0]
        for draw in draws:
            masks = _masks(segmenter, embedding, draw.prompts)
            yield Answers(
                segmenter.info.label,
                draw.condition.name,
                np.asarray(draw.prompts.boxes, np.float64),
                masks.numpy(force=True),
                iou(masks, exact_mask).numpy(force=True),
            )


def _masks(segmenter: Segmenter[Any], embedding: object, prompts: PromptBatch) -> Tensor:
    """Return the (N, H, W) single masks of prompts."""
    starts = range(0, len(prompts), BATCH_SIZE)
    batches = [prompts[start : start + BATCH_SIZE] for start in starts]
    predictions = [segmenter.predict(embedding, batch) for batch in batches]
    check_finite(segmenter.info, [one.quality.isfinite().all() for one in predictions])
    return torch.cat([one.masks[:, 0] for one in predictions])
