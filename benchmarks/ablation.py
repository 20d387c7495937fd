"""Train Stable-SAM with each of its options and what it is compared with, and judge them.

python -m benchmarks.ablation --data-root DATA --out FOLDER

Every model learns from the same photographs, for the same number of steps, with the same seeds.
The study "options" changes one setting of the plugins at a time; "parts" leaves parts of them, or
robust prompts, out (`plain` are HQ-SAM's prompts). They are judged on photographs that the recipe
`photographs` holds out: on sets with one dominant object a photograph, and on crowded ones. A last
table asks whether they only learn to take the whole thing: see README.md.

What is there already is not done again: rerun the same command to resume.
"""

import argparse
import json
import os
import subprocess
import sys
from collections.abc import Sequence
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass, replace
from pathlib import Path

import numpy as np
import pandas as pd
from safetensors import safe_open

from samrobust.report.columns import statistic_of
from samrobust.report.scores import comparable_groups
from samrobust.report.statistics import INTERVAL
from samrobust.report.summary import Measured, mean_of, measure
from samrobust.runs.store import read_runs
from samrobust.seeding import keyed_generator
from samrobust.training.data import open_data
from samrobust.training.examples import Pool
from samrobust.training.recipe import load_recipe

FOLDER = Path(__file__).parent / "recipes"
PROTOCOL = Path(__file__).with_suffix(".toml")
BASE = "sam-nano"
STUDIES: dict[str, dict[str, tuple[str, list[str]]]] = {
    "options": {
        "default": ("stable-sam", []),
        **{
            name: ("stable-sam", [str(FOLDER / f"{name}.toml")])
            for name in (
                "amplitude-none",
                "samples-plain",
                "first-figure",
                "offset-cell",
                "offset-unlimited",
                "groups-4",
                "position-moves",
                "layers-1-2-3",
            )
        },
        "no-routing": ("stable-sam", ["dsp"]),
        "decoder-tuned": ("decoder-tuned", []),
    },
    "parts": {
        "dsp-plain": ("stable-sam", ["plain", "dsp"]),
        "dsp-drp-plain": ("stable-sam", ["plain"]),
        "tokens-plain": ("token-tuned", ["plain"]),
        "decoder-plain": ("decoder-tuned", ["plain"]),
        "dsp-robust": ("stable-sam", ["dsp"]),
        "dsp-drp-robust": ("stable-sam", []),
        "tokens-robust": ("token-tuned", []),
        "decoder-robust": ("decoder-tuned", []),
        "unsure-points": ("stable-sam", [str(FOLDER / "unsure-points.toml")]),
    },
}
"""Study -> name of the file -> model, and what changes its recipe."""
GROUPS = {
    "dominant": ("weizmann_horses", "voc2012_animals", "pennfudan", "davis2016"),
    "crowded": ("coco_more", "bsds500"),
}
"""Kind of photograph -> folders of the data sets; figures are unweighted means over them."""
WHOLE = "coco_more"
"""Folder of the data set on which parts of objects are prompted."""
DRAWN = ""
"""The folder of drawn scenes, which have none."""
SHARES = {"bsds500": 1 / 4}
"""Of the images: its people drew some 54 regions on each."""
NOISE = "box-noise-0.4"
REGAINED = "regained"
COLUMNS = (
    ("miou", "exact-box"),
    ("miou", NOISE),
    (REGAINED, NOISE),
    ("miou", "points-1"),
    ("msf", NOISE),
    ("iou_std", NOISE),
)
WHOLE_CONDITIONS = ("part-box-0.8", "part-box-0.6", "part-points-0.6", "points-1")


@dataclass(frozen=True)
class Plan:
    """What is trained and judged, with which bounds.

    Attributes:
        data_root: folder of the photographs; None with drawn scenes.
        out: folder of weights and results.
        variants: as in a study.
        data_recipe: of what is trained on and held out.
        groups: as `GROUPS`.
        whole: as `WHOLE`.
        base_checkpoint: weights file of SAM-nano, None for the package's.
        scale_steps: factor of the recipe's length.
        images: most of a data set.
        trials: prompts an object and condition.
        threads: of a process.
        jobs: processes at the same time.
    """

    data_root: Path | None
    out: Path
    variants: dict[str, tuple[str, list[str]]]
    data_recipe: str
    groups: dict[str, tuple[str, ...]]
    whole: str
    base_checkpoint: Path | None
    scale_steps: float
    images: int
    trials: int
    threads: int
    jobs: int

    def weights(self, name: str) -> Path:
        """Return the file of a variant."""
        return self.out / f"{name}.safetensors"

    @property
    def labels(self) -> dict[str, str]:
        """Return name -> what reports call it, the base first."""
        return {BASE: BASE, **{name: f"{of[0]} {name}" for name, of in self.variants.items()}}


