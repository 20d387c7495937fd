"""`samrobust report`: tables and plots of stored runs."""

from collections.abc import Sequence
from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Literal

import typer

from samrobust.cli.terminal import note_line, out, print_table
from samrobust.errors import RunError
from samrobust.registry import known

if TYPE_CHECKING:
    from samrobust.report.aggregate import Section
    from samrobust.store import Run

_ENDINGS: dict[str, Literal["csv", "tex", "md"]] = {"csv": "csv", "latex": "tex", "markdown": "md"}


def report_command(
    runs: Annotated[
        list[Path], typer.Argument(help="Folders of runs, as results/*.", show_default=False)
    ],
    table_format: Annotated[
        list[str] | None,
        typer.Option("--format", help="csv, latex or markdown, repeatable; with --out: all."),
    ] = None,
    folder: Annotated[
        Path | None,
        typer.Option("--out", help="Folder for tables and plots; without it, print."),
    ] = None,
) -> None:
    """Compare stored runs: one table a protocol and data set, and plots.

    Runs whose prompts, selection or frame differ are not compared.

    Example: samrobust report results/* --format latex --format csv --out report
    """
    formats = [known(name, _ENDINGS, kind="format") for name in table_format or []]

    from samrobust.report.aggregate import summarise
    from samrobust.report.plots import write_plots
    from samrobust.report.files import write_tables

    sections = summarise(_read_runs(_only_folders(runs)))
    if folder is not None:
        endings = [_ENDINGS[name] for name in formats or _ENDINGS]
        paths = [*write_tables(sections, folder, formats=endings), *write_plots(sections, folder)]
        _print_sections(sections)
        note_line(f"written: {', '.join(path.name for path in paths)} in {folder}")
    elif formats:
        writers = {"csv": to_csv, "latex": to_latex, "markdown": to_markdown}
        for name in formats:
            out.out(writers[name](sections), end="")
    else:
        _print_sections(sections)


def print_report(folders: Sequence[Path]) -> None:
    """Print the tables of runs that were just made, and where they lie."""
    from samrobust.report.aggregate import summarise

    _print_sections(summarise(_read_runs(folders)))
    out.print("results:", style="bold")
    for folder in folders:
        out.print(f"  {folder}", soft_wrap=True, markup=False)


def _only_folders(paths: Sequence[Path]) -> list[Path]:
    """Return the folders among the paths: `results/*` may match other files too."""
    folders = [path for path in paths if path.is_dir()]
    if not folders:
        raise RunError(f"{paths[0]}: there is no such run; runs are the folders in results/")
    return folders


def _read_runs(folders: Sequence[Path]) -> "list[Run]":
    """Return the runs, without those that were stopped before anything was stored."""
    from samrobust.store import read_run

    runs = [read_run(folder) for folder in folders]
    scored = [run for run in runs if not run.scores.empty]
    for run in runs:
        if run.scores.empty and scored:
            note_line(f"left out: {run.folder} holds no scores yet; give its command again")
    return scored or runs


def _print_sections(sections: "Sequence[Section]") -> None:
    from samrobust.report.tables import terminal_tables

    for table in terminal_tables(sections):
        print_table(table.title, table.header, table.rows)
        for footnote in table.footnotes:
            out.print(footnote, style="dim", markup=False)
        out.print()
