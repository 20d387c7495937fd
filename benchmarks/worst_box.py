"""Searches for the worst box beside BREPS' schedule: IoU found, passes and seconds, in one run.

    python -m benchmarks.worst_box --data-root VOC --split val --limit 5
    python -m benchmarks.worst_box --variant vit_b

BREPS moves the corners by Adam, 50 steps down and 50 up, one object after the other, each with a
forward and a backward pass of prompt encoder and decoder (docs/sources/peers.md 1.1). The suite's
searches ask for all objects of an image in one batch. All ways see the same embedding, which is not
counted, score the candidate of three in which the model believes most, and take the gradient of the
dice loss in the decoder's own grid, which is the faster way. Weights are random, but SAM-nano's.
"""

import math
import tempfile
import time
from collections.abc import Iterator
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Annotated, cast

import numpy as np
import torch
import typer
from torch import Tensor
from torchvision.ops import complete_box_iou_loss

from benchmarks.photograph import DrawnPhotograph, save_random_sam
from samrobust.cli.terminal import print_table
from samrobust.datasets import open_dataset
from samrobust.degradations.human import SCALE, SHAPE, human_percentile
from samrobust.degradations.search import WorstBox, WorstBoxByGradient
from samrobust.evaluation.predictor import Predictor
from samrobust.evaluation.prompts import draw_prompts
from samrobust.evaluation.search import search_prompts
from samrobust.geometry import mask_to_box
from samrobust.metrics.overlap import iou
from samrobust.protocol import load_protocol
from samrobust.segmenters.frames import MASK_THRESHOLD
from samrobust.segmenters.nano import NAME, build_sam_nano
from samrobust.segmenters.sam import Sam, SamEmbedding, build_sam
from samrobust.types import (
    Condition,
    Dataset,
    EvalProtocol,
    Instance,
    PromptBatch,
    Sample,
    Search,
    SegmenterOptions,
)

STEPS = 50
RATE = 9 / (1024 * math.sqrt(2))
"""Of Adam, in diagonals of the image."""
WEIGHT = 0.1
"""Of the log-likelihood of the box."""
SEARCHES: dict[str, Search] = {
    "sampling": WorstBox(),
    "gradient": WorstBoxByGradient(),
    "sampling of 50": WorstBox(draws=17, rounds=4, parents=4, children=2),
    "gradient of 50": WorstBoxByGradient(draws=17, rounds=8, parents=4),
    "sampling of 18": WorstBox(draws=11, rounds=2, parents=1, children=3),
}


@dataclass(frozen=True)
class Found:
    """What one way found for one object.

    Attributes:
        decodes: forward passes of the decoder, a prompt each.
        backward: backward passes.
        seconds: of both; on a CPU those of its cores, so that other work does not count. The share
            of an object, where all of an image are searched together.
        worst: lowest IoU.
        plausible: lowest IoU of a box below the 95th human percentile.
        best: highest IoU.
    """

    decodes: int
    backward: int
    seconds: float
    worst: float
    plausible: float
    best: float


def main(
    *,
    variant: Annotated[str, typer.Option(help="sam-nano, vit_b, vit_l or vit_h.")] = NAME,
    data_root: Annotated[
        Path | None, typer.Option(help="Data set of COCO's format; default: drawn ellipses.")
    ] = None,
    split: Annotated[str, typer.Option(help="Of the data set.")] = "val2017",
    limit: Annotated[int, typer.Option(help="Images.")] = 5,
    image: Annotated[
        list[str] | None, typer.Option(help="Id of an image, repeatable; in place of --limit.")
    ] = None,
    device: Annotated[str, typer.Option(help="cpu or cuda.")] = "cpu",
    batch_size: Annotated[int, typer.Option(help="Prompts per forward pass.")] = 16,
) -> None:
    """Print means over objects, by way, with the ratios to BREPS' schedule."""
    dataset: Dataset = DrawnPhotograph(1024, 768, 3)
    if data_root is not None:
        dataset = open_dataset("coco", root=data_root, split=split)
    sam = _built(variant, device)
    found: dict[str, list[Found]] = {name: [] for name in ("BREPS", *SEARCHES)}
    for sample_id in image or dataset.ids()[:limit]:
        sample = dataset[sample_id]
        with torch.inference_mode():
            (embedding,) = sam.encode([sample.image])
            for instance in sample.instances:
                found["BREPS"].append(by_breps(sam, embedding, instance))
            for name, search in SEARCHES.items():
                found[name] += by_search(sam, embedding, sample, search, batch_size=batch_size)
    _print(f"{sam.info.label} on {device}, {len(found['BREPS'])} objects", found)


def _built(variant: str, device: str) -> Sam:
    options = SegmenterOptions(device=device)
    if variant == NAME:
        return build_sam_nano(options)
    with tempfile.TemporaryDirectory() as folder:
        weights = Path(folder) / f"{variant}.pth"
        save_random_sam(variant, weights)
        return build_sam(replace(options, variant=variant, checkpoint=weights))


