"""Run the command line as `python -m samrobust`."""

from samrobust.cli import main

main()
