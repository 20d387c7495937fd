import itertools
from collections.abc import Callable
from dataclasses import replace
from pathlib import Path
from typing import cast

import numpy as np
import pytest
import torch
from segment_anything.build_sam import sam_model_registry
from segment_anything.predictor import SamPredictor
from torch.nn import functional

from samrobust.errors import CheckpointError, SegmenterError, UnknownNameError
from samrobust.files import CACHE_VARIABLE
from samrobust.segmenters import SEGMENTERS
from samrobust.segmenters.frames import InputFrame
from samrobust.segmenters.published import file_sha256
from samrobust.segmenters.sam import SAM_CHECKPOINTS, Sam, SamEmbedding, SamOptions, build_sam
from samrobust.types import Frame, Image, Prediction, PromptBatch, SegmenterOptions
from tests.sam_weights import (
    narrow_vit_b,
    photograph,
    random_image,
    random_prompts,
    random_sam,
    small_sam,
)

SIZE_HW = (333, 517)
STOCK = SamOptions(attention="stock", decoder="stock")
STRUCTURES = [(True, 0), (False, 1), (False, 3), (False, 10), (True, 4)]
"""With boxes or without, number of points."""
MOST_DIFFERING = 1e-5
"""Share of pixels that rounding may change."""


@pytest.fixture(scope="module")
def image() -> Image:
    return random_image(SIZE_HW)


@pytest.fixture(scope="module")
def predictor(image: Image) -> SamPredictor:
    """Return segment_anything's own predictor, its image set."""
    predictor = SamPredictor(small_sam())
    predictor.set_image(image)
    return predictor


@pytest.fixture(scope="module")
def stock() -> Sam:
    return Sam(small_sam(), STOCK)


@pytest.fixture(scope="module")
def fast() -> Sam:
    return Sam(small_sam())


@pytest.fixture(scope="module")
def embedding(fast: Sam, image: Image) -> SamEmbedding:
    with torch.inference_mode():
        return fast.encode([image])[0]


def predict(sam: Sam, embedding: SamEmbedding, prompts: PromptBatch, multimask: bool) -> Prediction:
    with torch.inference_mode():
        return sam.predict(embedding, prompts, multimask=multimask)


def predicted_by_theirs(
    predictor: SamPredictor, prompts: PromptBatch, multimask: bool
) -> Prediction:
    """Return what `SamPredictor.predict` answers to the prompts, one after the other."""
    answers = [
        predictor.predict(
            point_coords=prompts.points[n] if prompts.points.shape[1] else None,
            point_labels=prompts.labels[n] if prompts.points.shape[1] else None,
            box=None if prompts.boxes is None else prompts.boxes[n],
            multimask_output=multimask,
        )
        for n in range(len(prompts))
    ]
    masks, quality, _ = (torch.from_numpy(np.stack(part)) for part in zip(*answers, strict=True))
    return Prediction(masks, quality)


def differing(ours: Prediction, theirs: Prediction) -> float:
    """Return the share of pixels that differ, after checking what cannot."""
    assert ours.masks.shape == theirs.masks.shape
    assert ours.masks.dtype == torch.bool
    assert ours.quality.dtype == torch.float32
    torch.testing.assert_close(ours.quality, theirs.quality, rtol=1e-4, atol=1e-5)
    return float((ours.masks != theirs.masks).double().mean())


def test_stock_parts_give_the_masks_of_sam_predictor(
    stock: Sam, predictor: SamPredictor, image: Image
) -> None:
    with torch.inference_mode():
        (embedding,) = stock.encode([image])
    assert torch.equal(embedding.features, predictor.features)
    for (boxes, n_points), multimask in itertools.product(STRUCTURES, (False, True)):
        prompts = random_prompts(SIZE_HW, 1, n_points, boxes=boxes)
        ours = predict(stock, embedding, prompts, multimask)
        theirs = predicted_by_theirs(predictor, prompts, multimask)
        assert torch.equal(ours.masks, theirs.masks)
        assert torch.equal(ours.quality, theirs.quality)


