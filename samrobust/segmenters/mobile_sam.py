"""MobileSAM (Zhang et al. 2023): SAM with a TinyViT that learned its image encoder's embeddings."""

from samrobust.errors import SegmenterError
from samrobust.interfaces import SegmenterOptions
from samrobust.segmenters.checkpoints import fill_model
from samrobust.segmenters.device import resolve_device
from samrobust.segmenters.families import load_family, split_hq
from samrobust.segmenters.sam import Sam, sam_of
from samrobust.segmenters.tiny_vit import tiny_sam_model, with_timm_names

NAME = "mobile-sam"


def build_mobile_sam(options: SegmenterOptions) -> Sam:
    """Return MobileSAM with the weights of a file: its own, or those in a Light HQ-SAM's.

    Raises:
        SegmenterError: no file is named, a variant is asked for, or timm is not installed.
        CheckpointError: the file is missing, damaged or of another family.
    """
    if options.variant:
        raise SegmenterError(f"{NAME} has no variants, got --variant {options.variant}")
    path = options.checkpoint
    if path is None:
        raise SegmenterError(
            f"{NAME} fetches no weights: name its mobile_sam.pt, of ChaoningZhang/MobileSAM on "
            "GitHub, with --checkpoint"
        )
    device = resolve_device(options.device)
    state, sha256 = load_family(path, "MobileSAM", variant="", published={})
    model = tiny_sam_model()
    fill_model(model, with_timm_names(split_hq(state)[0]), path=path)
    return sam_of(model.to(device), options, variant="", checkpoint_sha256=sha256, name=NAME)
