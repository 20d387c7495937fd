"""`samrobust report`: tables, figures and a page of stored runs."""

from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager
from pathlib import Path
from typing import TYPE_CHECKING, Annotated

import typer

from samrobust.cli.options import Quiet
from samrobust.cli.selection import (
    Labels,
    OfDatasets,
    OfProtocols,
    OfSegmenters,
    RunFolders,
    StrictImages,
    Wanted,
    run_folders,
    with_labels,
)
from samrobust.cli.terminal import note_line, out, print_tables, progress_bar
from samrobust.registry import known

if TYPE_CHECKING:
    from samrobust.report.formats import Format
    from samrobust.report.summary import Section
    from samrobust.runs.store import Run

_ENDINGS: "dict[str, Format]" = {"csv": "csv", "latex": "tex", "markdown": "md"}
FORMATS = (*_ENDINGS, "html", "json")
PAGE = "report.html"
_Advance = Callable[[], None]


def report_command(
    runs: RunFolders = None,
    protocol: OfProtocols = None,
    dataset: OfDatasets = None,
    segmenter: OfSegmenters = None,
    label: Labels = None,
    table_format: Annotated[
        list[str] | None,
        typer.Option(
            "--format",
            help="csv, latex, markdown, html (a page) or json (a file a run), repeatable; "
            "with --out: all.",
        ),
    ] = None,
    folder: Annotated[
        Path | None,
        typer.Option("--out", help=f"Folder for tables, figures, {PAGE} and exports."),
    ] = None,
    columns: Annotated[
        str | None,
        typer.Option(
            help="Statistics that tables show, as mIoU,mSF; CSV and JSON have all.",
            metavar="NAME,...",
        ),
    ] = None,
    *,
    strict: StrictImages = False,
    details: Annotated[
        bool,
        typer.Option("--details", help="Print also trials, classes of objects and differences."),
    ] = False,
    quiet: Quiet = False,
) -> None:
    """Compare stored runs: one table a protocol and data set, figures, and a page.

    Without --out, what --format names is printed, but the page, which is written as report.html.
    Runs whose prompts, selection or frame differ are not compared; of those that are, the images
    that all of them have.

    Example: samrobust report results --protocol noisy-box --format html
    """
    formats = [known(name, FORMATS, kind="format") for name in table_format or []]

    from samrobust.report.summary import summarise
    from samrobust.report.tables import with_columns

    folders = run_folders(runs, Wanted(protocol or (), dataset or (), segmenter or ()))
    read = with_labels(_read_runs(folders, quiet=quiet), label)
    sections = summarise(read, strict=strict)
    if columns is not None:
        sections = with_columns(sections, [name.strip() for name in columns.split(",")])
    if folder is not None:
        paths = _write(read, sections, folder, formats or FORMATS, quiet=quiet)
        print_sections(sections, details=details)
        names = ", ".join(str(path.relative_to(folder)) for path in paths)
        note_line(f"written: {names} in {folder}")
    elif formats:
        _print_formats(read, sections, formats, quiet=quiet)
    else:
        print_sections(sections, details=details)


def print_report(folders: Sequence[Path]) -> None:
    """Print the tables of runs that were just made, and where they lie."""
    from samrobust.report.summary import summarise

    print_sections(summarise(_read_runs(folders, quiet=True)))
    out.print("results:", style="bold")
    for folder in folders:
        out.print(f"  {folder}", soft_wrap=True, markup=False)


def print_sections(sections: "Sequence[Section]", *, details: bool = False) -> None:
    """Print the tables of summaries, each after what it says at a glance."""
    from samrobust.report.tables import glance_table, terminal_tables

    for section in sections:
        if (glance := glance_table(section)) is not None:
            print_tables([glance])
        print_tables(terminal_tables([section], details=details))


def _write(
    runs: "Sequence[Run]",
    sections: "Sequence[Section]",
    folder: Path,
    formats: Sequence[str],
    *,
    quiet: bool,
) -> list[Path]:
    """Write figures and what is asked for, and return the paths."""
    from samrobust.report.formats import write_exports, write_tables
    from samrobust.report.page import write_page
    from samrobust.report.plots import write_plots

    endings = [_ENDINGS[name] for name in formats if name in _ENDINGS]
    paths = write_tables(sections, folder, formats=endings)
    with _counted("figures", None, quiet=quiet) as advance:
        for path in write_plots(sections, folder):
            paths.append(path)
            advance()
    if "html" in formats:
        with _counted("page", len(sections), quiet=quiet) as advance:
            paths.append(write_page(sections, folder / PAGE, progress=advance))
    if "json" in formats:
        paths += write_exports(runs, folder)
    return paths


def _print_formats(
    runs: "Sequence[Run]", sections: "Sequence[Section]", formats: Sequence[str], *, quiet: bool
) -> None:
    from samrobust.report.formats import to_csv, to_json, to_latex, to_markdown
    from samrobust.report.page import write_page

    writers = {"csv": to_csv, "latex": to_latex, "markdown": to_markdown}
    for name in formats:
        if name == "html":
            with _counted("page", len(sections), quiet=quiet) as advance:
                write_page(sections, Path(PAGE), progress=advance)
            note_line(f"{PAGE}: written")
        elif name == "json":
            out.out(to_json(runs), end="")
        else:
            out.out(writers[name](sections), end="")


def _read_runs(folders: Sequence[Path], *, quiet: bool) -> "list[Run]":
    """Return the runs, without those that were stopped before anything was stored."""
    from samrobust.runs.store import read_run

    runs = []
    with _counted("runs", len(folders), quiet=quiet) as advance:
        for folder in folders:
            runs.append(read_run(folder))
            advance()
    scored = [run for run in runs if not run.is_empty]
    for run in runs:
        if run.is_empty and scored:
            note_line(f"left out: {run.folder} holds no scores yet; give its command again")
    return scored or runs


@contextmanager
def _counted(what: str, total: int | None, *, quiet: bool) -> Iterator[_Advance]:
    """Give a function that counts one more on a progress display."""
    with progress_bar(quiet=quiet, unit=what) as progress:
        task = progress.add_task(what, total=total)
        yield lambda: progress.advance(task)
