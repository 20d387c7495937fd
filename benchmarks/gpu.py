"""Measure a device in minutes: does it compute what the CPU does, how fast, and how it trains.

    python -m benchmarks.gpu --minutes 8 --out DIR

Everything is drawn or packaged, so that no network is needed. Writes gpu.json and gpu.md into DIR,
anew after each figure; what did not fit into the minutes, or failed, is listed as not measured.
"""

import json
import os
import platform
import subprocess
import sys
import tempfile
import time
from collections.abc import Callable, Sequence
from dataclasses import asdict, dataclass, field
from functools import partial
from pathlib import Path
from typing import Annotated, Any

import torch
import typer

from benchmarks.photograph import save_random_sam
from benchmarks.setting import Figures, Setting
from benchmarks.speed import peaks_of, row_of, table_of, title_of
from samrobust.errors import SamrobustError
from samrobust.files import write_atomic
from samrobust.segmenters.device import resolve_device
from samrobust.segmenters.nano import NAME
from samrobust.types import EncoderDtype

SHARES = {"right": 0.2, "fast": 0.8, "trains": 1.0}
"""Share of the minutes after which each part must have ended."""
TRAININGS = {
    "sam-nano": ["--model", NAME],
    "stable-sam on vit_l": (
        ["--model", "stable-sam", "--base", "sam", "--variant", "vit_l", "--images", "4"]
    ),
}
TINY_TRAININGS = {name: ["--model", name, "--images", "1"] for name in (NAME, "stable-sam")}
FAILED = "failed with exit status"
"""What is said of a part that did not end early for want of time."""
TRAINING_HEADER = ("", "steps/s", "s per step", "images per step", "GiB", "hours per HQSeg-44K")


@dataclass
class Report:
    """What was measured so far, written after each figure.

    Attributes:
        folder: of its two files.
        device: what was measured on.
        right: results of checks.
        fast: figures by variant.
        trains: figures by training.
        missing: one line for each thing that was not measured.
    """

    folder: Path
    device: dict[str, str]
    right: list[dict[str, Any]] = field(default_factory=list)
    fast: list[dict[str, Any]] = field(default_factory=list)
    trains: dict[str, Figures] = field(default_factory=dict)
    missing: list[str] = field(default_factory=list)

    def write(self) -> None:
        """Write it as JSON and Markdown."""
        parts = {"right": self.right, "fast": self.fast, "trains": self.trains}
        figures = {"device": self.device, **parts, "not_measured": self.missing}
        write_atomic(self.folder / "gpu.json", (json.dumps(figures, indent=2) + "\n").encode())
        write_atomic(self.folder / "gpu.md", self.markdown().encode())

    def markdown(self) -> str:
        """Return it as tables."""
        device = ", ".join(f"{name} {value}" for name, value in self.device.items())
        checks = [_check_row(found) for found in self.right]
        header = ["check", "largest difference", "allowed", "of", "", ""]
        parts = [f"# {device}", "## Differences to the CPU", _table(header, checks)]
        for row in self.fast:
            parts.append(f"## {title_of(row)}")
            if "parts" in row:
                parts.append(_table(*table_of(row)))
            parts.append(_rates(row["measured"]))
        trainings = [
            [
                name,
                f"{1 / found['seconds_per_step']:.2f}",
                f"{found['seconds_per_step']:.3f}",
                f"{found['images_per_step']:.0f}",
                f"{found['peak_gib']:.1f}",
                f"{found['hours_per_hqseg_44k']:.2f}",
            ]
            for name, found in self.trains.items()
        ]
        parts += ["## Training", _table(TRAINING_HEADER, trainings)]
        if self.missing:
            parts += ["## Not measured", "\n".join(f"- {line}" for line in self.missing)]
        return "\n\n".join(parts) + "\n"


def main(
    *,
    out: Annotated[Path, typer.Option(help="Folder of gpu.json and gpu.md.")],
    minutes: Annotated[float, typer.Option(help="Time limit of all.")] = 8,
    device: Annotated[str, typer.Option(help="auto, cpu or cuda.")] = "auto",
    tiny: Annotated[bool, typer.Option("--tiny", help="SAM-nano only, on few prompts.")] = False,
) -> None:
    """Measure a device; exit with 1 where it computes something else than the CPU, or fails."""
    started = time.monotonic()
    try:
        device = resolve_device(device)
    except SamrobustError as error:
        raise typer.BadParameter(str(error)) from error
    out.mkdir(parents=True, exist_ok=True)
    report = Report(out, about(device))
    parts = {"right": right, "fast": fast, "trains": trains}
    for name, part in parts.items():
        ends = started + 60 * minutes * SHARES[name]
        part(report, device, partial(_seconds_until, ends), tiny=tiny)
        report.write()
    print(report.markdown())
    differs = any("failed" in found or not _agrees(found) for found in report.right)
    if differs or any(FAILED in line for line in report.missing):
        raise typer.Exit(1)


def _seconds_until(ends: float) -> float:
    return ends - time.monotonic()


def about(device: str) -> dict[str, str]:
    """Return what is measured on."""
    versions = {"torch": torch.__version__, "python": platform.python_version()}
    if device == "cpu":
        return {"card": f"CPU, {torch.get_num_threads()} threads", **versions}
    card = torch.cuda.get_device_properties(device)
    return {"card": f"{card.name}, {card.total_memory / 2**30:.0f} GiB", **versions}


