"""Image embeddings on disk, so that an image is encoded once for all runs of one encoder.

A file is a SHA-256 digest and what it is of: the embedding's fields as `torch.save` writes them,
strides included, so that nothing is computed differently.
"""

import contextlib
import functools
import hashlib
import io
import json
import logging
import os
import platform
import re
from collections.abc import Sequence
from dataclasses import dataclass
from importlib.metadata import version
from pathlib import Path
from typing import Any, Protocol, runtime_checkable

import torch
from filelock import FileLock

from samrobust import __version__
from samrobust.files import write_atomic
from samrobust.types import (
    Image,
    Prediction,
    PromptBatch,
    Segmenter,
    SegmenterInfo,
    SharesEmbeddings,
)

_VERSIONED = ("pillow", "segment-anything", "torch", "torchvision")
"""Packages whose version an embedding can depend on."""
_FILE = re.compile(r"[0-9a-f]{64}\.embedding(\.tmp)?")
_DIGEST_BYTES = hashlib.sha256().digest_size
_LOG = logging.getLogger(__name__)


@runtime_checkable
class Cacheable(Segmenter[Any], SharesEmbeddings, Protocol):
    """A segmenter whose embeddings can be stored."""

    @property
    def embedding_type(self) -> type[Any]:
        """Return their type, a dataclass of tensors and plain values."""
        ...

    @property
    def device(self) -> torch.device:
        """Return where its embeddings are."""
        ...


class EmbeddingCache:
    """Embeddings in a folder of bounded size, which several processes may share.

    The least recently used are deleted first. A damaged file is encoded anew. Where nothing can be
    written, that is logged once, and no more is stored.

    Args:
        folder: made when something is stored. Other files in it are left alone.
        max_bytes: of all files.
    """

    def __init__(self, folder: Path, max_bytes: int) -> None:
        self._folder = folder
        self._max_bytes = max_bytes
        self._can_write = True

    def load(self, key: str, device: torch.device) -> dict[str, Any] | None:
        """Return the fields stored under a key, tensors on a device; None where there are none."""
        path = self._path(key)
        try:
            content = path.read_bytes()
        except OSError:
            return None
        digest, stored = content[:_DIGEST_BYTES], content[_DIGEST_BYTES:]
        if hashlib.sha256(stored).digest() != digest:
            _LOG.warning("%s: is damaged and encoded anew", path)
            return None
        with contextlib.suppress(OSError):  # a folder may be read-only
            os.utime(path)
        fields: dict[str, Any] = torch.load(
            io.BytesIO(stored), map_location=device, weights_only=True
        )
        return fields

    def store(self, key: str, fields: dict[str, Any]) -> None:
        """Store fields, and delete the least recently used files to stay within the bound."""
        if not self._can_write:
            return
        own = {  # on the CPU, without the rest of a batch; strides stay
            name: value.clone().cpu() if isinstance(value, torch.Tensor) else value
            for name, value in fields.items()
        }
        buffer = io.BytesIO()
        torch.save(own, buffer)
        content = buffer.getvalue()
        try:
            self._folder.mkdir(parents=True, exist_ok=True)
            with FileLock(self._folder / ".lock"):
                write_atomic(self._path(key), hashlib.sha256(content).digest() + content)
                self._make_room()
        except OSError as error:
            self._can_write = False
            reason = error.strerror
            _LOG.warning("%s: cannot be written: %s; nothing more is cached", self._folder, reason)

    def _path(self, key: str) -> Path:
        return self._folder / f"{key}.embedding"

    def _make_room(self) -> None:
        paths = [path for path in self._folder.iterdir() if _FILE.fullmatch(path.name)]
        files = sorted((path.stat().st_mtime_ns, path.stat().st_size, path) for path in paths)
        n_bytes = sum(size for _, size, _ in files)
        for _, size, path in files:
            if n_bytes <= self._max_bytes:
                break
            path.unlink()
            n_bytes -= size


@dataclass(frozen=True)
class CachedSegmenter:
    """A segmenter that encodes only the images whose embeddings are not stored yet.

    Its masks are those of the segmenter to the last bit. Make one with `with_cache`.
    """

    segmenter: Cacheable
    cache: EmbeddingCache

    @property
    def info(self) -> SegmenterInfo:
        """Return the segmenter's: a cache changes no number."""
        return self.segmenter.info

    @property
    def encoder_key(self) -> str:
        """Return the segmenter's."""
        return self.segmenter.encoder_key

    def encode(self, images: Sequence[Image]) -> list[Any]:
        """Return the embeddings of images, stored or new; see the segmenter's."""
        device, kind = self.segmenter.device, self.segmenter.embedding_type
        keys = [_key(self.encoder_key, device, image) for image in images]
        stored = [self.cache.load(key, device) for key in keys]
        missing = [place for place, fields in enumerate(stored) if fields is None]
        new = self.segmenter.encode([images[place] for place in missing]) if missing else []
        for place, embedding in zip(missing, new, strict=True):
            stored[place] = vars(embedding)
            self.cache.store(keys[place], vars(embedding))
        return [kind(**fields) for fields in stored if fields is not None]

    def predict(
        self,
        embedding: Any,  # noqa: ANN401
        prompts: PromptBatch,
        *,
        multimask: bool = False,
    ) -> Prediction:
        """Return the segmenter's masks."""
        return self.segmenter.predict(embedding, prompts, multimask=multimask)

    @property
    def predict_at(self) -> Any:  # noqa: ANN401
        """Return the segmenter's method of that name; there is none where it has none."""
        return self.segmenter.predict_at  # type: ignore[attr-defined]

    @property
    def predict_with_gradients(self) -> Any:  # noqa: ANN401
        """Return the segmenter's method of that name; there is none where it has none."""
        return self.segmenter.predict_with_gradients  # type: ignore[attr-defined]


def with_cache(segmenter: Segmenter[Any], cache: EmbeddingCache) -> Segmenter[Any]:
    """Return a segmenter that uses a cache, or the same one where it shares no embeddings."""
    if isinstance(segmenter, Cacheable) and segmenter.encoder_key:
        return CachedSegmenter(segmenter, cache)
    return segmenter


def _key(encoder_key: str, device: torch.device, image: Image) -> str:
    """Return the name of the file for all that an embedding depends on."""
    depends = [encoder_key, *_environment(device), str(image.shape)]
    return hashlib.sha256(json.dumps(depends).encode() + image.tobytes()).hexdigest()


@functools.cache
def _environment(device: torch.device) -> tuple[str, ...]:
    """Return processor, precision and versions, all of which change rounding at least."""
    if device.type == "cuda":
        processor = torch.cuda.get_device_name(device)
    else:
        processor = f"{platform.machine()} {torch.backends.cpu.get_cpu_capability()}"
    precision = torch.get_float32_matmul_precision()
    return processor, precision, __version__, *map(version, _VERSIONED)
