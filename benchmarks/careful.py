"""The loop that a careful researcher writes: encode once, one prompt a call, OpenCV's erosion."""

import time
from typing import Any

import cv2
import numpy as np
from segment_anything.modeling.sam import Sam as SamModel
from segment_anything.predictor import SamPredictor

from benchmarks.peaks import settle
from benchmarks.watch import Clock
from samrobust.evaluation.prompts import draw_prompts
from samrobust.metrics.overlap import boundary_width
from samrobust.types import Dataset, EvalProtocol, Mask


def careful_loop(
    model: SamModel, photographs: Dataset, protocol: EvalProtocol, *, device: str
) -> dict[str, float]:
    """Return seconds of the first photograph, drawing the prompts and stability not counted.

    One encoding and one prompt go before, to warm up.

    Args:
        model: on its device.
        photographs: at least one.
        protocol: of boxes, scored by IoU and Boundary IoU whatever it says.
        device: the same.
    """
    predictor, clock = SamPredictor(model.eval()), Clock(device)
    sample_id = photographs.ids()[0]
    sample = photographs[sample_id]
    drawn = draw_prompts(sample, photographs.info.key, protocol)
    prompts = [
        (draws.instance.mask, box)
        for draws in drawn
        for box in (draws.prompts.boxes if draws.prompts.boxes is not None else [])
    ]
    predictor.set_image(sample.image)
    predictor.predict(box=prompts[0][1], multimask_output=False)
    settle(device)
    started = time.perf_counter()
    with clock("encode"):
        predictor.set_image(sample.image)
    for target, box in prompts:
        with clock("predict"):
            masks, _, _ = predictor.predict(box=box, multimask_output=False)
        with clock("metrics"):
            scores_by_opencv(np.asarray(masks[0]), target)
    total = time.perf_counter() - started
    return {**clock.seconds, "total": total, "images": 1, "prompts": len(prompts)}


def scores_by_opencv(mask: Mask, target: Mask) -> tuple[float, float]:
    """Return IoU and Boundary IoU, the boundary of the target made anew each time."""
    width = boundary_width(*target.shape)
    bands = [_band(values.astype(np.uint8), width) for values in (mask, target)]
    return _iou(mask, target), _iou(bands[0] > 0, bands[1] > 0)


def _band(mask: Any, width: int) -> Any:  # noqa: ANN401
    framed = cv2.copyMakeBorder(mask, 1, 1, 1, 1, cv2.BORDER_CONSTANT, value=0)
    eroded = cv2.erode(framed, np.ones((3, 3), np.uint8), iterations=width)
    return mask - eroded[1:-1, 1:-1]


def _iou(one: Mask, other: Mask) -> float:
    return float((one & other).sum() / max((one | other).sum(), 1))
