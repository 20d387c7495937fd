"""Embeddings of images on disk, so that an image is encoded once for all runs of one encoder.

Pays where encoding takes seconds: SAMs with a ViT. A file is the SHA-256 of what follows, and a
dictionary as `torch.save` writes it, strides included, so that nothing is computed differently.
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
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from importlib.metadata import version
from pathlib import Path
from typing import Any

import torch
from filelock import FileLock
from segment_anything.modeling.image_encoder import ImageEncoderViT
from torch import nn

from samrobust import __version__
from samrobust.files import write_atomic
from samrobust.segmenters.hq_sam import HqEmbedding, HqSam
from samrobust.segmenters.sam import Sam, SamEmbedding
from samrobust.segmenters.stable_sam import StableSam
from samrobust.types import Image, Prediction, PromptBatch, Segmenter, SegmenterInfo

VERSIONED = ("pillow", "segment-anything", "torch", "torchvision")
"""Packages whose version an embedding can depend on."""
_FILE = re.compile(r"[0-9a-f]{64}\.embedding(\.tmp)?")
_DIGEST_BYTES = hashlib.sha256().digest_size
_LOG = logging.getLogger(__name__)


class EmbeddingCache:
    """Dictionaries of tensors and plain values in a folder of bounded size.

    Several processes may share it. The least recently used are deleted first. What is damaged is
    deleted and counts as not there. Where it cannot be written, that is logged once, and no more is
    kept.

    Args:
        folder: made when something is kept. Other files in it are left alone.
        most_bytes: of all files.
    """

    def __init__(self, folder: Path, most_bytes: int) -> None:
        self._folder = folder
        self._most_bytes = most_bytes
        self._can_write = True

    def load(self, key: str, device: torch.device) -> dict[str, Any] | None:
        """Return what was kept under a key, tensors on a device; None where nothing is."""
        path = self._path(key)
        try:
            content = path.read_bytes()
        except OSError:
            return None
        digest, kept = content[:_DIGEST_BYTES], content[_DIGEST_BYTES:]
        if hashlib.sha256(kept).digest() != digest:
            _LOG.warning("%s: is damaged and made again", path)
            with contextlib.suppress(OSError):
                path.unlink()
            return None
        with contextlib.suppress(OSError):  # a folder may be read-only
            os.utime(path)
        found: dict[str, Any] = torch.load(io.BytesIO(kept), map_location=device, weights_only=True)
        return found

    def keep(self, key: str, values: Mapping[str, Any]) -> None:
        """Keep values, and delete others to stay within the bound."""
        if not self._can_write:
            return
        buffer = io.BytesIO()
        torch.save(dict(values), buffer)
        kept = buffer.getvalue()
        try:
            self._folder.mkdir(parents=True, exist_ok=True)
            with FileLock(self._folder / ".lock"):
                write_atomic(self._path(key), hashlib.sha256(kept).digest() + kept)
                self._make_room()
        except OSError as error:
            self._can_write = False
            _LOG.warning(
                "%s: cannot be written: %s; embeddings are no longer kept",
                self._folder,
                error.strerror,
            )

    def _path(self, key: str) -> Path:
        return self._folder / f"{key}.embedding"

    def _make_room(self) -> None:
        paths = [path for path in self._folder.iterdir() if _FILE.fullmatch(path.name)]
        files = sorted((path.stat().st_mtime_ns, path.stat().st_size, path) for path in paths)
        n_bytes = sum(size for _, size, _ in files)
        for _, size, path in files:
            if n_bytes <= self._most_bytes:
                break
            path.unlink()
            n_bytes -= size


@dataclass(frozen=True)
class CachedSegmenter:
    """A segmenter that encodes only the images whose embeddings are not kept yet.

    Its masks are those of the segmenter to the last bit. Make one with `with_cache`.
    """

    segmenter: Sam | StableSam | HqSam
    cache: EmbeddingCache

    @property
    def info(self) -> SegmenterInfo:
        """Return the segmenter's: a cache changes no number."""
        return self.segmenter.info

    def encode(self, images: Sequence[Image]) -> list[SamEmbedding]:
        """Return the embeddings of images, kept or made; see the segmenter's."""
        device = _base(self.segmenter).model.device
        identity = self._identity(device)
        keys = [_key(identity, image) for image in images]
        found = [self._load(key, device) for key in keys]
        missing = [place for place, embedding in enumerate(found) if embedding is None]
        made = self.segmenter.encode([images[place] for place in missing]) if missing else []
        for place, embedding in zip(missing, made, strict=True):
            self._keep(keys[place], embedding)
            found[place] = embedding
        return [embedding for embedding in found if embedding is not None]

    def predict(
        self, embedding: SamEmbedding, prompts: PromptBatch, *, multimask: bool = False
    ) -> Prediction:
        """Return the segmenter's masks."""
        return self.segmenter.predict(embedding, prompts, multimask=multimask)  # type: ignore[arg-type]

    def _load(self, key: str, device: torch.device) -> SamEmbedding | None:
        kept = self.cache.load(key, device)
        if kept is None:
            return None
        kind = HqEmbedding if isinstance(self.segmenter, HqSam) else SamEmbedding
        return kind(**kept)

    def _keep(self, key: str, embedding: SamEmbedding) -> None:
        own = {  # without the rest of a batch; strides stay
            name: value.clone().cpu() if isinstance(value, torch.Tensor) else value
            for name, value in vars(embedding).items()
        }
        self.cache.keep(key, own)

    def _identity(self, device: torch.device) -> Mapping[str, str]:
        """Return all but the image that an embedding depends on."""
        info = self.info
        is_cuda = device.type == "cuda"
        return {
            "encoder": _encoder_sha256(info),
            "parts": info.checkpoint_sha256 if isinstance(self.segmenter, HqSam) else "",
            "frame": str(info.frame),
            "dtype": info.dtype,
            "attention": str(info.settings["attention"]),
            "compiled": str(info.settings.get("compiled", "")),
            "device": torch.cuda.get_device_name(device) if is_cuda else platform.machine(),
            "instructions": "" if is_cuda else torch.backends.cpu.get_cpu_capability(),
            "precision": torch.get_float32_matmul_precision(),
            "samrobust": __version__,
            **_versions(),
        }


def with_cache(segmenter: Segmenter[Any], cache: EmbeddingCache) -> Segmenter[Any]:
    """Return a segmenter that uses a cache, or the same one where a cache does not pay.

    It pays for a SAM, Stable-SAM or HQ-SAM whose encoder is a ViT and whose weights are a file's.
    All that have the same encoder share embeddings; an HQ-SAM, whose embeddings hold more, has its
    own.
    """
    if not isinstance(segmenter, Sam | StableSam | HqSam):
        return segmenter
    encoder: nn.Module = _base(segmenter).model.image_encoder
    if isinstance(encoder, ImageEncoderViT) and _encoder_sha256(segmenter.info):
        return CachedSegmenter(segmenter, cache)
    return segmenter


@functools.cache
def _versions() -> Mapping[str, str]:
    return {name: version(name) for name in VERSIONED}


def _base(segmenter: Sam | StableSam | HqSam) -> Sam:
    return segmenter if isinstance(segmenter, Sam) else segmenter.base


def _encoder_sha256(info: SegmenterInfo) -> str:
    """Return the SHA-256 of the file of the encoder's weights, "" where they are of none."""
    return str(info.settings.get("base_sha256", info.checkpoint_sha256))


def _key(identity: Mapping[str, str], image: Image) -> str:
    digest = hashlib.sha256(json.dumps({**identity, "size": image.shape}).encode())
    digest.update(image.tobytes())
    return digest.hexdigest()
