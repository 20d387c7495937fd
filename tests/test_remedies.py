"""Remedies on segmenters of which the answers are known."""

from collections.abc import Sequence
from dataclasses import replace

import cv2
import numpy as np
import pytest
import torch
from segment_anything.utils.amg import batched_mask_to_box, calculate_stability_score
from torch import Tensor
from torch.nn import functional

from samrobust.errors import SamrobustError, SegmenterError
from samrobust.segmenters import REMEDIES, build_segmenter
from samrobust.segmenters.remedies import DECODES, Remedied, with_remedy
from samrobust.segmenters.sam import Sam, SamEmbedding
from samrobust.segmenters.sam_decoder import CANDIDATES
from samrobust.types import Image, Prediction, PromptBatch, SegmenterInfo
from tests.conftest import Shell
from tests.sam_weights import random_image, random_prompts, small_sam

SIZE_HW = (47, 68)


class FilledBox:
    """Fills the box, or 3 x 3 pixels around the first point; counts what it is asked."""

    def __init__(self, *, empty: bool = False) -> None:
        self.info = SegmenterInfo("filled", frozenset({"box", "points"}))
        self.asked: list[PromptBatch] = []
        self.images: list[Image] = []
        self._empty = empty

    def encode(self, images: Sequence[Image]) -> list[tuple[int, int]]:
        self.images += images
        return [(image.shape[0], image.shape[1]) for image in images]

    def predict(
        self, embedding: tuple[int, int], prompts: PromptBatch, *, multimask: bool = False
    ) -> Prediction:
        assert not multimask
        self.asked.append(prompts)
        masks = np.zeros((len(prompts), 1, *embedding), np.bool_)
        for row in range(len(prompts)):
            if prompts.boxes is not None:
                x0, y0, x1, y1 = np.round(prompts.boxes[row]).astype(int)
            else:
                x, y = prompts.points[row, 0].astype(int)
                x0, y0, x1, y1 = x - 1, y - 1, x + 1, y + 1
            masks[row, 0, y0 : y1 + 1, x0 : x1 + 1] = not self._empty
        return Prediction(torch.from_numpy(masks), torch.full((len(prompts), 1), 0.5))


class Scripted(FilledBox):
    """Answers with given masks, one after the other."""

    def __init__(self, answers: Sequence[Tensor]) -> None:
        super().__init__()
        self._answers = iter(answers)

    def predict(
        self, embedding: tuple[int, int], prompts: PromptBatch, *, multimask: bool = False
    ) -> Prediction:
        super().predict(embedding, prompts, multimask=multimask)
        return Prediction(next(self._answers)[None, None], torch.full((1, 1), 0.5))


def answer(segmenter: Remedied, prompts: PromptBatch) -> Prediction:
    (embedding,) = segmenter.encode([random_image(SIZE_HW)])
    with torch.inference_mode():
        return segmenter.predict(embedding, prompts)


def a_box(*xyxy: float) -> PromptBatch:
    return PromptBatch(
        np.array([xyxy], np.float32), np.zeros((1, 0, 2), np.float32), np.zeros((1, 0), np.int32)
    )


def a_point(x: float, y: float) -> PromptBatch:
    return PromptBatch(None, np.array([[[x, y]]], np.float32), np.ones((1, 1), np.int32))


def test_boxes_of_an_ensemble_are_the_given_one_and_others_around_it() -> None:
    inner = FilledBox()
    found = answer(with_remedy(inner, "ensemble-boxes:7,percentile=50"), a_box(10, 12, 40, 30))
    asked = np.concatenate([each.boxes for each in inner.asked if each.boxes is not None])
    assert asked.shape == (7, 4)
    assert asked[0].tolist() == [10, 12, 40, 30]
    assert len(np.unique(asked, axis=0)) == 7
    assert found.masks.shape == (1, 1, *SIZE_HW)
    assert found.masks[0, 0, 20, 25]
    votes = torch.stack([_filled(box) for box in asked]).sum(dim=0)
    assert torch.equal(found.masks[0, 0], votes > 3)


def _filled(box: np.ndarray) -> Tensor:
    mask = torch.zeros(SIZE_HW, dtype=torch.bool)
    x0, y0, x1, y1 = np.round(box).astype(int)
    mask[y0 : y1 + 1, x0 : x1 + 1] = True
    return mask


@pytest.mark.parametrize("name", ["ensemble-boxes", "medoid", "agree-weighted", "box-from-mask"])
def test_an_answer_depends_on_its_own_prompt_alone(name: str) -> None:
    several = PromptBatch(
        np.array([[10, 12, 40, 30], [3, 3, 9, 44], [0, 0, 67, 46]], np.float32),
        np.zeros((3, 0, 2), np.float32),
        np.zeros((3, 0), np.int32),
    )
    together = answer(with_remedy(FilledBox(), name), several)
    for row in range(3):
        alone = answer(with_remedy(FilledBox(), name), several[row : row + 1])
        assert torch.equal(alone.masks[0], together.masks[row])


