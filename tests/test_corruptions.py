"""Corruptions beside SciPy, OpenCV and Pillow; images x prompts from protocol to report."""

import io
from collections.abc import Sequence
from pathlib import Path
from typing import ClassVar

import cv2
import numpy as np
import pandas as pd
import pytest
from PIL import Image as PillowImage
from scipy import ndimage

from samrobust.degradations import CORRUPTIONS
from samrobust.errors import ProtocolError
from samrobust.evaluation.loop import Evaluated, LoopOptions
from samrobust.evaluation.prompts import corrupt, draw_prompts
from samrobust.evaluation.runner import RunSettings, run_all
from samrobust.protocol import (
    build_corruption,
    describe_protocol,
    load_protocol,
    with_conditions,
    with_trials,
)
from samrobust.report.formats import corruptions_csv
from samrobust.report.scores import point_ladders
from samrobust.report.summary import summarise
from samrobust.report.tables import page_tables, terminal_tables
from samrobust.runs.store import read_run
from samrobust.segmenters.baselines import build_ellipse
from samrobust.segmenters.embedding_cache import EmbeddingCache, with_cache
from samrobust.segmenters.nano import build_sam_nano
from samrobust.types import EvalProtocol, Image, ImageCondition, SegmenterOptions
from tests.conftest import GrownBox, MemoryDataset, Shell, evaluate_one

NAMES = CORRUPTIONS.names()
STILL = {
    "defocus-blur",
    "zoom-blur",
    "brightness",
    "contrast",
    "pixelate",
    "jpeg-compression",
}
"""Those that draw no random numbers."""


def photograph(size_hw: tuple[int, int], seed: int = 0) -> Image:
    """Return blurred noise over all values, which compresses and blurs as photographs do."""
    noise = np.random.default_rng(seed).normal(size=(*size_hw, 3))
    smooth = ndimage.gaussian_filter(noise, (2, 2, 0))
    low, high = smooth.min(), smooth.max()
    return np.asarray(255 * (smooth - low) / max(high - low, 1e-9), np.uint8)


def made(name: str, severity: int, image: Image, seed: int = 0) -> Image:
    return build_corruption(name, {"severity": severity})(image, np.random.default_rng(seed))


@pytest.mark.parametrize("name", NAMES)
def test_a_higher_severity_changes_more_and_the_input_stays(name: str) -> None:
    image = photograph((61, 93))
    before = image.copy()
    changes = [np.abs(made(name, each, image).astype(float) - image).mean() for each in (1, 3, 5)]
    assert 0.5 < changes[0] < changes[2]
    assert changes[0] < changes[1] < changes[2] or name == "frost"  # which also darkens the image
    np.testing.assert_array_equal(image, before)
    np.testing.assert_array_equal(made(name, 3, image), made(name, 3, image))
    differs = (made(name, 3, image, seed=1) != made(name, 3, image)).any()
    assert differs == (name not in STILL)


@pytest.mark.parametrize("name", NAMES)
@pytest.mark.parametrize("size_hw", [(1, 1), (1, 9), (7, 1), (5, 3), (33, 130)])
def test_any_size_keeps_its_shape(name: str, size_hw: tuple[int, int]) -> None:
    for severity in range(1, 6):
        found = made(name, severity, photograph(size_hw))
        assert found.shape == (*size_hw, 3)
        assert found.dtype == np.uint8


def test_noise_has_the_deviation_of_its_severity() -> None:
    grey = np.full((200, 300, 3), 128, np.uint8)
    noisy = made("gaussian-noise", 1, grey).astype(float) / 255
    assert noisy.std() == pytest.approx(0.08, rel=0.01)
    photons = made("shot-noise", 1, grey).astype(float) / 255
    assert photons.std() == pytest.approx((128 / 255 / 60) ** 0.5, rel=0.02)
    impulses = made("impulse-noise", 5, grey)
    assert (impulses != 128).mean() == pytest.approx(0.27, abs=0.005)
    assert (impulses == 255).mean() == pytest.approx(0.135, abs=0.005)


def test_severities_of_a_corruption_share_their_noise() -> None:
    image = photograph((40, 50))
    mild, strong = (
        made("impulse-noise", 1, image) != image,
        made("impulse-noise", 5, image) != image,
    )
    assert (strong | ~mild).all()


