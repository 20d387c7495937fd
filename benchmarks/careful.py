"""Loops over segment-anything's own predictor, with NumPy and OpenCV's erosion for the metrics.

The careful researcher's encodes an image once, one prompt a call; the others batch, or encode anew.
"""

import time
from typing import Any, Protocol

import cv2
import numpy as np
import torch
from segment_anything.modeling.sam import Sam as SamModel
from segment_anything.predictor import SamPredictor

from benchmarks.peaks import settle
from benchmarks.watch import Clock
from samrobust.evaluation.prompts import draw_prompts
from samrobust.metrics.overlap import boundary_width
from samrobust.types import Dataset, EvalProtocol, Floats, Mask

BATCH = 16
"""Prompts per call of segment-anything's batched predictor; samrobust's default."""
RE_ENCODED = 8


class Loop(Protocol):
    """A loop over the prompts of the first photograph, one encoding and one prompt to warm up."""

    def __call__(
        self, model: SamModel, photographs: Dataset, protocol: EvalProtocol, *, device: str
    ) -> dict[str, float]:
        """Return seconds by part; drawing the prompts and stability are not counted.

        Args:
            model: on its device.
            photographs: at least one.
            protocol: of boxes, scored by IoU and Boundary IoU whatever it says.
            device: the same.
        """
        ...


def careful_loop(
    model: SamModel, photographs: Dataset, protocol: EvalProtocol, *, device: str
) -> dict[str, float]:
    """Return seconds of encoding once and predicting one prompt a call; see `Loop`."""
    seen = _First(model, photographs, protocol, device)
    with seen.clock("encode"):
        seen.predictor.set_image(seen.image)
    for target, box in seen.prompts:
        seen.score_one(target, box)
    return seen.figures(len(seen.prompts))


def batched_loop(
    model: SamModel, photographs: Dataset, protocol: EvalProtocol, *, device: str
) -> dict[str, float]:
    """Return seconds of encoding once and predicting `BATCH` prompts a call; see `Loop`."""
    seen = _First(model, photographs, protocol, device)
    predictor = seen.predictor
    with seen.clock("encode"):
        predictor.set_image(seen.image)
    for start in range(0, len(seen.prompts), BATCH):
        targets, boxes = zip(*seen.prompts[start : start + BATCH], strict=True)
        with seen.clock("predict"):
            xyxy = torch.as_tensor(np.stack(boxes), device=device)
            inputs = predictor.transform.apply_boxes_torch(xyxy, seen.image.shape[:2])
            found, _, _ = predictor.predict_torch(None, None, boxes=inputs, multimask_output=False)
            masks = found[:, 0].cpu().numpy()
        with seen.clock("metrics"):
            for mask, target in zip(masks, targets, strict=True):
                scores_by_opencv(mask, target)
    return seen.figures(len(seen.prompts))


def re_encoding_loop(
    model: SamModel, photographs: Dataset, protocol: EvalProtocol, *, device: str
) -> dict[str, float]:
    """Return seconds of `RE_ENCODED` prompts, the image encoded for each; see `Loop`.

    So do the published loops of sam-hq and of studies of prompts. All prompts cost the same, so a
    few tell the rate.
    """
    seen = _First(model, photographs, protocol, device)
    prompts = seen.prompts[:RE_ENCODED]
    for target, box in prompts:
        with seen.clock("encode"):
            seen.predictor.set_image(seen.image)
        seen.score_one(target, box)
    return seen.figures(len(prompts), images=len(prompts))


class _First:
    """The first photograph with its prompts, and segment-anything's predictor, warmed up."""

    def __init__(
        self, model: SamModel, photographs: Dataset, protocol: EvalProtocol, device: str
    ) -> None:
        self.predictor, self.clock = SamPredictor(model.eval()), Clock(device)
        sample = photographs[photographs.ids()[0]]
        drawn = draw_prompts(sample, photographs.info.key, protocol)
        self.image = sample.image
        self.prompts = [
            (draws.instance.mask, box)
            for draws in drawn
            for box in (draws.prompts.boxes if draws.prompts.boxes is not None else [])
        ]
        self.predictor.set_image(self.image)
        self.predictor.predict(box=self.prompts[0][1], multimask_output=False)
        settle(device)
        self._started = time.perf_counter()

    def score_one(self, target: Mask, box: Floats) -> None:
        with self.clock("predict"):
            masks, _, _ = self.predictor.predict(box=box, multimask_output=False)
        with self.clock("metrics"):
            scores_by_opencv(np.asarray(masks[0]), target)

    def figures(self, n_prompts: int, *, images: int = 1) -> dict[str, float]:
        total = time.perf_counter() - self._started
        return {**self.clock.seconds, "total": total, "images": images, "prompts": n_prompts}


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
