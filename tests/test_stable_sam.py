import copy
import itertools
from collections.abc import Mapping
from dataclasses import replace
from pathlib import Path

import numpy as np
import pytest
import torch
from PIL import Image as PilImage
from safetensors import safe_open
from safetensors.torch import load_file, save_file
from segment_anything.modeling.sam import Sam as SamModel
from torch import Tensor

from samrobust.errors import CheckpointError, SegmenterError
from samrobust.segmenters.frames import input_scale
from samrobust.segmenters.nano import nano_model
from samrobust.segmenters.plugin_settings import PluginSettings
from samrobust.segmenters.sam import Sam, SamEmbedding, SamOptions
from samrobust.segmenters.sam_decoder import ALL_MASKS, DecoderKind
from samrobust.segmenters.stable_plugins import PluggedAttention, Plugin, Plugins
from samrobust.segmenters.stable_sam import Reading, StableSam, load_stable_sam
from samrobust.training.checkpoints import save_weights
from samrobust.training.recipe import load_recipe
from samrobust.types import Frame, Image, Prediction, PromptBatch, Segmenter
from tests.sam_weights import random_image, random_prompts, randomise, small_sam

SIZES_HW = [(333, 517), (91, 40)]
STRUCTURES = [(True, 0), (False, 1), (False, 3), (True, 4), (False, 14)]
"""With boxes or without, number of points; the last has more tokens than the decoder calls few."""
DECODERS: list[DecoderKind] = ["stock", "fast"]
CHANNELS = 32
SHA256 = "0a1b" * 16
MOST_DIFFERING = 1e-5
"""Share of pixels that rounding may change."""


def nano(side: int = 96) -> SamModel:
    """Return a SAM-nano with random weights whose masks are neither empty nor full."""
    torch.manual_seed(0)
    return randomise(nano_model(side)).eval()


LATER_OPTIONS = [
    PluginSettings(amplitude="none"),
    PluginSettings(samples="plain"),
    PluginSettings(samples="plain", amplitude="none"),
    PluginSettings(offset_range="cell"),
    PluginSettings(offset_range="unlimited"),
    PluginSettings(groups=2),
    PluginSettings(layers=(1, 2, 3), groups=4, position="moves"),
]
"""What version 0.1.0 did not have, each alone; the last with what it had."""

MODELS = {"sam": small_sam, "sam-nano": nano}


def base(
    model: SamModel | None = None, decoder: DecoderKind = "fast", frame: Frame = "longest-side"
) -> Sam:
    """Return a small SAM that was read from a file, as it were."""
    return Sam(
        model or small_sam(128, channels=CHANNELS, heads=2),
        SamOptions(frame, attention="stock", decoder=decoder),
        variant="vit_b",
        checkpoint_sha256=SHA256,
    )


def learned(base: Sam, settings: PluginSettings | None = None, by: float = 0.3) -> StableSam:
    """Return a base with plugins that have learned something."""
    torch.manual_seed(1)
    plugins = Plugins(base.model.mask_decoder.transformer_dim, settings)
    with torch.no_grad():
        for weight in plugins.parameters():
            weight.add_(by * torch.randn_like(weight))
    return StableSam(base, plugins)


@torch.inference_mode()
def all_logits(
    segmenter: Sam | StableSam, size_hw: tuple[int, int], boxes: bool, n_points: int, n: int = 3
) -> tuple[Tensor, Tensor]:
    (embedding,) = segmenter.encode([random_image(size_hw)])
    prompts = random_prompts(size_hw, n, n_points, boxes=boxes)
    return segmenter.logits(embedding, prompts, masks=ALL_MASKS)


@torch.inference_mode()
def predict(
    segmenter: Sam | StableSam, image: Image, prompts: PromptBatch, multimask: bool
) -> Prediction:
    (embedding,) = segmenter.encode([image])
    return segmenter.predict(embedding, prompts, multimask=multimask)


def differing(ours: Prediction, theirs: Prediction) -> float:
    """Return the share of pixels that differ, after checking what cannot."""
    assert ours.masks.shape == theirs.masks.shape
    torch.testing.assert_close(ours.quality, theirs.quality, rtol=1e-4, atol=1e-5)
    return float((ours.masks != theirs.masks).double().mean())