def main(arguments: Sequence[str] | None = None) -> None:
    """Train, evaluate and print Markdown tables."""
    plan = _plan(arguments)
    plan.out.mkdir(parents=True, exist_ok=True)
    _check_setting(plan)
    with ThreadPoolExecutor(plan.jobs) as pool:
        list(pool.map(lambda name: _train(name, plan), plan.variants))
        list(pool.map(lambda pool_of: _evaluate(pool_of, plan), _judged(plan)))
    measured = [measure(group) for group in comparable_groups(read_runs(plan.out / "results"))]
    by_folder = {
        protocol: {
            one.manifest.dataset.folder: one
            for one in measured
            if one.manifest.protocol["name"] == protocol
        }
        for protocol in (PROTOCOL.stem, "parts")
    }
    for kind, folders in plan.groups.items():
        _print_group(kind, [by_folder[PROTOCOL.stem][folder] for folder in folders], plan)
    _print_whole([folders[plan.whole] for folders in by_folder.values()], plan)


def regained(frame: pd.DataFrame, segmenter: str) -> "pd.Series[float]":
    """Return what a segmenter regains of what noise costs the base: 0 for nothing, 1 for all.

    Args:
        frame: mIoU in columns (statistic, segmenter, condition); a row an estimate or a resample.
        segmenter: its label.
    """
    noisy = frame["miou", BASE, NOISE]
    share: pd.Series[float] = (frame["miou", segmenter, NOISE] - noisy) / (
        frame["miou", BASE, "exact-box"] - noisy
    )
    return share


def _plan(arguments: Sequence[str] | None) -> Plan:
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument("--data-root", type=Path, help="folder of the photographs")
    parser.add_argument("--out", type=Path, required=True, help="folder of weights and results")
    parser.add_argument("--study", choices=[*STUDIES], default="options")
    parser.add_argument("--only", action="append", help="a row of the study; repeatable")
    parser.add_argument("--base-checkpoint", type=Path, help="weights file of sam-nano")
    parser.add_argument("--scale-steps", type=float, default=1, help="of the recipe's length")
    parser.add_argument("--images", type=int, default=24, help="most of a data set")
    parser.add_argument("--trials", type=int, default=20, help="prompts an object and condition")
    parser.add_argument("--threads", type=int, default=1, help="of a process")
    parser.add_argument("--jobs", type=int, default=2, help="processes at the same time")
    parser.add_argument("--tiny", action="store_true", help="two steps on drawn scenes: a trial")
    chosen = parser.parse_args(arguments)
    study = STUDIES[chosen.study]
    if unknown := set(chosen.only or ()) - set(study):
        parser.error(f"--only {min(unknown)}: allowed: {', '.join(study)}")
    if not chosen.tiny and chosen.data_root is None:
        parser.error("--data-root is needed, but with --tiny")
    return Plan(
        data_root=chosen.data_root,
        out=chosen.out,
        variants={name: study[name] for name in chosen.only or study},
        data_recipe=str(FOLDER / "tiny.toml") if chosen.tiny else "photographs",
        groups={"drawn": (DRAWN,)} if chosen.tiny else GROUPS,
        whole=DRAWN if chosen.tiny else WHOLE,
        base_checkpoint=chosen.base_checkpoint,
        scale_steps=chosen.scale_steps,
        images=chosen.images,
        trials=chosen.trials,
        threads=chosen.threads,
        jobs=chosen.jobs,
    )


def _check_setting(plan: Plan) -> None:
    """Refuse a folder whose weights or scores are of other options."""
    file = plan.out / "setting.json"
    setting = {
        "data": plan.data_recipe,
        "base": str(plan.base_checkpoint),
        "scale_steps": plan.scale_steps,
        "images": plan.images,
        "trials": plan.trials,
    }
    if file.exists() and (stored := json.loads(file.read_text())) != setting:
        changed = ", ".join(
            f"{key} {stored[key]}" for key in setting if stored[key] != setting[key]
        )
        sys.exit(f"error: {plan.out}: is of other options: {changed}; name another --out")
    file.write_text(json.dumps(setting))


def _train(name: str, plan: Plan) -> None:
    if plan.weights(name).exists():
        return
    model, changes = plan.variants[name]
    recipes = ["robust", plan.data_recipe, "whole-masks", *changes, str(FOLDER / "no-looks.toml")]
    options = [word for recipe in recipes for word in ("--recipe", recipe)]
    options += ["--scale-steps", str(plan.scale_steps), "--out", str(plan.weights(name))]
    if plan.data_root:
        options += ["--data-root", str(plan.data_root)]
    if plan.base_checkpoint:
        options += ["--checkpoint", str(plan.base_checkpoint)]
    _run(["train", model, *options], plan)


