"""Published values beside measured ones, on a small file of our own."""

from pathlib import Path

import pytest

from samrobust.errors import ProtocolError, UnknownNameError
from samrobust.report.published import load_expected, packaged_expected
from samrobust.runs.store import read_run
from samrobust.segmenters import published_sha256
from tests.conftest import Shell

OWN = """
name = "own"
version = 1
summary = "a control and a wrong value"
protocol = "gt-box"
condition = "exact-box"
dataset = "scenes"
split = "3x64x48"
tolerance = 0.001
source = "measured here"

[[expected]]
segmenter = "box-fill"
metric = "iou"
value = {iou}

[[expected]]
segmenter = "box-fill"
metric = "boundary-iou"
value = {boundary}
"""


@pytest.fixture
def measured(shell: Shell) -> dict[str, float]:
    """Return what an evaluation measures; its run stays in the folder `runs`."""
    done = shell(
        *("eval", "--protocol", "gt-box", "--dataset", "scenes", "--split", "3x64x48"),
        *("--segmenter", "box-fill", "--workers", "0", "--quiet", "--out", "runs"),
    )
    assert done.code == 0
    (folder,) = Path("runs").iterdir()
    scores = read_run(folder).scores
    return {
        metric: float(scores[scores["metric"] == metric]["value"].mean())
        for metric in ("iou", "boundary-iou")
    }


def write(text: str, **values: float) -> Path:
    path = Path("own.toml")
    path.write_text(text.format(**values))
    return path


def test_stored_runs_are_read_and_every_value_met_is_exit_0(
    shell: Shell, measured: dict[str, float]
) -> None:
    path = write(OWN, iou=measured["iou"], boundary=measured["boundary-iou"] - 0.0009)
    done = shell("verify", path, *Path("runs").iterdir())
    assert done.code == 0
    rows = [line.split() for line in done.out.splitlines() if "box-fill" in line]
    assert [row[-1] for row in rows] == ["met", "met"]
    assert rows[0][-4:-1] == [f"{100 * measured['iou']:.1f}"] * 2 + ["+0.0"]
    assert "Published: measured here." in done.out
    assert max(map(len, done.out.splitlines())) <= 80


def test_a_value_that_is_off_is_exit_1(shell: Shell, measured: dict[str, float]) -> None:
    path = write(OWN, iou=measured["iou"] + 0.05, boundary=measured["boundary-iou"])
    done = shell("verify", path, *Path("runs").iterdir())
    assert done.code == 1
    rows = [line.split() for line in done.out.splitlines() if "box-fill" in line]
    assert [row[-1] for row in rows] == ["off", "met"]
    assert rows[0][-2] == "-5.0"


def test_without_runs_they_are_run(shell: Shell, measured: dict[str, float]) -> None:
    path = write(OWN, iou=measured["iou"], boundary=measured["boundary-iou"])
    done = shell("verify", path, "--workers", "0", "--quiet", "--out", "new")
    assert done.code == 0
    (folder,) = Path("new").iterdir()
    assert read_run(folder).manifest.segmenter.name == "box-fill"


@pytest.mark.parametrize(
    "more", [("--limit", "2"), ("--trials", "3"), ("--selection", "oracle"), ("--split", "4x64x48")]
)
def test_what_was_run_otherwise_does_not_count(
    shell: Shell, measured: dict[str, float], more: tuple[str, str]
) -> None:
    path = write(OWN, iou=measured["iou"], boundary=measured["boundary-iou"])
    split = () if "--split" in more else ("--split", "3x64x48")
    shell(
        *("eval", "--protocol", "gt-box", "--dataset", "scenes", *split, *more, "--quiet"),
        *("--segmenter", "box-fill", "--workers", "0", "--out", "other"),
    )
    done = shell("verify", path, *Path("other").iterdir())
    assert done.code == 1
    rows = [line for line in done.out.splitlines() if "box-fill" in line]
    assert all(line.rstrip().endswith("no run") for line in rows)


def test_only_some_values_can_be_asked_for(shell: Shell, measured: dict[str, float]) -> None:
    path = write(OWN, iou=measured["iou"], boundary=measured["boundary-iou"])
    assert (
        shell.refuses("verify", path, "--segmenter", "sam") == "there is no published value of sam"
    )
    assert shell.refuses("verify", "own", "runs").startswith("unknown file of expected values")


@pytest.mark.parametrize(
    ("old", "new", "message"),
    [
        ('metric = "iou"', 'metric = "iuo"', "row 1 of 'expected': unknown metric 'iuo'"),
        ('"box-fill"', '"box-fil"', "unknown segmenter 'box-fil'. Did you mean 'box-fill'?"),
        ('"exact-box"', '"exact"', "unknown condition of gt-box 'exact'"),
        ("value = 0.5", "values = 0.5", "has no parameter 'values'"),
        ("tolerance = 0.001", "tolerance = 2", "tolerance must be at most 1, got 2"),
        ('name = "own"\n', "", "the file needs the parameter 'name'"),
        ("[[expected]]", "[[expect]]", "the file needs the parameter 'expected'"),
        ("version = 1", "version =", "is not TOML"),
    ],
)
def test_a_wrong_file_is_one_line(tmp_path: Path, old: str, new: str, message: str) -> None:
    path = tmp_path / "own.toml"
    path.write_text(OWN.format(iou=0.5, boundary=0.5).replace(old, new))
    with pytest.raises(ProtocolError) as caught:
        load_expected(str(path))
    assert "own.toml: " in str(caught.value)
    assert message in str(caught.value)


def test_packaged_files_are_right_and_of_published_weights() -> None:
    assert set(packaged_expected()) == {"coco-vitdet", "four-hq", "four-hq-noise", "grabcut"}
    for name in packaged_expected():
        for row in load_expected(name).rows:
            assert published_sha256(row.segmenter, row.variant)
            assert bool(row.output) == (row.segmenter == "hq-sam")
    with pytest.raises(UnknownNameError):
        load_expected("five-hq")


def test_the_means_of_the_four_sets_are_those_of_their_values() -> None:
    rows = load_expected("four-hq").rows
    for segmenter in ("sam", "hq-sam"):
        for metric in ("iou", "boundary-iou"):
            asked = segmenter, "vit_l", metric
            own = [x for x in rows if (x.segmenter, x.variant, x.metric) == asked]
            (mean,) = (x.value for x in own if x.dataset == "four-hq")
            members = [x.value for x in own if x.dataset != "four-hq"]
            assert len(members) == 4
            assert sum(members) / 4 == pytest.approx(mean, abs=0.0006)
