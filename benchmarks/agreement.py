"""Whether a device computes what the CPU does: the largest differences, check after check.

    python -m benchmarks.agreement --device cuda

Each check prints a line of JSON when it is done, so that what stops a later one takes none away.
Weights are the packaged ones, and random ones of a ViT-B. What is allowed tells rounding from
faults: convolutions on a GPU round to TF32, as torch lets them.
"""

import json
import resource
import tempfile
from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager
from copy import copy
from dataclasses import asdict, dataclass, fields, replace
from functools import partial
from pathlib import Path
from typing import Annotated, Any

import numpy as np
import numpy.typing as npt
import torch
import typer
from torch import Tensor

from benchmarks.photograph import DrawnPhotograph, save_random_sam
from benchmarks.setting import HEIGHT, PROTOCOL, WIDTH
from samrobust.cli.terminal import one_line
from samrobust.errors import SamrobustError
from samrobust.evaluation.loop import Evaluated, Job, LoopOptions, score_images
from samrobust.evaluation.prompts import draw_prompts
from samrobust.metrics import METRICS, load_metric
from samrobust.metrics.bits import (
    count_bits,
    count_overlap,
    count_with_torch,
    erode_bits,
    pack_masks,
    pack_with_numpy,
    pack_with_torch,
)
from samrobust.protocol import load_protocol, with_trials
from samrobust.segmenters import SEGMENTERS
from samrobust.segmenters.device import release_memory, resolve_device
from samrobust.segmenters.hq_modules import untrained_parts
from samrobust.segmenters.hq_sam import HqSam
from samrobust.segmenters.nano import build_sam_nano
from samrobust.segmenters.sam import SamEmbedding
from samrobust.segmenters.sam_decoder import FastDecoder, StockDecoder
from samrobust.types import EncoderDtype, PromptBatch, SegmenterOptions

EXACT = 1e-12
"""Allowed of scores of the same masks: sums of float64 in another order."""
ROUNDING, REDUCED = 1e-2, 1e-1
"""Allowed of the largest value: in float32, of which a GPU's convolutions keep 10 bits; in 16."""
FLIPPED, FLIPPED_REDUCED = 1e-3, 5e-2
"""Allowed share of the pixels of masks, likewise."""
SIZES_HW = ((41, 67), (90, 33), (1, 9), (HEIGHT, WIDTH))
"""Of the masks whose words are compared."""
SPARE_BYTES = {"cpu": 2**25, "cuda": 2**26}
"""Of memory that the check of an out-of-memory leaves: an image can be encoded, but the masks of
all prompts do not fit. Blocks of a GPU's memory are larger."""
MANY_PROMPTS = 512
"""Per forward pass, if memory allows: all of an image."""


@dataclass(frozen=True)
class Found:
    """The result of a check.

    Attributes:
        largest: difference to the CPU.
        allowed: as much, at most.
        of: what it is a difference of.
        note: what else was seen.
    """

    largest: float
    allowed: float
    of: str
    note: str = ""


Check = Callable[[], Found]


def agree(
    *,
    device: Annotated[str, typer.Option(help="auto, cpu or cuda.")] = "auto",
    tiny: Annotated[bool, typer.Option(help="Without the ViT-B; on few prompts.")] = False,
) -> None:
    """Compare a device with the CPU."""
    device = resolve_device(device)
    with tempfile.TemporaryDirectory() as folder:
        for name, check in checks(device, Path(folder), tiny=tiny):
            try:
                found = asdict(check())
            except (RuntimeError, MemoryError, SamrobustError) as error:
                found = {"failed": one_line(str(error))}
            print(json.dumps({"check": name, **found}), flush=True)
            release_memory()


def checks(device: str, folder: Path, *, tiny: bool) -> Iterator[tuple[str, Check]]:
    """Yield all checks by name.

    Args:
        device: that is compared with the CPU.
        folder: for random weights.
        tiny: whether there are few prompts and no ViT-B.
    """
    scene = _Scene(1 if tiny else 3)
    models = {"sam-nano": SegmenterOptions()}
    if not tiny:
        weights = folder / "vit_b.pth"
        save_random_sam("vit_b", weights)
        models["sam"] = SegmenterOptions("vit_b", weights)
    named = {**models, "stable-sam": SegmenterOptions(), "hq-sam": SegmenterOptions()}
    yield "words", partial(words, device)
    yield "metrics", partial(metrics, device)
    pairs = {name: _Pair(name, options, device) for name, options in named.items()}
    for name, pair in pairs.items():
        yield f"{name}: encoder", partial(encoder, pair, scene)
        yield f"{name}: decoder", partial(decoder, pair, scene)
        yield f"{name}: masks", partial(masks, pair, scene)
        if name in models:
            yield f"{name}: stock decoder", partial(stock_decoder, pair, scene)
    nano = pairs["sam-nano"]
    yield "scores of noisy-box", partial(scores, nano, scene, LoopOptions())
    yield "scores, images at once", partial(scores, nano, scene, LoopOptions(image_batch_size=3))
    yield "images at once: encoder", partial(images_at_once, nano, scene)
    yield "scores after out-of-memory", partial(out_of_memory, nano, _Scene(8))
    kinds: tuple[EncoderDtype, ...] = ("bfloat16", "float16")
    for name in models:
        for kind in kinds:
            pair = pairs[name].run(dtype=kind)
            yield f"{name} in {kind}: encoder", partial(encoder, pair, scene, REDUCED)
            yield f"{name} in {kind}: masks", partial(masks, pair, scene, FLIPPED_REDUCED)
    if device != "cpu" and not tiny:
        pair = pairs["sam"].run(compile=True)
        yield "sam compiled: encoder", partial(encoder, pair, scene)
        yield "sam compiled: decoder", partial(decoder, pair, scene)


