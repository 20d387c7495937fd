"""MobileSAM and Light HQ-SAM beside segment-anything-hq, which has both, with random weights."""

import warnings
from pathlib import Path
from types import ModuleType
from typing import Any

import pytest
import torch
from torch import Tensor

from samrobust.errors import SegmenterError
from samrobust.segmenters.hq_sam import HqSam, build_hq_sam
from samrobust.segmenters.mobile_sam import build_mobile_sam, build_tiny_sam
from samrobust.segmenters.sam import Sam
from samrobust.types import HqOutput, Image, PromptBatch, SegmenterOptions
from tests.conftest import Shell
from tests.sam_weights import random_image, random_prompts

pytest.importorskip("timm")
TheirModel = Any
"""A model of their package, which has no types."""
SIZE_HW = (333, 517)
MOST_DIFFERING = 1e-4
"""Share of pixels that rounding may change; timm's attention is one fused kernel."""


@pytest.fixture(scope="module")
def theirs() -> ModuleType:
    """Return HQ-SAM's own package, which needs timm and warns of it."""
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")
        found: ModuleType = pytest.importorskip("segment_anything_hq")
        return found


@pytest.fixture(scope="module")
def light(theirs: ModuleType) -> TheirModel:
    """Return their Light HQ-SAM: norms and positions random too, masks neither empty nor full."""
    torch.manual_seed(0)
    model = theirs.sam_model_registry["vit_tiny"]()
    with torch.no_grad():
        for name, x in [*model.named_parameters(), *model.named_buffers()]:
            if "attention_biases" in name or name.endswith(("running_mean", "bn.bias")):
                x.normal_(std=0.2)
            elif name.endswith(("running_var", "bn.weight")):
                x.uniform_(0.8, 1.2)
            elif name.startswith("mask_decoder") and x.ndim > 1:
                x.mul_(1.6)
    return model.eval()


@pytest.fixture(scope="module")
def files(
    light: TheirModel, theirs: ModuleType, tmp_path_factory: pytest.TempPathFactory
) -> list[Path]:
    """Return a Light HQ-SAM's file, and that of the MobileSAM in it."""
    folder = tmp_path_factory.mktemp("tiny")
    mobile = theirs.sam_model_registry_baseline["vit_tiny"]()
    state = light.state_dict()
    mobile.load_state_dict({name: state[name] for name in mobile.state_dict()})
    torch.save(state, folder / "light.pth")
    torch.save(mobile.state_dict(), folder / "mobile.pth")
    return [folder / "light.pth", folder / "mobile.pth"]


def by_theirs(
    theirs: ModuleType, model: TheirModel, image: Image, prompts: PromptBatch, *, output: HqOutput
) -> Tensor:
    """Return masks (N, 1, H, W) of their predictor."""
    predictor = theirs.SamPredictor(model)
    predictor.set_image(image)
    found = [
        predictor.predict(
            point_coords=prompts.points[n] if prompts.points.shape[1] else None,
            point_labels=prompts.labels[n] if prompts.points.shape[1] else None,
            box=None if prompts.boxes is None else prompts.boxes[n],
            multimask_output=False,
            hq_token_only=output == "hq",
        )[0]
        for n in range(len(prompts))
    ]
    return torch.stack([torch.from_numpy(masks) for masks in found])


def masks_of(segmenter: Sam | HqSam, image: Image, prompts: PromptBatch) -> Tensor:
    with torch.inference_mode():
        (embedding,) = segmenter.encode([image])
        return segmenter.predict(embedding, prompts).masks  # type: ignore[arg-type]


@pytest.mark.parametrize("output", ["sum", "hq"])
def test_light_hq_sam_gives_the_masks_of_its_own_package(
    theirs: ModuleType,
    light: TheirModel,
    files: list[Path],
    output: HqOutput,
) -> None:
    image, prompts = random_image(SIZE_HW), random_prompts(SIZE_HW, 4, 0, boxes=True)
    ours = build_hq_sam(SegmenterOptions("vit_tiny", files[0], output=output))
    found = masks_of(ours, image, prompts)
    wanted = by_theirs(theirs, light, image, prompts, output=output)
    assert (found != wanted).double().mean() < MOST_DIFFERING
    assert 0.02 < wanted.double().mean() < 0.98
    assert ours.info.label == "hq-sam vit_tiny"
    assert ours.info.settings["base"] == "mobile-sam vit_tiny"


def test_mobile_sam_gives_the_masks_of_their_package(theirs: ModuleType, files: list[Path]) -> None:
    image, prompts = random_image(SIZE_HW), random_prompts(SIZE_HW, 4, 2, boxes=False)
    model = theirs.sam_model_registry_baseline["vit_tiny"]()
    model.load_state_dict(torch.load(files[1], weights_only=True))
    wanted = by_theirs(theirs, model.eval(), image, prompts, output="sum")
    for path in files:  # its own file, and that in which it is a part
        ours = build_mobile_sam(SegmenterOptions(checkpoint=path))
        assert (masks_of(ours, image, prompts) != wanted).double().mean() < MOST_DIFFERING
    assert 0.02 < wanted.double().mean() < 0.98


def test_tiny_sam_is_a_mobile_sam_with_other_weights(files: list[Path]) -> None:
    image, prompts = random_image(SIZE_HW), random_prompts(SIZE_HW, 3, 0, boxes=True)
    ours, tiny = (
        build(SegmenterOptions(checkpoint=files[1])) for build in (build_mobile_sam, build_tiny_sam)
    )
    assert torch.equal(masks_of(ours, image, prompts), masks_of(tiny, image, prompts))
    assert tiny.info.label == "tiny-sam"
    with pytest.raises(SegmenterError, match=r"tiny-sam fetches no weights: name its tinysam\.pth"):
        build_tiny_sam(SegmenterOptions())


def test_a_run_says_whether_weights_were_unwrapped(files: list[Path], tmp_path: Path) -> None:
    plain = build_mobile_sam(SegmenterOptions(checkpoint=files[1])).info
    assert "unwrapped" not in plain.settings
    state = torch.load(files[1], weights_only=True)
    path = tmp_path / "last.ckpt"
    torch.save({"state_dict": {f"model.{name}": x for name, x in state.items()}, "epoch": 3}, path)
    found = build_mobile_sam(SegmenterOptions(checkpoint=path)).info
    assert found.settings == {**plain.settings, "unwrapped": "state_dict model."}
    state = torch.load(files[0], weights_only=True)
    torch.save({"model": state}, path)
    hq = build_hq_sam(SegmenterOptions("vit_tiny", path)).info
    assert hq.settings["unwrapped"] == "model"


def test_what_cannot_be_built_is_one_line(
    shell: Shell, files: list[Path], monkeypatch: pytest.MonkeyPatch
) -> None:
    line = shell.refuses("eval", "--segmenter", "mobile-sam")
    assert line.startswith("mobile-sam fetches no weights: name its mobile_sam.pt")
    line = shell.refuses("eval", "--segmenter", "hq-sam", "--checkpoint", files[0])
    assert "is a Light HQ-SAM, whose image encoder is a TinyViT: use --segmenter hq-sam" in line
    command = ("eval", "--segmenter", "hq-sam", "--variant", "vit_tiny", "--checkpoint", files[1])
    assert "is a MobileSAM" in shell.refuses(*command)
    monkeypatch.setattr("samrobust.segmenters.mobile_sam.find_spec", lambda _name: None)
    with pytest.raises(SegmenterError, match=r"install it with pip install 'samrobust\[mobile\]'"):
        build_mobile_sam(SegmenterOptions(checkpoint=files[1]))
