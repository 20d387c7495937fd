"""`samrobust gate`: what a reduced precision changes, measured against limits."""

import shlex
import sys
from collections.abc import Mapping, Sequence
from dataclasses import replace
from pathlib import Path
from typing import TYPE_CHECKING, Annotated

import typer

from samrobust.cli.options import (
    ChosenSegmenter,
    DataRoots,
    Datasets,
    Device,
    FrameName,
    IdFiles,
    PromptsAtOnce,
    Quiet,
    ResultsFolder,
    Splits,
    Workers,
    build_segmenter,
    check_number,
    choose_segmenters,
    chosen_datasets,
)
from samrobust.cli.terminal import download_bar, note_line, out, print_table
from samrobust.errors import SamrobustError, SegmenterError
from samrobust.evaluation.runner import RunSettings, n_workers, run_all
from samrobust.protocol import load_protocol, with_trials
from samrobust.registry import one_of
from samrobust.types import Dataset, EncoderDtype, EvalProtocol, Frame, SegmenterOptions

if TYPE_CHECKING:
    from samrobust.report.precision import Gate
    from samrobust.runs.store import Run

REFERENCE: EncoderDtype = "float32"
REDUCED = ["bfloat16", "float16"]


def gate_command(
    segmenter: Annotated[str, typer.Option(help="Segmenter.")] = "sam-nano",
    variant: Annotated[str | None, typer.Option(help="Variant, as vit_b.")] = None,
    checkpoint: Annotated[
        Path | None, typer.Option(help="Weights file; default: fetched and kept.")
    ] = None,
    base_checkpoint: Annotated[
        Path | None,
        typer.Option(help="Weights file of the SAM that a --checkpoint is a part of."),
    ] = None,
    output: Annotated[
        str | None,
        typer.Option(help="Masks of an HQ-SAM: sum (of SAM's and the HQ token's) or hq."),
    ] = None,
    protocol: Annotated[
        list[str] | None,
        typer.Option(help="Protocol or path of a TOML file, repeatable; default noisy-box."),
    ] = None,
    dataset: Datasets = None,
    data_root: DataRoots = None,
    split: Splits = None,
    ids: IdFiles = None,
    *,
    dtype: Annotated[
        list[str] | None,
        typer.Option(help="bfloat16 or float16, repeatable; default both."),
    ] = None,
    limit: Annotated[int, typer.Option(help="Only the first N images in id order.")] = 32,
    trials: Annotated[int, typer.Option(help="Trials instead of the protocol's own.")] = 4,
    device: Device = "auto",
    frame: FrameName = "longest-side",
    results: ResultsFolder = Path("results"),
    prompts_at_once: PromptsAtOnce = 16,
    workers: Workers = None,
    quiet: Quiet = False,
) -> None:
    """Measure how far a reduced precision is from float32; exits with 1 unless all pass.

    Both are run on identical prompts. What was measured is stored beside the runs under --out, and
    stands below the tables of every run there of that segmenter in that precision.

    Example: samrobust gate --segmenter sam --variant vit_b --dataset coco --data-root COCO
    """
    for option, value, least in (
        ("--limit", limit, 1),
        ("--trials", trials, 1),
        ("--prompts-at-once", prompts_at_once, 1),
        ("--workers", workers, 0),
    ):
        check_number(option, value, least=least)
    dtypes = [one_of(EncoderDtype, name, kind="dtype") for name in dtype or REDUCED]
    if REFERENCE in dtypes:
        raise SamrobustError(f"--dtype float32 is the reference; allowed: {', '.join(REDUCED)}")
    (chosen,) = choose_segmenters(
        [segmenter],
        variants=[variant] if variant else [],
        checkpoints=[checkpoint] if checkpoint else [],
        base_checkpoints=[base_checkpoint] if base_checkpoint else [],
        outputs=[output] if output else [],
    )
    protocols = [with_trials(load_protocol(name), trials) for name in protocol or ["noisy-box"]]
    datasets = chosen_datasets(dataset, data_root, split, ids)

    from samrobust.evaluation.loop import LoopOptions
    from samrobust.runs.store import read_run
    from samrobust.segmenters.device import keep_large_blocks, resolve_device

    keep_large_blocks()
    loop = LoopOptions(prompts_at_once, n_workers(workers))
    settings = RunSettings(results, limit, resolve_device(device), loop, quiet)
    options = SegmenterOptions(device=settings.device, frame=one_of(Frame, frame, kind="frame"))

    def run(dtype: EncoderDtype) -> list[Path]:
        return _run(chosen, replace(options, dtype=dtype), protocols, datasets, settings)

    reference = run(REFERENCE)
    reduced: dict[str, list[Path]] = {}
    for name in dict.fromkeys(dtypes):
        try:
            reduced[name] = run(name)
        except SegmenterError as error:
            note_line(str(error))
            reduced[name] = []
    passed = True
    for place, folder in enumerate(reference):
        run_in_full = read_run(folder)
        gates = {
            name: _measure(run_in_full, read_run(folders[place])) if folders else None
            for name, folders in reduced.items()
        }
        _print_gates(run_in_full, gates)
        passed &= all(gate is not None and gate.passed for gate in gates.values())
    if not passed:
        raise typer.Exit(1)


def _run(
    chosen: ChosenSegmenter,
    options: SegmenterOptions,
    protocols: Sequence[EvalProtocol],
    datasets: Sequence[Dataset],
    settings: RunSettings,
) -> list[Path]:
    """Run every combination in one precision, and return the folders.

    Raises:
        SegmenterError: the segmenter has no such precision, or cannot run in it.
    """
    with download_bar(quiet=settings.quiet) as progress:
        model = build_segmenter(chosen, replace(options, progress=progress))
    if model.info.dtype != options.dtype:
        raise SegmenterError(f"{model.info.label} has no encoder that could run in {options.dtype}")
    return run_all(protocols, datasets, [model], settings)


def _measure(reference: "Run", reduced: "Run") -> "Gate":
    """Measure the gate of a run in reduced precision, and store it beside the run."""
    from samrobust.report.compare import gate
    from samrobust.report.precision import write_gate

    found = gate(reference, reduced, command=shlex.join(["samrobust", *sys.argv[1:]]))
    write_gate(found, reduced)
    return found


def _print_gates(reference: "Run", gates: "Mapping[str, Gate | None]") -> None:
    """Print what was measured of each dtype; None where it could not run."""
    from samrobust.report.precision import LIMITS
    from samrobust.report.tables import NONE, head, points

    rows = []
    for dtype, gate in gates.items():
        found = {} if gate is None else gate.differences
        cells = (points(found[name]) if name in found else NONE for name in LIMITS)
        verdict = "cannot run" if gate is None else "pass" if gate.passed else "fail"
        rows.append([dtype, *cells, verdict])
    rows.append(["limit", *(f"{100 * limit:.1f}" for limit in LIMITS.values()), ""])
    manifest = reference.manifest
    title = f"{manifest.segmenter.label}: {manifest.protocol['name']} on {manifest.dataset.label}"
    print_table(title, ["dtype", *map(head, LIMITS), "verdict"], rows)
    out.print(
        "Largest difference from float32 over the conditions, in points; "
        f"{reference.scores['sample_id'].nunique()} images, {manifest.trials} trials.",
        style="dim",
    )
