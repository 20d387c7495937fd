"""`samrobust report`: tables and plots of stored runs."""

from pathlib import Path
from samrobust.cli.terminal import out


def print_report(folders: list[Path]) -> None:
    out.print(folders)


def report_command(runs: list[Path]) -> None:
    """Report."""
