"""Time reading and aggregating a million made-up score rows.

python -m benchmarks.aggregate

Three segmenters, 750 images with 2 objects each on average, the protocol noisy-box with 20 trials:
1.1 million rows. The first figure includes what is loaded once.
"""

import tempfile
import time
from pathlib import Path

from samrobust.report.aggregate import summarise
from samrobust.store import read_run
from tests.runs import CONTROL, SAM, STABLE, MadeUp, described

ROUNDS = 3


def main() -> None:
    """Print rows and seconds."""
    protocol = described("noisy-box", trials=20)
    with tempfile.TemporaryDirectory() as folder:
        made_up = MadeUp(protocol=protocol, n_samples=750)
        folders = [
            made_up.but(segmenter=segmenter).store(Path(folder)).folder
            for segmenter in (SAM, STABLE, CONTROL)
        ]
        for _ in range(ROUNDS):
            started, used = time.perf_counter(), time.process_time()
            runs = [read_run(path) for path in folders]
            read = time.perf_counter()
            summarise(runs)
            ended = time.perf_counter()
            print(
                f"{sum(len(run.scores) for run in runs):,} rows: {read - started:.2f} s read, "
                f"{ended - read:.2f} s aggregated, {time.process_time() - used:.2f} s of CPU time"
            )


if __name__ == "__main__":
    main()
