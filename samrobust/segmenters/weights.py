"""Weights files: reading them, telling which family they are of, and copying them into a model."""

import contextlib
import pickle
import re
import struct
import warnings
from collections.abc import Iterator, Mapping
from pathlib import Path
from typing import Literal, NamedTuple

import torch
from safetensors import SafetensorError, safe_open
from safetensors.torch import load_file
from torch import Tensor, nn

from samrobust.errors import CheckpointError
from samrobust.segmenters.published import Checkpoint, file_sha256

State = dict[str, Tensor]
Family = Literal["SAM", "HQ-SAM", "MobileSAM", "Light HQ-SAM", "RepViT-SAM"]

ACCEPTED: Mapping[Family, tuple[Family, ...]] = {
    "SAM": ("SAM", "HQ-SAM"),
    "HQ-SAM": ("HQ-SAM",),
    "MobileSAM": ("MobileSAM", "Light HQ-SAM"),
    "Light HQ-SAM": ("Light HQ-SAM",),
    "RepViT-SAM": ("RepViT-SAM",),
}
"""Families that serve as each: a file of the HQ kind holds the model that it was made of."""
HQ_TENSORS = (
    "mask_decoder.hf_token.",
    "mask_decoder.hf_mlp.",
    "mask_decoder.compress_vit_feat.",
    "mask_decoder.embedding_encoder.",
    "mask_decoder.embedding_maskfeature.",
)
"""Beginnings of the names of the 25 tensors that HQ-SAM adds to SAM (docs/sources/hq-sam.md
3.1)."""
_VIT, _TINY_VIT = "image_encoder.pos_embed", "image_encoder.patch_embed.seq.0.c.weight"
"""A tensor of SAM's image encoder, whose last side tells variants apart, and one of TinyViT."""
_REPVIT = "image_encoder.features.0.0.c.weight"
UNREADABLE = (
    AssertionError,
    AttributeError,
    EOFError,
    LookupError,
    OSError,
    pickle.UnpicklingError,
    RuntimeError,
    struct.error,
    TypeError,
    ValueError,
)
"""What `torch.load` raises on damaged files, as found by damaging some thousands."""
WRAPPERS = ("model", "state_dict", "model_state_dict", "module", "net")
"""Keys under which training scripts store the weights beside epochs, optimizers and the like."""
PREFIXES = ("module.", "_orig_mod.", "model.", "net.", "sam.")
"""What DistributedDataParallel, torch.compile and training scripts put before every name."""
_FOREIGN = re.compile(r"GLOBAL (\S+)")
"""How `torch.load` names the first object that is no tensor, which it does not make."""


class Weights(NamedTuple):
    """The weights of a file.

    Attributes:
        state: on the CPU, under the names of the model's own.
        sha256: of the file.
        unwrapped: the keys and prefixes that were taken off, as "model module.", "" for none.
    """

    state: State
    sha256: str
    unwrapped: str

    @property
    def settings(self) -> dict[str, str]:
        """Return what a run stores of the way in which they were read."""
        return {"unwrapped": self.unwrapped} if self.unwrapped else {}


def load_family(
    path: Path, family: Family, *, variant: str, published: Mapping[str, Checkpoint]
) -> Weights:
    """Return the weights of a file of one family.

    Args:
        path: of the file.
        family: what it must be, or one that serves as it (`ACCEPTED`), which is returned whole.
        variant: of the family.
        published: files by variant, among them that of this one.

    Raises:
        CheckpointError: it is missing, broken, or of another family or variant; the message says of
            which.
    """
    weights = load_state(path, variant=variant, published=published)
    found = family_of(weights.state)
    if found in ACCEPTED[family]:
        return weights
    wanted = f"{published[variant].file_name} or alike" if variant in published else f"a {family}"
    raise CheckpointError(f"{path.name}: is {_words(weights.state, found)}; wanted is {wanted}")


def load_state(path: Path, *, variant: str, published: Mapping[str, Checkpoint]) -> Weights:
    """Return the weights in a file; no code in the file is run.

    Args:
        path: of a state dict that `torch.save` wrote, alone or in a checkpoint of a training
            (`WRAPPERS`, `PREFIXES`).
        variant: what it must be.
        published: the files of all variants, which tell whose file it is instead.

    Raises:
        CheckpointError: the file is missing, broken, of another variant, or holds objects that
            are no tensors.
    """
    if not path.is_file():
        raise CheckpointError(f"{path}: there is no such checkpoint")
    sha256 = file_sha256(path)
    for owner, checkpoint in published.items():
        if owner != variant and checkpoint.sha256 == sha256:
            raise CheckpointError(
                f"{path.name}: is the published {owner}, not {variant}; is it --variant {owner}?"
            )
    state, unwrapped = _unwrapped(_read(path), path)
    sides = state[_VIT].shape if _VIT in state else ()
    for owner, checkpoint in published.items():
        if owner != variant and sides[-1:] == (checkpoint.embed_dim,):
            raise CheckpointError(
                f"{path.name}: looks like {owner}, not like {variant}; is it --variant {owner}?"
            )
    return Weights(state, sha256, unwrapped)


def family_of(state: State) -> Family | None:
    """Return the family of a whole model, None where it is none of them."""
    has_hq = bool(split_hq(state)[1])
    if _VIT in state:
        return "HQ-SAM" if has_hq else "SAM"
    if _TINY_VIT in state:
        return "Light HQ-SAM" if has_hq else "MobileSAM"
    if _REPVIT in state:
        return "RepViT-SAM"
    return None


