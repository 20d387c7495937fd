import dataclasses
import json
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from PIL import Image as PillowImage
from pycocotools import mask as rle
from pycocotools.coco import COCO

from samrobust.datasets.coco import CocoDataset, decode_mask
from samrobust.errors import DatasetError, NoObjectError, UnknownNameError
from samrobust.types import DatasetOptions, Mask
from tests.conftest import rectangle

SIZE_HW = (40, 61)
MASK = rectangle(SIZE_HW, (3, 4, 20, 25))
POLYGON = [[3, 4, 21, 4, 21, 26, 3, 26]]
COMPRESSED = rle.encode(np.asfortranarray(MASK.astype(np.uint8)))
COMPRESSED["counts"] = COMPRESSED["counts"].decode()
UNCOMPRESSED = {"size": list(SIZE_HW), "counts": [0, 0]}


def _runs(mask: Mask) -> dict[str, Any]:
    flat = np.concatenate([[False], mask.T.ravel(), [not mask.T.ravel()[-1]]])
    edges = np.flatnonzero(flat[1:] != flat[:-1])
    return {"size": list(SIZE_HW), "counts": np.diff(np.concatenate([[0], edges])).tolist()}


def _table() -> dict[str, Any]:
    def annotation(number: int, image: int, segmentation: object, crowd: int = 0) -> dict[str, Any]:
        return {
            "id": number,
            "image_id": image,
            "category_id": 2,
            "iscrowd": crowd,
            "segmentation": segmentation,
        }

    return {
        "images": [{"id": i, "file_name": f"{i:03d}.png"} for i in (9, 10, 11)],
        "categories": [{"id": 2, "name": "cup"}],
        "annotations": [
            annotation(70, 10, COMPRESSED),
            annotation(8, 10, POLYGON),
            annotation(9, 10, _runs(MASK)),
            annotation(5, 9, POLYGON),
            annotation(6, 9, _runs(MASK), crowd=1),
            annotation(7, 11, _runs(MASK), crowd=1),
        ],
    }


@pytest.fixture
def root(tmp_path: Path) -> Path:
    (tmp_path / "val").mkdir()
    (tmp_path / "annotations").mkdir()
    for number in (9, 10, 11):
        image = np.full((*SIZE_HW, 3), number, np.uint8)
        PillowImage.fromarray(image).save(tmp_path / f"val/{number:03d}.png")
    _write(tmp_path, _table())
    return tmp_path


def _write(root: Path, table: object) -> None:
    (root / "annotations/instances_val.json").write_text(json.dumps(table))


def _dataset(root: Path) -> CocoDataset:
    return CocoDataset(DatasetOptions(root, "val"))


def test_polygons_and_both_kinds_of_rle_give_the_mask_and_crowds_are_left_out(root: Path) -> None:
    dataset = _dataset(root)
    assert dataset.ids() == ["9", "10"]
    sample = dataset["10"]
    assert [instance.instance_id for instance in sample.instances] == ["8", "9", "70"]
    assert {instance.category for instance in sample.instances} == {"cup"}
    for instance in sample.instances:
        assert np.array_equal(instance.mask, MASK)
    assert len(dataset["9"].instances) == 1


def test_it_reads_what_pycocotools_reads(photographs: Path) -> None:
    file = photographs / "coco128/annotations/instances_train2017.json"
    reference = COCO(str(file))
    dataset = CocoDataset(DatasetOptions(photographs / "coco128", "train2017"))
    for sample_id in dataset.ids()[:6]:
        ids = reference.getAnnIds(imgIds=int(sample_id), iscrowd=False)
        masks = {str(row["id"]): reference.annToMask(row) > 0 for row in reference.loadAnns(ids)}
        found = {instance.instance_id: instance.mask for instance in dataset[sample_id].instances}
        assert set(found) == set(masks)
        assert all(np.array_equal(found[key], masks[key]) for key in found)


