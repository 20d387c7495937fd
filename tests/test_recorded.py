"""Recorded prompts: files of all kinds, evaluated as any protocol; masks made elsewhere."""

import csv
import json
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import cv2
import numpy as np
import pandas as pd
import pytest
import torch

from samrobust import build_segmenter, evaluate, load_protocol, open_dataset, summarise
from samrobust.datasets.coco import encode_mask
from samrobust.datasets.scenes import build_scenes
from samrobust.errors import DatasetError, PromptError, SamrobustError, SegmenterError
from samrobust.evaluation.prompts import draw_prompts, drawn_rows, misplaced, placed
from samrobust.files import read_json
from samrobust.metrics.overlap import agreement
from samrobust.prompt_files import LOCAL, load_prompts, write_rows
from samrobust.protocol import describe_protocol, with_conditions, with_trials
from samrobust.runs.store import Run, read_raters
from samrobust.segmenters.stored_masks import StoredMasks
from samrobust.types import (
    Dataset,
    DatasetOptions,
    EvalProtocol,
    Instance,
    Mask,
    Prompt,
    RecordedPrompt,
    Sample,
    image_key,
)
from tests.conftest import GrownBox, MemoryDataset, Shell, blobs, rectangle

SCENES = build_scenes(DatasetOptions(split="3x96x64"))
KEY = ["sample_id", "instance_id", "condition", "trial", "metric"]


def rows_of(run: Run) -> pd.DataFrame:
    scores = run.scores.astype(dict.fromkeys((*KEY, "prompt_hash"), "str") | {"trial": "int"})
    return scores.sort_values(KEY, ignore_index=True)


def exported(dataset: Dataset, protocol: EvalProtocol, path: Path) -> EvalProtocol:
    write_rows(path, drawn_rows(dataset, protocol, dataset.ids()))
    return load_prompts(path, dataset)


def written(path: Path, header: str, *lines: str) -> Path:
    path.write_text("\n".join([header, *lines]) + "\n")
    return path


def recorded(path: Path, dataset: Dataset | None = None) -> list[RecordedPrompt]:
    """Return the prompts of all conditions of a file, in its order."""
    return [
        each
        for condition in load_prompts(path, dataset).conditions
        if condition.kind == "recorded"
        for prompts in condition.degradation.prompts.values()  # type: ignore[union-attr]
        for each in prompts
    ]


@pytest.mark.parametrize("ending", [".csv", ".jsonl", ".parquet"])
def test_exported_prompts_give_the_same_rows(tmp_path: Path, ending: str) -> None:
    protocol = with_trials(load_protocol("stable-sam-table"), 3)
    again = exported(SCENES, protocol, tmp_path / f"prompts{ending}")
    assert [condition.name for condition in again.conditions] == [
        condition.name for condition in protocol.conditions
    ]
    drawn, read = evaluate(GrownBox(), SCENES, [protocol, again], results=tmp_path / "results")
    assert len(rows_of(drawn)) > 100
    pd.testing.assert_frame_equal(rows_of(drawn), rows_of(read), check_exact=True)


def test_all_shipped_segmenters_take_exported_prompts_of_photographs(
    photographs: Path, tmp_path: Path
) -> None:
    ids = tmp_path / "ids.txt"
    ids.write_text(open_dataset("coco", root=photographs / "weizmann_horses", split="val").ids()[0])
    dataset = open_dataset("coco", root=photographs / "weizmann_horses", split="val", ids=ids)
    protocol = with_trials(load_protocol("human-box"), 2)
    protocol = with_conditions(protocol, ["exact-box", "human-box-p90", "human-box"])
    again = exported(dataset, protocol, tmp_path / "prompts.parquet")
    names = ["box-fill", "ellipse", "grabcut", "sam-nano", "stable-sam"]
    segmenters = [build_segmenter(name) for name in names]
    found = evaluate(segmenters, dataset, [protocol, again], results=tmp_path / "results")
    for drawn, read in zip(found[: len(names)], found[len(names) :], strict=True):
        assert drawn.manifest.segmenter == read.manifest.segmenter
        pd.testing.assert_frame_equal(rows_of(drawn), rows_of(read), check_exact=True)