def test_defocus_is_a_disc_by_scipy() -> None:
    image = photograph((48, 67))
    y, x = np.mgrid[-8:9, -8:9]
    disc = ((x**2 + y**2) <= 36).astype(float)
    taps = np.exp(-(np.arange(-1, 2) ** 2) / (2 * 0.5**2))
    disc = ndimage.convolve(
        disc / disc.sum(), np.outer(taps, taps) / taps.sum() ** 2, mode="mirror"
    )
    wanted = np.stack(
        [ndimage.correlate(image[..., k] / 255, disc, mode="mirror") for k in range(3)], axis=2
    )
    assert np.abs(made("defocus-blur", 3, image) - 255 * wanted).max() < 1.01


def test_glass_without_its_shuffle_is_two_blurs_by_scipy() -> None:
    image = photograph((3, 4))  # no pixel is farther than the reach from the border
    once = ndimage.gaussian_filter(image / 255, (1, 1, 0), mode="nearest", truncate=4)
    once = (once * 255).astype(np.uint8) / 255
    twice = ndimage.gaussian_filter(once, (1, 1, 0), mode="nearest", truncate=4)
    assert np.abs(made("glass-blur", 3, image) - 255 * twice).max() < 1.5


def test_the_shuffle_of_glass_is_the_one_of_a_loop() -> None:
    from samrobust.degradations.corruptions import _carried

    size_hw, reach = (23, 31), 3
    values = np.arange(23 * 31).reshape(size_hw)
    found = values.ravel()[_carried(size_hw, reach, np.random.default_rng(4))].reshape(size_hw)
    wanted = values.copy()
    rows, columns = (range(side - reach, reach, -1) for side in size_hw)
    offsets = np.random.default_rng(4).integers(-reach, reach, (len(rows), len(columns), 2))
    for i, row in enumerate(rows):
        for j, column in enumerate(columns):
            dx, dy = offsets[i, j]
            wanted[row, column] = wanted[row + dy, column + dx]
    np.testing.assert_array_equal(found, wanted)


def test_motion_blur_moves_to_one_side_and_keeps_light() -> None:
    image = np.zeros((81, 81, 3), np.uint8)
    image[40, 40] = 255
    blurred = made("motion-blur", 1, image).astype(float)[..., 0]
    assert blurred.sum() == pytest.approx(255, abs=25)  # values are cut
    assert blurred[:, 41:].sum() == 0  # angles are within 45 degrees of one direction
    assert blurred.max() == blurred[40, 40]


def test_brightness_raises_value_alone_by_opencv() -> None:
    image = photograph((31, 43))
    before, after = (
        cv2.cvtColor(each.astype(np.float32) / 255, cv2.COLOR_RGB2HSV)
        for each in (image, made("brightness", 1, image))
    )
    assert np.abs(after[..., 2] - np.minimum(before[..., 2] + 0.1, 1)).max() < 1 / 255 + 1e-6
    saturated = before[..., 1] > 0.2
    assert np.abs(after - before)[saturated, 1].max() < 0.03
    black = np.zeros((2, 3, 3), np.uint8)
    assert (made("brightness", 5, black) == 127).all()


def test_contrast_is_the_distance_from_the_mean() -> None:
    image = photograph((21, 33))
    wanted = (image - image.mean((0, 1))) * 0.4 + image.mean((0, 1))
    assert np.abs(made("contrast", 1, image) - wanted).max() < 1


def test_jpeg_and_pixelate_are_pillows() -> None:
    image = photograph((40, 64))
    buffer = io.BytesIO()
    PillowImage.fromarray(image).save(buffer, "JPEG", quality=15)
    np.testing.assert_array_equal(made("jpeg-compression", 3, image), PillowImage.open(buffer))
    small = image.reshape(20, 2, 32, 2, 3).mean((1, 3)).repeat(2, 0).repeat(2, 1)
    assert np.abs(made("pixelate", 2, image) - small).max() <= 1


def test_elastic_moves_pixels_as_far_as_its_words_say() -> None:
    row = np.minimum(np.arange(512), 511 - np.arange(512)).astype(np.uint8)  # slopes of 1
    ramp = np.broadcast_to(row[None, :, None], (512, 512, 3)).copy()
    for severity, wanted in ((1, 1.46), (5, 3.50)):
        found = made("elastic-transform", severity, ramp)[..., 0].astype(float) + 0.5
        moved = (found - ramp[..., 0])[:, 30:226]
        both_axes = 2**0.5 * np.sqrt((moved**2).mean())
        assert both_axes == pytest.approx(wanted, rel=0.15)


