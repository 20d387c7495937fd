from collections.abc import Callable
from dataclasses import replace

import numpy as np
import pytest
import torch
from scipy import stats

from samrobust.degradations.boxes import BoxNoise
from samrobust.degradations.points import RandomPoints
from samrobust.seeding import keyed_generator
from samrobust.training.validation import BATCH_SIZE, PROMPTS, validate
from samrobust.types import Degradation, Instance, Mask, Prediction, PromptBatch, Sample
from tests.conftest import GrownBox, MemoryDataset, rectangle


def triangle(size_hw: tuple[int, int], side: int) -> Mask:
    """Return a right-angled triangle in the corner of the image, of side * (side + 1) / 2."""
    y, x = np.indices(size_hw)
    return x + y < side


def sample(name: str, *masks: Mask) -> Sample:
    instances = [Instance(str(number), mask) for number, mask in enumerate(masks)]
    return Sample(name, np.zeros((*masks[0].shape, 3), np.uint8), instances)


@pytest.fixture
def dataset() -> MemoryDataset:
    """Return images of two odd sizes; of five objects, one is a pixel too small to count."""
    wide, high = (71, 133), (119, 67)
    return MemoryDataset(
        [
            sample("wide", triangle(wide, 60), rectangle(wide, (60, 20, 132, 70))),
            sample("small", rectangle(wide, (0, 0, 32, 30))),  # 33 x 31 = 1023
            sample("high", triangle(high, 50), rectangle(high, (10, 60, 41, 91))),  # 32 x 32
        ]
    )


class Believer(GrownBox):
    """Fills boxes, and believes in each as a function of its width says."""

    def __init__(self, belief: Callable[[float], float]) -> None:
        super().__init__()
        self._belief = belief

    def predict(
        self, embedding: tuple[int, int], prompts: PromptBatch, *, multimask: bool = False
    ) -> Prediction:
        masks = super().predict(embedding, prompts, multimask=multimask).masks
        widths = masks.any(dim=2).sum(dim=2)
        quality = [[self._belief(float(width)) for width in row] for row in widths]
        return Prediction(masks, torch.tensor(quality, dtype=torch.float32))


def iou(mask: Mask, target: Mask) -> float:
    return float((mask & target).sum() / (mask | target).sum())


def test_exact_boxes_have_the_mean_iou_of_a_hand_computation(dataset: MemoryDataset) -> None:
    found = validate(GrownBox(), dataset, dataset.ids())
    of_triangles = [(side + 1) / (2 * side) for side in (60, 50)]
    assert found["box"] == pytest.approx((*of_triangles, 1, 1) @ np.full(4, 0.25))
    assert found["objects"] == 4
    assert "quality" not in found  # it believes in all of them the same


@pytest.mark.parametrize(
    ("name", "degradation"),
    [
        ("box-noise-0.4", BoxNoise(0.4, 0.4)),
        ("points-1", RandomPoints(1)),
        ("points-3", RandomPoints(3)),
    ],
)
def test_other_prompts_have_the_mean_iou_of_masks_made_one_by_one(
    dataset: MemoryDataset, name: str, degradation: Degradation
) -> None:
    ious = []
    for sample_id in ("wide", "high"):
        for instance in dataset[sample_id].instances:
            rng = keyed_generator("judge", sample_id, instance.instance_id)
            prompt = degradation(instance.mask, rng)
            corners = prompt.points if prompt.box is None else prompt.box.reshape(2, 2)
            box = np.concatenate([corners.min(0), corners.max(0)]).round().astype(int)
            x0, y0, x1, y1 = box.tolist()
            ious.append(iou(rectangle(instance.mask.shape, (x0, y0, x1, y1)), instance.mask))
    found = validate(GrownBox(), dataset, dataset.ids())
    assert found[name] == pytest.approx(np.mean(ious))
    assert 0 < found[name] < found["box"]


def test_results_do_not_depend_on_the_order_of_the_images(dataset: MemoryDataset) -> None:
    forwards = validate(GrownBox(), dataset, dataset.ids())
    assert validate(GrownBox(), dataset, dataset.ids()) == forwards
    assert validate(GrownBox(), dataset, dataset.ids()[::-1]) == pytest.approx(forwards)


@pytest.mark.parametrize(
    "belief", [lambda width: width, lambda width: -(width**2), lambda width: (width * 7) % 11]
)
def test_quality_is_the_rank_correlation_of_scipy(
    dataset: MemoryDataset, belief: Callable[[float], float]
) -> None:
    found = validate(Believer(belief), dataset, dataset.ids())
    widths = [60, 73, 50, 32]
    ious = [61 / 120, 1, 51 / 100, 1]
    wanted = stats.spearmanr([belief(width) for width in widths], ious).statistic
    assert found["quality"] == pytest.approx(wanted)


def test_one_object_has_no_correlation() -> None:
    one = MemoryDataset([sample("one", triangle((71, 133), 60))])
    found = validate(Believer(lambda width: width), one, ["one"])
    assert set(found) == {*PROMPTS, "objects"}
    assert found["objects"] == 1


def test_small_objects_are_left_out_and_their_image_is_not_encoded(
    dataset: MemoryDataset,
) -> None:
    segmenter = GrownBox()
    assert validate(segmenter, dataset, ["small"]) == {"objects": 0}
    assert segmenter.n_encoded == 0
    assert validate(segmenter, dataset, ["small", "high"])["objects"] == 2
    assert segmenter.n_encoded == 1


def test_no_image_is_no_object(dataset: MemoryDataset) -> None:
    assert validate(GrownBox(), dataset, []) == {"objects": 0}


def test_many_objects_are_asked_for_in_parts() -> None:
    size_hw = (40, 40 * 40)
    masks = [rectangle(size_hw, (40 * n, 0, 40 * n + 35, 35)) for n in range(40)]
    many = MemoryDataset([sample("many", *masks)])
    segmenter = GrownBox()
    found = validate(segmenter, many, ["many"])
    assert found["objects"] == 40
    assert found["box"] == 1
    assert segmenter.n_prompts == len(PROMPTS) * [BATCH_SIZE, BATCH_SIZE, 8]


def test_what_a_segmenter_does_not_accept_is_left_out(dataset: MemoryDataset) -> None:
    segmenter = GrownBox()
    segmenter.info = replace(segmenter.info, prompts=frozenset({"box"}))
    assert set(validate(segmenter, dataset, dataset.ids())) == {"box", "box-noise-0.4", "objects"}


class GradientWatch(GrownBox):
    """Notes whether gradients are on."""

    def predict(
        self, embedding: tuple[int, int], prompts: PromptBatch, *, multimask: bool = False
    ) -> Prediction:
        assert not torch.is_grad_enabled()
        return super().predict(embedding, prompts, multimask=multimask)


def test_validation_makes_no_gradients(dataset: MemoryDataset) -> None:
    validate(GradientWatch(), dataset, dataset.ids())
    assert torch.is_grad_enabled()
