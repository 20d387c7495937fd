"""Evaluate segmenters on data sets under protocols; each combination is a run on disk."""

import logging
import os
import platform
import signal
import threading
import time
from collections.abc import Callable, Iterator, Sequence
from contextlib import ExitStack, contextmanager
from dataclasses import asdict, dataclass, field
from datetime import UTC, datetime, timedelta
from importlib.metadata import version
from pathlib import Path
from types import FrameType
from typing import Any

import torch
from torch import distributed

from samrobust import __version__
from samrobust.datasets import open_dataset
from samrobust.datasets.pairs import Pairs, PairsDataset
from samrobust.errors import RunError, SegmenterError
from samrobust.evaluation.loop import (
    SCORE_CONSTANTS,
    Evaluated,
    Failure,
    Job,
    LoopOptions,
    check_can_run,
    score_images,
)
from samrobust.protocol import describe_protocol, load_protocol, protocol_hash, with_trials
from samrobust.runs.manifest import Keep, RunManifest, run_name
from samrobust.runs.sharing import WHOLE, Ranks, Shard
from samrobust.runs.store import Run, RunWriter, read_run
from samrobust.segmenters import build_segmenter
from samrobust.segmenters.user_models import as_segmenter
from samrobust.types import Dataset, EvalProtocol, Segmenter

MAX_WORKERS = 8
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
_LOG = logging.getLogger(__name__)


@dataclass(frozen=True)
class Progress:
    """How far the evaluation of a data set is.

    Attributes:
        title: data set, protocols and segmenters.
        done: images scored, counted once per run.
        total: images of all runs on the data set.
        n_prompts: predicted since the start.
        busy_s: seconds spent in encoding, predicting and scoring.
        elapsed_s: seconds since the start.
    """

    title: str
    done: int
    total: int
    n_prompts: int
    busy_s: float
    elapsed_s: float


ProgressCallback = Callable[[Progress], None]


@dataclass(frozen=True)
class RunSettings:
    """How to run, and where to.

    Attributes:
        results: the folder of all runs.
        limit: only so many images, None for all.
        device: kind and number of the device of segmenters that do not say theirs.
        loop: of the evaluation.
        shard: which images this process takes.
        command: what was typed, for the manifest.
        progress: called after every image.
    """

    results: Path
    limit: int | None = None
    device: str = "cpu"
    loop: LoopOptions = field(default_factory=LoopOptions)
    shard: Shard = WHOLE
    command: str = "samrobust.evaluate"
    progress: ProgressCallback = lambda _: None


def evaluate(
    segmenters: str | object | Sequence[str | object],
    data: str | Dataset | Pairs,
    protocols: str | EvalProtocol | Sequence[str | EvalProtocol] = "noisy-box",
    *,
    results: str | Path = "results",
    limit: int | None = None,
    trials: int | None = None,
    device: str = "auto",
    batch_size: int = 16,
    workers: int = 0,
    keep_masks: Keep = "none",
    progress: ProgressCallback = lambda _: None,
) -> list[Run]:
    """Evaluate segmenters on a data set under protocols, as `samrobust eval` does.

    Scores are stored as they are made; the same call resumes, and one whose scores are all there
    reads them.

    Args:
        segmenters: registered names, places such as "my_model.py:build", or objects with `encode`
            and `predict`, as `samrobust.types.Segmenter`; an object without `info` is taken to
            accept boxes and points, and goes by the name of its class and a hash of its weights.
        data: a registered name, a `Dataset`, or pairs of an image, (H, W, 3) uint8 RGB, and its
            masks, (N, H, W) bool: a list of them or a torch Dataset.
        protocols: names, paths of TOML files, or protocols.
        results: the folder of all runs.
        limit: only the first images, None for all.
        trials: for every random condition, None for the protocol's own number.
        device: "auto", "cpu", "cuda" or "cuda:N", for segmenters given by name.
        batch_size: prompts in one forward pass; halved when device memory runs out.
        workers: processes that decode images and draw prompts; 0 for none.
        keep_masks: "none", "worst" or "all" of the masks, for the gallery of a report.
        progress: called after every image.

    Returns:
        One run per protocol and segmenter, in that order.

    Raises:
        SamrobustError: something named is unknown, cannot be read or does not fit together.
    """
    from samrobust.segmenters.device import resolve_device

    device = resolve_device(device)
    built = [
        build_segmenter(each, device=device) if isinstance(each, str) else as_segmenter(each)
        for each in _as_list(segmenters)
    ]
    loaded = [
        each if isinstance(each, EvalProtocol) else load_protocol(each)
        for each in _as_list(protocols)
    ]
    if trials is not None:
        loaded = [with_trials(protocol, trials) for protocol in loaded]
    dataset: Dataset
    if isinstance(data, str):
        dataset = open_dataset(data)
    else:
        dataset = data if isinstance(data, Dataset) else PairsDataset(data)
    loop = LoopOptions(batch_size, workers, keep_masks=keep_masks)
    settings = RunSettings(Path(results), limit, device, loop, progress=progress)
    return [read_run(folder) for folder in run_all(loaded, [dataset], built, settings)]


