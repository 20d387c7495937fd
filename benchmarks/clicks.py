"""Time of conversations: all objects of an image at once, beside loops over single objects.

    python -m benchmarks.clicks --variant sam-nano --objects 8

Three ways to the same masks, in turn in one process, on a drawn photograph: ours, with one encoding
and one forward pass for the k-th click of all objects, scores counted; a loop over objects and
clicks with the image encoded once; and the same loop with the image encoded at every click, as
RClicks does it (docs/sources/peers.md 1.2). Weights are random, but SAM-nano's. CPU seconds are
those of the process: they tell the ways apart where other work has the cores too.
"""

import tempfile
import time
from collections.abc import Callable
from dataclasses import replace
from functools import partial
from pathlib import Path
from typing import Annotated, Any

import numpy as np
import torch
import typer

from benchmarks.photograph import DrawnPhotograph, save_random_sam
from samrobust.cli.terminal import print_table
from samrobust.degradations.clicks import Click
from samrobust.evaluation.loop import Job, LoopOptions, score_images
from samrobust.protocol import load_protocol
from samrobust.segmenters import build_segmenter
from samrobust.segmenters.nano import NAME
from samrobust.types import EvalProtocol, Mask, PromptBatch, Sample, Segmenter


def main(
    *,
    variant: Annotated[str, typer.Option(help="vit_b, vit_l, vit_h or sam-nano.")] = NAME,
    objects: Annotated[int, typer.Option(help="Objects of the photograph.")] = 8,
    clicks: Annotated[int, typer.Option(help="Clicks of each object, at most 20.")] = 20,
    side: Annotated[int, typer.Option(help="Width of the photograph in pixels.")] = 1024,
    device: Annotated[str, typer.Option(help="auto, cpu or cuda.")] = "auto",
) -> None:
    """Measure the three ways, on a photograph of `side` x 3/4 `side` pixels."""
    photographs = DrawnPhotograph(side, 3 * side // 4, objects)
    protocol = protocol_of(clicks)
    with tempfile.TemporaryDirectory() as folder:
        if variant == NAME:
            segmenter = build_segmenter(NAME, device=device)
        else:
            weights = Path(folder) / "random.pth"
            save_random_sam(variant, weights)
            segmenter = build_segmenter("sam", variant=variant, checkpoint=weights, device=device)
        sample = photographs[photographs.ids()[0]]
        one_by_one(segmenter, replace(sample, instances=sample.instances[:1]), 1)  # warms up
        ways: dict[str, Callable[[], None]] = {
            "at once": partial(ours, segmenter, photographs, protocol),
            "one by one": partial(one_by_one, segmenter, sample, clicks),
            "encoded at every click": partial(
                one_by_one, segmenter, sample, clicks, encodes_again=True
            ),
        }
        seconds = {way: timed(function) for way, function in ways.items()}
    wall, cpu = seconds["at once"]
    rows = [
        [way, f"{its_wall:.2f}", f"{its_cpu:.2f}", f"{its_wall / wall:.1f}", f"{its_cpu / cpu:.1f}"]
        for way, (its_wall, its_cpu) in seconds.items()
    ]
    title = f"{variant}: {clicks} clicks of {objects} objects, {torch.get_num_threads()} threads"
    print_table(title, ["way", "seconds", "CPU seconds", "times ours", "of CPU"], rows)


def timed(function: Callable[[], None]) -> tuple[float, float]:
    """Return the seconds and the CPU seconds of a function."""
    started, cpu_started = time.perf_counter(), time.process_time()
    function()
    return time.perf_counter() - started, time.process_time() - cpu_started


def protocol_of(clicks: int) -> EvalProtocol:
    """Return the protocol `clicks` up to a number of clicks, scored by IoU alone."""
    protocol = load_protocol("clicks")
    chosen = tuple(each for each in protocol.conditions if (each.level or 0) <= clicks)
    changed: dict[str, Any] = {"conditions": chosen, "metrics": ("iou",), "reported": ()}
    return EvalProtocol(**{**vars(protocol), **changed})


def ours(segmenter: Segmenter[Any], photographs: DrawnPhotograph, protocol: EvalProtocol) -> None:
    """Evaluate the photograph, its first prompts drawn and all answers scored."""
    job = Job(segmenter, protocol, photographs.ids())
    list(score_images(photographs, [job], LoopOptions()))


@torch.inference_mode()
def one_by_one(
    segmenter: Segmenter[Any], sample: Sample, clicks: int, *, encodes_again: bool = False
) -> None:
    """Hold the same conversations, one object after the other.

    Args:
        segmenter: the segmenter.
        sample: the photograph.
        clicks: of each object.
        encodes_again: whether the image is encoded at every click.
    """
    rng = np.random.default_rng()  # the deepest pixel needs none
    feeds = "mask" in segmenter.info.prompts
    (embedding,) = segmenter.encode([sample.image])
    for instance in sample.instances:
        answer: Mask = np.zeros_like(instance.mask)
        places: list[int] = []
        labels: list[int] = []
        logits = None
        for number in range(clicks):
            click = Click().correct(instance.mask, answer, places, rng)
            if click is None:
                break
            places.append(click[0])
            labels.append(click[1])
            y, x = np.divmod(places, instance.mask.shape[1])
            points = np.stack([x, y], axis=1).astype(np.float32)[None]
            if encodes_again and number:
                (embedding,) = segmenter.encode([sample.image])
            prompts = PromptBatch(None, points, np.array([labels], np.int32), logits)
            found = segmenter.predict(embedding, prompts, multimask=number == 0)
            best = int(found.quality[0].argmax())
            answer = found.masks[0, best].numpy(force=True)
            if feeds and found.logits is not None:
                logits = found.logits[:, best].numpy(force=True)


if __name__ == "__main__":
    typer.run(main)
