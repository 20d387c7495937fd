"""What every command prints with: tables and progress on a terminal, plain text elsewhere."""

import logging
import re
import time
from collections.abc import Callable, Collection, Iterator, Mapping, Sequence
from contextlib import contextmanager
from datetime import timedelta
from typing import TYPE_CHECKING

from rich.box import SIMPLE_HEAD
from rich.cells import cell_len
from rich.console import Console
from rich.markup import escape
from rich.progress import (
    BarColumn,
    DownloadColumn,
    MofNCompleteColumn,
    Progress,
    ProgressColumn,
    Task,
    TaskID,
    TextColumn,
    TimeRemainingColumn,
    TransferSpeedColumn,
)
from rich.table import Column, Table
from rich.text import Text

if TYPE_CHECKING:
    from samrobust.evaluation.runner import Progress as Evaluating
    from samrobust.report.layout import Table as ReportTable

out = Console(highlight=False, emoji=False)
err = Console(stderr=True, highlight=False, emoji=False)
LINE_SECONDS = 30.0
"""Between two lines of progress where stderr is not a terminal."""
LONGEST_LINE = 2_000
"""Characters of a message; a file may name things that are longer."""
_ESCAPED = {code: f"\\x{code:02x}" for code in (*range(9), *range(11, 32), *range(127, 160))}
"""Control characters but tab and line feed, which a file may bring along, as they are shown."""


def error_line(message: str) -> None:
    """Print an error as one line on stderr."""
    err.print(f"[bold red]error:[/] {escape(one_line(message))}", soft_wrap=True)


def note_line(message: str) -> None:
    """Print a remark as one line on stderr."""
    err.print(escape(one_line(message)), soft_wrap=True)


class NoteHandler(logging.Handler):
    """Prints what libraries log, one line per record on stderr."""

    def emit(self, record: logging.LogRecord) -> None:
        """Print a record."""
        note_line(record.getMessage())


@contextmanager
def loading(*, quiet: bool) -> Iterator[None]:
    """Show on a terminal that something happens, while libraries are imported."""
    if quiet or not err.is_terminal:
        yield
        return
    with err.status("starting"):
        yield


@contextmanager
def evaluation_progress(*, quiet: bool) -> "Iterator[Callable[[Evaluating], None]]":
    """Give a function that shows how far an evaluation is, on stderr."""
    with progress_bar(quiet=quiet) as bar:
        tasks: dict[str, TaskID] = {}
        line = _Lines(quiet=quiet)

        def show(now: "Evaluating") -> None:
            elapsed = max(now.elapsed_s, 1e-9)
            rate = now.n_prompts / elapsed
            speed = f"{rate:,.{0 if rate > 10 else 1}f} prompts/s, {now.busy_s / elapsed:.0%} busy"
            if now.title not in tasks:
                tasks[now.title] = bar.add_task(now.title, total=now.total, speed="")
            bar.update(tasks[now.title], completed=now.done, speed=speed)
            line.show(now.title, now.done, now.total, "images", speed)

        yield show


@contextmanager
def training_progress(
    n_steps: int, *, quiet: bool
) -> Iterator[Callable[[int, str, float, Mapping[str, Mapping[str, float]]], None]]:
    """Give a function that shows step, phase, loss and held-out mIoU on stderr."""
    with progress_bar(quiet=quiet, unit="steps") as bar:
        task = bar.add_task("starting", total=n_steps)
        line = _Lines(quiet=quiet)

        def show(
            step: int, phase: str, loss: float, held_out: Mapping[str, Mapping[str, float]]
        ) -> None:
            boxes = [found["box"] for found in held_out.values() if "box" in found]
            validated = " / ".join(f"{100 * value:.1f}" for value in boxes)
            words = f"{phase}: loss {loss:.3f}" + (f", mIoU {validated}" if validated else "")
            bar.update(task, completed=step, description=words)
            line.show(words, step, n_steps, "steps")

        yield show


class _Lines:
    """Progress as a line every 30 seconds, in logs of Slurm or nohup, where no bar is shown."""

    def __init__(self, *, quiet: bool) -> None:
        self._is_shown = not (quiet or err.is_terminal)
        self._started = self._last = time.monotonic()
        self._first: int | None = None

    def show(self, words: str, done: int, total: int, unit: str, speed: str = "") -> None:
        """Print a line if one is due: what is done, how fast, and the time that is left."""
        now = time.monotonic()
        if self._first is None:  # what an earlier command did is not counted as fast
            self._first, self._started = done, now
        if not self._is_shown or done == total or now - self._last < LINE_SECONDS:
            return
        self._last = now
        rate = (done - self._first) / max(now - self._started, 1e-9)
        left = timedelta(seconds=round((total - done) / rate)) if rate > 0 else "unknown time"
        speed = speed or f"{rate:.2f} {unit}/s"
        note_line(f"{words}: {done} of {total} {unit}, {speed}, {left} left")


def progress_bar(*, quiet: bool, unit: str = "images") -> Progress:
    """Return a progress display on stderr: how many are done, how many a second, time left.

    It shows nothing if `quiet`, and where stderr is not a terminal; it fits into 80 columns. A task
    may have a field `speed`, a text that stands in place of the units per second.
    """
    description = Column(no_wrap=True, overflow="ellipsis", ratio=1)
    return Progress(
        TextColumn("{task.description}", table_column=description),
        BarColumn(bar_width=8),
        MofNCompleteColumn(),
        _Speed(unit),
        TimeRemainingColumn(compact=True),
        TextColumn("left"),
        console=err,
        disable=quiet or not err.is_terminal,
        expand=True,
    )


