"""`samrobust compare`: two runs, paired."""

from pathlib import Path
from typing import Annotated

import typer

from samrobust.cli.options import check_number
from samrobust.cli.terminal import print_tables


def compare_command(
    before: Annotated[Path, typer.Argument(metavar="RUN_A", help="Folder of a run.")],
    after: Annotated[Path, typer.Argument(metavar="RUN_B", help="Folder of another run.")],
    *,
    count: Annotated[int, typer.Option(help="Objects that gained, and that lost, most.")] = 5,
    csv: Annotated[
        Path | None, typer.Option(help="File for what every object gained, one row each.")
    ] = None,
) -> None:
    """Compare two runs of one protocol and data set, on identical prompts.

    Example: samrobust compare results/*sam-nano* results/*stable-sam*
    """
    check_number("--count", count, least=0)

    from samrobust.report.compare import compare, comparison_tables
    from samrobust.report.formats import write_text
    from samrobust.runs.store import read_run

    found = compare(read_run(before), read_run(after))
    print_tables(comparison_tables(found, count=count))
    if csv is not None:
        text = found.objects.to_csv(index=False, float_format="%.6g", lineterminator="\n")
        write_text(csv, text)
