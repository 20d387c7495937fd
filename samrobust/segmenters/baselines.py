"""What needs no learning: the box itself, the ellipse in it, and OpenCV's GrabCut."""

import math
from collections.abc import Sequence
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass

import cv2
import numpy as np
import torch

from samrobust.errors import SegmenterError
from samrobust.segmenters.device import resolve_device
from samrobust.types import (
    BACKGROUND,
    FOREGROUND,
    Image,
    Mask,
    Prediction,
    PromptBatch,
    SegmenterInfo,
    SegmenterOptions,
)

GRABCUT_ITERATIONS = 3
"""As in the figures of the project's data notes; more change little."""
POINT_RADIUS = 0.01
"""Half side of the square around a point that surely is what its label says, in diagonals."""
POINT_REACH = 0.25
"""Half side of the square around a point that may be foreground, in image diagonals."""
_COMPONENTS = 5
"""Gaussians of each of OpenCV's two colour models; it needs as many pixels."""


@dataclass(frozen=True)
class _ImageSize:
    height: int
    width: int


class BoxShape:
    """A control that answers with a shape of the box and does not look at the image.

    Args:
        info: what it is.
        device: where its masks are made.
    """

    def __init__(self, info: SegmenterInfo, device: str) -> None:
        self.info = info
        self._device = device

    def encode(self, images: Sequence[Image]) -> list[_ImageSize]:
        """Return the size of each image: nothing else is looked at."""
        return [_ImageSize(*image.shape[:2]) for image in images]

    def predict(
        self,
        embedding: _ImageSize,
        prompts: PromptBatch,
        *,
        multimask: bool = False,  # noqa: ARG002
    ) -> Prediction:
        """Return one mask a box: the pixels whose centre lies in the shape."""
        if prompts.boxes is None:
            raise SegmenterError(f"{self.info.name} needs boxes")
        x0, y0, x1, y1 = torch.from_numpy(prompts.boxes).to(self._device).T[:, :, None, None]
        y = torch.arange(embedding.height, device=self._device)[:, None]
        x = torch.arange(embedding.width, device=self._device)
        if self.info.name == "box-fill":
            masks = ((x >= x0) & (x <= x1)) & ((y >= y0) & (y <= y1))
        else:  # half a pixel around the outermost pixel centres, so that thin boxes are not empty
            across = (x - (x0 + x1) / 2) / ((x1 - x0 + 1) / 2)
            down = (y - (y0 + y1) / 2) / ((y1 - y0 + 1) / 2)
            masks = across**2 + down**2 <= 1
        return _single(masks)


class GrabCut:
    """OpenCV's GrabCut with the box, or the surroundings of the points, as what may be foreground.

    What lies outside of that is surely background. Around each point, a small square is surely
    what its label says. The prompts of a call run in threads: OpenCV works without Python's lock.
    """

    def __init__(self, info: SegmenterInfo, device: str) -> None:
        self.info = info
        self._device = device
        self._threads = ThreadPoolExecutor(max_workers=torch.get_num_threads())

    def encode(self, images: Sequence[Image]) -> list[Image]:
        """Return the images in OpenCV's channel order."""
        return [np.ascontiguousarray(image[..., ::-1]) for image in images]

    def predict(
        self,
        embedding: Image,
        prompts: PromptBatch,
        *,
        multimask: bool = False,  # noqa: ARG002
    ) -> Prediction:
        """Return one mask a prompt."""
        rows = range(len(prompts))
        masks = list(self._threads.map(lambda row: _grabcut(embedding, prompts, row), rows))
        return _single(torch.from_numpy(np.stack(masks)).to(self._device))


def build_box_fill(options: SegmenterOptions) -> BoxShape:
    """Return the control that fills the box."""
    return BoxShape(_control("box-fill"), resolve_device(options.device))


def build_ellipse(options: SegmenterOptions) -> BoxShape:
    """Return the control that draws the ellipse inscribed in the box."""
    return BoxShape(_control("ellipse"), resolve_device(options.device))


def build_grabcut(options: SegmenterOptions) -> GrabCut:
    """Return the control that colours alone decide."""
    return GrabCut(_control("grabcut"), resolve_device(options.device))


def _control(name: str) -> SegmenterInfo:
    if name != "grabcut":
        return SegmenterInfo(name, frozenset({"box"}), is_control=True)
    settings: dict[str, str | float] = {
        "iterations": float(GRABCUT_ITERATIONS),
        "point_radius": POINT_RADIUS,
        "point_reach": POINT_REACH,
        "opencv": cv2.__version__,
    }
    return SegmenterInfo(name, frozenset({"box", "points"}), is_control=True, settings=settings)


def _grabcut(image_bgr: Image, prompts: PromptBatch, row: int) -> Mask:
    marks = np.full(image_bgr.shape[:2], cv2.GC_BGD, np.uint8)
    if prompts.boxes is not None:
        x0, y0, x1, y1 = np.rint(prompts.boxes[row]).astype(int)
        marks[y0 : y1 + 1, x0 : x1 + 1] = cv2.GC_PR_FGD
    else:
        _mark_points(marks, prompts, row, POINT_REACH, {FOREGROUND: cv2.GC_PR_FGD})
    _mark_points(
        marks, prompts, row, POINT_RADIUS, {FOREGROUND: cv2.GC_FGD, BACKGROUND: cv2.GC_BGD}
    )
    maybe: Mask = marks != cv2.GC_BGD
    if min(np.count_nonzero(maybe), np.count_nonzero(~maybe)) < _COMPONENTS:
        return maybe  # too few pixels on one side for a colour model
    cv2.setRNGSeed(0)  # of this thread: its clusters must not depend on earlier calls
    background, foreground = np.zeros((2, 1, 65), np.float64)
    mode, no_rect = cv2.GC_INIT_WITH_MASK, (0, 0, 0, 0)
    cv2.grabCut(image_bgr, marks, no_rect, background, foreground, GRABCUT_ITERATIONS, mode)
    mask: Mask = (marks == cv2.GC_FGD) | (marks == cv2.GC_PR_FGD)
    return mask


def _mark_points(
    marks: Image, prompts: PromptBatch, row: int, reach: float, value_of: dict[int, int]
) -> None:
    """Set the square around each point whose label has a value; `reach` is in image diagonals."""
    half = max(1, round(reach * math.hypot(*marks.shape)))
    for (x, y), label in zip(prompts.points[row].astype(int), prompts.labels[row], strict=True):
        if int(label) in value_of:
            top, left = max(y - half, 0), max(x - half, 0)
            marks[top : y + half + 1, left : x + half + 1] = value_of[int(label)]


def _single(masks: torch.Tensor) -> Prediction:
    """Return a prediction of one candidate a prompt, without an estimate of its quality."""
    return Prediction(masks[:, None], torch.zeros(len(masks), 1, device=masks.device))