def test_the_manifest_names_the_file_and_its_hash(tmp_path: Path) -> None:
    path = written(tmp_path / "people.csv", "image,x0,y0,x1,y1", "scene-00000,1,2,30,40")
    protocol = load_prompts(path)
    (condition,) = describe_protocol(protocol)["conditions"]
    assert protocol.name == "people"
    assert (
        condition
        == {
            "name": "box",
            "degradation": "recorded",
            "parameters": {
                "file": "people.csv",
                "sha256": "b5c79b8c2d6c1d09d3a6b8ccf1ec35e2aa5ea76a8dcb3e3c4f1f1c6dcf2f6ac8",
                "boxes": "corners",
            },
            "trials": 1,
            "level": None,
        }
        or len(condition["parameters"]["sha256"]) == 64
    )


def test_prompts_of_all_kinds_are_read(tmp_path: Path) -> None:
    rows: list[dict[str, Any]] = [
        {"image": "a.jpg", "instance": 3, "kind": "box", "box": [1, 2, 3, 4], "device": "pc"},
        {"image": 7, "x": 5, "y": 6, "w": 10, "h": 20},
        {"image": "0007", "points": [[1.5, 2], [3, 4]], "labels": [1, 0], "rater": 5},
        {"image": "7", "x": 3, "y": 4, "label": 0},
        {"image": "7", "x": 3, "y": 4},
        {"image": "7", "x0": 0, "y0": 0, "x1": 4, "y1": 5, "points": [[1, 1]], "labels": [1]},
    ]
    path = tmp_path / "prompts.jsonl"
    path.write_text("\n".join(json.dumps(row) for row in rows) + "\n\n")
    protocol = load_prompts(path, boxes="corners")
    assert [(each.name, each.trials) for each in protocol.conditions] == [
        ("box", 1),
        ("points-2", 1),
        ("points-1", 2),
        ("box-points-1", 1),
    ]
    assert [image_key(str(row["image"])) for row in rows] == ["a", "7", "7", "7", "7", "7"]
    box, other, two, one, last, both = recorded_of(protocol)
    assert (box.instance_id, box.place) == ("3", "line 1")
    assert boxes_of([box, other, both]) == [[1, 2, 3, 4], [5, 6, 14, 25], [0, 0, 4, 5]]
    assert (two.rater, two.prompt.points.tolist()) == ("5", [[1.5, 2], [3, 4]])
    assert [each.prompt.labels.tolist() for each in (two, one, last)] == [[1, 0], [0], [1]]


def recorded_of(protocol: EvalProtocol) -> list[RecordedPrompt]:
    return [
        each
        for condition in protocol.conditions
        for prompts in condition.degradation.prompts.values()  # type: ignore[union-attr]
        for each in prompts
    ]


def boxes_of(prompts: Sequence[RecordedPrompt]) -> list[list[float]]:
    return [each.prompt.box.tolist() for each in prompts if each.prompt.box is not None]


@pytest.mark.parametrize(
    ("cells", "corners"),
    [
        (["[30, 20, 10, 12]", "[0, 0, 4, 4]"], [[30, 20, 39, 31], [0, 0, 3, 3]]),  # inverted
        (["[30, 20, 60, 40]", "[0, 0, 4, 4]"], [[30, 20, 60, 40], [0, 0, 4, 4]]),  # 90 > 67
    ],
)
def test_the_format_of_boxes_is_told(
    tmp_path: Path, small_dataset: MemoryDataset, cells: list[str], corners: list[list[int]]
) -> None:
    lines = [f'a,1,"{cell}"' for cell in cells]
    path = written(tmp_path / "boxes.csv", "image,instance,box", *lines)
    assert boxes_of(recorded(path, small_dataset)) == corners


def test_a_format_of_boxes_that_cannot_be_told_is_asked_for(
    tmp_path: Path, small_dataset: MemoryDataset
) -> None:
    path = written(tmp_path / "boxes.csv", "image,instance,box", 'a,1,"[2, 3, 20, 30]"')
    for dataset in (None, small_dataset):
        with pytest.raises(PromptError, match=r"cannot be told .* give --box-format"):
            load_prompts(path, dataset)
    assert boxes_of(recorded_of(load_prompts(path, boxes="xywh"))) == [[2, 3, 21, 32]]
    assert boxes_of(recorded_of(load_prompts(path, boxes="corners"))) == [[2, 3, 20, 30]]
    sized = written(tmp_path / "sized.csv", "image,box,width,height", 'a,"[2, 3, 20, 30]",21,40')
    assert boxes_of(recorded(sized)) == [[2, 3, 20, 30]]


