"""`samrobust train`: train a model by a recipe, and store what it has learned."""

from collections.abc import Mapping
from pathlib import Path
from typing import Annotated

import typer

from samrobust.cli.options import (
    Device,
    Quiet,
    check_number,
)
from samrobust.cli.terminal import note_line, print_table, training_bar
from samrobust.datasets import GROUPS
from samrobust.errors import TrainingError
from samrobust.registry import one_of
from samrobust.types import EncoderDtype


def train_command(
    model: Annotated[
        str,
        typer.Argument(
            help="sam-nano, stable-sam, hq-sam, decoder-tuned, lora-tuned or token-tuned.",
            show_default=False,
        ),
    ],
    recipe: Annotated[
        list[str] | None,
        typer.Option(
            help="Recipe or path of a TOML file; more of them change the keys that they name."
        ),
    ] = None,
    base: Annotated[str, typer.Option(help="SAM that a part of is trained: sam-nano or sam.")] = "",
    variant: Annotated[str, typer.Option(help="Variant of the base, as vit_l.")] = "",
    checkpoint: Annotated[
        Path | None,
        typer.Option(
            help="Weights file of the base, default: fetched and kept; for sam-nano, to go on from."
        ),
    ] = None,
    data: Annotated[
        str | None,
        typer.Option(
            help="Data set or group in place of the recipe's; --data-root is then its folder."
        ),
    ] = None,
    data_root: Annotated[
        Path | None, typer.Option(help="Folder that holds the folders that the recipe names.")
    ] = None,
    split: Annotated[str, typer.Option(help="Split of the data set of --data.")] = "",
    *,
    out: Annotated[
        Path | None, typer.Option(help="Weights file to write; default: MODEL.safetensors.")
    ] = None,
    longer: Annotated[
        float, typer.Option(help="Factor of the length of every phase: 10 where there is a GPU.")
    ] = 1.0,
    device: Device = "auto",
    dtype: Annotated[
        str, typer.Option(help="Of the image encoder: float32, bfloat16 or float16.")
    ] = "float32",
    workers: Annotated[
        int, typer.Option(help="Processes that draw examples ahead, for each training process.")
    ] = 1,
    quiet: Quiet = False,
) -> None:
    """Train a model by a recipe.

    State, log (metrics.jsonl) and curve (curve.png) lie in a folder beside the weights file. The
    same command goes on where it was stopped. With torchrun, several processes share each step.

    Example: samrobust train stable-sam --base sam --variant vit_l --checkpoint sam_vit_l.pth
    --data hqseg-44k --data-root HQ
    """
    check_number("--workers", workers, least=0)
    encoder_dtype = one_of(EncoderDtype, dtype, kind="dtype")
    out = out or Path(f"{model}.safetensors")
    if out.is_dir():
        raise TrainingError(f"--out {out}: is a folder; wanted is the path of a weights file")

    from samrobust.segmenters.device import keep_large_blocks, resolve_device
    from samrobust.training.checkpoints import TrainingFolder
    from samrobust.training.curve import draw_curve
    from samrobust.training.data import open_data
    from samrobust.training.loop import Training, joined_team
    from samrobust.training.models import TraineeOptions, build_trainee, default_recipe
    from samrobust.training.recipe import counted, lengthened, load_recipe, recipe_for, with_data

    keep_large_blocks()
    chosen = load_recipe(*(recipe or [default_recipe(model)]))
    chosen = lengthened(recipe_for(chosen, model), longer)
    if data is not None:
        members = GROUPS.get(data, (data,))
        chosen = with_data(chosen, members, split, in_root=data_root is not None)
    elif split:
        raise TrainingError(f"--split {split}: is the split of --data, which is not given")
    found = open_data(chosen, data_root)
    chosen = counted(chosen, found.n_images)
    folder = TrainingFolder(out.with_name(f"{out.stem}-training"))
    with joined_team(resolve_device(device)) as (team, own_device), folder.locked(team.rank):
        options = TraineeOptions(str(own_device), encoder_dtype, base, variant, checkpoint)
        training = Training(build_trainee(chosen, options), chosen, found, folder, team=team)
        if training.step and team.rank == 0:
            note_line(f"going on after step {training.step}")
        with training_bar(chosen.n_steps, quiet=quiet or team.rank > 0) as show:
            held_out: Mapping[str, Mapping[str, float]] = {}
            try:
                for progress in training.run(workers=workers):
                    held_out = progress.held_out
                    show(progress.step, progress.phase, progress.loss["total"], held_out)
            except KeyboardInterrupt:
                note_line(f"interrupted; the same command goes on with {folder.path}")
                raise typer.Exit(130) from None
        if team.rank == 0:
            training.save(out)
            folder.keep_held_out(found.held_out)
            draw_curve(folder.rows(), folder.path / "curve.png")
            _print_held_out(held_out)
            note_line(f"{out}: written; log and curve in {folder.path}")


def _print_held_out(held_out: Mapping[str, Mapping[str, float]]) -> None:
    names = list(dict.fromkeys(name for found in held_out.values() for name in found))
    rows = [
        [label, *(_cell(name, found.get(name)) for name in names)]
        for label, found in held_out.items()
    ]
    if rows:
        print_table("held-out images: mIoU in %, and rho of quality", ["data", *names], rows)


def _cell(name: str, value: float | None) -> str:
    if value is None:
        return "-"
    if name == "objects":
        return str(int(value))
    return f"{value:.2f}" if name == "quality" else f"{100 * value:.1f}"
