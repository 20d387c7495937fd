"""The adapter of transformers beside the library itself, on tiny models with random weights."""

import json
import shutil
from collections.abc import Callable
from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest
import torch
from torch import Tensor

from samrobust.errors import CheckpointError, SegmenterError
from samrobust.evaluation.self_test import check_adapter, needs_self_test
from samrobust.segmenters import ROWS, build_segmenter
from samrobust.segmenters.transformers import build_transformers
from samrobust.types import Image, PromptBatch, SegmenterOptions
from tests.conftest import Shell
from tests.hostile import TOUCHED, Evil
from tests.sam_weights import random_image, random_prompts

transformers = pytest.importorskip("transformers")

SIZE_HW = (83, 131)
SIDE = 64
STRUCTURES = [(True, 0), (False, 1), (False, 3)]
"""With boxes or without, number of points."""
Made = Any
"""Of transformers, whose types change."""
DECODER = {"hidden_size": 32, "num_attention_heads": 2, "mlp_dim": 48, "iou_head_hidden_dim": 32}


def sam_folder(folder: Path, *, hq: bool) -> Path:
    """Write a tiny SAM or SAM-HQ."""
    kind = "SamHQ" if hq else "Sam"
    make = {part: getattr(transformers, f"{kind}{part}") for part in ("Config", "Model")}
    vision = {
        "hidden_size": 24,
        "output_channels": 32,
        "num_hidden_layers": 3,
        "num_attention_heads": 2,
        "image_size": SIDE,
        "patch_size": 8,
        "global_attn_indexes": [1, 2],
        "window_size": 3,
        "num_pos_feats": 16,
        "mlp_dim": 48,
    }
    prompts = {
        "hidden_size": 32,
        "image_size": SIDE,
        "patch_size": 8,
        "image_embedding_size": SIDE // 8,
    }
    decoder = {**DECODER, "vit_dim": 24} if hq else DECODER
    config = make["Config"](
        vision_config=vision, prompt_encoder_config=prompts, mask_decoder_config=decoder
    )
    images = transformers.SamImageProcessor(
        size={"longest_edge": SIDE}, pad_size={"height": SIDE, "width": SIDE}
    )
    processor = getattr(transformers, f"{kind}Processor")(images)
    return saved(make["Model"](config), processor, folder)


