"""`samrobust verify`: compare measured values with published ones."""

from collections.abc import Iterable, Sequence
from dataclasses import replace
from pathlib import Path
from typing import TYPE_CHECKING, Annotated

import typer

from samrobust.cli.options import (
    DATA,
    DEFAULT_CACHE_SIZE,
    BatchSize,
    Cache,
    CacheSize,
    ChosenSegmenter,
    Device,
    Quiet,
    ResultsFolder,
    Workers,
    build_segmenter,
    check_number,
    chosen_datasets,
    typed_command,
    with_caches,
)
from samrobust.cli.selection import only_folders
from samrobust.cli.terminal import download_bar, evaluation_progress, out, print_table
from samrobust.errors import SamrobustError
from samrobust.protocol import load_protocol
from samrobust.registry import one_of
from samrobust.report.published import Expected, load_expected
from samrobust.types import Dataset, EvalProtocol, Frame, SegmenterOptions, Selection

if TYPE_CHECKING:
    from samrobust.evaluation.runner import RunSettings
    from samrobust.report.published import Verified

WHAT = "What to compare"
EXAMPLE = """
Example: samrobust verify four-hq --segmenter hq-sam --variant vit_l --data-root HQ
"""


def verify_command(
    expected: Annotated[
        str,
        typer.Argument(
            help="Published values: four-hq, four-hq-noise, grabcut, coco-vitdet or path of a TOML "
            "file.",
            show_default=False,
        ),
    ],
    runs: Annotated[
        list[Path] | None,
        typer.Argument(
            help="Folders of stored runs to compare.", show_default="evaluate what is missing"
        ),
    ] = None,
    segmenter: Annotated[
        list[str] | None,
        typer.Option(help="Only values of this segmenter, repeatable.", rich_help_panel=WHAT),
    ] = None,
    variant: Annotated[
        list[str] | None,
        typer.Option(help="Only values of this variant, repeatable.", rich_help_panel=WHAT),
    ] = None,
    data_root: Annotated[
        Path | None, typer.Option(help="Folder of the data set.", rich_help_panel=DATA)
    ] = None,
    *,
    boxes: Annotated[
        Path | None,
        typer.Option(
            help="Boxes of the detector that the values are of, where they are.",
            rich_help_panel=DATA,
        ),
    ] = None,
    device: Device = "auto",
    results: ResultsFolder = Path("results"),
    batch_size: BatchSize = None,
    workers: Workers = None,
    cache: Cache = None,
    cache_size: CacheSize = DEFAULT_CACHE_SIZE,
    quiet: Quiet = False,
) -> None:
    """Compare measured values with published ones.

    Without folders of runs, the evaluations that the file lists are run or resumed, and weights are
    downloaded. The exit code is 1 if a published value is not met.
    """
    check_number("--batch-size", batch_size, least=1)
    check_number("--workers", workers, least=0)
    chosen = load_expected(expected)
    rows = _only(chosen.rows, segmenter or [], variant or [])
    if runs:
        folders = only_folders(runs)
    else:
        from samrobust.evaluation.loop import LoopOptions
        from samrobust.evaluation.runner import RunSettings, n_workers
        from samrobust.segmenters.device import (
            keep_large_blocks,
            prompts_at_once,
            resolve_device,
        )

        keep_large_blocks()
        device = resolve_device(device)
        loop = LoopOptions(batch_size or prompts_at_once(device), n_workers(workers))
        with evaluation_progress(quiet=quiet) as show:
            settings = RunSettings(
                results,
                device=device,
                loop=loop,
                command=typed_command(),
                progress=show,
            )
            folders = _run(rows, data_root, boxes, settings, (cache, cache_size))

    from samrobust.report.published import verify
    from samrobust.runs.store import read_run

    verified = verify(rows, [read_run(folder) for folder in folders])
    print_table(f"{chosen.name} v{chosen.version}: {chosen.summary}", *_table(verified))
    for source in dict.fromkeys(row.source for row in rows):
        out.print(f"Published: {source}.", style="dim", markup=False)
    if not all(row.verdict == "met" for row in verified):
        raise typer.Exit(1)


def _only(
    rows: Iterable[Expected], segmenters: Sequence[str], variants: Sequence[str]
) -> list[Expected]:
    chosen = [
        row
        for row in rows
        if (not segmenters or row.segmenter in segmenters)
        and (not variants or row.variant in variants)
    ]
    if not chosen:
        wanted = ", ".join([*segmenters, *variants])
        raise SamrobustError(f"there is no published value of {wanted}")
    return chosen


def _run(
    rows: Sequence[Expected],
    data_root: Path | None,
    boxes: Path | None,
    settings: "RunSettings",
    cache: tuple[Path | None, float],
) -> list[Path]:
    """Run the evaluations of the rows, one model after the other, and return their folders."""
    from samrobust.evaluation.runner import run_all

    folders: list[Path] = []
    models = dict.fromkeys((row.segmenter, row.variant, row.output, row.frame) for row in rows)
    for name, variant, output, frame in models:
        of_model = [
            row
            for row in rows
            if (row.segmenter, row.variant, row.output, row.frame) == (name, variant, output, frame)
        ]
        with download_bar(quiet=False) as progress:
            options = SegmenterOptions(
                device=settings.device,
                frame=one_of(Frame, frame, kind="frame"),
                progress=progress,
            )
            model = build_segmenter(ChosenSegmenter(name, variant, output=output), options)
        cached = with_caches([model], *cache)
        runs = dict.fromkeys(
            (row.protocol, row.selection, row.dataset, row.split, row.boxes) for row in of_model
        )
        for protocol, selection, dataset, split, with_boxes in runs:
            roots = [data_root] if data_root else []
            data = chosen_datasets([dataset], roots, [split] if split else [])
            loaded = _detections(protocol, boxes, data) if with_boxes else load_protocol(protocol)
            chosen = one_of(Selection, selection, kind="selection")
            folders += run_all([replace(loaded, selection=chosen)], data, cached, settings)
    return list(dict.fromkeys(folders))


def _detections(name: str, boxes: Path | None, data: Sequence[Dataset]) -> EvalProtocol:
    """Return the boxes of a file, which must be called what the published values say."""
    from samrobust.prompt_files import load_detections

    if boxes is None or boxes.stem != name:
        given = "" if boxes is None else f", got {boxes}"
        raise SamrobustError(f"the values are of boxes of {name}.json: name it with --boxes{given}")
    return load_detections(boxes, data[0])


def _table(verified: "Sequence[Verified]") -> tuple[list[str], list[list[str]]]:
    """Return header and rows, without the columns (save the segmenter) that are the same in all."""
    from samrobust.report.columns import column_of, statistic_of

    columns = {
        "segmenter": [row.expected.label for row in verified],
        "data": [row.expected.dataset for row in verified],
        "condition": [row.expected.condition for row in verified],
    }
    shown = {
        name: cells for name, cells in columns.items() if name == "segmenter" or len({*cells}) > 1
    }
    shown |= {
        "metric": [statistic_of(column_of(row.expected.metric)).label for row in verified],
        "measured": [_percent(row.measured) for row in verified],
        "published": [_percent(row.expected.value) for row in verified],
        "diff": [_percent(row.difference, sign="+") for row in verified],
        "verdict": [row.verdict for row in verified],
    }
    return list(shown), [list(row) for row in zip(*shown.values(), strict=True)]


def _percent(value: float | None, *, sign: str = "") -> str:
    return "-" if value is None else f"{100 * value:{sign}.1f}"
