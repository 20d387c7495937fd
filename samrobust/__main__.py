"""The command `samrobust`, and `python -m samrobust`."""

import signal


def main() -> None:
    """Run the command line.

    Until all is imported, which takes the better part of a second, Ctrl-C ends the process at once:
    Python would print where in the imports it was.
    """
    handler = signal.signal(signal.SIGINT, signal.SIG_DFL)

    from samrobust import cli

    signal.signal(signal.SIGINT, handler)
    cli.main()


if __name__ == "__main__":
    main()
