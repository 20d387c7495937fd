"""HQ-SAM beside its own package, with the same random weights."""

import itertools
import warnings
from dataclasses import replace
from functools import partial
from pathlib import Path
from types import ModuleType
from typing import Any, get_args

import numpy as np
import pytest
import torch
from segment_anything.build_sam import sam_model_registry
from torch import Tensor
from torch.nn import functional

from samrobust.errors import CheckpointError, SegmenterError, UnknownNameError
from samrobust.segmenters.hq_modules import HqParts, early_features
from samrobust.segmenters.hq_sam import HqSam, build_hq_sam
from samrobust.segmenters.nano import build_sam_nano
from samrobust.segmenters.published import file_sha256
from samrobust.segmenters.sam import Sam, build_sam
from samrobust.segmenters.sam_decoder import CANDIDATES, SINGLE
from samrobust.segmenters.weights import State, split_hq
from samrobust.types import Frame, HqOutput, Image, PromptBatch, SegmenterOptions
from tests.conftest import Shell
from tests.sam_weights import (
    NARROW_VIT,
    PATCH,
    narrow_vit_b,
    photograph,
    random_image,
    random_parts,
    random_prompts,
    random_sam,
    small_sam,
)

MOST_DIFFERING = 1e-5
"""Share of pixels that rounding may change."""
OUTPUTS: tuple[HqOutput, ...] = ("sum", "hq")
STRUCTURES = [(True, 0, False), (False, 1, True), (False, 3, False)]
"""With boxes or without, number of points, asked for one mask or for several."""
TheirModel = Any
"""A model of their package, which has no types."""
Answer = tuple[Tensor, Tensor]
"""Masks (1, H, W) and logits (1, 4h, 4w) of one prompt, h x w the grid of the encoder."""


@pytest.fixture(scope="module")
def theirs() -> ModuleType:
    """Return HQ-SAM's own package, which needs timm and warns of it."""
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")
        found: ModuleType = pytest.importorskip("segment_anything_hq")
        return found


def official_state(variant: str) -> State:
    """Return the weights of a whole HQ-SAM: random, and its masks neither empty nor full."""
    model = random_sam(variant)
    parts = random_parts(model)
    added = {f"mask_decoder.{name}": tensor for name, tensor in parts.state_dict().items()}
    return {**model.state_dict(), **added}


