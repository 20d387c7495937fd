"""How the C library hands out memory for large CPU tensors."""

import ctypes
import platform

# Parameters of mallopt(3), from glibc's malloc.h.
_TRIM_THRESHOLD, _TOP_PAD, _MMAP_MAX = -1, -2, -4
_NEVER = 2**31 - 1
_GROW_BY = 2**26
"""Bytes asked of the system beyond what is needed, so that it is asked less often."""


def keep_large_blocks() -> None:
    """Let this process reuse the memory of freed tensors instead of giving it back each time.

    By default glibc maps every block above 32 MiB anew and unmaps it when freed, so each large
    result of each operation costs a page fault per 4 KiB (half of a decoder's time on two cores,
    facts/performance.md 3). Memory once used then stays with the process. Without glibc nothing
    happens.
    """
    if platform.libc_ver()[0] != "glibc":
        return
    mallopt = ctypes.CDLL(None).mallopt
    mallopt(_MMAP_MAX, 0)
    mallopt(_TRIM_THRESHOLD, _NEVER)
    mallopt(_TOP_PAD, _GROW_BY)