@pytest.mark.parametrize(
    ("header", "line", "message"),
    [
        ("image,x0,y0,x1,y1", "a,1,2,,4", "line 2: a corner is missing"),
        ("image,x0,y0,x1,y1", "a,1,2,x,4", "line 2, x1 is not a number or list: 'x'"),
        ("image,x0,y0,x1,y1", "a,9,2,3,4", "line 2: box must be x0 <= x1"),
        ("image,x0,y0,x1,y1", "a,9,2,3", "line 2 has not as many cells as the first line"),
        ("image,x,y,w,h", "a,9,2,0,4", "line 2: width and height must be above 0, got 0 and 4"),
        ("image,kind,x,y", "a,box,9,2", "line 2: kind is 'box', the prompt is points"),
        ("image,x,label", "a,9,1", "line 2: y is missing"),
        ("image,x,y,label", "a,9,1,2", "line 2: labels must be 0 or 1, got [2]"),
        ("image,points", 'a,"[[1, 2, 3]]"', "row 1 of 'points' must have 2 values, got [1, 2, 3]"),
        ("image,points,labels", 'a,"[[1, 2]]","[1, 1]"', "line 2: labels must be int32"),
        ("image", "a", "line 2: a prompt needs a box or at least one point"),
        ("instance,x,y", "1,2,3", "line 2: the row needs the parameter 'image'"),
        ("image,x,y,hash", "a,2,3,0123", "line 2: the prompt was changed: its hash is"),
        ("image,trial,x,y", "a,1.5,2,3", "line 2: the row: trial must be a whole number"),
    ],
)
def test_a_wrong_row_is_named(tmp_path: Path, header: str, line: str, message: str) -> None:
    path = written(tmp_path / "bad.csv", header, line)
    with pytest.raises(PromptError) as caught:
        load_prompts(path)
    assert message in str(caught.value)
    assert str(caught.value).startswith(str(path))
    assert "\n" not in str(caught.value)


def test_files_that_are_none_are_refused_in_one_line(tmp_path: Path) -> None:
    for name, content, message in (
        ("a.jsonl", b"{", "line 1 is not JSON"),
        ("a.jsonl", b"[1]", "line 1 is not a JSON object"),
        ("a.parquet", b"PAR1", "is not Parquet"),
        ("a.csv", b"image,x,y\n", "has no prompts"),
        ("a.csv", b"image,x,y\n\xff,1,2\n", "'utf-8' codec"),
        ("a.txt", b"", "unknown ending"),
    ):
        (tmp_path / name).write_bytes(content)
        with pytest.raises(SamrobustError, match=message) as caught:
            load_prompts(tmp_path / name)
        assert "\n" not in str(caught.value)
    both = 'image,condition,x,y,points,labels\na,c,1,2,,\na,c,,,"[[1,2],[3,4]]","[1,1]"\n'
    (tmp_path / "mixed.csv").write_text(both)
    with pytest.raises(PromptError, match="condition 'c' has points-1 and points-2"):
        load_prompts(tmp_path / "mixed.csv")


def test_prompts_without_an_object_or_outside_are_named(
    tmp_path: Path, small_dataset: MemoryDataset, caplog: pytest.LogCaptureFixture
) -> None:
    path = written(
        tmp_path / "people.csv",
        "image,instance,x0,y0,x1,y1",
        "a,1,0,5,20,30",
        "a,9,0,5,20,30",
        "a,,0,5,20,30",
        "a,1,0,5,200,30",
        "a,2,24,10,67,12",  # ends at the image's width: clipped
        "c,7,0,5,20,30",
        "nowhere,1,0,5,20,30",
    )
    (run,) = evaluate(GrownBox(), small_dataset, load_prompts(path), results=tmp_path / "results")
    assert (
        "images that the data set does not have are left out: 1, such as 'nowhere'" in caplog.text
    )
    assert run.left_out == {
        "a": [
            "people.csv, line 3: image 'a' has no object '9'; it has 1, 2",
            "people.csv, line 4: no instance is named, and image 'a' has 2",
            "people.csv, line 5: the box is outside of image 'a' of 67x41: [0.0, 5.0, 200.0, 30.0]",
        ],
        "c": ["people.csv, line 7: image 'c' has no object '7'; it has 1, 2"],
    }
    assert run.manifest.n_samples == 2
    scores = run.scores
    assert set(scores["sample_id"]) == {"a"}
    assert len(scores[scores["metric"] == "iou"]) == 2
    (section,) = summarise([run])
    assert "objects or prompts left out: 3" in section.marks
    assert "images left out: 1" in section.marks
    with pytest.raises(DatasetError, match="no prompt is of an image of the data set; the file ha"):
        evaluate(GrownBox(), SCENES, load_prompts(path), results=tmp_path / "results")


