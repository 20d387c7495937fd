"""`samrobust draw`: draw the positions that Stable-SAM samples, and the weights of its router."""

from pathlib import Path
from typing import Annotated

import typer

from samrobust.cli.options import (
    MODEL,
    OUTPUT,
    Command,
    DataRoots,
    Datasets,
    Device,
    IdFiles,
    Splits,
    check_number,
    chosen_datasets,
)
from samrobust.cli.terminal import note_line, out
from samrobust.errors import SamrobustError
from samrobust.protocol import load_protocol, with_conditions, with_trials
from samrobust.types import Dataset, SegmenterOptions

WHAT = "What to draw"
app = typer.Typer(
    no_args_is_help=True, help="Draw sampling positions and router weights of Stable-SAM."
)

PROTOCOL = "noisy-box"
CONDITIONS = ("exact-box", "box-noise-0.4")
"""Columns of the picture of sampling positions: a good box and a bad one."""

Checkpoint = Annotated[
    Path | None,
    typer.Option(
        help="Weights file of Stable-SAM's plugins.",
        rich_help_panel=MODEL,
        show_default="the one in the package",
    ),
]
BaseCheckpoint = Annotated[
    Path | None,
    typer.Option(
        help="Weights file of the SAM that the plugins were trained for.", rich_help_panel=MODEL
    ),
]


@app.command(
    "reading",
    cls=Command,
    epilog="Example: samrobust draw reading --dataset coco --data-root COCO --split val2017",
)
def reading_command(
    count: Annotated[
        int, typer.Option(help="Number of images, evenly spaced.", rich_help_panel=WHAT)
    ] = 4,
    layer: Annotated[
        int | None,
        typer.Option(
            help="Decoder layer.",
            rich_help_panel=WHAT,
            show_default="the first that has a plugin",
        ),
    ] = None,
    checkpoint: Checkpoint = None,
    base_checkpoint: BaseCheckpoint = None,
    dataset: Datasets = None,
    data_root: DataRoots = None,
    split: Splits = None,
    ids: IdFiles = None,
    *,
    device: Device = "auto",
    to: Annotated[
        Path, typer.Option("--out", help="PNG file to write.", rich_help_panel=OUTPUT)
    ] = Path("reading.png"),
) -> None:
    """Draw where the decoder reads for a good and a bad box, in SAM and in Stable-SAM.

    The area of a dot is the attention of the output token at that position, in a decoder layer with
    a plugin. Blue: target; orange: mask; white: box.
    """
    check_number("--count", count, least=1)
    chosen = _one(chosen_datasets(dataset, data_root, split, ids))

    from samrobust.evaluation.inspection import compare_readings
    from samrobust.report.readings import draw_readings
    from samrobust.segmenters.stable_sam import build_base_alone, build_stable_sam

    options = _options(checkpoint, base_checkpoint, device)
    sam, stable = build_base_alone(options), build_stable_sam(options)
    protocol = with_conditions(load_protocol(PROTOCOL), CONDITIONS)
    draw_readings(list(compare_readings(sam, stable, chosen, protocol, count, layer=layer)), to)
    note_line(f"{to}: written")


@app.command(
    "routing",
    cls=Command,
    epilog="Example: samrobust draw routing --dataset coco --data-root COCO --split val2017",
)
def routing_command(
    limit: Annotated[
        int | None, typer.Option(help="Only the first N images.", rich_help_panel=WHAT)
    ] = None,
    trials: Annotated[
        int, typer.Option(help="Boxes per object and noise level.", rich_help_panel=WHAT)
    ] = 5,
    checkpoint: Checkpoint = None,
    base_checkpoint: BaseCheckpoint = None,
    dataset: Datasets = None,
    data_root: DataRoots = None,
    split: Splits = None,
    ids: IdFiles = None,
    *,
    device: Device = "auto",
    to: Annotated[
        Path, typer.Option("--out", help="PNG file to write.", rich_help_panel=OUTPUT)
    ] = Path("routing.png"),
) -> None:
    """Draw the router's weight of the deformed features against the IoU of the box.

    The IoU is that of the degraded box with the exact box of the object.
    """
    check_number("--limit", limit, least=1)
    check_number("--trials", trials, least=1)
    chosen = _one(chosen_datasets(dataset, data_root, split, ids))

    from samrobust.evaluation.inspection import routed_boxes
    from samrobust.report.readings import draw_routing
    from samrobust.segmenters.stable_sam import build_stable_sam

    stable = build_stable_sam(_options(checkpoint, base_checkpoint, device))
    protocol = with_trials(load_protocol(PROTOCOL), trials)
    boxes = routed_boxes(stable, chosen, chosen.ids()[:limit], protocol)
    out.print(draw_routing(boxes, to), soft_wrap=True, markup=False)
    n_boxes = len(boxes.box_iou)
    note_line(f"{to}: written, with {n_boxes} {'box' if n_boxes == 1 else 'boxes'}")


def _one(datasets: list[Dataset]) -> Dataset:
    if len(datasets) != 1:
        raise SamrobustError(f"--dataset must name one data set, got {len(datasets)}")
    return datasets[0]


def _options(
    checkpoint: Path | None, base_checkpoint: Path | None, device: str
) -> SegmenterOptions:
    from samrobust.segmenters.device import resolve_device

    return SegmenterOptions(
        checkpoint=checkpoint, base_checkpoint=base_checkpoint, device=resolve_device(device)
    )
