import dataclasses
from pathlib import Path
from typing import Any

import numpy as np
import pandas as pd
import pyarrow.compute as pc
import pyarrow.parquet as pq
import pytest

from samrobust.errors import RunError
from samrobust.report.compare import compare
from samrobust.report.formats import export_run
from samrobust.report.scores import comparable_groups, iou_of_trials
from samrobust.report.summary import summarise
from samrobust.types import DatasetInfo
from tests.runs import CONTROL, SAM, STABLE, MadeUp, described

NOISY = described("noisy-box", conditions=("exact-box", "box-noise-0.2", "box-noise-0.4"))
RUN = MadeUp(protocol=NOISY)


@pytest.mark.parametrize(
    ("changes", "labels"),
    [
        ({"dtype": "bfloat16"}, ("sam vit_b (float32)", "sam vit_b (bfloat16)")),
        ({"settings": {"steps": 3.0}}, ("sam vit_b", "sam vit_b (steps 3.0)")),
        ({"multimask": True}, ("sam vit_b", "sam vit_b (multimask)")),
        ({"checkpoint_sha256": ""}, ("sam vit_b (aaaaaaaa)", "sam vit_b")),
        (
            {"checkpoint_sha256": "c" * 64, "dtype": "float16"},
            ("sam vit_b (aaaaaaaa, float32)", "sam vit_b (cccccccc, float16)"),
        ),
    ],
)
def test_one_label_for_two_settings_is_told_apart(
    tmp_path: Path, changes: dict[str, Any], labels: tuple[str, str]
) -> None:
    other = RUN.but(segmenter=dataclasses.replace(SAM, **changes))
    (group,) = comparable_groups([RUN.store(tmp_path), other.store(tmp_path)])
    assert group.labels == labels


def test_one_label_on_two_devices_is_told_apart(tmp_path: Path) -> None:
    (group,) = comparable_groups([RUN.store(tmp_path), RUN.but(device="cuda").store(tmp_path)])
    assert group.labels == ("sam vit_b (cpu)", "sam vit_b (cuda)")


REFUSALS = {
    "the prompts differ, in 132 of 132 rows": {"prompts": "q"},
    "the selections differ: single and oracle": {"protocol": {**NOISY, "selection": "oracle"}},
    "the protocol files differ, in seed; a changed protocol needs another version": {
        "protocol": {**NOISY, "seed": 1}
    },
    "the image frames differ: longest-side and squash": {
        "segmenter": dataclasses.replace(STABLE, frame="squash")
    },
    "the metric constants differ: {'boundary-width': 0.02} and {'boundary-width': 0.03}": {
        "constants": {"boundary-width": 0.03}
    },
}


@pytest.mark.parametrize(("message", "changes"), REFUSALS.items(), ids=[*map(str, range(5))])
def test_what_cannot_be_compared_is_refused(
    tmp_path: Path, message: str, changes: dict[str, Any]
) -> None:
    one = RUN.but(segmenter=CONTROL if "segmenter" not in changes else SAM).store(tmp_path)
    other = RUN.but(**{"segmenter": STABLE, **changes}).store(tmp_path)
    with pytest.raises(RunError) as refusal:
        comparable_groups([one, other])
    assert str(refusal.value) == f"{one.folder} and {other.folder}: {message}"


@pytest.mark.parametrize(("kind", "n_failed"), [("missing", 0), ("failed", 2)])
def test_strictly_runs_of_other_images_are_refused(
    tmp_path: Path, kind: str, n_failed: int
) -> None:
    lacking = {kind: frozenset({"image-1", "image-2"})}
    less = RUN.but(segmenter=STABLE, **lacking).store(tmp_path)
    full = RUN.store(tmp_path)
    with pytest.raises(RunError) as refusal:
        comparable_groups([less, full], strict=True)
    assert str(refusal.value) == (
        f"{less.folder}: lacks 2 of the 6 images of {full.folder} ({n_failed} failed); "
        "finish it with the same command"
    )


