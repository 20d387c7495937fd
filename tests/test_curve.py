from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from PIL import Image as PillowImage

from samrobust.errors import TrainingError
from samrobust.training.curve import draw_curve


def loss_row(step: int, phase: str, **losses: float) -> dict[str, Any]:
    return {"step": step, "phase": phase, **losses, "total": sum(losses.values())}


def drawn(rows: Sequence[Mapping[str, Any]], path: Path) -> set[tuple[int, ...]]:
    """Return the colours of a curve."""
    draw_curve(rows, path)
    with PillowImage.open(path) as picture:
        assert picture.format == "PNG"
        packed = np.asarray(picture.convert("RGBX")).view(np.uint32)
    colours, counts = np.unique(packed, return_counts=True)
    return {(c & 255, c >> 8 & 255, c >> 16 & 255) for c in colours[counts > 50].tolist()}


WHITE, BLUE, ORANGE, GREEN = (255, 255, 255), (31, 119, 180), (255, 127, 14), (44, 160, 44)
"""Matplotlib's background and first colours."""


def test_a_curve_shows_losses_and_validations(tmp_path: Path) -> None:
    losses = [loss_row(20 * n, "ab"[n > 4], single=1.0 / n, candidate=2.0 / n) for n in range(1, 9)]
    plain = drawn(losses, tmp_path / "plain.png")
    assert {WHITE, BLUE, ORANGE} <= plain
    assert GREEN not in plain
    validations = [
        {"step": step, "held_out": {label: {"box": 0.5, "points-3": 0.3} for label in "uv"}}
        for step in (80, 160)
    ]
    assert {WHITE, BLUE, ORANGE, GREEN} <= drawn(
        [*losses, *validations], tmp_path / "validations.png"
    )


def test_a_curve_needs_no_validation_and_no_equal_losses(tmp_path: Path) -> None:
    for rows in (
        [loss_row(20, "a", single=1.0), loss_row(40, "b", single=0.9, embedding=0.5)],
        [loss_row(20, "a", single=1.0, embedding=0.4), loss_row(40, "b", single=0.9)],
        [loss_row(20, "a", single=1.0), {"step": 20, "held_out": {"scenes": {"objects": 0}}}],
    ):
        assert len(drawn(rows, tmp_path / "curve.png")) > 1


def test_a_curve_that_cannot_be_written_is_one_line(tmp_path: Path) -> None:
    with pytest.raises(TrainingError, match=r"curve\.png: cannot be written: No such file"):
        draw_curve([loss_row(20, "a", single=1.0)], tmp_path / "nowhere" / "curve.png")