@pytest.mark.parametrize(
    ("name", "decoder"),
    [("sam", "fast"), ("sam", "stock"), ("sam-nano", "fast")],  # which the stock one cannot decode
)
def test_untrained_it_is_sam(name: str, decoder: DecoderKind) -> None:
    sam = base(MODELS[name](), decoder)
    stable = StableSam(copy.deepcopy(sam))
    shares, areas = [], []
    for size_hw, (boxes, n_points), multimask in itertools.product(
        SIZES_HW, STRUCTURES, (False, True)
    ):
        image, prompts = random_image(size_hw), random_prompts(size_hw, 2, n_points, boxes=boxes)
        ours = predict(stable, image, prompts, multimask)
        shares.append(differing(ours, predict(sam, image, prompts, multimask)))
        areas.append(ours.masks.double().mean())
    assert np.mean(shares) < MOST_DIFFERING
    assert 0.1 < np.mean(areas) < 0.9  # or the comparison would say nothing


@pytest.mark.parametrize(
    "settings",
    [
        PluginSettings(layers=(1,)),
        PluginSettings(layers=(3,)),
        PluginSettings(layers=(1, 2, 3), routing=False),
        PluginSettings(layers=(1, 2, 3), position="moves"),
        *LATER_OPTIONS,
    ],
)
def test_untrained_it_is_sam_at_any_layers(settings: PluginSettings) -> None:
    model = small_sam(96, channels=CHANNELS, heads=2)
    sam = base(copy.deepcopy(model))
    stable = StableSam(base(model), Plugins(CHANNELS, settings))
    for boxes, n_points in STRUCTURES:
        ours = all_logits(stable, (91, 40), boxes, n_points)
        theirs = all_logits(sam, (91, 40), boxes, n_points)
        for one, other in zip(ours, theirs, strict=True):
            assert float((one - other).norm() / other.norm()) < 1e-5


def test_untrained_it_is_sam_nano_on_a_real_photograph(photographs: Path) -> None:
    path = min((photographs / "pennfudan" / "train").glob("*.jpg"))
    image = np.array(PilImage.open(path).convert("RGB"))
    sam = base(nano(256))
    stable = StableSam(copy.deepcopy(sam))
    for (boxes, n_points), multimask in itertools.product(STRUCTURES, (False, True)):
        prompts = random_prompts((image.shape[0], image.shape[1]), 2, n_points, boxes=boxes)
        ours = predict(stable, image, prompts, multimask)
        assert differing(ours, predict(sam, image, prompts, multimask)) < MOST_DIFFERING


@pytest.mark.parametrize("n", [1, 3])
@pytest.mark.parametrize(
    "settings",
    [
        PluginSettings(),
        PluginSettings(routing=False),
        PluginSettings(layers=(1,), routing=False),
        PluginSettings(layers=(1, 2, 3), position="moves"),
        *LATER_OPTIONS,
    ],
)
def test_fast_and_stock_decoders_have_the_same_plugins(settings: PluginSettings, n: int) -> None:
    model = small_sam(128, channels=CHANNELS, heads=2)
    fast, stock = (
        learned(base(copy.deepcopy(model), kind), settings) for kind in ("fast", "stock")
    )
    plain = base(model)
    for boxes, n_points in STRUCTURES:
        found, wanted, without = (
            all_logits(segmenter, SIZES_HW[0], boxes, n_points, n)[0]
            for segmenter in (fast, stock, plain)
        )
        assert float((found - wanted).norm() / wanted.norm()) < 1e-4
        assert float((found - without).norm() / without.norm()) > 1e-2


@pytest.mark.parametrize("decoder", DECODERS)
@pytest.mark.parametrize("settings", LATER_OPTIONS)
def test_untrained_plugins_change_no_bit(settings: PluginSettings, decoder: DecoderKind) -> None:
    mixing = StableSam(base(decoder=decoder), Plugins(CHANNELS, settings))
    unmoved = StableSam(base(decoder=decoder), Plugins(CHANNELS, PluginSettings(settings.layers)))
    for boxes, n_points in STRUCTURES:
        ours = all_logits(mixing, (91, 40), boxes, n_points)
        theirs = all_logits(unmoved, (91, 40), boxes, n_points)
        assert all(torch.equal(one, other) for one, other in zip(ours, theirs, strict=True))