class _Scene:
    """Photographs, prompts and a protocol that all checks share."""

    def __init__(self, trials: int) -> None:
        self.protocol = with_trials(load_protocol(PROTOCOL), trials)
        self.photographs = DrawnPhotograph(WIDTH, HEIGHT, 2, 3)
        sample = self.photographs[self.photographs.ids()[0]]
        self.image = sample.image
        draws = draw_prompts(sample, self.photographs.info.key, self.protocol)
        self.prompts = PromptBatch.join([draw.prompts for draw in draws])


class _Pair:
    """A segmenter on the CPU in float32 and on the device, built when first used."""

    def __init__(self, name: str, options: SegmenterOptions, device: str) -> None:
        self._options = replace(options, device=device)
        self._build: Callable[[SegmenterOptions], Any] = (
            _untrained_hq_sam if name == "hq-sam" else SEGMENTERS.load(name)
        )
        self._here: dict[str, Any] = {}
        self._there: Any = None

    def run(self, **options: Any) -> "_Pair":  # noqa: ANN401
        """Return a pair with the same side on the CPU, and other options on the device."""
        pair = copy(self)
        pair._options, pair._there = replace(self._options, **options), None  # noqa: SLF001
        return pair

    @property
    def here(self) -> Any:  # noqa: ANN401
        if not self._here:
            self._here["model"] = self._build(replace(self._options, device="cpu"))
        return self._here["model"]

    @property
    def there(self) -> Any:  # noqa: ANN401
        if self._there is None:
            self._there = self._build(self._options)
        return self._there

    def encoded_here(self, scene: _Scene) -> Any:  # noqa: ANN401
        """Return the embedding of the scene on the CPU."""
        if "embedding" not in self._here:
            (self._here["embedding"],) = self.here.encode([scene.image])
        return self._here["embedding"]


@torch.inference_mode()
def encoder(pair: _Pair, scene: _Scene, allowed: float = ROUNDING) -> Found:
    """Compare embeddings."""
    here, (there,) = pair.encoded_here(scene), pair.there.encode([scene.image])
    return Found(_apart([here.features], [there.features]), allowed, "largest feature")


@torch.inference_mode()
def images_at_once(pair: _Pair, scene: _Scene) -> Found:
    """Compare the embeddings of three different images, encoded together on the device."""
    images = [scene.image, scene.image[::-1, ::2], scene.image[5:, :99]]
    here = [pair.here.encode([image])[0].features for image in images]
    there = [embedding.features for embedding in pair.there.encode(images)]
    return Found(_apart(here, there), ROUNDING, "largest feature")


@torch.inference_mode()
def decoder(pair: _Pair, scene: _Scene) -> Found:
    """Compare logits and qualities of the same embedding."""
    embedding = pair.encoded_here(scene)
    here = pair.here.logits(embedding, scene.prompts)
    there = pair.there.logits(_moved(embedding, pair.there.device), scene.prompts)
    return Found(_apart(here, there), ROUNDING, "largest logit")


@torch.inference_mode()
def stock_decoder(pair: _Pair, scene: _Scene) -> Found:
    """Compare segment-anything's own decoder on the device with ours on the CPU.

    Of SAM-nano's features it reads those alone that its upscaling has a place for.
    """
    embedding = pair.encoded_here(scene)
    made: list[Sequence[Tensor]] = []
    for sam, kind in ((pair.here, FastDecoder), (pair.there, StockDecoder)):
        own = _moved(embedding, sam.device)
        features = own.features[:, : sam.model.mask_decoder.transformer_dim]
        made.append(kind(sam.model)(features, sam.embed_prompts(own, scene.prompts)))
    return Found(_apart(*made), ROUNDING, "largest logit")


@torch.inference_mode()
def masks(pair: _Pair, scene: _Scene, allowed: float = FLIPPED) -> Found:
    """Compare masks, each side with its own embedding."""
    embeddings = pair.encoded_here(scene), *pair.there.encode([scene.image])
    here, there = (
        each.predict(embedding, scene.prompts).masks.cpu()
        for each, embedding in zip((pair.here, pair.there), embeddings, strict=True)
    )
    return Found((here != there).float().mean().item(), allowed, "pixels")


