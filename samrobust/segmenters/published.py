"""The weights files that others published: where they are, and where they lie once fetched."""

import os
from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path

CACHE_VARIABLE = "SAMROBUST_CACHE"
"""Environment variable that names a folder for fetched files instead of the user's cache."""


@dataclass(frozen=True)
class Checkpoint:
    """A published weights file.

    Attributes:
        url: where it is fetched from; ends with the file's name.
        sha256: of the file.
        n_bytes: its size.
        embed_dim: channels of its image encoder, which tell variants apart; of a TinyViT those of
            its last stage.
    """

    url: str
    sha256: str
    n_bytes: int
    embed_dim: int

    @property
    def file_name(self) -> str:
        """Return the last part of the address."""
        return self.url.rpartition("/")[2]


_META = "https://dl.fbaipublicfiles.com/segment_anything"
SAM_CHECKPOINTS: Mapping[str, Checkpoint] = {
    "vit_b": Checkpoint(
        f"{_META}/sam_vit_b_01ec64.pth",
        "ec2df62732614e57411cdcf32a23ffdf28910380d03139ee0f4fcbe91eb8c912",
        375_042_383,
        embed_dim=768,
    ),
    "vit_l": Checkpoint(
        f"{_META}/sam_vit_l_0b3195.pth",
        "3adcc4315b642a4d2101128f611684e8734c41232a17c648ed1693702a49a622",
        1_249_524_607,
        embed_dim=1024,
    ),
    "vit_h": Checkpoint(
        f"{_META}/sam_vit_h_4b8939.pth",
        "a7bf3b02f3ebf1267aba913ff637d9a2d5c33d3173bb679e46d9f338c26f262e",
        2_564_550_879,
        embed_dim=1280,
    ),
}
"""Meta's files by variant (sizes and hashes: facts/hq-sam.md 3.2)."""

_HQ = "https://huggingface.co/lkeab/hq-sam/resolve/main"
HQ_CHECKPOINTS: Mapping[str, Checkpoint] = {
    "vit_b": Checkpoint(
        f"{_HQ}/sam_hq_vit_b.pth",
        "14a9d662cd6f5a9c2dba6d40ab0058d88d287e4a18fd6fdc6ad5fb1a3fdeaa57",
        379_335_069,
        embed_dim=768,
    ),
    "vit_l": Checkpoint(
        f"{_HQ}/sam_hq_vit_l.pth",
        "e1a6c385d62bf005ded91a54d5ec55c985cfc4103ef89c08d90f39f04934c343",
        1_254_865_805,
        embed_dim=1024,
    ),
    "vit_h": Checkpoint(
        f"{_HQ}/sam_hq_vit_h.pth",
        "a7ac14a085326d9fa6199c8c698c4f0e7280afdbb974d2c4660ec60877b45e35",
        2_570_940_653,
        embed_dim=1280,
    ),
    "vit_tiny": Checkpoint(
        f"{_HQ}/sam_hq_vit_tiny.pth",
        "0f32c075ccdd870ae54db2f7630e7a0878ede5a2b06d05d6fe02c65a82fb7196",
        42_526_881,
        embed_dim=320,
    ),
}
"""HQ-SAM's files by variant: whole models (sizes and hashes: facts/hq-sam.md 3.2)."""


def published_sha256(segmenter: str, variant: str) -> str:
    """Return the SHA-256 of the published weights of a segmenter's variant, "" where none are."""
    checkpoints = {"sam": SAM_CHECKPOINTS, "hq-sam": HQ_CHECKPOINTS}.get(segmenter, {})
    return checkpoints[variant].sha256 if variant in checkpoints else ""


def cache_folder() -> Path:
    """Return the folder of fetched files."""
    from pooch import os_cache  # type: ignore[import-untyped]

    return Path(os.environ.get(CACHE_VARIABLE) or os_cache("samrobust"))
