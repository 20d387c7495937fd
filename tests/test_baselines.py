from pathlib import Path

import cv2
import numpy as np
import pytest
import torch

from samrobust.errors import SegmenterError
from samrobust.metrics.overlap import iou
from samrobust.segmenters import SEGMENTERS
from samrobust.segmenters.baselines import build_box_fill, build_ellipse, build_grabcut
from samrobust.segmenters.device import resolve_device
from samrobust.types import Image, Prompt, PromptBatch, SegmenterOptions
from tests.conftest import rectangle

OPTIONS = SegmenterOptions()
SIZE_HW = (61, 90)


def _boxes(*boxes: tuple[float, float, float, float]) -> PromptBatch:
    return PromptBatch.stack([Prompt(box=np.array(box, np.float32)) for box in boxes])


def _points(*points: tuple[float, float, int]) -> PromptBatch:
    xy = np.array([point[:2] for point in points], np.float32)
    labels = np.array([point[2] for point in points], np.int32)
    return PromptBatch.stack([Prompt(points=xy, labels=labels)])


def _photograph() -> Image:
    """Return a red disc on noisy green."""
    rng = np.random.default_rng(0)
    image = rng.integers(0, 60, (*SIZE_HW, 3), dtype=np.uint8)
    image[..., 1] += 120
    cv2.circle(image, (50, 30), 18, (200, 30, 40), -1)
    return image


DISC = cv2.circle(np.zeros(SIZE_HW, np.uint8), (50, 30), 18, 1, -1) > 0


def test_box_fill_is_the_box_itself_inclusive() -> None:
    segmenter = build_box_fill(OPTIONS)
    (embedding,) = segmenter.encode([np.zeros((*SIZE_HW, 3), np.uint8)])
    masks = segmenter.predict(embedding, _boxes((3, 4, 20, 25), (89, 60, 89, 60))).masks
    assert masks.shape == (2, 1, *SIZE_HW)
    assert np.array_equal(masks[0, 0].numpy(), rectangle(SIZE_HW, (3, 4, 20, 25)))
    assert masks[1].sum() == 1


@pytest.mark.parametrize("box", [(10, 5, 70, 50), (0, 0, 89, 60), (7, 7, 7, 7), (3, 9, 40, 9)])
def test_the_ellipse_touches_its_box_and_has_its_area(box: tuple[int, int, int, int]) -> None:
    segmenter = build_ellipse(OPTIONS)
    (embedding,) = segmenter.encode([np.zeros((*SIZE_HW, 3), np.uint8)])
    mask = segmenter.predict(embedding, _boxes(box)).masks[0, 0].numpy()
    x, y, width, height = cv2.boundingRect(mask.astype(np.uint8))
    assert (x, y, x + width - 1, y + height - 1) == box
    area = np.pi / 4 * width * height
    assert mask.sum() == pytest.approx(area, rel=0.03) or min(width, height) == 1


def test_grabcut_finds_a_disc_from_a_box_and_from_points() -> None:
    segmenter = build_grabcut(OPTIONS)
    (embedding,) = segmenter.encode([_photograph()])
    for prompts in (_boxes((28, 8, 72, 52)), _points((50, 30, 1), (75, 30, 0))):
        masks = segmenter.predict(embedding, prompts).masks[:, 0]
        assert iou(masks, torch.from_numpy(DISC)).item() > 0.95


def test_grabcut_with_a_box_is_opencvs_own_rectangle_mode() -> None:
    image = _photograph()
    segmenter = build_grabcut(OPTIONS)
    (embedding,) = segmenter.encode([image])
    mask = segmenter.predict(embedding, _boxes((28, 8, 72, 52))).masks[0, 0].numpy()
    marks, models = np.zeros(SIZE_HW, np.uint8), np.zeros((2, 1, 65))
    cv2.setRNGSeed(0)
    bgr = np.ascontiguousarray(image[..., ::-1])
    cv2.grabCut(bgr, marks, (28, 8, 45, 45), models[0], models[1], 3, cv2.GC_INIT_WITH_RECT)
    assert np.array_equal(mask, np.isin(marks, (cv2.GC_FGD, cv2.GC_PR_FGD)))


def test_grabcut_gives_the_same_mask_in_any_batch_and_order() -> None:
    segmenter = build_grabcut(OPTIONS)
    rng = np.random.default_rng(1)
    (embedding,) = segmenter.encode([rng.integers(0, 256, (*SIZE_HW, 3), dtype=np.uint8)])
    prompts = _boxes((28, 8, 72, 52), (5, 5, 60, 40), (30, 20, 80, 60))
    together = segmenter.predict(embedding, prompts).masks
    for row in (2, 0, 1):
        alone = segmenter.predict(embedding, prompts[row : row + 1]).masks
        assert torch.equal(alone[0], together[row])


@pytest.mark.parametrize("box", [(0, 0, 89, 60), (0, 0, 88, 60), (5, 5, 5, 5)])
def test_grabcut_survives_boxes_with_too_little_on_one_side(
    box: tuple[float, float, float, float],
) -> None:
    segmenter = build_grabcut(OPTIONS)
    (embedding,) = segmenter.encode([_photograph()])
    assert segmenter.predict(embedding, _boxes(box)).masks.shape == (1, 1, *SIZE_HW)


def test_controls_say_what_they_do_not_take() -> None:
    with pytest.raises(SegmenterError, match="ellipse takes no --variant, got vit_b"):
        SEGMENTERS.load("ellipse")(SegmenterOptions(variant="vit_b"))
    with pytest.raises(SegmenterError, match=r"grabcut takes no --checkpoint, got a\.pth"):
        SEGMENTERS.load("grabcut")(SegmenterOptions(checkpoint=Path("a.pth")))
    segmenter = build_box_fill(OPTIONS)
    (embedding,) = segmenter.encode([_photograph()])
    with pytest.raises(SegmenterError, match="box-fill needs boxes"):
        segmenter.predict(embedding, _points((1, 1, 1)))


def test_controls_are_marked_and_do_without_files() -> None:
    for name in ("box-fill", "ellipse", "grabcut"):
        assert SEGMENTERS.load(name)(OPTIONS).info.is_control
        assert not SEGMENTERS.takes(name, "--checkpoint")


def test_devices_are_checked(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(torch.cuda, "is_available", lambda: False)
    assert resolve_device("auto") == resolve_device("cpu") == "cpu"
    for name in ("cuda", "cuda:0"):
        with pytest.raises(SegmenterError, match="no CUDA device"):
            resolve_device(name)
    for name in ("gpu", "cuda:x", "cpu:1"):
        with pytest.raises(SegmenterError, match=f"'{name}'"):
            resolve_device(name)
    monkeypatch.setattr(torch.cuda, "is_available", lambda: True)
    monkeypatch.setattr(torch.cuda, "device_count", lambda: 2)
    assert resolve_device("auto") == "cuda"
    assert resolve_device("cuda:1") == "cuda:1"
    with pytest.raises(SegmenterError, match="there are 2 CUDA devices"):
        resolve_device("cuda:2")
