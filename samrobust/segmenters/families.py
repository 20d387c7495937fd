"""Which family of models a weights file belongs to, and what to say where another one is wanted."""

from collections.abc import Mapping
from pathlib import Path
from typing import Literal

from samrobust.errors import CheckpointError
from samrobust.segmenters.checkpoints import State, load_state
from samrobust.segmenters.published import Checkpoint

Family = Literal["SAM", "HQ-SAM", "MobileSAM", "Light HQ-SAM"]

ACCEPTED: Mapping[Family, tuple[Family, ...]] = {
    "SAM": ("SAM", "HQ-SAM"),
    "HQ-SAM": ("HQ-SAM",),
    "MobileSAM": ("MobileSAM", "Light HQ-SAM"),
    "Light HQ-SAM": ("Light HQ-SAM",),
}
"""What will do for each: in a file of the HQ kind is the model that it was made of, unchanged."""
HQ_TENSORS = (
    "mask_decoder.hf_token.",
    "mask_decoder.hf_mlp.",
    "mask_decoder.compress_vit_feat.",
    "mask_decoder.embedding_encoder.",
    "mask_decoder.embedding_maskfeature.",
)
"""How the names of the 25 tensors begin that HQ-SAM adds to SAM (facts/hq-sam.md 3.1)."""
_VIT, _TINY_VIT = "image_encoder.pos_embed", "image_encoder.patch_embed.seq.0.c.weight"
"""A tensor of SAM's image encoder, and one of TinyViT, in MobileSAM and Light HQ-SAM."""
_WORDS: Mapping[Family, str] = {
    "SAM": "a SAM, without the 25 tensors of HQ-SAM: use --segmenter sam",
    "HQ-SAM": "an HQ-SAM: use --segmenter hq-sam",
    "MobileSAM": "a MobileSAM, whose image encoder is a TinyViT: use --segmenter mobile-sam",
    "Light HQ-SAM": (
        "a Light HQ-SAM, whose image encoder is a TinyViT: use --segmenter hq-sam "
        "--variant vit_tiny"
    ),
}
_DECODER_ALONE = (
    "a mask decoder alone, as HQ-SAM's training reads and writes: it has neither image encoder nor "
    "prompt encoder, and its names lack 'mask_decoder.' in front"
)


def load_family(
    path: Path, family: Family, *, variant: str, published: Mapping[str, Checkpoint]
) -> tuple[State, str]:
    """Return the weights of a file of one family, on the CPU, and its SHA-256.

    Args:
        path: of the file.
        family: what it must be, or one of what will do, which is returned whole.
        variant: of the family.
        published: files by variant, among them that of this one.

    Raises:
        CheckpointError: it is missing, broken, or of another family or variant; the message says of
            which.
    """
    state, sha256 = load_state(path, variant=variant, published=published)
    found = family_of(state)
    if found in ACCEPTED[family]:
        return state, sha256
    wanted = f"{published[variant].file_name} or alike" if variant in published else f"a {family}"
    raise CheckpointError(f"{path.name}: is {_words(state, found)}; wanted is {wanted}")


def family_of(state: State) -> Family | None:
    """Return the family of a whole model, None where it is none of them."""
    has_hq = bool(split_hq(state)[1])
    if _VIT in state:
        return "HQ-SAM" if has_hq else "SAM"
    if _TINY_VIT in state:
        return "Light HQ-SAM" if has_hq else "MobileSAM"
    return None


def split_hq(state: State) -> tuple[State, State]:
    """Return SAM's own tensors, and those that HQ-SAM adds, these without "mask_decoder."."""
    added = {name: tensor for name, tensor in state.items() if name.startswith(HQ_TENSORS)}
    own = {name: tensor for name, tensor in state.items() if name not in added}
    return own, {name.removeprefix("mask_decoder."): tensor for name, tensor in added.items()}


def _words(state: State, found: Family | None) -> str:
    if found is not None:
        return _WORDS[found]
    if "hf_token.weight" in state:
        return f"HQ-SAM's: {_DECODER_ALONE}"
    if "mask_tokens.weight" in state:
        return f"SAM's: {_DECODER_ALONE}"
    return "neither a SAM nor an HQ-SAM"
