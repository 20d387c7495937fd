from pathlib import Path
from typing import Any

import numpy as np
import numpy.typing as npt
import pytest
from PIL import Image as PillowImage

from samrobust.datasets import DATASETS, FOLDERS, GROUPS, open_dataset
from samrobust.datasets.folder import FolderDataset
from samrobust.datasets.images import read_image, read_mask
from samrobust.errors import DatasetError, NoObjectError
from samrobust.types import DatasetOptions
from tests.conftest import rectangle

MASK = rectangle((31, 47), (3, 4, 20, 25))


def _save(path: Path, values: npt.NDArray[Any]) -> None:
    path.parent.mkdir(parents=True, exist_ok=True)
    PillowImage.fromarray(values).save(path)


@pytest.fixture
def root(tmp_path: Path) -> Path:
    """Return a folder with two pairs: a JPEG with a 0/255 mask, a grey PNG with a 0/1 mask."""
    image = np.random.default_rng(0).integers(0, 256, (31, 47, 3), dtype=np.uint8)
    _save(tmp_path / "images/b.jpg", image)
    _save(tmp_path / "masks/b.png", MASK.astype(np.uint8) * 255)
    _save(tmp_path / "images/a.PNG", image[..., 0])
    _save(tmp_path / "masks/a.png", MASK.astype(np.uint8))
    return tmp_path


def _dataset(root: Path) -> FolderDataset:
    return FolderDataset(FOLDERS["folder"], DatasetOptions(root))


def test_pairs_are_found_by_stem_and_both_kinds_of_mask_read_right(root: Path) -> None:
    dataset = _dataset(root)
    assert dataset.ids() == ["a", "b"]
    for sample_id in dataset.ids():
        sample = dataset[sample_id]
        assert sample.image.shape == (31, 47, 3)
        assert sample.instances[0].instance_id == "0"
        assert np.array_equal(sample.instances[0].mask, MASK)


def test_the_fingerprint_follows_the_files(root: Path) -> None:
    before = _dataset(root).info.fingerprint
    assert _dataset(root).info.fingerprint == before
    _save(root / "images/b.jpg", np.zeros((31, 47, 3), np.uint8))
    assert _dataset(root).info.fingerprint != before


@pytest.mark.parametrize(
    ("values", "expected"),
    [
        (np.array([[0, 128, 129, 255]], np.uint8), [[False, False, True, True]]),
        (np.array([[0, 1]], np.uint8), [[False, True]]),
        (np.array([[True, False]]), [[True, False]]),
        (np.array([[[255] * 3, [0] * 3]], np.uint8), [[True, False]]),
        (np.array([[0, 254], [3, 250]], np.uint8), [[False, True], [False, True]]),  # of a JPEG
        (np.array([[[0, 0, 0, 255], [0, 0, 0, 0]]], np.uint8), [[True, False]]),  # a cut-out
        (np.array([[[9, 90, 7, 255], [8, 8, 99, 0]]], np.uint8), [[True, False]]),
        (np.array([[[70, 255], [80, 0]]], np.uint8), [[True, False]]),
    ],
)
def test_masks_are_read_by_their_values(
    tmp_path: Path,
    values: npt.NDArray[Any],
    expected: list[list[bool]],
) -> None:
    _save(tmp_path / "m.png", values)
    assert read_mask(tmp_path / "m.png").tolist() == expected


