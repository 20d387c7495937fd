"""`samrobust eval`: run protocols over data sets with segmenters, and store every score."""

from collections.abc import Sequence
from dataclasses import replace
from pathlib import Path
from typing import Annotated

import typer

from samrobust.cli.options import (
    DEFAULT_CACHE_SIZE,
    MODEL,
    OUTPUT,
    RUN,
    SPEED,
    AnnotationFile,
    BaseCheckpoints,
    BatchSize,
    Cache,
    CacheSize,
    Categories,
    Checkpoints,
    DataRoots,
    Datasets,
    Device,
    ExifOption,
    FrameName,
    IdFiles,
    ImageFolder,
    Labels,
    MinArea,
    Quiet,
    Recursive,
    ResultsFolder,
    Splits,
    Strict,
    Variants,
    Void,
    Workers,
    build_segmenter,
    check_number,
    choose_segmenters,
    chosen_datasets,
    reading,
    typed_command,
    with_caches,
)
from samrobust.cli.report import print_report
from samrobust.cli.terminal import download_bar, evaluation_progress, note_line
from samrobust.protocol import load_protocol, with_trials
from samrobust.registry import one_of
from samrobust.runs.manifest import Keep, read_manifest
from samrobust.runs.sharing import WHOLE, Ranks, Shard, parse_shard
from samrobust.types import EncoderDtype, EvalProtocol, Frame, SegmenterOptions, Selection

DEFAULT_PROTOCOLS = ["noisy-box"]
DEFAULT_SEGMENTERS = ["box-fill", "ellipse", "sam-nano"]
EXAMPLES = """
Examples:

samrobust eval --protocol noisy-box

samrobust eval --protocol points --segmenter sam --variant vit_b --dataset coco --data-root COCO
--split val2017 --limit 100

samrobust eval --segmenter hq-sam --segmenter sam --variant vit_l --dataset folder --data-root MINE
--keep-masks worst
"""


