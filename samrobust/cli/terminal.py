"""What every command prints with: tables and progress on a terminal, plain text elsewhere."""

import logging
import time
from collections.abc import Callable, Collection, Iterator, Mapping, Sequence
from contextlib import contextmanager
from datetime import timedelta
from typing import TYPE_CHECKING

from rich.box import SIMPLE_HEAD
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
    from samrobust.report.tables import Table as ReportTable

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
            speed = f"{now.n_prompts / elapsed:,.0f} prompts/s, {now.busy_s / elapsed:.0%} busy"
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
        if not self._is_shown or now - self._last < LINE_SECONDS:
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
    """Print tables of a report on stdout, each with its footnotes."""
    for table in tables:
        print_table(table.title, table.header, table.rows, bold=table.bold)
        for footnote in table.footnotes:
            out.print(footnote.translate(_ESCAPED), style="dim", markup=False)
        out.print()


def print_table(
    title: str,
    header: Sequence[str],
    rows: Sequence[Sequence[str]],
    *,
    bold: Collection[tuple[int, int]] = (),
) -> None:
    """Print a table on stdout; all columns but the first are kept whole.

    Args:
        title: above it.
        header: of the columns.
        rows: texts.
        bold: (row, column) of texts in bold.
    """
    table = Table(
        title=escape(title.translate(_ESCAPED)),
        title_justify="left",
        title_style="bold",
        box=SIMPLE_HEAD,
        pad_edge=False,
        collapse_padding=True,
    )
    for position, name in enumerate(header):
        table.add_column(escape(name.translate(_ESCAPED)), overflow="fold", no_wrap=position > 0)
    for place, row in enumerate(rows):
        cells = (
            Text(cell.translate(_ESCAPED), style="bold" if (place, column) in bold else "")
            for column, cell in enumerate(row)
        )
        table.add_row(*cells)
    out.print(table)


def one_line(message: str) -> str:
    """Return a message without line breaks, its middle left out where it is long.

    What no terminal can show is escaped.
    """
    printable = message.encode("utf-8", "backslashreplace").decode()
    line = " ".join(printable.splitlines()).translate(_ESCAPED)
    half = LONGEST_LINE // 2
    return line if len(line) <= LONGEST_LINE else f"{line[:half]}…{line[-half:]}"
