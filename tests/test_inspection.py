"""Readings and routing of Stable-SAM, and the pictures that are made of them."""

from collections.abc import Iterator
from dataclasses import replace
from pathlib import Path

import numpy as np
import pytest
import torch

from samrobust.errors import SegmenterError
from samrobust.evaluation.inspection import compare_readings, median_instance, routed_boxes
from samrobust.geometry import box_iou, mask_to_box
from samrobust.protocol import load_protocol, with_conditions, with_trials
from samrobust.report.readings import draw_readings, draw_routing
from samrobust.segmenters.nano import build_sam_nano
from samrobust.segmenters.plugin_settings import PluginSettings
from samrobust.segmenters.stable_plugins import Plugin, Plugins
from samrobust.segmenters.stable_sam import StableSam
from samrobust.types import Instance, Sample, SegmenterOptions
from tests.conftest import MemoryDataset, Shell, rectangle
from tests.sam_weights import random_image

PROTOCOL = with_conditions(load_protocol("noisy-box"), ["exact-box", "box-noise-0.4"])


def photographs() -> MemoryDataset:
    """Return three images, the second without an object that is large enough."""
    samples = []
    for name, size_hw, boxes in (
        ("a", (90, 140), [(5, 5, 60, 70), (10, 20, 130, 80), (70, 8, 120, 60)]),
        ("b", (70, 50), [(3, 3, 20, 20)]),
        ("c", (120, 61), [(0, 0, 40, 119)]),
    ):
        instances = [
            Instance(str(number), rectangle(size_hw, box)) for number, box in enumerate(boxes)
        ]
        samples.append(Sample(name, random_image(size_hw), instances))
    return MemoryDataset(samples)


def stable(*, layers: tuple[int, ...] = (2,), routing: bool = True, by: float = 0.3) -> StableSam:
    """Return SAM-nano with plugins that have learned something."""
    torch.manual_seed(1)
    plugins = Plugins(128, PluginSettings(layers, routing=routing))
    with torch.no_grad():
        for weight in plugins.parameters():
            weight.add_(by * torch.randn_like(weight))
    return StableSam(build_sam_nano(SegmenterOptions()), plugins)


@pytest.fixture(autouse=True)
def one_thread() -> Iterator[None]:
    threads = torch.get_num_threads()
    torch.set_num_threads(1)
    yield
    torch.set_num_threads(threads)


def test_the_object_of_median_area_is_inspected() -> None:
    dataset = photographs()
    found = [median_instance(dataset[name]) for name in dataset.ids()]
    assert [each and each.instance_id for each in found] == ["0", None, "0"]


def test_a_pair_shows_both_models_on_the_same_box() -> None:
    before, after = build_sam_nano(SegmenterOptions()), stable()
    found = list(compare_readings(before, after, photographs(), PROTOCOL, 2))
    assert [pair.sample_id for pair in found] == ["a", "a", "c", "c"]
    assert [pair.condition for pair in found] == ["exact-box", "box-noise-0.4"] * 2
    for pair in found:
        exact = mask_to_box(pair.target)
        assert (pair.condition == "exact-box") == np.array_equal(pair.box, exact)
        for reading in (pair.sam, pair.stable):
            both, either = (reading.mask & pair.target).sum(), (reading.mask | pair.target).sum()
            assert reading.iou == pytest.approx(both / either)
            assert reading.mask.shape == pair.target.shape
            assert len(reading.places) == len(reading.shares)
            assert 0 < reading.shares.sum() <= 1 + 1e-5
            assert (reading.places >= 0).all()
            assert (reading.places <= np.array(pair.target.shape[::-1]) - 1).all()
        assert len(pair.stable.places) > len(pair.sam.places)
        assert not np.array_equal(pair.sam.mask, pair.stable.mask)


def test_a_reading_is_at_the_layer_that_is_asked_for() -> None:
    before, after = build_sam_nano(SegmenterOptions()), stable(layers=(1, 3))
    shares = {}
    for layer in (None, 1, 3):
        pair = next(compare_readings(before, after, photographs(), PROTOCOL, 1, layer=layer))
        shares[layer] = pair.stable.shares
    np.testing.assert_array_equal(shares[None], shares[1])
    assert not np.array_equal(shares[1], shares[3])
    with pytest.raises(SegmenterError, match="has no plugin at layer 2; its plugins are at 1, 3"):
        next(compare_readings(before, after, photographs(), PROTOCOL, 1, layer=2))


def test_untrained_plugins_read_what_sam_reads() -> None:
    before = build_sam_nano(SegmenterOptions())
    after = StableSam(build_sam_nano(SegmenterOptions()))
    for pair in compare_readings(before, after, photographs(), PROTOCOL, 1):
        np.testing.assert_array_equal(pair.sam.mask, pair.stable.mask)
        n = len(pair.sam.places)
        np.testing.assert_array_equal(pair.stable.places, np.tile(pair.sam.places, (2, 1)))
        both = pair.stable.shares[:n] + pair.stable.shares[n:]
        np.testing.assert_allclose(both, pair.sam.shares, rtol=1e-5)