def evaluate_command(
    protocol: Annotated[
        list[str] | None,
        typer.Option(
            help="Protocol, or path of a TOML file; repeatable.  [default: noisy-box]",
            rich_help_panel=RUN,
        ),
    ] = None,
    segmenter: Annotated[
        list[str] | None,
        typer.Option(
            help="Segmenter, or my_model.py:build of your own; repeatable.  [default: box-fill, "
            "ellipse and sam-nano]",
            rich_help_panel=RUN,
        ),
    ] = None,
    limit: Annotated[
        int | None,
        typer.Option(
            help="Only the first N images in id order; marked in the results.", rich_help_panel=RUN
        ),
    ] = None,
    trials: Annotated[
        int | None,
        typer.Option(
            help="Trials per condition instead of the protocol's own; marked in the results.",
            rich_help_panel=RUN,
        ),
    ] = None,
    selection: Annotated[
        str | None,
        typer.Option(
            help="Candidate mask that is scored: single, best-quality or oracle; marked in the "
            "results.",
            rich_help_panel=RUN,
        ),
    ] = None,
    shard: Annotated[
        str | None,
        typer.Option(
            help="Only this share of the images, such as 2/8; other processes run the others.",
            rich_help_panel=RUN,
        ),
    ] = None,
    *,
    keep_going: Annotated[
        bool,
        typer.Option(
            "--keep-going", help="Record failed images and continue.", rich_help_panel=RUN
        ),
    ] = False,
    dataset: Datasets = None,
    data_root: DataRoots = None,
    split: Splits = None,
    ids: IdFiles = None,
    images: ImageFolder = None,
    annotations: AnnotationFile = None,
    category: Categories = None,
    min_area: MinArea = 0,
    labels: Labels = False,
    void: Void = None,
    recursive: Recursive = False,
    exif: ExifOption = "auto",
    strict: Strict = False,
    variant: Variants = None,
    checkpoint: Checkpoints = None,
    base_checkpoint: BaseCheckpoints = None,
    output: Annotated[
        list[str] | None,
        typer.Option(
            help="Masks of an HQ-SAM: sum (of SAM's and the HQ token's logits) or hq; once, or "
            "once per segmenter.",
            rich_help_panel=MODEL,
        ),
    ] = None,
    dtype: Annotated[
        str,
        typer.Option(
            help="Image-encoder precision: float32, bfloat16 or float16.", rich_help_panel=MODEL
        ),
    ] = "float32",
    frame: FrameName = "longest-side",
    device: Device = "auto",
    batch_size: BatchSize = 16,
    image_batch_size: Annotated[
        int,
        typer.Option(
            help="Images per forward pass of the encoder; more may be faster on a GPU.",
            rich_help_panel=SPEED,
        ),
    ] = 1,
    workers: Workers = None,
    compile_encoder: Annotated[
        bool,
        typer.Option(
            "--compile",
            help="Compile ViT encoders: for GPUs, pays off after minutes.",
            rich_help_panel=SPEED,
        ),
    ] = False,
    cache: Cache = None,
    cache_size: CacheSize = DEFAULT_CACHE_SIZE,
    out: ResultsFolder = Path("results"),
    keep_masks: Annotated[
        str,
        typer.Option(
            help="Masks to store for the gallery of a report: worst, all or none.",
            rich_help_panel=OUTPUT,
        ),
    ] = "none",
    quiet: Quiet = False,
) -> None:
    """Evaluate every combination of protocols, data sets and segmenters.

    Each image is decoded once for all of them, and encoded once for all segmenters that share an
    encoder. Scores are stored under --out; rerun the same command to resume. With torchrun, several
    processes share the images.
    """
    for option, value, least in (
        ("--limit", limit, 1),
        ("--batch-size", batch_size, 1),
        ("--image-batch-size", image_batch_size, 1),
        ("--workers", workers, 0),
        ("--min-area", min_area, 0),
    ):
        check_number(option, value, least=least)
    asked = WHOLE if shard is None else parse_shard(shard)
    keep: Keep = one_of(Keep, keep_masks, kind="kind of masks to keep")
    protocols = [_load_protocol(name, trials, selection) for name in protocol or DEFAULT_PROTOCOLS]
    how = reading(
        images,
        annotations,
        category,
        min_area,
        labels=labels,
        void=void,
        recursive=recursive,
        exif=exif,
        strict=strict,
    )
    datasets = chosen_datasets(dataset, data_root, split, ids, how)
    names = segmenter or DEFAULT_SEGMENTERS
    chosen = choose_segmenters(
        names,
        variants=variant or [],
        checkpoints=checkpoint or [],
        base_checkpoints=base_checkpoint or [],
        outputs=output or [],
    )
    ranks = Ranks.from_environment()
    quiet = quiet or ranks.rank > 0

    from samrobust.evaluation.loop import LoopOptions
    from samrobust.evaluation.runner import RunSettings, joined_ranks, n_workers, run_all
    from samrobust.segmenters.device import keep_large_blocks, resolve_device

    keep_large_blocks()
    options = SegmenterOptions(
        device=resolve_device(ranks.own_device(resolve_device(device))),
        dtype=one_of(EncoderDtype, dtype, kind="dtype"),
        frame=one_of(Frame, frame, kind="frame"),
        compile=compile_encoder,
    )
    with joined_ranks(ranks):
        with download_bar(quiet=quiet) as progress:
            built = [build_segmenter(each, replace(options, progress=progress)) for each in chosen]
        loop = LoopOptions(
            batch_size,
            n_workers(workers, ranks=ranks.local_world),
            keep_going,
            keep,
            image_batch_size=image_batch_size,
        )
        with evaluation_progress(quiet=quiet) as show:
            settings = RunSettings(
                out,
                limit,
                options.device,
                loop,
                ranks.part_of(asked),
                typed_command(),
                show,
            )
            cached = with_caches(built, cache, cache_size)
            try:
                folders = run_all(protocols, datasets, cached, settings)
            except KeyboardInterrupt:
                raise typer.Exit(130) from None
    if ranks.rank == 0:
        _print_end(folders, asked)


def _load_protocol(name: str, trials: int | None, selection: str | None) -> EvalProtocol:
    protocol = load_protocol(name)
    if trials is not None:
        protocol = with_trials(protocol, trials)
    if selection is not None:
        protocol = replace(protocol, selection=one_of(Selection, selection, kind="selection"))
    return protocol


def _print_end(folders: Sequence[Path], shard: Shard) -> None:
    """Print the report; of a shard, how many images of each run are stored."""
    if shard == WHOLE:
        print_report(folders)
        return

    from samrobust.runs.store import stored_images

    for folder in folders:
        n_samples = read_manifest(folder).n_samples
        n_stored = len(stored_images(folder))
        note_line(
            f"{folder}: shard {shard.number}/{shard.count} is done; {n_stored} of {n_samples} "
            "images are stored; samrobust report shows them"
        )
