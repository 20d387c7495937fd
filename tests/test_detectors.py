"""Boxes of a detector: masks of all, scores of those that match, average precision as COCO's."""

import contextlib
import io
import json
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from PIL import Image as PillowImage
from pycocotools import mask as coco
from pycocotools.coco import COCO
from pycocotools.cocoeval import COCOeval

from samrobust import evaluate, read_run, summarise
from samrobust.datasets.coco import CocoDataset
from samrobust.datasets.scenes import build_scenes
from samrobust.degradations.human import box_loss, human_percentile
from samrobust.errors import PromptError, ProtocolError
from samrobust.evaluation.prompts import draw_prompts, draw_sample
from samrobust.metrics.overlap import boundary_iou, iou
from samrobust.prompt_files import load_detections
from samrobust.report.average_precision import ERRORS, _BoundaryEval
from samrobust.report.columns import PRECISIONS
from samrobust.runs.store import read_detections
from samrobust.types import DatasetOptions, Floats
from tests.conftest import Shell, blobs
from tests.detectors import drawn_detections


@pytest.fixture(scope="module")
def folder(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """Return a folder of COCO's format: 6 images of odd sizes, small and large objects, a crowd."""
    root = tmp_path_factory.mktemp("coco")
    (root / "val").mkdir()
    (root / "annotations").mkdir()
    rng = np.random.default_rng(0)
    images: list[Any] = []
    annotations: list[Any] = []
    for number in range(1, 7):
        width, height = 121 + 10 * number, 97
        image = rng.integers(0, 256, (height, width, 3), dtype=np.uint8)
        PillowImage.fromarray(image).save(root / f"val/{number:012}.png")
        images.append(
            {"id": number, "file_name": f"{number:012}.png", "width": width, "height": height}
        )
        for x, y, w, h in ((3, 4, 30, 25), (40, 20, 60, 70), (100, 0, 21, 12), (10, 50, 9, 11)):
            corners = [x, y, x + w, y, x + w, y + h / 2, x + w / 2, y + h, x, y + h]
            annotations.append(
                {
                    "id": len(annotations) + 1,
                    "image_id": number,
                    "category_id": int(rng.choice([3, 8])),
                    "iscrowd": 0,
                    "bbox": [x, y, w, h],
                    "area": w * h * 0.875,
                    "segmentation": [corners],
                }
            )
        mask = np.zeros((height, width), np.uint8, order="F")
        mask[60:90, 102:120] = 1
        counts = np.diff(np.flatnonzero(np.diff(np.r_[0, mask.ravel(order="F"), 0])))
        first = int(mask.ravel(order="F").argmax())
        runs = [first, *counts.tolist()]
        runs.append(mask.size - sum(runs))
        annotations.append(
            {
                "id": len(annotations) + 1,
                "image_id": number,
                "category_id": 3,
                "iscrowd": 1,
                "bbox": [102, 60, 18, 30],
                "area": 540,
                "segmentation": {"size": [height, width], "counts": runs},
            }
        )
    categories = [{"id": 3, "name": "cat"}, {"id": 8, "name": "cup"}]
    table = {"images": images, "annotations": annotations, "categories": categories}
    (root / "annotations/instances_val.json").write_text(json.dumps(table))
    found = drawn_detections(root / "annotations/instances_val.json", noise=0.15)
    on_crowd = {"image_id": 1, "category_id": 3, "bbox": [103, 61, 16, 28], "score": 0.99}
    (root / "boxes.json").write_text(json.dumps([*found, on_crowd]))
    return root


def _dataset(folder: Path) -> CocoDataset:
    return CocoDataset(DatasetOptions(root=folder, split="val"))


def _theirs(folder: Path, results: Path, images: list[int] | None = None) -> Floats:
    """Return pycocotools' own evaluation of a file of results."""
    with contextlib.redirect_stdout(io.StringIO()):
        truth = COCO(str(folder / "annotations/instances_val.json"))
        evaluation = COCOeval(truth, truth.loadRes(str(results)), "segm")
        evaluation.params.imgIds = images or sorted(truth.imgs)
        evaluation.evaluate()
        evaluation.accumulate()
        evaluation.summarize()
    stats: Floats = evaluation.stats[:6]
    return np.where(stats < 0, np.nan, stats)


def test_average_precision_is_that_of_the_exported_file(
    shell: Shell, folder: Path, caplog: pytest.LogCaptureFixture
) -> None:
    data = ("--dataset", "coco", "--data-root", folder, "--split", "val")
    result = shell("eval", "--boxes", folder / "boxes.json", *data, "--segmenter", "ellipse")
    assert result.code == 0, result.err
    assert "average precision" in result.out
    (run,) = (Path("results")).iterdir()
    assert shell("export", "coco", run, "--out", "masks.json").code == 0
    (section,) = summarise([read_run(run)])
    (row,) = section.average_precision.to_dict("records")
    ours = [row[statistic.column] for statistic in PRECISIONS[:6]]
    np.testing.assert_array_equal(ours, _theirs(folder, Path("masks.json")))
    assert 0 < row["boundary_ap"] < row["ap"] < 1
    assert np.isnan(row["ap_large"])
    detections = json.loads((folder / "boxes.json").read_text())
    assert row["n_detections"] == len(detections)
    exported = json.loads(Path("masks.json").read_text())
    assert sorted(each["score"] for each in exported) == sorted(d["score"] for d in detections)
    shell("eval", "--boxes", folder / "boxes.json", *data, "--segmenter", "ellipse")
    assert "all 6 images were stored already" in caplog.text
    written = shell("report", "--out", "report")
    assert written.code == 0, written.err
    assert (Path("report") / "average-precision.csv").exists()
    assert (Path("report") / "detector-error.csv").exists()


def test_the_boundary_takes_the_lower_of_both_ious() -> None:
    rng = np.random.default_rng(2)
    masks = [blobs(rng, (61, 40)) for _ in range(5)]
    rows = [
        {"segmentation": coco.encode(np.asfortranarray(mask, np.uint8)), "score": 0.1 * n}
        for n, mask in enumerate(masks)
    ]
    found = rows[:3]
    truth = [{**row, "iscrowd": 0} for row in rows[3:]]
    evaluation = _BoundaryEval(iouType="segm")
    evaluation.params.imgIds, evaluation.params.catIds = [1], [1]
    evaluation._gts, evaluation._dts = {(1, 1): truth}, {(1, 1): found}
    ours = evaluation.computeIoU(1, 1)
    tensors = torch.from_numpy(np.stack(masks[2::-1]))  # by score, the highest first
    for place, target in enumerate(map(torch.from_numpy, masks[3:])):
        lower = torch.minimum(iou(tensors, target), boundary_iou(tensors, target))
        np.testing.assert_allclose(ours[:, place], lower.numpy())


def _boxes(tmp_path: Path, rows: list[Any]) -> Path:
    path = tmp_path / "few.json"
    path.write_text(json.dumps(rows))
    return path


def test_the_highest_score_chooses_first_among_objects_of_its_category(
    folder: Path, tmp_path: Path
) -> None:
    dataset = _dataset(folder)
    sample = dataset["2"]
    categories = {one.instance_id: one.category for one in sample.instances}
    number = {name: 3 if name == "cat" else 8 for name in ("cat", "cup")}
    small, large = (sample.instances[place].instance_id for place in (0, 1))
    right, wrong = number[categories[small]], 11 - number[categories[small]]

    def row(category: int, bbox: list[float], score: float) -> dict[str, Any]:
        return {"image_id": 2, "category_id": category, "bbox": bbox, "score": score}

    rows = [
        row(right, [3, 4, 30, 25], 0.2),  # exact, but a worse one chose before
        row(right, [2, 3, 32, 28], 0.9),
        row(wrong, [3, 4, 30, 25], 1.0),  # of the other category
        row(number[categories[large]], [40, 20, 300, 70], 0.5),  # ends outside of the image
        row(99, [10, 50, 9, 11], 0.8),  # of a category that is not there
    ]
    protocol = load_detections(_boxes(tmp_path, rows), dataset)
    draws = draw_prompts(sample, "coco", protocol)
    boxes = {d.instance.instance_id: d.prompts.boxes.tolist() for d in draws}  # type: ignore[union-attr]
    assert boxes == {small: [[2, 3, 33, 30]], large: [[40, 20, 140, 89]]}


def test_images_without_a_match_have_no_score_and_count_in_the_precision(
    folder: Path, tmp_path: Path
) -> None:
    dataset = _dataset(folder)
    detections = json.loads((folder / "boxes.json").read_text())
    some = [row for row in detections if row["image_id"] not in (2, 3)]
    some.append({"image_id": 3, "category_id": 8, "bbox": [0, 90, 2, 2], "score": 0.9})
    protocol = load_detections(_boxes(tmp_path, some), dataset)
    assert draw_sample(dataset["2"], "coco", [protocol]).draws == ((),)
    (run,) = evaluate("ellipse", dataset, protocol, results=tmp_path / "results")
    assert run.left_out.keys() == {"2", "3"}
    found, targets = read_detections(run.folder)
    assert set(targets["sample_id"]) == set(dataset.ids())
    assert len(found) == len(some)
    assert targets["is_crowd"].sum() == 6
    (section,) = summarise([run])
    (row,) = section.average_precision.to_dict("records")
    assert row["n_images"] == 6
    assert section.marks[0] == "images left out: 2"
    (tmp_path / "results.json").write_text("[]")
    (full,) = evaluate(
        "ellipse",
        dataset,
        load_detections(folder / "boxes.json", dataset),
        results=tmp_path / "results",
    )
    (more,) = summarise([full])[0].average_precision.to_dict("records")
    assert row["ap"] < more["ap"]
    shared = summarise([run, full])  # of two files: two sections
    assert len(shared) == 2


def test_scores_by_error_are_those_of_matched_boxes(folder: Path, tmp_path: Path) -> None:
    dataset = _dataset(folder)
    protocol = load_detections(folder / "boxes.json", dataset)
    (run,) = evaluate("box-fill", dataset, protocol, results=tmp_path)
    (section,) = summarise([run])
    rows_of_iou = run.scores[run.scores["metric"] == "iou"]
    key = zip(rows_of_iou["sample_id"], rows_of_iou["instance_id"], strict=True)
    values = dict(zip(key, rows_of_iou["value"].tolist(), strict=True))
    ious: dict[str, list[float]] = {}
    for sample_id in dataset.ids():
        for draw in draw_prompts(dataset[sample_id], "coco", protocol):
            assert draw.prompts.boxes is not None
            rows, columns = np.nonzero(draw.instance.mask)
            tight = np.array([columns.min(), rows.min(), columns.max(), rows.max()])
            error = human_percentile(box_loss(draw.prompts.boxes[0], tight))
            name = next(name for name, below in ERRORS.items() if error < below)
            value = values[sample_id, draw.instance.instance_id]
            ious.setdefault(name, []).append(value)
    table = section.detector_error.set_index("boxes")
    assert set(table.index) == set(ious)
    assert len(ious) > 2
    for name, expected in ious.items():
        assert table.loc[name, "n_boxes"] == len(expected)
        assert table.loc[name, "miou"] == pytest.approx(np.mean(expected), abs=1e-6)
    assert section.table["n_objects"].iloc[0] == sum(map(len, ious.values()))


def test_kept_masks_of_any_run_are_exported(shell: Shell, folder: Path) -> None:
    data = ("--dataset", "coco", "--data-root", folder, "--split", "val")
    model = ("--segmenter", "box-fill", "--protocol", "gt-box")
    assert shell("eval", *data, *model, "--keep-masks", "all", "--quiet").code == 0
    (run,) = Path("results").iterdir()
    annotations = folder / "annotations/instances_val.json"
    assert "--annotations must name a file" in shell.refuses("export", "coco", run)
    options = ("--annotations", annotations, "--out", "masks.json")
    assert shell("export", "coco", run, *options).code == 0
    rows = json.loads(Path("masks.json").read_text())
    assert len(rows) == 24
    assert {row["score"] for row in rows} == {1.0}
    assert _theirs(folder, Path("masks.json"))[1] == 1  # boxes of exact prompts: IoU above .5
    message = shell.refuses("export", "coco", run, *options, "--trial", "1")
    assert "keeps no masks of condition 'exact-box', trial 1" in message
    assert "unknown condition 'other'" in shell.refuses(
        "export", "coco", run, *options, "--condition", "other"
    )
    Path("no.json").write_text('{"categories": [{"id": 1, "name": "dog"}]}')
    message = shell.refuses("export", "coco", run, "--annotations", "no.json")
    assert "no.json: has no category 'cat'" in message
    Path("no.json").write_text("[]")
    message = shell.refuses("export", "coco", run, "--annotations", "no.json")
    assert "has no categories of COCO's format" in message


ROW = {"image_id": 1, "category_id": 3, "bbox": [1, 2, 3, 4], "score": 0.5}


@pytest.mark.parametrize(
    ("content", "message"),
    [
        ("[", "is not a list of detections"),
        ("[]", "has no detections"),
        (json.dumps([{**ROW, "bbox": [1, 2, 3]}]), "is not a list of detections"),
        (json.dumps([{**ROW, "score": "high"}]), "is not a list of detections"),
        (json.dumps([ROW, {**ROW, "bbox": [1, 2, -3, 4]}]), "row 2: bbox must be x, y, width"),
        (json.dumps([{k: v for k, v in ROW.items() if k != "score"}]), "missing required field"),
    ],
)
def test_broken_files_are_refused(folder: Path, tmp_path: Path, content: str, message: str) -> None:
    path = tmp_path / "boxes.json"
    path.write_text(content)
    with pytest.raises(PromptError, match=message):
        load_detections(path, _dataset(folder))


def test_what_cannot_be_prompted_is_refused(shell: Shell, folder: Path) -> None:
    boxes = folder / "boxes.json"
    assert "need a data set of COCO's format, got scenes" in shell.refuses("eval", "--boxes", boxes)
    assert "takes the place of --protocol gt-box" in shell.refuses(
        "eval", "--boxes", boxes, "--protocol", "gt-box"
    )
    assert "takes the place of --prompts" in shell.refuses(
        "eval", "--boxes", boxes, "--prompts", boxes
    )
    data = ("--dataset", "coco", "--data-root", folder, "--split", "val")
    message = shell.refuses("eval", "--boxes", boxes, *data, "--selection", "oracle")
    assert "boxes of a detector have no target to select by" in message
    assert "cannot be read" in shell.refuses("eval", "--boxes", "none.json", *data)
    with pytest.raises(ProtocolError, match="recorded prompts have no other number of trials"):
        evaluate(
            "ellipse",
            _dataset(folder),
            load_detections(boxes, _dataset(folder)),
            trials=3,
        )
    with pytest.raises(PromptError, match="COCO's format"):
        load_detections(boxes, build_scenes(DatasetOptions(split="2x96x64")))


EXPECTED = """
name = "own"
version = 1
summary = "masks of made-up boxes"
protocol = "boxes"
boxes = true
condition = "detected-box"
dataset = "coco"
split = "val"
segmenter = "box-fill"
tolerance = 0.001
source = "measured here"

[[expected]]
metric = "ap"
value = {ap}

[[expected]]
metric = "boundary_ap"
value = {boundary_ap}
"""


def test_published_precisions_are_verified(shell: Shell, folder: Path) -> None:
    protocol = load_detections(folder / "boxes.json", _dataset(folder))
    (run,) = evaluate("box-fill", _dataset(folder), protocol, results="runs")
    (stored,) = summarise([run])[0].average_precision.to_dict("records")
    row = {str(name): value for name, value in stored.items()}
    Path("own.toml").write_text(EXPECTED.format(**row))
    assert shell("verify", "./own.toml", run.folder).code == 0
    again = ("verify", "./own.toml", "--data-root", folder)
    assert shell(*again, "--boxes", folder / "boxes.json", "--quiet").code == 0
    assert "boxes of boxes.json: name it with --boxes" in shell.refuses(*again)
    assert "got other.json" in shell.refuses(*again, "--boxes", "other.json")
    Path("own.toml").write_text(EXPECTED.format(ap=row["ap"] + 0.1, boundary_ap=0.5))
    result = shell("verify", "./own.toml", run.folder)
    assert result.code == 1
    assert result.out.count(" off") == 2
    Path("own.toml").write_text(EXPECTED.format(**row).replace("boundary_ap", "iou"))
    assert "unknown average precision 'iou'" in shell.refuses("verify", "./own.toml", run.folder)


def test_some_images_of_a_file_of_ids_are_evaluated(shell: Shell, folder: Path) -> None:
    Path("some.txt").write_text("1\n4\n")
    data = ("--dataset", "coco", "--data-root", folder, "--split", "val", "--ids", "some.txt")
    done = shell("eval", "--boxes", folder / "boxes.json", *data, "--segmenter", "box-fill")
    assert done.code == 0, done.err
    (run,) = Path("results").iterdir()
    _, targets = read_detections(run)
    assert set(targets["sample_id"]) == {"1", "4"}
    assert shell("export", "coco", run, "--out", "masks.json").code == 0
    (row,) = summarise([read_run(run)])[0].average_precision.to_dict("records")
    ours = [row[statistic.column] for statistic in PRECISIONS[:6]]
    np.testing.assert_array_equal(ours, _theirs(folder, Path("masks.json"), [1, 4]))
