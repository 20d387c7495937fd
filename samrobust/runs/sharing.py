"""Several processes on one run: which images each takes, and the lock of each shard."""

import hashlib
import os
import re
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path

from filelock import FileLock, Timeout

from samrobust.errors import RunError

STARTING_SECONDS = 60.0
"""To wait for another process that starts, or notes something in the manifest."""
_STARTING = ".lock"
_SHARD = re.compile(r"(\d{1,6})/(\d{1,6})", re.ASCII)
_LOCK = re.compile(r"\.shard-(\d+)-of-(\d+)\.lock")


@dataclass(frozen=True)
class Shard:
    """One of several processes that share the images of a run; the whole run by default.

    Attributes:
        number: from 1 to `count`.
        count: how many there are.
    """

    number: int = 1
    count: int = 1

    @property
    def label(self) -> str:
        """Return its part of the names of files, as "2of8"; "" for the whole run."""
        return "" if self.count == 1 else f"{self.number}of{self.count}"

    def split(self, number: int, count: int) -> "Shard":
        """Return one of `count` parts of this shard, `number` from 1."""
        return Shard((self.number - 1) * count + number, self.count * count)

    def share_of(self, sample_ids: Sequence[str]) -> list[str]:
        """Return this shard's share of the images, in their order.

        A hash of id and count decides, so that processes agree without talking to each other, and
        what one shard of eight left undone is spread evenly over four.
        """
        return [name for name in sample_ids if self._owner(name) == self.number]

    def _owner(self, sample_id: str) -> int:
        key = f"{self.count}/{sample_id}".encode(errors="surrogatepass")
        digest = hashlib.blake2b(key, digest_size=8).digest()
        return 1 + int.from_bytes(digest, "big") % self.count

    def __str__(self) -> str:
        return "this run" if self.count == 1 else f"shard {self.number}/{self.count} of this run"


WHOLE = Shard()


def parse_shard(text: str) -> Shard:
    """Return the shard that "2/8" means: the second of eight.

    Raises:
        RunError: it is no shard.
    """
    found = _SHARD.fullmatch(text)
    number, count = map(int, found.groups()) if found else (0, 0)
    if not 1 <= number <= count:
        raise RunError(f"--shard must be I/N with 1 <= I <= N, as 2/8, got '{text}'")
    return Shard(number, count)


@dataclass(frozen=True)
class Ranks:
    """This process's place among those that `torchrun` started; alone without it.

    Attributes:
        rank: from 0 to `world` - 1.
        world: processes on all machines.
        local_rank: its place among those of its machine.
        local_world: processes on its machine.
    """

    rank: int = 0
    world: int = 1
    local_rank: int = 0
    local_world: int = 1

    @classmethod
    def from_environment(cls) -> "Ranks":
        """Return what `torchrun` says in the environment."""
        alone = {"RANK": 0, "WORLD_SIZE": 1, "LOCAL_RANK": 0, "LOCAL_WORLD_SIZE": 1}
        return cls(*(int(os.environ.get(name, value)) for name, value in alone.items()))

    def own_device(self, device: str) -> str:
        """Return the device of this process: with `torchrun`, each of a machine's has its own GPU.

        Args:
            device: "cpu", "cuda" or "cuda:1".
        """
        shared = self.world > 1 and device.startswith("cuda")
        return f"cuda:{self.local_rank}" if shared else device

    def part_of(self, shard: Shard = WHOLE) -> Shard:
        """Return what this process takes of a shard that all of them share."""
        return shard.split(self.rank + 1, self.world)


@contextmanager
def starting(folder: Path) -> Iterator[None]:
    """Keep out other processes that start to write a run, or change what its writers share.

    Raises:
        RunError: another process holds the lock for `STARTING_SECONDS`.
    """
    try:
        lock = FileLock(folder / _STARTING).acquire(timeout=STARTING_SECONDS)
    except Timeout as error:
        raise RunError(f"{folder}: another process is writing this run") from error
    with lock:
        yield


def claim(folder: Path, shard: Shard) -> FileLock:
    """Return the lock of a shard, acquired, and remove what a killed writer left half-written.

    Locks end with their process, however it ends. Call it within `starting`.

    Raises:
        RunError: another process writes this shard, or one that may have images in common with it.
    """
    own = folder / f".shard-{shard.number}-of-{shard.count}.lock"
    for path in folder.iterdir():
        found = _LOCK.fullmatch(path.name)
        other = Shard(*map(int, found.groups())) if found else shard
        if other.count != shard.count:
            if not _is_free(path):
                raise RunError(f"{folder}: another process is writing {other}{_rule(other)}")
            path.unlink()
    if not _is_free(own):
        raise RunError(f"{folder}: another process is writing {shard}")
    for path in folder.rglob(f"*-{shard.label}[-.]*.tmp" if shard.label else "*.tmp"):
        path.unlink(missing_ok=True)
    return FileLock(own).acquire(blocking=False).lock


def _rule(other: Shard) -> str:
    only = f"; only other shards of {other.count} can be written beside it"
    return only if other.label else ""


def _is_free(path: Path) -> bool:
    try:
        with FileLock(path).acquire(blocking=False):
            return True
    except Timeout:
        return False