def test_prompts_of_a_reduced_image_are_enlarged() -> None:
    mask = rectangle((400, 600), (100, 40, 299, 239))
    (sample,) = (build_sample(mask),)
    small = Prompt(
        np.array([50, 20, 149, 119], np.float32),
        np.array([[10, 20]], np.float32),
        np.ones(1, np.int32),
    )
    _, prompt = placed(RecordedPrompt("", small, size_wh=(300, 200)), sample)
    assert prompt.box is not None
    assert prompt.box.tolist() == [100, 40, 299, 239]
    assert prompt.points.tolist() == [[20.5, 40.5]]
    with pytest.raises(DatasetError, match="is of an image of 200x300, the image is 600x400"):
        placed(RecordedPrompt("", small, size_wh=(200, 300)), sample)


def build_sample(mask: Mask) -> Sample:
    return Sample("s", np.zeros((*mask.shape, 3), np.uint8), [Instance("0", mask)])


def test_breps_folder_of_masks_is_read(tmp_path: Path) -> None:
    dataset = MemoryDataset([build_sample(rectangle((41, 67), (5, 6, 40, 30)))])
    boxes = {"u1": (4, 6, 41, 33), "u2": (5, 5, 38, 30)}
    folder = tmp_path / "breps"
    folder.mkdir()
    for rater, box in boxes.items():
        cv2.imwrite(str(folder / f"s_1_{rater}.png"), 255 * rectangle((41, 67), box).astype("u1"))
    protocol = load_prompts(folder)
    assert [(each.name, each.trials) for each in protocol.conditions] == [("box", 2), (LOCAL, 20)]
    (run,) = evaluate(GrownBox(), dataset, protocol, results=tmp_path / "results")
    raters = read_raters(run.folder)
    assert raters[["rater", "trial"]].to_numpy().tolist() == [["u1", 0], ["u2", 1]]
    iou = run.scores.query("metric == 'iou' and condition == 'box'")["value"]
    assert iou.tolist() == pytest.approx([36 * 25 / (38 * 28), 34 * 25 / (36 * 25 + 34)], abs=1e-6)
    (folder / "other.png").write_bytes(b"")
    with pytest.raises(PromptError, match=r"must be named <image>_1_<rater>\.png"):
        load_prompts(folder)


def test_clicks_of_rclicks_are_read(tmp_path: Path) -> None:
    path = written(
        tmp_path / "clicks.csv",
        "dataset,full_stem,image_stem,object_stem,click_type,model_type,device,x,y,w,h",
        "DAVIS,s_0,s,0,first,,pc,10,12,67,41",
        "DAVIS,s_0,s,0,first,,mobile,20,14,67,41",
        "DAVIS,s_0,s,0,fn,sam,pc,1,1,67,41",
        "DAVIS,s_0,s,s,first,,pc,11,13,67,41",
    )
    protocol = load_prompts(path)
    assert [(each.name, each.trials) for each in protocol.conditions] == [
        ("first-click-pc", 1),
        ("first-click-mobile", 1),
    ]
    sample = build_sample(rectangle((41, 67), (5, 6, 40, 30)))
    assert not misplaced(sample, protocol)
    pc, mobile = draw_prompts(sample, "any", protocol)
    assert pc.prompts.points.tolist() == [[[10, 12]], [[11, 13]]]
    assert mobile.prompts.points.tolist() == [[[20, 14]]]
    assert pc.prompts.labels.tolist() == [[1], [1]]


def test_agreement_is_the_mean_iou_of_pairs() -> None:
    rng = np.random.default_rng(0)
    masks = np.stack([blobs(rng, (37, 51)) for _ in range(5)])
    pairs = [
        (masks[i] & masks[j]).sum() / (masks[i] | masks[j]).sum()
        for i in range(5)
        for j in range(i)
    ]
    target = torch.zeros(37, 51, dtype=torch.bool)
    assert agreement(torch.from_numpy(masks), target).item() == pytest.approx(np.mean(pairs))
    assert agreement(torch.zeros(3, 37, 51, dtype=torch.bool), target).tolist() == [1.0]


