"""The self-test of adapters, on segmenters that are wrong in one way each."""

from collections.abc import Callable
from pathlib import Path

import numpy as np
import pytest
import torch

import samrobust
from samrobust.errors import SegmenterError
from samrobust.evaluation.self_test import check_adapter, needs_self_test
from samrobust.segmenters import build_segmenter
from samrobust.types import Image, Prediction, PromptBatch
from tests.conftest import GrownBox, Shell

PAIRS = [(np.zeros((40, 50, 3), np.uint8), np.eye(40, 50, dtype=bool)[None])]


class Static(GrownBox):
    """Gives the mask of the first box to all of them; points are used."""

    def predict(
        self, embedding: tuple[int, int], prompts: PromptBatch, *, multimask: bool = False
    ) -> Prediction:
        found = super().predict(embedding, prompts, multimask=multimask)
        if prompts.boxes is None:
            return found
        return Prediction(found.masks[:1].expand_as(found.masks), found.quality)


class Empty(GrownBox):
    def predict(
        self, embedding: tuple[int, int], prompts: PromptBatch, *, multimask: bool = False
    ) -> Prediction:
        found = super().predict(embedding, prompts, multimask=multimask)
        return Prediction(torch.zeros_like(found.masks), found.quality)


class Stateful(GrownBox):
    """Shifts each mask by the number of calls before."""

    def predict(
        self, embedding: tuple[int, int], prompts: PromptBatch, *, multimask: bool = False
    ) -> Prediction:
        found = super().predict(embedding, prompts, multimask=multimask)
        return Prediction(found.masks.roll(len(self.n_prompts), -1), found.quality)


class Scaling(GrownBox):
    """Scales points in place, as a library did with boxes."""

    def predict(
        self, embedding: tuple[int, int], prompts: PromptBatch, *, multimask: bool = False
    ) -> Prediction:
        found = super().predict(embedding, prompts, multimask=multimask)
        prompts.points[...] *= 0.5
        return found


class Painting(GrownBox):
    def encode(self, images: list[Image]) -> list[tuple[int, int]]:  # type: ignore[override]
        images[0][0, 0] = 0
        return super().encode(images)


class Small(GrownBox):
    """Leaves masks at half the size of the image."""

    def predict(
        self, embedding: tuple[int, int], prompts: PromptBatch, *, multimask: bool = False
    ) -> Prediction:
        found = super().predict(embedding, prompts, multimask=multimask)
        return Prediction(found.masks[..., ::2, ::2], found.quality)


class Logits(GrownBox):
    def predict(
        self, embedding: tuple[int, int], prompts: PromptBatch, *, multimask: bool = False
    ) -> Prediction:
        found = super().predict(embedding, prompts, multimask=multimask)
        return Prediction(found.masks.float(), found.quality)


@pytest.mark.parametrize(
    ("wrong", "reason"),
    [
        (Static, "the mask does not move with the boxes: it is the same for three"),
        (Empty, "the mask does not move with the boxes: it is empty for three"),
        (Stateful, "the same boxes give other masks the second time"),
        (Scaling, "predict changes the points that it is given"),
        (Painting, "encode changes the image that it is given"),
        (Small, "masks must be bool of shape (3, M, 96, 128), got bool of shape (3, 1, 48, 64)"),
        (Logits, "masks must be bool of shape (3, M, 96, 128), got float32 of shape"),
    ],
)
def test_a_wrong_adapter_is_told_what_is_wrong(wrong: Callable[[], GrownBox], reason: str) -> None:
    with pytest.raises(SegmenterError) as error:
        check_adapter(wrong(), ["box", "points"])
    assert f"grown-box: self-test: {reason}" in str(error.value)
    assert "\n" not in str(error.value)


@pytest.mark.parametrize("name", ["box-fill", "ellipse", "grabcut", "sam-nano", "stable-sam"])
def test_our_own_pass_and_need_no_test(name: str) -> None:
    segmenter = build_segmenter(name, device="cpu")
    check_adapter(segmenter, segmenter.info.prompts)
    assert not needs_self_test(segmenter)


def test_a_run_tests_once_what_is_not_ours_before_anything_is_stored(tmp_path: Path) -> None:
    sound = GrownBox()
    samrobust.evaluate(sound, PAIRS, ["gt-box", "points"], results=tmp_path / "sound")
    assert sound.n_prompts[:4] == [3, 3, 3, 3]  # boxes and points, twice each
    assert sound.n_encoded == 2
    with pytest.raises(SegmenterError, match="self-test: the mask does not move"):
        samrobust.evaluate(["ellipse", Static()], PAIRS, "gt-box", results=tmp_path / "wrong")
    assert not (tmp_path / "wrong").exists()
    samrobust.evaluate(Static(), PAIRS, "gt-box", results=tmp_path / "wrong", self_test=False)
    assert (tmp_path / "wrong").exists()


def test_the_command_line_refuses_in_one_line_and_can_be_overruled(shell: Shell) -> None:
    Path("still.py").write_text(
        "import torch\n"
        "from samrobust.types import Prediction\n"
        "class Still:\n"
        "    def encode(self, images):\n"
        "        return [image.shape[:2] for image in images]\n"
        "    def predict(self, size_hw, prompts, *, multimask=False):\n"
        "        masks = torch.ones(len(prompts), 1, *size_hw, dtype=torch.bool)\n"
        "        return Prediction(masks, torch.zeros(len(prompts), 1))\n"
    )
    command = ("eval", "--protocol", "gt-box", "--segmenter", "still.py:Still", "--limit", "1")
    assert "Still: self-test: the mask does not move with the boxes" in shell.refuses(*command)
    assert shell(*command, "--no-self-test").code == 0