def test_each_setting_makes_a_different_segmenter() -> None:
    choices = [
        PluginSettings(),
        PluginSettings(routing=False),
        PluginSettings(layers=(1,)),
        PluginSettings(layers=(3,)),
        PluginSettings(position="moves"),
        PluginSettings(offset_range=0.05),
        *LATER_OPTIONS,
    ]
    found = [all_logits(learned(base(), choice), SIZES_HW[0], True, 0)[0] for choice in choices]
    for one, other in itertools.combinations(found, 2):
        assert float((one - other).norm() / other.norm()) > 1e-3


@pytest.mark.parametrize("decoder", DECODERS)
@pytest.mark.parametrize("settings", [PluginSettings(), *LATER_OPTIONS])
def test_training_changes_the_plugins_and_nothing_of_sam(
    settings: PluginSettings, decoder: DecoderKind
) -> None:
    sam = base(decoder=decoder)
    before = {name: weight.clone() for name, weight in sam.model.state_dict().items()}
    stable = StableSam(sam, Plugins(CHANNELS, settings))
    untrained = {name: weight.clone() for name, weight in stable.plugins.state_dict().items()}
    (embedding,) = stable.encode([random_image(SIZES_HW[0])])
    prompts = random_prompts(SIZES_HW[0], 3, 2, boxes=True)
    optimizer = torch.optim.AdamW(stable.plugins.parameters(), lr=1e-2)
    losses = []
    for _ in range(4):
        logits, _ = stable.logits(embedding, prompts)
        loss = logits.sigmoid().mean()
        optimizer.zero_grad()
        loss.backward()  # type: ignore[no-untyped-call]
        optimizer.step()
        losses.append(float(loss.detach()))
    assert losses[-1] < losses[0]

    learning = {id(weight) for weight in stable.plugins.parameters()}
    for weight in sam.model.parameters():
        assert (weight.grad is not None) == (id(weight) in learning)
    for name, weight in stable.plugins.named_parameters():
        assert weight.grad is not None
        assert bool(weight.grad.any()), name
        assert not torch.equal(weight, untrained[name]), name
    after = sam_state(sam.model)
    assert after.keys() == before.keys()
    assert all(torch.equal(after[name], weight) for name, weight in before.items())


def sam_state(model: SamModel) -> dict[str, Tensor]:
    """Return the state of a SAM with plugins under SAM's own names, without the plugins."""
    return {
        name.replace("token_to_image.attention.", "token_to_image."): weight
        for name, weight in model.state_dict().items()
        if ".plugin." not in name
    }


def test_a_copy_learns_alone() -> None:
    stable = learned(base())
    before = all_logits(stable, SIZES_HW[1], True, 0)[0]
    copied = copy.deepcopy(stable)
    with torch.no_grad():
        for weight in copied.plugins.parameters():
            weight.add_(0.1)
    assert torch.equal(all_logits(stable, SIZES_HW[1], True, 0)[0], before)
    assert not torch.equal(all_logits(copied, SIZES_HW[1], True, 0)[0], before)


def test_info_names_the_base_and_the_settings() -> None:
    settings = PluginSettings(layers=(1, 2), routing=False, offset_range=0.5, position="moves")
    sam = base()
    stable: Segmenter[SamEmbedding] = StableSam(sam, Plugins(CHANNELS, settings))
    assert stable.info == replace(
        sam.info,
        name="stable-sam",
        checkpoint_sha256="",
        settings={
            "mask_threshold": 0.0,
            "attention": "stock",
            "decoder": "fast",
            "base": "sam vit_b",
            "base_sha256": SHA256,
            "layers": "1 2",
            "routing": "none",
            "offset_range": 0.5,
            "position": "moves",
        },
    )
    assert StableSam(base(), name="stable-sam-dsp").info.label == "stable-sam-dsp vit_b"
    assert StableSam(base()).info.settings["routing"] == "drp"
    later = PluginSettings(amplitude="none", samples="plain", offset_range="cell", groups=4)
    added = {"amplitude": "none", "samples": "plain", "offset_range": "cell", "groups": 4}
    stable = StableSam(base(), Plugins(CHANNELS, later))
    assert stable.info.settings == {**StableSam(base()).info.settings, **added}