@pytest.mark.parametrize(
    ("values", "message"),
    [
        (np.array([[0, 2, 7]], np.uint8), "has the values 0, 2, 7; a mask has 0 and 1"),
        (np.arange(100, dtype=np.uint8)[None], "has the values 0, 1, 2, 3, 4, 5, …, 99"),
        (np.array([[0, 60000]], np.uint16), "has the values 0, 60000"),
        (np.array([[0, 200]], np.uint8), "has the values 0, 200"),
        (np.repeat([[0, 40, 255]], 9, 1).repeat(9, 0).astype(np.uint8), "the values 0, 40, 255"),
        (np.array([[[255, 255, 255, 0], [0, 0, 0, 255]]], np.uint8), "another in its transparency"),
        (np.array([[[0, 0, 0, 90], [0, 0, 0, 0]]], np.uint8), "has the values 0, 90"),
        (np.zeros((3, 4), np.uint8), "the mask is empty"),
        (np.array([[[255, 0, 0]]], np.uint8), "its colour channels differ"),
    ],
)
def test_other_masks_are_refused_with_their_values(
    tmp_path: Path,
    values: npt.NDArray[Any],
    message: str,
) -> None:
    _save(tmp_path / "m.png", values)
    with pytest.raises(DatasetError, match=message) as caught:
        read_mask(tmp_path / "m.png")
    assert "m.png" in str(caught.value)


@pytest.mark.parametrize(
    ("colours", "expected"),
    [
        ([255, 255, 255, 0, 0, 0], [True, False, False]),  # a palette that starts with white
        ([0, 0, 0, 255, 255, 255], [False, True, True]),
        ([0, 0, 0, 128, 0, 0], [False, True, True]),  # labels with colours of their own
    ],
)
def test_palettes_of_greys_are_greys_and_of_colours_are_labels(
    tmp_path: Path, colours: list[int], expected: list[bool]
) -> None:
    picture = PillowImage.fromarray(np.array([[0, 1, 1]], np.uint8))
    picture.putpalette(colours)
    picture.save(tmp_path / "m.png")
    assert read_mask(tmp_path / "m.png").tolist() == [expected]


def test_a_soft_edge_is_cut_in_the_middle_and_areas_of_grey_are_for_published_masks(
    tmp_path: Path,
) -> None:
    ramp = np.clip(np.arange(-300, 340, 8), 0, 255).astype(np.uint8)
    _save(tmp_path / "m.png", np.tile(ramp, (60, 1)))
    assert read_mask(tmp_path / "m.png").tolist() == [(ramp > 128).tolist()] * 60
    matte = np.tile(np.repeat(np.array([0, 100, 200, 255], np.uint8), 20), (60, 1))
    _save(tmp_path / "m.png", matte)
    with pytest.raises(DatasetError, match=r"has the values 0, 100, 200, 255; .*--labels"):
        read_mask(tmp_path / "m.png")
    assert np.array_equal(read_mask(tmp_path / "m.png", published=True), matte > 128)


def test_a_soft_float_mask_is_refused(tmp_path: Path) -> None:
    _save(tmp_path / "m.tif", np.array([[0, 0.6, 1]], np.float32))
    with pytest.raises(DatasetError, match=r"has the values 0\.0, 0\.6"):
        read_mask(tmp_path / "m.tif")


def test_pictures_of_more_than_8_bits_are_refused(tmp_path: Path) -> None:
    _save(tmp_path / "i.png", np.array([[0, 60000]], np.uint16))
    with pytest.raises(DatasetError, match="is an image of mode I;16, not of 8 bits per channel"):
        read_image(tmp_path / "i.png")


def test_ids_are_sorted_by_stem_and_hidden_files_are_none(root: Path) -> None:
    for kind, source in (("images", "b.jpg"), ("masks", "b.png")):
        content = (root / kind / source).read_bytes()
        (root / kind / f"b-1{Path(source).suffix}").write_bytes(content)
    (root / "images/._b.jpg").write_bytes(b"")
    assert _dataset(root).ids() == ["a", "b", "b-1"]


def test_images_without_masks_and_masks_without_images_are_named(root: Path) -> None:
    (root / "masks/b.png").rename(root / "masks/c.png")
    with pytest.raises(DatasetError, match=r"images/b\.jpg: has no mask in .*masks"):
        _dataset(root)
    (root / "images/b.jpg").unlink()
    with pytest.raises(DatasetError, match=r"masks/c\.png: has no image in .*images"):
        _dataset(root)
    for stem in "xyz":
        _save(root / f"images/{stem}.jpg", np.zeros((31, 47, 3), np.uint8))
    with pytest.raises(
        DatasetError, match=r"x\.jpg: has no mask in .*; the same is true of y\.jpg"
    ):
        _dataset(root)


