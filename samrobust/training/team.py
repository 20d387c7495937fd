"""Several processes that train together, as `torchrun` starts them."""

from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from dataclasses import dataclass

import torch
from torch import Tensor, distributed

from samrobust.ranks import Ranks


@dataclass(frozen=True)
class Team:
    """The processes that train together, each with its share of a step's images.

    Attributes:
        rank: of this one; the first one, 0, writes.
        world: how many there are.
    """

    rank: int = 0
    world: int = 1

    def mean(self, tensors: Sequence[Tensor]) -> None:
        """Replace tensors by their means over all processes."""
        if self.world == 1:
            return
        flat = torch.cat([tensor.flatten() for tensor in tensors])
        distributed.all_reduce(flat)
        parts = torch.split(flat / self.world, [tensor.numel() for tensor in tensors])
        for tensor, part in zip(tensors, parts, strict=True):
            tensor.copy_(part.view_as(tensor))


@contextmanager
def joined_team(device: str) -> Iterator[tuple[Team, str]]:
    """Give this process's place and its device.

    Without `torchrun` a process is alone. With it, each of a machine's processes has a GPU of its
    own, or a share of the CPU.

    Args:
        device: "cpu", "cuda" or "cuda:1".
    """
    # On a CPU, numbers too small to be normal cost ten times an ordinary one. Set before torch
    # starts its threads, which take it over.
    torch.set_flush_denormal(True)
    ranks = Ranks.from_environment()
    if ranks.world == 1:
        yield Team(), device
        return
    device = ranks.own_device(device)
    on_gpu = device.startswith("cuda")
    if on_gpu:
        torch.cuda.set_device(device)
    distributed.init_process_group("nccl" if on_gpu else "gloo")
    try:
        yield Team(ranks.rank, ranks.world), device
    finally:
        distributed.destroy_process_group()