def test_a_layer_that_is_not_there_is_said_and_nothing_is_changed() -> None:
    sam = base()
    names = list(sam.model.state_dict())
    with pytest.raises(SegmenterError) as caught:
        StableSam(sam, Plugins(CHANNELS, PluginSettings(layers=(2, 4))))
    assert str(caught.value) == "plugins cannot act at layer 4 of the decoder; allowed: 1 to 3"
    assert list(sam.model.state_dict()) == names


def test_a_second_set_of_plugins_is_refused() -> None:
    sam = base()
    StableSam(sam)
    with pytest.raises(SegmenterError) as caught:
        StableSam(sam)
    assert str(caught.value) == "layer 2 of the decoder has a plugin already"


def save(stable: StableSam, path: Path, about: Mapping[str, str] | None = None) -> Path:
    """Write a plugin file as training does."""
    recipe = load_recipe("robust")
    about = {**stable.header, **(about or {})}
    save_weights(path, stable.plugins.state_dict(), recipe, dtype=torch.float32, about=about)
    return path


@pytest.mark.parametrize(
    "settings",
    [
        PluginSettings((1, 2), offset_range=0.125),
        PluginSettings((1, 2), routing=False, offset_range=0.125, position="moves"),
        *LATER_OPTIONS,
    ],
)
def test_what_is_loaded_is_what_was_saved(tmp_path: Path, settings: PluginSettings) -> None:
    stable = learned(base(), settings)
    path = save(stable, tmp_path / "plugins.safetensors")
    loaded = load_stable_sam(base(), path)
    assert loaded.plugins.settings == settings
    assert len(loaded.info.checkpoint_sha256) == 64
    assert loaded.info.trained_on == ("scenes",)  # as the recipe in the file says
    assert replace(loaded.info, checkpoint_sha256="", trained_on=()) == stable.info
    ours, theirs = (all_logits(x, SIZES_HW[0], True, 2) for x in (loaded, stable))
    assert all(torch.equal(one, other) for one, other in zip(ours, theirs, strict=True))


def test_a_file_holds_the_plugins_alone_in_less_than_a_megabyte(tmp_path: Path) -> None:
    stable = learned(base(small_sam(64)))
    path = save(stable, tmp_path / "plugins.safetensors")
    assert path.stat().st_size < 2**20
    assert load_file(path).keys() == stable.plugins.state_dict().keys()
    assert sum(tensor.numel() for tensor in load_file(path).values()) == 82_085
    with safe_open(path, framework="pt") as file:
        header = file.metadata()
    assert header["kind"] == "stable-sam-plugins"
    assert (header["base-name"], header["base-variant"]) == ("sam", "vit_b")
    assert header["base-sha256"] == SHA256
    settings = '{"layers": [2], "offset_range": 0.25, "position": "stays", "routing": true}'
    assert header["settings"] == settings  # as version 0.1.0 wrote it


