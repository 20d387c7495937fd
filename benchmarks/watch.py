"""Look at the parts of an evaluation, encode, predict and metrics, while it runs: time or work."""

import time
from collections import defaultdict
from collections.abc import Callable, Iterator, Sequence
from contextlib import AbstractContextManager, contextmanager
from dataclasses import replace
from typing import Any
from unittest.mock import patch

import torch
from torch import Tensor
from torch.utils._python_dispatch import TorchDispatchMode
from torch.utils._pytree import tree_leaves
from torch.utils.flop_counter import FlopCounterMode, sdpa_flop_count

from benchmarks.peaks import settle
from samrobust.metrics import METRICS
from samrobust.types import Image, Metric, Prediction, PromptBatch, Segmenter

Around = Callable[[str], AbstractContextManager[None]]
"""Given the name of a part, a context for one call of it."""


def _attention_flops(
    query: torch.Size, key: torch.Size, value: torch.Size, *_others: object, **_named: object
) -> int:
    flops: int = sdpa_flop_count(query, key, value)  # type: ignore[no-untyped-call]
    return flops


_CPU_ATTENTION = {
    torch.ops.aten._scaled_dot_product_flash_attention_for_cpu: _attention_flops  # noqa: SLF001
}
"""A kernel that torch's counter of FLOPs does not know."""


class Clock:
    """Sums up the seconds of each part; the device has finished before and after.

    Args:
        device: where the parts run.
    """

    def __init__(self, device: str) -> None:
        self.seconds: dict[str, float] = defaultdict(float)
        self._device = device

    @contextmanager
    def __call__(self, part: str) -> Iterator[None]:
        """Give a context whose seconds are added to a part."""
        settle(self._device)
        started = time.perf_counter()
        yield
        settle(self._device)
        self.seconds[part] += time.perf_counter() - started


class Tally:
    """Sums up the FLOPs and bytes of each part.

    FLOPs as torch counts them: products of matrices, convolutions and attention, two a
    multiplication. Bytes: what each operation reads and writes, views excepted; so what stays in a
    cache between two operations counts as if it did not.
    """

    def __init__(self) -> None:
        self.flops: dict[str, int] = defaultdict(int)
        self.n_bytes: dict[str, int] = defaultdict(int)

    @contextmanager
    def __call__(self, part: str) -> Iterator[None]:
        """Give a context whose work is added to a part."""
        counter = FlopCounterMode(display=False, custom_mapping=_CPU_ATTENTION)
        with Traffic() as traffic, counter:
            yield
        self.flops[part] += counter.get_total_flops()
        self.n_bytes[part] += traffic.n_bytes


class Traffic(TorchDispatchMode):  # type: ignore[no-untyped-call]
    """Counts the bytes that torch's operations read and write."""

    def __init__(self) -> None:
        super().__init__()  # type: ignore[no-untyped-call]
        self.n_bytes = 0

    def __torch_dispatch__(
        self,
        func: Any,  # noqa: ANN401
        types: Any,  # noqa: ANN401
        args: Any = (),  # noqa: ANN401
        kwargs: Any = None,  # noqa: ANN401
    ) -> Any:  # noqa: ANN401
        """Run an operation and count it, unless it only looks at a tensor in another way."""
        made = func(*args, **(kwargs or {}))
        given, returned = (_tensors(each) for each in ((args, kwargs), made))
        places = {tensor.untyped_storage().data_ptr() for tensor in given}
        fresh = [x for x in returned if x.untyped_storage().data_ptr() not in places]
        if fresh or func._schema.is_mutable:  # noqa: SLF001
            self.n_bytes += sum(map(_bytes, [*given, *returned]))
        return made


class _Watched:
    """A segmenter whose calls are looked at."""

    def __init__(self, segmenter: Segmenter[Any], around: Around) -> None:
        self.info = segmenter.info
        self._segmenter = segmenter
        self._around = around

    def encode(self, images: Sequence[Image]) -> list[Any]:
        """Return what the segmenter does."""
        with self._around("encode"):
            return self._segmenter.encode(images)

    def predict(
        self,
        embedding: Any,  # noqa: ANN401
        prompts: PromptBatch,
        *,
        multimask: bool = False,
    ) -> Prediction:
        """Return what the segmenter does."""
        with self._around("predict"):
            return self._segmenter.predict(embedding, prompts, multimask=multimask)


@contextmanager
def watched(segmenter: Segmenter[Any], around: Around) -> Iterator[Segmenter[Any]]:
    """Give a segmenter whose calls, and those of the metrics by name, are each in a context."""
    load = METRICS.load

    def load_watched(name: str) -> Metric:
        metric = load(name)

        def score(masks: Tensor, target: Tensor) -> Tensor:
            with around("metrics"):
                return metric.fn(masks, target)

        return replace(metric, fn=score)

    with patch.object(METRICS, "load", load_watched):
        yield _Watched(segmenter, around)


def _tensors(values: object) -> list[Tensor]:
    return [leaf for leaf in tree_leaves(values) if isinstance(leaf, Tensor)]


def _bytes(tensor: Tensor) -> int:
    """Return the bytes of a tensor; what is repeated by a stride of 0 counts once."""
    return min(tensor.numel() * tensor.element_size(), tensor.untyped_storage().nbytes())
