"""Options of commands that keep embeddings of images, and the segmenters that do."""

from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Annotated, Any

import typer

from samrobust.errors import SamrobustError
from samrobust.interfaces import Segmenter

Cache = Annotated[
    Path | None,
    typer.Option(
        help="Folder of images' embeddings (ViT encoders); on a CPU by default in the user's cache."
    ),
]
NoCache = Annotated[bool, typer.Option("--no-cache", help="Keep no embeddings of images.")]
CacheSize = Annotated[
    float, typer.Option(help="GB of embeddings to keep; the least recently used are deleted.")
]
DEFAULT_CACHE_SIZE = 8.0
"""GB: the embeddings of 1,900 images, or of 630 of an HQ-SAM."""
_BYTES = 1e9
"""Of a GB."""


@dataclass(frozen=True)
class CacheOptions:
    """What was asked for.

    Attributes:
        folder: None for the default one.
        off: whether there is none.
        size_gb: most that is kept, in GB.

    Raises:
        SamrobustError: a folder is named and there is to be none, or the size is not positive.
    """

    folder: Path | None = None
    off: bool = False
    size_gb: float = DEFAULT_CACHE_SIZE

    def __post_init__(self) -> None:
        if self.off and self.folder is not None:
            raise SamrobustError(f"--no-cache and --cache {self.folder} contradict each other")
        if not 0 < self.size_gb < float("inf"):
            raise SamrobustError(f"--cache-size must be above 0, got {self.size_gb:g}")
        if self.folder is not None and self.folder.exists() and not self.folder.is_dir():
            raise SamrobustError(f"--cache {self.folder}: is not a folder")


def with_caches(
    segmenters: Sequence[Segmenter[Any]], options: CacheOptions, *, device: str
) -> list[Segmenter[Any]]:
    """Return segmenters that keep embeddings: where a folder is named, and on a CPU."""
    if options.off or (options.folder is None and device != "cpu"):
        return list(segmenters)

    from samrobust.segmenters.embedding_cache import EmbeddingCache, with_cache
    from samrobust.segmenters.published import cache_folder

    folder = options.folder or cache_folder() / "embeddings"
    cache = EmbeddingCache(folder, int(options.size_gb * _BYTES))
    return [with_cache(segmenter, cache) for segmenter in segmenters]
