"""The command `samrobust`, and `python -m samrobust`."""

import os
import signal


def main() -> None:
    """Run the command line.

    Until a command begins, which takes the better part of a second, Ctrl-C ends the process without
    an exception: Python would print where in the imports it was, or a library hide it.
    """
    if signal.getsignal(signal.SIGINT) is signal.default_int_handler:  # else it is to be ignored
        signal.signal(signal.SIGINT, _end)

    from samrobust import cli

    cli.main()


def _end(*_: object) -> None:
    os.write(2, b"interrupted\n")
    os._exit(130)


if __name__ == "__main__":
    main()
