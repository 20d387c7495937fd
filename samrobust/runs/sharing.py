"""Share a run among processes: which images each one takes, and the lock of each shard."""

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
"""How long to wait for another process that starts or writes the manifest."""
_STARTING = ".lock"
_SHARD = re.compile(r"(\d{1,6})/(\d{1,6})", re.ASCII)
_LOCK = re.compile(r"\.shard-(\d+)-of-(\d+)\.lock")


@dataclass(frozen=True)
class Shard:
    """A share of the images of a run; the whole run by default.

    Attributes:
        number: from 1 to `count`.
        count: number of shards.
    """

    number: int = 1
    count: int = 1

    @property
    def label(self) -> str:
        """Return the shard as text for file names, as "2of8"; "" for the whole run."""
        return "" if self.count == 1 else f"{self.number}of{self.count}"

    def split(self, number: int, count: int) -> "Shard":
        """Return part `number` of `count` of this shard, counted from 1."""
        return Shard((self.number - 1) * count + number, self.count * count)

    def share_of(self, sample_ids: Sequence[str]) -> list[str]:
        """Return this shard's images, in their order.

        A hash of id and count decides: processes agree without communication, and what one of eight
        shards left undone is spread evenly over four.
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
    """Return the shard of a text such as "2/8", the second of eight.

    Raises:
        RunError: the text has another form.
    """
    match = _SHARD.fullmatch(text)
    number, count = map(int, match.groups()) if match else (0, 0)
    if not 1 <= number <= count:
        raise RunError(f"--shard must be I/N with 1 <= I <= N, such as 2/8, got '{text}'")
    return Shard(number, count)


@dataclass(frozen=True)
class Ranks:
    """The rank of this process among those that `torchrun` started; a single process by default.

    Attributes:
        rank: from 0 to `world` - 1.
        world: number of processes on all machines.
        local_rank: rank among the processes of its machine.
        local_world: number of processes on its machine.
    """

    rank: int = 0
    world: int = 1
    local_rank: int = 0
    local_world: int = 1

    @classmethod
    def from_environment(cls) -> "Ranks":
        """Return the ranks from the environment variables that `torchrun` sets."""
        default = {"RANK": 0, "WORLD_SIZE": 1, "LOCAL_RANK": 0, "LOCAL_WORLD_SIZE": 1}
        return cls(*(int(os.environ.get(name, value)) for name, value in default.items()))

    def own_device(self, device: str) -> str:
        """Return the device of this process; with `torchrun`, each process has its own GPU.

        Args:
            device: "cpu", "cuda" or "cuda:1".
        """
        shared = self.world > 1 and device.startswith("cuda")
        return f"cuda:{self.local_rank}" if shared else device

    def part_of(self, shard: Shard = WHOLE) -> Shard:
        """Return the part that this process takes of a shard that all processes share."""
        return shard.split(self.rank + 1, self.world)


@contextmanager
def starting(folder: Path) -> Iterator[None]:
    """Hold the lock for starting to write a run, or changing files that its writers share.

    Raises:
        RunError: another process holds it for more than `STARTING_SECONDS`.
    """
    try:
        lock = FileLock(folder / _STARTING).acquire(timeout=STARTING_SECONDS)
    except Timeout as error:
        raise RunError(f"{folder}: another process is writing this run") from error
    with lock:
        yield


def claim(folder: Path, shard: Shard) -> FileLock:
    """Return the acquired lock of a shard, and remove temporary files of a killed writer.

    A lock is released when its process ends, however it ends. Call this within `starting`.

    Raises:
        RunError: another process writes this shard, or one that may share images with it.
    """
    lock_path = folder / f".shard-{shard.number}-of-{shard.count}.lock"
    for path in folder.iterdir():
        match = _LOCK.fullmatch(path.name)
        other = Shard(*map(int, match.groups())) if match else shard
        if other.count != shard.count:
            if not _is_free(path):
                raise RunError(f"{folder}: another process is writing {other}{_rule(other)}")
            path.unlink()
    if not _is_free(lock_path):
        raise RunError(f"{folder}: another process is writing {shard}")
    for path in folder.rglob(f"*-{shard.label}[-.]*.tmp" if shard.label else "*.tmp"):
        path.unlink(missing_ok=True)
    return FileLock(lock_path).acquire(blocking=False).lock


def _rule(other: Shard) -> str:
    rule = f"; only other shards of {other.count} can be written at the same time"
    return rule if other.label else ""


def _is_free(path: Path) -> bool:
    try:
        with FileLock(path).acquire(blocking=False):
            return True
    except Timeout:
        return False
