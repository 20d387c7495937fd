"""What a segmenter was trained on: said by `ls`, stored with runs, marked in tables."""

import json
from dataclasses import replace
from pathlib import Path

import pytest
import torch
from segment_anything.build_sam import sam_model_registry

from samrobust.cli.ls import segmenter_lines
from samrobust.datasets import GROUPS
from samrobust.files import CACHE_VARIABLE
from samrobust.provenance import HQSEG_44K, origin, origins_of_training
from samrobust.report.formats import to_csv, to_latex, to_markdown
from samrobust.report.summary import summarise
from samrobust.report.tables import terminal_tables
from samrobust.runs.manifest import run_name
from samrobust.segmenters import ROWS, SEGMENTERS
from samrobust.segmenters.hq_modules import HqParts, untrained_parts
from samrobust.segmenters.mobile_sam import tiny_sam_model
from samrobust.types import DatasetInfo
from tests.conftest import Shell
from tests.runs import SAM, STABLE, MadeUp

DIS = DatasetInfo("dis-vd", "", "f1")
COIFT = DatasetInfo("coift", "", "f2")
HQ = replace(SAM, name="hq-sam", checkpoint_sha256="c" * 64, trained_on=("SA-1B", *HQSEG_44K))


def test_training_and_test_part_have_one_origin() -> None:
    assert origin("dis-vd", "", "HQ") == origin("dis-tr", "", ".") == "DIS5K"
    assert {origin(name, "", "HQ") for name in GROUPS["hqseg-44k"]} == set(HQSEG_44K)
    inside = [name for name in GROUPS["four-hq"] if origin(name, "", "") in HQSEG_44K]
    assert inside == ["dis-vd", "thinobject-te"]
    assert origin("coco", "val2017", "anything") == "MS-COCO"
    assert origin("coco", "train", "bsds500") == "bsds500"
    assert origin("folder", "", ".") == ""


def test_a_file_says_by_its_recipe_what_was_trained_on() -> None:
    data = [
        {"dataset": "scenes", "split": "9", "weight": 1.0},
        {"dataset": "coco", "split": "train2017", "folder": "coco128", "weight": 2.0},
        {"dataset": "coco", "split": "val", "folder": "bsds500", "weight": 0.0, "held_out": 1.0},
        {"dataset": "coco", "split": "train", "folder": "pets", "weight": 1.0, "held_out": 1.0},
    ]
    assert origins_of_training({"recipe": json.dumps({"data": data})}) == ("MS-COCO", "scenes")
    for broken in ({}, {"recipe": "x"}, {"recipe": "[]"}, {"recipe": '{"data": [{}]}'}):
        assert origins_of_training(broken) == ()


def test_tables_mark_what_was_trained_on_the_same_collection(tmp_path: Path) -> None:
    runs = [
        MadeUp(segmenter=segmenter, dataset=dataset).store(tmp_path)
        for segmenter in (SAM, HQ)
        for dataset in (DIS, COIFT)
    ]
    dis, coift = summarise(runs)
    marked, plain = terminal_tables([dis, coift])
    assert {row[0] for row in marked.rows} == {"sam vit_b", "hq-sam vit_b‡"}
    assert {row[0] for row in plain.rows} == {"sam vit_b", "hq-sam vit_b"}
    assert "‡ Trained on images of DIS5K too." in marked.footnotes
    assert not any("Trained" in note for note in plain.footnotes)
    assert r"hq-sam vit\_b\textsuperscript{$\ddagger$}" in to_latex([dis])
    assert "hq-sam vit_b‡" in to_markdown([dis])
    assert ",DIS5K," in to_csv([dis])


def test_a_mean_of_data_sets_is_marked_by_any_of_them(tmp_path: Path) -> None:
    pair = ("dis-vd", "coift")
    runs = [
        MadeUp(segmenter=HQ, dataset=replace(dataset, group="pair", group_members=pair)).store(
            tmp_path
        )
        for dataset in (DIS, COIFT)
    ]
    *_, mean = summarise(runs)
    assert mean.dataset == "pair (mean of 2)"
    assert set(mean.table["in_domain"]) == {"DIS5K"}


def test_what_it_was_trained_on_makes_no_other_run(tmp_path: Path) -> None:
    one, other = (
        MadeUp(segmenter=replace(STABLE, trained_on=seen)).store(tmp_path)
        for seen in ((), ("scenes",))
    )
    assert one.folder == other.folder
    assert run_name(one.manifest) == run_name(other.manifest)
    assert MadeUp(segmenter=HQ).store(tmp_path).manifest.segmenter.trained_on == HQ.trained_on


def test_every_segmenter_is_listed_with_what_its_row_says(shell: Shell) -> None:
    lines = shell("ls", "segmenters").out.splitlines()
    assert list(ROWS) == SEGMENTERS.names()
    for name, row in ROWS.items():
        at = lines.index(f"{name}  {SEGMENTERS.summary(name)}")
        wanted = [f"    {line}" for line in segmenter_lines(row)]
        assert len(wanted) > 1
        assert lines[at + 1 : at + 1 + len(wanted)] == wanted


def test_lines_say_what_is_in_the_cache(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv(CACHE_VARIABLE, str(tmp_path))
    (tmp_path / "sam_hq_vit_l.pth").touch()
    lines = list(segmenter_lines(ROWS["hq-sam"]))
    assert lines[0] == "prompts boxes, points, masks; licence Apache-2.0"
    assert lines[1].startswith(
        "vit_b 94.8 M parameters; sam_hq_vit_b.pth, 379 MB, not in the cache; trained on SA-1B, "
    )
    assert "; sam_hq_vit_l.pth, 1,255 MB, in the cache; " in lines[2]


def test_lines_of_packaged_files_are_read_from_them() -> None:
    _, line = segmenter_lines(ROWS["stable-sam"])
    assert line.startswith("22,613 parameters; stable-sam.safetensors, ")
    assert "scenes" in line


@pytest.mark.parametrize("variant", ["vit_b", "vit_l", "vit_h"])
def test_parameters_are_counted_right(variant: str) -> None:
    with torch.device("meta"):
        model = sam_model_registry[variant]()  # type: ignore[no-untyped-call]
        parts = HqParts(256, model.image_encoder.pos_embed.shape[-1])
    own = sum(x.numel() for x in model.parameters())
    added = sum(x.numel() for x in parts.parameters())
    assert ROWS["sam"].checkpoints[variant].n_parameters == own
    assert ROWS["hq-sam"].checkpoints[variant].n_parameters == own + added


def test_parameters_of_the_small_ones_are_counted_right() -> None:
    pytest.importorskip("timm")
    model = tiny_sam_model()
    own = sum(x.numel() for x in model.parameters())
    added = sum(x.numel() for x in untrained_parts(model).parameters())
    assert added == 448_512  # docs/sources/hq-sam.md 3
    assert ROWS["mobile-sam"].n_parameters == own
    assert ROWS["hq-sam"].checkpoints["vit_tiny"].n_parameters == own + added
