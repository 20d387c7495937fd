"""Which options reach which segmenters: none is dropped without a word."""

from pathlib import Path

import pytest

from samrobust.errors import SamrobustError
from samrobust.segmenters import OPTIONS, ROWS, SEGMENTERS, build_segmenter
from samrobust.types import SegmenterOptions
from tests.conftest import Shell

EVAL = ("eval", "--protocol", "gt-box", "--split", "1x64x48", "--workers", "0")
NANO = Path(__file__).parents[1] / "samrobust" / "segmenters" / "weights" / "sam-nano.safetensors"


@pytest.mark.parametrize("option", OPTIONS)
@pytest.mark.parametrize("name", ROWS)
def test_an_option_is_followed_or_refused(name: str, option: str) -> None:
    value = Path("nowhere.pth") if "checkpoint" in option else "nonsense"
    with pytest.raises(SamrobustError) as caught:
        SEGMENTERS.load(name)(SegmenterOptions(**{OPTIONS[option]: value}))  # type: ignore[arg-type]
    refused = f"{name} takes no {option}, got {value}"
    assert (str(caught.value) == refused) != SEGMENTERS.takes(name, option)


def test_a_checkpoint_reaches_all_that_take_one(shell: Shell) -> None:
    both = ("--segmenter", "ellipse", "--segmenter", "sam-nano")
    message = shell.refuses(*EVAL, *both, "--checkpoint", "missing.safetensors")
    assert "missing.safetensors: there is no such checkpoint" in message


def test_an_option_that_no_segmenter_takes_is_refused(shell: Shell) -> None:
    both = ("--segmenter", "ellipse", "--segmenter", "box-fill")
    message = shell.refuses(*EVAL, *both, "--checkpoint", "missing.safetensors")
    assert "ellipse, box-fill takes no --checkpoint, got missing.safetensors" in message


def test_an_option_given_once_for_several_says_whom_it_reached(
    shell: Shell, caplog: pytest.LogCaptureFixture
) -> None:
    caplog.set_level("INFO", logger="samrobust")
    names = ("--segmenter", "ellipse", "--segmenter", "sam-nano")
    shell(*EVAL, *names, "--checkpoint", NANO, "--quiet")
    assert f"--checkpoint {NANO} is given to sam-nano" in caplog.messages
    caplog.clear()
    shell(*EVAL, "--segmenter", "sam-nano", "--checkpoint", NANO, "--quiet")
    assert not any("is given to" in message for message in caplog.messages)


@pytest.mark.parametrize(
    ("name", "hint"),
    [
        ("sam2", "--segmenter transformers --variant facebook/sam2.1-hiera-tiny"),
        ("SAM-2.1", "--segmenter transformers --variant facebook/sam2.1-hiera-tiny"),
        ("facebook/sam2-hiera-large", "--segmenter transformers --variant facebook/sam2.1-hiera-"),
        ("edge-tam", "--segmenter transformers --variant yonigozlan/EdgeTAM-hf"),
        ("SlimSAM", "--segmenter transformers --variant slimsam-77"),
        ("TinySAM", "--segmenter tiny-sam"),
        ("vit_b", "--segmenter sam --variant vit_b"),
        ("sam_hq", "--segmenter hq-sam"),
    ],
)
def test_a_name_that_people_know_it_by_is_answered_with_what_to_type(
    shell: Shell, name: str, hint: str
) -> None:
    message = shell.refuses(*EVAL, "--segmenter", name)
    assert f"unknown segmenter '{name}'. Is it {hint}" in message
    with pytest.raises(SamrobustError, match=f"Is it {hint}"):
        build_segmenter(name)
