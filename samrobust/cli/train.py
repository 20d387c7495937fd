"""`samrobust train`: train a model with a recipe, and store its weights."""

from collections.abc import Mapping
from pathlib import Path
from typing import Annotated

import typer

from samrobust.cli.options import check_folder, check_number
from samrobust.cli.terminal import loading, note_line, print_table, training_progress
from samrobust.datasets import GROUPS
from samrobust.errors import TrainingError
from samrobust.registry import one_of
from samrobust.types import EncoderDtype

WHAT, DATA, MODEL, SPEED, OUTPUT = "What to train", "Data", "Model", "Speed", "Output"
"""Groups of options in the help."""
EXAMPLES = """
Examples:

samrobust train sam-nano

samrobust train stable-sam --base sam --variant vit_l --data hqseg-44k --data-root HQ
"""


def train_command(
    model: Annotated[
        str,
        typer.Argument(
            help="Model: sam-nano, stable-sam, hq-sam, decoder-tuned, lora-tuned or token-tuned.",
            show_default=False,
        ),
    ],
    *,
    recipe: Annotated[
        list[str] | None,
        typer.Option(
            help="Recipe, or path of a TOML file; repeat to override keys. See: samrobust ls "
            "recipes",
            rich_help_panel=WHAT,
            show_default="the model's own",
        ),
    ] = None,
    scale_steps: Annotated[
        float,
        typer.Option(help="Multiply the steps of every phase.", rich_help_panel=WHAT),
    ] = 1.0,
    data: Annotated[
        str | None,
        typer.Option(
            help="Data set or group instead of the recipe's; --data-root is then its folder.",
            rich_help_panel=DATA,
            show_default="the recipe's",
        ),
    ] = None,
    data_root: Annotated[
        Path | None,
        typer.Option(
            help="Folder that contains the folders of the recipe's data sets.",
            rich_help_panel=DATA,
        ),
    ] = None,
    split: Annotated[str, typer.Option(help="Split of --data.", rich_help_panel=DATA)] = "",
    base: Annotated[
        str,
        typer.Option(
            help="Frozen SAM that the trained parameters are added to: sam-nano or sam.",
            rich_help_panel=MODEL,
            show_default="sam-nano",
        ),
    ] = "",
    variant: Annotated[
        str, typer.Option(help="Variant of --base, such as vit_l.", rich_help_panel=MODEL)
    ] = "",
    checkpoint: Annotated[
        Path | None,
        typer.Option(
            help="Weights file of --base; for the model sam-nano: weights to start from.",
            rich_help_panel=MODEL,
            show_default="downloaded and cached",
        ),
    ] = None,
    device: Annotated[
        str, typer.Option(help="Device: auto, cpu, cuda or cuda:N.", rich_help_panel=SPEED)
    ] = "auto",
    dtype: Annotated[
        str,
        typer.Option(help="Image-encoder precision: float32 or bfloat16.", rich_help_panel=SPEED),
    ] = "float32",
    workers: Annotated[
        int,
        typer.Option(
            help="Processes that prepare examples, per training process.", rich_help_panel=SPEED
        ),
    ] = 1,
    out: Annotated[
        Path | None,
        typer.Option(
            help="Weights file to write.",
            rich_help_panel=OUTPUT,
            show_default="MODEL.safetensors",
        ),
    ] = None,
    quiet: Annotated[
        bool, typer.Option("--quiet", help="Show no progress.", rich_help_panel=OUTPUT)
    ] = False,
) -> None:
    """Train a model with a recipe.

    A folder beside the weights file holds the training state, the log (metrics.jsonl) and the
    learning curve (curve.png). Rerun the same command to resume. With torchrun, several processes
    share each step.
    """
    check_number("--workers", workers, least=0)
    encoder_dtype = one_of(EncoderDtype, dtype, kind="dtype")
    out = out or Path(f"{model}.safetensors")
    if out.is_dir():
        raise TrainingError(f"--out {out}: is a folder, must be the path of a weights file")
    check_folder("--out", out.parent)
    if split and data is None:
        raise TrainingError(f"--split {split}: needs --data")

    with loading(quiet=quiet):
        from samrobust.segmenters.device import keep_large_blocks, resolve_device
        from samrobust.training.checkpoints import TrainingFolder
        from samrobust.training.curve import draw_curve
        from samrobust.training.data import open_data
        from samrobust.training.loop import Training, process_group
        from samrobust.training.models import TraineeOptions, build_trainee, default_recipe
        from samrobust.training.recipe import (
            counted,
            lengthened,
            load_recipe,
            recipe_for,
            with_data,
        )

    keep_large_blocks()
    chosen = load_recipe(*(recipe or [default_recipe(model)]))
    chosen = lengthened(recipe_for(chosen, model), scale_steps)
    if data is not None:
        members = GROUPS.get(data, (data,))
        chosen = with_data(chosen, members, split, in_root=data_root is not None)
    images = open_data(chosen, data_root)
    chosen = counted(chosen, images.n_images)
    folder = TrainingFolder(out.with_name(f"{out.stem}-training"))
    with process_group(resolve_device(device)) as (ranks, own_device), folder.locked(ranks.rank):
        options = TraineeOptions(own_device, encoder_dtype, base, variant, checkpoint)
        training = Training(build_trainee(chosen, options), chosen, images, folder, ranks=ranks)
        if training.step and ranks.rank == 0:
            note_line(f"resuming after step {training.step}")
        held_out: Mapping[str, Mapping[str, float]] = {}
        with training_progress(chosen.n_steps, quiet=quiet or ranks.rank > 0) as show:
            try:
                for progress in training.run(workers=workers):
                    held_out = progress.held_out
                    show(progress.step, progress.phase, progress.loss["total"], held_out)
            except KeyboardInterrupt:
                note_line(f"interrupted; rerun the same command to resume {folder.path}")
                raise typer.Exit(130) from None
        if ranks.rank == 0:
            training.save(out)
            folder.keep_held_out(images.held_out)
            draw_curve(folder.rows(), folder.path / "curve.png")
            _print_held_out(held_out)
            note_line(f"{out}: written; log and curve in {folder.path}")
            note_line(f"next: samrobust eval --segmenter {model} --checkpoint {out}")


def _print_held_out(held_out: Mapping[str, Mapping[str, float]]) -> None:
    names = list(dict.fromkeys(name for scores in held_out.values() for name in scores))
    rows = [
        [label, *(_cell(name, scores.get(name)) for name in names)]
        for label, scores in held_out.items()
    ]
    if rows:
        title = "held-out images: mIoU in %, and Spearman's rho of quality and IoU"
        print_table(title, ["data set", *names], rows)


def _cell(name: str, value: float | None) -> str:
    if value is None:
        return "-"
    if name == "objects":
        return str(int(value))
    return f"{value:.2f}" if name == "quality" else f"{100 * value:.1f}"
