import itertools
import json
from collections.abc import Callable
from importlib.metadata import version
from pathlib import Path
from typing import cast

import pytest
import torch
from safetensors import safe_open
from safetensors.torch import save_file
from segment_anything.modeling.sam import Sam as SamModel
from segment_anything.modeling.transformer import Attention
from segment_anything.predictor import SamPredictor
from torch import Tensor, nn

from samrobust.errors import CheckpointError, SegmenterError, TrainingError
from samrobust.segmenters import build_segmenter
from samrobust.segmenters.nano import (
    CHANNELS,
    SIDE,
    build_sam_nano,
    nano_model,
    set_side,
)
from samrobust.segmenters.nano_encoder import NanoEncoder
from samrobust.segmenters.published import file_sha256
from samrobust.segmenters.sam import Sam, SamOptions
from samrobust.segmenters.weights import fill_model, load_tensors
from samrobust.training.checkpoints import save_weights
from samrobust.training.recipe import describe_recipe
from samrobust.types import Image, Prediction, PromptBatch, SegmenterOptions
from tests.sam_weights import random_image, random_prompts, randomise
from tests.trainings import tiny_recipe

SIZE_HW = (213, 347)
STRUCTURES = [(True, 0), (False, 1), (False, 3), (True, 4)]
"""With boxes or without, number of points."""
MOST_DIFFERING = 1e-5
"""Share of pixels that rounding may change."""


def random_nano(side: int = SIDE) -> SamModel:
    """Return a SAM-nano whose masks are neither empty nor full."""
    torch.manual_seed(0)
    return randomise(nano_model(side)).eval()


@pytest.fixture(scope="module")
def model() -> SamModel:
    return random_nano()


@pytest.fixture(scope="module")
def weights(model: SamModel, tmp_path_factory: pytest.TempPathFactory) -> Path:
    """Return a file as training writes it."""
    path = tmp_path_factory.mktemp("weights") / "nano.safetensors"
    save_weights(path, model.state_dict(), tiny_recipe(), about={"note": "of a test"})
    return path


@pytest.fixture(scope="module")
def image() -> Image:
    return random_image(SIZE_HW)


