"""`samrobust show`: one photograph, one box, its degradations and the masks, as a picture."""

import math
from pathlib import Path
from typing import Annotated

import typer

from samrobust.cli.options import (
    BaseCheckpoints,
    Checkpoints,
    Device,
    Quiet,
    Variants,
    build_segmenter,
    check_number,
    choose_segmenters,
)
from samrobust.cli.terminal import download_bar, note_line
from samrobust.errors import SamrobustError
from samrobust.protocol import load_protocol, with_trials
from samrobust.types import SegmenterOptions

DEFAULT_SEGMENTERS = ["sam-nano"]


def show_command(
    image: Annotated[Path, typer.Option(help="Photograph.", show_default=False)],
    box: Annotated[
        str,
        typer.Option(help="x0,y0,x1,y1 in pixels, last ones inclusive.", show_default=False),
    ],
    segmenter: Annotated[
        list[str] | None, typer.Option(help="Segmenter, repeatable; default sam-nano.")
    ] = None,
    variant: Variants = None,
    checkpoint: Checkpoints = None,
    base_checkpoint: BaseCheckpoints = None,
    *,
    protocol: Annotated[str, typer.Option(help="Of boxes; a name or a TOML file.")] = "noisy-box",
    trials: Annotated[int, typer.Option(help="Boxes a condition.")] = 8,
    device: Device = "auto",
    to: Annotated[Path, typer.Option("--out", help="Picture to write.")] = Path("show.png"),
    quiet: Quiet = False,
) -> None:
    """Draw what happens to the masks of one photograph when its box gets worse.

    The box is degraded as a protocol says. "agrees" is the IoU with the mask of the box itself.

    Example: samrobust show --image photo.jpg --box 40,30,200,310 --segmenter sam-nano
    """
    check_number("--trials", trials, least=1)
    corners = _corners(box)
    chosen = with_trials(load_protocol(protocol), trials)
    names = segmenter or DEFAULT_SEGMENTERS
    segmenters = choose_segmenters(
        names,
        variants=variant or [],
        checkpoints=checkpoint or [],
        base_checkpoints=base_checkpoint or [],
        outputs=[],
    )

    import numpy as np

    from samrobust.datasets.images import read_image
    from samrobust.evaluation.single_image import answers, box_sample
    from samrobust.report.photograph import draw_answers
    from samrobust.segmenters.device import resolve_device

    photograph = read_image(image)
    sample = box_sample(photograph, np.array(corners))
    with download_bar(quiet=quiet) as progress:
        options = SegmenterOptions(device=resolve_device(device), progress=progress)
        built = [build_segmenter(each, options) for each in segmenters]
    found = list(answers(built, sample, chosen))
    draw_answers(photograph, np.array(corners), found, to)
    note_line(f"{to}: written")


def _corners(text: str) -> list[float]:
    try:
        corners = [float(part) for part in text.split(",")]
    except ValueError:
        corners = []
    if len(corners) != 4 or not all(map(math.isfinite, corners)):
        raise SamrobustError(f"--box must be four numbers x0,y0,x1,y1, got '{text}'")
    return corners