def _judged(plan: Plan) -> list[Pool]:
    """Return the held-out images that are judged, evenly spaced, by data set.

    At least two of each: of one there is no interval.
    """
    folders = {folder for members in plan.groups.values() for folder in members}
    pools = []
    for pool in open_data(load_recipe("robust", plan.data_recipe), plan.data_root).held_out:
        folder, ids = pool.dataset.info.folder, pool.sample_ids
        if folder in folders:
            count = min(len(ids), max(2, round(SHARES.get(folder, 1) * plan.images)))
            chosen = [ids[number * len(ids) // count] for number in range(count)]
            pools.append(replace(pool, sample_ids=chosen))
    return pools


def _evaluate(pool: Pool, plan: Plan) -> None:
    """Evaluate all variants and the base on one data set; an image is encoded once for all."""
    info = pool.dataset.info
    ids = plan.out / f"{info.folder or info.name}.txt"
    ids.write_text("".join(f"{sample_id}\n" for sample_id in pool.sample_ids))
    where = ["--dataset", info.name, "--split", info.split, "--ids", str(ids)]
    if plan.data_root and info.folder:
        where += ["--data-root", str(plan.data_root / info.folder)]
    segmenters = ["--segmenter", BASE, "--checkpoint", str(plan.base_checkpoint or "default")]
    for name, (model, _) in plan.variants.items():
        segmenters += ["--segmenter", model, "--checkpoint", str(plan.weights(name))]
    if plan.base_checkpoint:
        segmenters += ["--base-checkpoint", str(plan.base_checkpoint)]
    protocols = ["--protocol", str(PROTOCOL)]
    if info.folder == plan.whole:
        protocols += ["--protocol", "parts"]
    out = ["--trials", str(plan.trials), "--out", str(plan.out / "results")]
    _run(["eval", *protocols, *segmenters, *where, *out], plan)


def _run(arguments: Sequence[str], plan: Plan) -> None:
    subprocess.run(
        [sys.executable, "-m", "samrobust", *arguments, "--workers", "0", "--quiet"],
        check=True,
        stdout=subprocess.DEVNULL,
        env={**os.environ, "OMP_NUM_THREADS": str(plan.threads)},
    )


def _print_group(kind: str, parts: Sequence[Measured], plan: Plan) -> None:
    """Print a row a model: means over data sets with half of their 95 % intervals, in %."""
    # two data sets of one name and size have the same resamples: mixed, they vary independently
    mixed = [replace(part, resampled=_shuffled(part)) for part in parts]
    found = mean_of(mixed) if len(mixed) > 1 else mixed[0]
    names = ", ".join(part.manifest.dataset.folder or "scenes" for part in parts)
    print(f"\n{kind} ({names}): {found.n_images} images, {found.n_objects} objects\n")
    _print_head([_head(*column) for column in COLUMNS])
    for name, label in plan.labels.items():
        cells = [_cell(found, statistic, label, condition) for statistic, condition in COLUMNS]
        print(f"| {name} | {_n_learned(plan.weights(name))} |", " | ".join(cells), "|")


def _print_whole(parts: Sequence[Measured], plan: Plan) -> None:
    """Print a row a model: the mIoU of the whole object, and what was gained over the base."""
    names = {one.manifest.dataset.folder or "scenes" for one in parts}
    print(f"\ntaking the whole ({', '.join(names)}): {parts[0].n_objects} objects, mIoU and gain\n")
    _print_head(list(WHOLE_CONDITIONS))
    for name, label in plan.labels.items():
        cells = []
        for condition in WHOLE_CONDITIONS:
            mine, base = (("miou", one, condition) for one in (label, BASE))
            (found,) = (one for one in parts if mine in one.estimates.index)
            gain = found.estimates[mine] - found.estimates[base]
            ends = found.resampled[mine] - found.resampled[base]
            change = "" if label == BASE else f" ({_with_ends(gain, ends, sign='+')})"
            cells.append(statistic_of("miou").text(found.estimates[mine]) + change)
        print(f"| {name} | {_n_learned(plan.weights(name))} |", " | ".join(cells), "|")


def _shuffled(part: Measured) -> pd.DataFrame:
    rng = keyed_generator("ablation", part.manifest.dataset.folder)
    return part.resampled.iloc[rng.permutation(len(part.resampled))].reset_index(drop=True)


def _print_head(names: Sequence[str]) -> None:
    print("| model | parameters |", " | ".join(names), "|")
    print("|" + " --- |" * (2 + len(names)))


def _head(statistic: str, condition: str) -> str:
    if statistic == REGAINED:
        return f"{condition} regained"
    return f"{condition} {statistic_of(statistic).label}"


def _cell(found: Measured, statistic: str, label: str, condition: str) -> str:
    if statistic == REGAINED:
        if label == BASE:
            return statistic_of("miou").text(np.nan)
        estimate = regained(found.estimates.to_frame().T, label).iloc[0]
        return _with_ends(estimate, regained(found.resampled, label))
    cell = (statistic, label, condition)
    low, high = np.quantile(found.resampled[cell], INTERVAL)
    shown_as = statistic_of(statistic)
    return f"{shown_as.text(found.estimates[cell])} ±{shown_as.text((high - low) / 2)}"


def _with_ends(estimate: float, resampled: "pd.Series[float]", *, sign: str = "") -> str:
    low, high = np.quantile(resampled, INTERVAL)
    value, *ends = (statistic_of("miou").text(x, sign=sign) for x in (estimate, low, high))
    return f"{value} [{', '.join(ends)}]"


def _n_learned(path: Path) -> str:
    if not path.exists():
        return "0"
    with safe_open(path, framework="pt") as file:
        return f"{sum(file.get_tensor(key).numel() for key in file.offset_keys()):,}"


if __name__ == "__main__":
    main()