@pytest.mark.parametrize("side", [SIDE, 128, 64])
def test_masks_have_the_size_of_the_image_at_every_side(side: int, image: Image) -> None:
    model = random_nano()
    set_side(model, side)
    sam = Sam(model, SamOptions(attention="stock"))
    with torch.inference_mode():
        (embedding,) = sam.encode([image])
        prediction = sam.predict(embedding, random_prompts(SIZE_HW, 2, 1, boxes=False))
        logits, _ = sam.logits(embedding, random_prompts(SIZE_HW, 2, 1, boxes=False))
    assert prediction.masks.shape == (2, 1, *SIZE_HW)
    assert logits.shape == (2, 1, side // 4, side // 4)


def test_weights_do_not_depend_on_the_side(image: Image) -> None:
    small, changed = random_nano(128), random_nano(128)
    set_side(changed, 256)
    set_side(changed, 128)
    prompts = random_prompts(SIZE_HW, 2, 2, boxes=True)
    predictions = []
    for model in (small, changed):
        sam = Sam(model, SamOptions(attention="stock"))
        with torch.inference_mode():
            predictions.append(sam.predict(sam.encode([image])[0], prompts))
    assert torch.equal(predictions[0].masks, predictions[1].masks)
    assert torch.equal(predictions[0].quality, predictions[1].quality)


def theirs(predictor: SamPredictor, prompts: PromptBatch, multimask: bool) -> Prediction:
    """Return what segment_anything's own predictor answers, prompt by prompt."""
    answers = [
        predictor.predict(
            point_coords=prompts.points[n] if prompts.points.shape[1] else None,
            point_labels=prompts.labels[n] if prompts.points.shape[1] else None,
            box=None if prompts.boxes is None else prompts.boxes[n],
            multimask_output=multimask,
        )
        for n in range(len(prompts))
    ]
    masks, quality = (torch.stack([torch.from_numpy(x[i]) for x in answers]) for i in range(2))
    return Prediction(masks, quality)


def test_without_finer_features_masks_are_those_of_sam_predictor(image: Image) -> None:
    model = random_nano()
    encoder = cast(NanoEncoder, model.image_encoder)
    for layer in (encoder.doubled_once, encoder.doubled_twice):
        for parameter in layer.parameters():
            nn.init.zeros_(parameter)
    sam = Sam(model, SamOptions(attention="stock"))
    with torch.inference_mode():
        (embedding,) = sam.encode([image])
    predictor = SamPredictor(model)
    predictor.set_image(image)
    assert torch.equal(embedding.features, predictor.features)
    predictor.features = embedding.features[:, :CHANNELS]
    areas = []
    for (boxes, n_points), multimask in itertools.product(STRUCTURES, (False, True)):
        prompts = random_prompts(SIZE_HW, 2, n_points, boxes=boxes)
        with torch.inference_mode():
            ours = sam.predict(embedding, prompts, multimask=multimask)
        wanted = theirs(predictor, prompts, multimask)
        assert ours.masks.shape == (2, 3 if multimask else 1, *SIZE_HW)
        differing = (ours.masks != wanted.masks).double().mean()
        assert differing < MOST_DIFFERING
        torch.testing.assert_close(ours.quality, wanted.quality, rtol=1e-4, atol=1e-5)
        areas.append(ours.masks.double().mean())
    assert 0.1 < torch.stack(areas).mean() < 0.9  # or the comparison would say nothing


def test_positions_are_encoded_in_equal_steps_of_x_and_of_y(model: SamModel) -> None:
    layer = model.prompt_encoder.pe_layer
    frequencies = cast(Tensor, layer.positional_encoding_gaussian_matrix)
    assert frequencies.shape == (2, CHANNELS // 2)
    along_x, along_y = frequencies[:, : CHANNELS // 4], frequencies[:, CHANNELS // 4 :]
    steps = torch.arange(1, CHANNELS // 4 + 1) / 16
    assert torch.equal(along_x, torch.stack([steps, 0 * steps]))
    assert torch.equal(along_y, torch.stack([0 * steps, steps]))


def test_attention_begins_between_what_is_alike_and_hands_on_what_it_reads() -> None:
    fresh = nano_model()
    attentions = [each for each in fresh.mask_decoder.modules() if isinstance(each, Attention)]
    assert len(attentions) == 7
    x = torch.randn(5, CHANNELS, generator=torch.Generator().manual_seed(0))
    for each in attentions:
        assert torch.equal(each.q_proj.weight, each.k_proj.weight)
        n = each.internal_dim
        for weight in (each.q_proj.weight, each.v_proj.weight):
            torch.testing.assert_close(weight @ weight.T, torch.eye(n), rtol=0, atol=1e-5)
        handed_on = x @ each.v_proj.weight.T @ each.out_proj.weight.T
        twice = handed_on @ each.v_proj.weight.T @ each.out_proj.weight.T
        torch.testing.assert_close(twice, handed_on, rtol=0, atol=1e-5)  # a projection


def test_a_file_holds_the_weights_rounded_to_float16(model: SamModel, weights: Path) -> None:
    state = load_tensors(weights)
    other = nano_model()
    fill_model(other, state, path=weights)
    for name, tensor in model.state_dict().items():
        assert torch.equal(other.state_dict()[name], tensor.half().float())
    with safe_open(weights, "pt") as file:
        assert {file.get_tensor(name).dtype for name in file.keys()} == {torch.float16}  # noqa: SIM118


def test_a_file_says_what_made_it(weights: Path) -> None:
    with safe_open(weights, "pt") as file:
        header = file.metadata()
    assert json.loads(header["recipe"]) == json.loads(json.dumps(describe_recipe(tiny_recipe())))
    versions = json.loads(header["versions"])
    assert versions["torch"] == version("torch")
    assert {"python", "samrobust", "numpy", "segment-anything"} <= set(versions)
    assert header["note"] == "of a test"


def test_a_file_is_small_enough_for_a_package(weights: Path) -> None:
    assert weights.stat().st_size < 12e6


def test_a_file_is_whole_or_not_there(tmp_path: Path) -> None:
    (tmp_path / "folder.safetensors").mkdir()
    for path, message in (
        (tmp_path / "nowhere" / "x.safetensors", "No such file or directory"),
        (tmp_path / "folder.safetensors", "Is a directory"),
    ):
        with pytest.raises(TrainingError) as caught:
            save_weights(path, {"a": torch.zeros(3)}, tiny_recipe())
        assert str(caught.value).startswith(f"{path}: cannot be written: ")
        assert message in str(caught.value)
        assert not path.is_file()


def test_a_built_segmenter_has_the_weights_of_the_file(
    model: SamModel, weights: Path, image: Image
) -> None:
    built = build_sam_nano(SegmenterOptions(checkpoint=weights))
    assert built.info.label == "sam-nano"
    assert built.info.checkpoint_sha256 == file_sha256(weights)
    assert built.info.settings["attention"] == "stock"
    prompts = random_prompts(SIZE_HW, 4, 1, boxes=True)
    own = Sam(model, SamOptions(attention="stock"))
    with torch.inference_mode():
        found = built.predict(built.encode([image])[0], prompts)
        wanted = own.predict(own.encode([image])[0], prompts)
    assert (found.masks != wanted.masks).double().mean() < 0.02  # float16
    torch.testing.assert_close(found.quality, wanted.quality, rtol=0.02, atol=0.02)


def _damaged(tmp_path: Path, weights: Path) -> Path:
    path = tmp_path / "damaged.safetensors"
    path.write_bytes(weights.read_bytes()[:-100])
    return path


def _text(tmp_path: Path, _weights: Path) -> Path:
    path = tmp_path / "text.safetensors"
    path.write_text("no weights at all")
    return path


def _others(tmp_path: Path, weights: Path) -> Path:
    path = tmp_path / "others.safetensors"
    state = load_tensors(weights)
    state["image_encoder.stem.0.bias"] = torch.zeros(7)
    del state["mask_decoder.iou_token.weight"]
    save_file(state, path)
    return path


def _missing(tmp_path: Path, _weights: Path) -> Path:
    return tmp_path / "missing.safetensors"


@pytest.mark.parametrize(
    ("make", "message"),
    [
        (_damaged, "damaged.safetensors: cut short, or not a safetensors file"),
        (_text, "text.safetensors: cut short, or not a safetensors file"),
        (
            _others,
            (
                "others.safetensors: does not fit the model: 2 tensors are missing, unknown or of "
                "another shape, as image_encoder.stem.0.bias"
            ),
        ),
        (_missing, "missing.safetensors: there is no such checkpoint"),
    ],
)
def test_another_file_is_refused_in_one_line(
    tmp_path: Path, weights: Path, make: Callable[[Path, Path], Path], message: str
) -> None:
    path = make(tmp_path, weights)
    with pytest.raises(CheckpointError) as caught:
        build_sam_nano(SegmenterOptions(checkpoint=path))
    assert str(caught.value).endswith(message)
    assert "\n" not in str(caught.value)


def test_variants_and_other_devices_are_refused(weights: Path) -> None:
    with pytest.raises(SegmenterError, match="sam-nano takes no --variant, got vit_b"):
        build_segmenter("sam-nano", variant="vit_b", checkpoint=weights)
    with pytest.raises(SegmenterError, match="unknown device 'tpu'"):
        build_sam_nano(SegmenterOptions(device="tpu", checkpoint=weights))