def test_snow_frost_and_fog_make_the_image_paler() -> None:
    image = photograph((50, 70)) // 3
    for name in ("snow", "frost", "fog"):
        found = made(name, 3, image)
        saturation = [
            cv2.cvtColor(each.astype(np.float32) / 255, cv2.COLOR_RGB2HSV)[..., 1].mean()
            for each in (image, found)
        ]
        assert saturation[1] < 0.8 * saturation[0]


@pytest.mark.parametrize("value", [0, 6, "3", 2.5, True])
def test_other_severities_are_refused(value: object) -> None:
    with pytest.raises(ValueError, match="severity"):
        build_corruption("fog", {"severity": value})


def crossed(tmp_path: Path, names: Sequence[str] = ("fog", "contrast")) -> EvalProtocol:
    """Return the exact box and two noisy ones on images as stored and on two corruptions."""
    rows = ", ".join(
        f'{{ name = "{name}-{level}", corruption = "{name}", severity = {level}, level = {level} }}'
        for name in names
        for level in (1, 5)
    )
    path = tmp_path / "crossed.toml"
    path.write_text(
        'name = "crossed"\nversion = 1\nsummary = ""\nsource = ""\nseed = 3\ntrials = 2\n'
        f'selection = "single"\nmetrics = ["iou", "boundary-iou"]\nimages = [{rows}]\n'
        '[[conditions]]\nname = "exact"\ndegradation = "exact-box"\n'
        '[[conditions]]\nname = "noisy"\ndegradation = "box-noise"\nshift = 0.4\nscale = 0.4\n'
    )
    return load_protocol(str(path))


def test_a_protocol_crosses_its_images_with_its_conditions(tmp_path: Path) -> None:
    protocol = crossed(tmp_path)
    names = [condition.name for condition in protocol.conditions]
    assert names[:4] == ["exact", "noisy", "fog-1/exact", "fog-1/noisy"]
    assert len(names) == 2 * 5
    described = describe_protocol(protocol)["conditions"]
    assert "image" not in described[0]
    assert described[3]["image"] == {
        "name": "fog-1",
        "corruption": "fog",
        "parameters": {"severity": 1},
        "level": 1.0,
        "pixels": "of the stored image",
    }
    assert with_trials(protocol, 4).conditions[3].image == protocol.conditions[3].image
    assert [row.name for row in with_conditions(protocol, ["fog-5/noisy"]).conditions] == [
        "fog-5/noisy"
    ]


@pytest.mark.parametrize(
    ("row", "reason"),
    [
        ('corruption = "fgo", severity = 1, level = 1', "unknown corruption 'fgo'. Did you mean"),
        ('corruption = "fog", severity = 7, level = 1', "fog: severity must be 1 to 5, got 7"),
        ('corruption = "fog", level = 1', "severity"),
        ('corruption = "fog", severity = 1', "level"),
        ('corruption = "fog", severity = 1, level = 1, radius = 3', "radius"),
    ],
)
def test_a_wrong_row_of_images_is_named(tmp_path: Path, row: str, reason: str) -> None:
    text = (Path(__file__).parents[1] / "protocols" / "gt-box.toml").read_text()
    head, found, rest = text.partition("[[conditions]]")
    (tmp_path / "own.toml").write_text(f'{head}images = [{{ name = "x", {row} }}]\n{found}{rest}')
    with pytest.raises(ProtocolError, match=r"own\.toml: image 'x'") as error:
        load_protocol(str(tmp_path / "own.toml"))
    assert reason in str(error.value)


def test_the_grid_has_all_corruptions_and_prompts() -> None:
    protocol = load_protocol("corruption-grid")
    images = {row.image.name: row.image for row in protocol.conditions if row.image is not None}
    assert {image.kind for image in images.values()} == set(NAMES)
    assert len(images) == 45
    assert {image.level for image in images.values()} == {1.0, 3.0, 5.0}
    for image in images.values():
        assert image.name == f"{image.kind}-{image.level:g}"
        assert vars(image.corruption) == {"severity": image.level}
    assert len(protocol.conditions) == 46 * 4


def test_ladders_of_points_stay_within_one_image() -> None:
    rows = [
        {
            "degradation": "random-points",
            "parameters": {"count": count},
            **({"image": {"name": image}} if image else {}),
        }
        for image in ("", "fog-1")
        for count in (1, 3)
    ]
    assert point_ladders(rows) == [(0, 1), (2, 3)]