def sam2_config(config: Made) -> Made:
    """Return a tiny configuration of SAM 2, of images or of videos."""
    backbone = {
        "hidden_size": 12,
        "image_size": [SIDE, SIDE],
        "embed_dim_per_stage": [12, 24, 48, 96],
        "num_attention_heads_per_stage": [1, 2, 4, 8],
        "blocks_per_stage": [1, 1, 2, 1],
        "global_attention_blocks": [3],
        "window_size_per_stage": [8, 4, 4, 2],
        "model_type": "sam2_hiera_det_model",
    }
    vision = {
        "backbone_config": backbone,
        "backbone_channel_list": [96, 48, 24, 12],
        "backbone_feature_sizes": [[SIDE // 4] * 2, [SIDE // 8] * 2, [SIDE // 16] * 2],
        "fpn_hidden_size": 32,
    }
    prompts = {"hidden_size": 32, "image_size": SIDE, "patch_size": 16}
    return config(vision_config=vision, prompt_encoder_config=prompts, mask_decoder_config=DECODER)


def sam2_folder(folder: Path) -> Path:
    """Write a tiny SAM 2."""
    config = sam2_config(transformers.Sam2Config)
    images = transformers.Sam2ImageProcessor(
        size={"height": SIDE, "width": SIDE},
        mask_size={"height": SIDE // 4, "width": SIDE // 4},
    )
    return saved(transformers.Sam2Model(config), transformers.Sam2Processor(images), folder)


def edgetam_folder(folder: Path) -> Path:
    """Write a tiny EdgeTAM, with an image encoder of timm without its weights."""
    backbone = transformers.TimmWrapperConfig(
        architecture="repvit_m1",
        model_args={"features_only": True, "embed_dim": (8, 16, 24, 32), "depth": (1, 1, 1, 1)},
    )
    vision = {
        "backbone_config": backbone,
        "backbone_channel_list": [32, 24, 16, 8],
        "backbone_feature_sizes": [[SIDE // 4] * 2, [SIDE // 8] * 2, [SIDE // 16] * 2],
        "fpn_hidden_size": 32,
    }
    prompts = {"hidden_size": 32, "image_size": SIDE, "patch_size": 16}
    config = transformers.EdgeTamConfig(
        vision_config=vision, prompt_encoder_config=prompts, mask_decoder_config=DECODER
    )
    images = transformers.Sam2ImageProcessor(
        size={"height": SIDE, "width": SIDE},
        mask_size={"height": SIDE // 4, "width": SIDE // 4},
    )
    return saved(transformers.EdgeTamModel(config), transformers.Sam2Processor(images), folder)


def saved(model: Made, processor: Made, folder: Path) -> Path:
    """Write a model whose masks vary, and what prepares its images."""
    torch.manual_seed(0)
    with torch.no_grad():
        for name, weight in model.named_parameters():
            if weight.ndim > 1:
                torch.nn.init.normal_(weight, std=0.7 / weight[0].numel() ** 0.5)
            elif "bias" in name:
                torch.nn.init.normal_(weight, std=0.1)
    model.save_pretrained(folder)
    processor.save_pretrained(folder)
    return folder


FOLDERS: dict[str, Callable[[Path], Path]] = {
    "sam": lambda folder: sam_folder(folder, hq=False),
    "sam_hq": lambda folder: sam_folder(folder, hq=True),
    "sam2": sam2_folder,
}
CLASSES = {
    "sam": ("SamModel", "SamProcessor"),
    "sam_hq": ("SamHQModel", "SamHQProcessor"),
    "sam2": ("Sam2Model", "Sam2Processor"),
}


@pytest.fixture(scope="module")
def folders(tmp_path_factory: pytest.TempPathFactory) -> dict[str, Path]:
    root = tmp_path_factory.mktemp("models")
    return {name: write(root / name) for name, write in FOLDERS.items()}


def by_library(
    family: str, folder: Path, image: Image, prompts: PromptBatch, **options: object
) -> tuple[Tensor, Tensor]:
    """Return masks and qualities as the library's documentation makes them."""
    model, processor = (getattr(transformers, name) for name in CLASSES[family])
    prepare, network = processor.from_pretrained(folder), model.from_pretrained(folder).eval()
    asked: dict[str, Any] = {}
    if prompts.boxes is not None:
        asked["input_boxes"] = [prompts.boxes.tolist()]
    if prompts.points.shape[1]:
        asked["input_points"] = [prompts.points.tolist()]
        asked["input_labels"] = [prompts.labels.tolist()]
    inputs = prepare(images=image, return_tensors="pt", **asked)
    sizes = [inputs["original_sizes"]]
    if family != "sam2":
        sizes.append(inputs["reshaped_input_sizes"])
    for name in ("input_points", "input_boxes"):
        if name in inputs:
            inputs[name] = inputs[name].float()
    with torch.no_grad():
        found = network(**{k: v for k, v in inputs.items() if "sizes" not in k}, **options)
    (masks,) = prepare.post_process_masks(found.pred_masks, *sizes)
    return masks, found.iou_scores[0]


@pytest.mark.parametrize("output", ["sum", "hq"])
@pytest.mark.parametrize("multimask", [False, True])
@pytest.mark.parametrize("family", FOLDERS)
def test_masks_are_those_of_the_library(
    folders: dict[str, Path], family: str, multimask: bool, output: str
) -> None:
    image = random_image(SIZE_HW)
    chosen = output if family == "sam_hq" else ""
    more = {"hq_token_only": output == "hq"} if chosen else {}
    segmenter = build_transformers(SegmenterOptions(checkpoint=folders[family], output=chosen))
    with torch.inference_mode():
        (embedding,) = segmenter.encode([image])
    areas = []
    for boxes, n_points in STRUCTURES:
        prompts = random_prompts(SIZE_HW, 4, n_points, boxes=boxes)
        with torch.inference_mode():
            found = segmenter.predict(embedding, prompts, multimask=multimask)
        masks, quality = by_library(
            family, folders[family], image, prompts, multimask_output=multimask, **more
        )
        assert torch.equal(found.masks, masks)
        if masks.shape[1] == 1:
            quality = quality.amax(dim=1, keepdim=True)
        torch.testing.assert_close(found.quality, quality)
        areas.append(masks.double().mean().item())
    assert 0.02 < sum(areas) / len(areas) < 0.98  # or the comparison would say nothing


@pytest.mark.parametrize("family", FOLDERS)
def test_masks_that_are_fed_back_are_those_of_the_library_one_by_one(
    folders: dict[str, Path], family: str
) -> None:
    image = random_image(SIZE_HW)
    segmenter = build_transformers(SegmenterOptions(checkpoint=folders[family]))
    with torch.inference_mode():
        (embedding,) = segmenter.encode([image])
    for boxes, n_points in STRUCTURES:
        plain = random_prompts(SIZE_HW, 3, n_points, boxes=boxes)
        with torch.inference_mode():
            first = segmenter.predict(embedding, plain)
            assert first.logits is not None
            fed = replace(plain, logits=first.logits[:, 0].numpy())
            found = segmenter.predict(embedding, fed)
        assert not torch.equal(found.masks, first.masks)
        for n in range(3):
            masks, _ = by_library(
                family,
                folders[family],
                image,
                plain[n : n + 1],
                multimask_output=False,
                input_masks=first.logits[n : n + 1],
            )
            assert (found.masks[n] != masks[0]).double().mean() < 1e-3


def test_it_says_what_it_is(folders: dict[str, Path]) -> None:
    infos = {
        family: build_transformers(SegmenterOptions(checkpoint=folder)).info
        for family, folder in folders.items()
    }
    assert {family: info.label for family, info in infos.items()} == {
        family: f"transformers {family}" for family in FOLDERS
    }
    assert all(info.prompts == {"box", "points", "mask"} for info in infos.values())
    assert [info.frame for info in infos.values()] == ["longest-side", "longest-side", None]
    assert len({info.checkpoint_sha256 for info in infos.values()}) == 3
    assert infos["sam_hq"].settings["output"] == "sum"
    assert "output" not in infos["sam"].settings


def test_of_a_model_of_videos_the_memory_is_left_out(
    folders: dict[str, Path], tmp_path: Path
) -> None:
    images = build_transformers(SegmenterOptions(checkpoint=folders["sam2"]))
    config = sam2_config(transformers.Sam2VideoConfig)
    config.memory_attention_hidden_size = config.memory_encoder_hidden_size = 32
    video = transformers.Sam2VideoModel(config)
    state = transformers.Sam2Model.from_pretrained(folders["sam2"]).state_dict()
    assert not video.load_state_dict(state, strict=False).unexpected_keys
    video.save_pretrained(tmp_path)
    transformers.Sam2Processor.from_pretrained(folders["sam2"]).save_pretrained(tmp_path)
    found = build_transformers(SegmenterOptions(checkpoint=tmp_path))
    assert found.info.checkpoint_sha256 == images.info.checkpoint_sha256


@pytest.mark.parametrize("name", ROWS["transformers"].models)
def test_each_named_model_runs_with_a_tiny_configuration_of_its_class(
    folders: dict[str, Path], tmp_path: Path, name: str
) -> None:
    model = ROWS["transformers"].models[name]
    if model.family == "edgetam":
        pytest.importorskip("timm")
        folder = edgetam_folder(tmp_path)
    else:
        folder = folders[model.family]
    segmenter = build_segmenter("transformers", variant=name, checkpoint=folder, device="cpu")
    assert segmenter.info.label == f"transformers {name}"
    assert segmenter.info.trained_on == model.trained_on
    assert segmenter.info.settings["family"] == model.family
    assert needs_self_test(segmenter)
    check_adapter(segmenter, segmenter.info.prompts)
    other = folders["sam" if model.family != "sam" else "sam2"]
    with pytest.raises(CheckpointError, match=rf"but {name} is of '{model.family}'"):
        build_segmenter("transformers", variant=name, checkpoint=other, device="cpu")


@pytest.mark.parametrize(
    ("name", "hidden", "mlp"), [("slimsam-77", 168, 696), ("slimsam-50", 384, 1536)]
)
def test_parameters_of_slim_sams_fill_their_published_files(
    name: str, hidden: int, mlp: int
) -> None:
    config = transformers.SamConfig(vision_config={"hidden_size": hidden, "mlp_dim": mlp})
    with torch.device("meta"):
        count = sum(weight.numel() for weight in transformers.SamModel(config).parameters())
    model = ROWS["transformers"].models[name]
    assert model.n_parameters == count
    assert 4 * count == pytest.approx(model.n_bytes, rel=0.005)


@pytest.mark.parametrize(
    ("options", "message"),
    [
        (SegmenterOptions(), "transformers needs a model: its id with --variant"),
        (SegmenterOptions(dtype="bfloat16", variant="x"), "runs in float32 alone"),
        (SegmenterOptions(checkpoint=Path("nowhere")), "nowhere: cannot be loaded by transformers"),
    ],
)
def test_what_cannot_be_built_is_said_in_one_line(options: SegmenterOptions, message: str) -> None:
    with pytest.raises(SegmenterError) as caught:
        build_transformers(options)
    assert message in str(caught.value)
    assert "\n" not in str(caught.value)


def test_other_families_frames_and_outputs_are_refused(
    folders: dict[str, Path], tmp_path: Path
) -> None:
    transformers.BertConfig().save_pretrained(tmp_path)
    with pytest.raises(CheckpointError, match="is of the family 'bert'; allowed: edgetam"):
        build_transformers(SegmenterOptions(checkpoint=tmp_path))
    with pytest.raises(SegmenterError, match="by longest-side, got --frame squash"):
        build_transformers(SegmenterOptions(checkpoint=folders["sam"], frame="squash"))
    with pytest.raises(SegmenterError, match="has one output, got --output hq"):
        build_transformers(SegmenterOptions(checkpoint=folders["sam"], output="hq"))


@pytest.mark.parametrize("family", FOLDERS)
def test_a_processor_of_another_size_is_refused(
    folders: dict[str, Path], tmp_path: Path, family: str
) -> None:
    folder = Path(shutil.copytree(folders[family], tmp_path / "model"))
    name = "processor_config.json"
    if not (folder / name).exists():
        name = "preprocessor_config.json"
    (folder / name).write_text((folder / name).read_text().replace(f": {SIDE}", f": {2 * SIDE}"))
    with pytest.raises(CheckpointError) as caught:
        build_transformers(SegmenterOptions(checkpoint=folder))
    message = str(caught.value)
    assert message.startswith(f"{folder}: its processor makes images of 128 x 128 pixels, but ")
    assert " of its model wants 64 x 64; wanted are a model and a processor" in message


def test_a_model_that_contradicts_itself_is_one_line(tmp_path: Path) -> None:
    folder = sam_folder(tmp_path / "model", hq=False)
    config = transformers.SamConfig.from_pretrained(folder)
    config.vision_config.num_pos_feats = 128  # the prompt encoder has 2 x 16 channels
    model = transformers.SamModel(config)
    model.save_pretrained(folder)
    segmenter = build_transformers(SegmenterOptions(checkpoint=folder))
    (embedding,) = segmenter.encode([random_image(SIZE_HW)])
    with pytest.raises(SegmenterError) as caught:
        segmenter.predict(embedding, random_prompts(SIZE_HW, 2, 0, boxes=True))
    message = str(caught.value)
    assert message.startswith("transformers model: the library cannot run the model: RuntimeError")
    assert "config.json" in message
    assert "\n" not in message


def test_running_out_of_memory_is_left_to_who_can_halve_the_batch(
    folders: dict[str, Path], monkeypatch: pytest.MonkeyPatch
) -> None:
    segmenter = build_transformers(SegmenterOptions(checkpoint=folders["sam"]))

    def fill_memory(_pixels: Tensor) -> None:
        raise torch.OutOfMemoryError("CUDA out of memory")

    monkeypatch.setattr(segmenter._model, "get_image_embeddings", fill_memory)
    with pytest.raises(torch.OutOfMemoryError):
        segmenter.encode([random_image(SIZE_HW)])


def test_weights_that_are_missing_are_no_random_ones(
    folders: dict[str, Path], tmp_path: Path
) -> None:
    config = transformers.SamConfig.from_pretrained(folders["sam"])
    model = transformers.SamModel.from_pretrained(folders["sam"])
    state = {k: v for k, v in model.state_dict().items() if "mask_tokens" not in k}
    model.save_pretrained(tmp_path, state_dict=state)
    config.save_pretrained(tmp_path)
    transformers.SamProcessor.from_pretrained(folders["sam"]).save_pretrained(tmp_path)
    with pytest.raises(CheckpointError, match=r"lacks 1 weights, as mask_decoder\.mask_tokens"):
        build_transformers(SegmenterOptions(checkpoint=tmp_path))


def test_pickled_weights_run_no_code(folders: dict[str, Path], shell: Shell) -> None:
    shutil.copytree(folders["sam"], "model")
    Path("model/model.safetensors").unlink()
    torch.save({"shared_image_embedding.positional_embedding": Evil()}, "model/pytorch_model.bin")
    line = shell.refuses("eval", "--segmenter", "transformers", "--checkpoint", "model")
    assert line.startswith("model: cannot be loaded by transformers: ")
    assert not TOUCHED.exists()


def test_code_beside_a_model_is_not_run(folders: dict[str, Path], shell: Shell) -> None:
    shutil.copytree(folders["sam"], "model")
    Path("model/evil.py").write_text(f"import pathlib\npathlib.Path({str(TOUCHED)!r}).touch()\n")
    for name in Path("model").glob("*.json"):
        classes = ("AutoConfig", "AutoModel", "AutoImageProcessor", "AutoProcessor")
        table = json.loads(name.read_text())
        table["auto_map"] = dict.fromkeys(classes, "evil.Code")
        name.write_text(json.dumps(table))
    asked = ("--protocol", "gt-box", "--split", "1x64x48", "--workers", "0")
    result = shell("eval", "--segmenter", "transformers", "--checkpoint", "model", *asked)
    assert "Traceback" not in result.err
    assert not TOUCHED.exists()


@pytest.mark.parametrize(
    ("name", "content"),
    [
        ("config.json", '{"model_type": "sam", "vision_config": 5}'),
        ("config.json", '{"model_type": "sam", "vision_config": {"hidden_size": "x"}}'),
        ("config.json", '{"model_type": "sam", "vision_config": {"patch_size": 0}}'),
        ("config.json", "[1]"),
        ("config.json", "[" * 100_000),
        ("processor_config.json", '{"image_processor": 5}'),
        ("model.safetensors", "x" * 100),
        ("model.safetensors", "\x08\0\0\0\0\0\0\0{}      "),
    ],
)
def test_a_damaged_model_is_said_in_one_line(
    folders: dict[str, Path], tmp_path: Path, name: str, content: str
) -> None:
    folder = shutil.copytree(folders["sam"], tmp_path / "model")
    assert (folder / name).exists()
    (folder / name).write_text(content)
    with pytest.raises(CheckpointError):
        build_transformers(SegmenterOptions(checkpoint=folder))


def test_without_the_library_the_extra_is_named(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("samrobust.segmenters.transformers.find_spec", lambda _name: None)
    with pytest.raises(SegmenterError) as caught:
        build_transformers(SegmenterOptions(variant="facebook/sam2.1-hiera-tiny"))
    assert str(caught.value) == (
        "transformers is not installed; install it with pip install 'samrobust[transformers]'"
    )


def test_it_is_evaluated_by_its_name(folders: dict[str, Path], shell: Shell) -> None:
    result = shell(
        *("eval", "--protocol", "gt-box", "--segmenter", "transformers", "--dataset", "scenes"),
        *("--checkpoint", folders["sam2"], "--split", "2x64x48", "--workers", "0", "--quiet"),
    )
    assert result.code == 0
    assert "transformers sam2" in result.out
