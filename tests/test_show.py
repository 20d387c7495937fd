from pathlib import Path

import numpy as np
import pytest
from PIL import Image

from samrobust.errors import SegmenterError
from samrobust.evaluation.single_image import answers, box_sample
from samrobust.geometry import box_iou
from samrobust.protocol import load_protocol, with_trials
from samrobust.segmenters.baselines import build_box_fill
from samrobust.types import SegmenterOptions
from tests.conftest import Doubtful, Shell

IMAGE = np.random.default_rng(0).integers(0, 256, (71, 113, 3), dtype=np.uint8)
BOX = np.array([20.0, 10.0, 69.0, 49.0])


def test_the_box_is_degraded_as_the_protocol_says() -> None:
    protocol = with_trials(load_protocol("noisy-box"), 3)
    boxes = build_box_fill(SegmenterOptions())
    found = list(answers([boxes, boxes], box_sample(IMAGE, BOX), protocol))
    assert [each.condition for each in found[:7]] == [row.name for row in protocol.conditions]
    assert len(found) == 14
    np.testing.assert_array_equal(found[0].boxes, BOX[None])
    assert found[0].agreement.tolist() == [1.0]
    noisy = found[3]
    assert noisy.masks.shape == (3, 71, 113)
    for box, agreement in zip(noisy.boxes, noisy.agreement, strict=True):
        inside = np.concatenate([np.ceil(box[:2]), np.floor(box[2:])])
        assert agreement == pytest.approx(box_iou(inside, BOX), abs=1e-9)


@pytest.mark.parametrize("box", [(50, 10, 20, 40), (120, 10, 130, 40), (-9, -9, -1, -1)])
def test_a_box_that_is_inverted_or_outside_is_refused(box: tuple[int, ...]) -> None:
    with pytest.raises(SegmenterError, match="is not inside an image of 113x71"):
        box_sample(IMAGE, np.array(box, np.float64))


def test_a_box_that_leaves_the_image_is_cut_off() -> None:
    (instance,) = box_sample(IMAGE, np.array([100.0, -5.0, 300.0, 9.0])).instances
    assert instance.mask.sum() == 13 * 10


def test_an_answer_that_is_not_finite_is_refused() -> None:
    doubtful = Doubtful(np.nan)
    shown = answers([doubtful, doubtful], box_sample(IMAGE, BOX), load_protocol("gt-box"))
    assert next(shown).masks.any()
    with pytest.raises(SegmenterError, match="grown-box: a prediction is not finite"):
        list(shown)


def test_show_writes_a_picture(shell: Shell) -> None:
    Image.fromarray(IMAGE).save("photo.png")
    command = ("show", "--image", "photo.png", "--box", "20,10,69,49", "--trials", "2")
    two = ("--segmenter", "ellipse", "--segmenter", "box-fill", "--out", "new/seen.png")
    assert shell(*command, *two).code == 0
    with Image.open("new/seen.png") as picture:
        assert picture.width > picture.height
    assert "unknown segmenter 'elipse'" in shell.refuses(*command, "--segmenter", "elipse")
    assert "'points-1' gives points" in shell.refuses(
        *command, "--segmenter", "grabcut", "--protocol", "points"
    )
    assert "no-such.png: there is no such file" in shell.refuses(
        "show", "--image", "no-such.png", "--box", "0,0,9,9"
    )
    for text in ("1,2,3", "a,b,c,d", ""):
        assert f"--box must be four numbers x0,y0,x1,y1, got '{text}'" in shell.refuses(
            "show", "--image", "photo.png", "--box", text
        )
    assert not Path("show.png").exists()
