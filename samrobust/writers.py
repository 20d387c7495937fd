"""Who may write a run: one process the whole of it, or one each shard of the same number of shards.

A writer holds the lock of its shard, and locks end with their process, however it ends. Whoever
comes looks at the others' locks behind a gate, a lock that is held for a moment only, so that no
two come at once.
"""

import re
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path

from filelock import FileLock, Timeout

from samrobust.errors import RunError
from samrobust.shards import Shard

GATE_SECONDS = 60.0
"""To wait for the gate; it is held for as long as it takes to look at some files."""
_GATE = ".lock"
_LOCK = re.compile(r"\.shard-(\d+)-of-(\d+)\.lock")
_OWNER = re.compile(r"-(\d+)of(\d+)[-.]")


@contextmanager
def gate(folder: Path) -> Iterator[None]:
    """Keep out whoever wants to begin to write a run, or to write what its writers share.

    Raises:
        RunError: another process does not open it.
    """
    try:
        lock = FileLock(folder / _GATE).acquire(timeout=GATE_SECONDS)
    except Timeout as error:
        raise RunError(f"{folder}: another process is writing this run") from error
    with lock:
        yield


def claim(folder: Path, shard: Shard) -> FileLock:
    """Return the lock of a shard, acquired; call it behind the gate.

    Raises:
        RunError: another process writes this shard, or one that may have images in common with it.
    """
    for path, other in _locks(folder):
        if other != shard and other.count == shard.count:
            continue
        if not _is_free(path):
            rule = f"; only other shards of {other.count} can be written beside it"
            also = rule if other.label and other.count != shard.count else ""
            raise RunError(f"{folder}: another process is writing {other}{also}")
        if other != shard:
            path.unlink()
    return FileLock(_lock_path(folder, shard)).acquire(blocking=False).lock


def clear_unfinished(folder: Path, shard: Shard) -> None:
    """Remove half-written files of writers that are no more; call it behind the gate.

    Of other shards of the same number nothing is removed: they may be alive.
    """
    for path in folder.rglob("*.tmp"):
        found = _OWNER.search(path.name)
        owner = Shard(*map(int, found.groups())) if found else Shard()
        if owner == shard or owner.count != shard.count:
            path.unlink(missing_ok=True)


def others_write(folder: Path, shard: Shard) -> bool:
    """Return whether another shard of a run is being written."""
    with gate(folder):
        return any(other != shard and not _is_free(path) for path, other in _locks(folder))


def _locks(folder: Path) -> list[tuple[Path, Shard]]:
    found = ((path, _LOCK.fullmatch(path.name)) for path in folder.iterdir())
    return [(path, Shard(*map(int, match.groups()))) for path, match in found if match]


def _lock_path(folder: Path, shard: Shard) -> Path:
    return folder / f".shard-{shard.number}-of-{shard.count}.lock"


def _is_free(path: Path) -> bool:
    try:
        with FileLock(path).acquire(blocking=False):
            return True
    except Timeout:
        return False
