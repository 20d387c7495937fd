"""Time HQ-SAM's decoder beside its stock order, and say how far their logits are apart.

python -m benchmarks.hq_decoder

A ViT-B's decoder with random weights, which times do not depend on. One thread; seconds of
processor time, which other programs change less than the clock's. The two take turns.
"""

import argparse
import statistics
import time

import torch
from segment_anything.build_sam import sam_model_registry
from torch import Tensor

from samrobust.segmenters.device import keep_large_blocks
from samrobust.segmenters.hq_modules import HqDecoder, StockHqDecoder, untrained_parts
from samrobust.segmenters.sam_decoder import SINGLE

TOKENS = 2
"""Of a box."""


@torch.inference_mode()
def main() -> None:
    """Print median seconds of both, their ratio and relative difference, as Markdown."""
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--prompts", type=int, nargs="+", default=[1, 16])
    parser.add_argument("--repeats", type=int, default=3)
    arguments = parser.parse_args()
    keep_large_blocks()
    torch.set_num_threads(1)
    torch.manual_seed(0)
    model = sam_model_registry["vit_b"]().eval()  # type: ignore[no-untyped-call]
    parts = untrained_parts(model).eval()
    decoders: list[HqDecoder | StockHqDecoder]
    decoders = [StockHqDecoder(model, parts), HqDecoder(model, parts)]
    features, details = torch.randn(1, 256, 64, 64), torch.randn(1, 32, 256, 256)
    print("| prompts | stock, s | samrobust, s | ratio | relative difference |")
    print("| --- | --- | --- | --- | --- |")
    for count in arguments.prompts:
        prompts = torch.randn(count, TOKENS, 256)
        times: list[list[float]] = [[], []]
        logits: list[Tensor] = []
        for _ in range(arguments.repeats + 1):  # the first is a warm-up
            logits = []
            for decode, spent in zip(decoders, times, strict=True):
                started = time.process_time()
                logits.append(decode(features, details, prompts, masks=SINGLE)[2])
                spent.append(time.process_time() - started)
        slow, fast = (statistics.median(spent[1:]) for spent in times)
        apart = float((logits[1] - logits[0]).norm() / logits[0].norm())
        print(
            f"| {count} | {slow:.3f} | {fast:.3f} | {slow / fast:.2f} | {apart:.1e} |", flush=True
        )


if __name__ == "__main__":
    main()
