"""`samrobust eval`: run protocols over data sets with segmenters, and store every score."""

import itertools
import os
import platform
import shlex
import sys
import time
from collections.abc import Sequence
from dataclasses import asdict, dataclass, replace
from datetime import UTC, datetime
from importlib.metadata import version
from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Any

import typer

from samrobust import __version__
from samrobust.cli.choices import (
    DataRoots,
    Datasets,
    IdFiles,
    Splits,
    check_number,
    chosen_datasets,
    for_each,
)
from samrobust.cli.report import print_report
from samrobust.cli.terminal import download_bar, note_line, progress_bar
from samrobust.interfaces import Dataset, EncoderDtype, EvalProtocol, Segmenter, SegmenterOptions
from samrobust.protocol import (
    describe_protocol,
    load_protocol,
    protocol_hash,
    with_trials,
)
from samrobust.registry import one_of
from samrobust.segmenters import SEGMENTERS
from samrobust.types import Frame, Keep, RunManifest, Selection

if TYPE_CHECKING:
    from samrobust.evaluation import LoopOptions
    from samrobust.store import RunWriter

DEFAULT_PROTOCOLS = ["noisy-box"]
DEFAULT_SEGMENTERS = ["box-fill", "ellipse", "sam-nano"]
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
class _Settings:
    results: Path
    limit: int | None
    device: str
    loop: "LoopOptions"
    quiet: bool


@dataclass(frozen=True)
class _Work:
    sample_ids: Sequence[str]
    writer: "RunWriter"


def evaluate_command(
    protocol: Annotated[
        list[str] | None,
        typer.Option(help="Protocol or path of a TOML file, repeatable; default noisy-box."),
    ] = None,
    segmenter: Annotated[
        list[str] | None,
        typer.Option(help="Segmenter, repeatable; default box-fill, ellipse and sam-nano."),
    ] = None,
    variant: Annotated[
        list[str] | None,
        typer.Option(help="Variant, as vit_b: once for all segmenters that have some, or each."),
    ] = None,
    checkpoint: Annotated[
        list[Path] | None,
        typer.Option(help="Weights file: once, or one a segmenter; default: fetched and kept."),
    ] = None,
    base_checkpoint: Annotated[
        list[Path] | None,
        typer.Option(help="Weights file of the SAM that a --checkpoint is a part of."),
    ] = None,
    dataset: Datasets = None,
    data_root: DataRoots = None,
    split: Splits = None,
    ids: IdFiles = None,
    *,
    limit: Annotated[
        int | None, typer.Option(help="Only the first N images in id order; marked in the results.")
    ] = None,
    trials: Annotated[
        int | None, typer.Option(help="Trials instead of the protocol's own; marked likewise.")
    ] = None,
    selection: Annotated[
        str | None,
        typer.Option(help="Mask that counts: single, best-quality or oracle; marked likewise."),
    ] = None,
    device: Annotated[str, typer.Option(help="auto, cpu, cuda or cuda:N.")] = "auto",
    dtype: Annotated[
        str, typer.Option(help="Of the image encoder: float32, bfloat16 or float16.")
    ] = "float32",
    frame: Annotated[
        str, typer.Option(help="How images reach a SAM: longest-side (aspect kept) or squash.")
    ] = "longest-side",
    out: Annotated[Path, typer.Option(help="Folder of all runs.")] = Path("results"),
    prompts_at_once: Annotated[int, typer.Option(help="Prompts in one call of the model.")] = 16,
    workers: Annotated[
        int | None, typer.Option(help="Processes that load images; default: 1 a core, at most 8.")
    ] = None,
    keep_going: Annotated[
        bool, typer.Option("--keep-going", help="Record a broken image and go on.")
    ] = False,
    keep_masks: Annotated[
        str, typer.Option(help="Masks to store for the page's gallery: worst, all or none.")
    ] = "none",
    quiet: Annotated[bool, typer.Option("--quiet", help="No progress.")] = False,
) -> None:
    """Evaluate every combination of the given protocols, data sets and segmenters.

    The same command goes on where it was stopped. Scores are stored one a row under --out.

    Example: samrobust eval --protocol noisy-box --segmenter sam --variant vit_b --dataset coco
    --data-root COCO --split val2017 --limit 100
    """
    check_number("--limit", limit, least=1)
    check_number("--prompts-at-once", prompts_at_once, least=1)
    check_number("--workers", workers, least=0)
    keep: Keep = one_of(Keep, keep_masks, kind="kind of masks to keep")
    protocols = [_load_protocol(name, trials, selection) for name in protocol or DEFAULT_PROTOCOLS]
    datasets = chosen_datasets(dataset, data_root, split, ids)

    from samrobust.evaluation import LoopOptions
    from samrobust.segmenters.allocator import keep_large_blocks
    from samrobust.segmenters.device import resolve_device

    keep_large_blocks()
    options = SegmenterOptions(
        device=resolve_device(device),
        dtype=one_of(EncoderDtype, dtype, kind="dtype"),
        frame=one_of(Frame, frame, kind="frame"),
    )
    with download_bar(quiet=quiet) as progress:
        options = replace(options, progress=progress)
        names = segmenter or DEFAULT_SEGMENTERS
        files = variant or [], checkpoint or [], base_checkpoint or []
        segmenters = _build_segmenters(names, *files, options)
    loop = LoopOptions(prompts_at_once, _n_workers(workers), keep_going, keep)
    settings = _Settings(out, limit, options.device, loop, quiet)
    folders = _run_all(protocols, datasets, segmenters, settings)
    print_report(folders)