def split_hq(state: State) -> tuple[State, State]:
    """Return SAM's own tensors, and those that HQ-SAM adds, these without "mask_decoder."."""
    added = {name: tensor for name, tensor in state.items() if name.startswith(HQ_TENSORS)}
    own = {name: tensor for name, tensor in state.items() if name not in added}
    return own, {name.removeprefix("mask_decoder."): tensor for name, tensor in added.items()}


def is_safetensors(path: Path) -> bool:
    """Return whether a file begins as safetensors files do; False where there is none."""
    if not path.is_file():
        return False
    with path.open("rb") as file:
        return file.read(9)[8:] == b"{"


def load_tensors(path: Path) -> State:
    """Return the tensors of a safetensors file, on the CPU, as float32.

    Raises:
        CheckpointError: the file is missing or is no safetensors file.
    """
    with _opened(path):
        state = load_file(path)
    return {name: tensor.float() for name, tensor in state.items()}


def load_header(path: Path) -> dict[str, str]:
    """Return what the header of a safetensors file says besides its tensors.

    Raises:
        CheckpointError: the file is missing or is no safetensors file.
    """
    with _opened(path), safe_open(path, framework="pt") as file:
        return file.metadata() or {}


def fill_model(model: nn.Module, state: State, *, path: Path) -> None:
    """Copy weights into a model: every tensor of the one is in the other, of the same shape.

    Raises:
        CheckpointError: they do not fit; the message names `path`, where they came from.
    """
    wanted = model.state_dict()
    misfits = sorted(
        name
        for name in wanted.keys() | state.keys()
        if name not in wanted or name not in state or wanted[name].shape != state[name].shape
    )
    if misfits:
        raise CheckpointError(
            f"{path.name}: does not fit the model: {len(misfits)} tensors are missing, unknown or "
            f"of another shape, as {misfits[0]}"
        )
    model.load_state_dict(state)


@contextlib.contextmanager
def _opened(path: Path) -> Iterator[None]:
    """Raise a CheckpointError of one line where a safetensors file cannot be read."""
    if not path.is_file():
        raise CheckpointError(f"{path}: there is no such checkpoint")
    try:
        yield
    except (OSError, SafetensorError) as error:
        raise CheckpointError(f"{path.name}: cut short, or not a safetensors file") from error


def _read(path: Path) -> object:
    """Return what `torch.save` wrote, made of tensors, numbers, texts and containers alone."""
    try:
        with warnings.catch_warnings():
            warnings.simplefilter("ignore")  # what is no dense tensor is refused below
            content: object = torch.load(path, map_location="cpu", weights_only=True)
    except UNREADABLE as error:
        foreign = _FOREIGN.search(str(error))
        if foreign is None and "TorchScript" not in str(error):
            raise CheckpointError(f"{path.name}: cut short, or not a file of torch.save") from error
        what = "a TorchScript program" if foreign is None else f"an object {foreign[1]}"
        raise CheckpointError(
            f"{path.name}: holds more than tensors, such as {what}, and reading that could run "
            "code of the file; where you trust it, save its weights alone: "
            "torch.save(model.state_dict(), FILE)"
        ) from error
    return content


def _unwrapped(content: object, path: Path) -> tuple[State, str]:
    """Return weights under their model's own names, and what was taken off for that."""
    off = []
    while isinstance(content, dict) and not _is_state(content):
        key = next((key for key in WRAPPERS if isinstance(content.get(key), dict)), None)
        if key is None:
            break
        off.append(key)
        content = content[key]
    if not isinstance(content, dict) or not _is_state(content):
        raise CheckpointError(f"{path.name}: holds something else than the weights of a model")
    while content and (prefix := _common_prefix(content)):
        off.append(prefix)
        content = {name.removeprefix(prefix): tensor for name, tensor in content.items()}
    return content, " ".join(off)


def _is_state(content: dict[object, object]) -> bool:
    return all(map(_is_weight, content.items()))


def _common_prefix(state: State) -> str:
    """Return the one of `PREFIXES` that all names begin with, "" where there is none."""
    return next((each for each in PREFIXES if all(name.startswith(each) for name in state)), "")


def _is_weight(item: tuple[object, object]) -> bool:
    name, tensor = item
    if not isinstance(name, str) or not isinstance(tensor, Tensor):
        return False
    return tensor.layout is torch.strided and tensor.device.type == "cpu"


_WORDS: Mapping[Family, str] = {
    "SAM": "a SAM, without the 25 tensors of HQ-SAM: use --segmenter sam",
    "HQ-SAM": "an HQ-SAM: use --segmenter hq-sam",
    "MobileSAM": "a MobileSAM, whose image encoder is a TinyViT: use --segmenter mobile-sam",
    "Light HQ-SAM": (
        "a Light HQ-SAM, whose image encoder is a TinyViT: use --segmenter hq-sam "
        "--variant vit_tiny"
    ),
    "RepViT-SAM": "a RepViT-SAM: use --segmenter repvit-sam",
}
_DECODER_ALONE = (
    "a mask decoder alone, as HQ-SAM's training reads and writes: it has neither image encoder nor "
    "prompt encoder, and its names lack 'mask_decoder.' in front"
)


def _words(state: State, found: Family | None) -> str:
    if found is not None:
        return _WORDS[found]
    if "hf_token.weight" in state:
        return f"HQ-SAM's: {_DECODER_ALONE}"
    if "mask_tokens.weight" in state:
        return f"SAM's: {_DECODER_ALONE}"
    return "neither a SAM nor an HQ-SAM"
