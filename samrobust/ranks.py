"""The processes that `torchrun` starts: the place of this one, and how it tells that it is done."""

import os
import time
from collections.abc import Callable
from dataclasses import dataclass
from datetime import timedelta

from torch.distributed.rendezvous import rendezvous

from samrobust.errors import RunError
from samrobust.shards import WHOLE, Shard

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
