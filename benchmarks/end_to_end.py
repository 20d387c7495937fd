"""Seconds of samrobust and of a careful researcher's loop, side by side in one run.

The careful loop sets the image once with segment-anything's own predictor, predicts prompt by
prompt and scores each mask with NumPy (IoU) and OpenCV (Boundary IoU). Each way runs in processes
of its own, in turn, as its user would start it: ours with the settings of the command line. Weights
are random. The encoding of the image is also given alone: where the machine's matrix products bound
it, it bounds the ratio.

    python -m benchmarks.end_to_end compare --objects 1 --objects 7
"""

import json
import os
import statistics
import subprocess
import sys
import tempfile
import time
from pathlib import Path
from typing import Annotated, Any, Literal

import cv2
import numpy as np
import torch
import typer
from segment_anything.build_sam import sam_model_registry
from segment_anything.predictor import SamPredictor

from benchmarks.photograph import OnePhotograph, save_random_sam
from samrobust.drawing import draw_sample
from samrobust.evaluation import LoopOptions, evaluate
from samrobust.interfaces import SegmenterOptions
from samrobust.metrics.overlap import boundary_width
from samrobust.protocol import load_protocol
from samrobust.segmenters.allocator import keep_large_blocks
from samrobust.segmenters.sam import build_sam
from samrobust.types import Mask

Way = Literal["careful", "samrobust"]
WIDTH, HEIGHT = 1024, 768
PROTOCOL = "noisy-box"

app = typer.Typer()


@app.command()
def compare(
    *,
    objects: Annotated[list[int] | None, typer.Option(help="Objects; default 1 and 7.")] = None,
    variant: Annotated[str, typer.Option(help="Of SAM.")] = "vit_b",
    repeats: Annotated[int, typer.Option(help="Runs of each way; medians are compared.")] = 3,
    out: Annotated[Path | None, typer.Option(help="JSON file for the figures.")] = None,
) -> None:
    """Measure both ways, in turn, on a drawn photograph under the noisy-box protocol."""
    rows = []
    with tempfile.TemporaryDirectory() as folder:
        weights = Path(folder) / f"{variant}.pth"
        save_random_sam(variant, weights)
        for n_objects in objects or [1, 7]:
            timings: dict[Way, list[dict[str, float]]] = {"careful": [], "samrobust": []}
            for _ in range(repeats):
                for way, measured in timings.items():
                    measured.append(_in_a_process(way, variant, weights, n_objects))
            rows.append(_row(n_objects, timings))
            print(json.dumps(rows[-1]))
    if out is not None:
        figures = {"torch": torch.__version__, "variant": variant, "rows": rows}
        out.write_text(json.dumps(figures, indent=2) + "\n")


@app.command(hidden=True)
def once(way: str, variant: str, weights: Path, n_objects: int) -> None:
    """Measure one way once, after one encoding to warm up, and print it as JSON."""
    photograph = OnePhotograph(WIDTH, HEIGHT, n_objects)
    ways = {"careful": careful_loop, "samrobust": our_loop}
    print(json.dumps(ways[way](variant, weights, photograph)))


def careful_loop(variant: str, weights: Path, photograph: OnePhotograph) -> dict[str, float]:
    """Return the seconds of the careful loop; drawing the prompts is not counted."""
    model = sam_model_registry[variant](checkpoint=str(weights))  # type: ignore[no-untyped-call]
    predictor = SamPredictor(model.eval())
    (sample_id,) = photograph.ids()
    drawn = draw_sample(photograph[sample_id], photograph.info.key, load_protocol(PROTOCOL))
    predictor.set_image(drawn.sample.image)
    started = time.perf_counter()
    predictor.set_image(drawn.sample.image)
    encoded = time.perf_counter()
    for draws in drawn.draws:
        target = draws.instance.mask
        for box in draws.prompts.boxes if draws.prompts.boxes is not None else []:
            masks, _, _ = predictor.predict(box=box, multimask_output=False)
            _scores_by_opencv(np.asarray(masks[0]), target)
    return {"encode": encoded - started, "total": time.perf_counter() - started}


def our_loop(variant: str, weights: Path, photograph: OnePhotograph) -> dict[str, float]:
    """Return the seconds of `evaluate`, drawing of prompts and stability included."""
    keep_large_blocks()
    segmenter = build_sam(SegmenterOptions(variant=variant, checkpoint=weights))
    ids, options = photograph.ids(), LoopOptions()
    with torch.inference_mode():
        segmenter.encode([photograph[ids[0]].image])
        started = time.perf_counter()
        segmenter.encode([photograph[ids[0]].image])
        encoded = time.perf_counter()
    protocol = load_protocol(PROTOCOL)
    list(evaluate(segmenter, photograph, protocol, sample_ids=ids, options=options))
    return {"encode": encoded - started, "total": time.perf_counter() - encoded}


def matrix_peak() -> float:
    """Return the fastest of ten float32 matrix products of ViT-B's shapes, in GFLOP/s."""
    rows, inner, columns = 4096, 768, 3072
    left, right = torch.randn(rows, inner), torch.randn(inner, columns)
    best = 0.0
    for _ in range(10):
        started = time.perf_counter()
        torch.mm(left, right)
        best = max(best, 2 * rows * inner * columns / (time.perf_counter() - started) / 1e9)
    return best


def _in_a_process(way: Way, variant: str, weights: Path, n_objects: int) -> dict[str, float]:
    settings = {"OMP_WAIT_POLICY": "PASSIVE"} if way == "samrobust" else {}
    arguments = ["once", way, variant, str(weights), str(n_objects)]
    done = subprocess.run(
        [sys.executable, "-m", "benchmarks.end_to_end", *arguments],
        env={**os.environ, **settings},
        stdout=subprocess.PIPE,
        check=True,
    )
    timing: dict[str, float] = json.loads(done.stdout)
    return timing


def _row(n_objects: int, timings: dict[Way, list[dict[str, float]]]) -> dict[str, float]:
    def median(way: Way, part: str) -> float:
        return statistics.median(timing[part] for timing in timings[way])

    careful, ours = median("careful", "total"), median("samrobust", "total")
    careful_encode, our_encode = median("careful", "encode"), median("samrobust", "encode")
    return {
        "objects": n_objects,
        "careful_s": round(careful, 2),
        "samrobust_s": round(ours, 2),
        "ratio": round(careful / ours, 2),
        "careful_encode_s": round(careful_encode, 2),
        "samrobust_encode_s": round(our_encode, 2),
        "matrix_peak_gflop_per_s": round(matrix_peak()),
    }


def _scores_by_opencv(mask: Mask, target: Mask) -> tuple[float, float]:
    width = boundary_width(*target.shape)
    bands = [_band(values.astype(np.uint8), width) for values in (mask, target)]
    return _iou(mask, target), _iou(bands[0] > 0, bands[1] > 0)


def _band(mask: Any, width: int) -> Any:  # noqa: ANN401
    framed = cv2.copyMakeBorder(mask, 1, 1, 1, 1, cv2.BORDER_CONSTANT, value=0)
    eroded = cv2.erode(framed, np.ones((3, 3), np.uint8), iterations=width)
    return mask - eroded[1:-1, 1:-1]


def _iou(one: Mask, other: Mask) -> float:
    return float((one & other).sum() / max((one | other).sum(), 1))


if __name__ == "__main__":
    app()