def test_fast_parts_give_the_masks_of_sam_predictor(
    fast: Sam,
    embedding: SamEmbedding,
    predictor: SamPredictor,
    record_property: Callable[[str, object], None],
) -> None:
    shares, areas = [], []
    for (boxes, n_points), multimask in itertools.product(STRUCTURES, (False, True)):
        prompts = random_prompts(SIZE_HW, 3, n_points, boxes=boxes)
        ours = predict(fast, embedding, prompts, multimask)
        shares.append(differing(ours, predicted_by_theirs(predictor, prompts, multimask)))
        areas.append(ours.masks.double().mean())
    record_property("share of differing pixels", float(np.mean(shares)))
    assert np.mean(shares) < MOST_DIFFERING
    assert 0.2 < np.mean(areas) < 0.8  # or the comparison would say nothing


def test_prompts_together_are_the_prompts_one_by_one(fast: Sam, embedding: SamEmbedding) -> None:
    for boxes, n_points in ((True, 0), (False, 3)):
        prompts = random_prompts(SIZE_HW, 4, n_points, boxes=boxes)
        together = predict(fast, embedding, prompts, multimask=True)
        singles = [predict(fast, embedding, prompts[n : n + 1], multimask=True) for n in range(4)]
        one_by_one = Prediction(
            torch.cat([single.masks for single in singles]),
            torch.cat([single.quality for single in singles]),
        )
        assert differing(together, one_by_one) < MOST_DIFFERING


def test_images_together_are_the_images_one_by_one(stock: Sam, image: Image) -> None:
    other = random_image((90, 40))
    with torch.inference_mode():
        together = stock.encode([image, other])
        alone = stock.encode([image]) + stock.encode([other])
    for ours, single in zip(together, alone, strict=True):
        torch.testing.assert_close(ours.features, single.features, rtol=1e-4, atol=1e-5)
    assert [x.size_hw for x in together] == [SIZE_HW, (90, 40)]
    assert [x.input_size_hw for x in together] == [(165, 256), (256, 114)]


def test_squash_is_two_plain_resizes_and_scaled_prompts(image: Image) -> None:
    squashed = Sam(small_sam(), replace(STOCK, frame="squash"))
    prompts = random_prompts(SIZE_HW, 2, 2, boxes=True)
    model = squashed.model
    pixels = torch.tensor(image).permute(2, 0, 1)[None].float()
    pixels = functional.interpolate(pixels, (256, 256), mode="bilinear").to(torch.uint8)
    scale = torch.tensor([256 / SIZE_HW[1], 256 / SIZE_HW[0]])
    assert prompts.boxes is not None
    with torch.inference_mode():
        embeddings = squashed.encode([image])
        found = squashed.predict(embeddings[0], prompts)
        features = model.image_encoder(model.preprocess(pixels))
        points = (torch.tensor(prompts.points) * scale, torch.tensor(prompts.labels))
        boxes = torch.tensor(prompts.boxes) * scale.repeat(2)
        logits, quality = model.mask_decoder(
            features,
            model.prompt_encoder.get_dense_pe(),
            *model.prompt_encoder(points=points, boxes=boxes, masks=None),
            multimask_output=False,
        )
        masks = functional.interpolate(logits, SIZE_HW, mode="bilinear") > 0
    assert torch.equal(embeddings[0].features, features)
    assert differing(found, Prediction(masks, quality)) < MOST_DIFFERING


