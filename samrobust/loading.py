"""What every loader's processes need: an end when their parent ends, values handed on as made."""

import os
import threading
import time
from typing import TypeVar

T = TypeVar("T")


def end_with_parent(_worker: int) -> None:
    """Let a loading process end when its parent is killed, instead of waiting for it for ever."""
    parent = os.getppid()

    def watch() -> None:
        while os.getppid() == parent:
            time.sleep(1)
        os._exit(1)

    threading.Thread(target=watch, daemon=True).start()


def as_it_is(drawn: T) -> T:
    """Return what a loading process made, without making tensors of it."""
    return drawn