def test_in_a_tie_the_given_boxs_answer_counts() -> None:
    left, right = torch.zeros(2, *SIZE_HW, dtype=torch.bool)
    left[:, :30], right[:, 20:] = True, True
    for first, second in ((left, right), (right, left)):
        segmenter = with_remedy(Scripted([first, second, first, second]), "ensemble-boxes:4")
        assert torch.equal(answer(segmenter, a_box(5, 5, 20, 20)).masks[0, 0], first)


def test_the_medoid_is_the_answer_most_like_the_others() -> None:
    answers = [torch.zeros(SIZE_HW, dtype=torch.bool) for _ in range(4)]
    for mask, width in zip(answers, (60, 20, 22, 25), strict=True):
        mask[:, :width] = True
    found = answer(with_remedy(Scripted(answers), "medoid:4"), a_box(5, 5, 20, 20))
    # mean IoU with the others: 1/3 * (20 + 22 + 25) / 60; for 22: 22/60 + 20/22 + 22/25; ...
    assert torch.equal(found.masks[0, 0], answers[2])


def test_votes_weighted_by_agreement_leave_the_odd_one_out() -> None:
    answers = [torch.zeros(SIZE_HW, dtype=torch.bool) for _ in range(4)]
    for mask in answers[:2]:
        mask[:, 40:] = True  # these two are alike, but as two of four they have no majority
    answers[2][:3] = answers[3][-3:] = True
    plain = answer(with_remedy(Scripted(answers[::-1]), "ensemble-boxes:4"), a_box(5, 5, 20, 20))
    weighted = answer(with_remedy(Scripted(answers[::-1]), "agree-weighted:4"), a_box(5, 5, 20, 20))
    assert not plain.masks[0, 0, 10, 50]
    assert torch.equal(weighted.masks[0, 0], answers[0])


def test_the_box_from_a_mask_is_segment_anythings() -> None:
    masks = [torch.zeros(SIZE_HW, dtype=torch.bool) for _ in range(2)]
    masks[0][7:20, 9:31] = True
    masks[0][33, 60] = True
    inner = Scripted(masks)
    found = answer(with_remedy(inner, "box-from-mask:1"), a_box(5, 5, 20, 20))
    assert inner.asked[1].boxes is not None
    assert inner.asked[1].boxes.tolist() == batched_mask_to_box(masks[0][None]).tolist()
    assert torch.equal(found.masks[0, 0], masks[1])


def test_a_point_becomes_a_box_and_stays() -> None:
    inner = FilledBox()
    found = answer(with_remedy(inner, "box-from-mask:2"), a_point(20, 30))
    assert len(inner.asked) == 3
    assert inner.asked[1].boxes is not None
    assert inner.asked[1].boxes.tolist() == [[19, 29, 21, 31]]
    assert inner.asked[2].points.tolist() == [[[20, 30]]]
    assert found.masks.sum() == 9


def test_an_empty_answer_is_kept() -> None:
    found = answer(with_remedy(FilledBox(empty=True), "box-from-mask:2"), a_point(20, 30))
    assert not found.masks.any()


def test_mirror_images_give_the_same_and_are_asked_for_mirrored_prompts() -> None:
    inner = FilledBox()
    prompts = PromptBatch(
        np.array([[10, 12, 40, 30]], np.float32),
        np.array([[[11, 13], [39, 30]]], np.float32),
        np.ones((1, 2), np.int32),
    )
    found = answer(with_remedy(inner, "ensemble-flips"), prompts)
    assert torch.equal(found.masks[0, 0], _filled(np.array([10, 12, 40, 30])))
    assert len(inner.images) == len(inner.asked) == 3
    plain, mirrored, upside_down = inner.images
    np.testing.assert_array_equal(mirrored, cv2.flip(plain, 1))
    np.testing.assert_array_equal(upside_down, cv2.flip(plain, 0))
    for image, asked in zip(inner.images, inner.asked, strict=True):
        x, y = asked.points[0, 0].astype(int)
        assert image[y, x].tolist() == plain[13, 11].tolist()


class NoisySam(Sam):
    """Has candidates of smooth noise."""

    def logits(
        self,
        embedding: SamEmbedding,  # noqa: ARG002
        prompts: PromptBatch,
        *,
        masks: range = CANDIDATES,
    ) -> tuple[Tensor, Tensor]:
        random = torch.Generator().manual_seed(0)
        coarse = 3 * torch.randn(len(prompts), len(masks), 8, 8, generator=random)
        return functional.interpolate(coarse, (64, 64), mode="bilinear"), coarse[..., 0, 0]


def test_the_most_stable_candidate_is_segment_anythings() -> None:
    sam = NoisySam(small_sam(channels=32, heads=4))
    prompts = random_prompts(SIZE_HW, 6, 2, boxes=True)
    with torch.inference_mode():
        (embedding,) = sam.encode([random_image(SIZE_HW)])
        logits, quality = sam.logits(embedding, prompts, masks=CANDIDATES)
        best = calculate_stability_score(logits, 0.0, 1.0).argmax(dim=1)
        masks = sam.predict(embedding, prompts, multimask=True).masks
    assert {*best.tolist()} == {0, 1, 2}
    found = answer(with_remedy(sam, "stability-select"), prompts)
    rows = torch.arange(len(best))
    assert torch.equal(found.masks[:, 0], masks[rows, best])
    assert torch.equal(found.quality[:, 0], quality[rows, best])


