"""Logits of an earlier answer as a prompt, beside SAM's own predictor."""

import itertools
from dataclasses import replace
from typing import Any

import numpy as np
import pytest
import torch
from segment_anything.predictor import SamPredictor

from samrobust.errors import SegmenterError
from samrobust.segmenters.hq_sam import HqSam
from samrobust.segmenters.nano import build_sam_nano
from samrobust.segmenters.sam import Sam, SamOptions
from samrobust.segmenters.sam_decoder import CANDIDATES
from samrobust.segmenters.stable_sam import StableSam
from samrobust.types import Image, Prediction, PromptBatch, Segmenter, SegmenterOptions
from tests.sam_weights import random_image, random_parts, random_prompts, small_sam

SIZE_HW = (133, 217)
STOCK = SamOptions(attention="stock", decoder="stock")
STRUCTURES = [(True, 0), (False, 2), (True, 3)]
"""With boxes or without, number of points."""
MOST_DIFFERING = 1e-5
"""Share of pixels that rounding may change, as without mask prompts."""


@pytest.fixture(scope="module")
def image() -> Image:
    return random_image(SIZE_HW)


def answers(
    segmenter: Segmenter[Any], image: Image, prompts: PromptBatch, *, multimask: bool
) -> Prediction:
    with torch.inference_mode():
        (embedding,) = segmenter.encode([image])
        return segmenter.predict(embedding, prompts, multimask=multimask)


def with_answers(sam: Sam, image: Image, prompts: PromptBatch) -> PromptBatch:
    """Return prompts with the logits of the best candidate that a SAM answers to them."""
    found = answers(sam, image, prompts, multimask=True)
    assert found.logits is not None
    best = found.quality.argmax(dim=1)
    return replace(prompts, logits=found.logits[torch.arange(len(best)), best].numpy())


def test_fed_back_masks_are_those_of_sam_predictor(image: Image) -> None:
    predictor = SamPredictor(small_sam())
    predictor.set_image(image)
    stock, fast = Sam(small_sam(), STOCK), Sam(small_sam())
    shares, areas, changed = [], [], []
    for (boxes, n_points), multimask in itertools.product(STRUCTURES, (False, True)):
        plain = random_prompts(SIZE_HW, 3, n_points, boxes=boxes)
        prompts = with_answers(stock, image, plain)
        assert prompts.logits is not None
        theirs = [
            predictor.predict(
                point_coords=prompts.points[n] if n_points else None,
                point_labels=prompts.labels[n] if n_points else None,
                box=None if prompts.boxes is None else prompts.boxes[n],
                mask_input=prompts.logits[n][None],
                multimask_output=multimask,
            )
            for n in range(3)
        ]
        masks, quality, logits = (
            torch.from_numpy(np.stack(part)) for part in zip(*theirs, strict=True)
        )
        alone = [answers(stock, image, prompts[n : n + 1], multimask=multimask) for n in range(3)]
        assert torch.equal(torch.cat([one.masks for one in alone]), masks)
        assert torch.equal(torch.cat([one.quality for one in alone]), quality)
        together = answers(fast, image, prompts, multimask=multimask)
        assert together.logits is not None
        torch.testing.assert_close(together.quality, quality, rtol=1e-4, atol=1e-5)
        torch.testing.assert_close(together.logits, logits, rtol=1e-3, atol=1e-3)
        shares.append((together.masks != masks).double().mean().item())
        areas.append(masks.double().mean().item())
        without = answers(fast, image, plain, multimask=multimask)
        changed.append((together.masks != without.masks).double().mean().item())
    assert np.mean(shares) < MOST_DIFFERING
    assert 0.1 < np.mean(areas) < 0.9  # or the comparison would say nothing
    assert np.mean(changed) > 0.01


def test_hq_sam_and_stable_sam_take_them_too(image: Image) -> None:
    plain = random_prompts(SIZE_HW, 2, 1, boxes=True)
    fed = with_answers(Sam(small_sam()), image, plain)
    model = small_sam()
    fast = HqSam(Sam(model), random_parts(model))
    stock = HqSam(Sam(model, STOCK), fast.parts)
    untrained = StableSam(Sam(small_sam()))
    found = answers(fast, image, fed, multimask=False)
    wanted = answers(stock, image, fed, multimask=False)
    assert (found.masks != wanted.masks).double().mean() < MOST_DIFFERING
    assert (found.masks != answers(fast, image, plain, multimask=False).masks).any()
    ours, sams = (answers(one, image, fed, multimask=True) for one in (untrained, Sam(small_sam())))
    assert ours.masks.shape[1] == len(CANDIDATES)
    assert (ours.masks != sams.masks).double().mean() < MOST_DIFFERING


def test_logits_of_another_size_are_refused(image: Image) -> None:
    prompts = replace(
        random_prompts(SIZE_HW, 2, 1, boxes=False), logits=np.zeros((2, 32, 64), np.float32)
    )
    with pytest.raises(SegmenterError, match="sam takes logits of 64x64, got 64x32"):
        answers(Sam(small_sam()), image, prompts, multimask=False)


def test_sam_nano_says_that_it_takes_none(image: Image) -> None:
    nano = build_sam_nano(SegmenterOptions())
    plain = random_prompts(SIZE_HW, 1, 1, boxes=False)
    assert nano.info.prompts == {"box", "points"}
    assert answers(nano, image, plain, multimask=False).logits is None
    fed = replace(plain, logits=np.zeros((1, 160, 160), np.float32))
    with pytest.raises(SegmenterError, match="sam-nano takes no mask prompts; allowed: box, poi"):
        answers(nano, image, fed, multimask=False)


def test_prompts_with_logits_are_batched_as_all_others() -> None:
    plain = random_prompts(SIZE_HW, 3, 1, boxes=True)
    fed = replace(plain, logits=np.arange(24, dtype=np.float32).reshape(3, 2, 4))
    assert fed.structure == (True, 1, True) != plain.structure
    again = PromptBatch.join([PromptBatch.stack(fed.split()[:1]), fed[1:]])
    assert again.logits is not None
    assert np.array_equal(again.logits, np.arange(24).reshape(3, 2, 4))
    with pytest.raises(ValueError, match="share a structure"):
        PromptBatch.stack([fed.split()[0], plain.split()[1]])
    with pytest.raises(ValueError, match="logits must be float32"):
        replace(plain, logits=np.zeros((2, 2, 4), np.float32))