@pytest.mark.parametrize(
    ("change", "message"),
    [
        ({"annotations": [{"id": 1, "image_id": 4, "segmentation": []}]}, "1 is of image 4, which"),
        ({"annotations": [{"id": 1}]}, "annotation 1 has no segmentation"),
        ({"annotations": [{"id": 1, "image_id": 9, "segmentation": None}]}, "1 has no segmentat"),
        ({"annotations": [{"id": 1, "caption": "a cup"}]}, "it is a file of captions, not of"),
        ({"annotations": [{"id": 1, "segments_info": []}]}, "it is a file of panoptic segment"),
        ({"annotations": [{"id": 1, "keypoints": []}]}, "it is a file of keypoints without"),
        ({"images": 3}, "it has no list 'images'"),
        ({"annotations": ["x"]}, "row 1 of 'annotations' is 'x', not an object"),
        ({"images": [{"id": i, "file_name": "a"} for i in (9, 9)]}, "two images have the id 9"),
        ({"images": [{"id": "01", "file_name": "a"}]}, "image 1: its id must be .*, got '01'"),
        ({"images": [{"id": 1.2, "file_name": "a"}]}, "its id must be a whole number, got 1.2"),
        ({"images": [{"id": "cup", "file_name": "a"}]}, "must be a whole number, got 'cup'"),
        ({"annotations": [{**_table()["annotations"][0], "iscrowd": "0"}]}, "iscrowd must be 0 or"),
        ({"annotations": [{**_table()["annotations"][0], "iscrowd": 2}]}, "must be 0 or 1, got 2"),
        ({"annotations": []}, "no image has an object"),
        ({"annotations": _table()["annotations"][:1] * 2}, "two annotations have the id 70"),
        ({"images": [{"id": 9, "file_name": 3}]}, "is not a COCO instance file"),
        ({"images": [{"id": float("inf"), "file_name": "a"}]}, "is not a COCO instance file"),
        ({"images": [{"id": i, "file_name": "../x.png"} for i in (9, 10)]}, "leaves the data root"),
        ({"images": [{"id": i, "file_name": "/x.png"} for i in (9, 10)]}, "leaves the data root"),
    ],
)
def test_a_wrong_json_is_one_line_at_the_start(
    root: Path, change: dict[str, Any], message: str
) -> None:
    _write(root, {**_table(), **change})
    with pytest.raises(DatasetError, match=message):
        _dataset(root)


@pytest.mark.parametrize(
    ("segmentation", "message"),
    [
        ([[0.1, 0.2, 0.9, 0.2, 0.9, 0.8]], "fractions of the image, must be pixels"),
        ({"size": [61, 40], "counts": [0, 40 * 61]}, "the mask is 40x61, the image 61x40"),
        ({"size": list(SIZE_HW)}, "RLE must have a size and counts"),
        ([[1, 2, 3, 4, 5, 6, 7]], "a polygon must be a list"),
        ([[1, 2, 3, float("nan"), 5, 6]], "x and y of a polygon must be"),
        ({"size": list(SIZE_HW), "counts": [3, 4]}, "run lengths do not add up"),
        ({"size": list(SIZE_HW), "counts": [-4, 40 * 61 + 4]}, "run lengths do not add up"),
        ({"size": list(SIZE_HW), "counts": "zzzz"}, "counts are not run lengths"),
        (3, "cannot be decoded"),
    ],
)
def test_a_wrong_mask_names_file_annotation_and_image(
    root: Path, segmentation: object, message: str
) -> None:
    table = _table()
    table["annotations"] = [{"id": 77, "image_id": 9, "segmentation": segmentation}]
    _write(root, table)
    with pytest.raises(DatasetError, match=message) as caught:
        _dataset(root)["9"]
    assert "annotation 77 of 009.png" in str(caught.value)


@pytest.mark.parametrize(
    "segmentation",
    [[], [[1, 2]], [[12, 5, 12, 10]], {"size": list(SIZE_HW), "counts": [40 * 61]}],
    ids=["nothing", "a point", "a line", "an empty run"],
)
def test_an_object_without_area_is_left_out_and_the_others_stay(
    root: Path, segmentation: object
) -> None:
    table = _table()
    table["annotations"].append({"id": 77, "image_id": 9, "segmentation": segmentation})
    _write(root, table)
    sample = _dataset(root)["9"]
    assert [each.instance_id for each in sample.instances] == ["5"]
    (reason,) = sample.left_out
    assert reason.endswith("annotation 77 of 009.png: the mask has no area")
    with pytest.raises(DatasetError, match=r"annotation 77 of 009\.png: the mask has no area"):
        CocoDataset(DatasetOptions(root, "val", strict=True))["9"]
    table["annotations"] = table["annotations"][-1:]
    _write(root, table)
    with pytest.raises(NoObjectError, match=r"annotation 77 of 009\.png: the mask has no area"):
        _dataset(root)["9"]


def test_a_piece_without_area_is_dropped_and_a_pixel_at_the_corner_stays(root: Path) -> None:
    table = _table()
    corner = [[0, 0, 1, 0, 1, 1, 0, 1]]
    table["annotations"] = [
        {"id": 1, "image_id": 9, "segmentation": [[12, 5, 12, 10], *POLYGON]},
        {"id": 2, "image_id": 9, "segmentation": corner},
    ]
    _write(root, table)
    whole, pixel = _dataset(root)["9"].instances
    assert np.array_equal(whole.mask, MASK)
    assert pixel.mask.sum() == pixel.mask[0, 0] == 1


