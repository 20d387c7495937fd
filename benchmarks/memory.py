"""Peak memory of an evaluation of one huge photograph.

python -m benchmarks.memory --megapixels 12 --objects 7
"""

import json
import resource
import tempfile
from pathlib import Path
from typing import Annotated

import typer

from benchmarks.photograph import DrawnPhotograph, save_random_sam
from samrobust.evaluation.loop import Job, LoopOptions, score_images
from samrobust.protocol import load_protocol, with_trials
from samrobust.segmenters.device import keep_large_blocks
from samrobust.segmenters.sam import build_sam
from samrobust.types import SegmenterOptions

ASPECT = 4 / 3


def main(
    *,
    megapixels: Annotated[float, typer.Option(help="Size of the photograph.")] = 12,
    objects: Annotated[int, typer.Option(help="Objects in it.")] = 7,
    trials: Annotated[int, typer.Option(help="Trials of the noisy-box protocol.")] = 20,
    variant: Annotated[str, typer.Option(help="Of SAM.")] = "vit_b",
) -> None:
    """Evaluate one drawn photograph with one loading process, as the command line does."""
    height = round((megapixels * 1e6 / ASPECT) ** 0.5)
    photograph = DrawnPhotograph(round(height * ASPECT), height, objects)
    protocol = with_trials(load_protocol("noisy-box"), trials)
    with tempfile.TemporaryDirectory() as folder:
        weights = Path(folder) / f"{variant}.pth"
        save_random_sam(variant, weights)
        segmenter = build_sam(SegmenterOptions(variant=variant, checkpoint=weights))
    options = LoopOptions(workers=1)
    ids = photograph.ids()
    list(score_images(photograph, [Job(segmenter, protocol, ids)], options))
    own, loader = (
        resource.getrusage(who).ru_maxrss / 2**20
        for who in (resource.RUSAGE_SELF, resource.RUSAGE_CHILDREN)
    )
    print(json.dumps({"peak_gib": round(own, 2), "peak_gib_of_loader": round(loader, 2)}))


if __name__ == "__main__":
    keep_large_blocks()
    typer.run(main)
