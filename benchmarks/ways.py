"""What `benchmarks.speed` measures, each in a process of its own.

    python -m benchmarks.ways WAY SETTING

WAY is careful, samrobust, work, operations, or all for a line of JSON each; SETTING is a
`benchmarks.setting.Setting` as JSON.
"""

import json
import sys
import time
from collections.abc import Callable, Iterator
from dataclasses import replace
from typing import Any

import torch
from segment_anything.modeling.sam import Sam as SamModel
from torch.profiler import ProfilerActivity, profile

from benchmarks.careful import Loop, batched_loop, careful_loop, re_encoding_loop
from benchmarks.peaks import peak_gib, settle
from benchmarks.setting import HEIGHT, WIDTH, Figures, Setting
from benchmarks.watch import Clock, Tally, watched
from samrobust.evaluation.loop import Evaluated, Job, LoopOptions, score_images
from samrobust.evaluation.prompts import draw_prompts
from samrobust.segmenters.device import keep_large_blocks, prompts_at_once
from samrobust.segmenters.sam import Sam
from samrobust.types import Dataset, Segmenter

MOST_OPERATIONS = 15
LOOPS: dict[str, Loop] = {
    "careful": careful_loop,
    "batched": batched_loop,
    "re-encoding": re_encoding_loop,
}
"""Over segment-anything's predictor."""


def theirs(loop: Loop, setting: Setting, model: SamModel) -> Figures:
    """Return seconds of a loop over segment-anything's predictor, and the peak memory so far."""
    protocol, photographs = setting.protocol(setting.trials), setting.photographs(1)
    found = loop(model, photographs, protocol, device=setting.device)
    return {**found, "peak_gib": peak_gib(setting.device)}


def ours(setting: Setting) -> Figures:
    """Return seconds of `evaluate`, drawing of prompts and stability included, and its peak memory.

    On an accelerator the parts are measured in a pass of their own, as waiting for each slows all;
    there `busy` is the share of the time in which kernels ran, else that of the three parts.
    """
    segmenter, photographs = _warm(setting), setting.photographs(setting.images)
    clock = Clock(setting.device)
    started = time.perf_counter()
    with watched(segmenter, clock) as seen:
        n_prompts = _evaluate(seen, photographs, setting)
    total = time.perf_counter() - started
    busy = sum(clock.seconds.values()) / total
    if setting.device != "cpu":
        started = time.perf_counter()
        _evaluate(segmenter, photographs, setting)
        settle(setting.device)
        total = time.perf_counter() - started
        with profile(activities=[ProfilerActivity.CUDA]) as profiled:
            _evaluate(segmenter, photographs, setting)
        busy = sum(each.self_device_time_total for each in profiled.key_averages()) / 1e6 / total
    return {
        **clock.seconds,
        "total": total,
        "images": setting.images,
        "prompts": n_prompts,
        "busy": busy,
        "peak_gib": peak_gib(setting.device),
        "draw_a_prompt": drawing_seconds(setting),
    }


def drawing_seconds(setting: Setting) -> float:
    """Return the CPU seconds of drawing one prompt, which the loading processes do."""
    photographs, protocol = setting.photographs(1), setting.protocol(setting.trials)
    sample = photographs[photographs.ids()[0]]
    started = time.process_time()
    drawn = draw_prompts(sample, photographs.info.key, protocol)
    return (time.process_time() - started) / sum(len(draws.prompts) for draws in drawn)


def work(setting: Setting, stock: SamModel) -> dict[str, Figures]:
    """Return the FLOPs and bytes of one image by part: those of an image, a prompt and a mask.

    An encoder's FLOPs are those of segment-anything's; ours does more where a kernel wants it.
    """
    tally, encoders, encoder = Tally(), Tally(), stock.image_encoder
    square = torch.zeros(1, 3, encoder.img_size, encoder.img_size, device=setting.device)
    with torch.inference_mode(), encoders("encode"):
        encoder(square)
    plain = replace(setting, workers=0, compiled=False)
    with watched(plain.segmenter(), tally) as seen:
        n_prompts = _evaluate(seen, setting.photographs(1), plain)
    n_metrics = len(setting.protocol(setting.trials).metrics)
    return {  # metrics work on bits outside of torch: their masks are counted, once a metric
        "encode": {"flops": encoders.flops["encode"], "bytes": tally.n_bytes["encode"]},
        "predict": {
            "flops": tally.flops["predict"] / n_prompts,
            "bytes": tally.n_bytes["predict"] / n_prompts,
        },
        "metrics": {"flops": 0, "bytes": n_metrics * WIDTH * HEIGHT},
    }


def operations(setting: Setting) -> str:
    """Return a table of the operations that take most time of one image."""
    segmenter, photographs = _warm(setting), setting.photographs(1)
    kinds = [ProfilerActivity.CPU]
    if setting.device != "cpu":
        kinds.append(ProfilerActivity.CUDA)
    with profile(activities=kinds) as profiled:
        _evaluate(segmenter, photographs, replace(setting, workers=0))
    by = "self_cpu_time_total" if setting.device == "cpu" else "self_device_time_total"
    table: str = profiled.key_averages().table(
        sort_by=by, row_limit=MOST_OPERATIONS, max_name_column_width=40
    )
    return table


def all_ways(setting: Setting) -> Iterator[tuple[str, Figures | dict[str, Figures]]]:
    """Yield the figures of each way by name, those that tell most first."""
    stock = setting.stock()
    yield "work", work(setting, stock)
    yield "samrobust", ours(setting)
    for name, loop in LOOPS.items():
        yield name, theirs(loop, setting, stock)
    if setting.compiled:
        yield "not compiled", ours(replace(setting, compiled=False))


def main(way: str, setting: str) -> None:
    """Measure one way once, or all, and print them as JSON; the operations as a table."""
    chosen = Setting(**json.loads(setting))
    if way == "all":
        for name, each in all_ways(chosen):
            print(json.dumps({"way": name, "found": each}), flush=True)
        return
    ways: dict[str, Callable[[], Figures | dict[str, Figures] | str]] = {
        "careful": lambda: theirs(careful_loop, chosen, chosen.stock()),
        "samrobust": lambda: ours(chosen),
        "work": lambda: work(chosen, chosen.stock()),
        "operations": lambda: operations(chosen),
    }
    found = ways[way]()
    print(found if isinstance(found, str) else json.dumps(found))


def _warm(setting: Setting) -> Sam:
    keep_large_blocks()
    segmenter = setting.segmenter()
    _evaluate(segmenter, setting.photographs(1), replace(setting, trials=1, workers=0))
    settle(setting.device)
    return segmenter


def _evaluate(segmenter: Segmenter[Any], photographs: Dataset, setting: Setting) -> int:
    """Evaluate and return the number of prompts."""
    protocol = setting.protocol(setting.trials)
    options = LoopOptions(prompts_at_once(setting.device), setting.workers)
    jobs = [Job(segmenter, protocol, photographs.ids())]
    results = score_images(photographs, jobs, options)
    return sum(result.n_prompts for _, result in results if isinstance(result, Evaluated))


if __name__ == "__main__":
    main(*sys.argv[1:])