def by_search(
    sam: Sam, embedding: SamEmbedding, sample: Sample, search: Search, *, batch_size: int
) -> list[Found]:
    """Return what a search finds for each object of a sample, as an evaluation runs it."""
    base = load_protocol("worst-box")
    condition = Condition("worst-box", search, "worst-box", trials=1)
    protocol: EvalProtocol = replace(base, conditions=(condition,), selection="best-quality")
    started = _seconds(sam)
    draws = draw_prompts(sample, "benchmark", protocol)
    predictor = Predictor(sam, embedding, "best-quality", batch_size)
    rows = [found.row for found in search_prompts(predictor, sample.sample_id, draws) if found.row]
    seconds = (_seconds(sam) - started) / len(rows)
    return [
        Found(
            row.n_asked,
            row.n_asked if search.needs_gradients else 0,
            seconds,
            row.worst,
            row.worst,
            row.best,
        )
        for row in rows
    ]


def by_breps(sam: Sam, embedding: SamEmbedding, instance: Instance) -> Found:
    """Return what BREPS' schedule finds for an object, down and up."""
    started = _seconds(sam)
    down = list(_adam(sam, embedding, instance, sign=-1))
    up = list(_adam(sam, embedding, instance, sign=1))
    seconds = _seconds(sam) - started
    n_passes, limit = len(down) + len(up), WorstBox().percentile
    return Found(
        decodes=n_passes,
        backward=n_passes,
        seconds=seconds,
        worst=min(value for value, _ in down),
        plausible=min(value for value, percentile in down if percentile <= limit),
        best=max(value for value, _ in up),
    )


def _adam(
    sam: Sam, embedding: SamEmbedding, instance: Instance, *, sign: int
) -> Iterator[tuple[float, float]]:
    """Yield IoU and human percentile of the box at each step.

    Args:
        sam: whose decoder is asked.
        embedding: of the image.
        instance: the object.
        sign: -1 for the lowest IoU, 1 for the highest.
    """
    target = torch.tensor(instance.mask)
    points = np.zeros((1, 0, 2), np.float32), np.zeros((1, 0), np.int32)
    with torch.inference_mode(mode=False), torch.enable_grad():
        tight = torch.tensor(mask_to_box(instance.mask), dtype=torch.float32)[None]
        box = tight.clone().requires_grad_()
        optimiser = torch.optim.Adam([box], lr=RATE * math.hypot(*embedding.size_hw))
        people = torch.distributions.Gamma(torch.tensor(SHAPE), torch.tensor(1 / SCALE))
        for _ in range(STEPS):
            prompts = PromptBatch(box.detach().numpy().copy(), *points)
            (found,) = sam.predict_with_gradients(
                embedding, prompts, target[None], [MASK_THRESHOLD], selection="best-quality"
            )
            off = _loss(box.relu(), tight)
            masks = found.masks[:, found.quality[0].argmax()]
            yield iou(masks, target.to(sam.device)).item(), human_percentile(off.item())
            optimiser.zero_grad()
            if off.item() > 0:  # the density of no error is 0
                likely: Tensor = people.log_prob(off)  # type: ignore[no-untyped-call]
                (-WEIGHT * likely).backward()  # type: ignore[no-untyped-call]
            of_dice = sign * cast(Tensor, found.gradients).cpu()
            box.grad = of_dice if box.grad is None else box.grad + of_dice
            optimiser.step()


def _seconds(sam: Sam) -> float:
    return time.process_time() if sam.device.type == "cpu" else time.perf_counter()


def _loss(box: Tensor, tight: Tensor) -> Tensor:
    """Return the complete-IoU loss of (1, 4) boxes, whose last pixels are inside."""
    ends = torch.tensor([0.0, 0, 1, 1])
    found: Tensor = complete_box_iou_loss(box + ends, tight + ends, reduction="sum")
    return found


def _print(title: str, found: dict[str, list[Found]]) -> None:
    rows = []
    reference = _means(found["BREPS"])
    for name, each in found.items():
        mean = _means(each)
        passes = f"{mean['decodes']:.0f} + {mean['backward']:.0f}"
        rows.append(
            [
                name,
                passes,
                f"{mean['seconds']:.2f}",
                f"{reference['seconds'] / mean['seconds']:.1f}",
                *(f"{100 * mean[key]:.1f}" for key in ("worst", "plausible", "best")),
            ]
        )
    header = ["way", "decodes + backward", "seconds", "faster", "lowest IoU", "within p95", "best"]
    print_table(title, header, rows)


def _means(found: list[Found]) -> dict[str, float]:
    names = ("decodes", "backward", "seconds", "worst", "plausible", "best")
    return {name: float(np.mean([getattr(each, name) for each in found])) for name in names}


if __name__ == "__main__":
    typer.run(main)
