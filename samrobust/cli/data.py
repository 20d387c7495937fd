"""`samrobust data`: check a data set before a long run."""

import typer

from samrobust.cli.options import (
    AnnotationFile,
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
    reading,
)
from samrobust.cli.terminal import one_line, out, progress_bar
from samrobust.errors import DatasetError, NoObjectError
from samrobust.types import Dataset

app = typer.Typer(no_args_is_help=True, help="Check data sets.")


@app.command(
    "check",
    cls=Command,
    epilog="Example: samrobust data check --dataset coco --data-root COCO --split val2017",
)
def check_command(
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
    quiet: Quiet = False,
) -> None:
    """Read and count all images and masks; list those that are broken, left out or not read.

    The exit code is 1 if an image or a mask is broken, which would stop a run.
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
    if sum(_check(chosen, quiet=quiet) for chosen in datasets):
        raise typer.Exit(1)


def _check(dataset: Dataset, *, quiet: bool) -> int:
    """Read a data set, print the counts and problems, and return the number of broken images."""
    sample_ids = dataset.ids()
    n_instances = 0
    broken: list[str] = []
    left_out: list[str] = []
    with progress_bar(quiet=quiet) as progress:
        task = progress.add_task(dataset.info.key, total=len(sample_ids))
        for sample_id in sample_ids:
            try:
                sample = dataset[sample_id]
                n_instances += len(sample.instances)
                left_out += sample.left_out
            except NoObjectError as error:
                left_out.append(str(error))
            except (DatasetError, ValueError) as error:
                broken.append(str(error))
            progress.advance(task)
    counts = (
        f"{_counted(len(sample_ids), 'image')}, {_counted(n_instances, 'object')}, "
        f"{len(left_out)} left out, {len(broken)} broken"
    )
    lines = [
        *(f"broken: {line}" for line in broken),
        *(f"left out: {line}" for line in left_out),
        *(f"note: {line}" for line in getattr(dataset, "notes", ())),
    ]
    for line in [*lines, f"{dataset.info.key}: {counts}"]:
        out.print(one_line(line), soft_wrap=True, markup=False)
    return len(broken)


def _counted(n: int, noun: str) -> str:
    return f"{n} {noun}" if n == 1 else f"{n} {noun}s"