def right(report: Report, device: str, left: Callable[[], float], *, tiny: bool) -> None:
    """Add the checks of `benchmarks.agreement` to a report."""
    command = ["benchmarks.agreement", "--device", device, *(["--tiny"] if tiny else [])]
    lines, stopped = _lines(command, left())
    report.right = [json.loads(line) for line in lines]
    if stopped:
        last = report.right[-1]["check"] if report.right else "the start"
        report.missing.append(f"checks after '{last}': {stopped}")


def fast(report: Report, device: str, left: Callable[[], float], *, tiny: bool) -> None:
    """Add the speed of each variant to a report, beside loops over segment-anything's predictor."""
    kind: EncoderDtype = "float32" if tiny else "bfloat16"
    peaks = peaks_of(device, kind)
    variants = [NAME] if tiny else ["vit_h", "vit_b"]
    for place, variant in enumerate(variants):
        seconds = left() / (len(variants) - place)
        with tempfile.TemporaryDirectory() as folder:
            weights = Path(folder) / f"{variant}.pth"
            if variant != NAME:
                save_random_sam(variant, weights, device)
            workers = min(8, (os.cpu_count() or 1) - 1)
            sizes = (1, 2, 1, 0) if tiny else (7, 20, 8, workers)
            setting = Setting(variant, str(weights), device, kind, *sizes, device != "cpu")
            lines, stopped = _lines(
                ["benchmarks.ways", "all", json.dumps(asdict(setting))], seconds
            )
        measured = {each["way"]: each["found"] for each in map(json.loads, lines)}
        if stopped:
            last = list(measured)[-1] if measured else "the start"
            report.missing.append(f"{variant}, ways after '{last}': {stopped}")
        row: dict[str, Any] = asdict(setting)
        if {"samrobust", "careful"} <= measured.keys():
            ours = {way: [measured[way]] for way in ("samrobust", "careful")}
            row = row_of(setting, ours, measured.pop("work"), peaks)
        if measured:
            report.fast.append({**row, "measured": measured, "peaks": peaks})
        report.write()


def trains(report: Report, device: str, left: Callable[[], float], *, tiny: bool) -> None:
    """Add the speed of trainings to a report."""
    trainings = TINY_TRAININGS if tiny else TRAININGS
    for place, (name, options) in enumerate(trainings.items()):
        seconds = left() / (len(trainings) - place)
        workers = 0 if tiny else min(8, (os.cpu_count() or 1) - 1)
        if tiny:
            options = [*options, "--steps", "1", "--seconds", "0"]
        else:
            of_time = ["--seconds", str(seconds / 3), "--steps", "5"]
            options = [*options, "--dtype", "bfloat16", *of_time]
        command = ["benchmarks.training_speed", "--device", device, "--workers", str(workers)]
        lines, stopped = _lines([*command, *options], seconds)
        if stopped:
            report.missing.append(f"training {name}: {stopped}")
        else:
            report.trains[name] = json.loads(lines[-1])
        report.write()


def _lines(command: Sequence[str], seconds: float) -> tuple[list[str], str]:
    """Return the whole lines that a module prints, and why it ended early, "" where it did not."""
    full = [sys.executable, "-m", *command]
    stopped = ""
    try:
        done = subprocess.run(full, stdout=subprocess.PIPE, check=True, timeout=max(1, seconds))
        printed = done.stdout
    except (subprocess.TimeoutExpired, subprocess.CalledProcessError) as error:
        printed, stopped = error.stdout or b"", _reason(error)
    return printed[: printed.rfind(b"\n") + 1].decode().splitlines(), stopped


def _reason(error: subprocess.TimeoutExpired | subprocess.CalledProcessError) -> str:
    if isinstance(error, subprocess.TimeoutExpired):
        return "did not fit into the minutes"
    return f"{FAILED} {error.returncode}; its message stands on stderr"


def _rates(measured: dict[str, Figures]) -> str:
    """Return the prompts per second of each way, and how busy the device was."""
    rates = [
        f"{way} {found['prompts'] / found['total']:.3g}"
        + (f" (busy {found['busy']:.0%})" if "busy" in found else "")
        for way, found in measured.items()
        if way != "work"
    ]
    return f"Prompts/s end to end: {', '.join(rates) or 'none'}."


def _agrees(found: dict[str, Any]) -> bool:
    return bool(found["largest"] <= found["allowed"])


def _check_row(found: dict[str, Any]) -> list[str]:
    if "failed" in found:
        return [found["check"], "-", "-", "-", "FAILED", found["failed"]]
    verdict = "ok" if _agrees(found) else "TOO LARGE"
    limits = f"{found['largest']:.1e}", f"{found['allowed']:.0e}"
    return [found["check"], *limits, found["of"], verdict, found["note"]]


def _table(header: Sequence[str], rows: Sequence[Sequence[str]]) -> str:
    lines = [header, ["---"] * len(header), *rows]
    return "\n".join("| " + " | ".join(line) + " |" for line in lines)


if __name__ == "__main__":
    typer.run(main)