def test_masks_are_kept_of_the_stored_image_alone(
    tmp_path: Path, small_dataset: MemoryDataset
) -> None:
    (result,) = evaluate_one(
        GrownBox(),
        small_dataset,
        crossed(tmp_path),
        sample_ids=["a"],
        options=LoopOptions(keep_masks="all"),
    )
    assert isinstance(result, Evaluated)
    assert result.kept is not None
    assert {row.condition for row in result.kept.masks} == {"", "exact", "noisy"}


def test_prompts_are_those_of_the_stored_image(
    tmp_path: Path, small_dataset: MemoryDataset
) -> None:
    protocol = crossed(tmp_path)
    draws = draw_prompts(small_dataset["a"], "memory", protocol)
    hashes = {(draw.instance.instance_id, draw.condition.name): draw.hashes for draw in draws}
    assert len(hashes) == 2 * 10
    for (instance, name), found in hashes.items():
        assert found == hashes[instance, name.rpartition("/")[2]]


class Watching(GrownBox):
    """Keeps the images that it is given."""

    def __init__(self) -> None:
        super().__init__()
        self.seen: list[Image] = []

    def encode(self, images: Sequence[Image]) -> list[tuple[int, int]]:
        self.seen += [image.copy() for image in images]
        return super().encode(images)


@pytest.mark.parametrize("image_batch_size", [1, 3])
def test_each_version_of_an_image_is_encoded_once(
    tmp_path: Path, small_dataset: MemoryDataset, image_batch_size: int
) -> None:
    protocol, segmenter = crossed(tmp_path), Watching()
    options = LoopOptions(batch_size=3, image_batch_size=image_batch_size)
    results = list(
        evaluate_one(
            segmenter, small_dataset, protocol, sample_ids=small_dataset.ids(), options=options
        )
    )
    assert segmenter.n_encoded == 3 * 5
    seen = {image.tobytes() for image in segmenter.seen}
    for sample_id in small_dataset.ids():
        sample = small_dataset[sample_id]
        assert sample.image.tobytes() in seen
        for condition in protocol.conditions:
            if condition.image is not None:
                version = corrupt(
                    sample.image,
                    condition.image,
                    seed=3,
                    dataset_key="memory",
                    sample_id=sample_id,
                )
                assert version.tobytes() in seen
    for result in results:
        assert isinstance(result, Evaluated)
        assert result.n_prompts == 2 * 5 * (1 + 2)
        values = {
            (row.instance_id, row.condition, row.trial, row.metric): row.value
            for row in result.scores
        }
        for (instance, name, trial, metric), value in values.items():
            assert value == values[instance, name.rpartition("/")[2], trial, metric]


def test_noise_of_an_image_is_keyed_by_image_seed_and_data_set() -> None:
    image = photograph((20, 30))
    row = ImageCondition("n", build_corruption("gaussian-noise", {"severity": 1}), "n", 1)

    def noisy(seed: int, dataset_key: str, sample_id: str) -> bytes:
        made = corrupt(image, row, seed=seed, dataset_key=dataset_key, sample_id=sample_id)
        return made.tobytes()

    assert noisy(0, "d", "a") == noisy(0, "d", "a")
    assert (
        len({noisy(0, "d", "a"), noisy(1, "d", "a"), noisy(0, "e", "a"), noisy(0, "d", "b")}) == 4
    )


def test_a_cache_of_embeddings_tells_versions_apart(
    tmp_path: Path, small_dataset: MemoryDataset
) -> None:
    protocol = crossed(tmp_path)
    nano = build_sam_nano(SegmenterOptions())

    def scores(cached: bool) -> list[object]:
        folder = EmbeddingCache(tmp_path / "cache", 10**9)
        segmenter = with_cache(nano, folder) if cached else nano
        found = evaluate_one(
            segmenter, small_dataset, protocol, sample_ids=["a"], options=LoopOptions()
        )
        return [result.scores for result in found if isinstance(result, Evaluated)]

    assert scores(cached=False) == scores(cached=True) == scores(cached=True)
    assert len(list((tmp_path / "cache").glob("*.embedding"))) == 5


