"""`samrobust eval`: run protocols over data sets with segmenters, and store every score."""

from collections.abc import Sequence
from dataclasses import replace
from pathlib import Path
from typing import TYPE_CHECKING, Annotated

import typer

from samrobust.cli.options import (
    DEFAULT_CACHE_SIZE,
    BaseCheckpoints,
    Cache,
    CacheOptions,
    CacheSize,
    Checkpoints,
    DataRoots,
    Datasets,
    Device,
    FrameName,
    IdFiles,
    PromptsAtOnce,
    Quiet,
    ResultsFolder,
    Splits,
    Variants,
    Workers,
    build_segmenter,
    check_number,
    choose_segmenters,
    chosen_datasets,
    with_caches,
)
from samrobust.cli.report import print_report
from samrobust.cli.terminal import download_bar, note_line
from samrobust.evaluation.runner import RunSettings, n_workers, run_all
from samrobust.protocol import load_protocol, with_trials
from samrobust.registry import one_of
from samrobust.runs.manifest import Keep
from samrobust.runs.sharing import WHOLE, Shard, parse_shard
from samrobust.types import EncoderDtype, EvalProtocol, Frame, SegmenterOptions, Selection

if TYPE_CHECKING:
    from samrobust.runs.sharing import Meeting, Ranks


def end_together(
    folders: Sequence[Path], ranks: "Ranks", shard: Shard, meeting: "Meeting | None"
) -> None:
    """Print the report where all of it is there: of a shard what is stored, by one rank of all.

    Args:
        folders: of the runs.
        ranks: this process's place.
        shard: what `--shard` says, the whole run without it.
        meeting: of the ranks, None where there is one.

    Raises:
        RunError: a rank ended early.
    """
    if meeting is not None:
        meeting.tell_done()
        if ranks.rank > 0:
            return
        meeting.wait(lambda: _others_write(folders, ranks.part_of(shard)))
    if shard == WHOLE:
        print_report(folders)
    else:
        _say_what_is_stored(folders, shard)


def _others_write(folders: Sequence[Path], shard: Shard) -> bool:
    from samrobust.runs.sharing import others_write

    return any(others_write(folder, shard) for folder in folders)


def _say_what_is_stored(folders: Sequence[Path], shard: Shard) -> None:
    from samrobust.runs.manifest import read_manifest
    from samrobust.runs.store import stored_images

    for folder in folders:
        n_samples = read_manifest(folder).n_samples
        n_stored = len(stored_images(folder))
        note_line(
            f"{folder}: shard {shard.number}/{shard.count} is done; {n_stored} of {n_samples} "
            "images are stored; samrobust report shows them"
        )


DEFAULT_PROTOCOLS = ["noisy-box"]
DEFAULT_SEGMENTERS = ["box-fill", "ellipse", "sam-nano"]


def evaluate_command(
    protocol: Annotated[
        list[str] | None,
        typer.Option(help="Protocol or path of a TOML file, repeatable; default noisy-box."),
    ] = None,
    segmenter: Annotated[
        list[str] | None,
        typer.Option(help="Segmenter, repeatable; default box-fill, ellipse and sam-nano."),
    ] = None,
    variant: Variants = None,
    checkpoint: Checkpoints = None,
    base_checkpoint: BaseCheckpoints = None,
    output: Annotated[
        list[str] | None,
        typer.Option(help="Masks of an HQ-SAM: sum (of SAM's and the HQ token's) or hq; or each."),
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
    device: Device = "auto",
    dtype: Annotated[
        str, typer.Option(help="Of the image encoder: float32, bfloat16 or float16.")
    ] = "float32",
    compile_encoder: Annotated[
        bool,
        typer.Option("--compile", help="Compile ViT encoders: for GPUs, pays after minutes."),
    ] = False,
    frame: FrameName = "longest-side",
    out: ResultsFolder = Path("results"),
    prompts_at_once: PromptsAtOnce = 16,
    images_at_once: Annotated[
        int, typer.Option(help="Images in one call of the encoder; more may pay on a GPU.")
    ] = 1,
    workers: Workers = None,
    keep_going: Annotated[
        bool,
        typer.Option(
            "--keep-going", help="Record an image that is broken, or has no answer, and go on."
        ),
    ] = False,
    keep_masks: Annotated[
        str, typer.Option(help="Masks to store for the page's gallery: worst, all or none.")
    ] = "none",
    shard: Annotated[
        str | None,
        typer.Option(help="Only this share of the images, as 2/8; others run the other shares."),
    ] = None,
    cache: Cache = None,
    cache_size: CacheSize = DEFAULT_CACHE_SIZE,
    quiet: Quiet = False,
) -> None:
    """Evaluate every combination of the given protocols, data sets and segmenters.

    The same command goes on where it was stopped. Scores are stored one a row under --out.
    With torchrun, several processes share the images.

    Example: samrobust eval --protocol noisy-box --segmenter sam --variant vit_b --dataset coco
    --data-root COCO --split val2017 --limit 100
    """
    check_number("--limit", limit, least=1)
    check_number("--prompts-at-once", prompts_at_once, least=1)
    check_number("--images-at-once", images_at_once, least=1)
    check_number("--workers", workers, least=0)
    asked = WHOLE if shard is None else parse_shard(shard)
    caching = CacheOptions(cache, cache_size)
    keep: Keep = one_of(Keep, keep_masks, kind="kind of masks to keep")
    protocols = [_load_protocol(name, trials, selection) for name in protocol or DEFAULT_PROTOCOLS]
    datasets = chosen_datasets(dataset, data_root, split, ids)

    from samrobust.evaluation.loop import LoopOptions
    from samrobust.runs.sharing import Meeting, Ranks
    from samrobust.segmenters.device import keep_large_blocks, resolve_device

    keep_large_blocks()
    ranks = Ranks.from_environment()
    meeting = Meeting(ranks) if ranks.world > 1 else None
    quiet = quiet or ranks.rank > 0
    options = SegmenterOptions(
        device=resolve_device(ranks.own_device(resolve_device(device))),
        dtype=one_of(EncoderDtype, dtype, kind="dtype"),
        frame=one_of(Frame, frame, kind="frame"),
        compile=compile_encoder,
    )
    with download_bar(quiet=quiet) as progress:
        options = replace(options, progress=progress)
        names = segmenter or DEFAULT_SEGMENTERS
        chosen = choose_segmenters(
            names,
            variants=variant or [],
            checkpoints=checkpoint or [],
            base_checkpoints=base_checkpoint or [],
            outputs=output or [],
        )
        segmenters = [build_segmenter(each, options) for each in chosen]
    n_loading = n_workers(workers, ranks=ranks.local_world)
    loop = LoopOptions(prompts_at_once, n_loading, keep_going, keep, images_at_once=images_at_once)
    settings = RunSettings(out, limit, options.device, loop, quiet, ranks.part_of(asked))
    cached = with_caches(segmenters, caching)
    folders = run_all(protocols, datasets, cached, settings)
    end_together(folders, ranks, asked, meeting)


def _load_protocol(name: str, trials: int | None, selection: str | None) -> EvalProtocol:
    protocol = load_protocol(name)
    if trials is not None:
        protocol = with_trials(protocol, trials)
    if selection is not None:
        protocol = replace(protocol, selection=one_of(Selection, selection, kind="selection"))
    return protocol
