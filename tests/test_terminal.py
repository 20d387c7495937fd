from pathlib import Path

import pytest

from samrobust.cli.terminal import print_table
from samrobust.types import SegmenterInfo
from tests.conftest import Shell
from tests.runs import CONTROL, SAM, MadeUp, described

LONG = SegmenterInfo("a-segmenter-with-a-very-long-name-indeed", frozenset({"box"}))
NOISY = described("noisy-box", conditions=("exact-box", "box-noise-0.2"))


@pytest.fixture
def stored(shell: Shell) -> Shell:
    """Return a shell in a folder with runs of three segmenters."""
    for segmenter in (SAM, CONTROL, LONG):
        MadeUp(protocol=NOISY, segmenter=segmenter, n_samples=8).store(Path("results"))
    return shell


def squeezed(text: str) -> str:
    return "".join(text.split())


@pytest.mark.parametrize("width", [140, 80, 60, 50, 40])
def test_a_narrow_terminal_shows_every_name_whole(
    stored: Shell, monkeypatch: pytest.MonkeyPatch, width: int
) -> None:
    monkeypatch.setenv("COLUMNS", str(width))
    for arguments in (
        ("report",),
        ("report", "--details"),
        ("compare", "--segmenter", "sam", "--segmenter", LONG.name),
    ):
        text = stored(*arguments).out
        lines = text.splitlines()
        assert max(map(len, lines)) <= width
        assert not any(line != line.rstrip() for line in lines)
        assert "…" not in text
        for name in ("mIoU", "box-noise-0.2"):
            assert name in text
    rows = [line for line in stored("report").out.splitlines() if line.startswith(" ")]
    names = squeezed("".join(row[1:].split("  ")[0] for row in rows))
    assert names.count(LONG.name) == 1 + 2  # at a glance, and a condition each
    assert "sam vit_b" in stored("report").out


@pytest.mark.parametrize(
    ("width", "shows", "left_out"),
    [
        (90, ("±", "mSF", "IoU std"), ""),
        (60, ("mIoU", "mBIoU", "mSF", "IoU std"), "intervals."),
        (44, ("mIoU", "mBIoU"), "intervals, IoU std, mSF."),
    ],
)
def test_intervals_go_first_then_the_last_columns(
    stored: Shell,
    monkeypatch: pytest.MonkeyPatch,
    width: int,
    shows: tuple[str, ...],
    left_out: str,
) -> None:
    monkeypatch.setenv("COLUMNS", str(width))
    text = " ".join(stored("report").out.split())
    for word in shows:
        assert word in text
    assert ("Left out, as there is no room: " in text) == bool(left_out)
    assert f"no room: {left_out}" in text or not left_out


def test_bold_stays_with_its_column(stored: Shell, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("COLUMNS", "50")
    text = stored("compare", "--segmenter", "sam", "--segmenter", "box-as-mask").out
    header = next(line for line in text.splitlines() if "B - A" in line)
    assert "higher" in header
    assert "A: sam vit_b. B: box-as-mask." in text


def test_long_texts_of_other_tables_fold(
    capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv("COLUMNS", "40")
    print_table("a title", ["name", "what it is"], [["a", "word " * 20], ["b", "x" * 50]])
    text = capsys.readouterr().out
    assert squeezed(text).count("word") == 20
    assert squeezed(text).count("x") == 50
    assert max(map(len, text.splitlines())) <= 40
