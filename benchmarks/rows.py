"""Seconds and peak memory of reading and aggregating made-up score rows, up to 10^8 and beyond.

    python -m benchmarks.rows --rows 1e8

The protocol noisy-box with 20 trials, 2 objects an image, parts as large as `samrobust eval` writes
them at most. The first round includes what is loaded once.
"""

import json
import resource
import tempfile
import time
from collections.abc import Sequence
from pathlib import Path
from typing import Annotated, Any

import numpy as np
import numpy.typing as npt
import pyarrow as pa
import pyarrow.parquet as pq
import typer

from samrobust.report.summary import summarise
from samrobust.runs.store import FLUSH_ROWS, SCHEMA, read_run
from tests.runs import CONTROL, SAM, STABLE, MadeUp, described

OBJECTS_AN_IMAGE = 2
SEGMENTERS = (SAM, STABLE, CONTROL)


def main(
    *,
    rows: Annotated[float, typer.Option(help="Rows of all runs together.")] = 1e6,
    runs: Annotated[int, typer.Option(help="Runs, of other segmenters on the same prompts.")] = 1,
    rounds: Annotated[int, typer.Option(help="Readings and aggregations.")] = 1,
    folder: Annotated[Path | None, typer.Option(help="For the runs, which are then kept.")] = None,
) -> None:
    """Make the runs, then read and aggregate them; one line of JSON each."""
    with tempfile.TemporaryDirectory() as temporary:
        started = time.perf_counter()
        folders = store_runs(folder or Path(temporary), n_rows=int(rows), n_runs=runs)
        n_bytes = sum(file.stat().st_size for each in folders for file in each.rglob("*.parquet"))
        print(json.dumps({"made_s": _since(started), "gib_on_disk": round(n_bytes / 2**30, 3)}))
        for _ in range(rounds):
            print(json.dumps(measure(folders)), flush=True)


def store_runs(results: Path, *, n_rows: int, n_runs: int) -> list[Path]:
    """Store runs of about so many rows in all, and return their folders."""
    protocol = described("noisy-box", trials=20)
    template = _rows_of_an_object(protocol)
    n_images = max(1, n_rows // n_runs // len(template["trial"]) // OBJECTS_AN_IMAGE)
    made_up = MadeUp(
        protocol=protocol,
        n_samples=n_images,
        missing=frozenset(f"image-{number}" for number in range(n_images)),
    )
    folders: list[Path] = []
    for segmenter in SEGMENTERS[:n_runs]:
        run = made_up.but(segmenter=segmenter).store(results)
        step = max(1, FLUSH_ROWS // len(template["trial"]) // OBJECTS_AN_IMAGE)
        for part, first in enumerate(range(0, n_images, step)):
            images = np.arange(first, min(first + step, n_images))
            table = _part(images, template, protocol, seeds=(part, len(folders)))
            pq.write_table(table, run.folder / "scores" / f"part-{part:05d}.parquet")
        folders.append(run.folder)
    return folders


def measure(folders: Sequence[Path]) -> dict[str, Any]:
    """Return the seconds of reducing and of summarising the rows, and the process's peak memory.

    Summarising reduces too: the difference is the bootstrap.
    """
    started = time.perf_counter()
    runs = [read_run(folder) for folder in folders]
    n_rows = sum(sum(run.map_scores(lambda part: int(part.num_rows))) for run in runs)
    read = _since(started)
    started, cpu = time.perf_counter(), time.process_time()
    summarise(runs)
    return {
        "rows": n_rows,
        "read_s": read,
        "summarised_s": _since(started),
        "summarised_cpu_s": round(time.process_time() - cpu, 2),
        "peak_gib": _peak_gib(),
    }


def _rows_of_an_object(protocol: dict[str, Any]) -> dict[str, npt.NDArray[np.int64]]:
    """Return what the rows of each object are alike in: places of condition, metric and prompt."""
    rows: list[tuple[int, ...]] = []
    n_prompts = 0
    for place, condition in enumerate(protocol["conditions"]):
        trials = condition["trials"]
        for metric, name in enumerate(protocol["metrics"]):
            if name != "stability":
                rows += [(place, trial, metric, n_prompts + trial) for trial in range(trials)]
            elif trials > 1:
                rows.append((place, -1, metric, n_prompts + trials))
        n_prompts += trials + 1
    columns = np.array(rows).T
    return dict(zip(("condition", "trial", "metric", "prompt"), columns, strict=True))


def _part(
    images: npt.NDArray[np.int64],
    template: dict[str, npt.NDArray[np.int64]],
    protocol: dict[str, Any],
    *,
    seeds: tuple[int, int],
) -> pa.Table:
    """Return the rows of some images; prompts depend on the first of the seeds alone."""
    n_objects, n_rows = OBJECTS_AN_IMAGE * len(images), len(template["trial"])
    at = {name: np.tile(column, n_objects) for name, column in template.items()}
    owner = np.repeat(np.arange(n_objects), n_rows)
    n_prompts = int(template["prompt"].max()) + 1
    hashes = np.random.default_rng(seeds[0]).bytes(8 * n_objects * n_prompts).hex()
    columns = {
        "sample_id": pa.array([f"image-{number:08d}" for number in images]).take(
            pa.array(owner // OBJECTS_AN_IMAGE)
        ),
        "instance_id": pa.array(map(str, range(OBJECTS_AN_IMAGE))).take(
            pa.array(owner % OBJECTS_AN_IMAGE)
        ),
        "condition": pa.array([row["name"] for row in protocol["conditions"]]).take(
            pa.array(at["condition"])
        ),
        "trial": pa.array(at["trial"]),
        "metric": pa.array(protocol["metrics"]).take(pa.array(at["metric"])),
        "value": pa.array(np.random.default_rng(seeds).beta(4, 1, len(owner))),
        "prompt_hash": pa.array(np.frombuffer(hashes.encode(), "S16"))
        .cast(pa.string())
        .take(pa.array(owner * n_prompts + at["prompt"])),
    }
    return pa.table(columns).cast(SCHEMA)


def _since(started: float) -> float:
    return round(time.perf_counter() - started, 2)


def _peak_gib() -> float:
    return round(resource.getrusage(resource.RUSAGE_SELF).ru_maxrss / 2**20, 2)


if __name__ == "__main__":
    typer.run(main)