def run_all(
    protocols: Sequence[EvalProtocol],
    datasets: Sequence[Dataset],
    segmenters: Sequence[Segmenter[Any]],
    settings: RunSettings,
) -> list[Path]:
    """Run every combination and return the folders of the runs, protocol by protocol.

    A segmenter that does not take the prompts of one of several protocols is left out there, with
    a note in the log.

    Raises:
        SamrobustError: nothing can be run, or a run on disk cannot be written.
    """
    pairs = _runnable(protocols, segmenters)
    found: dict[tuple[int, int], list[Path]] = {}
    for number, dataset in enumerate(datasets):
        for place, folder in enumerate(_run_on(dataset, pairs, settings)):
            found.setdefault((protocols.index(pairs[place][0]), number), []).append(folder)
    ordered = [folder for key in sorted(found) for folder in found[key]]
    return list(dict.fromkeys(ordered))


def n_workers(asked: int | None, *, ranks: int = 1) -> int:
    """Return how many processes load images: as many as asked for, or one per core but one.

    Args:
        asked: by the user.
        ranks: processes that share the cores, each with as many.
    """
    if asked is not None:
        return asked
    cores = len(os.sched_getaffinity(0)) if hasattr(os, "sched_getaffinity") else os.cpu_count()
    return max(1, min(MAX_WORKERS, (cores or 1) // ranks - 1))


@contextmanager
def joined_ranks(ranks: Ranks) -> Iterator[None]:
    """Join the processes that `torchrun` started; in the end, wait until all have done their share.

    Raises:
        RunError: they do not find each other, or another one ended early.
    """
    if ranks.world == 1:
        yield
        return
    try:
        distributed.init_process_group("gloo", timeout=timedelta(days=30))
    except (RuntimeError, ValueError) as error:
        raise RunError(f"rank {ranks.rank} does not find the others: {error}") from error
    try:
        yield
        try:
            distributed.barrier()
        except RuntimeError as error:
            raise RunError(
                f"rank {ranks.rank}: another rank ended early; what was stored is kept, rerun the "
                "same command to resume"
            ) from error
    finally:
        distributed.destroy_process_group()


def _as_list(given: Any) -> list[Any]:  # noqa: ANN401
    return list(given) if isinstance(given, list | tuple) else [given]


def _runnable(
    protocols: Sequence[EvalProtocol], segmenters: Sequence[Segmenter[Any]]
) -> list[tuple[EvalProtocol, Segmenter[Any]]]:
    """Return the pairs that fit; where none does, the reason of the first is raised."""
    pairs, reasons = [], []
    for protocol in protocols:
        for segmenter in segmenters:
            try:
                check_can_run(segmenter.info, protocol)
            except SegmenterError as error:
                reasons.append(error)
            else:
                pairs.append((protocol, segmenter))
    if not pairs:
        raise reasons[0]
    for reason in reasons:
        _LOG.warning("left out: %s", reason)
    return pairs


def _run_on(
    dataset: Dataset, pairs: Sequence[tuple[EvalProtocol, Segmenter[Any]]], settings: RunSettings
) -> list[Path]:
    """Run pairs on one data set in one pass over its images, and return the folder of each."""
    sample_ids = dataset.ids()[: settings.limit]
    share = settings.shard.share_of(sample_ids)
    for note in getattr(dataset, "notes", ()):
        _LOG.warning("%s", note)
    folders: list[Path] = []
    jobs: list[Job] = []
    writers: list[RunWriter] = []
    with sigterm_as_interrupt(), ExitStack() as stack:
        for protocol, segmenter in pairs:
            manifest = _manifest(protocol, dataset, segmenter, len(sample_ids), settings)
            folder = settings.results / run_name(manifest)
            if folder not in folders:  # else the same combination was asked for twice
                writer = RunWriter(settings.results, manifest, settings.shard)
                writers.append(stack.enter_context(writer))
                left = _left(writer, share, settings.loop.keep_masks)
                jobs.append(Job(segmenter, protocol, left))
            folders.append(folder)
        try:
            _write_scores(dataset, jobs, writers, settings, n_images=len(share))
        except KeyboardInterrupt:
            for writer in writers:
                _LOG.warning("interrupted; rerun the same command to resume %s", writer.folder)
            raise
    return folders


def _left(writer: RunWriter, share: Sequence[str], keep_masks: Keep) -> list[str]:
    """Return the images of a run that are not stored yet."""
    stored = writer.done
    if keep_masks != "none":
        stored &= writer.masks_kept(keep_masks)
    left = [sample_id for sample_id in share if sample_id not in stored]
    if share and not left:
        _LOG.info("%s: all %d images were stored already", writer.folder, len(share))
    return left


def _write_scores(
    dataset: Dataset,
    jobs: Sequence[Job],
    writers: Sequence[RunWriter],
    settings: RunSettings,
    *,
    n_images: int,
) -> None:
    """Score the images that are not stored yet, store their scores, and tell how far it is."""
    total = n_images * len(jobs)
    done = total - sum(len(job.sample_ids) for job in jobs)
    n_prompts, busy_s, started = 0, 0.0, time.monotonic()
    halvings = [settings.loop.halvings] * len(jobs)
    for place, result in score_images(dataset, jobs, settings.loop):
        writer = writers[place]
        if isinstance(result, Failure) and result.is_left_out:
            writer.leave_out(result.sample_id, [result.reason])
        elif isinstance(result, Failure):
            writer.fail(result.sample_id, result.reason)
            _LOG.warning("failed: %s", result.reason)
        else:
            if result.halvings > halvings[place]:
                halvings[place] = result.halvings
                _note_halvings(writer, result)
            if result.left_out:
                writer.leave_out(result.sample_id, result.left_out)
            writer.write(result.sample_id, result.scores, objects=result.objects, kept=result.kept)
            n_prompts += result.n_prompts
            busy_s += result.busy_s
        done += 1
        elapsed = time.monotonic() - started
        title = _title(dataset, jobs)
        settings.progress(Progress(title, done, total, n_prompts, busy_s, elapsed))


def _title(dataset: Dataset, jobs: Sequence[Job]) -> str:
    """Return data set, protocols and segmenters, counted where there are several."""
    protocols = list(dict.fromkeys(job.protocol.name for job in jobs))
    segmenters = list(dict.fromkeys(job.segmenter.info.label for job in jobs))
    words = [
        names[0] if len(names) == 1 else f"{len(names)} {what}s"
        for names, what in ((protocols, "protocol"), (segmenters, "segmenter"))
    ]
    return " · ".join([dataset.info.key, *words])


def _note_halvings(writer: RunWriter, result: Evaluated) -> None:
    writer.note_halvings(result.halvings)
    _LOG.warning(
        "out of device memory on '%s': from here on --batch-size is divided by %d",
        result.sample_id,
        2**result.halvings,
    )


def _manifest(
    protocol: EvalProtocol,
    dataset: Dataset,
    segmenter: Segmenter[Any],
    n_samples: int,
    settings: RunSettings,
) -> RunManifest:
    packages = {name: version(name) for name in VERSIONED}
    at_once = settings.loop.image_batch_size
    rounding = {"images_at_once": float(at_once)} if at_once > 1 else {}
    return RunManifest(
        protocol={**describe_protocol(protocol), "sha256": protocol_hash(protocol)},
        reported=[asdict(row) for row in protocol.reported],
        dataset=dataset.info,
        segmenter=segmenter.info,
        n_samples=n_samples,
        limit=settings.limit,
        trials=protocol.trials,
        device=_device_kind(segmenter, settings.device),
        constants={**SCORE_CONSTANTS, **rounding},
        versions={"samrobust": __version__, "python": platform.python_version(), **packages},
        command=settings.command,
        created=datetime.now(UTC).isoformat(timespec="seconds"),
    )


def _device_kind(segmenter: Segmenter[Any], default: str) -> str:
    """Return "cpu" or "cuda": of a torch model where its weights are, else the default."""
    model = getattr(segmenter, "model", segmenter)
    weights = next(model.parameters(), None) if isinstance(model, torch.nn.Module) else None
    return default.partition(":")[0] if weights is None else weights.device.type


@contextmanager
def sigterm_as_interrupt() -> Iterator[None]:
    """Let SIGTERM, with which torchrun and Slurm end processes, act as Ctrl-C: work is kept."""
    if threading.current_thread() is not threading.main_thread():
        yield  # where Python allows no handler
        return

    def stop(_signal: int, _frame: FrameType | None) -> None:
        raise KeyboardInterrupt

    before = signal.signal(signal.SIGTERM, stop)
    try:
        yield
    finally:
        signal.signal(signal.SIGTERM, before)