def test_too_few_large_objects_are_said() -> None:
    models = build_sam_nano(SegmenterOptions()), stable()
    with pytest.raises(SegmenterError, match="fewer than 3 images have an object of at least 1024"):
        list(compare_readings(*models, photographs(), PROTOCOL, 3))


def test_boxes_are_routed_as_the_decoder_routes_them() -> None:
    dataset, model = photographs(), stable(layers=(1, 3))
    found = routed_boxes(model, dataset, dataset.ids(), with_trials(PROTOCOL, 3))
    n = 4 * (1 + 3)  # large objects, exact box and draws
    assert found.box_iou.shape == found.mask_iou.shape == (n,)
    assert (found.box_iou == 1).sum() == 4
    assert found.box_iou.min() > 0.2
    assert found.image.tolist() == [0] * 12 + [2] * 4
    assert list(found.weights) == [1, 3]
    for layer, token in found.tokens.items():
        plugin = model.plugins[str(layer)]
        assert isinstance(plugin, Plugin)
        weight = plugin.share(torch.from_numpy(token).float())
        np.testing.assert_allclose(weight.numpy(force=True), found.weights[layer], rtol=1e-5)
    for routed in found.weights.values():
        assert routed.shape == (n,)
        assert ((routed > 0) & (routed < 1)).all()
        assert np.ptp(routed) > 0
    exact = next(
        iter(compare_readings(build_sam_nano(SegmenterOptions()), model, dataset, PROTOCOL, 1))
    )
    assert exact.stable.iou == pytest.approx(found.mask_iou[0], abs=1e-6)


def test_without_router_or_objects_or_boxes_one_line_says_so() -> None:
    dataset = photographs()
    with pytest.raises(SegmenterError, match="has no router, only deformable sampling"):
        routed_boxes(stable(routing=False), dataset, dataset.ids(), PROTOCOL)
    with pytest.raises(SegmenterError, match="no object of at least 1024 pixels"):
        routed_boxes(stable(), dataset, ["b"], PROTOCOL)
    with pytest.raises(SegmenterError, match="need a protocol of boxes"):
        routed_boxes(stable(), dataset, ["a"], with_trials(load_protocol("points"), 1))


@pytest.mark.parametrize(
    ("box", "other", "wanted"),
    [
        ((0, 0, 9, 9), (0, 0, 9, 9), 1.0),
        ((0, 0, 9, 9), (0, 0, 4, 9), 0.5),
        ((0, 0, 9, 9), (10, 0, 19, 9), 0.0),
        ((3, 3, 3, 3), (3, 3, 3, 3), 1.0),
        ((0, 0, 9, 9), (5, 5, 14, 14), 25 / 175),
    ],
)
def test_the_iou_of_boxes_is_that_of_their_pixels(
    box: tuple[int, ...], other: tuple[int, ...], wanted: float
) -> None:
    assert box_iou(np.array(box, float), np.array(other, float)) == pytest.approx(wanted)
    one, two = (rectangle((30, 30), each) for each in (box, other))  # type: ignore[arg-type]
    assert (one & two).sum() / (one | two).sum() == pytest.approx(wanted)


def test_pictures_are_drawn(tmp_path: Path) -> None:
    dataset, model = photographs(), stable()
    found = list(compare_readings(build_sam_nano(SegmenterOptions()), model, dataset, PROTOCOL, 2))
    empty = replace(found[0].stable, mask=np.zeros_like(found[0].target), iou=0.0)
    draw_readings([replace(found[0], stable=empty), *found[1:]], tmp_path / "reading.png")
    text = draw_routing(
        routed_boxes(model, dataset, dataset.ids(), with_trials(PROTOCOL, 3)),
        tmp_path / "routing.pdf",
    )
    assert text.splitlines()[-1].startswith("box IoU 1.00  weight at layer 2 0.")
    assert (tmp_path / "reading.png").read_bytes().startswith(b"\x89PNG")
    assert (tmp_path / "routing.pdf").read_bytes().startswith(b"%PDF")


def test_bad_input_of_the_draw_commands_is_one_line(shell: Shell) -> None:
    scenes = ("--dataset", "scenes", "--split", "2x64x48")
    message = shell.refuses("draw", "reading", *scenes, "--count", "0")
    assert message == "--count must be at least 1, got 0"
    message = shell.refuses("draw", "routing", "--dataset", "four-hq", "--data-root", ".")
    assert "four-hq" in message or "DIS5K" in message
    message = shell.refuses("draw", "reading", *scenes, "--checkpoint", "none.safetensors")
    assert message == "none.safetensors: there is no such checkpoint"
    message = shell.refuses("draw", "reading", *scenes, "--layer", "4")
    assert message == "stable-sam: has no plugin at layer 4; its plugins are at 2"
