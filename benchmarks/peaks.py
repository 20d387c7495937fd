"""What a device can do at most, measured: products of matrices and copies of memory."""

import resource
import time
from collections.abc import Callable

import torch

ROWS, INNER, COLUMNS = 4096, 768, 3072
"""Of the products: an MLP of ViT-B on one image; eight times as many rows on an accelerator."""
COPIED_BYTES = 2**28
"""Far beyond every cache."""
REPEATS = 10


def settle(device: str) -> None:
    """Wait until the device has done what it was given."""
    if device != "cpu":
        torch.cuda.synchronize(device)


def matrix_peak(device: str, dtype: torch.dtype) -> float:
    """Return the FLOP/s of the fastest of ten matrix products; two a multiplication."""
    rows = ROWS if device == "cpu" else 8 * ROWS
    left = torch.randn(rows, INNER, device=device).to(dtype)
    right = torch.randn(INNER, COLUMNS, device=device).to(dtype)
    best = min(_seconds(device, lambda: torch.mm(left, right)) for _ in range(REPEATS))
    return 2 * rows * INNER * COLUMNS / best


def memory_peak(device: str) -> float:
    """Return the bytes/s, read and written, of the fastest of ten copies."""
    source = torch.ones(COPIED_BYTES, dtype=torch.uint8, device=device)
    target = torch.empty_like(source)
    best = min(_seconds(device, lambda: target.copy_(source)) for _ in range(REPEATS))
    return 2 * COPIED_BYTES / best


def peak_gib(device: str) -> float:
    """Return the most memory that this process has had, in GiB: of the device, or its own."""
    if device == "cpu":
        return resource.getrusage(resource.RUSAGE_SELF).ru_maxrss / 2**20
    return torch.cuda.max_memory_allocated(device) / 2**30


def _seconds(device: str, work: Callable[[], object]) -> float:
    settle(device)
    started = time.perf_counter()
    work()
    settle(device)
    return time.perf_counter() - started
