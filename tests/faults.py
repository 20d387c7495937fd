"""Command lines in processes of their own, to be killed or starved.

The processes are forked from one that has imported what commands import, so that each starts at
once; they have one thread each, so that all of them add in the same order.
"""

import ctypes
import functools
import multiprocessing
import os
import re
import resource
import signal
import sys
import time
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any, Literal

import pandas as pd
import torch

import samrobust.runs.store
from samrobust.cli import main
from samrobust.runs.store import read_masks, read_photographs, read_run
from samrobust.training import loop

Step = Sequence[str] | Callable[[], None]
"""A command line, or what is done before or after one in the same process."""

FORKS = multiprocessing.get_context("forkserver")
FORKS.set_forkserver_preload(
    [
        __name__,
        "samrobust.datasets.scenes",
        "samrobust.evaluation.loop",
        "samrobust.report.tables",
        "samrobust.segmenters.baselines",
        "samrobust.training.curve",
        "samrobust.training.models",
        "samrobust.training.adapters",
    ]
)

LONGEST = 300.0
"""Seconds that no process takes."""

_NEW_MOUNTS, _NEW_USER = 0x00020000, 0x10000000  # linux/sched.h
_READ_ONLY, _REMOUNT, _BIND, _RECURSIVE, _PRIVATE = 1, 32, 4096, 16384, 1 << 18  # linux/mount.h
_KEPT_FLAGS = 2 | 4 | 8 | 1024 | 2048
"""Of a mount, that a user may not take away: no suid, devices, programs, access times."""


@dataclass(frozen=True)
class Ended:
    """A process that has ended.

    Attributes:
        code: 0, an exit code, or less than 0: a signal.
        said: on stdout and stderr.
        seconds: that it took.
    """

    code: int
    said: str
    seconds: float

    @property
    def errors(self) -> list[str]:
        """Return its lines of errors; there is no traceback among what it said."""
        assert "Traceback" not in self.said
        lines = self.said.splitlines()
        return [line.removeprefix("error: ") for line in lines if line.startswith("error:")]


def run(folder: Path, *steps: Step, kill_after: float = LONGEST) -> Ended:
    """Do steps in a process of its own that works in a folder.

    Args:
        folder: made if it is not there.
        steps: one after the other, also after a command that failed; the last command's exit code
            is the process's.
        kill_after: seconds to SIGKILL.
    """
    folder.mkdir(exist_ok=True)
    said = folder.with_name(f"{folder.name}-said.txt")
    _start_forking()
    process = FORKS.Process(target=_do, args=(folder, said, steps))
    started = time.monotonic()
    process.start()
    process.join(kill_after)
    process.kill()
    process.join()
    seconds = time.monotonic() - started
    assert process.exitcode is not None
    return Ended(
        process.exitcode, said.read_text(encoding="utf-8") if said.exists() else "", seconds
    )


@functools.cache
def _start_forking() -> None:
    """Wait for what the others are forked from: it imports for seconds, which are not theirs."""
    process = FORKS.Process(target=os.getpid)
    process.start()
    process.join()


def _do(folder: Path, said: Path, steps: Sequence[Step]) -> None:
    sys.stdout = sys.stderr = said.open("w", encoding="utf-8")
    os.chdir(folder)
    torch.set_num_threads(1)
    samrobust.runs.store.FLUSH_SECONDS = (
        loop.SAVE_SECONDS
    ) = -1.0  # a part, a state as often as can be
    code = 0
    for step in steps:
        if callable(step):
            step()
            continue
        code = 0
        sys.argv = ["samrobust", *step]
        try:
            main()
        except SystemExit as stopped:
            code = int(stopped.code or 0)
    sys.exit(code)


def kill_at(event: Literal["open", "os.rename"], pattern: str, *, nth: int = 1) -> None:
    """Let this process be ended by SIGKILL just before a file is written or moved to its place.

    Args:
        event: of Python's audit events; of "open" those alone that open a file for writing.
        pattern: found in the path that is opened, or to which a file is moved.
        nth: of the events that fit.
    """
    left = nth

    def watch(happens: str, arguments: tuple[Any, ...]) -> None:
        nonlocal left
        if happens != event:
            return
        path, flags = arguments[0], arguments[-1]
        if event == "os.rename":
            path = arguments[1]
        elif not flags & (os.O_WRONLY | os.O_RDWR):
            return
        if not isinstance(path, int) and re.search(pattern, os.fsdecode(path)):
            left -= 1
            if left == 0:
                os.kill(os.getpid(), signal.SIGKILL)

    sys.addaudithook(watch)


def own_mounts() -> None:
    """Let what this process mounts be seen by no other; OSError where that is not allowed."""
    user, group = os.getuid(), os.getgid()
    _call("unshare", _NEW_USER | _NEW_MOUNTS)
    Path("/proc/self/setgroups").write_text("deny")
    Path("/proc/self/uid_map").write_text(f"{user} {user} 1")
    Path("/proc/self/gid_map").write_text(f"{group} {group} 1")
    _call("mount", None, b"/", None, _RECURSIVE | _PRIVATE, None)


def mount_disk(path: Path, size: int, *, again: bool = False) -> None:
    """Mount an empty disk in memory of so many bytes, or change the size of one."""
    path.mkdir(exist_ok=True)
    flags = _REMOUNT if again else 0
    _call("mount", b"tmpfs", os.fsencode(path), b"tmpfs", flags, f"size={size}".encode())


def make_read_only(path: Path) -> None:
    """Let nobody write below a folder, not even root."""
    place = os.fsencode(path)
    _call("mount", place, place, None, _BIND, None)
    kept = os.statvfs(path).f_flag & _KEPT_FLAGS
    _call("mount", None, place, None, _BIND | _REMOUNT | _READ_ONLY | kept, None)


def limit_file_size(n_bytes: int | None) -> None:
    """Let writing fail in files beyond a size, or no longer."""
    most = resource.getrlimit(resource.RLIMIT_FSIZE)[1]
    resource.setrlimit(resource.RLIMIT_FSIZE, (most if n_bytes is None else n_bytes, most))


def limit_memory(n_bytes: int | None) -> None:
    """Let this process have so many bytes of memory more than it has now, or as many as it wants.

    What is asked for beyond is refused.
    """
    has_now = int(Path("/proc/self/statm").read_text().split()[0]) * resource.getpagesize()
    most = resource.getrlimit(resource.RLIMIT_AS)[1]
    resource.setrlimit(resource.RLIMIT_AS, (most if n_bytes is None else has_now + n_bytes, most))


def tables(results: Path) -> list[pd.DataFrame]:
    """Return all that the one run of a folder holds, each table in an order of its own."""
    (folder,) = results.iterdir()
    stored = read_run(folder)
    assert stored.n_missing == 0
    assert not stored.failures
    found = [stored.scores, stored.objects, read_masks(folder), read_photographs(folder)]
    return [
        table.sort_values([name for name in table if name in _KEYS]).reset_index(drop=True)
        for table in found
    ]


_KEYS = ("sample_id", "instance_id", "condition", "trial", "metric")


def assert_same_tables(results: Path, wanted: Path) -> None:
    """Check that two runs hold the same rows."""
    for mine, theirs in zip(tables(results), tables(wanted), strict=True):
        pd.testing.assert_frame_equal(mine, theirs)


def _call(name: str, *arguments: Any) -> None:  # noqa: ANN401
    """Call a function of the C library that returns 0, or raise OSError."""
    library = ctypes.CDLL(None, use_errno=True)
    if getattr(library, name)(*arguments):
        number = ctypes.get_errno()
        raise OSError(number, os.strerror(number), name)
