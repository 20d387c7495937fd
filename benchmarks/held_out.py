"""Judge segmenters on the photographs that a recipe holds out of training.

python -m benchmarks.held_out --data-root DATA --segmenter ellipse --segmenter sam-nano
"""

import argparse
from pathlib import Path

from samrobust.segmenters import SEGMENTERS
from samrobust.training.data import open_data
from samrobust.training.recipe import load_recipe
from samrobust.training.validation import PROMPTS, validate
from samrobust.types import SegmenterOptions


def main() -> None:
    """Print a Markdown table: mIoU in %, and the correlation of predicted and true quality."""
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--data-root", type=Path, required=True)
    parser.add_argument("--segmenter", action="append", required=True)
    arguments = parser.parse_args()
    held_out = open_data(load_recipe("sam-nano", "photographs"), arguments.data_root).held_out
    names = [*PROMPTS, "quality"]
    print("| data | images | objects | segmenter |", " | ".join(names), "|")
    print("|" + " --- |" * (4 + len(names)))
    for each in held_out:
        for segmenter in arguments.segmenter:
            model = SEGMENTERS.load(segmenter)(SegmenterOptions())
            found = validate(model, each.dataset, each.sample_ids)
            values = [_cell(name, found.get(name)) for name in names]
            images, objects = len(each.sample_ids), int(found["objects"])
            where = f"| {each.dataset.info.label} | {images} | {objects} | {segmenter} |"
            print(where, " | ".join(values), "|", flush=True)


def _cell(name: str, value: float | None) -> str:
    if value is None:
        return "-"
    return f"{value:.2f}" if name == "quality" else f"{100 * value:.1f}"


if __name__ == "__main__":
    main()
