import platform
import subprocess
import sys

import pytest

from samrobust.segmenters.device import keep_large_blocks

COUNT_FAULTS = """
import resource
import numpy as np
from samrobust.segmenters.device import keep_large_blocks
if {keep}:
    keep_large_blocks()
np.ones(2**26, np.uint8)  # made and dropped
before = resource.getrusage(resource.RUSAGE_SELF).ru_minflt
np.ones(2**26, np.uint8)
print(resource.getrusage(resource.RUSAGE_SELF).ru_minflt - before)
"""


@pytest.mark.skipif(platform.libc_ver()[0] != "glibc", reason="needs glibc")
def test_a_large_block_is_reused_without_page_faults() -> None:
    faults = {
        keep: int(
            subprocess.run(
                [sys.executable, "-c", COUNT_FAULTS.format(keep=keep)],
                check=True,
                capture_output=True,
                text=True,
            ).stdout
        )
        for keep in (False, True)
    }
    assert faults[True] < 10 < faults[False]


def test_without_glibc_nothing_happens(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(platform, "libc_ver", lambda: ("", ""))
    monkeypatch.setattr("ctypes.CDLL", None)  # would fail if it were called
    keep_large_blocks()
