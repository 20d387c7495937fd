"""`samrobust compare`: two runs, paired."""

import math
import shlex
import sys
from pathlib import Path
from typing import Annotated

import typer

from samrobust.cli.options import check_number
from samrobust.cli.selection import (
    Labels,
    OfDatasets,
    OfProtocols,
    OfSegmenters,
    RunFolders,
    StrictImages,
    Wanted,
    in_words,
    run_folders,
    with_labels,
)
from samrobust.cli.terminal import note_line, print_tables
from samrobust.errors import RunError, SamrobustError

_DEFAULT = "default"


def compare_command(
    runs: RunFolders = None,
    protocol: OfProtocols = None,
    dataset: OfDatasets = None,
    segmenter: OfSegmenters = None,
    label: Labels = None,
    *,
    strict: StrictImages = False,
    count: Annotated[int, typer.Option(help="Objects that gained, and that lost, most.")] = 5,
    tolerance: Annotated[
        str | None,
        typer.Option(
            help="Exit with 1 unless no condition differs by more points than this; "
            f"'{_DEFAULT}': 0.2 of mIoU, 0.3 of mBIoU, 0.2 of mSF.",
            metavar="POINTS",
        ),
    ] = None,
    csv: Annotated[
        Path | None, typer.Option(help="File for what every object gained, one row each.")
    ] = None,
) -> None:
    """Compare two runs of one protocol and data set, on identical prompts.

    Exactly two runs must be left: A and B, in the order of the folders or of --segmenter.
    With --tolerance, A in float32 and B of the same segmenter in a reduced precision, the
    verdict is stored beside B and stands below the tables of every run there in that precision.

    Example: samrobust compare results --protocol noisy-box --segmenter sam-nano --segmenter ellipse
    """
    check_number("--count", count, least=0)
    limits = None if tolerance is None else _limits(tolerance)

    from samrobust.report.compare import compare, comparison_tables, verdict_of, verdict_table
    from samrobust.report.formats import write_text
    from samrobust.report.precision import differ_in_precision, write_verdict
    from samrobust.runs.store import read_run

    folders = run_folders(runs, Wanted(protocol or (), dataset or (), segmenter or ()))
    if len(folders) != 2:
        raise RunError(
            f"exactly two runs are compared, and {len(folders)} match; choose with --protocol, "
            f"--dataset and --segmenter, or name two folders: {'; '.join(map(in_words, folders))}"
        )
    before, after = with_labels([read_run(folder) for folder in folders], label)
    comparison = compare(before, after, strict=strict)
    print_tables(comparison_tables(comparison, count=count))
    if csv is not None:
        text = comparison.objects.to_csv(index=False, float_format="%.6g", lineterminator="\n")
        write_text(csv, text)
    if limits is not None:
        command = shlex.join(["samrobust", *sys.argv[1:]])
        verdict = verdict_of(comparison, after, limits=limits, command=command)
        print_tables([verdict_table(verdict)])
        if differ_in_precision(before, after):
            note_line(f"{write_verdict(verdict, after)}: written")
        if not verdict.passed:
            raise typer.Exit(1)


def _limits(tolerance: str) -> dict[str, float]:
    from samrobust.report.precision import LIMITS

    if tolerance == _DEFAULT:
        return dict(LIMITS)
    try:
        points = float(tolerance)
    except ValueError:
        points = math.nan
    if not 0 <= points <= 100:
        raise SamrobustError(
            f"--tolerance must be '{_DEFAULT}' or points in [0, 100], got '{tolerance}'"
        )
    return dict.fromkeys(LIMITS, points / 100)
