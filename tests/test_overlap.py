import cv2
import numpy as np
import numpy.typing as npt
import pytest
import torch
from pycocotools import mask as rle

from samrobust.metrics import METRICS, load_metric, overlap
from samrobust.metrics.bits import (
    Words,
    count_bits,
    count_with_torch,
    erode_bits,
    pack_masks,
    pack_with_numpy,
    pack_with_torch,
)
from samrobust.metrics.overlap import boundary_iou, boundary_width, iou, packing_shared
from samrobust.types import Mask
from tests.conftest import blobs

SIZES = [(40, 61), (129, 64), (7, 190), (200, 333), (1, 1), (1, 80), (65, 3)]


def masks_of(size_hw: tuple[int, int], n: int) -> npt.NDArray[np.bool_]:
    """Return masks of many kinds: blobs, noise, full, empty, a pixel, a strip at the border."""
    rng = np.random.default_rng(size_hw)
    masks = [
        blobs(rng, size_hw) if rng.random() < 0.7 else rng.random(size_hw) > 0.02 for _ in range(n)
    ]
    pixel, strip = np.zeros((2, *size_hw), np.bool_)
    pixel[size_hw[0] // 2, size_hw[1] - 1] = True
    strip[:, : size_hw[1] // 3 + 1] = True
    return np.stack([*masks, np.ones(size_hw, np.bool_), np.zeros(size_hw, np.bool_), pixel, strip])


def _boundary_by_opencv(mask: Mask, width: int) -> Mask:
    """Return the definition, really iterated: `width` erosions by a 3x3 square in a zero frame."""
    eroded = cv2.copyMakeBorder(mask.astype(np.uint8), 1, 1, 1, 1, cv2.BORDER_CONSTANT, value=0)
    for _ in range(width):
        eroded = cv2.erode(eroded, np.ones((3, 3), np.uint8))
    band: Mask = mask & (eroded[1:-1, 1:-1] == 0)
    return band


def _ratio(a: Mask, b: Mask) -> float:
    either = np.count_nonzero(a | b)
    return np.count_nonzero(a & b) / either if either else 1.0


@pytest.mark.parametrize("size_hw", SIZES)
def test_boundary_iou_is_opencvs_iterated_erosion(size_hw: tuple[int, int]) -> None:
    masks = masks_of(size_hw, 6)
    width = boundary_width(*size_hw)
    for target in masks:
        if target.any():
            expected = [
                _ratio(_boundary_by_opencv(mask, width), _boundary_by_opencv(target, width))
                for mask in masks
            ]
            scores = boundary_iou(torch.from_numpy(masks), torch.from_numpy(target))
            assert scores.tolist() == expected
            assert scores.dtype == torch.float64


@pytest.mark.parametrize("size_hw", SIZES)
@pytest.mark.parametrize("reach", [1, 2, 13, 31, 32, 33, 70])
def test_erosion_is_exact_for_every_reach_on_both_kinds_of_words(
    size_hw: tuple[int, int], reach: int
) -> None:
    masks = masks_of(size_hw, 4)
    expected = np.stack([mask & ~_boundary_by_opencv(mask, reach) for mask in masks])
    for words in (pack_with_numpy(masks, reach), pack_with_torch(torch.from_numpy(masks), reach)):
        assert np.array_equal(
            np.asarray(erode_bits(words, reach)), pack_with_numpy(expected, reach)
        )


@pytest.mark.parametrize("size_hw", SIZES)
def test_words_and_counts_are_the_same_in_numpy_and_in_torch(size_hw: tuple[int, int]) -> None:
    masks = torch.from_numpy(masks_of(size_hw, 4))
    words = pack_masks(masks, margin=5)
    assert torch.equal(torch.from_numpy(words), pack_with_torch(masks, 5))
    expected = masks.sum(dim=(1, 2))
    assert torch.equal(count_bits(words), expected)
    assert torch.equal(count_bits(torch.from_numpy(words)), expected)
    assert torch.equal(count_with_torch(torch.from_numpy(words)), expected)


def test_iou_is_what_pycocotools_says() -> None:
    masks = masks_of((77, 131), 8)[:-2]
    coded = rle.encode(np.asfortranarray(masks.transpose(1, 2, 0).astype(np.uint8)))
    expected = rle.iou(coded, coded, [0] * len(masks))
    for row, target in enumerate(masks):
        if target.any():
            scores = iou(torch.from_numpy(masks), torch.from_numpy(target))
            assert scores.numpy() == pytest.approx(expected[:, row], abs=1e-12)


def test_empty_cases_are_one_and_zero() -> None:
    empty, full = torch.zeros(1, 5, 9, dtype=torch.bool), torch.ones(5, 9, dtype=torch.bool)
    for metric in (iou, boundary_iou):
        assert metric(empty, full).tolist() == [0]
        assert metric(empty, empty[0]).tolist() == [1]


def test_the_band_is_two_percent_of_the_diagonal_and_at_least_a_pixel() -> None:
    sizes = [(512, 512), (1024, 1024), (2160, 3840), (3000, 4000), (2, 2)]
    assert [boundary_width(*size) for size in sizes] == [14, 29, 88, 100, 1]


def test_metrics_that_share_packed_masks_score_the_same_and_pack_once(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    packed = []

    def counted(masks: torch.Tensor, *, margin: int) -> Words:
        packed.append(masks)
        return pack_masks(masks, margin=margin)

    monkeypatch.setattr(overlap, "pack_masks", counted)
    masks = torch.from_numpy(masks_of((90, 133), 4))
    pairs = [(masks[:4], masks[0]), (masks[2:], masks[0]), (masks[:4], masks[3])]
    metrics = [load_metric(name).fn for name in METRICS.names()]
    alone = [[fn(*pair).tolist() for fn in metrics] for pair in pairs]
    assert len(packed) == 2 * len(pairs) * len(metrics)
    packed.clear()
    with packing_shared():
        assert [[fn(*pair).tolist() for fn in metrics] for pair in pairs] == alone
        assert [[fn(*pair).tolist() for fn in metrics] for pair in pairs] == alone
    assert len(packed) == 2 * len(pairs)
    iou(*pairs[0])
    assert len(packed) == 2 * len(pairs) + 2