class _Speed(ProgressColumn):
    """What was done in a second: the task's own text, or units."""

    def __init__(self, unit: str) -> None:
        super().__init__()
        self._unit = unit

    def render(self, task: Task) -> Text:
        if "speed" in task.fields:
            return Text(str(task.fields["speed"]))
        return Text("" if task.speed is None else f"{task.speed:,.1f} {self._unit}/s")


@contextmanager
def download_bar(*, quiet: bool) -> Iterator[Callable[[int, int], None]]:
    """Give a function that shows bytes fetched on stderr, and nothing until it is called."""
    columns = (TextColumn("downloading weights"), BarColumn(bar_width=None), DownloadColumn())
    disable = quiet or not err.is_terminal
    bar = Progress(*columns, TransferSpeedColumn(), console=err, disable=disable)
    task = bar.add_task("", start=False)

    def show(here: int, total: int) -> None:
        bar.start()
        bar.start_task(task)
        bar.update(task, completed=here, total=total)

    try:
        yield show
    finally:
        bar.stop()


def print_tables(tables: "Sequence[ReportTable]") -> None:
    """Print tables of a report on stdout, each with its footnotes and what there was no room for.

    Where a table is wider than the terminal, names fold, then intervals go, then columns.
    """
    for table in tables:
        header, rows, columns, left_out = _fitted(table, out.width)
        bold = {(row, columns.index(each)) for row, each in table.bold if each in columns}
        n_names = sum(column < table.n_names for column in columns)
        print_table(table.title, header, rows, bold=bold, n_names=n_names)
        notes = [f"Left out, as there is no room: {', '.join(left_out)}."] if left_out else []
        for footnote in (*table.footnotes, *notes):
            _print_without_blanks(Text(footnote.translate(_ESCAPED), style="dim"))
        out.print()


def print_table(
    title: str,
    header: Sequence[str],
    rows: Sequence[Sequence[str]],
    *,
    bold: Collection[tuple[int, int]] = (),
    n_names: int = 1,
) -> None:
    """Print a table on stdout, without blanks at the ends of lines; nothing is cut off.

    Args:
        title: above it.
        header: of the columns.
        rows: texts.
        bold: (row, column) of texts in bold.
        n_names: columns that fold where there is no room, as do long texts; others are kept whole.
    """
    grid = Table(box=SIMPLE_HEAD, pad_edge=False, collapse_padding=True)
    widths = _widths(header, rows)
    fold = [place < n_names or width > _LONG for place, width in enumerate(widths)]
    least = [min(width, _LEAST) if may else width for may, width in zip(fold, widths, strict=True)]
    fits = _total(least) <= out.width
    for name, may_fold, width in zip(header, fold, least, strict=True):
        text = escape(name.translate(_ESCAPED))
        whole = fits and not may_fold
        grid.add_column(text, overflow="fold", no_wrap=whole, min_width=width if fits else None)
    for place, row in enumerate(rows):
        cells = (
            Text(cell.translate(_ESCAPED), style="bold" if (place, column) in bold else "")
            for column, cell in enumerate(row)
        )
        grid.add_row(*cells)
    _print_without_blanks(Text(title.translate(_ESCAPED), style="bold"))
    _print_without_blanks(grid)


def _print_without_blanks(what: Text | Table) -> None:
    """Print a text or table without blanks at the ends of its lines."""
    with out.capture() as drawn:
        out.print(what)
    lines = (line.rstrip(" ") for line in drawn.get().splitlines())
    out.print(Text.from_ansi("\n".join(lines)), soft_wrap=True)


_LEAST, _LONG = 14, 40
"""Characters to which a name may be folded, and from which on any text may be."""
_INTERVAL = re.compile(r" (±\S+|\[[^\]]*\])$")


def _fitted(
    table: "ReportTable", width: int
) -> tuple[list[str], list[list[str]], list[int], list[str]]:
    """Return header, rows and places of the columns that have room, and what was left out."""
    columns = list(range(len(table.header)))
    rows = [list(row) for row in table.rows]
    left_out: list[str] = []

    def is_too_wide() -> bool:
        widths = _widths(table.header, rows)
        return width < _total(
            [min(widths[place], _LEAST if place < table.n_names else _LONG) for place in columns]
        )

    if is_too_wide():
        without = [
            [
                cell if place < table.n_names else _INTERVAL.sub("", cell)
                for place, cell in enumerate(row)
            ]
            for row in rows
        ]
        left_out += ["intervals"] if without != rows else []
        rows = without
    for place in table.dispensable or range(len(columns) - 1, table.n_names, -1):
        if not is_too_wide():
            break
        columns.remove(place)
        left_out.append(table.header[place])
    header = [table.header[place] for place in columns]
    return header, [[row[place] for place in columns] for row in rows], columns, left_out


def _widths(header: Sequence[str], rows: Sequence[Sequence[str]]) -> list[int]:
    """Return the width of each column, as the terminal counts characters."""
    return [
        max(cell_len(text.translate(_ESCAPED)) for text in column)
        for column in zip(header, *rows, strict=True)
    ]


def _total(widths: Sequence[int]) -> int:
    """Return the width of a table: one blank on both sides, and two between columns."""
    return sum(widths) + 2 * len(widths)


def one_line(message: str) -> str:
    """Return a message without line breaks, its middle left out where it is long.

    What no terminal can show is escaped.
    """
    printable = message.encode("utf-8", "backslashreplace").decode()
    line = " ".join(printable.splitlines()).translate(_ESCAPED)
    half = LONGEST_LINE // 2
    return line if len(line) <= LONGEST_LINE else f"{line[:half]}…{line[-half:]}"
