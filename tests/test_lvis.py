"""Average precision by LVIS's federated rules, as the package lvis computes it."""

import json
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from PIL import Image as PillowImage

from samrobust import read_run, summarise
from samrobust.datasets.coco import CocoDataset, encode_mask
from samrobust.errors import DatasetError
from samrobust.report.average_precision import average_precisions
from samrobust.report.coco_results import detection_results, sizes_of
from samrobust.runs.store import read_detections
from samrobust.types import DatasetOptions
from tests.conftest import Shell
from tests.detectors import drawn_detections

NAMES = {
    "ap": "AP",
    "ap_50": "AP50",
    "ap_75": "AP75",
    "ap_small": "APs",
    "ap_medium": "APm",
    "ap_large": "APl",
    "ap_rare": "APr",
    "ap_common": "APc",
    "ap_frequent": "APf",
}
"""Columns of ours, and what lvis calls them."""
N_CATEGORIES = 9


@pytest.fixture
def lvis_eval(monkeypatch: pytest.MonkeyPatch) -> Any:  # noqa: ANN401
    """Return lvis' evaluation; it needs a name that numpy 2 has no more."""
    module = pytest.importorskip("lvis", reason="pip install --no-deps lvis==0.5.3")
    monkeypatch.setattr(np, "float", float, raising=False)
    return module.LVISEval


@pytest.fixture(scope="module")
def root(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """Return a folder as LVIS's: 8 images in two folders, named by address, and its annotations.

    Every image has negatives, categories not annotated exhaustively, and others that nobody looked
    for.
    """
    root = tmp_path_factory.mktemp("lvis")
    rng = np.random.default_rng(0)
    images: list[Any] = []
    annotations: list[Any] = []
    for number in range(1, 9):
        width, height = 181 + 10 * number, 151
        folder = "val2017" if number % 2 else "train2017"
        (root / folder).mkdir(exist_ok=True)
        pixels = rng.integers(0, 256, (height, width, 3), dtype=np.uint8)
        PillowImage.fromarray(pixels).save(root / folder / f"{number:012}.png")
        some = rng.permutation(N_CATEGORIES) + 1
        present, absent, partly = some[:4], some[4:6], some[[0, 6]]
        images.append(
            {
                "id": number,
                "coco_url": f"http://images.example/{folder}/{number:012}.png",
                "width": width,
                "height": height,
                "neg_category_ids": absent.tolist(),
                "not_exhaustive_category_ids": partly.tolist(),
            }
        )
        for side in (1, 9, 25, 40, 60, 90, 120, 140):
            x, y = rng.integers(0, [width - side, height - side]).tolist()
            corners = [x, y, x + side, y, x + side, y + 0.8 * side, x + 0.5 * side, y + side]
            corners += [x, y + side]
            annotations.append(
                {
                    "id": len(annotations) + 1,
                    "image_id": number,
                    "category_id": int(rng.choice(present)),
                    "bbox": [x, y, side, side],
                    "area": side * side * 0.95,
                    "segmentation": [corners],
                }
            )
    categories = [
        {"id": number, "name": f"thing {number}", "frequency": "rcf"[number % 3]}
        for number in range(1, N_CATEGORIES + 1)
    ]
    table = {"images": images, "annotations": annotations, "categories": categories}
    (root / "lvis.json").write_text(json.dumps(table))
    boxes = drawn_detections(root / "lvis.json")
    for number in (3,) * 400 + tuple(range(1, 9)) * 5:  # more than count in one of the images
        x, y = rng.integers(0, 100, 2).tolist()
        box, category = [x, y, 50, 40], int(rng.integers(1, N_CATEGORIES + 1))
        score = round(float(rng.uniform(0, 0.9)), 2)
        boxes.append({"image_id": number, "category_id": category, "bbox": box, "score": score})
    (root / "boxes.json").write_text(json.dumps(boxes))
    return root


def _theirs(lvis_eval: Any, root: Path, results: Path) -> list[float]:  # noqa: ANN401
    evaluation = lvis_eval(str(root / "lvis.json"), str(results), "segm")
    evaluation.run()
    values = [float(evaluation.get_results()[name]) for name in NAMES.values()]
    assert min(values) > 0
    assert len({*values}) == len(values)
    return values


def test_average_precision_is_that_of_lvis(
    shell: Shell,
    root: Path,
    lvis_eval: Any,  # noqa: ANN401
) -> None:
    data = ("--dataset", "coco", "--images", root, "--annotations", root / "lvis.json")
    result = shell("eval", "--boxes", root / "boxes.json", *data, "--segmenter", "ellipse")
    assert result.code == 0, result.err
    assert "LVIS's average precision" in " ".join(result.out.split())
    (run,) = Path("results").iterdir()
    assert shell("export", "coco", run, "--out", "masks.json").code == 0
    (section,) = summarise([read_run(run)])
    (row,) = section.average_precision.to_dict("records")
    assert [row[name] for name in NAMES] == _theirs(lvis_eval, root, Path("masks.json"))
    assert 0 < row["boundary_ap"] < row["ap"]

    # scores that are equal, masks without a pixel, another order
    detections, targets = read_detections(run)
    rng = np.random.default_rng(1)
    detections = detections.sample(frac=1, random_state=1)
    detections["score"] = detections["score"].round(1)
    sizes, counts = sizes_of(targets), detections["counts"].tolist()
    for place in rng.choice(len(detections), 30, replace=False):
        size_hw = sizes[detections["sample_id"].iloc[place]]
        counts[place] = encode_mask(np.zeros(size_hw, np.bool_))
    detections["counts"] = counts
    Path("masks.json").write_text(json.dumps(detection_results(detections, sizes)))
    ours = average_precisions(detections, targets)
    assert [ours[name] for name in NAMES] == _theirs(lvis_eval, root, Path("masks.json"))
    assert {*average_precisions(detections.head(0), targets).values()} == {0.0}


@pytest.mark.parametrize(
    ("changed", "message"),
    [
        ({"neg_category_ids": None}, "image 3: neg_category_ids must be a list of ids, got None"),
        ({"neg_category_ids": ["cat"]}, "image 3: neg_category_ids: its id must be a whole number"),
    ],
)
def test_categories_of_an_image_are_ids(
    root: Path, tmp_path: Path, changed: dict[str, Any], message: str
) -> None:
    table = json.loads((root / "lvis.json").read_text())
    table["images"][2].update(changed)
    with pytest.raises(DatasetError, match=message):
        _dataset(root, tmp_path, table)


def test_some_of_what_lvis_says_is_not_enough(root: Path, tmp_path: Path) -> None:
    table = json.loads((root / "lvis.json").read_text())
    del table["categories"][1]["frequency"]
    with pytest.raises(DatasetError, match="category 2: frequency must be r, c or f, got None"):
        _dataset(root, tmp_path, table)
    del table["images"][4]["not_exhaustive_category_ids"]
    with pytest.raises(DatasetError, match="image 5 has no not_exhaustive_category_ids"):
        _dataset(root, tmp_path, table)


def _dataset(root: Path, tmp_path: Path, table: Any) -> CocoDataset:  # noqa: ANN401
    path = tmp_path / "annotations.json"
    path.write_text(json.dumps(table))
    return CocoDataset(DatasetOptions(images=root, annotations=path))