def test_runs_are_compared_on_the_images_that_all_have(tmp_path: Path) -> None:
    less = RUN.but(
        segmenter=STABLE, failed=frozenset({"image-1"}), missing=frozenset({"image-3"})
    ).store(tmp_path)
    other = RUN.but(failed=frozenset({"image-4"})).store(tmp_path)
    (section,) = summarise([less, other])
    assert section.marks[:2] == ("images that all runs have: 3 of 6", "images that failed: 2")
    assert set(section.objects["sample_id"]) == {"image-0", "image-2", "image-5"}
    both = frozenset(f"image-{index}" for index in (1, 3, 4))
    alone = [
        RUN.but(segmenter=segmenter, missing=both).store(tmp_path / "alone")
        for segmenter in (STABLE, SAM)
    ]
    (expected,) = summarise(alone)
    pd.testing.assert_frame_equal(section.table, expected.table)
    pd.testing.assert_frame_equal(section.differences, expected.differences)
    for run, scores in zip(section.stored, section.scores, strict=True):  # as figures read them
        trials = iou_of_trials(run, ["box-noise-0.2"])["box-noise-0.2"]
        np.testing.assert_allclose(trials.mean(axis=1), scores.statistics["miou"][1], atol=1e-6)
    assert len(compare(less, other).objects) == 3 * len(section.objects)
    with pytest.raises(RunError, match=r"lacks 2 of the 5 images .* \(1 failed\)"):
        compare(less, other, strict=True)


def test_a_single_run_without_some_images_is_incomplete(tmp_path: Path) -> None:
    section = summarise([RUN.but(missing=frozenset({"image-3"})).store(tmp_path)])[0]
    assert section.marks[0] == "incomplete: 5 of 6 images"


def test_runs_without_an_image_in_common_are_refused(tmp_path: Path) -> None:
    halves = [frozenset(f"image-{index}" for index in places) for places in ((0, 1, 2), (3, 4, 5))]
    runs = [
        RUN.but(segmenter=segmenter, missing=half).store(tmp_path)
        for segmenter, half in zip((SAM, STABLE), halves, strict=True)
    ]
    with pytest.raises(RunError, match=r"sam-vit_b\S+ and \S+: have no image in common; finish"):
        summarise(runs)


def test_marks_say_how_many_objects_were_left_out(tmp_path: Path) -> None:
    left_out = {"image-1": ["no area", "no area"], "image-2": ["no area"], "image-5": ["no object"]}
    run = RUN.but(left_out=left_out, missing=frozenset({"image-5"})).store(tmp_path)
    marks = summarise([run])[0].marks
    assert marks[:2] == ("images left out: 1", "objects left out: 3")
    dataset = export_run(run)["dataset"]
    assert (dataset["n_images_left_out"], dataset["n_objects_left_out"]) == (1, 3)
    assert dataset["is_complete"]
    assert not any("left out" in mark for mark in summarise([RUN.store(tmp_path / "all")])[0].marks)


def test_runs_of_other_objects_are_refused(tmp_path: Path) -> None:
    one = RUN.store(tmp_path)
    other = RUN.but(segmenter=STABLE).store(tmp_path)
    (part,) = (other.folder / "scores").iterdir()
    rows = pq.read_table(part)
    pq.write_table(rows.filter(pc.not_equal(rows["instance_id"], "2")), part)
    for pair in ([one, other], [other, one]):
        with pytest.raises(RunError, match="same images have other objects, conditions or trials"):
            comparable_groups(pair)


def test_an_empty_run_is_refused(tmp_path: Path) -> None:
    run = RUN.but(missing=frozenset(f"image-{index}" for index in range(6))).store(tmp_path)
    with pytest.raises(RunError, match="holds no scores yet; give its command again"):
        comparable_groups([run])


def test_the_same_run_twice_is_refused(tmp_path: Path) -> None:
    run = RUN.store(tmp_path)
    with pytest.raises(RunError, match="are of one segmenter with the same settings; name one"):
        comparable_groups([run, run])


def test_splits_and_other_files_are_groups_of_their_own_and_folders_are_not(
    tmp_path: Path,
) -> None:
    infos = [DatasetInfo("coco", split, print_) for split, print_ in (("a", "f"), ("b", "f"))]
    infos.append(DatasetInfo("coco", "a", "g"))
    moved = RUN.but(dataset=DatasetInfo("coco", "a", "f", folder="moved"), segmenter=STABLE)
    runs = [RUN.but(dataset=info).store(tmp_path) for info in infos]
    groups = comparable_groups([*runs, moved.store(tmp_path)])
    assert [len(group.runs) for group in groups] == [2, 1, 1]
    titles = [section.dataset for section in summarise(runs)]
    assert titles == ["coco/a (f)", "coco/b", "coco/a (g)"]
