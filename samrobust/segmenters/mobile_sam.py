"""MobileSAM (Zhang et al. 2023) and TinySAM (Shu et al. 2023): SAM's decoder on TinyViT."""

import re
from importlib.util import find_spec
from typing import Any

from segment_anything.modeling.sam import Sam as SamModel
from torch import Tensor, nn

from samrobust.errors import SegmenterError
from samrobust.segmenters.device import resolve_device
from samrobust.segmenters.sam import SIDE, Sam, sam_around, sam_neck, sam_of
from samrobust.segmenters.weights import State, fill_model, load_family, split_hq
from samrobust.types import SegmenterOptions

NAME, TINY_SAM = "mobile-sam", "tiny-sam"
WIDTHS, DEPTHS, HEADS, WINDOWS = (64, 128, 160, 320), (2, 2, 6, 2), (2, 4, 5, 10), (7, 7, 14, 7)
"""Of the four stages: TinyViT-5M. MobileSAM's own: the last stage keeps the grid of the third."""
_UNUSED = ("image_encoder.head.", "image_encoder.norm_head.")
"""Of the classifier that the encoder was made of; official files still have it."""
_RENAMED = (
    (r"^layers\.(\d)\.downsample", lambda found: f"stages.{int(found[1]) + 1}.downsample"),
    (r"^layers\.", "stages."),
    (r"^patch_embed\.seq\.0\.", "patch_embed.conv1."),
    (r"^patch_embed\.seq\.2\.", "patch_embed.conv2."),
    (r"\.c\.", ".conv."),
)
"""From the names in official files to timm's, which puts each merging of patches a stage later."""
_PREFIX = "image_encoder."


def build_mobile_sam(options: SegmenterOptions) -> Sam:
    """Return MobileSAM with the weights of a file: its own, or those in a Light HQ-SAM's.

    Raises:
        SegmenterError: no file is named, or timm is not installed.
        CheckpointError: the file is missing, damaged or of another family.
    """
    return _build(options, NAME, "its mobile_sam.pt, of ChaoningZhang/MobileSAM on GitHub")


def build_tiny_sam(options: SegmenterOptions) -> Sam:
    """Return TinySAM (Shu et al. 2023), which has the modules and names of MobileSAM.

    Its own code gives the decoder's last three masks alone; the first, which is scored where one
    mask is asked for, is one that its training may have left alone.

    Raises:
        SegmenterError: no file is named, or timm is not installed.
        CheckpointError: the file is missing, damaged or of another family.
    """
    return _build(options, TINY_SAM, "its tinysam.pth, of xinghaochen/TinySAM on GitHub")


def _build(options: SegmenterOptions, name: str, file: str) -> Sam:
    path = options.checkpoint
    if path is None:
        raise SegmenterError(f"{name} fetches no weights: name {file}, with --checkpoint")
    device = resolve_device(options.device)
    weights = load_family(path, "MobileSAM", variant="", published={})
    model = tiny_sam_model()
    fill_model(model, with_timm_names(split_hq(weights.state)[0]), path=path)
    return sam_of(model.to(device), options, variant="", weights=weights, name=name)


def tiny_sam_model() -> SamModel:
    """Return SAM's prompt encoder and mask decoder behind a TinyViT, with random weights.

    Raises:
        SegmenterError: timm is not installed.
    """
    return sam_around(TinyVitEncoder())


def with_timm_names(state: State) -> State:
    """Return the weights of an official file by the names of `tiny_sam_model`."""
    return {
        _renamed(name): tensor
        for name, tensor in state.items()
        if not name.startswith(_UNUSED) and not name.endswith("attention_bias_idxs")
    }


class TinyVitEncoder(nn.Module):
    """Image features at stride 16.

    Attributes:
        early_channels: of Light HQ-SAM's early features, which enter the third stage
            (docs/sources/hq-sam.md 3).
        early_share: their positions along each side for one of the embedding.

    Raises:
        SegmenterError: timm is not installed.
    """

    early_channels, early_share = WIDTHS[2], 1

    def __init__(self) -> None:
        super().__init__()
        if find_spec("timm") is None:
            raise SegmenterError(
                "an encoder of TinyViT needs timm; install it with pip install 'samrobust[mobile]'"
            )
        from timm.models.tiny_vit import TinyVit

        trunk: Any = TinyVit(
            embed_dims=WIDTHS,
            depths=DEPTHS,
            num_heads=HEADS,
            window_sizes=WINDOWS,
            drop_path_rate=0.0,
            num_classes=0,
        )
        trunk.stages[3].downsample.conv2.conv.stride = (1, 1)
        self.img_size = SIDE  # as SAM's own encoder calls it
        self.patch_embed = trunk.patch_embed
        self.stages = trunk.stages
        self.neck = sam_neck(WIDTHS[3])

    @property
    def early(self) -> nn.Module:
        """Return the part whose output (B, 160, 64, 64) is the early features."""
        early: nn.Module = self.stages[2].downsample
        return early

    def forward(self, images: Tensor) -> Tensor:
        """Return the embeddings (B, 256, 64, 64) of normalised images (B, 3, 1024, 1024)."""
        embedding: Tensor = self.neck(self.stages(self.patch_embed(images)))
        return embedding


def _renamed(name: str) -> str:
    if not name.startswith(_PREFIX):
        return name
    own = name.removeprefix(_PREFIX)
    for pattern, new in _RENAMED:
        own = re.sub(pattern, new, own)
    return _PREFIX + own