@pytest.mark.parametrize("name", ["longest-side", "squash"])
@pytest.mark.parametrize("size_hw", [(61, 40), (40, 61), (300, 512), (1, 700), (1300, 900)])
@pytest.mark.parametrize("threshold", [-1.0, 0.0, 1.0])
def test_masks_are_those_of_two_plain_resizes(
    name: Frame, size_hw: tuple[int, int], threshold: float
) -> None:
    torch.manual_seed(0)
    frame = InputFrame(name, 256)
    input_hw = frame.to_input(np.zeros((*size_hw, 3), np.uint8)).shape[-2:]
    y, x = torch.meshgrid(torch.arange(64.0), torch.arange(64.0), indexing="ij")
    logits = torch.stack(
        [
            torch.randn(64, 64),  # everywhere
            3 - torch.hypot(y - 11, x - 17),  # an object
            2 - torch.hypot(y, x),  # in the corner
            2 - torch.minimum(torch.hypot(y, x), torch.hypot(y - 63, x - 40)),  # apart
            5 * ((y == 7) & (x == 9)) - 2.0,  # one position
            torch.full((64, 64), -3.0),  # none
            torch.full((64, 64), 3.0),  # all
        ]
    )[None]
    square = logits
    if name == "longest-side":
        square = functional.interpolate(logits, (256, 256), mode="bilinear")
        square = square[..., : input_hw[0], : input_hw[1]]
    wanted = functional.interpolate(square, size_hw, mode="bilinear") > threshold
    found = frame.to_masks(
        logits, input_hw=(input_hw[0], input_hw[1]), size_hw=size_hw, threshold=threshold
    )
    assert found.shape == wanted.shape
    assert (found != wanted).float().mean(dim=(2, 3)).max() < MOST_DIFFERING


def test_autocast_changes_nothing(fast: Sam, embedding: SamEmbedding) -> None:
    prompts = random_prompts(SIZE_HW, 2, 2, boxes=False)
    with torch.inference_mode():
        wanted, _ = fast.logits(embedding, prompts)
        with torch.autocast("cpu", torch.bfloat16):
            found, _ = fast.logits(embedding, prompts)
    assert found.dtype == torch.float32
    assert torch.equal(found, wanted)


def test_gradients_reach_the_features_and_no_weight(fast: Sam, embedding: SamEmbedding) -> None:
    features = embedding.features.clone().requires_grad_()
    prompts = random_prompts(SIZE_HW, 2, 1, boxes=False)
    logits, _ = fast.logits(replace(embedding, features=features), prompts)
    fast.predict(replace(embedding, features=features), prompts)  # does not mind either
    logits.sum().backward()  # type: ignore[no-untyped-call]
    assert features.grad is not None
    assert bool(features.grad.any())
    assert not any(weight.requires_grad for weight in fast.model.parameters())


def test_a_narrow_dtype_is_the_encoders_alone(image: Image, embedding: SamEmbedding) -> None:
    narrow = Sam(small_sam(), SamOptions(dtype="bfloat16", attention="fused"))
    with torch.inference_mode():
        (found,) = narrow.encode([image])
    assert found.features.dtype == torch.float32
    off = (found.features - embedding.features).norm() / embedding.features.norm()
    assert 1e-4 < off < 5e-2
    assert narrow.info.dtype == "bfloat16"
    assert all(weight.dtype == torch.float32 for weight in narrow.model.mask_decoder.parameters())


def test_a_mask_of_logits_that_are_no_numbers_has_a_quality_that_is_none(image: Image) -> None:
    model = small_sam()
    sam = Sam(model)
    prompts = random_prompts(SIZE_HW, 3, 2, boxes=True)
    with torch.inference_mode():
        (embedding,) = sam.encode([image])
    before = [predict(sam, embedding, prompts, multimask).quality for multimask in (False, True)]
    network = model.mask_decoder.output_hypernetworks_mlps[2]
    network.layers[-1].bias.data[5] = torch.nan  # type: ignore[union-attr, index]
    single, candidates = (
        predict(sam, embedding, prompts, multimask).quality for multimask in (False, True)
    )
    assert torch.equal(single, before[0])
    assert candidates[:, 1].isnan().all()
    assert torch.equal(candidates[:, ::2], before[1][:, ::2])


def test_an_encoder_that_is_broken_is_an_error_and_not_a_mask(image: Image) -> None:
    model = small_sam()
    model.image_encoder.neck[1].weight.data[0] = torch.nan  # type: ignore[operator]
    with (
        torch.inference_mode(),
        pytest.raises(
            SegmenterError, match=r"^sam: an embedding is not finite \(NaN or infinite\)$"
        ),
    ):
        Sam(model).encode([image])