class FillingSam(Sam):
    """Fills the box, whatever its decoder says."""

    def predict(
        self, embedding: SamEmbedding, prompts: PromptBatch, *, multimask: bool = False
    ) -> Prediction:
        assert not multimask
        assert prompts.boxes is not None
        masks = np.zeros((len(prompts), 1, *embedding.size_hw), np.bool_)
        for row, (x0, y0, x1, y1) in enumerate(np.round(prompts.boxes).astype(int)):
            masks[row, 0, y0 : y1 + 1, x0 : x1 + 1] = True
        return Prediction(torch.from_numpy(masks), torch.full((len(prompts), 1), 0.5))


def test_an_elastic_box_grows_to_what_is_like_its_object(monkeypatch: pytest.MonkeyPatch) -> None:
    segmenter = FillingSam(small_sam(channels=32, heads=4))
    (embedding,) = segmenter.encode([random_image(SIZE_HW)])
    scale = 256 / max(SIZE_HW)
    columns = (torch.arange(16) + 0.5) * 16 / scale  # x of the grid's positions in the image
    features = torch.zeros(1, 32, 16, 16)
    features[:, 0, :, columns < 50] = 1
    features[:, 1, :, columns >= 50] = 1
    halves = replace(embedding, features=features)
    monkeypatch.setattr(segmenter, "encode", lambda _images: [halves])
    found = answer(with_remedy(segmenter, "elastic-box:0.5,rounds=10"), a_box(20, 10, 40, 30))
    x0, y0, x1, y1 = batched_mask_to_box(found.masks[0])[0].tolist()
    assert (x0, y0, y1) == (0, 0, 46)
    assert x1 == pytest.approx(49, abs=3)


def test_remedies_stand_one_around_the_other_and_count_decodes() -> None:
    inner = FilledBox()
    segmenter = with_remedy(with_remedy(inner, "box-from-mask:2"), "ensemble-boxes: 3, 25")
    assert segmenter.info.settings[DECODES] == 9
    assert segmenter.info.label == "filled + box-from-mask:2 + ensemble-boxes:3,25"
    answer(segmenter, a_box(5, 5, 20, 20))
    assert len(inner.asked) == 9


@pytest.mark.parametrize(
    ("text", "message"),
    [
        ("ensemble-box", "unknown remedy 'ensemble-box'. Did you mean 'ensemble-boxes'?"),
        ("ensemble-boxes:2", "ensemble-boxes: count must be at least 3, got 2"),
        ("ensemble-boxes:3,100", "ensemble-boxes: percentile must be at most 99, got 100"),
        ("ensemble-boxes:2,3,4", "ensemble-boxes: takes 2 arguments, got '2,3,4'"),
        ("medoid:n=3", "medoid has no parameter 'n'. Known: count, percentile"),
        ("medoid:five", "medoid: count must be a number, got 'five'"),
        ("elastic-box", "elastic-box needs the logits and embedding of a SAM, and stands first"),
        ("stability-select", "stability-select needs the logits and embedding of a SAM"),
    ],
)
def test_what_is_not_possible_is_said_in_one_line(text: str, message: str) -> None:
    with pytest.raises(SamrobustError) as caught:
        answer(with_remedy(FilledBox(), text), a_box(5, 5, 20, 20))
    assert message in str(caught.value)
    assert "\n" not in str(caught.value)


@pytest.mark.parametrize("name", REMEDIES.names())
def test_each_runs_on_the_packaged_model_and_says_so(name: str) -> None:
    segmenter = build_segmenter(f"sam-nano + {name}")
    assert segmenter.info.label == f"sam-nano + {name}"
    with torch.inference_mode():
        (embedding,) = segmenter.encode([random_image(SIZE_HW)])
        for boxes in (True, False):
            prompts = random_prompts(SIZE_HW, 3, 1, boxes=boxes)
            found = segmenter.predict(embedding, prompts)
            assert found.masks.shape == (3, 1, *SIZE_HW)
            again = segmenter.predict(embedding, prompts)
            assert torch.equal(found.masks, again.masks)


def test_a_name_with_remedies_is_one_of_the_command_line(shell: Shell) -> None:
    run = ("eval", "--protocol", "gt-box", "--split", "1x64x48", "--workers", "0")
    shell(*run, "--segmenter", "ellipse + box-from-mask:1", "--out", "results")
    assert "ellipse + box-from-mask:1" in shell("report", "results").out
    message = shell.refuses(*run, "--segmenter", "ellipse + medoi")
    assert "unknown remedy 'medoi'. Did you mean 'medoid'?" in message
    with pytest.raises(SegmenterError, match="box-from-mask"):
        build_segmenter("ellipse + box-from-mask:0")
