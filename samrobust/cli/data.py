"""`samrobust data`: look at a data set before a long run."""

import typer

from samrobust.cli.options import (
    DataRoots,
    Datasets,
    Quiet,
    Splits,
    chosen_datasets,
)
from samrobust.cli.terminal import one_line, out, progress_bar
from samrobust.errors import DatasetError

app = typer.Typer(no_args_is_help=True, help="Look at data sets.")


@app.command("check", epilog="samrobust data check --dataset coco --data-root DIR --split val2017")
def check_command(
    dataset: Datasets = None,
    data_root: DataRoots = None,
    split: Splits = None,
    *,
    quiet: Quiet = False,
) -> None:
    """Read every image and mask, count them, and name each broken file; exits 1 if there is one."""
    n_broken = 0
    for chosen in chosen_datasets(dataset, data_root, split):
        sample_ids = chosen.ids()
        n_instances, broken = 0, []
        with progress_bar(quiet=quiet) as progress:
            task = progress.add_task(chosen.info.key, total=len(sample_ids))
            for sample_id in sample_ids:
                try:
                    n_instances += len(chosen[sample_id].instances)
                except (DatasetError, ValueError) as error:
                    broken.append(str(error))
                progress.advance(task)
        for line in broken:
            out.print(f"broken: {one_line(line)}", soft_wrap=True, markup=False)
        out.print(
            f"{chosen.info.key}: {len(sample_ids)} images, {n_instances} objects, "
            f"{len(broken)} broken",
            soft_wrap=True,
            markup=False,
        )
        n_broken += len(broken)
    if n_broken:
        raise typer.Exit(1)
