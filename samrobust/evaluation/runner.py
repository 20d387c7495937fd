"""Evaluate segmenters on data sets with protocols; each combination is a run on disk."""

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
from samrobust.evaluation.prompts import prompted_images
from samrobust.evaluation.self_test import check_adapter, needs_self_test
from samrobust.protocol import describe_protocol, load_protocol, protocol_hash, with_trials
from samrobust.runs.manifest import RunManifest, run_folder
from samrobust.runs.sharing import WHOLE, Ranks, Shard
from samrobust.runs.store import Run, RunWriter, read_run
from samrobust.segmenters import build_segmenter
from samrobust.segmenters.user_models import as_segmenter
from samrobust.types import Dataset, EvalProtocol, Keep, Segmenter

MAX_WORKERS = 8
"""More loading processes do not make an evaluation faster."""
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
"""Packages whose version can change a score; stored in the manifest."""
_LOG = logging.getLogger(__name__)


@dataclass(frozen=True)
class Progress:
    """Progress of the evaluation of one data set.

    Attributes:
        title: data set, protocols and segmenters.
        done: images scored, counted once per run.
        total: images of all runs on the data set.
        n_prompts: prompts predicted since the start.
        busy_s: seconds of encoding, predicting and scoring.
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
    """Settings of an evaluation.

    Attributes:
        results: folder of all runs.
        limit: only the first images, None for all.
        device: of segmenters whose device is not known ("cpu", "cuda:1"), for the manifest.
        loop: options of the evaluation loop.
        shard: the images that this process takes.
        command: the command line, for the manifest.
        progress: called after every image.
        self_test: whether segmenters whose code is not of this package are tested first.
    """

    results: Path
    limit: int | None = None
    device: str = "cpu"
    loop: LoopOptions = field(default_factory=LoopOptions)
    shard: Shard = WHOLE
    command: str = "samrobust.evaluate"
    progress: ProgressCallback = lambda _: None
    self_test: bool = True


def evaluate(
    segmenters: str | object | Sequence[str | object],
    data: str | Dataset | Pairs,
    protocols: str | EvalProtocol | Sequence[str | EvalProtocol] = "noisy-box",
    *,
    results: str | Path = "results",
    limit: int | None = None,
    trials: int | None = None,
    device: str = "auto",
    batch_size: int | None = None,
    workers: int = 0,
    keep_masks: Keep = "none",
    progress: ProgressCallback = lambda _: None,
    self_test: bool = True,
) -> list[Run]:
    """Evaluate segmenters on a data set with protocols, as `samrobust eval` does.

    Scores are stored after every image: the same call resumes an interrupted evaluation, or reads
    the scores of a complete one.

    Args:
        segmenters: registered names, places such as "my_model.py:build", or objects with `encode`
            and `predict`, as `samrobust.types.Segmenter`; an object without `info` is taken to
            accept boxes and points, and goes by the name of its class and a hash of its weights.
        data: a registered name, a `Dataset`, or pairs of an image, (H, W, 3) uint8 RGB, and its
            masks, (N, H, W) bool: a list of them or a torch Dataset.
        protocols: names, paths of TOML files, or protocols.
        results: folder of all runs.
        limit: only the first images, None for all.
        trials: per random condition, None for the protocol's own number.
        device: "auto", "cpu", "cuda" or "cuda:N", for segmenters given by name.
        batch_size: prompts per forward pass, None for 16, on a GPU 128; halved on out-of-memory.
        workers: processes that decode images and draw prompts; 0 for none.
        keep_masks: which masks are stored for the gallery of a report: "none", "worst" or "all".
        progress: called after every image.
        self_test: whether segmenters that are not of this package are first tested with three
            prompts on one image.

    Returns:
        One run per protocol and segmenter, in that order.

    Raises:
        SamrobustError: a name is unknown, a file cannot be read, or no segmenter accepts the
            prompts of a protocol.
    """
    from samrobust.segmenters.device import prompts_at_once, resolve_device

    device = resolve_device(device)
    built = [
        build_segmenter(model, device=device) if isinstance(model, str) else as_segmenter(model)
        for model in _as_list(segmenters)
    ]
    loaded = [
        protocol if isinstance(protocol, EvalProtocol) else load_protocol(protocol)
        for protocol in _as_list(protocols)
    ]
    if trials is not None:
        loaded = [with_trials(protocol, trials) for protocol in loaded]
    dataset: Dataset
    if isinstance(data, str):
        dataset = open_dataset(data)
    else:
        dataset = data if isinstance(data, Dataset) else PairsDataset(data)
    at_once = prompts_at_once(device) if batch_size is None else batch_size
    loop = LoopOptions(at_once, workers, keep_masks=keep_masks)
    settings = RunSettings(
        Path(results), limit, device, loop, progress=progress, self_test=self_test
    )
    return [read_run(folder) for folder in run_all(loaded, [dataset], built, settings)]


def run_all(
    protocols: Sequence[EvalProtocol],
    datasets: Sequence[Dataset],
    segmenters: Sequence[Segmenter[Any]],
    settings: RunSettings,
) -> list[Path]:
    """Run every combination and return the folders of the runs, protocol by protocol.

    A combination whose segmenter does not accept the protocol's prompts is skipped, with a warning
    in the log.

    Raises:
        SamrobustError: no combination can be run, a segmenter fails its self-test, or a run on disk
            cannot be written.
    """
    pairs = _runnable(protocols, segmenters)
    if settings.self_test:
        _check_adapters(pairs)
    folders: dict[tuple[int, int], list[Path]] = {}
    for number, dataset in enumerate(datasets):
        for (protocol, _), folder in zip(pairs, _run_on(dataset, pairs, settings), strict=True):
            folders.setdefault((protocols.index(protocol), number), []).append(folder)
    ordered = [folder for key in sorted(folders) for folder in folders[key]]
    return list(dict.fromkeys(ordered))


def n_workers(requested: int | None, *, ranks: int = 1) -> int:
    """Return the number of processes that load images.

    Args:
        requested: by the user; None for the number of cores - 1, at most `MAX_WORKERS`.
        ranks: processes that share the cores equally.
    """
    if requested is not None:
        return requested
    cores = len(os.sched_getaffinity(0)) if hasattr(os, "sched_getaffinity") else os.cpu_count()
    return max(1, min(MAX_WORKERS, (cores or 1) // ranks - 1))


@contextmanager
def joined_ranks(ranks: Ranks) -> Iterator[None]:
    """Join the processes that `torchrun` started; on leaving, wait until all have finished.

    Raises:
        RunError: the processes cannot connect, or another one ended early.
    """
    if ranks.world == 1:
        yield
        return
    try:
        distributed.init_process_group("gloo", timeout=timedelta(days=30))
    except (RuntimeError, ValueError) as error:
        raise RunError(f"rank {ranks.rank} cannot connect to the others: {error}") from error
    try:
        yield
        try:
            distributed.barrier()
        except RuntimeError as error:
            raise RunError(
                f"rank {ranks.rank}: another rank ended early; rerun the same command to resume"
            ) from error
    finally:
        distributed.destroy_process_group()


def _as_list(given: Any) -> list[Any]:  # noqa: ANN401
    return list(given) if isinstance(given, list | tuple) else [given]


def _runnable(
    protocols: Sequence[EvalProtocol], segmenters: Sequence[Segmenter[Any]]
) -> list[tuple[EvalProtocol, Segmenter[Any]]]:
    """Return the pairs that can be run; if none can, raise the error of the first."""
    pairs, errors = [], []
    for protocol in protocols:
        for segmenter in segmenters:
            try:
                check_can_run(segmenter, protocol)
            except SegmenterError as error:
                errors.append(error)
            else:
                pairs.append((protocol, segmenter))
    if not pairs:
        raise errors[0]
    for reason in errors:
        _LOG.warning("left out: %s", reason)
    return pairs


def _check_adapters(pairs: Sequence[tuple[EvalProtocol, Segmenter[Any]]]) -> None:
    """Test each segmenter that is not ours with the kinds of prompt that it will be given."""
    for segmenter in {id(segmenter): segmenter for _, segmenter in pairs}.values():
        protocols = [protocol for protocol, other in pairs if other is segmenter]
        conditions = [condition for protocol in protocols for condition in protocol.conditions]
        if needs_self_test(segmenter):
            kinds = {kind for condition in conditions for kind in condition.degradation.gives}
            check_adapter(segmenter, kinds)


def _run_on(
    dataset: Dataset, pairs: Sequence[tuple[EvalProtocol, Segmenter[Any]]], settings: RunSettings
) -> list[Path]:
    """Run pairs on one data set in one pass over its images, and return the folder of each."""
    for note in getattr(dataset, "notes", ()):
        _LOG.warning("%s", note)
    folders: list[Path] = []
    jobs: list[Job] = []
    writers: list[RunWriter] = []
    prompted: list[EvalProtocol] = []
    images_of: list[list[str]] = []
    total = 0
    with sigterm_as_interrupt(), ExitStack() as stack:
        for protocol, segmenter in pairs:
            if protocol not in prompted:
                prompted.append(protocol)
                images_of.append(prompted_images(protocol, dataset.ids())[: settings.limit])
            sample_ids = images_of[prompted.index(protocol)]
            share = settings.shard.share_of(sample_ids)
            manifest = _manifest(protocol, dataset, segmenter, len(sample_ids), settings)
            folder = run_folder(settings.results, manifest)
            if folder not in folders:  # else the same combination was named twice
                writer = RunWriter(settings.results, manifest, settings.shard)
                writers.append(stack.enter_context(writer))
                missing = _not_stored(writer, share, settings.loop.keep_masks)
                jobs.append(Job(segmenter, protocol, missing))
                total += len(share)
            folders.append(folder)
        try:
            _write_scores(dataset, jobs, writers, settings, total=total)
        except KeyboardInterrupt:
            for writer in writers:
                _LOG.warning("interrupted; rerun the same command to resume %s", writer.folder)
            raise
    return folders


def _not_stored(writer: RunWriter, share: Sequence[str], keep_masks: Keep) -> list[str]:
    """Return the images of a share whose scores, or masks, are not stored yet."""
    stored = writer.done
    if keep_masks != "none":
        stored &= writer.masks_kept(keep_masks)
    missing = [sample_id for sample_id in share if sample_id not in stored]
    if share and not missing:
        images = "the only image was" if len(share) == 1 else f"all {len(share)} images were"
        _LOG.info("%s: %s stored already", writer.folder, images)
    return missing


def _write_scores(
    dataset: Dataset,
    jobs: Sequence[Job],
    writers: Sequence[RunWriter],
    settings: RunSettings,
    *,
    total: int,
) -> None:
    """Score the images that are not stored yet, store their scores, and report progress."""
    done = total - sum(len(job.sample_ids) for job in jobs)
    n_prompts, busy_s, started = 0, 0.0, time.monotonic()
    halvings = [settings.loop.halvings] * len(jobs)
    for index, result in score_images(dataset, jobs, settings.loop):
        writer = writers[index]
        if isinstance(result, Failure) and result.is_left_out:
            writer.leave_out(result.sample_id, [result.reason])
        elif isinstance(result, Failure):
            writer.fail(result.sample_id, result.reason)
            _LOG.warning("failed: %s", result.reason)
        else:
            if result.halvings > halvings[index]:
                halvings[index] = result.halvings
                _note_halvings(writer, result)
            if result.left_out:
                writer.leave_out(result.sample_id, result.left_out)
            writer.write(
                result.sample_id,
                result.scores,
                qualities=result.qualities,
                objects=result.objects,
                kept=result.kept,
                raters=result.raters,
                searches=result.searches,
                detected=result.detected,
            )
            n_prompts += result.n_prompts
            busy_s += result.busy_s
        done += 1
        elapsed = time.monotonic() - started
        title = _title(dataset, jobs)
        settings.progress(Progress(title, done, total, n_prompts, busy_s, elapsed))


def _title(dataset: Dataset, jobs: Sequence[Job]) -> str:
    """Return the data set, and names of protocol and segmenter or the number of several."""
    protocols = list(dict.fromkeys(job.protocol.name for job in jobs))
    segmenters = list(dict.fromkeys(job.segmenter.info.label for job in jobs))
    words = [
        names[0] if len(names) == 1 else f"{len(names)} {noun}s"
        for names, noun in ((protocols, "protocol"), (segmenters, "segmenter"))
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
    image_batch_size = settings.loop.image_batch_size
    rounding = {"images_at_once": float(image_batch_size)} if image_batch_size > 1 else {}
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
    """Return "cpu" or "cuda": the device of a torch model's weights, else the default."""
    model = getattr(segmenter, "model", segmenter)
    weights = next(model.parameters(), None) if isinstance(model, torch.nn.Module) else None
    return default.partition(":")[0] if weights is None else weights.device.type


@contextmanager
def sigterm_as_interrupt() -> Iterator[None]:
    """Treat SIGTERM, with which torchrun and Slurm end processes, as Ctrl-C."""
    if threading.current_thread() is not threading.main_thread():
        yield  # Python allows handlers only in the main thread
        return

    def stop(_signal: int, _frame: FrameType | None) -> None:
        raise KeyboardInterrupt

    before = signal.signal(signal.SIGTERM, stop)
    try:
        yield
    finally:
        signal.signal(signal.SIGTERM, before)
