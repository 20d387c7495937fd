"""`samrobust verify`: published values beside measured ones."""

from collections.abc import Iterable, Sequence
from dataclasses import replace
from pathlib import Path
from typing import TYPE_CHECKING, Annotated

import typer

from samrobust.cli.options import (
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
from samrobust.types import Frame, SegmenterOptions, Selection

if TYPE_CHECKING:
    from samrobust.evaluation.runner import RunSettings
    from samrobust.report.published import Verified


def verify_command(
    expected: Annotated[
        str,
        typer.Argument(help="four-hq, four-hq-noise, grabcut or a TOML file.", show_default=False),
    ],
    runs: Annotated[
        list[Path] | None,
        typer.Argument(help="Folders of runs to read; without any, what is missing is run."),
    ] = None,
    segmenter: Annotated[
        list[str] | None, typer.Option(help="Only the values of this segmenter, repeatable.")
    ] = None,
    variant: Annotated[
        list[str] | None, typer.Option(help="Only the values of this variant, repeatable.")
    ] = None,
    data_root: Annotated[Path | None, typer.Option(help="Folder of the data set.")] = None,
    *,
    device: Device = "auto",
    results: ResultsFolder = Path("results"),
    batch_size: BatchSize = 16,
    workers: Workers = None,
    cache: Cache = None,
    cache_size: CacheSize = DEFAULT_CACHE_SIZE,
    quiet: Quiet = False,
) -> None:
    """Compare measured with published values; exits with 1 unless every one is met.

    With folders of runs, these are read. Without, what the file asks for is run: weights are
    fetched, and runs go on where they were stopped.

    Example: samrobust verify four-hq --segmenter hq-sam --variant vit_l --data-root HQ
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
        from samrobust.segmenters.device import keep_large_blocks, resolve_device

        keep_large_blocks()
        loop = LoopOptions(batch_size, n_workers(workers))
        with evaluation_progress(quiet=quiet) as show:
            settings = RunSettings(
                results,
                device=resolve_device(device),
                loop=loop,
                command=typed_command(),
                progress=show,
            )
            folders = _run(rows, data_root, settings, (cache, cache_size))

    from samrobust.report.published import verify
    from samrobust.runs.store import read_run

    found = verify(rows, [read_run(folder) for folder in folders])
    print_table(f"{chosen.name} v{chosen.version}: {chosen.summary}", *_table(found))
    for source in dict.fromkeys(row.source for row in rows):
        out.print(f"Published: {source}.", style="dim", markup=False)
    if not all(each.verdict == "met" for each in found):
        raise typer.Exit(1)


def _only(
    rows: Iterable[Expected], segmenters: Sequence[str], variants: Sequence[str]
) -> list[Expected]:
    kept = [
        row
        for row in rows
        if (not segmenters or row.segmenter in segmenters)
        and (not variants or row.variant in variants)
    ]
    if not kept:
        asked = ", ".join([*segmenters, *variants])
        raise SamrobustError(f"no expected value is of {asked}")
    return kept


def _run(
    rows: Sequence[Expected],
    data_root: Path | None,
    settings: "RunSettings",
    cache: tuple[Path | None, float],
) -> list[Path]:
    """Run what the rows ask for, one model after the other."""
    from samrobust.evaluation.runner import run_all

    folders: list[Path] = []
    models = dict.fromkeys((row.segmenter, row.variant, row.output, row.frame) for row in rows)
    for name, variant, output, frame in models:
        own = [
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
        asked = dict.fromkeys((row.protocol, row.selection, row.dataset, row.split) for row in own)
        for protocol, selection, dataset, split in asked:
            loaded = replace(
                load_protocol(protocol), selection=one_of(Selection, selection, kind="selection")
            )
            roots = [data_root] if data_root else []
            data = chosen_datasets([dataset], roots, [split] if split else [])
            folders += run_all([loaded], data, cached, settings)
    return list(dict.fromkeys(folders))


def _table(found: "Sequence[Verified]") -> tuple[list[str], list[list[str]]]:
    """Return header and rows; what is the same in all rows is left out, but for the segmenter."""
    from samrobust.report.columns import column_of, statistic_of

    columns = {
        "segmenter": [each.expected.label for each in found],
        "data": [each.expected.dataset for each in found],
        "condition": [each.expected.condition for each in found],
    }
    shown = {
        name: cells for name, cells in columns.items() if name == "segmenter" or len({*cells}) > 1
    }
    shown |= {
        "metric": [statistic_of(column_of(each.expected.metric)).label for each in found],
        "measured": [_percent(each.measured) for each in found],
        "published": [_percent(each.expected.value) for each in found],
        "diff": [_percent(each.difference, sign="+") for each in found],
        "verdict": [each.verdict for each in found],
    }
    return list(shown), [list(row) for row in zip(*shown.values(), strict=True)]


def _percent(value: float | None, *, sign: str = "") -> str:
    return "-" if value is None else f"{100 * value:{sign}.1f}"
