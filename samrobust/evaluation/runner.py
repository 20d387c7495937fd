"""Run combinations of protocols, data sets and segmenters, and store each as it goes."""

import itertools
import os
import platform
import shlex
import signal
import sys
import time
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from dataclasses import asdict, dataclass
from datetime import UTC, datetime
from importlib.metadata import version
from pathlib import Path
from types import FrameType
from typing import TYPE_CHECKING, Any

import typer

from samrobust import __version__
from samrobust.protocol import describe_protocol, protocol_hash
from samrobust.runs.manifest import RunManifest
from samrobust.runs.sharing import WHOLE, Shard, share_of
from samrobust.types import Dataset, EvalProtocol, Segmenter

if TYPE_CHECKING:
    from samrobust.evaluation.loop import LoopOptions
    from samrobust.runs.store import RunWriter

MOST_WORKERS = 8
"""More loading processes than this do not pay for one model."""
VERSIONED = (
    "numpy",
    "opencv-python-headless",
    "pillow",
    "pycocotools",
    "scipy",
    "segment-anything",
    "torch",
    "torchvision",
)
"""Packages whose version a score can depend on; they stand in the manifest."""


@dataclass(frozen=True)
class RunSettings:
    """How to run, and where to.

    Attributes:
        results: the folder of all runs.
        limit: only so many images, None for all.
        device: kind and number of the device.
        loop: of the evaluation.
        quiet: no progress.
        shard: which images this process takes.
    """

    results: Path
    limit: int | None
    device: str
    loop: "LoopOptions"
    quiet: bool
    shard: Shard = WHOLE


@dataclass(frozen=True)
class _Work:
    sample_ids: Sequence[str]
    writer: "RunWriter"


def n_workers(asked: int | None, *, ranks: int = 1) -> int:
    """Return how many processes load images: as many as asked for, or one a core but one.

    Args:
        asked: by the user.
        ranks: processes that share the cores, each with as many.
    """
    if asked is not None:
        return asked
    cores = len(os.sched_getaffinity(0)) if hasattr(os, "sched_getaffinity") else os.cpu_count()
    return max(1, min(MOST_WORKERS, (cores or 1) // ranks - 1))


def run_all(
    protocols: Sequence[EvalProtocol],
    datasets: Sequence[Dataset],
    segmenters: Sequence[Segmenter[Any]],
    settings: RunSettings,
) -> list[Path]:
    """Run every combination and return their folders; what cannot be is refused before anything.

    Raises:
        SamrobustError: a combination cannot be run, or a run on disk cannot be written.
    """
    from samrobust.cli.terminal import note_line
    from samrobust.evaluation.loop import check_can_run
    from samrobust.runs.manifest import run_name
    from samrobust.runs.store import RunWriter

    for protocol, segmenter in itertools.product(protocols, segmenters):
        check_can_run(segmenter.info, protocol)
    folders = []
    for protocol, dataset, segmenter in itertools.product(protocols, datasets, segmenters):
        sample_ids = dataset.ids()[: settings.limit]
        manifest = _manifest(protocol, dataset, segmenter, sample_ids, settings)
        if settings.results / run_name(manifest) in folders:
            continue  # the same combination was asked for twice
        with (
            sigterm_as_interrupt(),
            RunWriter(settings.results, manifest, settings.shard) as writer,
        ):
            folders.append(writer.folder)
            try:
                share = share_of(dataset, sample_ids, settings.shard)
                _run(protocol, dataset, segmenter, _Work(share, writer), settings)
            except KeyboardInterrupt:
                note_line(f"interrupted; the same command goes on with {writer.folder}")
                raise typer.Exit(130) from None
    return folders


def _run(
    protocol: EvalProtocol,
    dataset: Dataset,
    segmenter: Segmenter[Any],
    work: _Work,
    settings: RunSettings,
) -> None:
    """Evaluate the images that are not stored yet, and show how far it is."""
    from samrobust.cli.terminal import note_line, progress_bar
    from samrobust.evaluation.loop import Failure, evaluate

    writer = work.writer
    stored = writer.done
    if settings.loop.keep_masks != "none":
        stored &= writer.masks_kept(settings.loop.keep_masks)
    left = [sample_id for sample_id in work.sample_ids if sample_id not in stored]
    n_prompts, busy_s, started = 0, 0.0, time.monotonic()
    halvings = settings.loop.halvings
    with progress_bar(quiet=settings.quiet) as progress:
        title = f"{protocol.name} · {dataset.info.key} · {segmenter.info.label}"
        total, done = len(work.sample_ids), len(work.sample_ids) - len(left)
        task = progress.add_task(title, total=total, completed=done, speed="")
        results = evaluate(segmenter, dataset, protocol, sample_ids=left, options=settings.loop)
        for result in results:
            if isinstance(result, Failure):
                writer.fail(result.sample_id, result.reason)
                note_line(f"failed: {result.reason}")
            else:
                if result.halvings > halvings:
                    halvings = result.halvings
                    writer.note_halvings(halvings)
                    note_line(
                        f"out of device memory on '{result.sample_id}': from here on "
                        f"--prompts-at-once is divided by {2**halvings}"
                    )
                writer.write(
                    result.sample_id, result.scores, objects=result.objects, kept=result.kept
                )
                n_prompts += result.n_prompts
                busy_s += result.busy_s
            elapsed = time.monotonic() - started
            speed = f"{n_prompts / elapsed:,.0f} prompts/s, {busy_s / elapsed:.0%} busy"
            progress.update(task, advance=1, speed=speed)


def _manifest(
    protocol: EvalProtocol,
    dataset: Dataset,
    segmenter: Segmenter[Any],
    sample_ids: Sequence[str],
    settings: RunSettings,
) -> RunManifest:
    from samrobust.evaluation.loop import SCORE_CONSTANTS

    packages = {name: version(name) for name in VERSIONED}
    at_once = settings.loop.images_at_once
    rounding = {"images_at_once": float(at_once)} if at_once > 1 else {}
    return RunManifest(
        protocol={**describe_protocol(protocol), "sha256": protocol_hash(protocol)},
        reported=[asdict(row) for row in protocol.reported],
        dataset=dataset.info,
        segmenter=segmenter.info,
        n_samples=len(sample_ids),
        limit=settings.limit,
        trials=protocol.trials,
        device=settings.device.partition(":")[0],
        constants={**SCORE_CONSTANTS, **rounding},
        versions={"samrobust": __version__, "python": platform.python_version(), **packages},
        command=shlex.join(["samrobust", *sys.argv[1:]]),
        created=datetime.now(UTC).isoformat(timespec="seconds"),
    )


@contextmanager
def sigterm_as_interrupt() -> Iterator[None]:
    """Let SIGTERM, with which torchrun and Slurm end processes, act as Ctrl-C: work is kept."""

    def stop(_signal: int, _frame: FrameType | None) -> None:
        raise KeyboardInterrupt

    before = signal.signal(signal.SIGTERM, stop)
    try:
        yield
    finally:
        signal.signal(signal.SIGTERM, before)