def _load_protocol(name: str, trials: int | None, selection: str | None) -> EvalProtocol:
    protocol = load_protocol(name)
    if trials is not None:
        protocol = with_trials(protocol, trials)
    if selection is not None:
        protocol = replace(protocol, selection=one_of(Selection, selection, kind="selection"))
    return protocol


def _build_segmenters(
    names: list[str],
    variants: list[str],
    checkpoints: list[Path],
    base_checkpoints: list[Path],
    options: SegmenterOptions,
) -> list[Segmenter[Any]]:
    builders = [SEGMENTERS.load(name) for name in names]
    variant_of = for_each(names, variants, option="--variant", registry=SEGMENTERS)
    weights_of = for_each(names, checkpoints, option="--checkpoint", registry=SEGMENTERS)
    base_of = for_each(names, base_checkpoints, option="--base-checkpoint", registry=SEGMENTERS)
    chosen = zip(builders, variant_of, weights_of, base_of, strict=True)
    return [
        build(replace(options, variant=name or "", checkpoint=weights, base_checkpoint=base))
        for build, name, weights, base in chosen
    ]


def _n_workers(asked: int | None) -> int:
    if asked is not None:
        return asked
    cores = len(os.sched_getaffinity(0)) if hasattr(os, "sched_getaffinity") else os.cpu_count()
    return max(1, min(MOST_WORKERS, (cores or 1) - 1))


def _run_all(
    protocols: Sequence[EvalProtocol],
    datasets: Sequence[Dataset],
    segmenters: Sequence[Segmenter[Any]],
    settings: _Settings,
) -> list[Path]:
    """Run every combination; what cannot be run is refused before anything is."""
    from samrobust.evaluation import check_can_run
    from samrobust.store import RunWriter, run_name

    for protocol, segmenter in itertools.product(protocols, segmenters):
        check_can_run(segmenter.info, protocol)
    folders = []
    for protocol, dataset, segmenter in itertools.product(protocols, datasets, segmenters):
        sample_ids = dataset.ids()[: settings.limit]
        manifest = _manifest(protocol, dataset, segmenter, sample_ids, settings)
        if settings.results / run_name(manifest) in folders:
            continue  # the same combination was asked for twice
        with RunWriter(settings.results, manifest) as writer:
            folders.append(writer.folder)
            try:
                _run(protocol, dataset, segmenter, _Work(sample_ids, writer), settings)
            except KeyboardInterrupt:
                note_line(f"interrupted; the same command goes on with {writer.folder}")
                raise typer.Exit(130) from None
    return folders


def _run(
    protocol: EvalProtocol,
    dataset: Dataset,
    segmenter: Segmenter[Any],
    work: _Work,
    settings: _Settings,
) -> None:
    """Evaluate the images that are not stored yet, and show how far it is."""
    from samrobust.evaluation import Failure, evaluate

    writer = work.writer
    stored = writer.done
    if settings.loop.keep_masks != "none":
        stored &= writer.masks_kept(settings.loop.keep_masks)
    left = [sample_id for sample_id in work.sample_ids if sample_id not in stored]
    n_prompts, started = 0, time.monotonic()
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
                writer.write(
                    result.sample_id, result.scores, objects=result.objects, kept=result.kept
                )
                n_prompts += result.n_prompts
            rate = n_prompts / (time.monotonic() - started)
            progress.update(task, advance=1, speed=f"{rate:,.0f} prompts/s")


def _manifest(
    protocol: EvalProtocol,
    dataset: Dataset,
    segmenter: Segmenter[Any],
    sample_ids: Sequence[str],
    settings: _Settings,
) -> RunManifest:
    from samrobust.evaluation import SCORE_CONSTANTS

    packages = {name: version(name) for name in VERSIONED}
    return RunManifest(
        protocol={**describe_protocol(protocol), "sha256": protocol_hash(protocol)},
        reported=[asdict(row) for row in protocol.reported],
        dataset=dataset.info,
        segmenter=segmenter.info,
        n_samples=len(sample_ids),
        limit=settings.limit,
        trials=protocol.trials,
        device=settings.device.partition(":")[0],
        constants=SCORE_CONSTANTS,
        versions={"samrobust": __version__, "python": platform.python_version(), **packages},
        command=shlex.join(["samrobust", *sys.argv[1:]]),
        created=datetime.now(UTC).isoformat(timespec="seconds"),
    )
