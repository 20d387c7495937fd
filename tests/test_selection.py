from pathlib import Path

import pandas as pd
import pytest

from tests.conftest import Shell
from tests.runs import CONTROL, SAM, STABLE, MadeUp, described

GT_BOX = described("gt-box")
NOISY = described("noisy-box", conditions=("exact-box", "box-noise-0.2"))


@pytest.fixture
def results() -> Path:
    """Return a folder with two protocols, three segmenters and a file."""
    folder = Path("results")
    for protocol in (GT_BOX, NOISY):
        for segmenter in (SAM, STABLE, CONTROL):
            MadeUp(protocol=protocol, segmenter=segmenter).store(folder)
    (folder / "notes.txt").touch()
    return folder


def test_runs_are_chosen_by_protocol_data_set_and_segmenter(shell: Shell, results: Path) -> None:
    everything = shell("report", "--format", "csv").out  # of results
    assert everything == shell("report", results, "--format", "csv").out
    assert everything == shell("report", *sorted(results.iterdir()), "--format", "csv").out
    noisy = shell("report", "--protocol", "noisy-box", "--format", "csv").out
    assert ",box-noise-0.2," in noisy
    assert "gt-box" not in noisy
    both = ("--segmenter", "stable-sam", "--segmenter", "box-as-mask")
    found = shell("report", results, *both, "--dataset", "scenes", "--format", "csv").out
    assert "stable-sam vit_b" in found
    assert "\nnoisy-box,1,scenes/6,selection single; frame longest-side,sam vit_b" not in found


def test_two_runs_are_compared_in_the_order_of_their_segmenters(
    shell: Shell, results: Path
) -> None:
    one_protocol = ("compare", results, "--protocol", "noisy-box")
    done = shell(*one_protocol, "--segmenter", "stable-sam", "--segmenter", "box-as-mask")
    assert done.code == 0
    assert "A: stable-sam vit_b. B: box-as-mask." in done.out
    done = shell(*one_protocol, "--segmenter", "box-as-mask", "--segmenter", "stable-sam vit_b")
    assert "A: box-as-mask. B: stable-sam vit_b." in done.out


def test_more_or_fewer_runs_than_two_are_listed(shell: Shell, results: Path) -> None:
    line = shell.refuses("compare", "--protocol", "noisy-box")
    assert "exactly two runs are compared, and 3 match" in line
    assert "stable-sam vit_b by noisy-box on scenes/6 (results/noisy-box--" in line
    line = shell.refuses("compare", results, "--protocol", "gt-box", "--segmenter", "sam")
    assert "and 1 match" in line
    line = shell.refuses("report", "--protocol", "noisy-bx")
    assert line == (
        "unknown protocol of these runs, 'noisy-bx'. Did you mean 'noisy-box'? Known: gt-box, "
        "noisy-box"
    )
    assert "nowhere: there is no such run" in shell.refuses("report", "nowhere")


def test_labels_name_segmenters_and_runs(shell: Shell, results: Path) -> None:
    folder = next(results.glob("noisy-box*stable*"))
    noisy = ("report", "--protocol", "noisy-box")
    labels = ("--label", "sam vit_b=SAM (ours)", "--label", f"{folder.name}=Stable-SAM, tuned")
    found = shell(*noisy, *labels, "--format", "csv", "--out", "out").out
    assert "SAM (ours)" in found
    table = pd.read_csv("out/tables.csv")
    assert set(table["segmenter"]) == {"box-as-mask", "SAM (ours)", "Stable-SAM, tuned"}
    compared = shell("compare", *sorted(results.glob("noisy-box*sam*")), *labels).out
    assert "A: SAM (ours). B: Stable-SAM, tuned." in compared
    alike = shell(*noisy, "--label", "sam=x", "--label", "stable-sam=x", "--format", "csv").out
    assert {"x (sam vit_b", "x (stable-sam vit_b"} <= {
        row.split(",")[4].strip('"') for row in alike.splitlines()
    }
    assert "segmenter or folder of these runs 'sum'" in shell.refuses(*noisy, "--label", "sum=x")
    assert "--label must be NAME=TEXT, got 'sam'" in shell.refuses(*noisy, "--label", "sam")


def test_strictly_all_runs_have_the_same_images(shell: Shell) -> None:
    MadeUp(protocol=NOISY).store(Path("results"))
    MadeUp(protocol=NOISY, segmenter=STABLE, failed=frozenset({"image-1"})).store(Path("results"))
    assert "images that all runs have: 5 of 6" in " ".join(shell("report").out.split())
    assert "images that all runs have: 5 of 6" in " ".join(shell("compare").out.split())
    for command in ("report", "compare"):
        assert "lacks 1 of the 6 images" in shell.refuses(command, "--strict")


def test_columns_are_chosen(shell: Shell, results: Path) -> None:
    noisy = ("report", results, "--protocol", "noisy-box")
    table = shell(*noisy, "--columns", "mSF, mIoU").out.partition("over images.")[2]
    assert table.index("mSF") < table.index("mIoU")
    assert "mBIoU" not in table
    assert "unknown column 'x'" in shell.refuses(*noisy, "--columns", "x")
