import json
from pathlib import Path

import jsonschema
import pytest

from samrobust.report.formats import SCHEMA_FILE, export_run, to_json, write_exports
from samrobust.report.summary import summarise
from tests.runs import CONTROL, SAM, MadeUp, described

SCHEMA = json.loads(SCHEMA_FILE.read_text(encoding="utf-8"))


@pytest.mark.parametrize(
    "made_up",
    [
        MadeUp(),
        MadeUp(segmenter=CONTROL, n_samples=1),
        MadeUp(protocol={**described("points"), "sha256": "a" * 64}, limit=6, trials=4),
        MadeUp(missing=frozenset({"image-1"}), failed=frozenset({"image-2"}), has_objects=False),
        MadeUp(protocol={**described("noisy-box"), "metrics": ["iou", "hausdorff"]}),
    ],
)
def test_an_export_is_as_its_schema_says(tmp_path: Path, made_up: MadeUp) -> None:
    jsonschema.Draft202012Validator.check_schema(SCHEMA)
    (path,) = write_exports([made_up.store(tmp_path / "runs")], tmp_path)
    jsonschema.validate(json.loads(path.read_text(encoding="utf-8")), SCHEMA)


def test_the_schema_refuses_what_is_missing_or_unknown(tmp_path: Path) -> None:
    found = export_run(MadeUp().store(tmp_path))
    for wrong in ({**found, "more": 1}, {k: v for k, v in found.items() if k != "scores"}):
        with pytest.raises(jsonschema.ValidationError):
            jsonschema.validate(wrong, SCHEMA)


def test_scores_are_those_of_the_summary(tmp_path: Path) -> None:
    run = MadeUp(missing=frozenset({"image-1"}), failed=frozenset({"image-2"})).store(tmp_path)
    found = export_run(run)
    (section,) = summarise([run])
    row = section.table[section.table["condition"] == "box-noise-0.4"].iloc[0]
    scores = {(each["condition"], each["statistic"]): each for each in found["scores"]}
    score = scores["box-noise-0.4", "iou_low"]
    assert score["value"] == pytest.approx(row["iou_low"], abs=1e-6)
    assert score["interval"] == pytest.approx([row["iou_low_low"], row["iou_low_high"]], abs=1e-6)
    assert ("exact-box", "msf") not in scores
    assert found["segmenter"]["checkpoint_sha256"] == SAM.checkpoint_sha256
    dataset = found["dataset"]
    assert (dataset["n_images"], dataset["n_failed"], dataset["is_complete"]) == (4, 1, False)


def test_a_line_is_a_run(tmp_path: Path) -> None:
    runs = [MadeUp(segmenter=segmenter).store(tmp_path) for segmenter in (SAM, CONTROL)]
    lines = [json.loads(line) for line in to_json(runs).splitlines()]
    assert [line["run"] for line in lines] == [run.folder.name for run in runs]
