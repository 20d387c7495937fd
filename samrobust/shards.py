"""Several processes on one run: the shard of each, and which images are its share."""

import hashlib
import heapq
import math
import re
from collections.abc import Sequence
from dataclasses import dataclass

from samrobust.errors import RunError
from samrobust.interfaces import Dataset, Weighed

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
