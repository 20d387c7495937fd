"""The command line: the only place that reads options, prints and exits."""

import contextlib
import errno
import io
import logging
import os
import sys
from typing import Annotated

import typer

from samrobust import __version__
from samrobust.cli.compare import compare_command
from samrobust.cli.data import app as data_app
from samrobust.cli.draw import app as draw_app
from samrobust.cli.eval import EXAMPLES as EVAL_EXAMPLES
from samrobust.cli.eval import evaluate_command
from samrobust.cli.export import app as export_app
from samrobust.cli.ls import EXAMPLE as LS_EXAMPLE
from samrobust.cli.ls import ls_command
from samrobust.cli.options import Command
from samrobust.cli.prompts import app as prompts_app
from samrobust.cli.report import report_command
from samrobust.cli.score import EXAMPLE as SCORE_EXAMPLE
from samrobust.cli.score import score_command
from samrobust.cli.show import EXAMPLE as SHOW_EXAMPLE
from samrobust.cli.show import show_command
from samrobust.cli.terminal import NoteHandler, error_line, note_line
from samrobust.cli.train import EXAMPLES as TRAIN_EXAMPLES
from samrobust.cli.train import train_command
from samrobust.cli.verify import EXAMPLE as VERIFY_EXAMPLE
from samrobust.cli.verify import verify_command
from samrobust.errors import SamrobustError

RENAMED = {
    "--images-at-once": "--image-batch-size",
    "--longer": "--scale-steps",
    "--prompts-at-once": "--batch-size",
}
"""Options of 0.1.0 that still work under their old names."""
OUTPUT_ENDS = (errno.EDQUOT, errno.EFBIG, errno.EIO, errno.ENOSPC, errno.EPIPE)
"""Errors by which standard output says that it takes no more."""

app = typer.Typer(
    name="samrobust",
    no_args_is_help=True,
    rich_markup_mode="rich",
    pretty_exceptions_enable=False,
    context_settings={"help_option_names": ["-h", "--help"]},
)
app.command("eval", cls=Command, epilog=EVAL_EXAMPLES)(evaluate_command)
app.command("train", cls=Command, epilog=TRAIN_EXAMPLES)(train_command)
app.command("report", cls=Command)(report_command)
app.command("compare", cls=Command)(compare_command)
app.command("score", cls=Command, epilog=SCORE_EXAMPLE)(score_command)
app.command("show", cls=Command, epilog=SHOW_EXAMPLE)(show_command)
app.command("verify", cls=Command, epilog=VERIFY_EXAMPLE)(verify_command)
app.command("ls", cls=Command, epilog=LS_EXAMPLE)(ls_command)
app.add_typer(draw_app, name="draw")
app.add_typer(data_app, name="data")
app.add_typer(export_app, name="export")
app.add_typer(prompts_app, name="prompts")


def _print_version(wanted: bool) -> None:
    if wanted:
        typer.echo(f"samrobust {__version__}")
        raise typer.Exit


@app.callback()
def _samrobust(
    *,
    version: Annotated[
        bool,
        typer.Option(
            "--version", callback=_print_version, is_eager=True, help="Print the version and exit."
        ),
    ] = False,
) -> None:
    """Measure what happens to the masks of promptable segmenters when their prompts get worse."""


def main() -> None:
    """Run the command line; an error that a user can cause prints one line and exits with 1."""
    # Before torch starts its threads: idle ones sleep instead of spinning on the cores that the
    # loading processes need (2.5 times faster on two busy cores).
    os.environ.setdefault("OMP_WAIT_POLICY", "PASSIVE")
    logging.basicConfig(handlers=[NoteHandler()], level=logging.WARNING)
    logging.getLogger("samrobust").setLevel(logging.INFO)
    for stream in (sys.stdout, sys.stderr):
        if isinstance(stream, io.TextIOWrapper):
            stream.reconfigure(errors="replace")  # what a terminal cannot show must not end a run
    if sys.argv[1:2] == ["gate"]:
        error_line("gate is now: samrobust compare RUN_A RUN_B --tolerance default")
        sys.exit(2)
    sys.argv[1:] = [
        _with_new_name(argument) for argument in sys.argv[1:] if not _is_obsolete(argument)
    ]
    try:
        try:
            app()
        finally:
            sys.stdout.flush()
    except SamrobustError as error:
        error_line(str(error))
        sys.exit(1)
    except OSError as error:
        if error.filename is not None or error.errno not in OUTPUT_ENDS:
            raise
        _discard_output()
        error_line(f"the output cannot be written: {error.strerror}")
        sys.exit(1)


def _is_obsolete(argument: str) -> bool:
    """Return whether an argument has no meaning any more, and print so."""
    if argument == "--no-cache":
        note_line("--no-cache is not needed any more: embeddings are cached only with --cache")
    return argument == "--no-cache"


def _discard_output() -> None:
    """Discard the output that is still buffered, so that Python does not try to write it again."""
    with contextlib.suppress(OSError, ValueError):
        os.dup2(os.open(os.devnull, os.O_WRONLY), sys.stdout.fileno())


def _with_new_name(argument: str) -> str:
    """Return an argument with the present name of a renamed option, and print that name."""
    name, equals, value = argument.partition("=")
    if name not in RENAMED:
        return argument
    note_line(f"{name} is now called {RENAMED[name]}")
    return f"{RENAMED[name]}{equals}{value}"