def words(device: str) -> Found:
    """Compare the words of the device, and torch's, with NumPy's: packed, eroded and counted."""
    differ = 0
    for values in _many_masks():
        on_device = torch.from_numpy(values).to(device)
        for reach in (1, 9):
            here = pack_with_numpy(values, reach)
            eroded = erode_bits(here, reach)
            packed = torch.as_tensor(pack_masks(on_device, margin=reach))
            for there in (packed, pack_with_torch(on_device, reach)):
                differ += int((there.cpu().numpy() != here).sum())
                found = erode_bits(there, reach)
                differ += int((found.cpu().numpy() != eroded).sum())
                differ += int((count_with_torch(there).cpu() != count_bits(here)).sum())
                counted = count_overlap(there, found[:1]), count_overlap(here, eroded[:1])
                differ += sum(int((x.cpu() != y).sum()) for x, y in zip(*counted, strict=True))
    return Found(float(differ), 0.0, "words and counts")


def metrics(device: str) -> Found:
    """Compare all metrics."""
    largest = 0.0
    for values in _many_masks():
        whole = torch.from_numpy(values)
        for name in METRICS.names():
            score = load_metric(name).fn
            apart = score(whole.to(device), whole[0].to(device)).cpu() - score(whole, whole[0])
            largest = max(largest, apart.abs().max().item())
    return Found(largest, EXACT, "score")


def _many_masks() -> Iterator[npt.NDArray[np.bool_]]:
    rng = np.random.default_rng(0)
    for height, width in SIZES_HW:
        yield from (rng.random((5, height, width)) < share for share in (0.5, 0.97))
        yield np.tile(np.arange(width) < width // 2, (5, height, 1))


def scores(pair: _Pair, scene: _Scene, options: LoopOptions) -> Found:
    """Compare the scores of an evaluation."""
    here, _ = _evaluate(pair.here, scene, LoopOptions())
    there, halvings = _evaluate(pair.there, scene, options)
    apart = np.abs(np.array(here) - np.array(there)).max()
    return Found(float(apart), ROUNDING, "score", f"halved {halvings} times" if halvings else "")


def out_of_memory(pair: _Pair, scene: _Scene) -> Found:
    """Compare the scores of an evaluation whose first batches do not fit into the memory.

    Raises:
        RuntimeError: all of them fit.
    """
    segmenter = pair.there
    segmenter.encode([scene.image])  # what a library needs for itself, it then has
    spare = SPARE_BYTES[segmenter.device.type]
    with little_memory(segmenter.device.type, spare):
        found = scores(pair, scene, LoopOptions(batch_size=MANY_PROMPTS))
    if not found.note:
        raise RuntimeError(f"{len(scene.prompts)} prompts fit into {spare >> 20} MiB")
    return found


@contextmanager
def little_memory(kind: str, n_bytes: int) -> Iterator[None]:
    """Leave this process so many more bytes of a GPU's memory, or of its own on a CPU."""
    if kind == "cpu":
        has = int(Path("/proc/self/statm").read_text().split()[0]) * resource.getpagesize()
        before = resource.getrlimit(resource.RLIMIT_AS)
        resource.setrlimit(resource.RLIMIT_AS, (has + n_bytes, before[1]))
        try:
            yield
        finally:
            resource.setrlimit(resource.RLIMIT_AS, before)
        return
    release_memory()
    free, _ = torch.cuda.mem_get_info()
    ballast = torch.empty(free - n_bytes, dtype=torch.uint8, device=kind)
    try:
        yield
    finally:
        del ballast
        release_memory()


def _untrained_hq_sam(options: SegmenterOptions) -> HqSam:
    """Return HQ-SAM on SAM-nano, with random parts, the same on every device."""
    base = build_sam_nano(options)
    torch.manual_seed(0)
    return HqSam(base, untrained_parts(base.model))


def _evaluate(segmenter: Any, scene: _Scene, options: LoopOptions) -> tuple[list[float], int]:  # noqa: ANN401
    jobs = [Job(segmenter, scene.protocol, scene.photographs.ids())]
    results = [result for _, result in score_images(scene.photographs, jobs, options)]
    evaluated = [result for result in results if isinstance(result, Evaluated)]
    values = [score.value for result in evaluated for score in result.scores]
    return values, evaluated[-1].halvings


def _apart(here: Sequence[Tensor], there: Sequence[Tensor]) -> float:
    """Return the largest difference of tensors, as a share of the largest value of each."""
    shares = (
        (one.float() - other.float().cpu()).abs().max() / one.abs().max()
        for one, other in zip(here, there, strict=True)
    )
    return max(share.item() for share in shares)


def _moved(embedding: SamEmbedding, device: torch.device) -> SamEmbedding:
    """Return an embedding on another device."""
    values = {field.name: getattr(embedding, field.name) for field in fields(embedding)}
    tensors: dict[str, Any] = {
        name: x.to(device) for name, x in values.items() if isinstance(x, Tensor)
    }
    return replace(embedding, **tensors)


if __name__ == "__main__":
    typer.run(agree)
