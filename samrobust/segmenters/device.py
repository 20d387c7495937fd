"""The device that models run on, and its memory."""

import ctypes
import platform

import torch
from torch import Tensor

from samrobust.errors import SegmenterError

_OUT_OF_MEMORY = (
    "DefaultCPUAllocator: can't allocate memory",
    "could not create a primitive",
    "_STATUS_ALLOC_FAILED",
)
"""What torch's plain errors say when memory runs out: of a CPU, oneDNN, cuBLAS and cuDNN."""
# Parameters of mallopt(3), from glibc's malloc.h.
_TRIM_THRESHOLD, _TOP_PAD, _MMAP_MAX = -1, -2, -4
_NEVER = 2**31 - 1
_GROW_BY = 2**26
"""Bytes asked of the system beyond what is needed, so that it is asked less often."""


def resolve_device(name: str) -> str:
    """Return "cpu", "cuda" or "cuda:N" for what the user asked for.

    Raises:
        SegmenterError: it is not a device, or not here.
    """
    allowed = "auto, cpu, cuda, cuda:N"
    if name == "auto":
        return "cuda" if torch.cuda.is_available() else "cpu"
    kind, _, index = name.partition(":")
    if name != "cpu" and (kind != "cuda" or (":" in name and not index.isdigit())):
        raise SegmenterError(f"unknown device '{name}'. Known: {allowed}")
    if kind == "cuda" and not torch.cuda.is_available():
        raise SegmenterError(f"--device {name}: no CUDA device here; allowed: auto, cpu")
    if index and int(index) >= torch.cuda.device_count():
        raise SegmenterError(f"--device {name}: there are {torch.cuda.device_count()} CUDA devices")
    return name


def prompts_at_once(device: str) -> int:
    """Return how many prompts a forward pass has by default; a GPU wants large operations."""
    return 16 if device == "cpu" else 128


def says_out_of_memory(error: Exception) -> bool:
    """Return whether an error of torch or Python says that memory ran out, on a GPU or a CPU."""
    return isinstance(error, torch.OutOfMemoryError | MemoryError) or any(
        sign in str(error) for sign in _OUT_OF_MEMORY
    )


def release_memory() -> None:
    """Return the memory that torch caches to the device."""
    torch.cuda.empty_cache()


def to_device(tensor: Tensor, device: torch.device) -> Tensor:
    """Return a tensor of the host on a device; to a GPU it is copied asynchronously."""
    if device.type != "cuda":
        return tensor.to(device)
    return tensor.pin_memory().to(device, non_blocking=True)


def keep_large_blocks() -> None:
    """Let this process reuse the memory of freed tensors instead of giving it back each time.

    By default glibc maps every block above 32 MiB anew and unmaps it when freed, so each large
    result of each operation costs a page fault per 4 KiB (half of a decoder's time on two cores,
    docs/sources/performance.md 3). Memory once used then stays with the process. Without glibc
    nothing happens.
    """
    if platform.libc_ver()[0] != "glibc":
        return
    mallopt = ctypes.CDLL(None).mallopt
    mallopt(_MMAP_MAX, 0)
    mallopt(_TRIM_THRESHOLD, _NEVER)
    mallopt(_TOP_PAD, _GROW_BY)