def test_the_report_computes_the_interaction(tmp_path: Path, small_dataset: MemoryDataset) -> None:
    protocol = crossed(tmp_path)
    nano = build_sam_nano(SegmenterOptions())
    settings = RunSettings(tmp_path / "results")
    folders = run_all(
        [protocol], [small_dataset], [build_ellipse(SegmenterOptions()), nano], settings
    )
    assert folders == run_all(
        [protocol], [small_dataset], [build_ellipse(SegmenterOptions()), nano], settings
    )
    (section,) = summarise([read_run(folder) for folder in folders])
    assert set(section.table["condition"]) == {"exact", "noisy"}
    assert set(section.differences["condition"]) == {"exact", "noisy"}
    assert {row["name"] for row in section.conditions} == {"exact", "noisy"}

    rows = pd.concat([pd.read_parquet(part) for part in (folders[1] / "scores").glob("*.parquet")])
    rows = rows[rows["metric"] == "iou"]
    objects = rows.groupby(["sample_id", "instance_id", "condition"], observed=True)["value"].mean()
    m = objects.groupby("condition", observed=True).mean()
    nano_rows = section.corruptions.query("segmenter == 'sam-nano'")
    fog = nano_rows.query("corruption == 'fog' and severity == 5 and condition == 'noisy'").iloc[0]
    assert fog["value"] == pytest.approx(m["fog-5/noisy"])
    assert fog["relative"] == pytest.approx(m["fog-5/noisy"] / m["noisy"])
    wanted = m["fog-5/noisy"] - m["fog-5/exact"] - m["noisy"] + m["exact"]
    assert fog["interaction"] == pytest.approx(wanted, abs=1e-6)
    assert fog["interaction_low"] <= wanted <= fog["interaction_high"]
    together = nano_rows.query(
        "corruption == 'all' and severity == 1 and condition == 'exact'"
    ).iloc[0]
    assert together["value"] == pytest.approx((m["fog-1/exact"] + m["contrast-1/exact"]) / 2)
    assert np.isnan(together["interaction"])
    overall = section.corruptions.query("segmenter == 'sam-nano' and corruption == 'all'")
    overall = overall[overall["severity"].isna() & (overall["condition"] == "noisy")]
    mean = np.mean([m[f"{name}-{level}/noisy"] for name in ("fog", "contrast") for level in (1, 5)])
    assert overall["value"].item() == pytest.approx(mean)
    blind = section.corruptions.query("segmenter == 'ellipse'")
    assert np.allclose(blind["relative"], 1)
    assert np.allclose(blind["interaction"].dropna(), 0)

    titles = [table.title.rpartition("; ")[2] for table in terminal_tables([section])]
    assert titles[1:] == ["on corrupted images", "interaction of corruption and prompt"]
    assert any(table.title.endswith("by corruption") for table in page_tables(section))
    assert corruptions_csv([section]).count("\n") == 1 + len(section.corruptions)
    assert "corruptions" in section.figures()


def test_a_protocol_without_images_has_no_such_part(
    tmp_path: Path, small_dataset: MemoryDataset
) -> None:
    (folder,) = run_all(
        [load_protocol("gt-box")],
        [small_dataset],
        [build_ellipse(SegmenterOptions())],
        RunSettings(tmp_path),
    )
    (section,) = summarise([read_run(folder)])
    assert section.corruptions.empty
    assert "corruptions" not in section.figures()


def test_a_corruption_that_changes_the_size_is_refused() -> None:
    class Halved:
        family: ClassVar[str] = "halved"

        def __call__(self, image: Image, rng: np.random.Generator) -> Image:  # noqa: ARG002
            return image[::2]

    from samrobust.errors import DatasetError

    row = ImageCondition("half", Halved(), "half", 1)
    with pytest.raises(
        DatasetError, match="image 'half': the corruption must return uint8 of shape"
    ):
        corrupt(photograph((20, 30)), row, seed=0, dataset_key="d", sample_id="a")


def test_show_corrupts_the_photograph(shell: Shell) -> None:
    PillowImage.fromarray(photograph((71, 113))).save("photo.png")
    command = ("show", "--image", "photo.png", "--box", "20,10,69,49", "--trials", "1")
    assert shell(*command, "--segmenter", "ellipse", "--corrupt", "fog:3").code == 0
    assert "must be NAME:SEVERITY" in shell.refuses(*command, "--corrupt", "fog")
    assert "Is it defocus-blur, glass-blur" in shell.refuses(*command, "--corrupt", "blur:3")
    assert "severity must be 1 to 5" in shell.refuses(*command, "--corrupt", "fog:0")
    assert "jpeg-compression" in shell("ls", "corruptions").out
