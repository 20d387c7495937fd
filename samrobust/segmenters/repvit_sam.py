"""RepViT-SAM (Wang et al. 2023): SAM's decoder on RepViT-M2.3, whose last stage keeps the grid."""

import re
from importlib.util import find_spec
from typing import Any

from segment_anything.modeling.sam import Sam as SamModel
from torch import Tensor, nn

from samrobust.errors import SegmenterError
from samrobust.segmenters.device import resolve_device
from samrobust.segmenters.sam import SIDE, Sam, sam_around, sam_neck, sam_of
from samrobust.segmenters.weights import State, fill_model, load_family
from samrobust.types import SegmenterOptions

NAME = "repvit-sam"
WIDTHS, DEPTHS = (80, 160, 320, 640), (6, 6, 34, 2)
"""Of the four stages: timm's repvit_m2_3."""
_PREFIX = "image_encoder."
_OFFICIAL = re.compile(r"features\.(\d+)\.(.+)")
_IN_BLOCK = (
    ("token_mixer.0.", "token_mixer."),
    ("token_mixer.1.", "se."),
    ("channel_mixer.m.0.", "channel_mixer.conv1."),
    ("channel_mixer.m.2.", "channel_mixer.conv2."),
)
_IN_DOWNSAMPLE = (
    ("token_mixer.0.", "spatial_downsample."),
    ("token_mixer.2.", "channel_downsample."),
    ("channel_mixer.m.0.", "ffn.conv1."),
    ("channel_mixer.m.2.", "ffn.conv2."),
)
"""From the names in official files to timm's, of a block that keeps the size and of one that halves
it."""


def build_repvit_sam(options: SegmenterOptions) -> Sam:
    """Return RepViT-SAM with the weights of a file.

    Raises:
        SegmenterError: no file is named, or timm is not installed.
        CheckpointError: the file is missing, damaged or of another family.
    """
    path = options.checkpoint
    if path is None:
        raise SegmenterError(
            f"{NAME} fetches no weights: name its repvit_sam.pt, of THU-MIG/RepViT on GitHub, with "
            "--checkpoint"
        )
    device = resolve_device(options.device)
    weights = load_family(path, "RepViT-SAM", variant="", published={})
    model = repvit_sam_model()
    fill_model(model, with_timm_names(weights.state), path=path)
    return sam_of(model.to(device), options, variant="", weights=weights, name=NAME)


def repvit_sam_model() -> SamModel:
    """Return SAM's prompt encoder and mask decoder behind a RepViT, with random weights.

    Raises:
        SegmenterError: timm is not installed.
    """
    return sam_around(RepVitEncoder())


def with_timm_names(state: State) -> State:
    """Return the weights of an official file by the names of `repvit_sam_model`."""
    return {_renamed(name): tensor for name, tensor in state.items()}


class RepVitEncoder(nn.Module):
    """Image features at stride 16.

    Raises:
        SegmenterError: timm is not installed.
    """

    def __init__(self) -> None:
        super().__init__()
        if find_spec("timm") is None:
            raise SegmenterError(
                "an encoder of RepViT needs timm; install it with pip install 'samrobust[mobile]'"
            )
        from timm.models.repvit import RepVit

        trunk: Any = RepVit(embed_dim=WIDTHS, depth=DEPTHS, num_classes=0)
        trunk.stages[3].downsample.spatial_downsample.c.stride = (1, 1)
        self.img_size = SIDE  # as SAM's own encoder calls it
        self.stem = trunk.stem
        self.stages = trunk.stages
        self.neck = sam_neck(WIDTHS[3])

    def forward(self, images: Tensor) -> Tensor:
        """Return the embeddings (B, 256, 64, 64) of normalised images (B, 3, 1024, 1024)."""
        embedding: Tensor = self.neck(self.stages(self.stem(images)))
        return embedding


def _places() -> list[tuple[str, tuple[tuple[str, str], ...]]]:
    """Return timm's place of each official block, and how the parts of such a block are called.

    The official list has all blocks in a row: of each stage those that keep the size, then the one
    that timm counts to the next stage, and the one that halves.
    """
    found: list[tuple[str, tuple[tuple[str, str], ...]]] = []
    for stage, depth in enumerate(DEPTHS):
        if stage:
            found.append((f"stages.{stage}.downsample.pre_block.", _IN_BLOCK))
            found.append((f"stages.{stage}.downsample.", _IN_DOWNSAMPLE))
        found += [(f"stages.{stage}.blocks.{block}.", _IN_BLOCK) for block in range(depth)]
    return found


_PLACES = _places()


def _renamed(name: str) -> str:
    official = _OFFICIAL.fullmatch(name.removeprefix(_PREFIX))
    if official is None or not name.startswith(_PREFIX):
        return name
    number, part = int(official[1]), official[2]
    if number == 0:  # convolutions 0 and 2 of the stem
        return f"{_PREFIX}stem.conv{1 + int(part[0]) // 2}{part[1:]}"
    if number > len(_PLACES):
        return name
    place, parts = _PLACES[number - 1]
    for old, new in parts:
        if part.startswith(old):
            return f"{_PREFIX}{place}{new}{part.removeprefix(old)}"
    return name
