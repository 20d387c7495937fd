"""Speed of samrobust beside a careful researcher's loop, and beside what the device could do.

    python -m benchmarks.speed --variant vit_b --objects 1 --objects 7

Encoder, decoder (prompts to masks), metrics and all of it, with ratios to `benchmarks.careful` in
the same run and to limits: FLOPs over the peak of matrix products, bytes over that of copies, both
measured at the start. Each way runs in processes of its own, in turn, as its user would start it:
ours with the settings of the command line. Weights are random, but SAM-nano's.
"""

import json
import os
import statistics
import subprocess
import sys
import tempfile
from collections.abc import Mapping
from dataclasses import asdict
from pathlib import Path
from typing import Annotated, Any

import torch
import typer

from benchmarks.peaks import matrix_peak, memory_peak
from benchmarks.photograph import save_random_sam
from benchmarks.setting import Figures, Setting
from samrobust.cli.terminal import print_table
from samrobust.errors import SamrobustError
from samrobust.registry import known, one_of
from samrobust.segmenters import ROWS
from samrobust.segmenters.device import resolve_device
from samrobust.segmenters.nano import NAME
from samrobust.types import EncoderDtype

PARTS = {"encode": "images/s", "predict": "prompts/s", "metrics": "masks/s", "total": "prompts/s"}


def compare(
    *,
    variant: Annotated[str, typer.Option(help="vit_b, vit_l, vit_h or sam-nano.")] = "vit_b",
    objects: Annotated[list[int] | None, typer.Option(help="Objects; default 1.")] = None,
    trials: Annotated[int, typer.Option(help="Trials of the protocol noisy-box.")] = 20,
    device: Annotated[str, typer.Option(help="auto, cpu or cuda.")] = "auto",
    dtype: Annotated[str, typer.Option(help="Of our encoder; the other is float32.")] = "float32",
    images: Annotated[int, typer.Option(help="Images that samrobust evaluates.")] = 1,
    workers: Annotated[int, typer.Option(help="Processes that load them.")] = 0,
    compiled: Annotated[bool, typer.Option("--compile", help="Compile ours.")] = False,
    repeats: Annotated[int, typer.Option(help="Runs of each way; medians are taken.")] = 3,
    out: Annotated[Path | None, typer.Option(help="JSON file for all figures.")] = None,
    with_profile: Annotated[
        bool, typer.Option("--profile", help="Print the operations that take most time.")
    ] = False,
) -> None:
    """Measure both ways, in turn, on a drawn photograph of 1024 x 768 pixels."""
    try:
        known(variant, [*ROWS["sam"].checkpoints, NAME], kind="variant")
        device, kind = resolve_device(device), one_of(EncoderDtype, dtype, kind="dtype")
    except SamrobustError as error:
        raise typer.BadParameter(str(error)) from error
    figures: dict[str, Any] = {
        "torch": torch.__version__,
        "peaks": peaks_of(device, kind),
        "rows": [],
    }
    with tempfile.TemporaryDirectory() as folder:
        weights = Path(folder) / f"{variant}.pth"
        if variant != NAME:
            save_random_sam(variant, weights)
        for n_objects in objects or [1]:
            sizes = n_objects, trials, images, workers
            setting = Setting(variant, str(weights), device, kind, *sizes, compiled)
            measured: dict[str, list[Figures]] = {"careful": [], "samrobust": []}
            for _ in range(repeats):
                for way, runs in measured.items():
                    runs.append(json.loads(in_a_process(way, setting)))
            work = json.loads(in_a_process("work", setting))
            row = row_of(setting, measured, work, figures["peaks"])
            figures["rows"].append(row)
            _print(row)
            if with_profile:
                print(in_a_process("operations", setting))
    if out is not None:
        out.write_text(json.dumps(figures, indent=2) + "\n")


def peaks_of(device: str, dtype: EncoderDtype) -> Figures:
    """Return FLOP/s of products by dtype, and bytes/s of copies."""
    names: list[str] = ["float32", dtype]
    products = {name: matrix_peak(device, getattr(torch, name)) for name in dict.fromkeys(names)}
    return {**products, "copy": memory_peak(device)}