@pytest.mark.parametrize(
    ("about", "message"),
    [
        (
            {"base-variant": "vit_l"},
            "is for sam vit_l with SHA-256 0a1b…, not for sam vit_b with SHA-256 0a1b…",
        ),
        (
            {"base-name": "sam-nano", "base-variant": "", "base-sha256": "ffee" * 16},
            "is for sam-nano with SHA-256 ffee…, not for sam vit_b with SHA-256 0a1b…",
        ),
        (
            {"base-sha256": "0a1c" * 16},
            "is for sam vit_b with SHA-256 0a1c…, not for sam vit_b with SHA-256 0a1b…",
        ),
        ({"kind": "weights"}, "holds no plugins of stable-sam"),
        (
            {"settings": '{"offset_range": 7.0}'},
            "its header cannot be read: plugins: offset_range must be at most 1, got 7.0",
        ),
        (
            {"settings": '{"offset_range": "1/4"}'},
            (
                "its header cannot be read: plugins: offset_range: unknown value '1/4'. Known: "
                "cell, unlimited or a number"
            ),
        ),
        (
            {"settings": "2"},
            "its header cannot be read: plugins must be a table, got 2",
        ),
        (
            {"settings": '{"layers": [1, 2]}'},
            (
                "does not fit the model: 14 tensors are missing, unknown or of another shape, as "
                "1.drp.hidden.bias"
            ),
        ),
    ],
)
def test_a_file_of_another_base_or_kind_is_refused_and_the_base_is_left_alone(
    tmp_path: Path, about: dict[str, str], message: str
) -> None:
    path = save(learned(base()), tmp_path / "p.safetensors", about)
    sam = base()
    names = list(sam.model.state_dict())
    with pytest.raises(CheckpointError) as caught:
        load_stable_sam(sam, path)
    assert str(caught.value) == f"p.safetensors: {message}"
    assert list(sam.model.state_dict()) == names


def test_a_file_of_another_size_is_refused(tmp_path: Path) -> None:
    path = save(learned(base()), tmp_path / "p.safetensors")
    with pytest.raises(CheckpointError) as caught:
        load_stable_sam(base(small_sam(64, channels=64, heads=2)), path)
    assert str(caught.value) == (
        "p.safetensors: does not fit the model: 12 tensors are missing, unknown or of another "
        "shape, as 2.drp.hidden.bias"
    )


def test_a_file_that_is_missing_damaged_or_of_other_weights_is_refused(tmp_path: Path) -> None:
    whole = save(learned(base()), tmp_path / "whole.safetensors").read_bytes()
    damaged = tmp_path / "p.safetensors"
    with pytest.raises(CheckpointError, match="there is no such checkpoint"):
        load_stable_sam(base(), damaged)
    for content in (b"", whole[:100], whole[:-1], b"PK\3\4" + whole[4:]):
        damaged.write_bytes(content)
        with pytest.raises(CheckpointError) as caught:
            load_stable_sam(base(), damaged)
        assert str(caught.value) == "p.safetensors: cut short, or not a safetensors file"
    save_file({"x": torch.zeros(1)}, damaged)
    with pytest.raises(CheckpointError, match=r"p.safetensors: holds no plugins of stable-sam"):
        load_stable_sam(base(), damaged)


@torch.inference_mode()
def read(
    stable: StableSam, size_hw: tuple[int, int], n: int = 3
) -> tuple[dict[int, Reading], SamEmbedding, PromptBatch]:
    (embedding,) = stable.encode([random_image(size_hw)])
    prompts = random_prompts(size_hw, n, 2, boxes=True)
    return stable.readings(embedding, prompts), embedding, prompts


@pytest.mark.parametrize("decoder", DECODERS)
def test_untrained_readings_are_at_the_regular_places(decoder: DecoderKind) -> None:
    readings, _, _ = read(StableSam(base(decoder=decoder)), SIZES_HW[0])
    assert list(readings) == [2]
    reading = readings[2]
    assert reading.regular.shape == (8, 8, 2)
    torch.testing.assert_close(reading.locations, reading.regular.expand(3, -1, -1, -1))
    assert torch.equal(reading.amplitude, torch.ones(3, 8, 8))
    assert torch.equal(reading.routing, torch.full((3, 2), 0.5))
    torch.testing.assert_close(reading.attention, reading.attention_before)


