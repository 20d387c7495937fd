"""Time the decoder of Stable-SAM beside that of the SAM that it is made of.

python -m benchmarks.plugin_cost

Random weights: times do not depend on them. The two take turns, so that whatever else the machine
does slows both.
"""

import argparse
import statistics
import time

import torch
from segment_anything.build_sam import sam_model_registry
from segment_anything.modeling.sam import Sam as SamModel

from samrobust.segmenters.device import keep_large_blocks
from samrobust.segmenters.nano import build_sam_nano
from samrobust.segmenters.plugin_settings import PluginSettings
from samrobust.segmenters.sam import Sam, SamEmbedding
from samrobust.segmenters.stable_plugins import Plugins, n_parameters
from samrobust.segmenters.stable_sam import StableSam
from samrobust.types import Prompt, PromptBatch, SegmenterOptions

PROMPTS = (1, 20, 120)
PROMPTS_AT_ONCE = 20


def main() -> None:
    """Print the median seconds of both and their ratio, as Markdown."""
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--model", choices=["vit_b", "sam-nano"], default="vit_b")
    layers = PluginSettings().layers
    parser.add_argument("--layers", type=int, nargs="+", default=layers, help="that have plugins")
    parser.add_argument("--device", default="cpu")
    parser.add_argument("--repeats", type=int, default=7)
    arguments = parser.parse_args()
    keep_large_blocks()
    plain = _sam(arguments.model, arguments.device)
    grid_hw = plain.model.prompt_encoder.image_embedding_size
    channels, side = plain.model.prompt_encoder.embed_dim, plain.model.image_encoder.img_size
    plugins = Plugins(channels, PluginSettings(tuple(arguments.layers)))
    stable = StableSam(_sam(arguments.model, arguments.device), plugins)
    features = torch.randn(1, channels, *grid_hw, device=arguments.device)
    embedding = SamEmbedding(features, (side, side), (side, side))
    print(f"plugins: {n_parameters(stable.plugins):,} parameters")
    print("| prompts | SAM, s | Stable-SAM, s | ratio |\n| --- | --- | --- | --- |")
    for count in PROMPTS:
        times: dict[str, list[float]] = {"plain": [], "stable": []}
        for _ in range(arguments.repeats + 1):  # the first is a warm-up
            for name, segmenter in (("plain", plain), ("stable", stable)):
                times[name].append(_time(segmenter, embedding, count, side))
        one, other = (statistics.median(each[1:]) for each in times.values())
        print(f"| {count} | {one:.4f} | {other:.4f} | {other / one:.2f} |", flush=True)


def _sam(model: str, device: str) -> Sam:
    if model == "sam-nano":
        return build_sam_nano(SegmenterOptions(device=device))
    torch.manual_seed(0)
    sam: SamModel = sam_model_registry[model]()  # type: ignore[no-untyped-call]
    return Sam(sam.to(device))


@torch.inference_mode()
def _time(segmenter: Sam | StableSam, embedding: SamEmbedding, count: int, side: int) -> float:
    corners = torch.rand(count, 2, 2, generator=torch.Generator().manual_seed(0)) * side
    boxes = corners.sort(dim=1).values.flatten(1).numpy()
    started = time.perf_counter()
    for start in range(0, count, PROMPTS_AT_ONCE):
        prompts = [Prompt(box=box) for box in boxes[start : start + PROMPTS_AT_ONCE]]
        segmenter.logits(embedding, PromptBatch.stack(prompts))
    if embedding.features.is_cuda:
        torch.cuda.synchronize()
    return time.perf_counter() - started


if __name__ == "__main__":
    main()