def in_a_process(way: str, setting: Setting) -> str:
    """Return what `benchmarks.ways` prints."""
    settings = {} if way == "careful" else {"OMP_WAIT_POLICY": "PASSIVE"}
    done = subprocess.run(
        [sys.executable, "-m", "benchmarks.ways", way, json.dumps(asdict(setting))],
        env={**os.environ, **settings},
        stdout=subprocess.PIPE,
        check=True,
        text=True,
    )
    return done.stdout


def row_of(
    setting: Setting,
    measured: Mapping[str, list[Figures]],
    work: Mapping[str, Figures],
    peaks: Figures,
) -> dict[str, Any]:
    """Return the medians of all figures, with ratios."""
    medians = {
        way: {name: statistics.median(run[name] for run in runs) for name in runs[0]}
        for way, runs in measured.items()
    }
    limits = {part: _limits(part, each, setting, peaks) for part, each in work.items()}
    per_image = medians["careful"]["prompts"]
    limits["total"] = {
        kind: limits["encode"][kind] / per_image + limits["predict"][kind] + limits["metrics"][kind]
        for kind in ("flops", "bytes")
    }
    parts = {}
    for part, unit in PARTS.items():
        rates = {
            way: found["images" if part == "encode" else "prompts"] / found[part]
            for way, found in medians.items()
        }
        parts[part] = {
            "unit": unit,
            **rates,
            "ratio": rates["samrobust"] / rates["careful"],
            "of_flop_limit": rates["samrobust"] * limits[part]["flops"],
            "of_byte_limit": rates["samrobust"] * limits[part]["bytes"],
        }
    memory = {way: found["peak_gib"] for way, found in medians.items()}
    about = {**asdict(setting), "weights": "random" if setting.variant != NAME else "packaged"}
    own = {name: medians["samrobust"][name] for name in ("busy", "draw_a_prompt")}
    shared = {"prompts": int(per_image), **own, "peak_gib": memory}
    return {**about, **shared, "parts": parts, "work": work, "measured": measured}


def _limits(part: str, work: Figures, setting: Setting, peaks: Figures) -> Figures:
    """Return the seconds of one image, prompt or mask at each of the peaks."""
    products = peaks[setting.dtype if part == "encode" else "float32"]
    return {"flops": work["flops"] / products, "bytes": work["bytes"] / peaks["copy"]}


def _print(row: Mapping[str, Any]) -> None:
    """Print a row of the figures."""
    print_table(title_of(row), *table_of(row))
    memory = ", ".join(f"{way} {gib:.2f}" for way, gib in row["peak_gib"].items())
    print(f"busy {row['busy']:.0%}; peak memory in GiB: {memory}")
    print(f"drawing a prompt: {1e6 * row['draw_a_prompt']:.0f} us of CPU time")


def title_of(row: Mapping[str, Any]) -> str:
    """Return what a row is about."""
    compiled = ", compiled" if row["compiled"] else ""
    prompts = f", {row['prompts']} prompts" if "prompts" in row else ""
    return f"{row['variant']} in {row['dtype']}{compiled} on {row['device']}{prompts}"


def table_of(row: Mapping[str, Any]) -> tuple[list[str], list[list[str]]]:
    """Return header and rows of the figures; limits as the share that is reached."""
    rows = []
    for part, found in row["parts"].items():
        pair = found["samrobust"], found["careful"]
        rates = [f"{rate:,.0f}" if rate >= 100 else f"{rate:.3g}" for rate in pair]
        shares = [f"{found[name]:.0%}" if found[name] else "-" for name in _SHARES]
        rows.append([part, found["unit"], *rates, f"{found['ratio']:.1f}", *shares])
    header = ["", "unit", "samrobust", "careful", "ratio", "of FLOP limit", "of byte limit"]
    return header, rows


_SHARES = ("of_flop_limit", "of_byte_limit")

if __name__ == "__main__":
    typer.run(compare)