def test_an_overflow_is_an_error_and_not_a_mask(image: Image) -> None:
    model = small_sam()
    model.image_encoder.neck[1].weight.data.fill_(1e6)  # type: ignore[operator]
    narrow = Sam(model, SamOptions(dtype="float16"), variant="vit_b")
    with torch.inference_mode(), pytest.raises(SegmenterError) as caught:
        narrow.encode([image])
    assert str(caught.value) == (
        "sam vit_b: an embedding overflows in float16; allowed: bfloat16, float32"
    )


def test_info_says_what_can_change_a_score(fast: Sam, stock: Sam) -> None:
    assert fast.info.prompts == {"box", "points", "mask"}
    assert fast.info.multimask
    assert fast.info.frame == "longest-side"
    assert fast.info.settings == {
        "mask_threshold": 0.0,
        "attention": "blocked",
        "decoder": "fast",
    }
    assert stock.info.settings["decoder"] == stock.info.settings["attention"] == "stock"


def test_a_built_sam_gives_the_masks_of_sam_predictor(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setitem(sam_model_registry, "vit_b", narrow_vit_b)
    assert_published_vit_b(random_image((410, 301)), tmp_path, monkeypatch)


@pytest.mark.nightly
def test_in_full_size_a_built_vit_b_gives_the_masks_of_sam_predictor(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    assert_published_vit_b(photograph(), tmp_path, monkeypatch)


def assert_published_vit_b(image: Image, folder: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """Check a ViT-B of a file that lies where fetched ones do, and is published under its hash."""
    model, published = random_sam("vit_b"), SAM_CHECKPOINTS["vit_b"]
    path = folder / published.file_name
    torch.save(model.state_dict(), path)
    table = {**SAM_CHECKPOINTS, "vit_b": replace(published, sha256=file_sha256(path))}
    monkeypatch.setattr("samrobust.segmenters.sam.SAM_CHECKPOINTS", table)
    monkeypatch.setenv(CACHE_VARIABLE, str(folder))
    built = cast(Sam, SEGMENTERS.load("sam")(SegmenterOptions()))
    predictor = SamPredictor(model)
    predictor.set_image(image)
    with torch.inference_mode():
        (embedding,) = built.encode([image])
    areas = []
    for (boxes, n_points), multimask in itertools.product(STRUCTURES, (False, True)):
        prompts = random_prompts(image.shape[:2], 2, n_points, boxes=boxes)
        ours = predict(built, embedding, prompts, multimask)
        assert differing(ours, predicted_by_theirs(predictor, prompts, multimask)) < MOST_DIFFERING
        areas.append(ours.masks.double().mean())
    assert 0.1 < np.mean(areas) < 0.9  # or the comparison would say nothing
    assert built.info.label == "sam vit_b"
    assert built.info.checkpoint_sha256 == file_sha256(path)
    assert built.info.settings["attention"] == "blocked"


@pytest.mark.parametrize(
    ("options", "error", "message"),
    [
        (
            SegmenterOptions(variant="vit-b"),
            UnknownNameError,
            "unknown variant of sam 'vit-b'. Did you mean 'vit_b'? Known: vit_b, vit_h, vit_l",
        ),
        (
            SegmenterOptions(device="tpu"),
            SegmenterError,
            "unknown device 'tpu'. Known: auto, cpu, cuda, cuda:N",
        ),
        (
            SegmenterOptions(checkpoint=Path("nowhere.pth")),
            CheckpointError,
            "nowhere.pth: there is no such checkpoint",
        ),
    ],
)
def test_what_cannot_be_built_is_said_in_one_line(
    options: SegmenterOptions, error: type[Exception], message: str
) -> None:
    with pytest.raises(error) as caught:
        build_sam(options)
    assert str(caught.value).startswith(message)
