"""`samrobust export`: write the masks of a run for other evaluations."""

import json
from pathlib import Path
from typing import Annotated

import typer

from samrobust.cli.options import OUTPUT, Command
from samrobust.cli.terminal import note_line

app = typer.Typer(no_args_is_help=True, help="Write the masks of a run for other evaluations.")


@app.callback()
def _export() -> None:
    """Write the masks of a run for other evaluations."""


@app.command(
    "coco",
    cls=Command,
    epilog="Example: samrobust export coco results/RUN --out results.json",
)
def coco_command(
    run: Annotated[Path, typer.Argument(help="Folder of a run.", show_default=False)],
    condition: Annotated[
        str,
        typer.Option(
            help="Condition whose masks are written, of a run with kept masks.",
            show_default="the first",
        ),
    ] = "",
    trial: Annotated[int, typer.Option(help="Trial whose masks are written.")] = 0,
    annotations: Annotated[
        Path | None,
        typer.Option(
            help="Annotations of COCO's format that number the categories; detections need none."
        ),
    ] = None,
    file: Annotated[
        Path, typer.Option("--out", help="JSON file to write.", rich_help_panel=OUTPUT)
    ] = Path("results.json"),
) -> None:
    """Write masks as results of COCO's format, which pycocotools reads.

    Of a run with --boxes these are the masks of all detections, with the detector's scores; of any
    other run those that --keep-masks all has kept, with the segmenter's estimates as scores.
    """
    from samrobust.report.coco_results import results_of
    from samrobust.report.formats import write_text
    from samrobust.runs.store import read_run

    results = results_of(read_run(run), condition, trial=trial, annotations=annotations)
    write_text(file, json.dumps(results))
    note_line(f"{file}: {len(results)} masks written")
