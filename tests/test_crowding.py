"""Classes of objects by what is around them, by their size in the frame and by supergroup."""

import json
from pathlib import Path

import numpy as np
import pyarrow.parquet as pq
import pytest
from PIL import Image as PillowImage

from samrobust import evaluate, read_run, summarise
from samrobust.datasets.coco import CocoDataset
from samrobust.evaluation.prompts import draw_sample
from samrobust.protocol import load_protocol
from samrobust.report.statistics import classes_of
from samrobust.types import DatasetOptions, Instance, Sample
from tests.conftest import MemoryDataset, rectangle

PROTOCOL = load_protocol("gt-box")


def _crowd() -> Sample:
    """Return a large object with four inside it, one of them of one pixel, and one beside."""
    size_hw = (60, 100)
    boxes = [
        (0, 0, 59, 59),
        (10, 10, 19, 19),
        (11, 11, 18, 18),  # in the one before, about the same centre
        (59, 59, 59, 59),  # one pixel, at the corner of the first
        (50, 0, 69, 5),  # its centre is at x = 59.5, outside
        (80, 10, 99, 59),
    ]
    instances = [Instance(str(number), rectangle(size_hw, box)) for number, box in enumerate(boxes)]
    return Sample("crowd", np.zeros((*size_hw, 3), np.uint8), instances)


def test_others_have_their_centre_in_the_exact_box() -> None:
    rows = draw_sample(_crowd(), "memory", [PROTOCOL]).objects
    assert [row.others for row in rows] == [3, 1, 1, 0, 0, 0]
    assert {row.image_side for row in rows} == {100}


def test_objects_are_in_classes_by_crowding_and_size_in_the_frame(tmp_path: Path) -> None:
    (run,) = evaluate("ellipse", MemoryDataset([_crowd()]), "gt-box", results=tmp_path)
    classes = {
        key: set(run.objects["instance_id"][mask]) for key, mask in classes_of(run.objects).items()
    }
    assert classes["crowding", "alone"] == {"3", "4", "5"}
    assert classes["crowding", "1-2-others"] == {"1", "2"}
    assert classes["crowding", "3-others-or-more"] == {"0"}
    # sides of 60, 10, 8, 1, 11 and 31 pixels in an image of 100 become 10.24 times as many
    assert classes["frame-size", "to-32"] == {"3"}
    assert classes["frame-size", "32-to-128"] == {"1", "2", "4"}
    assert classes["frame-size", "128-to-384"] == {"5"}
    assert classes["frame-size", "from-384"] == {"0"}
    assert not any(kind == "supergroup" for kind, _ in classes)
    (section,) = summarise([run])
    rows = section.breakdown[section.breakdown["kind"] == "crowding"]
    assert rows["n_objects"].tolist() == [3, 2, 1]


def test_runs_that_do_not_store_it_have_no_such_classes(tmp_path: Path) -> None:
    (run,) = evaluate("ellipse", MemoryDataset([_crowd()]), "gt-box", results=tmp_path)
    (part,) = (run.folder / "objects").iterdir()
    table = pq.read_table(part)
    pq.write_table(table.drop_columns(["others", "image_side", "supercategory"]), part)
    kinds = {kind for kind, _ in classes_of(read_run(run.folder).objects)}
    assert kinds == {"size", "thinness"}


@pytest.mark.parametrize("group", ["animal", None, 3])
def test_coco_names_the_supergroup_where_it_has_one(tmp_path: Path, group: object) -> None:
    (tmp_path / "images").mkdir()
    PillowImage.new("RGB", (20, 10)).save(tmp_path / "images/a.png")
    square = [1, 1, 8, 1, 8, 8, 1, 8]
    table = {
        "images": [{"id": 1, "file_name": "a.png", "height": 10, "width": 20}],
        "categories": [{"id": 5, "name": "cat", "supercategory": group}, {"id": 6, "name": "cup"}],
        "annotations": [
            {"id": number, "image_id": 1, "category_id": 4 + number, "segmentation": [square]}
            for number in (1, 2)
        ],
    }
    (tmp_path / "a.json").write_text(json.dumps(table))
    dataset = CocoDataset(
        DatasetOptions(images=tmp_path / "images", annotations=tmp_path / "a.json")
    )
    instances = dataset["1"].instances
    assert [one.category for one in instances] == ["cat", "cup"]
    assert [one.supercategory for one in instances] == ["" if group is None else str(group), ""]
    (run,) = evaluate("ellipse", dataset, "gt-box", results=tmp_path / "results")
    groups = [name for kind, name in classes_of(run.objects) if kind == "supergroup"]
    assert groups == ([] if group is None else [str(group)])
    tables = summarise([run])[0].breakdown["kind"]
    assert ("supergroup" in set(tables)) == (group is not None)
