"""`samrobust draw`: pictures of where Stable-SAM reads an image and how it routes."""

from pathlib import Path
from typing import Annotated

import typer

from samrobust.cli.options import (
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

app = typer.Typer(no_args_is_help=True, help="Draw where Stable-SAM reads and how it routes.")

PROTOCOL = "noisy-box"
CONDITIONS = ("exact-box", "box-noise-0.4")
"""Columns of the reading picture: a good box and a bad one."""

Checkpoint = Annotated[
    Path | None, typer.Option(help="Plugin weights file; default: the one of the package.")
]
BaseCheckpoint = Annotated[
    Path | None, typer.Option(help="Weights file of the SAM that the plugins are for.")
]


@app.command(
    "reading", epilog="samrobust draw reading --dataset coco --data-root DIR --split val2017"
)
def reading_command(
    checkpoint: Checkpoint = None,
    base_checkpoint: BaseCheckpoint = None,
    dataset: Datasets = None,
    data_root: DataRoots = None,
    split: Splits = None,
    ids: IdFiles = None,
    *,
    count: Annotated[int, typer.Option(help="Evenly spaced images.")] = 4,
    layer: Annotated[
        int | None, typer.Option(help="Decoder layer; default: the first that has a plugin.")
    ] = None,
    device: Device = "auto",
    to: Annotated[Path, typer.Option("--out", help="Picture to write.")] = Path("reading.png"),
) -> None:
    """Draw where the decoder reads for a good and a bad box, in SAM and in Stable-SAM.

    The area of a dot is the attention that the output token pays to its place, at
    a decoder layer with a plugin. Blue: target; orange: mask; white: box.
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
    "routing", epilog="samrobust draw routing --dataset coco --data-root DIR --split val2017"
)
def routing_command(
    checkpoint: Checkpoint = None,
    base_checkpoint: BaseCheckpoint = None,
    dataset: Datasets = None,
    data_root: DataRoots = None,
    split: Splits = None,
    ids: IdFiles = None,
    *,
    limit: Annotated[int | None, typer.Option(help="Only the first N images.")] = None,
    trials: Annotated[int, typer.Option(help="Boxes per object and noise level.")] = 5,
    device: Device = "auto",
    to: Annotated[Path, typer.Option("--out", help="Picture to write.")] = Path("routing.png"),
) -> None:
    """Draw each router's weight of the deformed features against the IoU of the box."""
    check_number("--limit", limit, least=1)
    check_number("--trials", trials, least=1)
    chosen = _one(chosen_datasets(dataset, data_root, split, ids))

    from samrobust.evaluation.inspection import routed_boxes
    from samrobust.report.readings import draw_routing
    from samrobust.segmenters.stable_sam import build_stable_sam

    stable = build_stable_sam(_options(checkpoint, base_checkpoint, device))
    protocol = with_trials(load_protocol(PROTOCOL), trials)
    found = routed_boxes(stable, chosen, chosen.ids()[:limit], protocol)
    out.print(draw_routing(found, to), soft_wrap=True, markup=False)
    note_line(f"{to}: written, of {len(found.box_iou)} boxes")


def _one(datasets: list[Dataset]) -> Dataset:
    if len(datasets) != 1:
        raise SamrobustError(f"--dataset: one data set is drawn at a time, got {len(datasets)}")
    return datasets[0]


def _options(
    checkpoint: Path | None, base_checkpoint: Path | None, device: str
) -> SegmenterOptions:
    from samrobust.segmenters.device import resolve_device

    return SegmenterOptions(
        checkpoint=checkpoint, base_checkpoint=base_checkpoint, device=resolve_device(device)
    )