def narrow_hq_vit_b(package: ModuleType) -> TheirModel:
    """Return HQ-SAM's own model, its image encoder as narrow as `narrow_vit_b`."""
    parts = package.modeling
    side, width = NARROW_VIT["img_size"], NARROW_VIT["embed_dim"]
    return parts.Sam(
        parts.ImageEncoderViT(**NARROW_VIT),
        parts.PromptEncoder(256, (side // PATCH,) * 2, (side,) * 2, mask_in_chans=16),
        parts.mask_decoder_hq.MaskDecoderHQ(
            transformer_dim=256,
            transformer=parts.TwoWayTransformer(2, 256, 8, mlp_dim=2048),
            vit_dim=width,
        ),
    )


class Theirs:
    """HQ-SAM's own model with an image set, in one of the two frames."""

    def __init__(self, model: TheirModel, package: ModuleType, image: Image, frame: Frame) -> None:
        self._model, self._frame = model, frame
        self._size_hw = image.shape[0], image.shape[1]
        self._predictor = package.SamPredictor(model)
        if frame == "longest-side":
            self._predictor.set_image(image)
            return
        pixels = torch.tensor(image).permute(2, 0, 1)[None].float()
        side_hw = (model.image_encoder.img_size,) * 2
        square = functional.interpolate(pixels, side_hw, mode="bilinear").to(torch.uint8)
        with torch.no_grad():
            self._features, self._early = model.image_encoder(model.preprocess(square))

    def answers(
        self, prompts: PromptBatch, output: HqOutput, *, multimask: bool
    ) -> tuple[Tensor, Tensor]:
        """Return masks (N, 1, H, W) and logits (N, 1, 4h, 4w), prompts one by one."""
        answer = self._by_predictor if self._frame == "longest-side" else self._by_parts
        found = [answer(prompts[n : n + 1], output, multimask) for n in range(len(prompts))]
        masks, logits = zip(*found, strict=True)
        return torch.stack(masks), torch.stack(logits)

    def _by_predictor(self, prompts: PromptBatch, output: HqOutput, multimask: bool) -> Answer:
        some = prompts.points.shape[1] > 0
        masks, _, logits = self._predictor.predict(
            point_coords=prompts.points[0] if some else None,
            point_labels=prompts.labels[0] if some else None,
            box=None if prompts.boxes is None else prompts.boxes[0],
            mask_input=prompts.logits,
            multimask_output=multimask,
            hq_token_only=output == "hq",
        )
        return torch.from_numpy(masks), torch.from_numpy(logits)

    @torch.no_grad()
    def _by_parts(self, prompts: PromptBatch, output: HqOutput, multimask: bool) -> Answer:
        side = self._model.image_encoder.img_size
        scale = torch.tensor([side / self._size_hw[1], side / self._size_hw[0]])
        some = prompts.points.shape[1] > 0
        points = (torch.tensor(prompts.points) * scale, torch.tensor(prompts.labels))
        boxes = None if prompts.boxes is None else torch.tensor(prompts.boxes) * scale.repeat(2)
        masks = None if prompts.logits is None else torch.tensor(prompts.logits)[None]
        sparse, dense = self._model.prompt_encoder(points if some else None, boxes, masks)
        logits, _ = self._model.mask_decoder(
            self._features,
            self._model.prompt_encoder.get_dense_pe(),
            sparse,
            dense,
            multimask_output=multimask,
            hq_token_only=output == "hq",
            interm_embeddings=self._early,
        )
        masks = functional.interpolate(logits, self._size_hw, mode="bilinear") > 0
        return masks[0], logits[0]


@pytest.mark.parametrize("size_hw", [(301, 410), (410, 253)], ids=["wide", "high"])
@pytest.mark.parametrize("frame", get_args(Frame))
def test_masks_are_those_of_its_own_package(
    frame: Frame,
    size_hw: tuple[int, int],
    theirs: ModuleType,
    tmp_path: Path,
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    monkeypatch.setitem(sam_model_registry, "vit_b", narrow_vit_b)
    monkeypatch.setitem(theirs.sam_model_registry, "vit_b", partial(narrow_hq_vit_b, theirs))
    assert_masks_of_package("vit_b", random_image(size_hw), frame, theirs, tmp_path)


@pytest.mark.nightly
@pytest.mark.parametrize("frame", get_args(Frame))
@pytest.mark.parametrize("variant", ["vit_b", "vit_l"])
def test_in_full_size_masks_are_those_of_its_own_package(
    variant: str, frame: Frame, theirs: ModuleType, tmp_path: Path
) -> None:
    assert_masks_of_package(variant, photograph(), frame, theirs, tmp_path)


def assert_masks_of_package(
    variant: str, image: Image, frame: Frame, theirs: ModuleType, folder: Path
) -> None:
    """Check every output and kind of prompt on one image, the weights read from a file."""
    path = folder / "whole.pth"
    torch.save(official_state(variant), path)
    with torch.no_grad():
        model = theirs.sam_model_registry[variant]()
        model.load_state_dict(torch.load(path, weights_only=True), strict=True)
    size_hw = (image.shape[0], image.shape[1])
    reference = Theirs(model.eval(), theirs, image, frame)
    built = build_hq_sam(SegmenterOptions(variant, path, frame=frame))
    with torch.inference_mode():
        (embedding,) = built.encode([image])
    shares, differences, areas = [], [], []
    for output, (boxes, n_points, multimask), fed in itertools.product(
        OUTPUTS, STRUCTURES, (False, True)
    ):
        ours = HqSam(built.base, built.parts, output=output)
        prompts = random_prompts(size_hw, 3, n_points, boxes=boxes)
        if fed:
            with torch.inference_mode():
                earlier, _ = ours.logits(embedding, prompts)
            prompts = replace(prompts, logits=earlier[:, 0].numpy())
        with torch.inference_mode():
            found = ours.predict(embedding, prompts, multimask=multimask).masks
            logits, _ = ours.logits(embedding, prompts, masks=CANDIDATES if multimask else SINGLE)
        wanted, their_logits = reference.answers(prompts, output, multimask=multimask)
        assert found.shape == wanted.shape == (3, 1, *size_hw)
        shares.append((found != wanted).double().mean().item())
        difference = (logits - their_logits).abs().max() / their_logits.std()
        differences.append(difference.item())
        if not fed:
            areas.append(wanted.double().mean().item())
    assert max(shares) < MOST_DIFFERING
    assert max(differences) < 1e-2
    assert 0.2 < np.mean(areas) < 0.8  # or the comparison would say nothing


@pytest.fixture(scope="module")
def small() -> HqSam:
    """Return an HQ-SAM of two narrow blocks with a side of 256."""
    model = small_sam()
    return HqSam(Sam(model), random_parts(model), output="hq")


def answer(hq: HqSam, image: Image, prompts: PromptBatch, *, multimask: bool = False) -> Tensor:
    with torch.inference_mode():
        (embedding,) = hq.encode([image])
        wanted = CANDIDATES if multimask else SINGLE
        return hq.logits(embedding, prompts, masks=wanted)[0]


def test_of_several_masks_one_comes_and_the_hq_token_alone_does_not_depend_on_it(
    small: HqSam,
) -> None:
    image, prompts = random_image((91, 133)), random_prompts((91, 133), 5, 1, boxes=False)
    both = HqSam(small.base, small.parts, output="sum")
    alone = [answer(small, image, prompts, multimask=many) for many in (False, True)]
    summed = [answer(both, image, prompts, multimask=many) for many in (False, True)]
    assert all(logits.shape == (5, 1, 64, 64) for logits in alone + summed)
    torch.testing.assert_close(*alone)
    assert not torch.equal(*summed)
    assert small.info.multimask


def test_prompts_together_are_the_prompts_one_by_one(small: HqSam) -> None:
    image, prompts = random_image((91, 133)), random_prompts((91, 133), 4, 3, boxes=True)
    together = answer(small, image, prompts)
    singles = [answer(small, image, prompts[n : n + 1]) for n in range(4)]
    torch.testing.assert_close(together, torch.cat(singles), rtol=1e-4, atol=1e-4)


def test_what_no_prompt_changes_is_made_once_an_image(
    small: HqSam, monkeypatch: pytest.MonkeyPatch
) -> None:
    made: list[int] = []
    details = HqParts.details

    def counting(parts: HqParts, features: Tensor, early: Tensor) -> Tensor:
        made.append(len(features))
        return details(parts, features, early)

    monkeypatch.setattr(HqParts, "details", counting)
    with torch.inference_mode():
        (embedding,) = small.encode([random_image((91, 133))])
        for n in range(3):
            small.predict(embedding, random_prompts((91, 133), 2, n, boxes=True))
    assert made == [1]
    assert embedding.details.shape == (1, 32, 64, 64)


def test_images_together_are_the_images_one_by_one(small: HqSam) -> None:
    images = [random_image((91, 133)), random_image((60, 40))]
    with torch.inference_mode():
        squares, sizes = zip(*(small.base.to_square(image) for image in images), strict=True)
        together = small.embed(torch.stack(squares), sizes)
        alone = small.encode(images)
    for one, other in zip(together, alone, strict=True):
        torch.testing.assert_close(one.details, other.details, rtol=1e-4, atol=1e-4)
        assert (one.size_hw, one.input_size_hw) == (other.size_hw, other.input_size_hw)


def test_an_embedding_of_a_sam_is_refused(small: HqSam) -> None:
    with torch.inference_mode():
        (embedding,) = small.base.encode([random_image((91, 133))])
    with pytest.raises(SegmenterError, match="needs embeddings of its own"):
        small.logits(embedding, random_prompts((91, 133), 1, 1, boxes=False))


def test_on_nano_one_upsampling_leads_from_the_early_grid_to_the_masks() -> None:
    base = build_sam_nano(SegmenterOptions())
    hq = HqSam(base, output="hq")
    grid, _ = base.model.prompt_encoder.image_embedding_size
    with torch.inference_mode(), early_features(base.model) as found:
        (embedding,) = hq.encode([random_image((91, 133))])
    assert found[0].shape[-2:] == (2 * grid, 2 * grid)
    assert embedding.details.shape[-2:] == (4 * grid, 4 * grid)
    assert isinstance(hq.parts.compress_vit_feat[3], torch.nn.Conv2d)
    assert answer(hq, random_image((91, 133)), random_prompts((91, 133), 2, 0, boxes=True)).shape[
        -2:
    ] == (4 * grid, 4 * grid)


@pytest.fixture(scope="module")
def published(tmp_path_factory: pytest.TempPathFactory) -> dict[str, Path]:
    """Return files as they are found: a whole HQ-SAM, its SAM, its decoder, and others."""
    folder = tmp_path_factory.mktemp("files")
    whole = official_state("vit_b")
    sam, _ = split_hq(whole)
    states = {
        "whole": whole,
        "sam": sam,
        "decoder": decoder_of(whole),
        "sam-decoder": decoder_of(sam),
        "light": {TINY: torch.zeros(1), "mask_decoder.hf_token.weight": torch.zeros(1)},
        "mobile": {TINY: torch.zeros(1)},
        "other": {"layer.weight": torch.zeros(1)},
        "broken": {name: x for name, x in whole.items() if "hf_mlp" not in name},
    }
    for name, state in states.items():
        torch.save(state, folder / f"{name}.pth")
    return {name: folder / f"{name}.pth" for name in states}


TINY = "image_encoder.patch_embed.seq.0.c.weight"


def decoder_of(state: State) -> State:
    prefix = "mask_decoder."
    return {k.removeprefix(prefix): x for k, x in state.items() if k.startswith(prefix)}


def test_the_sam_in_its_file_is_sam(published: dict[str, Path]) -> None:
    inside, alone = (
        build_sam(SegmenterOptions("vit_b", published[name])) for name in ("whole", "sam")
    )
    states = inside.model.state_dict(), alone.model.state_dict()
    assert states[0].keys() == states[1].keys()
    assert all(torch.equal(states[0][name], states[1][name]) for name in states[0])
    assert inside.info.settings == alone.info.settings
    assert inside.info.trained_on == ("SA-1B",)


def test_a_whole_file_is_loaded_strictly_and_says_what_it_is(published: dict[str, Path]) -> None:
    built = build_hq_sam(SegmenterOptions(checkpoint=published["whole"], output="hq"))
    assert built.info.label == "hq-sam vit_b"
    assert built.info.settings["output"] == "hq"
    assert built.info.settings["base"] == "sam vit_b"
    assert built.info.checkpoint_sha256 == file_sha256(published["whole"])
    assert built.info.trained_on[:2] == ("SA-1B", "DIS5K")
    assert sum(x.numel() for x in built.parts.parameters()) == 1_071_104
    with pytest.raises(CheckpointError, match="does not fit the model: 6 tensors are missing"):
        build_hq_sam(SegmenterOptions(checkpoint=published["broken"]))


@pytest.mark.parametrize(
    ("name", "message"),
    [
        ("sam", "is a SAM, without the 25 tensors of HQ-SAM: use --segmenter sam"),
        ("decoder", "is HQ-SAM's: a mask decoder alone, as HQ-SAM's training reads and writes"),
        ("sam-decoder", "is SAM's: a mask decoder alone"),
        ("light", "is a Light HQ-SAM, whose image encoder is a TinyViT: use --segmenter hq-sam"),
        ("mobile", "is a MobileSAM, whose image encoder is a TinyViT: use --segmenter mobile-sam"),
        ("other", "is neither a SAM nor an HQ-SAM"),
    ],
)
def test_files_of_other_families_are_named(
    published: dict[str, Path], name: str, message: str, shell: Shell
) -> None:
    line = shell.refuses("eval", "--segmenter", "hq-sam", "--checkpoint", published[name])
    assert line.startswith(f"{name}.pth: {message}")
    assert line.endswith("; wanted is sam_hq_vit_b.pth or alike")
    if name != "sam":
        line = shell.refuses("eval", "--segmenter", "sam", "--checkpoint", published[name])
        assert line.startswith(f"{name}.pth: {message}")
        assert line.endswith("; wanted is sam_vit_b_01ec64.pth or alike")


@pytest.mark.parametrize(
    ("options", "message"),
    [
        (SegmenterOptions("vit_x"), "unknown variant of hq-sam 'vit_x'"),
        (SegmenterOptions(output="both"), "unknown output of hq-sam 'both'"),
        (SegmenterOptions(base_checkpoint=Path("b")), "is a whole model: --base-checkpoint b is"),
        (SegmenterOptions(checkpoint=Path("none.pth")), "none.pth: there is no such checkpoint"),
        (SegmenterOptions("nano", Path("none.pth")), "unknown variant of hq-sam 'nano'"),
    ],
)
def test_what_cannot_be_built_is_said_in_one_line(options: SegmenterOptions, message: str) -> None:
    with pytest.raises((SegmenterError, UnknownNameError)) as caught:
        build_hq_sam(options)
    assert message in str(caught.value)


def test_an_output_is_for_an_hq_sam_alone(shell: Shell) -> None:
    line = shell.refuses("eval", "--segmenter", "sam-nano", "--output", "hq")
    assert line == "sam-nano takes no --output, got hq"


def test_masks_of_logits_that_are_no_numbers_have_a_quality_that_is_none() -> None:
    base = Sam(small_sam())
    parts = random_parts(base.model)
    parts.hf_token.weight.data[0, 0] = torch.nan
    hq = HqSam(base, parts)
    size_hw = (91, 133)
    prompts = random_prompts(size_hw, 2, 1, boxes=True)
    with torch.inference_mode():
        (embedding,) = hq.encode([random_image(size_hw)])
        assert base.predict(embedding, prompts).quality.isfinite().all()
        assert hq.predict(embedding, prompts).quality.isnan().all()
