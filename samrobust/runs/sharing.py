"""Several processes on one run: which images each takes, and the lock of each shard."""

import hashlib
import heapq
import math
import os
import re
import time
from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager
from dataclasses import dataclass
from datetime import timedelta
from pathlib import Path

from filelock import FileLock, Timeout
from torch.distributed.rendezvous import rendezvous

from samrobust.errors import RunError
from samrobust.types import Dataset, Weighed

STEPS_OF_COST = 4
"""Costs within a factor of two that are told apart when images are dealt out."""
_SHARD = re.compile(r"(\d{1,6})/(\d{1,6})", re.ASCII)


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
        """Return its part of the names of files, as "2of8"; "" of the whole run."""
        return "" if self.count == 1 else f"{self.number}of{self.count}"

    def split(self, number: int, count: int) -> "Shard":
        """Return one of `count` parts of this shard, `number` from 1."""
        return Shard((self.number - 1) * count + number, self.count * count)

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


def image_cost(dataset: Dataset, sample_id: str) -> float:
    """Return about how long an image takes beside others of its data set: 1 where it is unknown."""
    return max(1.0, dataset.cost(sample_id)) if isinstance(dataset, Weighed) else 1.0


def share_of(dataset: Dataset, sample_ids: Sequence[str], shard: Shard) -> list[str]:
    """Return a shard's share of the images, in their order: all shares cost about the same.

    It depends on nothing else than the arguments, so that processes agree without a word. The
    dearest are dealt first, each to the shard that has least. Among images that cost about the same
    a hash of id and count decides: what one shard of eight left undone, four shards share evenly.
    """
    if shard.count == 1:
        return list(sample_ids)
    costs = {sample_id: image_cost(dataset, sample_id) for sample_id in sample_ids}

    def turn(sample_id: str) -> tuple[int, bytes]:
        key = f"{shard.count}/{sample_id}".encode(errors="surrogatepass")
        step = round(STEPS_OF_COST * math.log2(costs[sample_id]))
        return -step, hashlib.blake2b(key, digest_size=8).digest()

    loads = [(0.0, number) for number in range(1, shard.count + 1)]
    own = set()
    for sample_id in sorted(sample_ids, key=turn):
        load, number = loads[0]
        heapq.heapreplace(loads, (load + costs[sample_id], number))
        if number == shard.number:
            own.add(sample_id)
    return [sample_id for sample_id in sample_ids if sample_id in own]


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


FIND_SECONDS = 600
"""For all ranks to be started and to find each other."""
PATIENCE_SECONDS = 120.0
"""Rank 0 gives up on ranks of which, for so long, none was seen to write."""
POLL_SECONDS = 0.5


@dataclass(frozen=True)
class Ranks:
    """This process's place; alone without `torchrun`.

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
        """Return the device of this process: with `torchrun` each of a machine's has its own GPU.

        Args:
            device: "cpu", "cuda" or "cuda:1".
        """
        shared = self.world > 1 and device.startswith("cuda")
        return f"cuda:{self.local_rank}" if shared else device

    def part_of(self, shard: Shard = WHOLE) -> Shard:
        """Return what this process takes of a shard that all of them share."""
        return shard.split(self.rank + 1, self.world)


class Meeting:
    """Where ranks tell that they are done: the store of `torchrun`, no collective operation.

    Raises:
        RunError: the ranks do not find each other.
    """

    def __init__(self, ranks: Ranks) -> None:
        self._ranks = ranks
        try:
            limit = timedelta(seconds=FIND_SECONDS)
            self._store, _, _ = next(rendezvous("env://", timeout=limit))
        except (RuntimeError, ValueError) as error:
            raise RunError(f"rank {ranks.rank} does not find the others: {error}") from error
        self._attempt = os.environ.get("TORCHELASTIC_RESTART_COUNT", "0")

    def tell_done(self) -> None:
        """Tell rank 0 that this rank has done its share."""
        self._store.set(self._key(self._ranks.rank), "done")

    def wait(self, others_write: Callable[[], bool]) -> None:
        """Return when all ranks have told that they are done.

        Args:
            others_write: whether any of them is seen to be alive, of those that have not told.

        Raises:
            RunError: for `PATIENCE_SECONDS`, one was not done and none was seen to be alive.
        """
        missing = list(range(self._ranks.world))
        seen = time.monotonic()
        while missing := [rank for rank in missing if not self._store.check([self._key(rank)])]:
            if others_write():
                seen = time.monotonic()
            if time.monotonic() - seen > PATIENCE_SECONDS:
                names = ", ".join(f"rank {rank}" for rank in missing)
                raise RunError(
                    f"{names} ended early; what was stored is kept, "
                    "the same command goes on from there"
                )
            time.sleep(POLL_SECONDS)

    def _key(self, rank: int) -> str:
        return f"samrobust/{self._attempt}/{rank}"
