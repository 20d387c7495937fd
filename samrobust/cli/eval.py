"""`samrobust eval`: run protocols over data sets with segmenters, and store every score."""

import shlex
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
    BoxFormatName,
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
    check_folder,
    check_number,
    choose_segmenters,
    chosen_datasets,
    chosen_protocols,
    reading,
    typed_command,
    with_caches,
)
from samrobust.cli.report import print_report
from samrobust.cli.terminal import download_bar, evaluation_progress, loading, note_line, out
from samrobust.registry import one_of
from samrobust.runs.sharing import WHOLE, Ranks, Shard, parse_shard
from samrobust.types import EncoderDtype, Frame, Keep, SegmenterOptions

DEFAULT_PROTOCOLS = ["noisy-box"]
DEFAULT_SEGMENTERS = ["box-fill", "ellipse", "sam-nano"]
EXAMPLES = """
Examples:

samrobust eval --protocol noisy-box

samrobust eval --protocol points --segmenter sam --variant vit_b --dataset coco --data-root COCO
--split val2017 --limit 100

samrobust eval --segmenter hq-sam --segmenter sam --variant vit_l --dataset folder --data-root MINE
--keep-masks worst

samrobust eval --prompts people.csv --segmenter sam-nano --dataset folder --data-root MINE

samrobust eval --boxes coco_vitdet.json --segmenter sam-nano --dataset coco --data-root COCO
--split val2017
"""


