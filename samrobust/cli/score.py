"""`samrobust score`: score masks that were made elsewhere, and report them as any run."""

from pathlib import Path
from typing import Annotated

import typer

from samrobust.cli.eval import print_end
from samrobust.cli.options import (
    RUN,
    AnnotationFile,
    BoxFormatName,
    Categories,
    DataRoots,
    Datasets,
    ExifOption,
    IdFiles,
    ImageFolder,
    Labels,
    MinArea,
    Quiet,
    Recursive,
    ResultsFolder,
    Splits,
    Strict,
    Void,
    check_folder,
    check_number,
    chosen_datasets,
    chosen_protocols,
    reading,
    typed_command,
)
from samrobust.cli.terminal import evaluation_progress, loading
from samrobust.protocol import check_drawn
from samrobust.runs.sharing import WHOLE

DEFAULT_PROTOCOL = "noisy-box"
EXAMPLE = """
Example: samrobust score masks.jsonl --name my-model --protocol human-box --dataset coco
--data-root COCO --split val2017
"""


def score_command(
    masks: Annotated[
        Path,
        typer.Argument(
            metavar="FILE",
            help="Masks: CSV, JSON lines or Parquet with the columns image and hash of the "
            "exported prompts, and segmentation, COCO's run lengths.",
        ),
    ],
    name: Annotated[
        str | None,
        typer.Option(
            help="Name of the model, for tables.",
            rich_help_panel=RUN,
            show_default="that of the file",
        ),
    ] = None,
    protocol: Annotated[
        str | None,
        typer.Option(
            help="Protocol whose prompts were exported, or path of its TOML file.",
            rich_help_panel=RUN,
            show_default=DEFAULT_PROTOCOL,
        ),
    ] = None,
    prompts: Annotated[
        Path | None,
        typer.Option(
            help="File of the prompts instead of a protocol, as eval --prompts takes it.",
            rich_help_panel=RUN,
        ),
    ] = None,
    box_format: BoxFormatName = "auto",
    limit: Annotated[
        int | None, typer.Option(help="As of the exported prompts.", rich_help_panel=RUN)
    ] = None,
    trials: Annotated[
        int | None, typer.Option(help="As of the exported prompts.", rich_help_panel=RUN)
    ] = None,
    *,
    keep_going: Annotated[
        bool,
        typer.Option(
            "--keep-going", help="Record images without masks and continue.", rich_help_panel=RUN
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
    results: ResultsFolder = Path("results"),
    quiet: Quiet = False,
) -> None:
    """Score masks that a model elsewhere made of the prompts of samrobust prompts export.

    The run is stored, reported and compared as any other; the model need not be in Python, nor
    here.
    """
    check_number("--limit", limit, least=1)
    check_number("--min-area", min_area, least=0)
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
    names = [protocol] if protocol else [] if prompts else [DEFAULT_PROTOCOL]
    protocols = chosen_protocols(names, prompts, datasets, box_format=box_format, trials=trials)
    for chosen in protocols:
        check_drawn(chosen)
    check_folder("--out", results)

    with loading(quiet=quiet):
        from samrobust.evaluation.loop import LoopOptions
        from samrobust.evaluation.runner import RunSettings, n_workers, run_all
        from samrobust.segmenters.stored_masks import StoredMasks

    segmenter = StoredMasks(masks, name or masks.stem)
    loop = LoopOptions(workers=n_workers(None), keep_going=keep_going)
    with evaluation_progress(quiet=quiet) as show:
        settings = RunSettings(results, limit, "cpu", loop, command=typed_command(), progress=show)
        try:
            folders = run_all(protocols, datasets, [segmenter], settings)
        except KeyboardInterrupt:
            raise typer.Exit(130) from None
    print_end(folders, WHOLE)