def test_ids_may_be_text_and_crowds_be_true(root: Path) -> None:
    table = _table()
    for row in table["images"]:
        row["id"] = str(row["id"])
    for row in table["annotations"]:
        row["iscrowd"] = bool(row["iscrowd"])
        row["image_id"] = float(row["image_id"])
    _write(root, table)
    dataset = _dataset(root)
    assert dataset.ids() == ["9", "10"]
    assert dataset.notes[0].endswith("2 crowds (iscrowd 1) left out")


def test_own_layouts_categories_and_areas(root: Path) -> None:
    table = _table()
    table["categories"].append({"id": 3, "name": "spoon"})
    table["annotations"][1]["category_id"] = 3
    content = "\ufeff" + json.dumps(table)
    (root / "labels.json").write_text(content, encoding="utf-8")
    own = DatasetOptions(images=root / "val", annotations=root / "labels.json")
    assert CocoDataset(own).info.key == "coco/labels"
    spoons = CocoDataset(dataclasses.replace(own, categories=("spoon",)))
    assert spoons.ids() == ["10"]
    assert [each.instance_id for each in spoons["10"].instances] == ["8"]
    assert spoons.info.settings == {"categories": "('spoon',)"}
    with pytest.raises(UnknownNameError, match=r"unknown category 'spon'\. Did you mean 'spoon'"):
        CocoDataset(dataclasses.replace(own, categories=("spon",)))
    large = CocoDataset(dataclasses.replace(own, min_area=int(MASK.sum()) + 1))
    with pytest.raises(NoObjectError, match="no object has --min-area pixels"):
        large["9"]
    with pytest.raises(DatasetError, match="coco needs --images FOLDER and --annotations FILE"):
        CocoDataset(dataclasses.replace(own, annotations=None))
    missing = dataclasses.replace(own, images=root / "none")
    with pytest.raises(DatasetError) as caught:
        CocoDataset(missing)
    assert "MS-COCO" not in str(caught.value)


def test_lvis_names_its_images_by_their_address(root: Path) -> None:
    table = _table()
    (root / "train2017").mkdir()
    (root / "val/010.png").rename(root / "train2017/010.png")
    for row in table["images"]:
        folder = "train2017" if row["id"] == 10 else "val"
        row["coco_url"] = f"http://images.example/{folder}/{row.pop('file_name')}"
    _write(root, table)
    assert len(_dataset(root)["10"].instances) == 3
    assert len(_dataset(root)["9"].instances) == 1


def test_an_image_of_another_size_than_listed_is_named_with_both(root: Path) -> None:
    table = _table()
    for image in table["images"]:
        image.update(width=610, height=400)
    _write(root, table)
    with pytest.raises(DatasetError, match=r"009\.png: is 61x40, instances_val\.json says 610x400"):
        _dataset(root)["9"]


def test_more_objects_than_memory_holds_are_refused(
    root: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr("samrobust.datasets.coco.MAX_MASK_BYTES", 3 * 40 * 61 - 1)
    assert len(_dataset(root)["9"].instances) == 1
    with pytest.raises(DatasetError, match=r"010\.png is 61x40 and has 3 objects, whose masks"):
        _dataset(root)["10"]


def test_run_lengths_are_those_that_pycocotools_packs() -> None:
    rng = np.random.default_rng(0)
    for density in (0.02, 0.5, 0.999):
        mask = rng.random(SIZE_HW) < density
        coded = rle.encode(np.asfortranarray(mask.astype(np.uint8)))
        coded["counts"] = coded["counts"].decode()
        assert np.array_equal(decode_mask(coded, SIZE_HW, "here"), mask)


def test_the_fingerprint_follows_the_images_too(root: Path) -> None:
    before = _dataset(root).info.fingerprint
    PillowImage.fromarray(np.zeros((1, 1, 3), np.uint8)).save(root / "val/009.png")
    assert _dataset(root).info.fingerprint != before


def test_what_is_missing_is_said_with_what_is_wanted(root: Path) -> None:
    with pytest.raises(DatasetError, match="coco needs --data-root and --split: ROOT/<split>"):
        CocoDataset(DatasetOptions(root))
    with pytest.raises(DatasetError, match=r"val2017: there is no such folder; .*cocodataset\.org"):
        CocoDataset(DatasetOptions(root, "val2017"))
    (root / "val/009.png").unlink()
    with pytest.raises(DatasetError, match=r"009\.png: there is no such file"):
        _dataset(root)["9"]
    (root / "annotations/instances_val.json").unlink()
    with pytest.raises(DatasetError, match=r"instances_val\.json: cannot be read: No such file"):
        _dataset(root)
