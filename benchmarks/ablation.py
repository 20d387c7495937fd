"""Train Stable-SAM, its parts and what it is compared with on SAM-nano, and compare them.

python -m benchmarks.ablation --data-root DATA --out FOLDER

Every model learns from the same photographs, for the same number of steps, with the same seeds; the
robust ones see the prompts of the recipe `robust`, the plain ones those of `plain`. They are judged
on photographs that the recipe `photographs` holds out. What is there already is not done again.
"""

import argparse
import os
import subprocess
import sys
from collections.abc import Hashable, Mapping
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path

import pandas as pd
from safetensors import safe_open

from samrobust.training.data import open_data
from samrobust.training.recipe import load_recipe

FOLDER = Path(__file__).parent / "recipes"
PROTOCOL = Path(__file__).with_suffix(".toml")
VARIANTS = {
    "dsp-plain": ("stable-sam", ["plain", "dsp"]),
    "dsp-drp-plain": ("stable-sam", ["plain"]),
    "tokens-plain": ("token-tuned", ["plain"]),
    "decoder-plain": ("decoder-tuned", ["plain"]),
    "dsp-robust": ("stable-sam", ["dsp"]),
    "dsp-drp-robust": ("stable-sam", []),
    "tokens-robust": ("token-tuned", []),
    "decoder-robust": ("decoder-tuned", []),
    "layers-1-2-3": ("stable-sam", [str(FOLDER / "layers-1-2-3.toml")]),
    "unsure-points": ("stable-sam", [str(FOLDER / "unsure-points.toml")]),
}
"""Name of the file -> model, and what changes its recipe."""
BSDS_IMAGES = 2
"""Of BSDS500, whose people drew some 54 regions an image."""
COLUMNS = {
    "exact-box": ("miou", "mbiou"),
    "box-noise-0.4": ("miou", "mbiou", "msf"),
    "points-1": ("miou", "msf"),
}
NAMES = {"miou": "mIoU", "mbiou": "mBIoU", "msf": "mSF"}


def main() -> None:
    """Train, evaluate and print a Markdown table a data set."""
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--data-root", type=Path, required=True)
    parser.add_argument("--out", type=Path, required=True)
    parser.add_argument("--longer", default="1", help="factor of the recipe's length")
    parser.add_argument("--trials", default="20", help="prompts an object and condition")
    parser.add_argument("--jobs", type=int, default=2, help="trainings at the same time")
    arguments = parser.parse_args()
    arguments.out.mkdir(parents=True, exist_ok=True)
    with ThreadPoolExecutor(arguments.jobs) as pool:
        list(pool.map(lambda name: _train(name, arguments), VARIANTS))
        list(pool.map(lambda name: _evaluate(name, arguments), ["", *VARIANTS]))
    runs = sorted(map(str, (arguments.out / "results").iterdir()))
    _run(["report", *runs, "--format", "csv", "--out", str(arguments.out / "report")])
    _print_tables(pd.read_csv(arguments.out / "report" / "tables.csv"), arguments.out)


def _train(name: str, arguments: argparse.Namespace) -> None:
    file = arguments.out / f"{name}.safetensors"
    if file.exists():
        return
    model, changes = VARIANTS[name]
    recipes = ["robust", "photographs", "whole-masks", *changes, str(FOLDER / "no-looks.toml")]
    options = [word for recipe in recipes for word in ("--recipe", recipe)]
    options += ["--data-root", str(arguments.data_root), "--scale-steps", arguments.longer]
    _run(["train", model, *options, "--out", str(file), "--workers", "0", "--quiet"])


def _evaluate(name: str, arguments: argparse.Namespace) -> None:
    """Evaluate a variant, or SAM-nano itself where the name is empty."""
    segmenter = ["--segmenter", "sam-nano"]
    if name:
        file = arguments.out / f"{name}.safetensors"
        segmenter = ["--segmenter", VARIANTS[name][0], "--checkpoint", str(file)]
    recipe = load_recipe("robust", "photographs")
    for number, each in enumerate(open_data(recipe, arguments.data_root).held_out):
        info = each.dataset.info
        if info.name == "scenes":
            continue
        most = BSDS_IMAGES if info.folder == "bsds500" else None
        ids = arguments.out / f"held-out-{number}.txt"
        ids.write_text("".join(f"{sample_id}\n" for sample_id in each.sample_ids[:most]))
        data = ["--dataset", info.name, "--data-root", str(arguments.data_root / info.folder)]
        where = ["--split", info.split, "--ids", str(ids)]
        out = ["--out", str(arguments.out / "results"), "--workers", "0", "--quiet"]
        out += ["--trials", arguments.trials]
        _run(["eval", "--protocol", str(PROTOCOL), *segmenter, *data, *where, *out])


def _run(arguments: list[str]) -> None:
    subprocess.run(
        [sys.executable, "-m", "samrobust", *arguments],
        check=True,
        stdout=subprocess.DEVNULL,
        env={**os.environ, "OMP_NUM_THREADS": "1"},
    )


def _print_tables(table: pd.DataFrame, folder: Path) -> None:
    head = [f"{name} {NAMES[key]}" for name, keys in COLUMNS.items() for key in keys]
    labels = {"sam-nano": "sam-nano"}
    labels |= {f"{model} {name}": name for name, (model, _) in VARIANTS.items()}
    for dataset, rows in table.groupby("dataset"):
        first = rows.iloc[0]
        print(f"\n{dataset}: {first.n_images} images, {first.n_objects} objects\n")
        print("| model | parameters |", " | ".join(head), "|")
        print("|" + " --- |" * (2 + len(head)))
        for label, name in labels.items():
            found = rows[rows.segmenter == label].set_index("condition").to_dict("index")
            cells = [_cell(found[on], key) for on, keys in COLUMNS.items() for key in keys]
            print(f"| {name} | {_n_learned(folder, name)} |", " | ".join(cells), "|")


def _cell(row: Mapping[Hashable, float], key: str) -> str:
    half = (row[f"{key}_high"] - row[f"{key}_low"]) / 2
    return f"{100 * row[key]:.1f} ±{100 * half:.1f}"


def _n_learned(folder: Path, name: str) -> str:
    path = folder / f"{name}.safetensors"
    if not path.exists():
        return "0"
    with safe_open(path, framework="pt") as file:
        return f"{sum(file.get_tensor(key).numel() for key in file.offset_keys()):,}"


if __name__ == "__main__":
    main()