@pytest.mark.parametrize("decoder", DECODERS)
def test_readings_say_what_was_learned_and_leave_nothing_behind(decoder: DecoderKind) -> None:
    stable = learned(base(decoder=decoder), PluginSettings(layers=(1, 2, 3)))
    before = all_logits(stable, SIZES_HW[0], True, 2)[0]
    readings, _, _ = read(stable, SIZES_HW[0])
    assert list(readings) == [1, 2, 3]
    for reading in readings.values():
        assert reading.locations.shape == (3, 8, 8, 2)
        assert reading.amplitude.shape == reading.attention.shape == (3, 8, 8)
        torch.testing.assert_close(reading.routing.sum(1), torch.ones(3))
        for attention in (reading.attention, reading.attention_before):
            torch.testing.assert_close(attention.sum((1, 2)), torch.ones(3))
        assert not torch.allclose(reading.attention, reading.attention_before)
        assert float((reading.locations - reading.regular).abs().max()) > 1
    assert torch.equal(all_logits(stable, SIZES_HW[0], True, 2)[0], before)
    assert not any(module._forward_pre_hooks for module in stable.base.model.modules())


def test_a_reading_is_at_the_mean_of_the_groups() -> None:
    stable = learned(base(), PluginSettings(groups=4))
    readings, embedding, _ = read(stable, SIZES_HW[0])
    plugin = stable.plugins["2"]
    assert isinstance(plugin, Plugin)
    seen: list[Tensor] = []
    with torch.inference_mode():
        plugin.register_forward_pre_hook(lambda _m, inputs: seen.append(inputs[1]))
        prompts = random_prompts(SIZES_HW[0], 3, 2, boxes=True)
        stable.logits(embedding, prompts)
        samples = plugin.dsp(seen[0])
    assert float(samples.locations.std(dim=-2).max()) > 0.1
    torch.testing.assert_close(readings[2].amplitude, samples.amplitude.mean(-1))
    shift = samples.locations.mean(-2) - torch.stack(
        torch.meshgrid(torch.arange(8.0), torch.arange(8.0), indexing="xy"), dim=-1
    )
    stride_xy = readings[2].regular[1, 1] - readings[2].regular[0, 0]
    torch.testing.assert_close(
        readings[2].locations, readings[2].regular + stride_xy * shift, rtol=1e-4, atol=1e-3
    )


def test_without_routing_a_reading_is_of_the_deformed_features_alone() -> None:
    readings, _, _ = read(learned(base(), PluginSettings(routing=False)), SIZES_HW[0])
    assert readings[2].routing.tolist() == [[1, 0]] * 3


@pytest.mark.parametrize("frame", ["longest-side", "squash"])
def test_places_are_in_pixels_of_the_original_image(frame: Frame) -> None:
    size_hw = SIZES_HW[0]
    stable = StableSam(base(small_sam(128, channels=CHANNELS, heads=2), frame=frame))
    readings, embedding, _ = read(stable, size_hw)
    xy = readings[2].regular * torch.tensor(input_scale(size_hw, embedding.input_size_hw))
    encoder = stable.base.model.prompt_encoder
    with torch.inference_mode():  # SAM's own encoding of points, which are pixels, and of the grid
        points = encoder.pe_layer.forward_with_coords(
            xy.float().view(1, -1, 2) + 0.5, encoder.input_image_size
        )
        grid = encoder.get_dense_pe().flatten(2).mT
    torch.testing.assert_close(points, grid, rtol=0, atol=1e-4)


def test_attention_is_what_the_token_takes() -> None:
    stable = learned(base(small_sam(128, channels=CHANNELS, heads=1)))
    (embedding,) = stable.encode([random_image(SIZES_HW[0])])
    prompts = random_prompts(SIZES_HW[0], 3, 2, boxes=True)
    attention = stable.base.model.get_submodule(
        "mask_decoder.transformer.layers.1.cross_attn_token_to_image"
    )
    assert isinstance(attention, PluggedAttention)
    inner = attention.attention
    projected: list[Tensor] = []
    taken: list[Tensor] = []
    with torch.inference_mode():
        inner.v_proj.register_forward_hook(lambda _m, _x, out: projected.append(out))
        attention.register_forward_hook(lambda _m, _x, out: taken.append(out[:, 1]))
        stock = Sam(stable.base.model, SamOptions(attention="stock", decoder="stock"))
        stock.logits(embedding, prompts)
        reading = stable.readings(embedding, prompts)[2]
        wanted = inner.out_proj((reading.attention.flatten(1)[:, None] @ projected[0])[:, 0])
    torch.testing.assert_close(taken[0], wanted, rtol=1e-4, atol=1e-4)
