"""`samrobust prompts`: write the prompts of a protocol to a file, and fit people's boxes."""

from pathlib import Path
from typing import Annotated

import typer

from samrobust.cli.options import (
    OUTPUT,
    RUN,
    AnnotationFile,
    BoxFormatName,
    Categories,
    Command,
    DataRoots,
    Datasets,
    ExifOption,
    IdFiles,
    ImageFolder,
    Labels,
    MinArea,
    Quiet,
    Recursive,
    Splits,
    Strict,
    Void,
    check_number,
    chosen_datasets,
    chosen_protocols,
    reading,
)
from samrobust.cli.terminal import loading, note_line, out, print_table, progress_bar
from samrobust.errors import SamrobustError
from samrobust.protocol import check_drawn

app = typer.Typer(
    no_args_is_help=True, help="Write prompts to a file for models elsewhere; fit people's boxes."
)


@app.command(
    "export",
    cls=Command,
    epilog="Example: samrobust prompts export --protocol human-box --dataset coco --data-root COCO "
    "--split val2017 --out prompts.jsonl",
)
def export_command(
    protocol: Annotated[
        str,
        typer.Option(help="Protocol, or path of a TOML file.", rich_help_panel=RUN),
    ] = "noisy-box",
    limit: Annotated[
        int | None, typer.Option(help="Only the first N images by id.", rich_help_panel=RUN)
    ] = None,
    trials: Annotated[
        int | None,
        typer.Option(
            help="Trials per condition instead of the protocol's own.", rich_help_panel=RUN
        ),
    ] = None,
    dataset: Datasets = None,
    data_root: DataRoots = None,
    split: Splits = None,
    ids: IdFiles = None,
    images: ImageFolder = None,
    annotations: AnnotationFile = None,
    category: Categories = None,
    min_area: MinArea = 0,
    *,
    labels: Labels = False,
    void: Void = None,
    recursive: Recursive = False,
    exif: ExifOption = "auto",
    strict: Strict = False,
    file: Annotated[
        Path,
        typer.Option("--out", help="File: .csv, .jsonl or .parquet.", rich_help_panel=OUTPUT),
    ] = Path("prompts.csv"),
    quiet: Quiet = False,
) -> None:
    """Write the very prompts of a protocol, with their hashes, for models that run elsewhere.

    samrobust eval --prompts FILE gives the same scores as the protocol; samrobust score takes the
    masks of a model elsewhere.
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
    (chosen,) = chosen_protocols([protocol], None, datasets, trials=trials)
    check_drawn(chosen)
    if len(datasets) > 1:
        raise SamrobustError("a file has the prompts of one data set; export each of a group")

    from samrobust.evaluation.prompts import drawn_rows
    from samrobust.prompt_files import write_rows

    sample_ids = datasets[0].ids()[:limit]
    with progress_bar(quiet=quiet) as progress:
        task = progress.add_task(datasets[0].info.key)
        shown = progress.track(sample_ids, task_id=task)
        n_rows = write_rows(file, drawn_rows(datasets[0], chosen, shown))
    note_line(f"{file}: {n_rows} prompts of {len(sample_ids)} images")


@app.command(
    "fit",
    cls=Command,
    epilog="Example: samrobust prompts fit people.csv --dataset folder --data-root MINE "
    "--out people.toml",
)
def fit_command(
    prompts: Annotated[
        Path, typer.Argument(metavar="FILE", help="Boxes of people, as eval --prompts takes them.")
    ],
    box_format: BoxFormatName = "auto",
    dataset: Datasets = None,
    data_root: DataRoots = None,
    split: Splits = None,
    ids: IdFiles = None,
    images: ImageFolder = None,
    annotations: AnnotationFile = None,
    category: Categories = None,
    min_area: MinArea = 0,
    *,
    labels: Labels = False,
    void: Void = None,
    recursive: Recursive = False,
    exif: ExifOption = "auto",
    strict: Strict = False,
    file: Annotated[
        Path | None,
        typer.Option(
            "--out",
            help="Protocol to write: human-box with the distribution of these people.",
            rich_help_panel=OUTPUT,
        ),
    ] = None,
    quiet: Quiet = False,
) -> None:
    """Fit the distribution of human-box to the boxes of your own raters, by maximum likelihood.

    Prints its shape and scale with 95 % intervals, how far it is from the boxes
    (Kolmogorov-Smirnov), and quantiles of the complete-IoU loss of both.
    """
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
    (recorded,) = chosen_protocols([], prompts, datasets, box_format=box_format)
    if len(datasets) > 1:
        raise SamrobustError("a file has the prompts of one data set; fit each of a group")

    with loading(quiet=quiet):
        from samrobust.evaluation.prompts import recorded_losses
        from samrobust.report.formats import write_text
        from samrobust.report.people import fit_people, protocol_text, quantile_rows

    losses = recorded_losses(datasets[0], recorded)
    fit = fit_people(losses)
    out.print(
        f"{prompts.name}: {fit.n_boxes} boxes of {fit.n_images} images; shape {fit.shape:.3f} "
        f"[{fit.shape_interval[0]:.3f}, {fit.shape_interval[1]:.3f}], scale {fit.scale:.4f} "
        f"[{fit.scale_interval[0]:.4f}, {fit.scale_interval[1]:.4f}], KS distance {fit.ks:.3f}",
        soft_wrap=True,
        markup=False,
    )
    if fit.n_tight:
        note_line(f"boxes that are the tight one itself, which the fit leaves out: {fit.n_tight}")
    header = ["percentile", "these boxes", "this fit", "BREPS' fit"]
    print_table("complete-IoU loss", header, quantile_rows(fit))
    if file is not None:
        write_text(file, protocol_text(fit, name=file.stem, source=prompts.name))
        note_line(f"{file}: written; samrobust eval --protocol {file}")
