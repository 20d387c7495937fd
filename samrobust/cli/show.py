"""`samrobust show`: draw the masks that a photograph's box and its degradations give."""

import math
from pathlib import Path
from typing import Annotated

import typer

from samrobust.cli.options import (
    OUTPUT,
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
from samrobust.files import errors_at
from samrobust.protocol import build_corruption, load_protocol, on_stored_images, with_trials
from samrobust.types import ImageCondition, SegmenterOptions

DEFAULT_SEGMENTERS = ["sam-nano"]
WHAT = "What to draw"
EXAMPLE = """
Example: samrobust show --image photo.jpg --box 40,30,200,310 --segmenter sam-nano
"""


def show_command(
    image: Annotated[
        Path, typer.Option(help="Photograph.", rich_help_panel=WHAT, show_default=False)
    ],
    box: Annotated[
        str,
        typer.Option(
            help="Box x0,y0,x1,y1 in pixels; the last column and row are inside.",
            rich_help_panel=WHAT,
            show_default=False,
        ),
    ],
    segmenter: Annotated[
        list[str] | None,
        typer.Option(help="Segmenter, repeatable.", rich_help_panel=WHAT, show_default="sam-nano"),
    ] = None,
    variant: Variants = None,
    checkpoint: Checkpoints = None,
    base_checkpoint: BaseCheckpoints = None,
    *,
    protocol: Annotated[
        str,
        typer.Option(
            help="Protocol of boxes, or path of a TOML file: how the box is degraded.",
            rich_help_panel=WHAT,
        ),
    ] = "noisy-box",
    corruption: Annotated[
        str | None,
        typer.Option(
            "--corrupt",
            metavar="NAME:SEVERITY",
            help="Corrupt the photograph first, as fog:3. See: samrobust ls corruptions",
            rich_help_panel=WHAT,
        ),
    ] = None,
    trials: Annotated[
        int, typer.Option(help="Degraded boxes per condition.", rich_help_panel=WHAT)
    ] = 8,
    device: Device = "auto",
    to: Annotated[
        Path, typer.Option("--out", help="PNG file to write.", rich_help_panel=OUTPUT)
    ] = Path("show.png"),
    quiet: Quiet = False,
) -> None:
    """Draw what happens to the masks of one photograph when its box gets worse.

    Below each mask, "agrees" is its IoU with the mask of the box as given.
    """
    check_number("--trials", trials, least=1)
    corners = _corners(box)
    chosen = with_trials(on_stored_images(load_protocol(protocol)), trials)
    condition = None if corruption is None else _image_condition(corruption)
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
    from samrobust.evaluation.prompts import corrupt
    from samrobust.evaluation.single_image import KEY, SAMPLE_ID, answers, box_sample
    from samrobust.report.photograph import draw_answers
    from samrobust.segmenters.device import resolve_device

    photograph = read_image(image)
    if condition is not None:
        photograph = corrupt(
            photograph, condition, seed=chosen.seed, dataset_key=KEY, sample_id=SAMPLE_ID
        )
    sample = box_sample(photograph, np.array(corners))
    with download_bar(quiet=quiet) as progress:
        options = SegmenterOptions(device=resolve_device(device), progress=progress)
        built = [build_segmenter(each, options) for each in segmenters]
    found = list(answers(built, sample, chosen))
    draw_answers(photograph, np.array(corners), found, to)
    note_line(f"{to}: written")


def _image_condition(text: str) -> ImageCondition:
    """Return the corruption that "NAME:SEVERITY" names."""
    kind, _, severity = text.partition(":")
    if not severity.isdecimal():
        raise SamrobustError(f"--corrupt must be NAME:SEVERITY, as fog:3, got '{text}'")
    with errors_at(f"--corrupt {text}", SamrobustError):
        corruption = build_corruption(kind, {"severity": int(severity)})
    return ImageCondition(f"{kind}-{severity}", corruption, kind, float(severity))


def _corners(text: str) -> list[float]:
    try:
        corners = [float(part) for part in text.split(",")]
    except ValueError:
        corners = []
    if len(corners) != 4 or not all(map(math.isfinite, corners)):
        raise SamrobustError(f"--box must be four numbers x0,y0,x1,y1, got '{text}'")
    return corners