@pytest.mark.parametrize("ending", [".jsonl", ".parquet", ".csv"])
def test_masks_made_elsewhere_are_scored_as_a_run(tmp_path: Path, ending: str) -> None:
    protocol = with_trials(load_protocol("noisy-box"), 2)
    path = tmp_path / "prompts.jsonl"
    write_rows(path, drawn_rows(SCENES, protocol, SCENES.ids()))
    answers = []
    for line in path.read_text().splitlines():  # what a model elsewhere would do
        row = json.loads(line)
        mask = np.zeros((row["height"], row["width"]), np.bool_)
        corners = [round(row[name]) for name in ("x0", "y0", "x1", "y1")]
        mask[corners[1] : corners[3] + 1, corners[0] : corners[2] + 1] = True
        segmentation = {"size": list(mask.shape), "counts": encode_mask(mask).decode()}
        answers.append({"image": row["image"], "hash": row["hash"], "segmentation": segmentation})
    masks = tmp_path / f"masks{ending}"
    if ending == ".jsonl":
        masks.write_text("\n".join(map(json.dumps, answers)))
    elif ending == ".parquet":
        pd.DataFrame(answers).to_parquet(masks)
    else:
        with masks.open("w", newline="") as file:
            writer = csv.writer(file)
            writer.writerow(["image", "hash", "segmentation"])
            writer.writerows(
                [row["image"], row["hash"], json.dumps(row["segmentation"])] for row in answers
            )
    ours, theirs = evaluate(
        [GrownBox(), StoredMasks(masks, "theirs")], SCENES, protocol, results=tmp_path / "results"
    )
    assert theirs.manifest.segmenter.settings == {"masks": masks.name}
    pd.testing.assert_frame_equal(rows_of(ours), rows_of(theirs), check_exact=True)


def test_masks_that_are_missing_or_wrong_are_named(tmp_path: Path) -> None:
    protocol = load_protocol("gt-box")
    rows = list(drawn_rows(SCENES, protocol, SCENES.ids()))
    path = tmp_path / "masks.jsonl"

    def answer(size: list[int], count: int = 1) -> str:
        runs = {"size": size, "counts": [size[0] * size[1]]}
        return "\n".join(
            json.dumps({"image": row["image"], "hash": row["hash"], "segmentation": runs})
            for row in rows[:count]
        )

    def refused(error: type[Exception], message: str) -> None:
        with pytest.raises(error, match=message):
            evaluate(StoredMasks(path, "m"), SCENES, protocol, results=tmp_path / "results")

    path.write_text(answer([64, 96]))
    refused(SegmenterError, "image 'scene-0000.', prompt [0-9a-f]{16} has no mask")
    path.write_text(answer([96, 64], len(rows)))
    refused(SegmenterError, "the mask is 64x96, the image 96x64")
    path.write_text(answer([64, 96]) + "\n" + answer([96, 64]))
    refused(PromptError, "line 2: image 'scene-00000' has another mask for")
    path.write_text('{"image": "a", "hash": "b"}')
    refused(PromptError, "line 1: the row needs the parameter 'segmentation'")


def test_the_commands_export_evaluate_and_score(shell: Shell, root: Path) -> None:
    data = ("--dataset", "folder", "--data-root", root)
    result = shell("prompts", "export", "--protocol", "gt-box", *data, "--out", "p.csv", "--quiet")
    assert result.err.splitlines()[-1] == "p.csv: 4 prompts of 4 images"
    assert shell("eval", "--prompts", "p.csv", "--segmenter", "box-fill", *data).code == 0
    answers = []
    for row in csv.DictReader(Path("p.csv").read_text().splitlines()):
        mask = rectangle((int(row["height"]), int(row["width"])), (9, 8, 40, 33))
        segmentation = {"size": list(mask.shape), "counts": encode_mask(mask).decode()}
        answers.append({"image": row["image"], "hash": row["hash"], "segmentation": segmentation})
    Path("m.jsonl").write_text("\n".join(map(json.dumps, answers)))
    result = shell("score", "m.jsonl", "--name", "perfect", "--prompts", "p.csv", *data)
    assert result.code == 0, result.err
    assert "perfect    exact-box  100.0" in result.out
    manifests = [read_json(path, error=PromptError) for path in Path("results").glob("*/man*.json")]
    assert {each["segmenter"]["name"] for each in manifests} == {"box-fill", "perfect"}
    assert "takes the place of --protocol gt-box" in shell.refuses(
        "eval", "--prompts", "p.csv", "--protocol", "gt-box", *data
    )
    assert "recorded prompts have no other number of trials" in shell.refuses(
        "eval", "--prompts", "p.csv", "--trials", "2", *data
    )
    assert "unknown ending of a file of prompts" in shell.refuses(
        "prompts", "export", "--protocol", "gt-box", *data, "--out", "p.txt"
    )
    grid = ("--protocol", "corruption-grid", *data)
    reason = "'corruption-grid' has conditions on corrupted images, which only samrobust eval can"
    assert reason in shell.refuses("prompts", "export", *grid, "--out", "p.csv")
    assert reason in shell.refuses("score", "m.jsonl", *grid)