def test_a_mask_of_another_size_is_named_with_both_sizes(root: Path) -> None:
    _save(root / "masks/a.png", np.ones((47, 31), np.uint8))
    with pytest.raises(DatasetError, match=r"a\.png: the mask is 31x47, its image 47x31"):
        _dataset(root)["a"]


def test_broken_and_missing_files_are_named(root: Path) -> None:
    whole = (root / "images/b.jpg").read_bytes()
    dataset = _dataset(root)
    (root / "images/b.jpg").write_bytes(whole[: len(whole) // 2])
    with pytest.raises(DatasetError, match=r"b\.jpg: cannot be decoded"):
        dataset["b"]
    (root / "images/b.jpg").write_bytes(b"not an image")
    with pytest.raises(DatasetError, match=r"b\.jpg: is not an image of a known format"):
        dataset["b"]
    (root / "images/b.jpg").unlink()
    with pytest.raises(DatasetError, match=r"b\.jpg: there is no such file"):
        dataset["b"]


def test_a_missing_folder_says_what_is_wanted_and_where_to_get_it(tmp_path: Path) -> None:
    with pytest.raises(DatasetError, match=r"DIS-VD/im: there is no such folder; needed: DIS5K"):
        FolderDataset(FOLDERS["dis-vd"], DatasetOptions(tmp_path))
    with pytest.raises(DatasetError, match=r"dis-vd needs --data-root: .*Hugging Face"):
        FolderDataset(FOLDERS["dis-vd"], DatasetOptions())
    (tmp_path / "images").mkdir()
    with pytest.raises(DatasetError, match=r"images: has no \.jpg"):
        _dataset(tmp_path)


def _turned(root: Path, orientation: int) -> None:
    """Note an orientation beside the pixels of the JPEG."""
    exif = PillowImage.Exif()
    exif[0x0112] = orientation
    pixels = np.random.default_rng(1).integers(0, 256, (31, 47, 3), dtype=np.uint8)
    PillowImage.fromarray(pixels).save(root / "images/b.jpg", exif=exif)


def test_a_quarter_turn_is_decided_by_the_size_of_the_mask(root: Path) -> None:
    _turned(root, 6)
    stored = _dataset(root)["b"].image
    assert stored.shape == (31, 47, 3)
    _save(root / "masks/b.png", MASK.T.astype(np.uint8))
    turned = _dataset(root)["b"].image
    np.testing.assert_array_equal(turned, np.rot90(stored, -1))


@pytest.mark.parametrize("orientation", [2, 3, 4])
def test_half_turns_and_mirror_images_need_a_word(root: Path, orientation: int) -> None:
    _turned(root, orientation)
    with pytest.raises(DatasetError, match=rf"EXIF orientation {orientation}.*--exif apply"):
        _dataset(root)["b"]
    kept, applied = (
        FolderDataset(FOLDERS["folder"], DatasetOptions(root, exif=exif))
        for exif in ("ignore", "apply")
    )
    flips: dict[int, Any] = {2: np.s_[:, ::-1], 3: np.s_[::-1, ::-1], 4: np.s_[::-1]}
    np.testing.assert_array_equal(applied["b"].image, kept["b"].image[flips[orientation]])
    assert kept.info.settings == {"exif": "ignore"}


def test_a_label_map_is_an_object_a_value_with_void_beside(root: Path) -> None:
    labels = np.zeros((31, 47), np.uint8)
    labels[2:9, 3:20], labels[12:20, 5:9], labels[25:28, 30:40] = 15, 4, 255
    palette = PillowImage.fromarray(labels)
    palette.putpalette([*range(256)] * 3)
    palette.save(root / "masks/a.png")
    _save(root / "masks/b.png", labels.astype(np.uint16) * 200)  # void is 255 alone
    dataset = FolderDataset(FOLDERS["folder"], DatasetOptions(root, labels=True))
    sample = dataset["a"]
    assert {each.instance_id: each.mask.sum() for each in sample.instances} == {"4": 32, "15": 119}
    assert [each.category for each in sample.instances] == ["4", "15"]
    assert sample.void is not None
    np.testing.assert_array_equal(sample.void, labels == 255)
    assert {each.instance_id for each in dataset["b"].instances} == {"800", "3000", "51000"}
    assert dataset.info.settings == {"labels": "True"}
    other = FolderDataset(FOLDERS["folder"], DatasetOptions(root, labels=True, void=(4, 255)))
    assert [each.instance_id for each in other["a"].instances] == ["15"]
    _save(root / "masks/b.png", np.full((31, 47), 255, np.uint8))
    with pytest.raises(NoObjectError, match=r"b\.png: has no labels except background and void"):
        dataset["b"]


def test_a_folder_of_masks_is_an_object_a_file(root: Path) -> None:
    (root / "masks/b.png").unlink()
    for name, mask in (("left", MASK), ("right", MASK[:, ::-1])):
        _save(root / f"masks/b/{name}.png", mask.astype(np.uint8) * 255)
    sample = _dataset(root)["b"]
    assert [each.instance_id for each in sample.instances] == ["left", "right"]
    assert np.array_equal(sample.instances[1].mask, MASK[:, ::-1])


def test_what_is_passed_over_is_named_and_sub_folders_are_read_when_asked(root: Path) -> None:
    for kind, source in (("images", "b.jpg"), ("masks", "b.png")):
        content = (root / kind / source).read_bytes()
        (root / kind / "sub").mkdir()
        (root / kind / "sub" / source).write_bytes(content)
    (root / "images/c.gif").write_bytes(b"GIF89a")
    plain = _dataset(root)
    assert plain.ids() == ["a", "b"]
    assert len(plain.notes) == 2
    assert "images: 2 files are not read: c.gif, sub/b.jpg; only .jpg" in plain.notes[0]
    deep = FolderDataset(FOLDERS["folder"], DatasetOptions(root, recursive=True))
    assert deep.ids() == ["a", "b", "sub/b"]
    assert "images: 1 file is not read: c.gif" in deep.notes[0]
    assert len(deep.notes) == 1


def test_a_file_of_the_same_size_changes_the_fingerprint(root: Path) -> None:
    _save(root / "masks/b.bmp", MASK.astype(np.uint8) * 255)
    (root / "masks/b.png").unlink()
    before = _dataset(root).info.fingerprint
    assert _dataset(root).info.fingerprint == before
    size = (root / "masks/b.bmp").stat().st_size
    _save(root / "masks/b.bmp", MASK[::-1].astype(np.uint8) * 255)
    assert (root / "masks/b.bmp").stat().st_size == size
    assert _dataset(root).info.fingerprint != before


def test_two_files_of_one_stem_and_a_split_are_refused(root: Path) -> None:
    with pytest.raises(DatasetError, match="folder takes no --split, got val"):
        open_dataset("folder", root=root, split="val")
    (root / "images/b.png").write_bytes((root / "images/a.PNG").read_bytes())
    with pytest.raises(DatasetError, match=r"has the same stem as b\.jpg"):
        _dataset(root)


def test_every_published_folder_is_registered_in_its_group() -> None:
    published = {name for name, row in FOLDERS.items() if row.published}
    assert published == {name for members in GROUPS.values() for name in members}
    assert set(FOLDERS) <= set(DATASETS.names())


@pytest.mark.parametrize("name", [name for name, row in FOLDERS.items() if row.published])
def test_the_layout_of_hqseg_44k_is_read(photographs: Path, name: str) -> None:
    dataset = DATASETS.load(name)(DatasetOptions(photographs / "hq_layout"))
    assert len(dataset.ids()) == 8
    sample = dataset[dataset.ids()[0]]
    assert 0.001 < sample.instances[0].mask.mean() < 0.95
    assert name in GROUPS[dataset.info.group]