def evaluate_command(
    protocol: Annotated[
        list[str] | None,
        typer.Option(
            help="Protocol, or path of a TOML file, repeatable. See: samrobust ls protocols",
            rich_help_panel=RUN,
            show_default="noisy-box",
        ),
    ] = None,
    segmenter: Annotated[
        list[str] | None,
        typer.Option(
            help="Segmenter, or one of your own as my_model.py:build; repeatable. See: samrobust "
            "ls segmenters",
            rich_help_panel=RUN,
            show_default="box-fill, ellipse and sam-nano",
        ),
    ] = None,
    prompts: Annotated[
        Path | None,
        typer.Option(
            help="Recorded prompts instead of a protocol: CSV, JSON lines or Parquet, BREPS' "
            "folder of masks, or RClicks' clicks.csv.",
            rich_help_panel=RUN,
        ),
    ] = None,
    boxes: Annotated[
        Path | None,
        typer.Option(
            help="Boxes of a detector instead of a protocol: results of COCO's format, JSON. Every "
            "box gives a mask, and the report average precision.",
            rich_help_panel=RUN,
        ),
    ] = None,
    box_format: BoxFormatName = "auto",
    limit: Annotated[
        int | None,
        typer.Option(
            help="Only the first N images by id; marked in the results.", rich_help_panel=RUN
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
            help="Which candidate mask is scored instead of the protocol's choice: single, "
            "best-quality or oracle; marked in the results.",
            rich_help_panel=RUN,
        ),
    ] = None,
    shard: Annotated[
        str | None,
        typer.Option(
            help="Only this share of the images, such as 2/8; other processes run the rest.",
            rich_help_panel=RUN,
        ),
    ] = None,
    *,
    gradient: Annotated[
        bool,
        typer.Option(
            "--gradient",
            help="Search for the worst box by gradient instead of by sampling, in as many passes; "
            "for SAMs of this package. Marked in the results.",
            rich_help_panel=RUN,
        ),
    ] = False,
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
            help="Output of an HQ-SAM: sum (SAM's logits plus the HQ token's) or hq (only the HQ "
            "token's); once for all, or once per HQ-SAM, in order.",
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
    batch_size: BatchSize = None,
    image_batch_size: Annotated[
        int,
        typer.Option(
            help="Images per forward pass of the encoder; more may be faster on GPUs.",
            rich_help_panel=SPEED,
        ),
    ] = 1,
    workers: Workers = None,
    compile_encoder: Annotated[
        bool,
        typer.Option(
            "--compile",
            help="Compile SAM's decoder and ViT encoders: faster on GPUs, after a minute.",
            rich_help_panel=SPEED,
        ),
    ] = False,
    cache: Cache = None,
    cache_size: CacheSize = DEFAULT_CACHE_SIZE,
    results: ResultsFolder = Path("results"),
    keep_masks: Annotated[
        str,
        typer.Option(
            help="Masks to store for a report's gallery: worst, all or none.",
            rich_help_panel=OUTPUT,
        ),
    ] = "none",
    no_self_test: Annotated[
        bool,
        typer.Option(
            "--no-self-test",
            help="Run models of plug-ins, files and transformers without the test of their masks.",
            rich_help_panel=MODEL,
        ),
    ] = False,
    quiet: Quiet = False,
) -> None:
    """Evaluate every combination of protocols, data sets and segmenters.

    Scores are stored under --out; rerun the same command to resume. With torchrun, several
    processes share the images. Segmenters with the same encoder share its embeddings.
    """
    for option, value, least in (
        ("--limit", limit, 1),
        ("--batch-size", batch_size, 1),
        ("--image-batch-size", image_batch_size, 1),
        ("--workers", workers, 0),
        ("--min-area", min_area, 0),
    ):
        check_number(option, value, least=least)
    chosen_shard = WHOLE if shard is None else parse_shard(shard)
    keep: Keep = one_of(Keep, keep_masks, kind="kind of masks to keep")
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
    protocols = chosen_protocols(
        protocol or ([] if prompts or boxes else DEFAULT_PROTOCOLS),
        prompts,
        datasets,
        boxes=boxes,
        box_format=box_format,
        trials=trials,
        selection=selection,
        gradient=gradient,
    )
    names = segmenter or DEFAULT_SEGMENTERS
    chosen = choose_segmenters(
        names,
        variants=variant or [],
        checkpoints=checkpoint or [],
        base_checkpoints=base_checkpoint or [],
        outputs=output or [],
    )
    check_folder("--out", results)
    ranks = Ranks.from_environment()
    quiet = quiet or ranks.rank > 0

    with loading(quiet=quiet):
        from samrobust.evaluation.loop import LoopOptions
        from samrobust.evaluation.runner import RunSettings, joined_ranks, n_workers, run_all
        from samrobust.segmenters.device import (
            keep_large_blocks,
            prompts_at_once,
            resolve_device,
        )

    keep_large_blocks()
    options = SegmenterOptions(
        device=resolve_device(ranks.own_device(resolve_device(device))),
        dtype=one_of(EncoderDtype, dtype, kind="dtype"),
        frame=one_of(Frame, frame, kind="frame"),
        compile=compile_encoder,
    )
    with joined_ranks(ranks):
        with download_bar(quiet=quiet) as progress:
            options = replace(options, progress=progress)
            built = [build_segmenter(segmenter, options) for segmenter in chosen]
        loop = LoopOptions(
            batch_size or prompts_at_once(options.device),
            n_workers(workers, ranks=ranks.local_world),
            keep_going,
            keep,
            image_batch_size=image_batch_size,
        )
        with evaluation_progress(quiet=quiet) as show:
            settings = RunSettings(
                results,
                limit,
                options.device,
                loop,
                ranks.part_of(chosen_shard),
                typed_command(),
                show,
                self_test=not no_self_test,
            )
            cached = with_caches(built, cache, cache_size)
            try:
                folders = run_all(protocols, datasets, cached, settings)
            except KeyboardInterrupt:
                raise typer.Exit(130) from None
    if ranks.rank == 0:
        print_end(folders, chosen_shard)


def print_end(folders: Sequence[Path], shard: Shard) -> None:
    """Print the report; for a shard, print how many images of each run are stored."""
    if shard == WHOLE:
        print_report(folders)
        names = shlex.join(str(folder) for folder in folders)
        out.print(f"next: samrobust report {names} --out report", soft_wrap=True, markup=False)
        return

    from samrobust.runs.manifest import read_manifest
    from samrobust.runs.store import stored_images

    for folder in folders:
        n_samples = read_manifest(folder).n_samples
        n_stored = len(stored_images(folder))
        note_line(
            f"{folder}: shard {shard.number}/{shard.count} is done; {n_stored} of {n_samples} "
            "images are stored; see them with samrobust report"
        )
